"""The page of the neighbours: each recipe, with the real package."""

import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]

from flask_uow import testing
from tests.databases import Database

PAGE = (Path(__file__).parents[1] / "docs" / "neighbours.rst").read_text(encoding="utf-8")
DEADLINE_S = 30.0

# What they use of each other that is to go is their own affair.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::PendingDeprecationWarning")

Cook = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def recipes() -> dict[str, str]:
    """The code under each title; under the page's own is the app's."""
    page = core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})
    found = {}
    for section in [page, *page.findall(nodes.section)]:
        blocks = [block.astext() for block in section.children if isinstance(block, nodes.literal_block)]
        found[section.next_node(nodes.title).astext()] = "\n\n".join(blocks)
    return found


@pytest.fixture(params=["sqlite", "psycopg2"])
def database(request: pytest.FixtureRequest, make_database: Callable[[str], Database]) -> Database:
    """An empty database."""
    return make_database(request.param)


@pytest.fixture
def cook(recipes: dict[str, str], database: Database) -> Iterator[Cook]:
    """A function that makes the app with a recipe, its tables in the database."""
    made: list[dict[str, Any]] = []

    def make(title: str, *, makes_tables: bool = True) -> dict[str, Any]:
        names: dict[str, Any] = {"DATABASE_URL": database.url, "__name__": "bank"}
        made.append(names)
        exec(recipes["With its neighbours"], names)
        names["app"].config.update(TESTING=True, WTF_CSRF_ENABLED=False)
        names["app"].config["SECURITY_PASSWORD_HASH"] = "pbkdf2_sha512"  # argon2 is in one more package
        exec(recipes[title], names)
        if makes_tables:
            with names["app"].app_context(), names["transactional"]():
                names["Base"].metadata.create_all(names["uow"].session.connection())
        return names

    level = logging.root.level
    yield make
    logging.root.setLevel(level)  # a worker of Celery's sets it
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False  # the logging configuration of Flask-Migrate switches all others off
    for names in made:
        with names["app"].app_context():
            names["uow"].engine.dispose()


def open_account(names: dict[str, Any], **values: object) -> None:
    with names["app"].app_context(), names["transactional"]():
        names["uow"].session.add(names["Account"](**values))


def balances(database: Database) -> list[int]:
    return [balance for (balance,) in database.rows("SELECT balance FROM account ORDER BY id")]


@pytest.mark.parametrize("library", ["Flask-SQLAlchemy", "Flask-SQLAlchemy-Lite"])
def test_sessions_of_others(cook: Cook, database: Database, library: str) -> None:
    """A view that commits nothing by hand is committed, and one that aborts is not, whoever owns the session."""
    names = cook(library)
    open_account(names, id=1, balance=10)
    client = names["shop"].test_client()
    with testing.record(names["shop"]) as seen:
        answers = [client.post(f"/accounts/{where}") for where in ("1/5", "1/500", "2/5")]

    assert [answer.status_code for answer in answers] == [200, 422, 404]
    assert balances(database) == [15]
    assert (len(seen.committed), len(seen.rolled_back), seen.codes) == (1, 2, [])
    with names["shop"].app_context():
        names["db"].engine.dispose()


def test_flask_migrate(cook: Cook, database: Database, tmp_path: Path) -> None:
    """It finds the tables, makes them, and finds nothing more to do."""
    names = cook("Flask-Migrate", makes_tables=False)
    folder = str(tmp_path / "migrations")

    def migrate(*arguments: str) -> str:
        result = names["app"].test_cli_runner().invoke(args=["db", *arguments, "-d", folder])
        assert result.exit_code == 0, f"{result.output}{result.exception!r}"
        return str(result.output)

    migrate("init")
    migrate("migrate", "-m", "accounts")
    migrate("upgrade")
    open_account(names, balance=5)

    assert "No changes in schema detected" in migrate("migrate", "-m", "again")
    assert balances(database) == [5]


def test_alembic(
    cook: Cook, recipes: dict[str, str], database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the page's own env.py."""
    from alembic import command
    from alembic.config import Config

    names = cook("With its neighbours", makes_tables=False)
    bank = ModuleType("bank")
    vars(bank).update(names)
    monkeypatch.setitem(sys.modules, "bank", bank)
    config = Config()
    config.set_main_option("script_location", str(tmp_path / "migrations"))
    config.set_main_option("path_separator", "os")
    config.config_file_name = str(tmp_path / "alembic.ini")
    command.init(config, str(tmp_path / "migrations"))
    (tmp_path / "migrations" / "env.py").write_text(recipes["Alembic"])
    command.revision(config, "accounts", autogenerate=True)
    command.upgrade(config, "head")
    open_account(names, balance=5)

    assert balances(database) == [5]


def test_flask_admin(cook: Cook, database: Database) -> None:
    """What its form writes is committed, and what is refused is not."""
    names = cook("Flask-Admin")
    client = names["app"].test_client()

    made = client.post("/admin/account/new/", data={"owner": "Ada", "balance": "5"})
    refused = client.post("/admin/account/new/", data={"owner": "Alan", "balance": "a lot"})

    assert (made.status_code, refused.status_code) == (302, 200)
    assert "Ada" in client.get("/admin/account/").text
    assert balances(database) == [5]


def test_flask_login(cook: Cook, database: Database) -> None:
    """The user that was loaded before the view is committed with it."""
    names = cook("Flask-Login")
    with names["app"].app_context(), names["transactional"]():
        names["uow"].session.add(names["User"](id=1))
    client = names["app"].test_client()
    assert client.post("/visits").status_code == 401
    client.post("/login/1")
    with testing.record(names["app"]) as seen:
        assert [client.post("/visits").get_json() for _ in range(2)] == [{"visits": 1}, {"visits": 2}]

    assert database.rows('SELECT visits FROM "user"') == [(2,)]
    assert seen.codes == []
    assert seen.committed == ["POST /visits"] * 2


def test_flask_security(cook: Cook) -> None:
    """Who has registered in a unit can log in, and is let in."""
    names = cook("Flask-Security")
    open_account(names, id=7)
    with names["app"].app_context():
        names["register"]("ada@example.com", "correct horse battery")
    client = names["app"].test_client()
    account = {"email": "ada@example.com", "password": "correct horse battery"}
    outside = client.get("/vault", headers={"Accept": "application/json"})
    token = client.post("/login", json=account, query_string="include_auth_token")
    inside = client.get("/vault", headers={"Accept": "application/json"})

    assert (outside.status_code, token.status_code, inside.status_code) == (401, 200, 200)
    assert inside.get_json() == {"accounts": [7]}


def test_marshmallow_sqlalchemy(cook: Cook, database: Database) -> None:
    """What is loaded by a schema is the session's, new or not."""
    names = cook("marshmallow-sqlalchemy")
    client = names["app"].test_client()
    with testing.record(names["app"]) as seen:
        made = client.put("/accounts", json={"owner": "Ada", "balance": 5}).get_json()
        changed = client.put("/accounts", json={"id": made["id"], "balance": 6}).get_json()

    assert changed == {"id": made["id"], "owner": "Ada", "balance": 6}
    assert database.rows("SELECT owner, balance FROM account") == [("Ada", 6)]
    assert seen.codes == []


def test_factory_boy(cook: Cook, database: Database) -> None:
    """What a factory makes has its key, and goes with the unit."""
    names = cook("factory_boy")
    with names["app"].app_context():
        with names["transactional"]():
            made = names["AccountFactory"].create_batch(3, balance=7)
            assert all(account.id for account in made)
        with names["transactional"]() as unit:
            names["AccountFactory"]()
            unit.set_rollback_only()

    assert balances(database) == [7, 7, 7]


@pytest.fixture
def without_other_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared tasks are those of every Celery app of a process: of this test's, they are none of other tests'."""
    from celery import _state

    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    monkeypatch.setattr(_state, "default_app", _state.default_app)
    monkeypatch.setattr(_state._tls, "current_app", _state._tls.current_app)


@pytest.fixture
def ended_tasks(without_other_celery: None) -> Iterator[Callable[[], tuple[int, str]]]:
    """A function that waits until one more task has ended, and gives its account's number and its state."""
    from celery.signals import task_postrun

    ended: queue.Queue[tuple[int, str]] = queue.Queue()

    def note(args: list[int], state: str, **_: object) -> None:
        ended.put((args[0], state))

    task_postrun.connect(note)
    yield lambda: ended.get(timeout=DEADLINE_S)
    task_postrun.disconnect(note)


# One is enough: a worker takes four seconds to end.
@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_celery(cook: Cook, database: Database, ended_tasks: Callable[[], tuple[int, str]]) -> None:
    """A real worker finds what the view has committed, hears of nothing else, and its task is a unit, tried again."""
    from celery.contrib.testing.worker import start_worker

    names = cook("Celery")
    celery_app = names["celery_app"]
    options = {"polling_interval": 0.01}
    celery_app.conf.update(broker_url="memory://", broker_transport_options=options, worker_hijack_root_logger=False)
    client = names["app"].test_client()
    with celery_app, testing.record(names["app"]) as seen, start_worker(celery_app, perform_ping_check=False):
        answers = [client.post(f"/accounts/{owner}") for owner in ("nobody", "ada", "busy")]
        number, busy = (answer.get_json()["account"] for answer in answers[1:])
        tried = {ended_tasks(), ended_tasks()}
        at_first = database.rows("SELECT owner, balance FROM account ORDER BY owner")
        database.execute("UPDATE account SET owner = 'free' WHERE owner = 'busy'")
        while (again := ended_tasks()) != (busy, "SUCCESS"):
            assert again == (busy, "RETRY"), "on a machine that has stalled"

    assert [answer.status_code for answer in answers] == [422, 200, 200]
    assert tried == {(number, "SUCCESS"), (busy, "RETRY")}
    assert at_first == [("ada", 10), ("busy", 0)]
    assert database.rows("SELECT owner, balance FROM account ORDER BY owner") == [("ada", 10), ("free", 10)]
    assert len(seen.committed) == 4
    assert seen.codes == []


def test_apscheduler(cook: Cook, database: Database) -> None:
    """A job in the scheduler's thread is a unit, and leaves nothing behind there."""
    from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED  # type: ignore[import-untyped]

    names = cook("APScheduler")
    open_account(names, balance=100)
    scheduler, has_run, errors = names["scheduler"], threading.Event(), []

    def note(event: Any) -> None:
        errors.append(event.exception)
        has_run.set()

    scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    scheduler.add_job(names["pay_interest"])  # now
    scheduler.start()
    try:
        assert has_run.wait(DEADLINE_S)
    finally:
        scheduler.shutdown()

    assert errors == [None]
    assert balances(database) == [105]


def test_flask_socketio(cook: Cook, database: Database) -> None:
    """An event is a unit: one that raises is undone, and nobody is told of it."""
    names = cook("Flask-SocketIO")
    open_account(names, id=1, balance=10)
    client = names["socketio"].test_client(names["app"])
    with testing.record(names["app"]) as seen:
        client.emit("deposit", {"account": 1, "amount": 5})
        with pytest.raises(ValueError, match="nobody owes the bank"):
            client.emit("deposit", {"account": 1, "amount": -50})

    assert balances(database) == [15]
    assert [(each["name"], each["args"]) for each in client.get_received()] == [("balance", [15])]
    assert (len(seen.committed), len(seen.rolled_back), seen.codes) == (1, 1, [])


def test_gunicorn(recipes: dict[str, str]) -> None:
    """It knows each setting; what a preloaded app does with its connections is tested beside other forks."""
    from gunicorn.config import KNOWN_SETTINGS  # type: ignore[import-untyped]

    names: dict[str, object] = {}
    exec(recipes["gunicorn"], {}, names)

    assert set(names) <= {setting.name for setting in KNOWN_SETTINGS}
