"""Habits that cost, rules UOW104 to UOW110: what is noticed, at which line, and what is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, render_template_string
from sqlalchemy.orm import Session

from flask_uow import current_unit, transactional
from flask_uow.exceptions import RuleViolationError, RuleWarning
from flask_uow.signals import rule_violated
from tests.database.conftest import Bench, MakeBench
from tests.models import Item, checked_out

LIMITS_S = {"UOW_MAX_UNIT_SECONDS": 0.05, "UOW_MAX_IDLE_SECONDS": 0.05}
TOO_LONG_S = 0.08
COSTLY = ("UOW104", "UOW105", "UOW106", "UOW107", "UOW108", "UOW109", "UOW110")


@contextmanager
def noticed(bench: Bench) -> Iterator[list[RuleViolationError | RuleWarning]]:
    """What is noticed while the block runs; warnings are not errors in it."""
    seen: list[RuleViolationError | RuleWarning] = []

    def receive(sender: Flask, code: str, violation: RuleViolationError | RuleWarning) -> None:
        seen.append(violation)

    with rule_violated.connected_to(receive, bench.app), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        yield seen


def codes(seen: list[RuleViolationError | RuleWarning]) -> list[str]:
    """Their codes."""
    return [violation.code for violation in seen]


# ---- the mistakes: each a function that breaks one rule


def commit_nothing(bench: Bench) -> None:
    bench.session.scalars(sa.select(Item)).all()
    bench.session.commit()


def merge_what_is_there(bench: Bench) -> None:
    with transactional():
        item = Item(name="there")
        bench.session.add(item)
        bench.session.flush()
        bench.session.merge(item)


def commit_and_delete(bench: Bench) -> None:
    item = Item(name="soon gone")
    with transactional():
        bench.session.add(item)
    with transactional():
        bench.session.delete(item)


def read_on(bench: Bench) -> None:
    with bench.app.test_request_context():
        with transactional(label="the unit"):
            bench.add("kept")
        bench.session.scalars(sa.select(Item)).all()


def take_long(bench: Bench) -> None:
    with transactional(label="the unit"):
        time.sleep(TOO_LONG_S)


def idle(bench: Bench) -> None:
    with transactional(label="the unit"):
        bench.add("kept")
        time.sleep(TOO_LONG_S)
        bench.session.scalars(sa.select(Item)).all()


def take_another_connection(bench: Bench) -> None:
    with transactional(label="the unit"):
        bench.session.scalars(sa.select(Item)).all()
        with bench.uow.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))


MISTAKES: dict[str, Callable[[Bench], None]] = {
    "UOW104": commit_nothing,
    "UOW105": merge_what_is_there,
    "UOW106": commit_and_delete,
    "UOW107": read_on,
    "UOW108": take_long,
    "UOW109": idle,
    "UOW110": take_another_connection,
}
every_mistake = pytest.mark.parametrize("code", MISTAKES)


def only(code: str, mode: str) -> dict[str, Any]:
    """A configuration in which one rule is on."""
    return LIMITS_S | {"UOW_RULES": dict.fromkeys(COSTLY, "off") | {code: mode}}


@every_mistake
def test_a_mistake_is_a_warning_at_its_line(make_bench: MakeBench, code: str) -> None:
    """The warning's category and line are such that Python's own filters can choose by them."""
    bench = make_bench(**only(code, "warn"))

    with bench.app.app_context(), pytest.warns(RuleWarning, match=rf"^\[{code}\] ") as caught:
        MISTAKES[code](bench)

    warning = caught[0]
    assert isinstance(warning.message, RuleWarning)
    assert warning.filename == __file__
    assert warning.message.fix
    assert f" in {MISTAKES[code].__name__}" in (warning.message.where or "")
    assert len(caught) == 1
    assert bench.app.extensions["uow_state"].rules.counts == {code: 1}
    assert checked_out(bench.app) == 0


@every_mistake
def test_a_mistake_is_an_error_if_that_is_wanted(make_bench: MakeBench, code: str) -> None:
    """It is raised where it happened, once, and whatever unit it is in is rolled back."""
    bench = make_bench(**only(code, "error"))

    with noticed(bench) as seen, bench.app.app_context(), pytest.raises(RuleViolationError, match=rf"^\[{code}\] "):
        MISTAKES[code](bench)

    assert codes(seen) == [code]
    assert checked_out(bench.app) == 0
    assert bench.committed() == (["kept"] if code == "UOW107" else ["soon gone"] if code == "UOW106" else [])


@every_mistake
def test_a_rule_that_is_off_notices_nothing(make_bench: MakeBench, code: str) -> None:
    """The others may be on."""
    bench = make_bench(**LIMITS_S, UOW_RULES=dict.fromkeys(COSTLY, "warn") | {code: "off"})

    with noticed(bench) as seen, bench.app.app_context():
        MISTAKES[code](bench)

    assert code not in codes(seen)


# ---- what is no mistake


def test_a_good_request_is_silent(bench: Bench) -> None:
    """Reads before, a unit with a savepoint and a hook with a unit of its own, a page that shows what was written."""

    @bench.app.before_request
    def load() -> None:
        bench.session.scalars(sa.select(Item)).all()

    @bench.app.post("/")
    @transactional
    def create() -> str:
        item = Item(name="parent")
        bench.session.add(item)
        with transactional():
            bench.add("child")
        bench.session.delete(bench.session.scalars(sa.select(Item).where(Item.name == "child")).one())
        bench.session.flush()
        with transactional(propagation="required"):
            bench.session.scalars(sa.select(Item)).all()

        @current_unit.after_commit
        def follow_up() -> None:
            with transactional():
                bench.add("follow-up")

        return render_template_string("{{ item.name }}", item=item)

    with noticed(bench) as seen:
        assert bench.app.test_client().post("/").text == "parent"

    assert codes(seen) == []
    assert bench.committed() == ["follow-up", "parent"]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda bench: bench.session.add(Item(name="a")), id="new"),
        pytest.param(lambda bench: bench.add("a"), id="flushed"),
        pytest.param(lambda bench: bench.run_sql("INSERT INTO item (name) VALUES ('a')"), id="text"),
        pytest.param(lambda bench: bench.session.execute(sa.insert(Item).values(name="a")), id="core"),
    ],
)
def test_a_commit_of_something_is_no_mistake(bench: Bench, write: Callable[[Bench], None]) -> None:
    """Whatever way it was written."""
    with noticed(bench) as seen, bench.app.app_context():
        write(bench)
        bench.session.commit()

    assert codes(seen) == []
    assert bench.committed() == ["a"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_commit_of_what_was_written_unseen_is_no_mistake(bench: Bench) -> None:
    """A raw cursor, and a function that writes: the server is asked before anybody is blamed."""
    bench.database.execute(
        "CREATE OR REPLACE FUNCTION put() RETURNS int LANGUAGE sql AS "
        "$$ INSERT INTO item (name) VALUES ('by a function') RETURNING id $$"
    )
    with noticed(bench) as seen, bench.app.app_context():
        bench.session.connection().connection.cursor().execute("INSERT INTO item (name) VALUES ('raw')")
        bench.session.commit()
        bench.session.execute(sa.select(sa.func.put()))
        bench.session.commit()

    assert codes(seen) == []
    assert bench.committed() == ["by a function", "raw"]


@pytest.mark.parametrize("how", ["unit", "commit"])
def test_a_commit_after_what_was_committed_is_a_mistake(make_bench: MakeBench, how: str) -> None:
    """What an ended transaction has written is nothing that this commit could commit."""
    bench = make_bench(**only("UOW104", "warn"))

    with bench.app.app_context(), noticed(bench) as seen:
        with transactional() if how == "unit" else nullcontext():
            bench.add("kept")
        if how == "commit":
            bench.session.commit()
        assert codes(seen) == []
        bench.session.commit()

    assert codes(seen) == ["UOW104"]
    assert bench.committed() == ["kept"]


@pytest.mark.skipif(not hasattr(Session, "merge_all"), reason="SQLAlchemy has it from 2.1 on.")
@pytest.mark.parametrize(("name", "code"), [("merge_all", "UOW105"), ("delete_all", "UOW106")])
def test_several_at_once_are_mistakes_as_well(make_bench: MakeBench, name: str, code: str) -> None:
    """SQLAlchemy calls the method for a single one for none of them."""
    bench = make_bench(**only(code, "warn"))

    with bench.app.app_context(), noticed(bench) as seen:
        with transactional():
            items = [Item(name="first"), Item(name="second")]
            bench.session.add_all(items)
        with transactional():
            getattr(bench.session, name)(iter(items))

    assert codes(seen) == [code, code]
    assert bench.committed() == (["first", "second"] if name == "merge_all" else [])


def test_a_commit_as_the_end_of_a_block_is_no_mistake(bench: Bench) -> None:
    """``with session.begin()`` commits whatever there is; nobody wrote a commit too many."""
    with noticed(bench) as seen, bench.app.app_context(), bench.session.begin():
        bench.session.scalars(sa.select(Item)).all()

    assert codes(seen) == []


def test_merging_what_another_session_has_is_no_mistake(bench: Bench) -> None:
    """Nor what is detached, nor what is new."""
    with noticed(bench) as seen, bench.app.app_context():
        with transactional():
            bench.add("there")
        with Session(bench.uow.engine, expire_on_commit=False) as other:
            theirs = other.scalars(sa.select(Item)).one()
            other.commit()
            with transactional():
                bench.session.merge(theirs)
        with transactional():
            bench.session.merge(theirs)
            bench.session.merge(Item(name="new"))

    assert codes(seen) == []


def test_deleting_what_was_not_committed_here_is_no_mistake(bench: Bench) -> None:
    """What another context has committed, what this unit has flushed, what was rolled back."""
    with noticed(bench) as seen:
        with bench.app.app_context(), transactional():
            bench.add("old")
        with bench.app.app_context():
            with transactional() as unit:
                bench.add("undone")
                unit.set_rollback_only()
            with transactional():
                bench.session.delete(bench.session.scalars(sa.select(Item)).one())
                new = Item(name="new")
                bench.session.add(new)
                bench.session.flush()
                bench.session.delete(new)

    assert codes(seen) == []
    assert bench.committed() == []


def test_an_import_that_is_long_is_remembered_in_part(bench: Bench) -> None:
    """Memory does not grow with what a context inserts."""
    with noticed(bench) as seen, bench.app.app_context():
        last = Item(name="last")
        with transactional():
            bench.session.add_all([Item(name=f"{number}") for number in range(1000)])
            bench.session.flush()
            bench.session.add(last)
        with transactional():
            bench.session.delete(last)

    assert codes(seen) == []


@pytest.mark.parametrize("has_request", [False, True], ids=["command", "request"])
@pytest.mark.parametrize("is_committed", [False, True], ids=["rolled back", "committed"])
def test_reading_on_is_a_mistake_of_requests_that_went_well(
    bench: Bench, has_request: bool, is_committed: bool
) -> None:
    """An error page may read what it shows, and a command has no page to wait for it."""
    context = bench.app.test_request_context() if has_request else bench.app.app_context()
    with noticed(bench) as seen, context:
        with transactional() as unit:
            bench.add("a")
            if not is_committed:
                unit.set_rollback_only()
        bench.session.scalars(sa.select(Item)).all()

    assert codes(seen) == (["UOW107"] if has_request and is_committed else [])


@pytest.mark.parametrize("reads_on", [False, True], ids=["test", "view"])
def test_a_test_may_look_at_what_a_request_has_left(bench: Bench, reads_on: bool) -> None:
    """Its client has kept the context, and a context around it keeps the session; what the view itself reads counts."""

    @bench.app.get("/")
    def index() -> str:
        with transactional():
            bench.add("a")
        return str(len(bench.session.scalars(sa.select(Item)).all())) if reads_on else "1"

    with noticed(bench) as seen, bench.app.app_context(), bench.app.test_client() as client:
        assert client.get("/").text == "1"
        bench.session.rollback()
        assert len(bench.session.scalars(sa.select(Item)).all()) == 1

    assert codes(seen) == (["UOW107"] if reads_on else [])


def test_a_lazy_load_in_a_template_is_named_at_its_line(bench: Bench) -> None:
    """The line of the template's caller, or of the template itself."""

    @bench.app.get("/")
    def index() -> str:
        with transactional():
            bench.add("a")
        return render_template_string("{{ load() }}", load=lambda: bench.session.scalars(sa.select(Item)).one().name)

    with noticed(bench) as seen:
        assert bench.app.test_client().get("/").text == "a"

    assert codes(seen) == ["UOW107"]
    assert "test_notices.py" in (seen[0].where or "")


# ---- time


def test_a_unit_that_is_rolled_back_is_timed_too(make_bench: MakeBench) -> None:
    """It is named, and never replaces the error that ended the unit."""
    bench = make_bench(**only("UOW108", "error"))

    with noticed(bench) as seen, bench.app.app_context(), pytest.raises(LookupError, match="of the body"):
        with transactional(label="the unit"):
            time.sleep(TOO_LONG_S)
            raise LookupError("of the body")

    assert codes(seen) == ["UOW108"]
    assert re_seconds(seen[0]) >= TOO_LONG_S
    assert "'the unit'" in seen[0].what


def re_seconds(violation: RuleViolationError | RuleWarning) -> float:
    """The seconds that a text names, which it rounds."""
    return float(violation.what.split(" s,")[0].split()[-1]) + 0.05


@pytest.mark.parametrize("ending", ["commit", "rollback", "teardown"])
def test_idling_before_the_end_counts(make_bench: MakeBench, ending: str) -> None:
    """Between the last statement and what ends the transaction, inside a unit and outside."""
    bench = make_bench(**only("UOW109", "warn"))

    with noticed(bench) as seen, bench.app.app_context():
        if ending == "teardown":
            with bench.session.begin_nested():  # on SQLite, what only reads outside a unit is in no transaction
                bench.session.scalars(sa.select(Item)).all()
            time.sleep(TOO_LONG_S)
        else:
            with transactional(label="the unit") as unit:
                bench.session.scalars(sa.select(Item)).all()
                time.sleep(TOO_LONG_S)
                if ending == "rollback":
                    unit.set_rollback_only()

    assert codes(seen) == ["UOW109"]
    assert seen[0].what.startswith("A session outside" if ending == "teardown" else "Unit of work 'the unit'")


def test_a_slow_statement_is_no_idling(make_bench: MakeBench) -> None:
    """Time that the server works is not time that it waits; nor is time before the first statement."""
    bench = make_bench(**only("UOW109", "warn"))

    with noticed(bench) as seen, bench.app.app_context(), transactional():
        time.sleep(TOO_LONG_S)
        if bench.database.is_postgresql:
            bench.run_sql(f"SELECT pg_sleep({TOO_LONG_S})")
        bench.session.scalars(sa.select(Item)).all()

    assert codes(seen) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["warn", "error"])
def test_a_transaction_goes_on_behind_a_violation_that_was_swallowed(make_bench: MakeBench, mode: str) -> None:
    """It has begun all the same: on SQLite a savepoint would be its own transaction, and its RELEASE a COMMIT."""
    bench = make_bench(**only("UOW107", mode))

    with bench.app.test_request_context():
        with transactional():
            bench.add("kept")
        with pytest.raises((RuleViolationError, RuleWarning), match=r"^\[UOW107\] "):
            bench.session.scalars(sa.select(Item)).all()
        with bench.session.begin_nested():
            bench.add("undone")
        bench.session.rollback()

    assert bench.committed() == ["kept"]


def test_idling_outside_a_transaction_is_none(make_bench: MakeBench) -> None:
    """A text has ended it, and nobody waits for what is not open."""
    bench = make_bench(**only("UOW109", "warn"))

    with noticed(bench) as seen, bench.app.app_context():
        bench.run_sql("INSERT INTO item (name) VALUES ('kept')")
        bench.run_sql("COMMIT")
        time.sleep(TOO_LONG_S)
        assert bench.session.scalars(sa.select(Item.name)).all() == ["kept"]

    assert "UOW109" not in codes(seen)


def test_idling_that_is_an_error_at_the_commit_commits_nothing(make_bench: MakeBench) -> None:
    """It is raised before COMMIT is sent."""
    bench = make_bench(**only("UOW109", "error"))

    with bench.app.app_context(), pytest.raises(RuleViolationError, match=r"^\[UOW109\] "):
        with transactional():
            bench.add("undone")
            time.sleep(TOO_LONG_S)

    assert bench.committed() == []
    assert checked_out(bench.app) == 0


@pytest.mark.parametrize("is_inner", [False, True])
def test_idling_that_is_an_error_keeps_nothing_from_being_undone(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture, is_inner: bool
) -> None:
    """A rollback is never too late, of the whole or to a savepoint, and what ended the unit goes up."""
    bench = make_bench(**only("UOW109", "error"))

    with noticed(bench) as seen, bench.app.app_context():
        with pytest.raises(KeyError, match="body"), transactional():
            with transactional() if is_inner else nullcontext():
                bench.add("undone")
                time.sleep(TOO_LONG_S)
                raise KeyError("body")

    assert codes(seen) == ["UOW109"]
    assert bench.committed() == []
    assert "discarded" not in caplog.text


# ---- connections


def test_a_second_connection_is_named_once(bench: Bench) -> None:
    """However many statements it sends; and again for the next connection."""
    with noticed(bench) as seen, bench.app.app_context(), transactional():
        bench.session.scalars(sa.select(Item)).all()
        for _ in range(2):
            with bench.uow.engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
                connection.execute(sa.text("SELECT 2"))

    assert codes(seen) == ["UOW110", "UOW110"]


def test_a_session_made_by_hand_takes_a_second_connection(bench: Bench) -> None:
    """It is the same pool."""
    with noticed(bench) as seen, bench.app.app_context(), transactional():
        bench.session.scalars(sa.select(Item)).all()
        with Session(bench.uow.engine) as by_hand:
            by_hand.scalars(sa.select(Item)).all()

    assert codes(seen) == ["UOW110"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_an_independent_unit_may_have_its_own_connection(bench: Bench) -> None:
    """That is what it is for; a connection beside it is a third."""
    with noticed(bench) as seen, bench.app.app_context(), transactional(label="outer"):
        bench.session.scalars(sa.select(Item)).all()
        with transactional(propagation="requires_new", label="inner"):
            bench.add("inner")
        assert codes(seen) == []
        with transactional(propagation="requires_new", label="inner"), bench.uow.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    assert codes(seen) == ["UOW110"]


def test_a_connection_beside_no_unit_is_no_mistake(bench: Bench) -> None:
    """Nor before the unit has taken one, nor after it has given it back."""
    with noticed(bench) as seen, bench.app.app_context():
        with bench.uow.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        with transactional(), bench.uow.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        with transactional():
            bench.add("a")
        with bench.uow.engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))

    assert codes(seen) == []


# ---- what is no violation


def test_a_unit_before_the_view_is_none_after_which_it_reads_on(make_bench: MakeBench) -> None:
    """A user's last visit is noted in a unit of its own; the view has not even begun."""
    bench = make_bench(**only("UOW107", "warn"))

    @bench.app.before_request
    @transactional
    def note_visit() -> None:
        bench.add("visit")

    @bench.app.get("/")
    def view() -> str:
        return str(len(bench.session.scalars(sa.select(Item)).all()))

    with noticed(bench) as seen:
        assert bench.app.test_client().get("/").text == "1"

    assert codes(seen) == []


def test_a_unit_that_said_nothing_is_none_either(make_bench: MakeBench) -> None:
    """The transaction that follows is the first one."""
    bench = make_bench(**only("UOW107", "warn"))

    @bench.app.get("/")
    def view() -> str:
        with transactional():
            pass
        return str(len(bench.session.scalars(sa.select(Item)).all()))

    with noticed(bench) as seen:
        assert bench.app.test_client().get("/").text == "0"

    assert codes(seen) == []


def test_the_unit_of_another_request_is_none_either(make_bench: MakeBench) -> None:
    """A test may hold one context over several requests, and look at the rows in between."""
    bench = make_bench(**only("UOW107", "warn"))

    @bench.app.post("/")
    @transactional
    def write() -> str:
        bench.add("row")
        return "ok"

    @bench.app.get("/")
    def read() -> str:
        return str(len(bench.session.scalars(sa.select(Item)).all()))

    with noticed(bench) as seen, bench.app.app_context():
        client = bench.app.test_client()
        client.post("/")
        assert client.get("/").text == "1"

    assert codes(seen) == []


def test_what_a_refused_commit_has_lost_is_no_news(make_bench: MakeBench) -> None:
    """The error was raised, and answered."""
    bench = make_bench(**only("UOW103", "warn"))
    bench.database.execute("INSERT INTO item (name) VALUES ('taken')")

    with noticed(bench) as seen, bench.app.app_context():
        bench.session.add(Item(name="taken"))
        with pytest.raises(sa.exc.IntegrityError):
            bench.session.commit()

    assert codes(seen) == []


def test_a_row_that_was_never_committed_is_none_that_was(make_bench: MakeBench) -> None:
    """Its key is taken by another row, which is deleted later."""
    bench = make_bench(**only("UOW106", "warn"))

    with noticed(bench) as seen, bench.app.app_context():
        with transactional():
            draft = Item(id=7, name="draft")
            bench.session.add(draft)
            bench.session.flush()
            bench.session.delete(draft)
        bench.database.execute("INSERT INTO item (id, name) VALUES (7, 'of others')")
        with transactional():
            other = bench.session.get(Item, 7)
            assert other is not None
            bench.session.delete(other)

    assert codes(seen) == []


@pytest.mark.parametrize("what", ["None", "class"])
def test_what_no_session_can_merge_is_sqlalchemys_to_refuse(make_bench: MakeBench, what: str) -> None:
    """Its error is the one that is documented."""
    bench = make_bench(**only("UOW105", "error"))
    with bench.app.app_context(), pytest.raises(sa.orm.exc.UnmappedInstanceError):
        bench.session.merge(None if what == "None" else Item)


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_notification_is_something_to_commit(make_bench: MakeBench) -> None:
    """NOTIFY is delivered by the commit."""
    bench = make_bench(**only("UOW104", "warn"))

    with noticed(bench) as seen, bench.app.app_context():
        bench.run_sql("NOTIFY channel, 'hello'")
        bench.session.commit()

    assert codes(seen) == []
