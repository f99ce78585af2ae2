"""How a unit ends: contract by contract, read on a second connection, on every database."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from enum import Enum
from functools import wraps
from types import FunctionType
from typing import Any

import flask
import flask.views
import pytest
import sqlalchemy as sa
from flask import Response, abort
from werkzeug.exceptions import NotFound

from flask_uow import Unit, current_unit, signals, transactional
from flask_uow._scopes import Scope
from flask_uow._sessions import OwnSessions, report_lost_writes
from flask_uow._units import Ending, ending
from flask_uow.exceptions import (
    NoActiveUnitError,
    RuleViolationError,
    UnitFailedError,
    UnitOptionsError,
    UnitTimeoutError,
)
from tests.database.conftest import Bench, MakeBench
from tests.models import Item
from tests.strikes import struck


class AppError(Exception):
    """An error of the application."""


class SpecialError(AppError):
    """One more specific."""


class HardStop(BaseException):
    """What is no Exception, like a time-out of gevent."""


TABLE = {
    # raised, kept, failed, rollback only
    (False, False, False, False): Ending.COMMIT,
    (False, False, False, True): Ending.ROLLBACK,
    (False, False, True, False): Ending.FAIL,
    (False, False, True, True): Ending.ROLLBACK,
    (True, True, False, False): Ending.COMMIT,
    (True, True, False, True): Ending.ROLLBACK,
    (True, True, True, False): Ending.ROLLBACK,
    (True, True, True, True): Ending.ROLLBACK,
    (True, False, False, False): Ending.ROLLBACK,
    (True, False, False, True): Ending.ROLLBACK,
    (True, False, True, False): Ending.ROLLBACK,
    (True, False, True, True): Ending.ROLLBACK,
}


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_table_of_endings(row: tuple[bool, bool, bool, bool]) -> None:
    """The pure function answers as the table says."""
    has_raised, is_kept, is_failed, is_rollback_only = row

    decided = ending(has_raised=has_raised, is_kept=is_kept, is_failed=is_failed, is_rollback_only=is_rollback_only)

    assert decided is TABLE[row]


def test_the_table_of_endings_is_whole() -> None:
    """No row is missing; only what was raised can be kept."""
    rows = {row for row in itertools.product((False, True), repeat=4) if row[0] or not row[1]}

    assert set(TABLE) == rows


def test_a_return_commits_and_gives_the_value(bench: Bench) -> None:
    """The rows are there, the value comes back, the connection is in the pool."""

    @transactional
    def write() -> str:
        bench.add("a")
        return "value"

    with bench.app.app_context():
        assert write() == "value"
        assert bench.checked_out == 0

    assert bench.committed() == ["a"]


def test_what_was_only_added_is_flushed_and_committed(bench: Bench) -> None:
    """No flush by hand is needed."""
    with bench.app.app_context(), transactional():
        bench.session.add(Item(name="a"))

    assert bench.committed() == ["a"]


def raise_app_error() -> None:
    raise AppError("no")


def raise_system_exit() -> None:
    raise SystemExit(3)


def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def raise_generator_exit() -> None:
    raise GeneratorExit


def raise_hard_stop() -> None:
    raise HardStop


def raise_not_found() -> None:
    abort(404)


RAISES: list[tuple[Callable[[], None], type[BaseException]]] = [
    (raise_app_error, AppError),
    (raise_not_found, NotFound),
    (raise_system_exit, SystemExit),
    (raise_keyboard_interrupt, KeyboardInterrupt),
    (raise_generator_exit, GeneratorExit),
    (raise_hard_stop, HardStop),
]


@pytest.mark.parametrize(("stop", "expected"), RAISES, ids=lambda value: getattr(value, "__name__", None))
def test_an_exception_rolls_back_and_the_same_goes_on(
    bench: Bench, stop: Callable[[], None], expected: type[BaseException]
) -> None:
    """Nothing is kept, and the next unit of the same thread and context is clean."""
    raised: list[BaseException] = []

    @transactional
    def write() -> None:
        bench.add("lost")
        try:
            stop()
        except BaseException as error:
            raised.append(error)
            raise

    with bench.app.app_context():
        with pytest.raises(expected) as caught:
            write()
        assert caught.value is raised[0]
        assert not current_unit
        assert bench.checked_out == 0
        with transactional() as unit:
            assert unit.depth == 1
            bench.add("next")

    assert bench.committed() == ["next"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, HardStop])
def test_an_interrupted_request_leaves_the_next_one_clean(bench: Bench, exception: type[BaseException]) -> None:
    """The next request in the same thread commits."""

    @bench.app.post("/<name>")
    @transactional
    def write(name: str) -> str:
        bench.add(name)
        if name == "interrupted":
            raise exception
        return name

    client = bench.app.test_client()
    with pytest.raises(exception):
        client.post("/interrupted")

    assert client.post("/next").status_code == 200
    assert bench.committed() == ["next"]


@pytest.mark.parametrize("is_inner", [False, True])
def test_a_unit_that_is_interrupted_as_it_begins_is_over(bench: Bench, is_inner: bool) -> None:
    """What comes next in its context is in no unit that nobody will end."""
    stops = [HardStop]

    def stop(app: flask.Flask, unit: Unit) -> None:
        if unit.label == "stopped":
            raise stops.pop()

    with bench.app.app_context(), signals.unit_began.connected_to(stop, bench.app):
        with transactional() if is_inner else nullcontext():
            with pytest.raises(HardStop), transactional(label="stopped"):
                pass
            assert (current_unit.depth if current_unit else 0) == is_inner
            with transactional():
                bench.add("next")

    assert bench.committed() == ["next"]


def test_an_independent_unit_that_is_interrupted_as_it_begins_gives_the_session_back(bench: Bench) -> None:
    """What the unit around it does next is its own work."""

    def stop(app: flask.Flask, unit: Unit) -> None:
        if unit.label == "stopped":
            raise HardStop

    with bench.app.app_context(), signals.unit_began.connected_to(stop, bench.app):
        with transactional() as unit:
            with pytest.raises(HardStop), transactional(label="stopped", propagation="requires_new"):
                pass
            assert current_unit == unit
            bench.add("outer")

    assert bench.committed() == ["outer"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("propagation", ["requires_new", "not_supported"])
@pytest.mark.parametrize("place", [Scope.slot, Unit.__init__, report_lost_writes, OwnSessions.restore])
def test_an_interrupt_leaves_the_session_of_the_unit_around(
    bench: Bench, propagation: Any, place: FunctionType
) -> None:
    """A time limit may strike while another session takes the place of the unit's, or gives it back."""

    @transactional(propagation=propagation)
    def apart() -> None:
        bench.run_sql("SELECT 1")

    with bench.app.app_context(), transactional():
        bench.add("before")
        with (
            suppress(AppError),
            struck(AppError("time is up"), lambda frame, event, _: event == "call" and frame.f_code is place.__code__),
        ):
            apart()
        bench.add("after")

    assert bench.committed() == ["after", "before"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("is_inner", [False, True])
def test_a_unit_whose_deadline_a_server_does_not_take_is_over(make_bench: MakeBench, is_inner: bool) -> None:
    """Nothing rides, so the server is told at once, and has aborted the transaction that the unit adopts."""
    bench = make_bench(UOW_RIDE=False)
    with bench.app.app_context():
        with (
            pytest.raises(UnitFailedError) if is_inner else nullcontext(),
            transactional() if is_inner else nullcontext(),
        ):
            with pytest.raises(sa.exc.DataError):
                bench.run_sql("SELECT 1 / 0")
            with pytest.raises(sa.exc.InternalError, match="aborted"), transactional(timeout=60):
                pass
            assert (current_unit.depth if current_unit else 0) == is_inner
        with transactional() as unit:
            assert unit.depth == 1
            bench.add("next")

    assert bench.committed() == ["next"]


def test_a_generator_that_is_closed_rolls_back(bench: Bench) -> None:
    """GeneratorExit reaches the block like any exception."""

    def stream() -> Iterator[str]:
        with transactional():
            bench.add("lost")
            yield "first"

    with bench.app.app_context():
        body = stream()
        next(body)
        body.close()  # type: ignore[attr-defined]
        assert bench.checked_out == 0

    assert bench.committed() == []


def test_set_rollback_only_rolls_back_and_keeps_the_value(bench: Bench) -> None:
    """No exception is needed to undo a unit."""

    @transactional
    def write() -> str:
        bench.add("lost")
        current_unit.set_rollback_only()
        return "value"

    with bench.app.app_context():
        assert write() == "value"

    assert bench.committed() == []


def test_no_rollback_for_commits_and_the_exception_goes_on(bench: Bench) -> None:
    """The named class commits."""

    @transactional(no_rollback_for=AppError)
    def write() -> None:
        bench.add("kept")
        raise AppError("kept")

    with bench.app.app_context(), pytest.raises(AppError, match="kept"):
        write()

    assert bench.committed() == ["kept"]


@pytest.mark.parametrize(
    ("options", "is_kept"),
    [
        ({"no_rollback_for": AppError}, True),
        ({"no_rollback_for": AppError, "rollback_for": SpecialError}, False),
        ({"no_rollback_for": SpecialError, "rollback_for": AppError}, True),
        ({"no_rollback_for": (KeyError, SpecialError)}, True),
        ({"no_rollback_for": Exception, "rollback_for": AppError}, False),
        ({}, False),
    ],
)
def test_the_most_specific_class_wins(bench: Bench, options: dict[str, type[Exception]], is_kept: bool) -> None:
    """Of both lists, in the order of the exception's own bases."""

    @transactional(**options)  # type: ignore[call-overload, untyped-decorator, unused-ignore]
    def write() -> None:
        bench.add("row")
        raise SpecialError

    with bench.app.app_context(), pytest.raises(SpecialError):
        write()

    assert bench.committed() == (["row"] if is_kept else [])


def test_a_kept_exception_on_a_failed_unit_rolls_back(bench: Bench) -> None:
    """A commit would pretend."""
    with bench.app.app_context(), transactional():
        bench.add("there")

    @transactional(no_rollback_for=AppError)
    def write() -> None:
        bench.add("lost")
        with pytest.raises(sa.exc.IntegrityError):
            bench.add("there")
        raise AppError("goes on")

    with bench.app.app_context(), pytest.raises(AppError, match="goes on"):
        write()

    assert bench.committed() == ["there"]


def test_on_error_answers_after_the_rollback(bench: Bench) -> None:
    """It sees the exception, no active unit, and a connection in the pool."""
    seen: list[object] = []

    def answer(error: Exception) -> str:
        seen.extend([error, bool(current_unit), bench.checked_out])
        return "sorry"

    @transactional(on_error=answer)
    def write() -> str:
        bench.add("lost")
        raise AppError("no")

    with bench.app.app_context():
        assert write() == "sorry"

    assert [str(seen[0]), *seen[1:]] == ["no", False, 0]
    assert bench.committed() == []


def test_on_error_runs_as_if_it_stood_behind_except(bench: Bench) -> None:
    """What it logs has the traceback, and the exception is the context of another one that it raises."""
    app_error = AppError("no")
    handled: list[BaseException | None] = []

    def raise_another(error: Exception) -> None:
        handled.append(sys.exception())
        raise ValueError("another")

    @transactional(on_error=raise_another)
    def fail() -> None:
        raise app_error

    with bench.app.app_context(), pytest.raises(ValueError, match="another") as caught:
        fail()

    assert handled == [app_error]
    assert caught.value.__context__ is app_error


def test_on_error_does_not_hide_an_interrupt(bench: Bench) -> None:
    """Only an Exception is answered."""

    @transactional(on_error=lambda error: "sorry")
    def write() -> str:
        raise KeyboardInterrupt

    with bench.app.app_context(), pytest.raises(KeyboardInterrupt):
        write()


def test_on_error_does_not_answer_what_was_kept(bench: Bench) -> None:
    """The exception of a committed unit goes on."""

    @transactional(on_error=lambda error: "sorry", no_rollback_for=AppError)
    def write() -> str:
        raise AppError("goes on")

    with bench.app.app_context(), pytest.raises(AppError, match="goes on"):
        write()


# ---- the status veto


class TextStatus(str, Enum):  # noqa: UP042  # of which str() is not the value
    """An app's own names for what it answers."""

    GONE = "410 GONE"


class NumberedStatus(int, Enum):
    """The same by number."""

    GONE = 410


ANSWERS: dict[str, tuple[Callable[[], object], int]] = {
    "text": (lambda: "fine", 200),
    "response": (lambda: Response("bad", 422), 422),
    "pair": (lambda: ("bad", 409), 409),
    "triple": (lambda: ("bad", 503, {"X": "1"}), 503),
    "text status": (lambda: ("bad", "404 NOT FOUND"), 404),
    "text without a number": (lambda: ("fine", "NOT MODIFIED"), 0),
    "text of an enum": (lambda: ("bad", TextStatus.GONE), 410),
    "number of an enum": (lambda: ("bad", NumberedStatus.GONE), 410),
    "headers only": (lambda: ("fine", {"X": "1"}), 200),
    "response in a pair": (lambda: (Response("bad", 500), {"X": "1"}), 500),
    "dict": (lambda: {"fine": 1}, 200),
    "redirect": (lambda: flask.redirect("/", 302), 302),
    "exception that is returned": (NotFound, 404),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("by", ["option", "config"])
def test_a_returned_status_may_veto(make_bench: MakeBench, name: str, by: str) -> None:
    """A view that returns such a status, in whichever form, rolls back, and its response stands."""
    answer, status = ANSWERS[name]
    bench = make_bench(**({"UOW_ROLLBACK_ON_STATUS": 400} if by == "config" else {}))

    @bench.app.post("/")
    @transactional(rollback_on_status=400 if by == "option" else None)
    def view() -> Any:
        bench.add("row")
        return answer()

    assert bench.app.test_client().post("/").status_code == status
    assert bench.committed() == (["row"] if status < 400 else [])


def test_a_veto_may_be_a_function(bench: Bench) -> None:
    """It gets the status."""

    @bench.app.post("/<int:status>")
    @transactional(rollback_on_status=lambda status: status == 418)
    def view(status: int) -> tuple[str, int]:
        bench.add(str(status))
        return "", status

    for status in (200, 404, 418):
        bench.app.test_client().post(f"/{status}")

    assert bench.committed() == ["200", "404"]


def test_the_configured_veto_is_for_views_alone(make_bench: MakeBench) -> None:
    """A function that returns a pair of numbers is no view, be it called from one."""
    bench = make_bench(UOW_ROLLBACK_ON_STATUS=400)

    @transactional
    def pair() -> tuple[str, int]:
        bench.add("row")
        return "account", 4711

    @bench.app.post("/")
    def view() -> str:
        return pair()[0]

    assert bench.app.test_client().post("/").status_code == 200
    bench.database.execute("DELETE FROM item")
    with bench.app.app_context():
        assert pair() == ("account", 4711)

    assert bench.committed() == ["row"]


def test_a_view_class_is_vetoed_too(make_bench: MakeBench) -> None:
    """By the method, and by ``decorators``."""
    bench = make_bench(UOW_ROLLBACK_ON_STATUS=400)

    class ByMethod(flask.views.MethodView):
        @transactional
        def post(self) -> tuple[str, int]:
            bench.add("by method")
            return "", 400

    class ByDecorators(flask.views.MethodView):
        decorators = [transactional]  # noqa: RUF012  # as Flask declares it

        def post(self) -> tuple[str, int]:
            bench.add(current_unit.label)
            return "", int(flask.request.args["status"])

    bench.app.add_url_rule("/method", view_func=ByMethod.as_view("method"))
    bench.app.add_url_rule("/decorators", view_func=ByDecorators.as_view("decorators"))
    client = bench.app.test_client()
    client.post("/method")
    client.post("/decorators?status=400")
    client.post("/decorators?status=201")

    assert bench.committed() == ["POST /decorators"]


def test_a_method_that_its_class_decorates_at_each_call_is_vetoed_too(make_bench: MakeBench) -> None:
    """As Flask-RESTful and Flask-RESTX do with ``method_decorators``."""
    bench = make_bench(UOW_ROLLBACK_ON_STATUS=400)

    class Resource(flask.views.MethodView):
        def dispatch_request(self, **values: Any) -> Any:
            return transactional(getattr(self, flask.request.method.lower()))(**values)

    def marshal(method: Callable[..., Any]) -> Callable[..., Any]:
        return wraps(method)(lambda self: method(self, 400))

    class Items(Resource):
        def post(self) -> tuple[str, int]:
            bench.add(current_unit.label)
            return "", int(flask.request.args["status"])

        @marshal
        def put(self, status: int) -> tuple[str, int]:
            bench.add(current_unit.label)
            return "", status

    bench.app.add_url_rule("/items", view_func=Items.as_view("items"))
    client = bench.app.test_client()
    client.post("/items?status=400")
    client.post("/items?status=201")
    client.put("/items")

    assert bench.committed() == ["POST /items"]


# ---- swallowed errors: the commit never pretends


def swallow_flush(bench: Bench) -> None:
    bench.session.add(Item(name="there"))
    with pytest.raises(sa.exc.IntegrityError):
        bench.session.flush()


def swallow_autoflush(bench: Bench) -> None:
    bench.session.add(Item(name="there"))
    with pytest.raises(sa.exc.IntegrityError):
        bench.session.scalars(sa.select(Item)).all()


def swallow_execute(bench: Bench) -> None:
    with pytest.raises(sa.exc.DBAPIError):
        bench.run_sql("SELECT * FROM no_such_table")


def swallow_duplicate_text(bench: Bench) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        bench.run_sql("INSERT INTO item (name) VALUES ('there')")


def swallow_core(bench: Bench) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        bench.session.connection().execute(sa.insert(Item).values(name="there"))


def swallow_raw_cursor(bench: Bench) -> None:
    cursor = bench.session.connection().connection.cursor()
    with pytest.raises(Exception, match="no_such_table"):
        cursor.execute("SELECT * FROM no_such_table")
    cursor.close()


def swallow_or_rollback(bench: Bench) -> None:
    """SQLite's own way to end the whole transaction; the server has no such clause, and aborts for that."""
    with pytest.raises(sa.exc.DBAPIError):
        bench.run_sql("INSERT OR ROLLBACK INTO item (name) VALUES ('there')")


def swallow_or_rollback_of_raw_cursor(bench: Bench) -> None:
    cursor = bench.session.connection().connection.cursor()
    with pytest.raises(Exception, match="item"):
        cursor.execute("INSERT OR ROLLBACK INTO item (name) VALUES ('there')")
    cursor.close()


# On SQLite a statement that fails takes nothing else with it: the transaction goes on and its commit is no lie.
FATAL_EVERYWHERE = (swallow_flush, swallow_autoflush)
FATAL_TO_THE_WHOLE = (swallow_or_rollback, swallow_or_rollback_of_raw_cursor)
UNSEEN = (swallow_raw_cursor, swallow_or_rollback_of_raw_cursor)
FATAL_ON_A_SERVER = (swallow_execute, swallow_duplicate_text, swallow_core, swallow_raw_cursor)
HEALED_BY_SAVEPOINT = (*FATAL_EVERYWHERE, *FATAL_ON_A_SERVER)
SWALLOWED = (*HEALED_BY_SAVEPOINT, *FATAL_TO_THE_WHOLE)


def is_fatal(bench: Bench, swallow: Callable[[Bench], None]) -> bool:
    return bench.database.is_postgresql or swallow in (*FATAL_EVERYWHERE, *FATAL_TO_THE_WHOLE)


@pytest.fixture
def there(bench: Bench) -> Bench:
    """A bench whose table has one row."""
    with bench.app.app_context(), transactional():
        bench.add("there")
    return bench


@pytest.mark.parametrize("swallow", SWALLOWED, ids=lambda function: function.__name__)
def test_a_swallowed_error_as_the_last_statement(there: Bench, swallow: Callable[[Bench], None]) -> None:
    """The unit fails from the first error where SQLAlchemy saw it, and the next one is clean."""

    @transactional
    def write() -> str:
        there.add("first")
        swallow(there)
        return "pretended"

    with there.app.app_context():
        if is_fatal(there, swallow):
            with pytest.raises(UnitFailedError, match=r"write.*was not committed") as caught:
                write()
            seen = None if swallow in UNSEEN else sa.exc.DBAPIError
            assert isinstance(caught.value.__cause__, seen or type(None))
        else:
            write()
        with transactional():
            there.add("next")

    kept = [] if is_fatal(there, swallow) else ["first"]
    assert there.committed() == sorted(["next", "there", *kept])


# What listens to a flush cannot flush; who commits by hand may end SQLite's transaction by hand.
SWALLOWED_BY_LISTENERS = [
    *((swallow, False) for swallow in (*FATAL_ON_A_SERVER, *FATAL_TO_THE_WHOLE)),
    *((swallow, True) for swallow in (*FATAL_ON_A_SERVER, swallow_or_rollback)),
]


# SQLite gives the key of a row that OR ROLLBACK took back to the next row: SQLAlchemy 2.0.0 warns of the object it had.
@pytest.mark.filterwarnings("ignore:Identity map already had an identity:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("rides", [True, False], ids=["", "not riding"])
@pytest.mark.parametrize("moment", ["before_commit", "after_flush", "after_flush_postexec"])
@pytest.mark.parametrize(("swallow", "is_by_hand"), SWALLOWED_BY_LISTENERS)
def test_an_error_that_a_listener_to_the_commit_swallows(
    make_bench: MakeBench, swallow: Callable[[Bench], None], moment: str, rides: bool, is_by_hand: bool
) -> None:
    """It comes too late to be seen before the commit, and is no less an end of the transaction."""
    bench = make_bench(UOW_RIDE=rides)
    with bench.app.app_context(), transactional():
        bench.add("there")

    def write() -> None:
        bench.add("zeroth")
        bench.session.add(Item(name="first"))
        if is_by_hand:
            bench.session.commit()

    with bench.app.app_context():
        sa.event.listen(bench.session, moment, lambda *_: swallow(bench), once=True)
        if is_fatal(bench, swallow):
            with pytest.raises((UnitFailedError, sa.exc.DBAPIError)):
                (write if is_by_hand else transactional(write))()
            bench.session.rollback()
        else:
            (write if is_by_hand else transactional(write))()
        with transactional():
            bench.add("next")

    kept = [] if is_fatal(bench, swallow) else ["first", "zeroth"]
    assert bench.committed() == sorted(["next", "there", *kept])


@pytest.mark.parametrize("is_by_hand", [False, True])
def test_a_swallowed_error_that_took_more_than_its_savepoint(there: Bench, is_by_hand: bool) -> None:
    """SQLite has undone all of it, or the connection is lost: nobody ended it by hand, and the error is the cause."""
    with there.app.app_context():
        with pytest.raises(UnitFailedError, match="swallowed") as caught, transactional():
            there.add("first")
            savepoint = there.session.begin_nested() if is_by_hand else transactional()
            with pytest.raises(sa.exc.DBAPIError), savepoint:
                if there.database.is_postgresql:
                    there.database.kill(there.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0)
                there.run_sql("INSERT OR ROLLBACK INTO item (name) VALUES ('there')")
        assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)
        with transactional():
            there.add("next")

    assert there.committed() == ["next", "there"]


@pytest.mark.parametrize("swallow", SWALLOWED, ids=lambda function: function.__name__)
def test_a_swallowed_error_before_another_statement(there: Bench, swallow: Callable[[Bench], None]) -> None:
    """Whatever the later statements meet, nothing of the unit is kept where the transaction was lost."""

    @transactional
    def write() -> None:
        there.add("first")
        swallow(there)
        if is_fatal(there, swallow):
            with pytest.raises((sa.exc.SQLAlchemyError, UnitFailedError)):
                there.add("second")
        else:
            there.add("second")

    with there.app.app_context():
        if is_fatal(there, swallow):
            with pytest.raises(UnitFailedError, match="was not committed"):
                write()
        else:
            write()

    kept = [] if is_fatal(there, swallow) else ["first", "second"]
    assert there.committed() == [*kept, "there"]


@pytest.mark.parametrize("swallow", HEALED_BY_SAVEPOINT, ids=lambda function: function.__name__)
def test_a_swallowed_error_inside_a_savepoint(there: Bench, swallow: Callable[[Bench], None]) -> None:
    """The nested unit fails and is undone; the outer one is healthy again and commits."""

    @transactional
    def inner() -> None:
        there.add("inner")
        swallow(there)

    with there.app.app_context(), transactional():
        there.add("before")
        if is_fatal(there, swallow):
            with pytest.raises(UnitFailedError, match=r"inner.*was not committed"):
                inner()
        else:
            inner()
        there.add("after")

    kept = [] if is_fatal(there, swallow) else ["inner"]
    assert there.committed() == sorted(["before", "after", "there", *kept])


@pytest.mark.parametrize("swallow", FATAL_TO_THE_WHOLE, ids=lambda function: function.__name__)
def test_an_error_that_takes_savepoints_with_it(
    there: Bench, swallow: Callable[[Bench], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Where the database has ended the whole transaction, the unit around the savepoint cannot go on either."""

    @transactional
    def outer() -> None:
        there.add("before")
        with pytest.raises(UnitFailedError, match="was not committed"), transactional():
            there.add("inner")
            swallow(there)
        there.add("after")

    with there.app.app_context():
        if there.database.is_postgresql:
            outer()
        else:
            with pytest.raises(UnitFailedError, match=r"outer.*cannot go on: its transaction has ended"):
                outer()
        with transactional():
            there.add("next")

    kept = ["after", "before"] if there.database.is_postgresql else []
    assert there.committed() == sorted(["next", "there", *kept])
    assert not [record for record in caplog.records if record.name != "flask_uow"]  # of which one says that it failed


@pytest.mark.parametrize("swallow", HEALED_BY_SAVEPOINT, ids=lambda function: function.__name__)
def test_a_savepoint_by_hand_heals_what_was_swallowed(there: Bench, swallow: Callable[[Bench], None]) -> None:
    """``begin_nested`` and its rollback are the user's own right."""
    with there.app.app_context(), transactional():
        there.add("before")
        savepoint = there.session.begin_nested()
        swallow(there)
        savepoint.rollback()
        there.add("after")

    assert there.committed() == ["after", "before", "there"]


def test_the_cause_is_the_error_that_took_the_transaction(there: Bench) -> None:
    """An earlier one that a savepoint healed is not blamed."""
    with there.app.app_context():
        with pytest.raises(UnitFailedError, match="was not committed") as caught, transactional():
            savepoint = there.session.begin_nested()
            swallow_flush(there)
            savepoint.rollback()
            there.session.add(Item(name=None))
            with pytest.raises(sa.exc.IntegrityError):
                there.session.flush()

    assert "name" in str(caught.value.__cause__)
    assert "UNIQUE" not in str(caught.value.__cause__).upper()


def test_an_aborted_transaction_is_not_committed_by_hand_either(there: Bench) -> None:
    """Outside a unit, ``session.commit()`` would be answered with ROLLBACK by PostgreSQL, and say nothing."""
    with there.app.app_context():
        there.add("first")
        swallow_execute(there)
        if there.database.is_postgresql:
            with pytest.raises(UnitFailedError, match="would have committed nothing"):
                there.session.commit()
            there.session.rollback()
        else:
            there.session.commit()

    assert there.committed() == (["there"] if there.database.is_postgresql else ["first", "there"])


def test_a_deferred_constraint_that_fails_at_commit(bench: Bench) -> None:
    """The database's own error is raised, unchanged, and nothing is kept."""
    bench.database.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    bench.database.execute(
        "CREATE TABLE child (id INTEGER PRIMARY KEY,"
        " parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    with bench.app.app_context():
        with pytest.raises(sa.exc.IntegrityError), transactional():
            if not bench.database.is_postgresql:
                # Outside a transaction only: the setting is a connection's.
                bench.session.connection().connection.execute("COMMIT")
                bench.session.connection().connection.execute("PRAGMA foreign_keys = ON")
                bench.session.connection().connection.execute("BEGIN")
            bench.add("lost")
            bench.run_sql("INSERT INTO child (id, parent) VALUES (1, 99)")
        assert bench.checked_out == 0

    assert bench.committed() == []
    assert bench.database.rows("SELECT id FROM child") == []


def test_an_empty_unit_sends_nothing(bench: Bench) -> None:
    """Not even a connection is taken."""
    taken: list[object] = []
    with bench.app.app_context():
        sa.event.listen(bench.uow.engine, "checkout", lambda *args: taken.append(args))
        with transactional(), transactional():
            pass

    assert taken == []


# ---- what came before the unit


def test_a_read_before_the_unit_is_adopted_or_ended(bench: Bench) -> None:
    """The user loaded in ``before_request`` stays usable in the unit."""
    with bench.app.app_context():
        with transactional():
            bench.add("user")
        user = bench.session.scalars(sa.select(Item)).one()
        with transactional():
            user.name = "renamed"

    assert bench.committed() == ["renamed"]


def test_writes_before_the_unit_are_adopted(bench: Bench) -> None:
    """Sent and unsent ones are committed with it."""
    with bench.app.app_context():
        bench.add("sent")
        bench.session.add(Item(name="unsent"))
        with transactional():
            bench.add("inside")

    assert bench.committed() == ["inside", "sent", "unsent"]


@pytest.mark.parametrize("options", [{"read_only": True}, {"isolation": "serializable"}], ids=str)
def test_an_option_is_never_ignored_for_what_came_before(bench: Bench, options: dict[str, object]) -> None:
    """A read before is ended; writes before make it an error that names their line."""
    unit = transactional(**options)  # type: ignore[call-overload]
    with bench.app.app_context():
        bench.session.scalars(sa.select(Item)).all()
        with unit:
            assert bench.session.scalars(sa.select(Item)).all() == []
        bench.add("before")
        with pytest.raises(UnitOptionsError, match="Writes came before") as caught, unit:
            pass
        bench.session.rollback()

    assert "in Bench.add" in str(caught.value.where)


@pytest.mark.parametrize("isolation", ["SERIALIZABLE", "repeatable_read", "Repeatable Read"])
def test_isolation_reaches_the_server(bench: Bench, isolation: str) -> None:
    """Also when a read came before; the next unit has the default again."""
    if not bench.database.is_postgresql:
        with bench.app.app_context(), transactional(isolation=isolation):
            bench.add("serializable anyway")
        assert bench.committed() == ["serializable anyway"]
        return

    def level() -> str:
        return str(bench.session.scalar(sa.text("SHOW transaction_isolation")))

    with bench.app.app_context():
        bench.session.scalars(sa.select(Item)).all()
        with transactional(isolation=isolation):
            assert level() == isolation.lower().replace("_", " ")
        with transactional():
            assert level() == "read committed"


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("is_by_unit", [True, False])
def test_a_read_only_unit_of_one_snapshot_reads_from_one(make_bench: MakeBench, is_by_unit: bool) -> None:
    """What needs no transaction at READ COMMITTED needs one here, whether the unit asks for it or the engine."""
    isolation = "REPEATABLE READ" if is_by_unit else None
    engine_options = {} if is_by_unit else {"isolation_level": "REPEATABLE READ"}
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS=engine_options)
    count = sa.select(sa.func.count()).select_from(Item)
    other = sa.create_engine(bench.database.url)

    with bench.app.app_context(), transactional(read_only=True, isolation=isolation):
        assert bench.session.scalar(count) == 0
        with other.begin() as connection:
            connection.execute(sa.insert(Item).values(name="meanwhile"))
        assert bench.session.scalar(count) == 0
    other.dispose()

    assert bench.committed() == ["meanwhile"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_deferrable_unit_reaches_the_server(bench: Bench) -> None:
    """With its level, and for itself alone."""
    with bench.app.app_context():
        with transactional(isolation="SERIALIZABLE", read_only=True, deferrable=True):
            assert bench.session.scalar(sa.text("SHOW transaction_deferrable")) == "on"
        with transactional():
            assert bench.session.scalar(sa.text("SHOW transaction_deferrable")) == "off"


def test_read_only_is_enforced_by_the_database(bench: Bench) -> None:
    """What the rule does not see, the server refuses; afterwards the connection may write again."""
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            bench.add("lost")
        with pytest.raises(Exception, match=r"read-?only"), transactional(read_only=True):
            cursor = bench.session.connection().connection.cursor()
            cursor.execute("INSERT INTO item (name) VALUES ('lost')")
        with transactional():
            bench.add("kept")
        assert bench.checked_out == 0

    assert bench.committed() == ["kept"]


def test_a_deadline_is_checked_before_each_statement(bench: Bench) -> None:
    """A unit past its timeout sends nothing more, and is rolled back."""
    with bench.app.app_context():
        with pytest.raises(UnitTimeoutError, match="deadline"), transactional(timeout=0.05):
            for number in itertools.count():
                bench.add(str(number))
        with transactional():
            bench.add("next")

    assert bench.committed() == ["next"]


on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
IDLE_LIMIT_MS = sa.text("SELECT setting::int FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'")


@on_postgresql
@pytest.mark.parametrize("reads_first", [False, True], ids=["", "after a read"])
@pytest.mark.parametrize("leave", ["SET TRANSACTION READ WRITE", "SET LOCAL transaction_read_only = off"])
def test_a_read_only_unit_cannot_give_itself_the_leave_to_write(bench: Bench, leave: str, reads_first: bool) -> None:
    """Whether it has read with a transaction, without one, or not yet; a unit that may write is not in the way."""
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            if reads_first:
                bench.session.scalars(sa.select(Item)).all()
            bench.run_sql(leave)
        with transactional():
            bench.run_sql(leave)
            bench.add("kept")

    assert bench.committed() == ["kept"]


@on_postgresql
def test_a_deadline_ends_a_statement_on_the_server(bench: Bench) -> None:
    """PostgreSQL cancels what runs too long, and the next unit has no limit."""
    with bench.app.app_context():
        with pytest.raises(UnitTimeoutError, match="deadline") as caught, transactional(timeout=1.0):
            bench.run_sql("SELECT pg_sleep(20)")
        with transactional():
            assert bench.session.scalar(sa.text("SHOW statement_timeout")) == "0"
            assert bench.session.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "0"

    assert "statement timeout" in str(caught.value.__cause__)


@on_postgresql
def test_a_deadline_loosens_no_limit_that_is_there(bench: Bench) -> None:
    """A role's own limit stays where it is lower, and its error is the database's."""
    with bench.app.app_context():
        with transactional():
            bench.run_sql("SET SESSION statement_timeout = '50ms'")
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"), transactional(timeout=60):
            assert bench.session.scalar(sa.text("SHOW statement_timeout")) == "50ms"
            assert 51_000 < bench.session.scalar(IDLE_LIMIT_MS) <= 61_000
            bench.run_sql("SELECT pg_sleep(20)")
        bench.uow.engine.dispose()


@on_postgresql
@pytest.mark.parametrize("late", [(), ("late",)], ids=["returns", "writes on"])
def test_a_deadline_frees_the_locks_of_a_unit_that_does_nothing(bench: Bench, late: tuple[str, ...]) -> None:
    """The server ends its session, so that others can go on while the unit still hangs; what it does next is late."""
    with bench.app.app_context(), pytest.raises(UnitTimeoutError), transactional(timeout=0.2):
        bench.add("locked")
        pid = bench.session.scalar(sa.text("SELECT pg_backend_pid()"))
        end = time.monotonic() + 10
        while bench.database.rows(f"SELECT FROM pg_stat_activity WHERE pid = {pid}"):
            assert time.monotonic() < end
            time.sleep(0.02)
        bench.add(*late)

    assert bench.committed() == []


def test_an_ended_unit_says_so(bench: Bench) -> None:
    """Its hooks and its veto come too late."""
    with bench.app.app_context():
        with transactional() as unit:
            pass
        assert not unit.is_active
        with pytest.raises(NoActiveUnitError, match="has ended"):
            unit.set_rollback_only()
        with pytest.raises(NoActiveUnitError, match="has ended"):
            unit.after_commit(print)


@on_postgresql
@pytest.mark.parametrize("timeout", [3e6, 1e15, 1e300])
def test_a_deadline_may_be_later_than_a_server_counts(bench: Bench, timeout: float) -> None:
    """PostgreSQL's limits end at 25 days: it is told that, and not refused."""
    with bench.app.app_context(), transactional(timeout=timeout):
        limit = bench.session.scalar(sa.text("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"))

    assert limit == str(2**31 - 1)
