"""Teardown when something is wrong: it gives back all the same, says so in the log, and the response stands."""

import logging
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask, abort

from flask_uow import UnitOfWork, signals, transactional
from tests.databases import Database
from tests.models import Item, checked_out, make_app, names

on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
BACKEND = sa.text("SELECT pg_backend_pid()")


@pytest.fixture(autouse=True)
def no_collection(without_collector: None) -> None:
    """Nothing here is given back by the garbage collector."""


class HardStop(BaseException):
    """What is no Exception, as gevent's time-out is."""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda: abort(404), id="abort"),
        pytest.param(lambda: 1 / 0, id="error"),
        pytest.param(lambda: (_ for _ in ()).throw(HardStop()), id="no Exception"),
        pytest.param(lambda: (_ for _ in ()).throw(SystemExit(3)), id="exit"),
    ],
)
@pytest.mark.parametrize("has_unit", [True, False], ids=["unit", "no unit"])
def test_a_view_that_raises_gives_back(
    app: Flask, uow: UnitOfWork, database: Database, end: Callable[[], object], has_unit: bool
) -> None:
    """However the view ends, its rows are rolled back, its connection is in the pool, and the next request works."""
    app.testing = False
    app.config["PROPAGATE_EXCEPTIONS"] = False

    def view() -> str:
        uow.session.add(Item(name="undone"))
        uow.session.flush()
        end()
        return "not reached"

    app.add_url_rule("/", view_func=transactional(view) if has_unit else view)
    app.add_url_rule("/next", "next", view_func=lambda: str(len(uow.session.scalars(sa.select(Item)).all())))
    client = app.test_client()
    try:
        status = client.get("/").status_code
    except (HardStop, SystemExit):
        status = None

    assert status in (404, 500, None)
    assert checked_out(app) == 0
    assert names(database) == []
    assert client.get("/next").text == "0"


@pytest.mark.parametrize("error", [ValueError, HardStop], ids=["Exception", "BaseException"])
def test_another_teardown_handler_that_raises_does_not_keep_the_session(
    app: Flask, uow: UnitOfWork, error: type[BaseException]
) -> None:
    """Flask stops at the first teardown function that raises; ours has its turn nevertheless, and the error goes on."""

    @app.teardown_appcontext
    def broken(exception: BaseException | None) -> None:
        raise error("in a teardown function")

    @app.get("/")
    def view() -> str:
        uow.session.execute(sa.text("SELECT 1"))
        return "ok"

    with pytest.raises(error, match="in a teardown function"):
        app.test_client().get("/")
    app.teardown_appcontext_funcs.remove(broken)

    assert checked_out(app) == 0


@pytest.mark.filterwarnings("ignore:.UOW107.")
def test_a_teardown_handler_may_still_use_the_session(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Whenever it was registered: the session is taken back after all of them."""
    seen: list[list[str]] = []

    def look(exception: BaseException | None) -> None:
        seen.append(list(uow.session.scalars(sa.select(Item.name))))

    app.teardown_appcontext(look)
    app.teardown_request(look)

    @app.get("/")
    def view() -> str:
        with transactional():
            uow.session.add(Item(name="committed"))
        return "ok"

    app.test_client().get("/")

    assert seen == [["committed"], ["committed"]]
    assert checked_out(app) == 0


@on_postgresql
@pytest.mark.filterwarnings("ignore:.UOW107.")
@pytest.mark.parametrize("kind", ["read", "written", "committed", "in a unit of a context"])
def test_a_backend_that_is_killed_before_the_teardown_costs_no_answer(
    app: Flask, uow: UnitOfWork, database: Database, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A finished 200 stays a 200; the dead connection is logged, thrown away and replaced."""

    @app.get("/")
    def view() -> str:
        if kind == "written":
            uow.session.add(Item(name="lost"))
            uow.session.flush()
        if kind == "committed":
            with transactional():
                uow.session.add(Item(name="kept"))
        database.kill(uow.session.scalar(BACKEND) or 0)
        return "done"

    app.add_url_rule("/next", "next", view_func=lambda: str(uow.session.scalar(sa.text("SELECT 1"))))
    client = app.test_client()
    response = client.get("/")

    assert (response.status_code, response.text) == (200, "done")
    assert checked_out(app) == 0
    assert "A session could not be closed; its connections are discarded." in caplog.text
    assert database.url not in caplog.text
    assert client.get("/next").text == "1"
    assert names(database) == (["kept"] if kind == "committed" else [])


@on_postgresql
def test_a_view_that_fails_on_a_killed_backend_keeps_its_own_error(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """What the teardown meets never replaces what the view has raised."""

    @app.get("/")
    def view() -> str:
        database.kill(uow.session.scalar(BACKEND) or 0)
        raise ValueError("of the view")

    with pytest.raises(ValueError, match="of the view"):
        app.test_client().get("/")

    assert checked_out(app) == 0


@on_postgresql
def test_both_connections_of_a_session_are_given_back_when_one_is_dead(
    database: Database, second_database: Database, uow: UnitOfWork
) -> None:
    """With two databases, the one that lives does not stay open because the other one died."""
    app = make_app(database, uow, SQLALCHEMY_BINDS={"remote": second_database.url})

    @app.get("/")
    def view() -> str:
        pids = [uow.session.scalar(BACKEND, bind_arguments={"bind": engine}) for engine in uow.engines.values()]
        database.kill(pids[0])
        return "done"

    assert app.test_client().get("/").text == "done"
    assert checked_out(app) == 0


def test_a_receiver_that_fails_at_teardown_costs_neither_answer_nor_connection(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a receiver of ``rule_violated`` is logged like the violation."""

    def broken(sender: Flask, **_: object) -> None:
        raise ValueError("in a receiver")

    @app.get("/")
    def view() -> str:
        uow.session.add(Item(name="lost"))
        uow.session.flush()
        return "done"

    with signals.rule_violated.connected_to(broken, app):
        assert app.test_client().get("/").text == "done"

    assert "ValueError: in a receiver" in caplog.text
    assert checked_out(app) == 0


def test_lost_writes_are_logged_and_the_answer_stands(
    database: Database, uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """UOW103 is found when the answer is finished: even as an error it is logged, counted and signalled, not raised."""
    app = make_app(database, uow, UOW_RULES="error")
    seen: list[str] = []

    def violated(sender: Flask, code: str, violation: object) -> None:
        seen.append(code)

    @app.get("/")
    def view() -> str:
        uow.session.add(Item(name="lost"))
        return "done"

    with signals.rule_violated.connected_to(violated, app):
        assert app.test_client().get("/").text == "done"

    assert seen == ["UOW103"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "[UOW103]" in caplog.text
    assert "test_teardown.py:" in caplog.text
    assert "in view" in caplog.text
    assert checked_out(app) == 0


def test_writes_that_an_error_has_undone_are_no_violation(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """A context that ends by an exception was not going to commit."""
    with pytest.raises(ValueError, match="of the view"), app.app_context():
        uow.session.add(Item(name="undone"))
        uow.session.flush()
        raise ValueError("of the view")

    assert "UOW103" not in caplog.text
    assert checked_out(app) == 0


def test_a_unit_that_a_context_leaves_open_is_rolled_back(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Begun by hand and never ended, it ends with its context, and the thread's next unit is clean."""
    with app.app_context():
        transactional().__enter__()
        uow.session.add(Item(name="undone"))
        uow.session.flush()
    assert checked_out(app) == 0

    with app.app_context(), transactional() as unit:
        uow.session.add(Item(name="kept"))
        assert unit.depth == 1

    assert names(database) == ["kept"]
