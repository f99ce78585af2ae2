"""The ``Server-Timing`` header: when there is one, what it says, and what it never says."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, Response, stream_with_context
from werkzeug.test import TestResponse

from flask_uow import UnitOfWork, transactional
from tests.databases import Database
from tests.models import RIDES, Item, make_app

HEADER = "Server-Timing"
PATTERN = r'unit;dur=([\d.]+), sql;dur=([\d.]+), idle;dur=([\d.]+), trips;desc="(\d+) round trips?"'
PAUSE_S = 0.05


@pytest.fixture
def timed(database: Database, uow: UnitOfWork) -> Flask:
    """An app that tells of each request, and has a view that writes."""
    app = make_app(database, uow, UOW_SERVER_TIMING=True)
    add_view(app, uow)
    return app


def add_view(app: Flask, uow: UnitOfWork) -> None:
    @app.post("/")
    @transactional
    def view() -> str:
        uow.session.add(Item(name="item"))
        uow.session.flush()
        time.sleep(PAUSE_S)
        return "ok"


def test_a_view_that_is_a_unit(timed: Flask, database: Database, uow: UnitOfWork) -> None:
    """Milliseconds, and BEGIN, INSERT and COMMIT; the first may ride in front of the second."""
    warm_up(timed, uow)
    unit, sql, idle, trips = told(timed.test_client().post("/"))

    assert unit >= idle >= PAUSE_S * 1000
    assert unit < 60_000
    assert 0 < sql < unit
    assert trips == (2 if rides(database) else 3)


def test_a_request_that_is_a_unit(database: Database, uow: UnitOfWork) -> None:
    """Its COMMIT comes after Flask's own functions, and is told all the same."""
    app = make_app(database, uow, UOW_SERVER_TIMING=True, UOW_ATOMIC_REQUESTS=True)
    add_view(app, uow)

    warm_up(app, uow)

    # The view is a savepoint.
    assert told(app.test_client().post("/"))[3] == (2 if rides(database) else 5)


def rides(database: Database) -> bool:
    """Whether statements ride in a test's app."""
    return database.is_postgresql and RIDES


def test_an_error_that_a_handler_answers(timed: Flask, uow: UnitOfWork) -> None:
    """The rollback is told with the handler's response."""

    @timed.get("/broken")
    @transactional
    def broken() -> str:
        uow.session.execute(sa.text("SELECT 1"))
        raise ZeroDivisionError

    @timed.errorhandler(ZeroDivisionError)
    def answer(error: ZeroDivisionError) -> tuple[str, int]:
        return "no", 422

    response = timed.test_client().get("/broken")

    assert response.status_code == 422
    assert told(response)[3] >= 3


@pytest.mark.parametrize("is_atomic", [False, True], ids=["unit view", "atomic request"])
def test_an_error_that_nobody_answers(database: Database, uow: UnitOfWork, is_atomic: bool) -> None:
    """Flask's own page of status 500 has the header too."""
    app = make_app(database, uow, UOW_SERVER_TIMING=True, UOW_ATOMIC_REQUESTS=is_atomic, TESTING=False)

    @app.get("/broken")
    @transactional
    def broken() -> str:
        uow.session.execute(sa.text("SELECT 1"))
        raise ZeroDivisionError

    response = app.test_client().get("/broken")

    assert response.status_code == 500
    assert told(response)[3] >= 3


def test_a_view_without_the_database(timed: Flask) -> None:
    """It has no header; a unit that sent nothing says so."""

    @timed.get("/plain")
    def plain() -> str:
        return "ok"

    @timed.get("/empty")
    @transactional
    def empty() -> str:
        return "ok"

    assert HEADER not in timed.test_client().get("/plain").headers
    assert told(timed.test_client().get("/empty"))[1:] == (0.0, 0.0, 0)


def test_a_stream(timed: Flask, uow: UnitOfWork) -> None:
    """What is known when the headers go: the view's unit, and not what the body does later."""

    @timed.get("/stream")
    @transactional(read_only=True)
    def stream() -> Response:
        def body() -> Iterator[str]:
            with transactional(read_only=True):
                uow.session.execute(sa.text("SELECT 1"))
            yield "ok"

        return Response(stream_with_context(body()))

    warm_up(timed, uow)
    response = timed.test_client().get("/stream", buffered=True)

    assert response.text == "ok"
    assert told(response)[3] == 0


def test_what_the_app_says_itself_stays(timed: Flask) -> None:
    """The metrics come behind it."""

    @timed.after_request
    def tell(response: Response) -> Response:
        response.headers[HEADER] = "app;dur=1"
        return response

    values = timed.test_client().post("/").headers.getlist(HEADER)

    assert values[0] == "app;dur=1"
    assert re.fullmatch(PATTERN, values[1])


def test_a_response_that_is_used_again(timed: Flask, uow: UnitOfWork) -> None:
    """It tells of its last request only."""
    kept = Response("ok")

    @timed.get("/kept")
    @transactional(read_only=True)
    def view_of_kept() -> Response:
        uow.session.execute(sa.text("SELECT 1"))
        return kept

    for _ in range(2):
        assert len(timed.test_client().get("/kept").headers.getlist(HEADER)) == 1


def test_no_text_of_a_statement_is_told(timed: Flask, uow: UnitOfWork) -> None:
    """The header is numbers and the names of the metrics, whatever the units are called."""

    @timed.get("/secret")
    @transactional(label="a secret")
    def secret() -> str:
        uow.session.execute(sa.text("SELECT 'a secret'"))
        return "ok"

    value = timed.test_client().get("/secret").headers[HEADER]

    assert re.fullmatch(PATTERN, value)


# ---- when


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("setting", "is_debug", "is_told"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
    ids=["by default", "in debug", "switched off", "switched on"],
)
def test_when_there_is_a_header(
    database: Database, uow: UnitOfWork, setting: bool | None, is_debug: bool, is_told: bool
) -> None:
    """``app.run(debug=True)`` comes after ``init_app``: what counts is the first request."""
    app = make_app(database, uow, UOW_SERVER_TIMING=setting)
    add_view(app, uow)

    app.debug = is_debug

    assert (HEADER in app.test_client().post("/").headers) is is_told


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_observer_that_fails_changes_nothing(timed: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the response stands."""

    class Broken:
        def is_wanted(self, app: Flask) -> bool:
            return True

        def finish(self, timeline: object, response: Response) -> None:
            raise RuntimeError("broken")

    timed.extensions["uow_observers"].insert(0, Broken())

    response = timed.test_client().post("/")

    assert response.status_code == 200
    assert told(response)
    assert "A timeline could not be shown" in caplog.text


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_who_has_wrapped_flasks_methods_since_stays(database: Database, uow: UnitOfWork) -> None:
    """Where no header is wanted, only what nobody else stands on is put back."""
    app = make_app(database, uow)
    add_view(app, uow)
    ours, calls = app.full_dispatch_request, []

    def dispatch(*args: Any) -> Response:
        calls.append(1)
        return ours(*args)

    app.full_dispatch_request = dispatch  # type: ignore[method-assign]

    for name in range(2):
        assert app.test_client().get(f"/{name}").status_code == 404
    assert len(calls) == 2
    assert vars(app)["full_dispatch_request"] is dispatch


def warm_up(app: Flask, uow: UnitOfWork) -> None:
    """Open the connection, so that what its first use asks is not told."""
    with app.app_context():
        uow.engine.connect().close()


def told(response: TestResponse) -> tuple[float, float, float, int]:
    """Return the header's figures: milliseconds of unit, SQL and idle, and round trips."""
    found = re.fullmatch(PATTERN, response.headers.get(HEADER, "none"))
    assert found, response.headers
    unit, sql, idle, trips = found.groups()
    return float(unit), float(sql), float(idle), int(trips)
