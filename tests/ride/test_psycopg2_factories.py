"""Classes and functions of the program's own that make psycopg2's cursors and connections."""

import gc
import io
import logging
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy as sa
from psycopg2 import extensions

from flask_uow._ride import _psycopg2, ride
from flask_uow._ride._psycopg2 import RidingConnection, riding_factory
from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import Proxy
from tests.ride import fuzz
from tests.ride.conftest import MakeConnection

SEQUENCES = 150
WHO = "SELECT current_setting('app.who', true)"


@pytest.mark.parametrize(
    "factory",
    [
        psycopg2.extras.DictCursor,
        psycopg2.extras.RealDictCursor,
        psycopg2.extras.NamedTupleCursor,
        psycopg2.extras.LoggingCursor,
    ],
)
@pytest.mark.parametrize("name", [None, "named"])
def test_cursor_factories(connect: MakeConnection, proxy: Proxy, factory: type, name: str | None) -> None:
    """Given at connect or for one cursor, a class works as it does plainly, and what waits rides past nothing."""
    for riding in (connect(cursor_factory=factory), connect()):
        if factory is psycopg2.extras.LoggingCursor:
            riding.log = lambda message, cursor: None
        given = {} if riding.cursor_factory is factory else {"cursor_factory": factory}
        cursor: Any = riding.cursor(name, **given)
        assert factory in type(cursor).__mro__
        cursor.execute("SELECT 1 AS one, %s AS two", (2,))
        row = cursor.fetchone()
        assert list(row.values() if isinstance(row, dict) else row) == [1, 2]
        assert proxy.requests()[0].startswith("BEGIN")
        riding.rollback()
        proxy.requests()


@pytest.mark.parametrize("name", [None, "named"])
def test_a_class_that_was_made_for_one_use_is_forgotten(postgres: PostgreSQLDatabase, name: str | None) -> None:
    """Inside a function, a class is another one at each call."""

    def use_and_drop() -> list[weakref.ref[Any]]:
        class OwnCursor(psycopg2.extras.DictCursor): ...

        class OwnConnection(extensions.connection): ...

        own = psycopg2.connect(postgres.driverless_url, connection_factory=riding_factory(OwnConnection))
        with own.cursor(name, cursor_factory=OwnCursor) as cursor:
            cursor.execute("SELECT 1")
        own.close()
        return [weakref.ref(OwnCursor), weakref.ref(OwnConnection)]

    dropped = use_and_drop()
    gc.collect()

    assert [each() for each in dropped] == [None, None]


class Auditing(extensions.cursor):
    """A class that says something before each statement of a kind."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if "INSERT INTO t " in text_of(query):
            super().execute("INSERT INTO audit VALUES (%s)", (text_of(query)[:8],))
        super().execute(query, vars)


class Passing(extensions.cursor):
    """A class that hands on what it is told."""

    def execute(self, query: Any, vars: Any = None) -> None:
        super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        super().executemany(query, vars_list)

    def fetchone(self) -> Any:
        return super().fetchone()

    def close(self) -> None:
        super().close()


class PassingByName(extensions.cursor):
    """The same, as the driver's documentation once showed how a base is called."""

    def execute(self, query: Any, vars: Any = None) -> None:
        extensions.cursor.execute(self, query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        extensions.cursor.executemany(self, query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None) -> Any:
        return extensions.cursor.callproc(self, procname, parameters)

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        extensions.cursor.copy_from(self, *args, **kwargs)

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        extensions.cursor.copy_to(self, *args, **kwargs)

    def copy_expert(self, sql: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        extensions.cursor.copy_expert(self, sql, file, *args, **kwargs)


class AuditingByName(PassingByName):
    """The same by name."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if "INSERT INTO t " in text_of(query):
            extensions.cursor.execute(self, "INSERT INTO audit VALUES (%s)", (text_of(query)[:8],))
        extensions.cursor.execute(self, query, vars)


class AuditingElsewhere(extensions.cursor):
    """The same, with a cursor of its own."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if "INSERT INTO t " in text_of(query):
            with self.connection.cursor(cursor_factory=extensions.cursor) as cursor:
                cursor.execute("INSERT INTO audit VALUES (%s)", (text_of(query)[:8],))
        super().execute(query, vars)


class Telling(extensions.cursor):
    """A class that says, before each statement, who asks."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if text_of(query)[:6] in ("SELECT", "INSERT"):
            super().execute("SELECT set_config('app.who', 'me', true)")
        super().execute(query, vars)


class TellingByName(extensions.cursor):
    """The same by name."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if text_of(query)[:6] in ("SELECT", "INSERT"):
            extensions.cursor.execute(self, "SELECT set_config('app.who', 'me', true)")
        extensions.cursor.execute(self, query, vars)


class Refusing(extensions.cursor):
    """A class that looks at how a statement begins."""

    def execute(self, query: Any, vars: Any = None) -> None:
        if not text_of(query).lower().startswith(("select", "insert", "savepoint", "release", "rollback")):
            raise psycopg2.ProgrammingError(f"{text_of(query)[:20]!r} is refused here")
        super().execute(query, vars)


def text_of(query: Any) -> str:
    return query.decode() if isinstance(query, bytes) else str(query)


def use(connection: Any) -> Iterator[object]:
    """What a program does with a connection, and what it is told."""

    def run(query: str, *parameters: Any) -> object:
        cursor = connection.cursor()
        try:
            cursor.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else (cursor.rowcount, cursor.statusmessage)
        except psycopg2.Error as error:
            return type(error).__name__, error.pgcode, str(error).splitlines()[0], error.cursor is cursor

    yield run("INSERT INTO t VALUES (1, 'a')")
    yield run(WHO)
    connection.rollback()
    for number in (1, 2, 2, 3):
        yield run("SAVEPOINT s")
        yield run("INSERT INTO t VALUES (%s, 'a')", number), connection.get_transaction_status()
        yield run("ROLLBACK TO s" if connection.get_transaction_status() == 3 else "RELEASE s")
    yield run("DELETE FROM t")
    yield run(WHO)
    connection.commit()
    yield run(WHO)
    yield run("SELECT nowhere")
    yield run(WHO)
    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        connection.commit() if isinstance(connection, RidingConnection) else connection.cursor().execute(WHO)
    connection.rollback()
    yield run("INSERT INTO t VALUES (%s, %s)", object(), "a")
    yield run("SELECT count(*) FROM t WHERE id > %s", 1)
    connection.commit()
    yield run("COMMIT")
    yield connection.get_transaction_status()


@pytest.mark.parametrize("options", ["", "-c default_transaction_read_only=on"], ids=["", "read-only at start"])
@pytest.mark.parametrize(
    "factory",
    [Auditing, AuditingByName, AuditingElsewhere, Telling, TellingByName, Refusing, psycopg2.extras.DictCursor],
)
def test_what_a_class_of_cursors_says_is_in_the_transaction(
    connect: MakeConnection, postgres: PostgreSQLDatabase, factory: type, options: str
) -> None:
    """Of the statements, as on a plain connection: all is committed together, all is undone together."""
    postgres.execute("CREATE TABLE audit (what text)")
    found = []
    for connection in (connect(None), connect(options=options)):
        connection.cursor_factory = factory
        told = [*use(connection)]
        found.append((told, postgres.rows("SELECT * FROM t ORDER BY id"), postgres.rows("SELECT * FROM audit")))
        connection.close()
        postgres.execute("TRUNCATE t, audit")

    assert found[0] == found[1]


@pytest.mark.parametrize("factory", [Passing, PassingByName])
def test_random_sequences_are_alike(
    make_database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, factory: type
) -> None:
    """Of classes that only hand on what they are told."""
    monkeypatch.setattr(fuzz.Psycopg2, "cursor_factory", factory)
    databases = make_database("psycopg2"), make_database("psycopg2")

    operations, differences = fuzz.compare("psycopg2", *databases, range(SEQUENCES), read_only=True)

    assert operations > SEQUENCES
    assert not differences, str(differences[0])


def test_what_a_class_says_by_super_rides(connect: MakeConnection, postgres: PostgreSQLDatabase, proxy: Proxy) -> None:
    """Its own statements as the program's."""
    postgres.execute("CREATE TABLE audit (what text)")
    connection = connect(cursor_factory=Auditing)
    connection.cursor().execute("SELECT 1")  # a text is known from then on
    connection.rollback()
    proxy.requests()
    before = connection.trips
    for statement in ("INSERT INTO t VALUES (1, 'a')", "SAVEPOINT s", "SELECT 1"):
        connection.cursor().execute(statement)
    connection.commit()

    assert proxy.requests() == [
        "BEGIN;\nINSERT INTO audit VALUES ('INSERT I')",
        "INSERT INTO t VALUES (1, 'a')",
        "SAVEPOINT s;\nSELECT 1",
        "COMMIT",
    ]
    assert connection.trips == before + 4


def test_of_a_class_that_calls_by_name_psycopg2_drives_the_transactions(
    connect: MakeConnection, postgres: PostgreSQLDatabase, proxy: Proxy
) -> None:
    """Whatever it sends; what waits is sent ahead."""
    postgres.execute("CREATE FUNCTION f(int) RETURNS int LANGUAGE SQL AS 'SELECT $1'; CREATE TABLE audit (what text)")
    connection = connect(options="-c default_transaction_read_only=on")
    cursor = connection.cursor(cursor_factory=AuditingByName)
    sends: list[Callable[[], Any]] = [
        lambda: cursor.execute("SELECT 1"),
        lambda: cursor.executemany("INSERT INTO t VALUES (%s, 'a')", [(1,), (2,)]),
        lambda: cursor.callproc("f", (1,)),
        lambda: cursor.copy_from(io.StringIO("3\ta\n"), "t"),
        lambda: cursor.copy_to(io.StringIO(), "t"),
        lambda: cursor.copy_expert("COPY t TO STDOUT", io.StringIO()),
    ]
    for send in sends:
        before = connection.trips
        send()
        requests = proxy.requests()
        assert requests[0] == "BEGIN READ WRITE"
        assert connection.trips - before == len(requests) - (send is sends[1])  # which has two rows
        connection.rollback()
        connection.cursor().execute("SAVEPOINT s")
        send()
        assert proxy.requests()[:3] == ["ROLLBACK", "BEGIN READ WRITE", "SAVEPOINT s"]
        connection.rollback()
        connection.cursor().execute("INSERT INTO t VALUES (9, 'b')")
        send()
        connection.rollback()
        proxy.requests()
    assert postgres.rows("SELECT * FROM t") == []
    connection.autocommit = True
    cursor.execute("INSERT INTO t VALUES (4, 'a')")
    assert postgres.rows("SELECT id FROM t") == [(4,)]


def test_a_class_that_calls_by_name_heals_a_failed_transaction(
    connect: MakeConnection, postgres: PostgreSQLDatabase
) -> None:
    """One that another cursor has begun, so that it rides."""
    connection = connect()
    own = connection.cursor(cursor_factory=AuditingByName)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1, 'a')")
        cursor.execute("SAVEPOINT s")
        cursor.execute("SELECT 1")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO t VALUES (1, 'b')")
    own.execute("ROLLBACK TO s")
    own.execute("SELECT count(*) FROM t")
    assert own.fetchone() == (1,)
    connection.commit()

    assert postgres.rows("SELECT * FROM t") == [(1, "a")]


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_named_cursor_of_a_class_that_calls_by_name(connect: MakeConnection, is_begun: bool) -> None:
    """Declared and read in the transaction, and gone with it."""
    connection = connect()
    if is_begun:
        connection.cursor().execute("SELECT 1")
    cursor = connection.cursor("named", cursor_factory=TellingByName)
    with pytest.raises(psycopg2.ProgrammingError, match="on named cursors more than once"):
        cursor.execute(WHO)
    connection.rollback()
    named = connection.cursor("named", cursor_factory=AuditingByName)
    named.execute("SELECT generate_series(1, 3)")
    assert [named.fetchone(), *named.fetchmany(5)] == [(1,), (2,), (3,)]
    connection.commit()
    with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
        named.fetchone()


class Counting(extensions.connection):
    """A class of the program's own."""

    commits = 0

    def commit(self) -> None:
        self.commits += 1
        super().commit()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("cursor_factory", Refusing)
        return super().cursor(*args, **kwargs)


class Sparse(extensions.connection):
    """A class whose connections have no attributes of their own."""

    __slots__ = ()


class SparseByName(Sparse):
    """One that goes past what is between it and psycopg2."""

    __slots__ = ()

    def commit(self) -> None:
        extensions.connection.commit(self)


def test_connection_factory(connect: MakeConnection, proxy: Proxy) -> None:
    """A program's own class keeps what it does."""
    for factory in (riding_factory(Counting), riding_factory(partial(Counting))):
        connection = connect(factory)
        connection.cursor().execute("SELECT 1")
        connection.commit()
        assert isinstance(connection, Counting)
        assert connection.commits == 1
        assert proxy.requests() == ["BEGIN;\nSELECT 1", "COMMIT"]
    connection = connect(riding_factory(Sparse))
    connection.cursor().execute("SELECT 1")
    assert isinstance(connection, Sparse)
    assert proxy.requests() == ["BEGIN;\nSELECT 1"]


class Settling(extensions.connection):
    """A class that has something to say at the end."""

    def commit(self) -> None:
        with self.cursor() as cursor:
            cursor.execute("INSERT INTO t SELECT max(id) + 1, 'last' FROM t")
        super().commit()

    def rollback(self) -> None:
        super().rollback()
        with self.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (0, 'rolled back') ON CONFLICT DO NOTHING")
        super().commit()


class SettlingByName(extensions.connection):
    """The same by name."""

    def commit(self) -> None:
        with extensions.connection.cursor(self) as cursor:
            cursor.execute("INSERT INTO t SELECT max(id) + 1, 'last' FROM t")
        extensions.connection.commit(self)

    def rollback(self) -> None:
        extensions.connection.rollback(self)
        with extensions.connection.cursor(self) as cursor:
            cursor.execute("INSERT INTO t VALUES (0, 'rolled back') ON CONFLICT DO NOTHING")
        extensions.connection.commit(self)


class Wrapper:
    """What hands everything on to a cursor."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Wrapping(extensions.connection):
    """A class whose cursors are none of psycopg2's."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return Wrapper(super().cursor(*args, **kwargs))


class WithDictionaries(extensions.connection):
    """A class that hides an attribute of psycopg2's."""

    cursor_factory = psycopg2.extras.DictCursor


@pytest.mark.parametrize("factory", [Settling, SettlingByName, Wrapping, WithDictionaries, SparseByName])
def test_what_a_class_of_connections_says_is_in_the_transaction(
    connect: MakeConnection, postgres: PostgreSQLDatabase, factory: type
) -> None:
    """As on a plain connection, whether it rides or cannot."""
    found = []
    for given in (factory, riding_factory(factory)):
        connection = connect(given)
        cursor = connection.cursor()
        cursor.execute("INSERT INTO t VALUES (1, 'a')")
        connection.commit()
        cursor.execute("INSERT INTO t VALUES (7, 'a')")
        connection.rollback()
        assert factory in type(connection).__mro__
        connection.close()
        found.append(postgres.rows("SELECT * FROM t ORDER BY id"))
        postgres.execute("TRUNCATE t")

    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (SettlingByName, "SettlingByName.commit does not call super()"),
        (SparseByName, "SparseByName.commit does not call super()"),
        (partial(extensions.connection), "a connection_factory that is a function has made a connection"),
    ],
)
def test_connections_that_cannot_ride_do_not(
    postgres: PostgreSQLDatabase, caplog: pytest.LogCaptureFixture, factory: Any, why: str
) -> None:
    """They work as they do without riding, the log says why, and nothing is read-only by a start option."""
    _psycopg2._tell_why_not.cache_clear()
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    engine = ride(sa.create_engine(postgres.url, connect_args={"connection_factory": factory}), read_only_at_start=True)
    with caplog.at_level(logging.WARNING):
        for number in (1, 5):
            with engine.begin() as connection:
                assert not isinstance(connection.connection.dbapi_connection, RidingConnection)
                connection.execute(sa.text("INSERT INTO t VALUES (:number, 'a')"), {"number": number})
    engine.dispose()

    assert {1, 5} < {each for (each,) in postgres.rows("SELECT id FROM t")} | {0}
    (message,) = caplog.messages
    assert why in message
    assert "fix: " in message


class Setting(extensions.connection):
    """A class that uses the connection while it is made, and leaves a transaction open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_client_encoding("LATIN1")
        self.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
        self.cursor_factory = psycopg2.extras.DictCursor
        self.cursor().execute("SET work_mem TO '65kB'")


def make_automatic(*args: Any, **kwargs: Any) -> Any:
    connection = Counting(*args, **kwargs)
    connection.autocommit = True
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    return connection


@pytest.mark.parametrize("options", ["", "-c default_transaction_read_only=on"])
@pytest.mark.parametrize("factory", [Setting, partial(Setting), make_automatic])
def test_what_a_connection_factory_has_set_holds(connect: MakeConnection, factory: Any, options: str) -> None:
    """As on a plain connection."""
    names = ("work_mem", "client_encoding", "transaction_isolation", "transaction_read_only", "transaction_deferrable")
    members = ("isolation_level", "readonly", "deferrable", "autocommit", "cursor_factory")
    found = []
    for connection in (connect(factory), connect(riding_factory(factory), options=options)):
        connection.commit()
        cursor = connection.cursor()
        cursor.execute(f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}")
        told = [getattr(connection, member) for member in members]
        found.append(([*cursor.fetchone()], told))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [None, "named"])
def test_logging_connection_logs_the_statement_alone(connect: MakeConnection, name: str | None) -> None:
    """It makes cursors of its own class by itself."""
    log = io.StringIO()
    connection = connect(riding_factory(psycopg2.extras.LoggingConnection))
    connection.initialize(log)
    cursor = connection.cursor(name)
    cursor.execute("SELECT %s", (1,))
    assert cursor.fetchone() == (1,)

    assert log.getvalue().strip().endswith("SELECT 1")
    assert "BEGIN" not in log.getvalue()
