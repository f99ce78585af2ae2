"""Whole requests as units: what is in, what an error undoes, who stays out."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Blueprint, Flask, Response, abort, redirect, request, stream_with_context, views
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from flask_uow import current_unit, transactional
from flask_uow._state import STATE_KEY
from flask_uow.exceptions import RuleViolationError, UnitActiveError
from flask_uow.testing import record
from tests.database.conftest import Bench, MakeBench
from tests.models import Item, checked_out, reuses_contexts


class AppError(Exception):
    """An error of the application."""


@pytest.fixture
def atomic(make_bench: MakeBench) -> Bench:
    """A bench whose requests are units."""
    return make_bench(UOW_ATOMIC_REQUESTS=True)


@pytest.fixture
def answering(make_bench: MakeBench) -> Bench:
    """The same, with errors answered as in production."""
    return make_bench(UOW_ATOMIC_REQUESTS=True, TESTING=False)


def add_view(bench: Bench, *names: str, ends: Any = "ok") -> None:
    """Serve ``POST /``, which adds rows and ends by an answer or an error."""

    @bench.app.post("/")
    def view() -> Any:
        bench.add(*names)
        if isinstance(ends, Exception):
            raise ends
        return ends


# ---- what is in


def test_a_request_is_one_unit_from_its_first_function_to_its_last(atomic: Bench) -> None:
    """``before_request``, the view and ``after_request``, of the app and of a blueprint, are committed together."""
    committed: list[list[str]] = []
    blueprint = Blueprint("shop", __name__)

    def step(name: str) -> None:
        committed.append(atomic.committed())
        assert current_unit.label == "POST /orders/<int:number>"
        assert current_unit.depth == 1
        atomic.add(name)

    atomic.app.before_request(lambda: step("before request"))
    blueprint.before_request(lambda: step("before request of the blueprint"))

    @blueprint.after_request
    def after_of_blueprint(response: Response) -> Response:
        step("after request of the blueprint")
        return response

    @atomic.app.after_request
    def after(response: Response) -> Response:
        step("after request")
        return response

    @blueprint.post("/orders/<int:number>")
    def order(number: int) -> str:
        step(f"view {number}")
        return "ok"

    atomic.app.register_blueprint(blueprint)
    with record(atomic.app) as seen:
        assert atomic.app.test_client().post("/orders/5").text == "ok"

    assert committed == [[]] * 5
    assert len(atomic.committed()) == 5
    assert seen.committed == ["POST /orders/<int:number>"]
    assert seen.codes == []
    assert checked_out(atomic.app) == 0


def test_views_of_every_kind_are_in(atomic: Bench) -> None:
    """A class's method, an ``async def`` view, and one that is a unit itself, which is a savepoint now."""

    class Shop(views.MethodView):
        def post(self) -> str:
            atomic.add("class")
            return str(current_unit.depth)

    async def asynchronous() -> str:
        atomic.add("async")
        return str(current_unit.depth)

    @transactional
    def nested() -> str:
        atomic.add("nested")
        return str(current_unit.depth)

    atomic.app.add_url_rule("/class", view_func=Shop.as_view("shop"))
    atomic.app.post("/async")(asynchronous)
    atomic.app.post("/nested")(nested)
    client = atomic.app.test_client()

    assert [client.post(f"/{kind}").text for kind in ("class", "async", "nested")] == ["1", "1", "2"]
    assert atomic.committed() == ["async", "class", "nested"]


def test_a_request_that_uses_no_database_sends_nothing(atomic: Bench) -> None:
    """A unit that is empty takes no connection."""
    taken: list[object] = []
    with atomic.app.app_context():
        sa.event.listen(atomic.uow.engine, "checkout", lambda *args: taken.append(args))
    atomic.app.get("/")(lambda: "ok")

    client = atomic.app.test_client()
    assert (client.get("/").text, client.get("/missing").status_code) == ("ok", 404)
    assert not taken


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_the_methods_may_be_chosen(make_bench: MakeBench, method: str) -> None:
    """The others are requests as before."""
    bench = make_bench(UOW_ATOMIC_REQUESTS={"POST", "DELETE"})

    @bench.app.route("/", methods=["GET", "POST", "DELETE"])
    def view() -> str:
        return str(bool(current_unit))

    assert bench.app.test_client().open("/", method=method).text == str(method != "GET")


def test_hooks_run_after_the_request_was_committed(atomic: Bench) -> None:
    """When its connection is back, and before the client has its answer."""
    seen: list[object] = []

    @atomic.app.post("/")
    def view() -> str:
        atomic.add("kept")
        current_unit.after_commit(lambda: seen.append((atomic.committed(), atomic.checked_out)))
        return "ok"

    atomic.app.test_client().post("/")

    assert seen == [(["kept"], 0)]


@reuses_contexts
def test_a_request_inside_a_tests_own_unit_is_a_savepoint_of_it(atomic: Bench) -> None:
    """So that a test can undo what its client has done, errors included."""
    add_view(atomic, "of the request")
    client = atomic.app.test_client()

    with atomic.app.app_context(), transactional() as unit:
        atomic.add("of the test")
        assert client.post("/").text == "ok"
        assert client.post("/missing").status_code == 404
        assert atomic.session.scalar(sa.select(sa.func.count(Item.id))) == 2
        unit.set_rollback_only()

    assert atomic.committed() == []


# ---- errors


@pytest.mark.parametrize("has_handler", [False, True], ids=["as it is", "handled"])
@pytest.mark.parametrize("error", [404, AppError], ids=["abort", "exception"])
def test_an_error_undoes_the_request(answering: Bench, error: Any, has_handler: bool) -> None:
    """Whether a handler answers it or Flask itself; what came before the view is undone too."""
    bench = answering
    bench.app.before_request(lambda: bench.add("before"))

    @bench.app.post("/")
    def view() -> str:
        bench.add("view")
        if error is AppError:
            raise AppError
        abort(error)

    def handle(caught: Exception) -> tuple[str, int]:
        assert bench.session.scalars(sa.select(Item)).all() == []  # undone already, and the database can be used
        bench.add("handler")
        return "handled", 418

    if has_handler:
        bench.app.register_error_handler(error, handle)
    response = bench.app.test_client().post("/")

    assert response.status_code == (418 if has_handler else 500 if error is AppError else 404)
    assert bench.committed() == []
    assert checked_out(bench.app) == 0


@pytest.mark.parametrize("statement", ["SELECT * FROM no_such_table", "INSERT INTO item (name) VALUES ('there')"])
def test_a_handler_can_use_the_database_after_an_error_of_it(answering: Bench, statement: str) -> None:
    """Its transaction was aborted, and begun again for the page that says so."""
    bench = answering
    bench.database.execute("INSERT INTO item (name) VALUES ('there')")

    @bench.app.errorhandler(sa.exc.DBAPIError)
    def show(error: Exception) -> tuple[str, int]:
        return bench.session.scalars(sa.select(Item.name)).one(), 400

    @bench.app.post("/")
    def view() -> str:
        bench.add("undone")
        bench.run_sql(statement)
        return "never"

    response = bench.app.test_client().post("/")

    assert (response.status_code, response.text) == (400, "there")
    assert bench.committed() == ["there"]


def test_an_error_that_nobody_handles_is_answered_inside_a_unit_of_its_own(answering: Bench) -> None:
    """The handler of 500 and the functions after it may read; what they write is not kept, and nobody is blamed."""
    bench = answering
    depths: list[int] = []

    @bench.app.errorhandler(500)
    def show(error: Exception) -> tuple[str, int]:
        depths.append(current_unit.depth)
        bench.add("handler")
        return "sorry", 500

    @bench.app.after_request
    def after(response: Response) -> Response:
        depths.append(current_unit.depth)
        bench.add(f"after {len(depths)}")
        return response

    add_view(bench, "view", ends=AppError())
    with record(bench.app) as seen:
        response = bench.app.test_client().post("/")

    assert (response.status_code, response.text) == (500, "sorry")
    assert depths == [1, 1]
    assert bench.committed() == []
    assert seen.codes == []
    assert seen.rolled_back == ["POST /", "POST /"]


def test_an_independent_unit_survives_the_request(answering: Bench) -> None:
    """What is to be kept of a request that failed is written by ``requires_new``; on SQLite, before the rest."""
    bench = answering

    @bench.app.post("/")
    def view() -> str:
        with transactional(propagation="requires_new"):
            bench.add("audit")
        bench.add("undone")
        abort(422)

    assert bench.app.test_client().post("/").status_code == 422
    assert bench.committed() == ["audit"]


def test_an_inner_failure_that_the_view_catches_is_no_error_of_the_request(atomic: Bench) -> None:
    """It never reached an error handler."""

    @atomic.app.post("/")
    def view() -> str:
        with pytest.raises(AppError), transactional():
            atomic.add("undone")
            raise AppError
        atomic.add("kept")
        return "ok"

    atomic.app.test_client().post("/")

    assert atomic.committed() == ["kept"]


@pytest.mark.parametrize("ends", [lambda: redirect("/"), lambda: ("no", 409), lambda: "ok"], ids=["302", "409", "200"])
def test_a_returned_status_commits(atomic: Bench, ends: Any) -> None:
    """Unless the veto says otherwise."""

    @atomic.app.post("/")
    def view() -> Any:
        atomic.add("kept")
        return ends()

    atomic.app.test_client().post("/")

    assert atomic.committed() == ["kept"]


@pytest.mark.parametrize("status", [200, 399, 400, 503])
def test_the_configured_veto_judges_the_response(make_bench: MakeBench, status: int) -> None:
    """As it leaves the last function, which may have changed it."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True, UOW_ROLLBACK_ON_STATUS=400)
    add_view(bench, "row")

    @bench.app.after_request
    def set_status(response: Response) -> Response:
        response.status_code = status
        return response

    assert bench.app.test_client().post("/").status_code == status
    assert bench.committed() == (["row"] if status < 400 else [])


@pytest.mark.parametrize(("own", "kept"), [(lambda status: status == 403, True), (404, False)], ids=["other", "same"])
def test_a_views_own_veto_stands_in_place_of_the_configured_one(make_bench: MakeBench, own: Any, kept: bool) -> None:
    """As it does where requests are no units."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True, UOW_ROLLBACK_ON_STATUS=400)

    @bench.app.before_request
    def count() -> None:
        bench.add("before")

    @bench.app.post("/")
    @transactional(rollback_on_status=own)
    def view() -> tuple[str, int]:
        bench.add("in the view")
        return "", 404

    assert bench.app.test_client().post("/").status_code == 404
    assert bench.committed() == (["before", "in the view"] if kept else [])


def test_a_commit_that_fails_is_an_error_and_not_a_success(answering: Bench) -> None:
    """The client never hears of a success that was none."""
    bench = answering
    add_view(bench, "undone", ends="success")

    @bench.app.after_request
    def break_it(response: Response) -> Response:
        if response.get_data() == b"success":
            with pytest.raises(sa.exc.IntegrityError):
                bench.add("undone")
        return response

    response = bench.app.test_client().post("/")

    assert response.status_code == 500
    assert bench.committed() == []


def test_a_commit_by_hand_is_refused_in_the_whole_request(atomic: Bench) -> None:
    """Also in ``before_request``."""

    @atomic.app.before_request
    def commit() -> None:
        atomic.session.commit()

    add_view(atomic, "a")

    with pytest.raises(RuleViolationError, match=r"^\[UOW101\]"):
        atomic.app.test_client().post("/")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_interrupt_undoes_the_request_and_the_next_is_clean(atomic: Bench, error: type[BaseException]) -> None:
    """No handler sees it."""

    @atomic.app.post("/<kind>")
    def view(kind: str) -> str:
        atomic.add(kind)
        if kind == "interrupted":
            raise error
        return str(current_unit.depth)

    client = atomic.app.test_client()
    with pytest.raises(error):
        client.post("/interrupted")

    assert client.post("/next").text == "1"
    assert atomic.committed() == ["next"]
    assert checked_out(atomic.app) == 0


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_request_that_loses_is_served_again(make_bench: MakeBench) -> None:
    """``UOW_RETRIES`` counts for it: from the first function on, with the same body."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True, UOW_RETRIES=1)
    bench.database.execute("INSERT INTO item (name) VALUES ('contested')")
    steps: list[tuple[str, int]] = []

    def step(name: str) -> None:
        steps.append((name, current_unit.attempt))

    bench.app.before_request(lambda: step("before"))

    @bench.app.post("/")
    def view() -> str:
        step(request.get_data(as_text=True))
        bench.run_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        item = bench.session.scalars(sa.select(Item)).one()
        if current_unit.attempt == 1:
            bench.database.execute("UPDATE item SET id = id")
        item.name = "changed"
        return "ok"

    assert bench.app.test_client().post("/", data="body").text == "ok"
    assert steps == [("before", 1), ("body", 1), ("before", 2), ("body", 2)]
    assert bench.committed() == ["changed"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize(("retries", "attempts"), [(None, [1, 2]), (0, [1]), (2, [1, 2, 3])], ids=str)
def test_a_view_says_itself_how_often_its_request_is_served_again(
    make_bench: MakeBench, retries: int | None, attempts: list[int]
) -> None:
    """In place of ``UOW_RETRIES``, also where the end loses: it may tell others what it must tell once."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True, UOW_RETRIES=1, TESTING=False)
    seen: list[int] = []
    lose = "DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"

    @bench.app.post("/<when>")
    @transactional(retries=retries)
    def view(when: str) -> str:
        unit = current_unit.parent
        assert unit
        seen.append(unit.attempt)
        unit.before_commit(lambda: bench.run_sql(lose)) if when == "late" else bench.run_sql(lose)
        return "ok"

    for when in ("late", "at-once"):
        assert bench.app.test_client().post(f"/{when}").status_code == 500
        assert seen == attempts
        seen.clear()


# ---- who stays out


@pytest.mark.parametrize("propagation", ["not_supported", "never"])
@pytest.mark.parametrize("kind", ["function", "class", "decorated"])
def test_a_view_can_opt_out(atomic: Bench, propagation: Any, kind: str) -> None:
    """It says that it runs without a unit; nothing of its request is one then, and it commits by hand."""
    without = transactional(propagation=propagation)

    def work() -> str:
        assert not current_unit
        atomic.session.add(Item(name="by hand"))
        atomic.session.commit()
        return "ok"

    class Shop(views.MethodView):
        @without
        def post(self) -> str:
            return work()

    def decorated(function: Any) -> Any:
        def inner() -> str:
            return str(function())

        inner.__wrapped__ = function  # type: ignore[attr-defined]
        return inner

    view = {"function": without(work), "class": Shop.as_view("shop"), "decorated": decorated(without(work))}[kind]
    atomic.app.add_url_rule("/", "view", view, methods=["POST"])
    inside: list[bool] = []
    atomic.app.before_request(lambda: inside.append(bool(current_unit)))

    assert atomic.app.test_client().post("/").text == "ok"
    assert inside == [False]
    assert atomic.committed() == ["by hand"]


def test_only_the_view_itself_opts_out(atomic: Bench) -> None:
    """What it calls meets the request's unit."""

    @transactional(propagation="never")
    def alone() -> None:
        raise AssertionError("It was called inside a unit.")

    @atomic.app.post("/")
    def view() -> str:
        with pytest.raises(UnitActiveError):
            alone()
        return "ok"

    assert atomic.app.test_client().post("/").text == "ok"


def test_a_body_that_is_generated_comes_after_the_unit(atomic: Bench) -> None:
    """It opens units of its own, and sees what the request has committed."""

    @atomic.app.post("/")
    def view() -> Response:
        atomic.add("of the request")

        def generate() -> Iterator[str]:
            yield f"{bool(current_unit)} "
            with transactional(read_only=True):
                names = atomic.session.scalars(sa.select(Item.name)).all()
            yield from names

        return Response(stream_with_context(generate()))

    assert atomic.app.test_client().post("/").text == "False of the request"
    assert checked_out(atomic.app) == 0


def test_an_app_that_does_not_ask_for_it_is_left_alone(bench: Bench) -> None:
    """Flask's own methods serve it, as soon as its first request has come."""
    bench.app.test_client().get("/nowhere")

    assert not {"full_dispatch_request", "handle_user_exception", "handle_exception"} & vars(bench.app).keys()


def test_two_apps_may_differ(atomic: Bench, make_bench: MakeBench) -> None:
    """A request of one inside a request of the other."""
    other = make_bench()

    @other.app.get("/")
    def inner() -> str:
        return str(bool(current_unit))

    @atomic.app.get("/")
    def outer() -> str:
        return f"{bool(current_unit)} {other.app.test_client().get('/').text}"

    assert atomic.app.test_client().get("/").text == "True False"


def test_handlers_of_http_errors_get_flasks_error(answering: Bench) -> None:
    """What is handed on is what Flask would hand on."""

    @answering.app.errorhandler(HTTPException)
    def handle(error: HTTPException) -> tuple[str, int]:
        return f"handled {error.code}", error.code or 500

    assert isinstance(answering.app, Flask)
    assert answering.app.test_client().get("/missing").text == "handled 404"


# ---- errors on their way to a handler


def test_a_handler_that_an_extension_has_put_in_front_sees_what_is_undone(answering: Bench) -> None:
    """An API library wraps ``handle_user_exception`` after the fact, and answers by itself."""
    handle = answering.app.handle_user_exception

    def handle_by_itself(*args: Any) -> Any:
        return ("sorry", 409) if isinstance(args[-1], AppError) else handle(*args)

    vars(answering.app)["handle_user_exception"] = handle_by_itself
    add_view(answering, "undone", ends=AppError("no"))

    assert answering.app.test_client().post("/").status_code == 409
    assert answering.committed() == []


@pytest.mark.parametrize("propagation", ["nested", "requires_new"])
def test_what_a_generator_holds_open_is_undone_with_the_request(answering: Bench, propagation: Any) -> None:
    """The request's own unit is rolled back, and no other; the handler works in its session."""
    if propagation == "requires_new" and not answering.database.is_postgresql:
        propagation = "nested"  # SQLite has one writer
    held = []

    def rows() -> Iterator[None]:
        with transactional(propagation=propagation):
            answering.add("held")
            yield

    @answering.app.post("/")
    def view() -> str:
        answering.add("of the view")
        held.append(rows())
        next(held[0])
        raise AppError

    @answering.app.errorhandler(AppError)
    def sorry(error: AppError) -> tuple[list[str], int]:
        return list(answering.session.scalars(sa.select(Item.name))), 400

    response = answering.app.test_client().post("/")

    assert (response.status_code, response.json) == (400, [])
    assert answering.committed() == []
    assert checked_out(answering.app) == 0


def test_a_handler_may_roll_back_what_is_undone_already(answering: Bench) -> None:
    """As handlers for 500 do that were written for commits by hand; its page is shown."""
    add_view(answering, "undone", ends=AppError("no"))

    @answering.app.errorhandler(500)
    def sorry(error: Exception) -> tuple[str, int]:
        answering.uow.session.rollback()
        return f"{answering.session.scalar(sa.select(sa.func.count(Item.id)))} rows", 500

    response = answering.app.test_client().post("/")

    assert (response.status_code, response.text) == (500, "0 rows")
    assert answering.committed() == []


def test_an_error_of_the_last_flush_reaches_its_handler(answering: Bench) -> None:
    """The response was made, and is not the one that is sent."""
    answering.database.execute("INSERT INTO item (name) VALUES ('taken')")

    @answering.app.post("/")
    def view() -> str:
        answering.session.add(Item(name="taken"))
        return "fine"

    @answering.app.errorhandler(sa.exc.IntegrityError)
    def sorry(error: Exception) -> tuple[str, int]:
        return "taken", 409

    assert answering.app.test_client().post("/").status_code == 409
    assert answering.committed() == ["taken"]


def test_a_hook_before_the_commit_may_abort(answering: Bench) -> None:
    """Its HTTP error is answered as if the view had raised it."""

    @answering.app.post("/")
    def view() -> str:
        answering.add("undone")
        current_unit.before_commit(lambda: abort(409))
        return "fine"

    assert answering.app.test_client().post("/").status_code == 409
    assert answering.committed() == []


def test_a_request_without_a_view_has_a_label_and_the_configured_veto(make_bench: MakeBench) -> None:
    """A ``before_request`` function may write and answer for an address that leads nowhere."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True, UOW_ROLLBACK_ON_STATUS=400)
    labels = []

    @bench.app.before_request
    def refuse() -> tuple[str, int]:
        bench.add("undone")
        labels.append(current_unit.label)
        return "no", 403

    assert bench.app.test_client().post("/nowhere").status_code == 403
    assert bench.committed() == []
    assert labels == ["POST without a view"]


def test_labels_are_forgotten_with_the_functions_that_have_them(bench: Bench) -> None:
    """A view may decorate a function of its own at each call."""

    @bench.app.post("/")
    def view() -> str:
        @transactional
        def local() -> None:
            pass

        local()
        return "ok"

    client = bench.app.test_client()
    for _ in range(20):
        client.post("/")
    gc.collect()

    assert len(bench.app.extensions["uow_state"].view_labels) < 5


def test_a_method_that_its_client_has_made_up_is_no_label(make_bench: MakeBench) -> None:
    """Or anybody could fill the board, which has room for some labels, and take the memory of a worker."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True)
    client = bench.app.test_client()
    labels = []

    @bench.app.after_request
    def remember(response: Response) -> Response:
        labels.append(current_unit.label)
        return response

    view = bench.app.route("/any")(lambda: "ok")
    bench.app.url_map.add(Rule("/every", endpoint=view.__name__))  # of any method
    bench.app.view_functions[view.__name__] = view
    for number in range(300):
        assert client.open("/nowhere", method=f"M{number}").status_code == 404
        assert client.open("/every", method=f"M{number}").text == "ok"
    client.open("/every", method="PUT")

    assert set(labels) == {"? without a view", "? /every", "PUT /every"}
    assert sum(map(len, bench.app.extensions[STATE_KEY].view_labels.values())) < 10


@pytest.mark.parametrize("is_atomic", [False, True], ids=["decorated", "atomic"])
@pytest.mark.parametrize("is_class", [False, True], ids=["function", "class"])
def test_the_line_of_a_view_is_the_applications(make_bench: MakeBench, is_atomic: bool, is_class: bool) -> None:
    """Not one of Flask, which makes a function of a class, nor of the extension, whose unit lies around a request."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=is_atomic)
    decorate: Callable[[Any], Any] = (lambda view: view) if is_atomic else transactional

    class Page(views.MethodView):
        decorators = [decorate]  # noqa: RUF012

        def get(self) -> str:
            return str(current_unit.where)

    def page() -> str:
        return str(current_unit.where)

    bench.app.add_url_rule("/", view_func=Page.as_view("page") if is_class else decorate(page))

    answer = bench.app.test_client().get("/").text
    assert answer.startswith("tests/database/test_requests.py:")
    assert answer.endswith("in Page.get" if is_class else "in page")


def test_a_request_without_a_view_has_no_line(atomic: Bench) -> None:
    """Nobody has written what answers for an address that leads nowhere."""
    lines: list[str | None] = []
    atomic.app.before_request(lambda: lines.append(current_unit.where))

    assert atomic.app.test_client().get("/nowhere").status_code == 404
    assert lines == [None]
