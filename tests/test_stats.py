"""Snapshots of real sessions on a real server, of SQLite files, and of pools."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.pool import NullPool, Pool, SingletonThreadPool, StaticPool

from flask_uow import UnitOfWork, stats, transactional
from flask_uow._application_name import application_name
from flask_uow.exceptions import ConfigurationError
from flask_uow.stats import _postgresql
from flask_uow.stats._query_line import query_line
from tests import snapshots
from tests.databases import Database

DEADLINE_S = 15.0
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


def make_app(url: str, name: str = "bank", **engine_options: Any) -> tuple[Flask, sa.Engine]:
    """Make an app on a database, and give its engine."""
    app = Flask(name)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options
    extension = UnitOfWork(app)
    with app.app_context():
        return app, extension.engine


def adopt(engine: sa.Engine | None, name: str = "adopted") -> Flask:
    """Make an app whose session somebody else has made."""
    app = Flask(name)
    UnitOfWork(app, session=orm.scoped_session(orm.sessionmaker(engine)))
    return app


@pytest.fixture
def bank(database: Database, request: pytest.FixtureRequest) -> Iterator[tuple[Flask, sa.Engine]]:
    """An app whose name no other test uses, on the database."""
    app, engine = make_app(database.url, name=f"bank{os.getpid()}_{abs(hash(request.node.name))}")
    yield app, engine
    engine.dispose()


@contextmanager
def in_background(engine: sa.Engine, sql: str) -> Iterator[None]:
    """Run a statement that waits in a thread, and cancel it at the end if it still does."""
    ready, pids = threading.Event(), []

    def run() -> None:
        with engine.connect() as connection:
            pids.append(connection.scalar(sa.text("SELECT pg_backend_pid()")))
            ready.set()
            try:
                connection.execute(sa.text(sql))
            except sa.exc.OperationalError:
                connection.rollback()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_cancel_backend(:pid)"), {"pid": pids[0]})
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def snapshot_until(app: Flask, is_right: Callable[[stats.DatabaseSnapshot], object]) -> stats.DatabaseSnapshot:
    """Take snapshots until one is right: the server reports with a little delay."""
    end = time.monotonic() + DEADLINE_S
    while True:
        (database,) = stats.snapshot(app).databases
        assert database.error is None
        if is_right(database):
            return database
        assert time.monotonic() < end, database
        time.sleep(0.01)


def states(database: stats.DatabaseSnapshot) -> list[str]:
    """The groups of all sessions, in order."""
    return sorted(session.group for session in database.sessions)


# ---- PostgreSQL: states


@on_postgresql
def test_every_state_is_seen(bank: tuple[Flask, sa.Engine]) -> None:
    """Idle, active, idle in transaction and its aborted kind are told apart, with the ages that each has."""
    app, engine = bank
    with engine.connect() as idle, engine.connect() as holding, engine.connect() as aborted:
        idle.execute(sa.text("SELECT 1"))
        idle.commit()
        holding.execute(sa.text("\n  SELECT 2 -- first line\n , 3"))
        with pytest.raises(sa.exc.DBAPIError, match="division by zero"):
            aborted.execute(sa.text("SELECT 1 / 0"))
        with in_background(engine, "SELECT pg_sleep(60)"):
            expected = ["active", "idle", "idle in transaction", "idle in transaction (aborted)"]
            database = snapshot_until(app, lambda database: states(database) == expected)

    by_state = {session.state: session for session in database.sessions}
    assert by_state["idle in transaction"].query == "SELECT ? -- first line"
    assert by_state["idle in transaction"].transaction_age_seconds is not None
    assert by_state["idle in transaction (aborted)"].transaction_age_seconds is None
    assert by_state["idle in transaction (aborted)"].state_age_seconds is not None
    assert by_state["idle"].transaction_age_seconds is None
    assert by_state["active"].query == "SELECT pg_sleep(?)"
    assert by_state["active"].wait_event == "Timeout/PgSleep"
    assert not by_state["active"].blocked_by
    assert {session.worker_pid for session in database.sessions} == {os.getpid()}
    assert [count.state for count in database.summary.states][:2] == [
        "idle in transaction (aborted)",
        "idle in transaction",
    ]
    assert database.summary.total == 4
    assert database.found_by == f"application_name flask_uow:{app.name}:*"


@on_postgresql
def test_ages_grow_and_are_seconds(bank: tuple[Flask, sa.Engine]) -> None:
    """The state's age begins with the state, the transaction's with the transaction."""
    app, engine = bank
    with engine.connect() as connection:
        began = time.monotonic()
        connection.execute(sa.text("SELECT 1"))
        snapshot_until(app, lambda database: (database.sessions[0].state_age_seconds or 0) > 0.2)
        connection.execute(sa.text("SELECT 2 AS second"))
        database = snapshot_until(app, lambda database: database.sessions[0].query == "SELECT ? AS second")
        elapsed = time.monotonic() - began

    (session,) = database.sessions
    assert session.transaction_age_seconds is not None
    assert session.state_age_seconds is not None
    assert 0.2 < session.transaction_age_seconds <= elapsed + 0.1
    assert session.state_age_seconds <= session.transaction_age_seconds - 0.2
    assert session.age_seconds == session.transaction_age_seconds


@on_postgresql
def test_blocked_session_names_its_blocker(bank: tuple[Flask, sa.Engine]) -> None:
    """A session that waits for another is called blocked, and says by whom."""
    app, engine = bank
    with engine.connect() as holder:
        pid = holder.scalar(sa.text("SELECT pg_backend_pid() FROM pg_advisory_xact_lock(4711)"))
        with in_background(engine, "SELECT pg_advisory_xact_lock(4711)"):
            database = snapshot_until(app, lambda database: "blocked" in states(database))

    (blocked,) = (session for session in database.sessions if session.group == "blocked")
    assert blocked.blocked_by == (pid,)
    assert blocked.state == "active"
    assert blocked.wait_event == "Lock/advisory"
    assert database.blockers == ()


@on_postgresql
def test_a_wait_begins_when_the_lock_is_met(bank: tuple[Flask, sa.Engine]) -> None:
    """Not when its statement began, as far as the server says so: PostgreSQL 14 and later."""
    app, engine = bank
    with engine.connect() as holder:
        holder.execute(sa.text("SELECT pg_advisory_xact_lock(4711)"))
        with in_background(engine, "SELECT pg_sleep(0.5), pg_advisory_xact_lock(4711)"):
            database = snapshot_until(app, lambda database: "blocked" in states(database))

    (blocked,) = (session for session in database.sessions if session.blocked_by)
    (count,) = (count for count in database.summary.states if count.state == "blocked")
    assert blocked.state_age_seconds is not None
    if int(str(database.server_version).split(".")[0]) < 14:
        assert (blocked.wait_seconds, count.longest_seconds) == (None, blocked.state_age_seconds)
        return
    assert blocked.wait_seconds is not None
    assert blocked.wait_seconds < blocked.state_age_seconds - 0.4
    assert count.longest_seconds == blocked.wait_seconds
    assert not any(session.wait_seconds for session in database.sessions if session is not blocked)


@on_postgresql
def test_blockers_outside_the_app_are_named(database: Database, bank: tuple[Flask, sa.Engine]) -> None:
    """Who holds the app up is shown through the whole chain, with names that are not the app's."""
    app, engine = bank
    others = sa.create_engine(database.url, connect_args={"application_name": "night job"})
    with others.connect() as root:
        root.execute(sa.text("SELECT pg_advisory_xact_lock(1, 1)"))
        take_both = "SELECT pg_advisory_xact_lock(1, 2), pg_advisory_xact_lock(1, 1)"
        with in_background(others, take_both):
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 1 AND objid = 2"
            wait_until(lambda: root.scalar(sa.text(held)) == 1)
            with in_background(engine, "SELECT pg_advisory_xact_lock(1, 2)"):
                seen = snapshot_until(app, lambda seen: len(seen.blockers) == 2)
    others.dispose()

    assert {blocker.application_name for blocker in seen.blockers} == {"night job"}
    assert sorted(blocker.state for blocker in seen.blockers) == ["active", "idle in transaction"]
    assert seen.summary.total == len(seen.sessions) == 1


def wait_until(is_so: Callable[[], object]) -> None:
    """Poll with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@on_postgresql
def test_what_the_role_may_not_see_is_hidden(database: Database, bank: tuple[Flask, sa.Engine]) -> None:
    """A role without privileges sees that there are sessions, and that it does not see what they do."""
    app, engine = bank
    role = f"clerk_{os.getpid()}_{threading.get_ident()}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
    url = sa.make_url(database.url).set(username=role, password="hush").render_as_string(hide_password=False)
    clerk, clerks_engine = make_app(url, name=app.name)
    try:
        with engine.connect() as holder, clerks_engine.connect() as own:
            holder.execute(sa.text("SELECT pg_advisory_xact_lock(7)"))
            own.execute(sa.text("SELECT 1"))
            with in_background(engine, "SELECT pg_advisory_xact_lock(7)"):
                seen = snapshot_until(clerk, lambda seen: len(seen.sessions) == 3 and "blocked" in states(seen))
    finally:
        clerks_engine.dispose()
        database.execute(f"DROP ROLE {role}")

    assert states(seen) == ["blocked", "hidden", "idle in transaction"]
    hidden = [session for session in seen.sessions if session.is_hidden]
    assert len(hidden) == 2
    assert all(session.query is None and session.age_seconds is None for session in hidden)
    assert all(session.user and session.application_name.startswith("flask_uow:") for session in hidden)
    assert any("2 of the sessions" in note and "pg_read_all_stats" in note for note in seen.notes)
    assert "hush" not in json.dumps(seen.url)


# ---- PostgreSQL: which sessions, and how they are asked for


@on_postgresql
def test_other_apps_and_readers_are_not_listed(database: Database, bank: tuple[Flask, sa.Engine]) -> None:
    """Listed are this app's sessions: not those of an app with a similar name, and not those that take snapshots."""
    app, engine = bank
    _, others_engine = make_app(database.url, name=f"{app.name}_b")
    with others_engine.connect() as similar, engine.connect() as reader, engine.connect() as own:
        similar.execute(sa.text("SELECT 1"))
        reader.execute(sa.text(f"SET application_name = '{_postgresql.READER_NAME}'"))
        pid = own.scalar(sa.text("SELECT pg_backend_pid()"))
        seen = snapshot_until(app, lambda seen: seen.sessions)
    others_engine.dispose()

    assert [session.pid for session in seen.sessions] == [pid]


@on_postgresql
def test_what_the_role_may_not_see_of_whoever_is_in_the_way_is_said(database: Database) -> None:
    """All sessions of the app are its own, and the one that they wait for is another's."""
    role = f"clerk_{os.getpid()}_{threading.get_ident()}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
    url = sa.make_url(database.url).set(username=role, password="hush").render_as_string(hide_password=False)
    clerk, clerks_engine = make_app(url, name=f"clerk{os.getpid()}")
    other = sa.create_engine(database.url)
    try:
        with other.connect() as holder:
            holder.execute(sa.text("SELECT pg_advisory_xact_lock(8)"))
            with in_background(clerks_engine, "SELECT pg_advisory_xact_lock(8)"):
                seen = snapshot_until(clerk, lambda seen: seen.blockers)
    finally:
        clerks_engine.dispose()
        other.dispose()
        database.execute(f"DROP ROLE {role}")

    assert [session.state for session in seen.blockers] == ["hidden"]
    assert any("1 of the sessions" in note and "pg_read_all_stats" in note for note in seen.notes)


@on_postgresql
def test_a_database_under_two_addresses_is_one(database: Database, bank: tuple[Flask, sa.Engine]) -> None:
    """Nothing of it is listed or judged twice."""
    bank_app, engine = bank
    url = sa.make_url(database.url)
    other = url.set(host=None, port=None, query={"host": url.host or "", "port": str(url.port or 5432)})
    app = Flask(bank_app.name)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    app.config["SQLALCHEMY_BINDS"] = {"other": other.render_as_string(hide_password=False)}
    extension = UnitOfWork(app)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        seen = stats.snapshot(app)
        with app.app_context():
            for each in extension.engines.values():
                each.dispose()

    (only,) = seen.databases
    assert (only.binds, len(only.sessions), only.summary.total) == (("default", "other"), 1, 1)
    assert only.other_addresses == (only.client_address,)
    assert [pool.bind for pool in only.pools] == ["default", "other"]


@on_postgresql
@pytest.mark.parametrize("is_named", [True, False], ids=["ours", "adopted"])
def test_what_each_role_of_the_app_may_see_is_seen(database: Database, *, is_named: bool) -> None:
    """Of its own sessions it sees everything; and of those that are not named by us it is asked for its own alone."""
    role, name = f"reader_{os.getpid()}_{threading.get_ident()}", f"roles{os.getpid()}_{is_named}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
    urls = [sa.make_url(database.url).set(username=role, password="hush"), sa.make_url(database.url)]
    if not is_named:
        urls = [url.update_query_dict({"application_name": name}) for url in urls]
    first, second = (url.render_as_string(hide_password=False) for url in urls)
    app = Flask(name)
    app.config.update(SQLALCHEMY_DATABASE_URI=first, SQLALCHEMY_BINDS={"second": second})
    extension = UnitOfWork(app)
    try:
        with app.app_context(), extension.engine.connect() as one, extension.get_engine("second").connect() as other:
            one.execute(sa.text("SELECT 1"))
            other.execute(sa.text("SELECT 1"))
            (seen,) = stats.snapshot(app).databases
    finally:
        with app.app_context():
            for each in extension.engines.values():
                each.dispose()
        database.execute(f"DROP ROLE {role}")

    assert states(seen) == ["idle in transaction"] * 2
    assert not any("pg_read_all_stats" in note for note in seen.notes)


def test_what_two_addresses_tell_of_one_database() -> None:
    """What either may see, once; behind a pooler it is if one of the two is."""
    first = replace(
        snapshots.database(session(pid=1, state="hidden"), session(pid=2)),
        blockers=(session(pid=3), session(pid=4)),
        client_address="10.0.0.1",
        notes=("one",),
    )
    second = replace(
        snapshots.database(session(pid=1, state="idle"), session(pid=2, state="hidden"), session(pid=3)),
        binds=("reader",),
        blockers=(session(pid=4),),
        is_pooled=True,
        notes=("one", "two"),
    )

    both = first.with_other(second)

    assert [(each.pid, each.state) for each in both.sessions] == [
        (1, "idle"),
        (2, "idle in transaction"),
        (3, "idle in transaction"),
    ]
    assert [each.pid for each in both.blockers] == [4]
    assert (both.binds, both.summary.total, both.is_pooled) == (("default", "reader"), 3, True)
    assert (both.client_address, both.other_addresses, both.notes) == ("10.0.0.1", (None,), ("one", "two"))


def test_what_workers_count_of_one_label_is_added_up() -> None:
    """In whichever order; of the worst, there is one."""
    one, other = (
        stats.Counts(labels=(stats.LabelCounts("GET /", "bank.py:3 in index", False, *numbers),))
        for numbers in ((3, 1, 2.0, 1.5, 9), (4, 2, 1.0, 0.5, 5))
    )

    for both in (one + other, other + one):
        assert both.labels == (stats.LabelCounts("GET /", "bank.py:3 in index", False, 7, 3, 3.0, 1.5, 14),)


@on_postgresql
def test_dry_pool_is_not_needed(database: Database) -> None:
    """A snapshot is taken at once while the app's pool has no connection left, and leaves none behind."""
    app, engine = make_app(database.url, "dry", pool_size=1, max_overflow=0, pool_timeout=60)
    with engine.connect() as last:
        last.execute(sa.text("SELECT 1"))
        seen = snapshot_until(app, lambda seen: states(seen) == ["idle in transaction"])
        (pool,) = seen.pools
        wait_until(lambda: [one.pid for one in database.sessions()] == [seen.sessions[0].pid])
    engine.dispose()

    assert (pool.size, pool.checked_out, pool.overflow, pool.max_overflow) == (1, 1, 0, 0)


@on_postgresql
def test_binds_of_one_database_are_one(database: Database) -> None:
    """Two binds that lead to one database list its sessions once, and each has its pool."""
    app = Flask("twice")
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    app.config["SQLALCHEMY_BINDS"] = {"archive": database.url}
    extension = UnitOfWork(app)
    with app.app_context():
        engines = dict(extension.engines)
    with engines["archive"].connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        seen = snapshot_until(app, lambda seen: states(seen) == ["idle in transaction"])
    for engine in engines.values():
        engine.dispose()

    assert seen.binds == ("default", "archive")
    assert [(pool.bind, pool.checked_out) for pool in seen.pools] == [("default", 0), ("archive", 1)]


@on_postgresql
def test_adopted_engine_is_found_by_its_own_name(database: Database) -> None:
    """Connections that another library makes are found by the name and role that they have, and a note says so."""
    name = f"theirs {os.getpid()}"
    engine = sa.create_engine(database.url, connect_args={"application_name": name})
    app = adopt(engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        seen = snapshot_until(app, lambda seen: seen.sessions)
    engine.dispose()

    (session,) = seen.sessions
    assert session.application_name == name
    assert session.worker_pid is None
    assert name in str(seen.found_by)
    (note,) = seen.notes
    assert note.startswith("This app's connections are not named by flask_uow: ")
    assert note.endswith(" and a session whose worker is gone is not called an orphan.")


@pytest.mark.parametrize("owner", ["flask_sqlalchemy", "flask_sqlalchemy_lite"])
def test_engine_of_another_extension_is_found(file: Path, owner: str) -> None:
    """The engine that Flask-SQLAlchemy or its Lite made is the one that is looked at."""
    app = Flask("adopted")
    app.config["SQLALCHEMY_DATABASE_URI"] = sqlite_url(file)
    app.config["SQLALCHEMY_ENGINES"] = {"default": sqlite_url(file)}
    db = pytest.importorskip(owner).SQLAlchemy()
    db.init_app(app)
    UnitOfWork(app, session=db.session if owner == "flask_sqlalchemy" else lambda: db.session)

    (database,) = stats.snapshot(app).databases

    assert database.sqlite is not None
    assert database.sqlite.path == str(file)
    assert database.pools[0].checked_out == 0


@pytest.mark.parametrize("owner", ["flask_sqlalchemy", "flask_sqlalchemy_lite"])
@pytest.mark.parametrize("is_bound", [True, False], ids=["its session's", "beside ours"])
def test_all_engines_of_another_extension_are_found(tmp_path: Path, owner: str, is_bound: bool) -> None:
    """By their names, the default first; those of one that does not own the app's sessions are not the app's."""
    urls = {name: sqlite_url(tmp_path / name) for name in ("archive", "default", "own")}
    app = Flask("adopted")
    app.config["SQLALCHEMY_DATABASE_URI"] = urls["default"]
    app.config["SQLALCHEMY_BINDS"] = {"archive": urls["archive"]}
    app.config["SQLALCHEMY_ENGINES"] = {"default": urls["default"], "archive": urls["archive"]}
    db = pytest.importorskip(owner).SQLAlchemy()
    db.init_app(app)
    if is_bound:
        UnitOfWork(app, session=db.session if owner == "flask_sqlalchemy" else lambda: db.session)
    else:
        UnitOfWork(app, sessionmaker=orm.sessionmaker(sa.create_engine(urls["own"])))

    binds = {database.url: database.binds for database in stats.snapshot(app).databases}

    expected = {urls["default"]: ("default",), urls["archive"]: ("archive",)}
    assert binds == (expected if is_bound else {urls["own"]: ("default",)})
    assert next(iter(binds)) == urls["default" if is_bound else "own"]


def test_all_engines_of_a_sessionmaker_are_found(tmp_path: Path) -> None:
    """The one for everything is the default, those of some classes are called after their databases."""

    class Base(orm.DeclarativeBase):
        pass

    class Entry(Base):
        __tablename__ = "entry"
        id = sa.Column(sa.Integer, primary_key=True)

    engine, archive = (sa.create_engine(sqlite_url(tmp_path / name)) for name in ("bank", "archive"))
    app = Flask("adopted")
    UnitOfWork(app, sessionmaker=orm.sessionmaker(engine, binds={Entry: archive}))

    assert [database.binds for database in stats.snapshot(app).databases] == [("default",), ("archive",)]


def test_an_engine_that_only_a_session_knows_is_noted(tmp_path: Path) -> None:
    """It chooses by itself where a statement goes: its workers tell of the pool, and nobody of the engine."""
    engine, hidden = (sa.create_engine(sqlite_url(tmp_path / name)) for name in ("bank", "hidden"))

    class Choosing(orm.Session):
        def get_bind(self, *args: Any, clause: Any = None, **kwargs: Any) -> Any:
            return hidden if "hidden" in str(clause) else engine

    app = Flask("adopted")
    app.config["UOW_STATS_DIR"] = str(tmp_path / "boards")
    uow = UnitOfWork(app, sessionmaker=orm.sessionmaker(class_=Choosing))
    with app.app_context():
        notes = []
        for statement in ("SELECT 'open'", "SELECT 'hidden'"):
            with transactional(read_only=True):
                uow.session.execute(sa.text(statement))
            notes.append(stats.snapshot().notes)

    assert notes[0] == ()
    assert notes[1] == ("The workers use databases that only their sessions know, and which were not asked: hidden.",)


@on_postgresql
def test_current_app_is_the_default(bank: tuple[Flask, sa.Engine]) -> None:
    """Inside an app context no app has to be named."""
    app, _ = bank
    with app.app_context():
        assert stats.snapshot().app == app.name


@on_postgresql
def test_snapshot_becomes_json(bank: tuple[Flask, sa.Engine]) -> None:
    """The dictionary holds nothing that JSON does not know, and starts with its version."""
    app, engine = bank
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        document = json.loads(json.dumps(stats.snapshot(app).as_dict()))

    assert next(iter(document)) == "version"
    assert document["version"] == stats.VERSION == 1
    assert document["databases"][0]["sessions"][0]["state"] == "idle in transaction"


# ---- databases that cannot be read


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_database_that_is_down(driver: str) -> None:
    """The error is one line without the password, and the rest of the snapshot is there."""
    app, _ = make_app(f"postgresql+{driver}://teller:s%40fe-1@127.0.0.1:1/bank?connect_timeout=2")

    snapshot = stats.snapshot(app)

    (line,) = snapshot.errors
    assert "refused" in line
    assert "teller:***@127.0.0.1:1/bank" in line
    assert "\n" not in line
    assert "s@fe-1" not in line + json.dumps(snapshot.as_dict())
    assert "s%40fe-1" not in line + json.dumps(snapshot.as_dict())
    assert len(snapshot.databases[0].pools) == 1


def test_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever, whatever time limits an engine has."""
    monkeypatch.setattr(_postgresql, "_DEADLINE_S", 0.05)
    is_over = threading.Event()

    def connect() -> Any:
        is_over.wait(DEADLINE_S)
        raise OSError("too late")

    app = adopt(sa.create_engine("postgresql+psycopg2://", creator=connect))
    try:
        (line,) = stats.snapshot(app).errors
    finally:
        is_over.set()

    assert "no answer within 0.05 s" in line


def test_creator_that_fails_with_a_secret() -> None:
    """Whatever an application's own creator raises is reported, without its password."""

    def connect() -> Any:
        raise ValueError("cannot use postgresql://teller:s3cret@vault/bank,\n password='s3cret'")

    app = adopt(sa.create_engine("postgresql+psycopg2://", creator=connect))

    (line,) = stats.snapshot(app).errors

    assert line.endswith("cannot use postgresql://teller:***@vault/bank, password=***")


def test_app_without_the_extension() -> None:
    """An app that has no unit of work is told how to get one."""
    with pytest.raises(ConfigurationError, match="App 'bare' has no UnitOfWork"):
        stats.snapshot(Flask("bare"))


def test_no_app_at_all() -> None:
    """Outside an app context an app has to be named."""
    with pytest.raises(RuntimeError, match="application context"):
        stats.snapshot()


def test_session_without_an_engine() -> None:
    """A session that is bound to nothing leads to no database."""
    assert stats.snapshot(adopt(None)).databases == ()


def test_dialect_without_a_reader() -> None:
    """Of a server that is not read, the pools are shown, and a note says what is not."""
    (database,) = stats.snapshot(adopt(sa.create_engine("mysql+pymysql://localhost/bank", module=sqlite3))).databases

    assert database.error is None
    assert any("mysql" in note for note in database.notes)
    assert database.pools[0].size == 5


# ---- SQLite


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A SQLite file with a table, in a folder whose name has to be quoted in a URI."""
    path = tmp_path / "a bank #1, 100%.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY)")
    return path


def sqlite_snapshot(url: str) -> stats.DatabaseSnapshot:
    """The one database of an app on SQLite."""
    app, engine = make_app(url)
    (database,) = stats.snapshot(app).databases
    engine.dispose()
    return database


def sqlite_url(path: Path) -> str:
    """The URL of a file with any name."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


@pytest.mark.parametrize(("mode", "expected"), [("delete", "rollback"), ("truncate", "rollback"), ("wal", "wal")])
def test_sqlite_file(file: Path, mode: str, expected: str) -> None:
    """Of a SQLite file, size, journal and writer are known, and looking leaves no file behind."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")

    seen = sqlite_snapshot(sqlite_url(file))

    assert seen.error is None
    assert seen.sqlite == stats.SQLiteDatabase(str(file), file.stat().st_size, None, expected, None)
    assert seen.sessions == ()
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists its locks")
@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_sqlite_writer_is_seen_and_not_disturbed(file: Path, mode: str, begin: str) -> None:
    """The process that holds the write lock is named, and still holds it afterwards."""
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute(f"PRAGMA journal_mode = {mode}")
        writer.execute(begin)
        writer.execute("INSERT INTO account DEFAULT VALUES")

        first = sqlite_snapshot(sqlite_url(file))
        second = sqlite_snapshot(sqlite_url(file))
        writer.execute("COMMIT")
        third = sqlite_snapshot(sqlite_url(file))

    assert first.sqlite is not None
    assert first.sqlite.writer_pid == os.getpid()
    assert second.sqlite == first.sqlite
    assert third.sqlite is not None
    assert third.sqlite.writer_pid is None
    assert third.sqlite.journal_mode == ("wal" if mode == "wal" else "rollback")
    assert (third.sqlite.wal_bytes is not None) == (mode == "wal")


def test_system_that_lists_no_locks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on Linux no writer is seen."""
    monkeypatch.setattr("flask_uow.stats._sqlite._LOCKS", file.with_name("no such list"))

    seen = sqlite_snapshot(sqlite_url(file))

    assert seen.sqlite is not None
    assert seen.sqlite.writer_pid is None


def test_lock_to_the_end_of_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock without an end covers the writer's byte too; those of others and of readers do not count."""
    status = file.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    locks = file.with_name("locks")
    locks.write_text(
        f"1: FLOCK  ADVISORY  WRITE 11 {place} 0 EOF\n"
        f"2: POSIX  ADVISORY  READ 12 {place} 0 EOF\n"
        f"3: POSIX  ADVISORY  WRITE 13 {place} 0 1\n"
        f"3: -> POSIX  ADVISORY  WRITE 14 {place} 0 EOF\n"
        f"4: POSIX  ADVISORY  WRITE 15 {place} 1073741825 EOF\n",
        encoding="ascii",
    )
    monkeypatch.setattr("flask_uow.stats._sqlite._LOCKS", locks)

    seen = sqlite_snapshot(sqlite_url(file))

    assert seen.sqlite is not None
    assert seen.sqlite.writer_pid == 15


def test_sqlite_file_as_uri(file: Path) -> None:
    """A URL in SQLite's own form leads to the file too."""
    url = sa.URL.create("sqlite", database=file.as_uri(), query={"uri": "true"})

    (database,) = stats.snapshot(adopt(sa.create_engine(url))).databases

    assert database.sqlite is not None
    assert database.sqlite.path == str(file)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:bank?mode=memory&uri=true"])
def test_sqlite_in_memory(url: str) -> None:
    """A database in memory has no file, and nothing is made up for it."""
    seen = sqlite_snapshot(url)

    assert seen.error is None
    assert seen.sqlite == stats.SQLiteDatabase(path=None)


def test_sqlite_databases_in_memory_are_apart() -> None:
    """Two binds in memory are two databases."""
    app = Flask("memories")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["SQLALCHEMY_BINDS"] = {"other": "sqlite://"}
    UnitOfWork(app)

    assert [database.binds for database in stats.snapshot(app).databases] == [("default",), ("other",)]


def test_sqlite_file_that_is_not_there(tmp_path: Path) -> None:
    """Looking for a file does not make one."""
    seen = sqlite_snapshot(sqlite_url(tmp_path / "nowhere.db"))

    assert "No such file" in str(seen.error)
    assert os.listdir(tmp_path) == []


def test_file_that_is_no_database(tmp_path: Path) -> None:
    """A file of another kind is called so."""
    path = tmp_path / "letter.db"
    path.write_text("Dear customer, " * 100, encoding="ascii")

    assert "not a database" in str(sqlite_snapshot(sqlite_url(path)).error)


# ---- pools


def pool_of(app: Flask) -> stats.PoolSnapshot:
    """The one pool of an app."""
    (database,) = stats.snapshot(app).databases
    (pool,) = database.pools
    return pool


def test_pool_overflow_is_never_negative(file: Path) -> None:
    """A pool counts what is beyond its size, from zero up."""
    app, engine = make_app(sqlite_url(file), pool_size=1, max_overflow=-1, pool_timeout=3)
    pools = [pool_of(app)]
    with engine.connect():
        pools.append(pool_of(app))
        with engine.connect():
            pools.append(pool_of(app))
    pools.append(pool := pool_of(app))
    engine.dispose()

    assert [(pool.checked_out, pool.checked_in, pool.overflow) for pool in pools] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 1),
        (0, 1, 0),
    ]
    assert (pool.size, pool.max_overflow, pool.timeout_seconds) == (1, -1, 3.0)
    assert pool.process_pid == os.getpid()


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, SingletonThreadPool])
def test_pool_without_counters_says_so(file: Path, poolclass: type[Pool]) -> None:
    """A pool that does not count has no numbers, and a note says why."""
    app, engine = make_app(sqlite_url(file), poolclass=poolclass)

    (database,) = stats.snapshot(app).databases
    engine.dispose()

    assert database.pools == (stats.PoolSnapshot("default", poolclass.__name__, os.getpid()),)
    assert not database.pools[0].has_counters
    assert database.notes == (f"A {poolclass.__name__} keeps no counters.",)


# ---- values


def session(**changes: Any) -> stats.ServerSession:
    """A session that is idle in a transaction, unless changed."""
    idle = stats.ServerSession(
        pid=1,
        application_name=application_name("bank", 2),
        worker_pid=2,
        user="bank",
        database="bank",
        client_address=None,
        state="idle in transaction",
        transaction_age_seconds=9.0,
        state_age_seconds=5.0,
        wait_event=None,
        query="SELECT 1",
        blocked_by=(),
    )
    return replace(idle, **changes)


def snapshot_of(*sessions: stats.ServerSession) -> stats.Snapshot:
    """A snapshot of one database with these sessions."""
    summary = stats.Summary.of(sessions)
    database = stats.DatabaseSnapshot(
        ("default",), "postgresql", "psycopg2", "postgresql://", (), sessions=sessions, summary=summary
    )
    return stats.Snapshot("bank", datetime.now(UTC), (database,))


@pytest.mark.parametrize(
    ("min_age", "wanted", "kept"),
    [
        (0, (), [1, 2, 3, 4]),
        (6, (), [1, 3]),
        (9, (), [1, 3]),
        (9.1, (), [3]),
        (0, ("idle in transaction",), [1]),
        (0, ("active",), [2, 3]),
        (0, ("blocked",), [3]),
        (0, ("hidden", "blocked"), [3, 4]),
        (100, ("active",), []),
    ],
)
def test_only_some_sessions(min_age: float, wanted: tuple[str, ...], kept: list[int]) -> None:
    """A filter takes the longer age, a state or a group, and leaves the summary whole."""
    snapshot = snapshot_of(
        session(pid=1),
        session(pid=2, state="active", transaction_age_seconds=1.0, state_age_seconds=1.0),
        session(pid=3, state="active", transaction_age_seconds=60.0, blocked_by=(1,)),
        session(pid=4, state="hidden", transaction_age_seconds=None, state_age_seconds=None),
    )

    (database,) = snapshot.only(min_age_seconds=min_age, states=wanted).databases

    assert [session.pid for session in database.sessions] == kept
    assert database.summary.total == 4


def test_summary_counts_trouble_first() -> None:
    """Groups are ordered by trouble, a state that nobody knows yet among them, with the longest age of each."""
    summary = stats.Summary.of(
        [
            session(state="idle", state_age_seconds=100.0),
            session(state="hidden", state_age_seconds=None),
            session(state="meditating", state_age_seconds=1.0),
            session(state="active", blocked_by=(1,)),
            session(state_age_seconds=3.0),
            session(),
            session(state="idle in transaction (aborted)"),
        ]
    )

    assert summary.total == 7
    assert [(state.state, state.count, state.longest_seconds) for state in summary.states] == [
        ("idle in transaction (aborted)", 1, 5.0),
        ("idle in transaction", 2, 5.0),
        ("blocked", 1, 5.0),
        ("meditating", 1, 1.0),
        ("idle", 1, 100.0),
        ("hidden", 1, None),
    ]


# ---- conditions


@pytest.mark.parametrize(
    ("changes", "limit", "is_failure"),
    [
        ({}, "4.9", True),
        ({}, "5", False),
        ({"state": "idle in transaction (aborted)", "transaction_age_seconds": None}, "4.9", True),
        ({"state": "active"}, "0", False),
        ({"state": "idle"}, "0", False),
        ({"state": "hidden", "state_age_seconds": None}, "0", False),
    ],
)
def test_condition_idle_in_transaction(changes: dict[str, Any], limit: str, is_failure: bool) -> None:
    """It looks at how long a session has been idle in its transaction, aborted or not, and at nothing else."""
    failures = stats.Condition.parse(f"idle-in-transaction={limit}").failures(snapshot_of(session(**changes)))

    assert bool(failures) == is_failure
    assert all(f"session 1 ({application_name('bank', 2)}) is idle in transaction" in failure for failure in failures)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idle=5", "'idle=5' is no condition. Write idle-in-transaction=SECONDS, blocked=SECONDS,"),
        ("", "'' is no condition"),
        ("idle-in-transaction", "'idle-in-transaction' has no limit that can be read: '' is not a number of seconds"),
        ("idle-in-transaction=5s", "'5s' is not a number of seconds. Write idle-in-transaction=SECONDS."),
        ("idle-in-transaction=-1", "'-1' is not a number of seconds"),
        ("idle-in-transaction=nan", "'nan' is not a number of seconds"),
        ("idle-in-transaction=inf", "'inf' is not a number of seconds"),
    ],
)
def test_condition_that_is_none(text: str, message: str) -> None:
    """A condition that cannot be read quotes what was typed and shows the form."""
    with pytest.raises(ValueError, match=re.escape(message)):
        stats.Condition.parse(text)


# ---- statements as they are shown


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("SELECT 1", "SELECT ?"),
        (
            "SELECT -1.5e3, .5, 0x1F, 1_000 + a1, t2.c3, $1, x'1f', b.\"4\"",
            "SELECT -?, ?, ?, ? + a1, t2.c3, $1, x'?', b.\"4\"",
        ),
        ("\n\n  SELECT 'a'\nFROM t", "SELECT '?'"),
        ("UPDATE t SET p = 'o''clock', q = E'it\\'s' WHERE i = 5", "UPDATE t SET p = '?', q = '?' WHERE i = ?"),
        ("SELECT $$ body ' $$, $tag$ $$ $tag$, $1, a$b", "SELECT '?', '?', $1, a$b"),
        ("SELECT \"it's\" FROM t WHERE a = 'x'", "SELECT \"it's\" FROM t WHERE a = '?'"),
        ("SELECT 1 -- it's\n, 'x'", "SELECT ? -- it's"),
        ("/* it's */ SELECT 'x'", "/* it's */ SELECT '?'"),
        ("SELECT 'two\nlines', 2", "SELECT '?', ?"),
        ("SELECT 'cut by the serv", "SELECT '?'"),
        ("SELECT E'cut \\", "SELECT '?'"),
        ("SELECT $a$ cut", "SELECT '?'"),
        ("/* cut", "/* cut"),
        ("BEGIN READ WRITE; SET LOCAL application_name = 'bank:GET /';\nSELECT 1\nFROM t", "SELECT ?"),
        ("RELEASE SAVEPOINT sa_savepoint_1; SAVEPOINT sa_savepoint_2;\n\n INSERT INTO t", "INSERT INTO t"),
        ("ROLLBACK TO SAVEPOINT a; COMMIT", "ROLLBACK TO SAVEPOINT a; COMMIT"),
        ("SET LOCAL a.b = 1;\n", "SET LOCAL a.b = ?;"),
        ("SELECT 1;\nBEGIN;\nSELECT 'later'", "SELECT ?;"),
        ('SELECT "cut', 'SELECT "cut'),
        ("", ""),
    ],
)
def test_query_line(query: str, line: str) -> None:
    """Of a statement, its first line is shown, and none of its strings and numbers."""
    assert query_line(query) == line
