"""How connections come to ride: behind all that the application has to say, and read-only at start if that is sure."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from flask_uow._ride import _psycopg, _psycopg2, ride
from tests.databases import PostgreSQLDatabase, Server
from tests.faults.proxy import LISTEN, Proxy
from tests.throwaway_server import throwaway_server

READ_ONLY = "default_transaction_read_only"
NEVER = 10**9


@pytest.fixture(params=["psycopg2", "psycopg"])
def database(request: pytest.FixtureRequest, postgresql_server: Server) -> PostgreSQLDatabase:
    """An empty database, for each driver."""
    return postgresql_server.database(request.param)


@pytest.fixture
def engine(database: PostgreSQLDatabase, proxy: Proxy) -> Iterator[sa.Engine]:
    """An engine that rides, through the proxy."""
    url = sa.make_url(database.url).set(host=LISTEN, port=proxy.port)
    engine = ride(sa.create_engine(url), read_only_at_start=True)
    yield engine
    engine.dispose()


def driver_of(connection: sa.Connection) -> Any:
    """The driver's connection."""
    return connection.connection.dbapi_connection


def test_every_connection_starts_read_only(engine: sa.Engine) -> None:
    """The next ones as the first, and what may write says so."""
    with engine.connect() as first, engine.connect() as second:
        for connection in (first, second):
            assert driver_of(connection).is_read_only_at_start
            connection.execute(sa.text("CREATE TEMPORARY TABLE mine (id int)"))


def test_the_question_is_one_round_trip(engine: sa.Engine, proxy: Proxy) -> None:
    """For each new connection, none for one that is pooled."""
    engine.connect().close()
    with engine.connect():
        proxy.requests()
        with engine.connect():
            asked = [request for request in proxy.requests() if "pg_backend_pid" in request]
    engine.connect().close()

    assert len(asked) == 1
    assert proxy.requests() == []


def test_a_session_of_another_number_is_not_believed(engine: sa.Engine, proxy: Proxy) -> None:
    """What a pooler reports is true of one of its sessions, and its number for it is made up."""
    proxy.disguise()
    with engine.connect() as connection:
        driver = driver_of(connection)
        assert driver.info.parameter_status(READ_ONLY) == "on"
        assert not driver.is_read_only_at_start


def test_listeners_to_do_connect_have_the_last_word(engine: sa.Engine) -> None:
    """A password of the moment, or a name, that comes after riding was asked for."""

    @sa.event.listens_for(engine, "do_connect")
    def name(dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> None:
        options["application_name"] = "named late"

    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW application_name")) == "named late"
        assert driver_of(connection).riders.is_begun
        assert driver_of(connection).is_read_only_at_start


def test_connection_that_a_listener_makes_is_its_own(engine: sa.Engine) -> None:
    """Nothing of it rides."""

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
        return dialect.loaded_dbapi.connect(*arguments, **options)

    with engine.connect() as connection:
        assert connection.scalar(sa.text(f"SHOW {READ_ONLY}")) == "off"
        assert not hasattr(driver_of(connection), "riders")


def test_applications_own_read_only_start_stays(database: PostgreSQLDatabase) -> None:
    """Whoever starts the server read-only means it."""
    options = {"options": f"-c {READ_ONLY}=on"}
    engine = ride(sa.create_engine(database.url, connect_args=options), read_only_at_start=True)
    with engine.connect() as connection:
        assert not driver_of(connection).is_read_only_at_start
        with pytest.raises(sa.exc.DBAPIError, match="read-only transaction"):
            connection.execute(sa.text("CREATE TABLE mine (id int)"))
    engine.dispose()


def test_applications_own_options_in_a_text_for_libpq_stay(database: PostgreSQLDatabase) -> None:
    """They cannot be added to, so that reads say BEGIN READ ONLY."""
    said = {"dsn" if database.backend == "psycopg2" else "conninfo": "options='-c search_path=mine'"}
    engine = ride(sa.create_engine(database.url, connect_args=said), read_only_at_start=True)
    with engine.connect() as connection:
        assert not driver_of(connection).is_read_only_at_start
        assert connection.scalar(sa.text("SHOW search_path")) == "mine"
    engine.dispose()


def test_another_refusal_is_the_callers(database: PostgreSQLDatabase) -> None:
    """A wrong option of the application's own is not tried again, and says what it is."""
    options = {"options": "-c no_such_setting=1"}
    engine = ride(sa.create_engine(database.url, connect_args=options), read_only_at_start=True)
    with pytest.raises(sa.exc.OperationalError, match="no_such_setting"):
        engine.connect()
    engine.dispose()


def test_what_is_no_engine() -> None:
    """It is told apart at once, with what to give instead."""
    with pytest.raises(TypeError, match=r"takes an Engine.*not 'db'.*db\.engine"):
        ride("db")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_old", [False, True], ids=["", "before 14"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_standby_that_is_promoted_takes_writes(driver: str, is_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a connection from before: an old server does not report what it is, and is not told READ WRITE either."""
    if is_old:
        monkeypatch.setattr(_psycopg2, "_REPORTING_VERSION", NEVER)
        monkeypatch.setattr(_psycopg, "REPORTING_VERSION", NEVER)
    with throwaway_server() as primary, throwaway_server(standby_of=primary) as standby:
        url = sa.make_url(standby).set(drivername=f"postgresql+{driver}")
        engine = ride(sa.create_engine(url), read_only_at_start=True)
        with engine.connect() as connection:
            assert driver_of(connection).is_read_only_at_start is not is_old
            assert connection.scalar(sa.text("SELECT pg_is_in_recovery()"))
            connection.rollback()
            PostgreSQLDatabase(sa.make_url(standby), driver).execute("SELECT pg_promote()")
            assert not connection.scalar(sa.text("SELECT pg_is_in_recovery()"))  # with which the server tells
            connection.rollback()

            connection.execute(sa.text("CREATE TABLE made (id int)"))
            connection.commit()
            assert connection.scalar(sa.text("SELECT count(*) FROM made")) == 0
        engine.dispose()


# ---- what others have made read-only


@pytest.fixture
def role(database: PostgreSQLDatabase) -> Iterator[str]:
    """A role of this test's own; what it and the database are set to is gone after it."""
    name = f"uow_test_{uuid.uuid4().hex[:8]}"
    database.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'secret'")
    yield name
    ((own,),) = database.rows("SELECT current_database()")
    database.execute(f"SET TRANSACTION READ WRITE; ALTER DATABASE {own} RESET ALL")
    database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.fixture
def riding(database: PostgreSQLDatabase, role: str) -> Iterator[sa.Engine]:
    """An engine of that role that rides, and has a table."""
    database.execute("CREATE TABLE item (id int)")
    url = sa.make_url(database.url).set(username=role, password="secret")
    engine = ride(sa.create_engine(url), read_only_at_start=True)
    yield engine
    engine.dispose()


def write(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO item VALUES (1)"))


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(sa.exc.DBAPIError, match="read-only transaction"):
        yield


SETTINGS = ["DATABASE {database}", "ROLE {role}", "ROLE {role} IN DATABASE {database}"]


@pytest.mark.parametrize("whose", SETTINGS)
def test_what_is_read_only_by_its_owner_stays_so(
    riding: sa.Engine, database: PostgreSQLDatabase, role: str, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody says READ WRITE there, and it is no pooler."""
    names = {"role": role, "database": riding.url.database}
    database.execute(f"ALTER {whose.format(**names)} SET {READ_ONLY} = 'yes'")
    with caplog.at_level(logging.INFO, logger="flask_uow"), refused():
        write(riding)

    with riding.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM item")) == 0
    assert caplog.records == []


def test_where_nobody_may_look_at_settings_all_may_write(
    riding: sa.Engine, database: PostgreSQLDatabase, role: str
) -> None:
    """What the owner wishes cannot be known; that is no reason not to connect."""
    ((schema,),) = database.rows("SELECT current_schema()")
    database.execute(f"ALTER ROLE {role} NOSUPERUSER")
    database.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT ALL ON item TO {role}")
    database.execute("REVOKE SELECT ON pg_db_role_setting FROM PUBLIC")
    try:
        write(riding)
    finally:
        database.execute("GRANT SELECT ON pg_db_role_setting TO PUBLIC")

    with riding.connect() as connection:
        assert driver_of(connection).is_read_only_at_start
        assert connection.scalar(sa.text("SELECT count(*) FROM item")) == 1


def test_the_more_special_setting_counts(riding: sa.Engine, database: PostgreSQLDatabase, role: str) -> None:
    """A role that may write in a database that is read-only for others."""
    database.execute(f"ALTER ROLE {role} SET {READ_ONLY} = off")
    database.execute(f"ALTER DATABASE {riding.url.database} SET {READ_ONLY} = on")
    write(riding)

    with riding.connect() as connection:
        assert driver_of(connection).is_read_only_at_start
        assert connection.scalar(sa.text("SELECT count(*) FROM item")) == 1


SAID = [
    f"SET {READ_ONLY} = on",
    f"set session {READ_ONLY} to on",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    f"SELECT set_config('{READ_ONLY}', 'on', false)",
]


@pytest.mark.parametrize("is_automatic", [False, True], ids=["", "in autocommit"])
@pytest.mark.parametrize("said", SAID)
def test_a_session_that_was_told_to_read_only_does(riding: sa.Engine, said: str, is_automatic: bool) -> None:
    """By a listener, as it opens."""

    @sa.event.listens_for(riding, "connect")
    def tell(driver: Any, record: object) -> None:
        driver.autocommit = is_automatic
        driver.cursor().execute(said)
        if is_automatic:
            driver.autocommit = False
        else:
            driver.commit()

    for _ in range(2):
        with refused():
            write(riding)
    with refused(), riding.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("INSERT INTO item VALUES (1)"))


@pytest.mark.parametrize("said", SAID)
def test_autocommit_that_was_told_to_read_only_does(riding: sa.Engine, said: str) -> None:
    """Behind a write for which the start option was switched off, until it is told to write."""
    with riding.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        insert = sa.text("INSERT INTO item VALUES (1)")
        connection.execute(insert)
        connection.execute(sa.text(said))
        with refused():
            connection.execute(insert)
        with refused():
            connection.execute(insert, [{}, {}])
        connection.execute(sa.text(f"SET {READ_ONLY} = off"))
        connection.execute(insert)
    write(riding)


@pytest.mark.parametrize("said", SAID)
def test_what_was_told_and_rolled_back_is_forgotten(riding: sa.Engine, said: str) -> None:
    """Whole, or with its savepoint, after which the start option is what it was."""
    with riding.connect() as connection:
        connection.execute(sa.text(said))
        connection.rollback()
        connection.execute(sa.text("INSERT INTO item VALUES (1)"))
        with connection.begin_nested() as savepoint:
            connection.execute(sa.text(said))
            savepoint.rollback()
        connection.commit()
        connection.execute(sa.text("INSERT INTO item VALUES (2)"))
        connection.commit()
        assert driver_of(connection).is_read_only_at_start


@pytest.mark.parametrize("said", [f"RESET {READ_ONLY}", f"SET {READ_ONLY} TO DEFAULT", "RESET ALL"])
def test_what_is_set_back_holds_again(engine: sa.Engine, proxy: Proxy, said: str) -> None:
    """One question finds that out, for the next transaction."""
    with engine.connect() as connection:
        for text in (SAID[0], said):
            connection.execute(sa.text(text))
            connection.commit()
        proxy.requests()
        for _ in range(2):
            connection.execute(sa.text("SELECT 1"))
            connection.commit()
        assert driver_of(connection).is_read_only_at_start
    requests = [request.strip() for request in proxy.requests()]

    assert "pg_settings" in requests[0]
    assert len(requests) == 5
    assert requests[1].startswith("BEGIN READ WRITE")


def test_a_session_that_is_set_back_is_not_asked(engine: sa.Engine, proxy: Proxy) -> None:
    """Nor one that only shows the setting: the start option is what remains."""
    with engine.connect() as connection:
        for text in ("RESET ALL", f"SHOW {READ_ONLY}"):
            connection.execute(sa.text(text))
            connection.commit()
        proxy.requests()
        connection.execute(sa.text("SELECT 1"))
        connection.commit()

    assert len(proxy.requests()) == 2


def test_two_phases_in_a_session_that_was_told_to_read_only(riding: sa.Engine) -> None:
    """What psycopg2 or psycopg drives by itself says no READ WRITE either."""
    with riding.connect() as connection:
        driver = driver_of(connection)
        driver.cursor().execute(SAID[0])
        driver.commit()
        driver.tpc_begin(driver.xid(1, "uow", "test"))
        with pytest.raises(Exception, match="read-only transaction"):
            driver.cursor().execute("INSERT INTO item VALUES (1)")
        driver.tpc_rollback()
        connection.invalidate()
