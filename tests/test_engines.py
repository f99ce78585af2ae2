"""Engines: what they are made of, what each connection is called, how SQLite begins, and how the dead are replaced."""

import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm

from flask_uow import UnitOfWork, _settings, transactional
from flask_uow._application_name import host_mark
from flask_uow.exceptions import ConfigurationError
from tests.databases import Database
from tests.models import Base, Item, checked_out, make_app, names

DEADLINE_S = 15.0
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


def engine_of(url: str, **config: Any) -> sa.Engine:
    """Make the engine of an app; nothing connects."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=url, **config)
    uow = UnitOfWork(app)
    with app.app_context():
        return uow.engine


def backend_pids(database: Database) -> list[int]:
    """Return the server's processes that serve the app."""
    return [session.pid for session in database.sessions() if session.application_name.startswith("flask_uow:")]


# ---- made of what


def test_the_pool_has_the_defaults_of_the_contract(app: Flask, uow: UnitOfWork) -> None:
    """A web worker's pool: it fails after 5 s instead of 30, and uses the warmest connection first."""
    with app.app_context():
        pool = uow.engine.pool

    assert isinstance(pool, sa.QueuePool)
    assert (pool.size(), pool._max_overflow, pool._timeout, pool._recycle) == (5, 10, 5, 1800)
    assert pool._pool.use_lifo is True
    assert pool._pre_ping is False


@on_postgresql
def test_a_connection_that_cannot_be_made_is_given_up_after_five_seconds(app: Flask, uow: UnitOfWork) -> None:
    """The driver is told so for each connection."""
    with app.app_context(), uow.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        parameters = (
            driver.info.dsn_parameters if hasattr(driver.info, "dsn_parameters") else driver.info.get_parameters()
        )

    assert parameters["connect_timeout"] == "5"


def test_each_engine_option_of_the_configuration_wins(database: Database) -> None:
    """Any default can be overridden, the kind of pool too."""
    engine = engine_of(database.url, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_recycle": 7})
    unpooled = engine_of(database.url, SQLALCHEMY_ENGINE_OPTIONS={"poolclass": sa.NullPool})

    assert isinstance(engine.pool, sa.QueuePool)
    assert (engine.pool.size(), engine.pool._max_overflow, engine.pool._recycle) == (1, 0, 7)
    assert isinstance(unpooled.pool, sa.NullPool)


def test_an_option_that_create_engine_does_not_know_quotes_its_key(database: Database) -> None:
    """In ``init_app``, with the key that the user typed, and no password."""
    with pytest.raises(ConfigurationError, match=r"(?s)SQLALCHEMY_ENGINE_OPTIONS.*create_engine refused it.*pool_sise"):
        engine_of(database.url, SQLALCHEMY_ENGINE_OPTIONS={"pool_sise": 1})


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_url_without_a_driver_gets_one(scheme: str) -> None:
    """``postgres://`` of the hosters and a driverless ``postgresql://`` pick psycopg2 where it is installed."""
    engine = engine_of(f"{scheme}://user@localhost/name")

    assert engine.dialect.driver == "psycopg2"


@pytest.mark.parametrize(
    ("missing", "driver"), [({"psycopg2"}, "psycopg"), ({"psycopg2", "psycopg"}, None)], ids=["psycopg", "none"]
)
def test_a_url_without_a_driver_takes_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], driver: str | None
) -> None:
    """Psycopg 3 where psycopg2 is missing, and without both an order what to install."""
    monkeypatch.setattr(_settings, "find_spec", lambda name: None if name in missing else find_spec(name))

    if driver is None:
        with pytest.raises(ConfigurationError, match=r"(?s)no PostgreSQL driver is installed.*pip install"):
            engine_of("postgresql://user@localhost/name")
    else:
        assert engine_of("postgresql://user@localhost/name").dialect.driver == driver


@pytest.mark.parametrize(
    "url", ["sqlite:///shop/data.sqlite", "sqlite:///file:shop/data.sqlite?mode=rwc&uri=true"], ids=["path", "uri"]
)
def test_a_relative_file_lies_in_the_instance_folder(tmp_path: Path, url: str) -> None:
    """Where Flask-SQLAlchemy has it too; the folder is made."""
    app = Flask(__name__, instance_path=str(tmp_path / "an instance #1"))
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    uow = UnitOfWork(app)

    with app.app_context():
        uow.session.execute(sa.text("CREATE TABLE t (x INTEGER)"))
        uow.session.commit()

    assert (tmp_path / "an instance #1" / "shop" / "data.sqlite").stat().st_size > 0


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite:///file:{}?uri=true"], ids=["path", "uri"])
def test_an_absolute_file_lies_where_it_says(tmp_path: Path, form: str) -> None:
    """And no folder is made for it."""
    app = Flask(__name__, instance_path=str(tmp_path / "instance"))
    app.config["SQLALCHEMY_DATABASE_URI"] = form.format(tmp_path / "missing" / "data.sqlite")
    uow = UnitOfWork(app)

    with app.app_context(), pytest.raises(sa.exc.OperationalError, match="unable to open database file"):
        uow.session.execute(sa.text("SELECT 1"))
    assert list(tmp_path.iterdir()) == []


# ---- binds


class Local(orm.DeclarativeBase):
    """Models of the default database, but for those that say otherwise themselves."""


class Remote(orm.DeclarativeBase):
    """Models of one bind."""

    metadata = sa.MetaData(info={"bind_key": "remote"})


class AtHome(Local):
    """In the default database."""

    __tablename__ = "at_home"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class ByMetadata(Remote):
    """Chosen by its metadata's info."""

    __tablename__ = "by_metadata"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class ByTable(Local):
    """Chosen by its table's info."""

    __tablename__ = "by_table"
    __table_args__ = {"info": {"bind_key": "remote"}}  # noqa: RUF012 - the form that SQLAlchemy asks for
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class ByClass(Local):
    """Chosen by its class."""

    __tablename__ = "by_class"
    __bind_key__ = "remote"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


class ByParent(ByClass):
    """Chosen by the class above it, with a table of its own."""

    __tablename__ = "by_parent"
    id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("by_class.id"), primary_key=True)


class Lost(Local):
    """Chosen, but nobody has configured it."""

    __tablename__ = "lost"
    __bind_key__ = "nowhere"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


REMOTE = (ByMetadata, ByTable, ByClass, ByParent)
of_each_remote_model = pytest.mark.parametrize("model", REMOTE, ids=lambda model: model.__name__)


@pytest.fixture
def bound_app(database: Database, second_database: Database, uow: UnitOfWork) -> Flask:
    """An app with a second database, in which the tables of ``REMOTE`` are."""
    database.execute("CREATE TABLE at_home (id INTEGER PRIMARY KEY)")
    for model in REMOTE:
        second_database.execute(f"CREATE TABLE {model.__tablename__} (id INTEGER PRIMARY KEY)")
    return make_app(database, uow, SQLALCHEMY_BINDS={"remote": second_database.url})


@of_each_remote_model
def test_a_model_chooses_its_database(
    bound_app: Flask, uow: UnitOfWork, second_database: Database, model: type[Any]
) -> None:
    """One unit writes to both databases, and each way of asking finds the right one."""
    with bound_app.app_context():
        with transactional():
            uow.session.add_all([AtHome(id=1), model(id=2)])
        with transactional():
            assert uow.session.get(AtHome, 1) is not None
            assert uow.session.scalars(sa.select(model.id)).all() == [2]
            assert uow.session.scalar(sa.select(sa.func.count(model.id))) == 1
            assert uow.session.query(model).count() == 1
            uow.session.execute(sa.update(model).values(id=model.id))
            uow.session.execute(sa.insert(model), [{"id": 3}])
            uow.session.execute(sa.delete(model).where(model.id == 3))

    assert second_database.rows(f"SELECT id FROM {model.__tablename__}") == [(2,)]
    assert checked_out(bound_app) == 0


@pytest.mark.parametrize("model", [ByMetadata, ByTable], ids=lambda model: model.__name__)
def test_a_table_chooses_its_database_without_a_model(
    bound_app: Flask, uow: UnitOfWork, second_database: Database, model: type[Any]
) -> None:
    """Statements on the table itself find its database, aliased and joined as well."""
    table: sa.Table = model.__table__
    other = table.alias()
    with bound_app.app_context(), transactional():
        uow.session.execute(sa.insert(table), [{"id": 1}, {"id": 2}])
        uow.session.execute(sa.update(table).where(table.c.id == 2).values(id=3))
        uow.session.execute(sa.delete(table).where(table.c.id == 1))
        assert uow.session.scalar(sa.select(sa.func.count()).select_from(table)) == 1
        assert uow.session.scalars(sa.select(other.c.id).join(table, table.c.id == other.c.id)).all() == [3]

    assert second_database.rows(f"SELECT id FROM {table.name}") == [(3,)]


def test_a_unit_over_two_databases_is_rolled_back_in_both(
    bound_app: Flask, uow: UnitOfWork, database: Database, second_database: Database
) -> None:
    """An exception undoes what was flushed, wherever it was."""
    with bound_app.app_context(), pytest.raises(ZeroDivisionError, match="division"), transactional():
        uow.session.add_all([AtHome(id=1), ByTable(id=1)])
        uow.session.flush()
        _ = 1 / 0

    assert database.rows("SELECT id FROM at_home") == []
    assert second_database.rows("SELECT id FROM by_table") == []
    assert checked_out(bound_app) == 0


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_second_database_runs_with_the_units_options(bound_app: Flask, uow: UnitOfWork) -> None:
    """Isolation and read-only are asked of each connection that the unit takes."""
    second = {"mapper": ByClass}
    with bound_app.app_context():
        with transactional(isolation="SERIALIZABLE"):
            isolation = uow.session.scalar(sa.text("SHOW transaction_isolation"), bind_arguments=second)
        with transactional(read_only=True):
            read_only = uow.session.scalar(sa.text("SHOW transaction_read_only"), bind_arguments=second)
        with transactional():
            usual = uow.session.scalar(sa.text("SHOW transaction_isolation"), bind_arguments=second)

    assert (isolation, read_only, usual) == ("serializable", "on", "read committed")


def test_the_binds_are_asked_for_by_name(bound_app: Flask, uow: UnitOfWork, second_database: Database) -> None:
    """``get_engine`` gives what the session uses for a bind; a text goes to the default one unless it is told."""
    with bound_app.app_context():
        assert list(uow.engines) == ["default", "remote"]
        remote = uow.get_engine("remote")
        assert uow.session.get_bind(ByTable) is remote
        assert uow.session.get_bind() is uow.engine
        assert uow.session.get_bind(ByTable, bind=uow.engine) is uow.engine, "who names an engine means it"
        count = sa.text("SELECT count(*) FROM by_class")
        assert uow.session.scalar(count, bind_arguments={"bind": remote}) == 0
        assert uow.session.scalar(count, bind_arguments={"mapper": ByClass}) == 0


def test_a_bind_has_options_of_its_own(database: Database, second_database: Database, uow: UnitOfWork) -> None:
    """``SQLALCHEMY_ENGINE_OPTIONS`` are the default database's; a bind may be a dict with its own."""
    app = make_app(
        database,
        uow,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2},
        SQLALCHEMY_BINDS={"remote": {"url": second_database.url, "pool_size": 3}},
    )

    with app.app_context():
        pools = [engine.pool for engine in uow.engines.values()]
    assert [pool.size() for pool in pools if isinstance(pool, sa.QueuePool)] == [2, 3]


def test_a_bind_that_nobody_has_configured_is_named(bound_app: Flask, uow: UnitOfWork) -> None:
    """With those that there are."""
    message = "bind_key 'nowhere' is not in SQLALCHEMY_BINDS; the binds are: default, remote"

    with bound_app.app_context(), pytest.raises(sa.exc.UnboundExecutionError, match=message):
        uow.session.scalars(sa.select(Lost))


# ---- each connection on a server


@on_postgresql
def test_each_connection_is_named_after_its_app_process_and_host(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """The server knows whose it is, from the first packet on."""
    with app.app_context():
        uow.session.execute(sa.text("SELECT 1"))
        names_seen = [session.application_name for session in database.sessions()]

    assert names_seen == [f"flask_uow:tests.models:{os.getpid()}@{host_mark()}"]


@on_postgresql
@pytest.mark.parametrize("where", ["URL", "connect_args"])
def test_a_name_of_the_users_own_is_kept(database: Database, uow: UnitOfWork, where: str) -> None:
    """Whoever sets ``application_name`` means it."""
    options = {"connect_args": {"application_name": "mine"}} if where == "connect_args" else {}
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS=options)
    if where == "URL":
        app, uow = Flask(__name__), UnitOfWork()
        app.config["SQLALCHEMY_DATABASE_URI"] = f"{database.url}?application_name=mine"
        uow.init_app(app)

    with app.app_context():
        uow.session.execute(sa.text("SELECT 1"))
        assert [session.application_name for session in database.sessions()] == ["mine"]


@on_postgresql
def test_connections_that_died_in_the_pool_are_replaced_unseen(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """After a restart of the server no request fails, however many connections had waited."""
    app.add_url_rule("/", view_func=lambda: str(uow.session.scalar(sa.text("SELECT pg_backend_pid()"))))
    with app.app_context(), uow.engine.connect(), uow.engine.connect(), uow.engine.connect():
        pass
    old = backend_pids(database)
    for pid in old:
        database.kill(pid)

    answers = [app.test_client().get("/") for _ in range(4)]

    assert len(old) == 3
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {int(answer.text) for answer in answers}.isdisjoint(old)
    assert checked_out(app) == 0


@on_postgresql
def test_asking_whether_a_connection_lives_sends_nothing(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Between two uses of a connection the server hears nothing of it: no ``SELECT 1``."""
    last_heard = (
        "SELECT query, state_change FROM pg_stat_activity "
        "WHERE application_name LIKE 'flask_uow:%' AND datname = current_database()"
    )
    with app.app_context():
        with uow.engine.connect() as connection:
            connection.execute(sa.text("SELECT 42"))
        before = database.rows(last_heard)
        for _ in range(3):
            with uow.engine.connect():
                pass
        after = database.rows(last_heard)

    assert len(before) == 1
    assert after == before


@on_postgresql
def test_a_ping_that_the_user_wants_is_sent_instead(database: Database, uow: UnitOfWork) -> None:
    """``pool_pre_ping`` replaces our check, and does its work."""
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True})
    app.add_url_rule("/", view_func=lambda: str(uow.session.scalar(sa.text("SELECT 1"))))
    client = app.test_client()
    client.get("/")
    before = database.sessions()
    database.kill(before[0].pid)

    assert client.get("/").text == "1"
    with app.app_context(), uow.engine.connect():
        assert database.sessions()[0].query in ("SELECT 1", ";")  # the driver's own ping


# ---- SQLite


@on_sqlite
def test_a_savepoint_that_comes_first_is_undone_with_its_transaction(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """Python's own sqlite3 would have committed it at its RELEASE."""
    with app.app_context():
        with uow.session.begin_nested():
            uow.session.add(Item(name="in the savepoint"))
        assert names(database) == []
        uow.session.rollback()
        with transactional() as unit:
            with transactional():
                uow.session.add(Item(name="in the inner unit"))
            unit.set_rollback_only()

    assert names(database) == []


@on_sqlite
def test_a_connection_of_the_engine_has_real_transactions_too(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Code that works past the session gets the same BEGIN."""
    with app.app_context(), uow.engine.connect() as connection:
        with connection.begin_nested():
            connection.execute(sa.insert(Item).values(name="in the savepoint"))
        connection.rollback()

    assert names(database) == []


@on_sqlite
def test_a_table_that_was_made_is_undone_with_its_transaction(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """DDL belongs to the transaction."""
    with app.app_context(), transactional() as unit:
        uow.session.execute(sa.text("CREATE TABLE undone (x INTEGER)"))
        unit.set_rollback_only()

    assert database.rows("SELECT name FROM sqlite_master WHERE name = 'undone'") == []


@on_sqlite
def test_a_transaction_reads_one_snapshot(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Two reads of one read-only unit agree, whatever is committed in between."""
    database.execute("PRAGMA journal_mode = WAL")

    with app.app_context(), transactional(read_only=True):
        count = sa.select(sa.func.count()).select_from(Item)
        before = uow.session.scalar(count)
        database.execute("INSERT INTO item (name) VALUES ('meanwhile')")
        after = uow.session.scalar(count)

    assert (before, after) == (0, 0)
    assert names(database) == ["meanwhile"]


@on_sqlite
def test_a_unit_that_may_write_holds_the_write_lock_from_its_first_statement(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """So that what it has read still holds when it writes; a unit that only reads takes none."""

    def can_write() -> bool:
        with closing(database.connect()) as other:
            other.execute("PRAGMA busy_timeout = 0")
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            return True

    with app.app_context():
        with transactional():
            uow.session.scalars(sa.select(Item)).all()
            during_a_writing_unit = can_write()
        with transactional(read_only=True):
            uow.session.scalars(sa.select(Item)).all()
            during_a_reading_unit = can_write()
        uow.session.scalars(sa.select(Item)).all()
        during_a_read_without_a_unit = can_write()

    assert not during_a_writing_unit
    assert during_a_reading_unit
    assert during_a_read_without_a_unit


@on_sqlite
def test_a_connection_in_autocommit_begins_nothing(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """SQLAlchemy's AUTOCOMMIT is what it says, for VACUUM say, and the next user of the connection has transactions."""
    with app.app_context():
        with uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("INSERT INTO item (name) VALUES ('kept')")
            kept_at_once = names(database)
        with uow.engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO item (name) VALUES ('undone')")
        with transactional() as unit:
            uow.session.add(Item(name="undone too"))
            unit.set_rollback_only()

    assert kept_at_once == names(database) == ["kept"]


@on_sqlite
def test_a_raw_cursor_writes_in_a_transaction(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Also where SQLAlchemy has sent nothing on the connection before."""
    with app.app_context():
        with uow.engine.connect() as connection:
            connection.connection.cursor().execute("INSERT INTO item (name) VALUES ('undone')")
        with uow.engine.begin() as connection:
            connection.connection.cursor().execute("INSERT INTO item (name) VALUES ('kept')")

    assert names(database) == ["kept"]


@on_sqlite
def test_a_second_writer_waits_for_the_first(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Both are committed, one after the other."""
    about_to_write = threading.Event()

    def write_second() -> None:
        with app.app_context(), transactional():
            about_to_write.set()
            uow.session.add(Item(name="second"))

    with ThreadPoolExecutor(1) as pool:
        with app.app_context(), transactional():
            uow.session.add(Item(name="first"))
            uow.session.flush()
            second = pool.submit(write_second)
            assert about_to_write.wait(DEADLINE_S)
        second.result(DEADLINE_S)

    assert names(database) == ["first", "second"]


@on_sqlite
def test_a_second_writer_that_has_waited_too_long_has_lost_nothing(database: Database, uow: UnitOfWork) -> None:
    """It fails at its first statement, before it has done anything; the first one commits, and then it can."""
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.05}})

    def write(name: str) -> None:
        with app.app_context(), transactional():
            uow.session.scalars(sa.select(Item)).all()
            uow.session.add(Item(name=name))

    with app.app_context(), transactional():
        uow.session.add(Item(name="first"))
        uow.session.flush()
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(sa.exc.OperationalError, match=r"(?s)database is locked.*BEGIN IMMEDIATE"),
        ):
            pool.submit(write, "second").result(DEADLINE_S)
        assert checked_out(app) == 1
    write("second")

    assert names(database) == ["first", "second"]
    assert checked_out(app) == 0


@on_sqlite
def test_a_unit_that_goes_on_after_it_was_locked_out_is_still_undone_as_one(
    database: Database, uow: UnitOfWork
) -> None:
    """What it writes when the lock is free again is in a transaction, and not committed statement by statement."""
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0}})

    with app.app_context(), transactional() as unit:
        with closing(database.connect()) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sa.exc.OperationalError, match="database is locked"):
                uow.session.scalars(sa.select(Item)).all()
        uow.session.add(Item(name="undone"))
        uow.session.flush()
        unit.set_rollback_only()

    assert names(database) == []


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file:shop?mode=memory&uri=true", "sqlite:///file::memory:?uri=true"],
    ids=["short", "long", "uri", "nameless uri"],
)
def test_a_database_in_memory_is_one_for_all_threads_and_shares_no_transaction(uow: UnitOfWork, url: str) -> None:
    """A second thread waits for the connection; it never works inside the first one's transaction."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS={"pool_timeout": 0.05})
    uow.init_app(app)

    def read() -> list[str]:
        with app.app_context():
            return list(uow.session.scalars(sa.select(Item.name)))

    with ThreadPoolExecutor(1) as pool:
        with app.app_context():
            Base.metadata.create_all(uow.engine)
            with transactional():
                uow.session.add(Item(name="kept"))
            with transactional() as unit:
                uow.session.add(Item(name="undone"))
                uow.session.flush()
                with pytest.raises(sa.exc.TimeoutError, match="QueuePool limit of size 1 overflow 0 reached"):
                    pool.submit(read).result(DEADLINE_S)
                unit.set_rollback_only()
        assert pool.submit(read).result(DEADLINE_S) == ["kept"]
