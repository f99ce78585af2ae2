"""A riding connection beside a plain one: whoever uses them must not see which is which."""

import copy
import io
import pickle
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import extensions, sql
from sqlalchemy.engine import make_url

from flask_uow._ride import _texts
from flask_uow._ride._psycopg2 import RidingConnection
from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import Proxy
from tests.ride.conftest import MakeConnection
from tests.ride.fuzz import SIDES, compare

SEQUENCES = 150

Told = tuple[str, str | None, str, str | None, str | None]


@pytest.fixture(params=["plain", "riding"])
def either(request: pytest.FixtureRequest, connect: MakeConnection) -> Any:
    """A connection of each kind."""
    return connect(None if request.param == "plain" else RidingConnection)


def fail(connection: Any, statement: Any, parameters: Any = None) -> psycopg2.Error:
    try:
        connection.cursor().execute(statement, parameters)
    except psycopg2.Error as error:
        return error
    pytest.fail(f"{statement!r} has not failed.")


def told(error: psycopg2.Error) -> Told:
    return (type(error).__name__, error.pgcode, str(error), error.pgerror, error.diag.statement_position)


@pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("driver", SIDES)
@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only at start"])
def test_random_sequences_are_alike(make_database: Callable[[str], Any], driver: str, read_only: bool) -> None:
    """Results, errors, the transaction's status and what the server holds are those of the plain driver."""
    databases = make_database(driver), make_database(driver)

    operations, differences = compare(driver, *databases, range(SEQUENCES), read_only=read_only)

    assert operations > SEQUENCES
    assert not differences, str(differences[0])


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT nowhere",
        "SELECT\n\n  1,\n  'ä', nowhere FROM t",
        "\n\n\n\n\n\n\n\n\nSELECT nowhere",
        "SELEC 1",
        "SELECT 1 / 0",
        f"SELECT {'1, ' * 100} nowhere",
        b"SELECT nowhere",
    ],
)
def test_error_is_that_of_the_statement_alone(plain: Any, riding: Any, statement: str) -> None:
    """Position, line and excerpt do not speak of what rode in front; nor does the pickled error."""
    expected, found = fail(plain, statement), fail(riding, statement)

    assert told(found) == told(expected)
    assert isinstance(found, type(expected))
    assert found.diag.message_primary == expected.diag.message_primary
    assert getattr(found.cursor, "connection", None) is riding
    pickled = pickle.loads(pickle.dumps(found))
    assert (type(pickled), str(pickled), pickled.pgcode) == (type(expected), str(expected), expected.pgcode)


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("SELECT %s, %s", (1,)),
        ("SELECT %(a)s", {}),
        ("SELECT %s", (object(),)),
        ("SELECT %s", ("a\0b",)),
        ("", None),
        (1, None),
        ("SELECT '\ud800'", None),
    ],
)
def test_error_of_the_clients_own_begins_nothing(either: Any, statement: Any, parameters: Any) -> None:
    """Nothing was sent: no transaction is open, and what waits waits on."""
    with pytest.raises((psycopg2.Error, TypeError, ValueError, IndexError, KeyError)):
        either.cursor().execute(statement, parameters)

    assert (either.get_transaction_status(), either.status) == (0, extensions.STATUS_READY)
    either.cursor().execute("SAVEPOINT a")
    with pytest.raises((psycopg2.Error, TypeError, ValueError, IndexError, KeyError)):
        either.cursor().execute(statement, parameters)
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    either.cursor().execute("ROLLBACK TO a")
    either.commit()
    cursor = either.cursor()
    cursor.execute("SELECT count(*) FROM t")
    assert cursor.fetchone() == (0,)


@pytest.mark.parametrize("statement", ["-- nothing", " ; ", "/* nothing */"])
def test_empty_statement_is_an_error(either: Any, statement: str) -> None:
    """What BEGIN answers does not pass for its success."""
    assert "empty query" in str(fail(either, statement))
    either.rollback()
    with pytest.raises(psycopg2.ProgrammingError, match="empty query"):
        either.cursor().executemany(statement, [()])


class Using:
    """A value that asks the database when it is quoted.

    :param connection: the connection that it is quoted for.
    :param statement: what it says then.
    """

    def __init__(self, connection: Any, statement: str = "INSERT INTO t VALUES (7, 'a')") -> None:
        self._connection = connection
        self._statement = statement

    def __conform__(self, protocol: Any) -> "Using":
        return self

    def getquoted(self) -> bytes:
        self._connection.cursor().execute(self._statement)
        return b"8"


def rows_of(connection: Any) -> list[Any]:
    connection.commit()
    cursor = connection.cursor()
    cursor.execute("SELECT id FROM t ORDER BY id")
    return [number for (number,) in cursor.fetchall()]


@pytest.mark.parametrize("before", [(), ("SAVEPOINT a", "INSERT INTO t VALUES (2, 'a')", "ROLLBACK TO a")])
def test_parameters_that_use_the_connection(either: Any, before: tuple[str, ...]) -> None:
    """What waits is sent with theirs, and not again: a ROLLBACK TO would take it back."""
    for number, send in enumerate(("execute", "executemany", "from a generator")):
        either.cursor().execute("DELETE FROM t")
        either.commit()
        for statement in before:
            either.cursor().execute(statement)
        if send == "execute":
            either.cursor().execute("INSERT INTO t VALUES (%s, 'a')", (Using(either),))
        elif send == "executemany":
            either.cursor().executemany("INSERT INTO t VALUES (%s, 'a')", [(Using(either),), (9,)])
        else:
            either.cursor().executemany("INSERT INTO t VALUES (%s, 'a')", using(either))
        assert rows_of(either) == [[7, 8], [7, 8, 9], [1, 3, 4]][number]


def test_parameters_that_let_a_savepoint_wait(either: Any) -> None:
    """Of a text that was run before."""
    either.cursor().execute("INSERT INTO t VALUES (%s, 'a')", (1,))
    either.cursor().execute("SET LOCAL x.y = 1")
    either.cursor().execute("INSERT INTO t VALUES (%s, 'a')", (Using(either, "SAVEPOINT a"),))
    either.cursor().execute("ROLLBACK TO a")
    assert rows_of(either) == [1]


def test_parameters_whose_own_statement_fails(either: Any) -> None:
    """The transaction has failed with it, whatever the server was told."""
    with pytest.raises(psycopg2.errors.SyntaxError):
        either.cursor().execute("INSERT INTO t VALUES (%s, 'a')", (Using(either, "SELEC"),))
    assert either.get_transaction_status() == 3
    assert fail(either, "SELECT 1").pgcode == "25P02"


def using(connection: Any) -> Iterator[tuple[int]]:
    """Rows that are made of statements, and a savepoint between them."""
    connection.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    connection.cursor().execute("SAVEPOINT b")
    yield (2,)
    connection.cursor().execute("ROLLBACK TO b")
    yield (3,)
    connection.cursor().execute("SAVEPOINT b")
    yield (4,)


def test_parameters_of_which_the_first_cannot_be_made(either: Any) -> None:
    """Nothing was sent, and no transaction is open."""
    with pytest.raises(ZeroDivisionError):
        either.cursor().executemany("INSERT INTO t VALUES (%s, 'a')", ((1 // number,) for number in (0, 1)))
    assert either.get_transaction_status() == 0


@pytest.mark.parametrize("is_late", [False, True])
def test_parameters_that_cannot_be_made(either: Any, is_late: bool) -> None:
    """Their error is the caller's, and what they said before stands."""

    def failing() -> Iterator[tuple[int]]:
        if is_late:
            yield (1,)
        either.cursor().execute("SAVEPOINT a")
        raise ValueError("no row")

    with pytest.raises(ValueError, match="no row"):
        either.cursor().executemany("INSERT INTO t VALUES (%s, 'a')", failing())
    assert either.get_transaction_status() == 2
    either.cursor().execute("INSERT INTO t VALUES (2, 'a')")
    either.cursor().execute("ROLLBACK TO a")
    assert rows_of(either) == ([1] if is_late else [])


def test_refused_string_fails_the_transaction(either: Any, postgres: PostgreSQLDatabase) -> None:
    """BEGIN was refused with it; all that follows fails as in a failed transaction."""
    fail(either, "SELEC 1")
    assert either.get_transaction_status() == 3
    assert fail(either, "INSERT INTO t VALUES (1, 'a')").pgcode == "25P02"
    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        either.cursor().executemany("INSERT INTO t VALUES (%s, 'a')", [(1,)])
    either.rollback()
    either.cursor().execute("INSERT INTO t VALUES (2, 'a')")
    either.commit()

    assert postgres.rows("SELECT id FROM t") == [(2,)]


def test_many_parameters_in_a_transaction_that_has_failed(either: Any) -> None:
    """Of which the server knows nothing yet."""
    fail(either, "SELEC 1")
    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        either.cursor().executemany("INSERT INTO t VALUES (%s, 'a')", [(1,)])
    either.rollback()
    assert rows_of(either) == []


def test_many_parameters_that_are_refused_behind_a_savepoint(either: Any) -> None:
    """The savepoint is there, and what was done before it."""
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    either.cursor().execute("SAVEPOINT a")
    with pytest.raises(psycopg2.errors.SyntaxError):
        either.cursor().executemany("INSER INTO t VALUES (%s, 'a')", [(2,)])
    either.cursor().execute("ROLLBACK TO SAVEPOINT a")
    assert rows_of(either) == [1]


def test_commit_of_a_failed_transaction_is_an_error(riding: RidingConnection, proxy: Proxy) -> None:
    """The command's tag tells it; afterwards the connection is usable and in no transaction."""
    for statement in ("SELECT 1 / 0", "SELEC 1"):
        fail(riding, statement)
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction, match="rolled it back") as caught:
            riding.commit()
        assert caught.value.pgcode == "25P02"
        assert riding.get_transaction_status() == 0
    riding.cursor().execute("SELECT 1")
    riding.commit()


def test_unknown_savepoint_is_an_error_at_once(either: Any) -> None:
    """Dropped at COMMIT, its error would be lost."""
    assert fail(either, "RELEASE SAVEPOINT nope").pgcode == "3B001"


@pytest.mark.parametrize("end", ["ROLLBACK TO b", "RELEASE b"])
def test_savepoints_of_one_name(either: Any, end: str) -> None:
    """Behind the end of the inner one, or of what it lies in, a rollback goes back to the outer one."""
    for statement in (
        *("SAVEPOINT a", "INSERT INTO t VALUES (1)", "SAVEPOINT b", "SAVEPOINT a", "INSERT INTO t VALUES (2)"),
        *(end, "ROLLBACK TO a"),
    ):
        either.cursor().execute(statement)
    cursor = either.cursor()
    cursor.execute("SELECT id FROM t")

    assert cursor.fetchall() == []


@pytest.mark.parametrize("options", ["", "-c default_transaction_read_only=on"])
def test_composed_statements_in_autocommit(connect: MakeConnection, options: str) -> None:
    """What psycopg2.sql composes is no text, and nothing that can be looked for among texts."""
    connection = connect(options=options)
    connection.autocommit = True
    insert = sql.SQL("INSERT INTO {} (id) VALUES (%s)").format(sql.Identifier("t"))
    with closing(connection.cursor()) as cursor:
        cursor.execute(insert, (1,))
        cursor.executemany(insert, [(2,), (3,)])
        cursor.execute(sql.SQL("SELECT id FROM {} ORDER BY id").format(sql.Identifier("t")))

        assert cursor.fetchall() == [(1,), (2,), (3,)]


def test_savepoint_with_a_reserved_name_is_an_error_at_once(either: Any) -> None:
    """Dropped at COMMIT, its error would be lost; quoted, it is a name as any other."""
    cursor = either.cursor()
    cursor.execute("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
    words = [word for (word,) in cursor.fetchall()]
    for word in ("User", *words):
        assert fail(either, f"SAVEPOINT {word}").pgcode == "42601"
        either.rollback()
        either.cursor().execute(f'SAVEPOINT "{word}"')


def test_setting_with_a_percent_sign(either: Any) -> None:
    """Which is no placeholder of the statement behind it."""
    either.cursor().execute("SET LOCAL x.y = '50%s'")
    cursor = either.cursor()
    cursor.execute("SELECT %s, current_setting('x.y')", (1,))
    assert cursor.fetchone() == (1, "50%s")


def test_setting_by_which_a_text_is_read(either: Any) -> None:
    """What is sent with it would be read as before it."""
    cursor = either.cursor()
    cursor.execute("SET LOCAL standard_conforming_strings = off")
    cursor.execute(r"SELECT length('a\nb')")
    assert cursor.fetchone() == (3,)
    either.rollback()
    cursor.execute(r"SELECT length('a\nb')")
    assert cursor.fetchone() == (4,)


@pytest.mark.parametrize(
    "setting",
    [
        "SET client_encoding TO 'LATIN1'",
        "SET LOCAL client_encoding TO 'LATIN1'",
        "SET NAMES 'LATIN1'",
        "SELECT set_config('client_encoding', 'LATIN1', true)",
        "SET standard_conforming_strings = off",
    ],
)
def test_setting_by_which_a_text_is_read_and_that_is_undone(either: Any, setting: str) -> None:
    """What is sent with the ROLLBACK TO would be written and read as before it."""
    for _ in range(2):  # the second time the texts are known
        for text in ("SAVEPOINT a", setting, "ROLLBACK TO SAVEPOINT a"):
            either.cursor().execute(text)
        cursor = either.cursor()
        cursor.execute(r"SELECT %s, 'é\n', length(convert_to('é', 'UTF8'))", ("ü",))
        assert cursor.fetchone() == ("ü", r"é\n", 2)


@pytest.fixture
def latin_url(postgres: PostgreSQLDatabase) -> Iterator[str]:
    """A database that knows the characters of Latin-1 alone."""
    name = f"uow_test_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    yield make_url(postgres.driverless_url).set(database=name).render_as_string(hide_password=False)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("factory", [None, RidingConnection])
@pytest.mark.parametrize(("encoding", "unknown"), [("UTF8", "€"), ("JOHAB", "§")])
def test_character_that_the_server_does_not_know(
    postgres: PostgreSQLDatabase, latin_url: str, factory: Any, encoding: str, unknown: str
) -> None:
    """It refuses the whole string; the savepoint is there all the same."""
    url = latin_url if encoding == "UTF8" else postgres.driverless_url
    with closing(psycopg2.connect(url, connection_factory=factory, client_encoding=encoding)) as connection:
        connection.cursor().execute("CREATE TABLE named (name text)")
        connection.cursor().execute("INSERT INTO named VALUES (%s)", ("a",))
        connection.cursor().execute("SAVEPOINT a")
        assert fail(connection, "INSERT INTO named VALUES (%s)", (unknown,)).pgcode in ("22P05", "22021")
        connection.cursor().execute("ROLLBACK TO SAVEPOINT a")
        connection.commit()
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT name FROM named")
        assert cursor.fetchall() == [("a",)]


@pytest.mark.parametrize("withhold", [False, True])
def test_named_cursor(either: Any, withhold: bool) -> None:
    """It is declared in the transaction, and gone with it unless it is held."""
    either.cursor().execute("SAVEPOINT a")
    cursor = either.cursor("rows", withhold=withhold)
    cursor.execute("SELECT * FROM generate_series(1, %s)", (6,))
    assert cursor.fetchone() == (1,)
    assert cursor.fetchmany(2) == [(2,), (3,)]
    cursor.itersize = 1
    assert next(cursor) == (4,)
    either.commit()
    if withhold:
        assert cursor.fetchall() == [(5,), (6,)]
        cursor.close()
        return
    with pytest.raises(psycopg2.ProgrammingError, match="isn't valid anymore"):
        cursor.fetchone()


def test_named_cursor_that_is_closed_in_a_failed_transaction(either: Any) -> None:
    """Also one of a transaction before it: nothing is sent."""
    cursor = either.cursor("named")
    cursor.execute("SELECT 1")
    either.commit()
    fail(either, "SELECT 1 / 0")
    cursor.close()
    either.rollback()


def test_named_cursor_in_autocommit_is_refused(either: Any) -> None:
    """It would be gone at once."""
    either.autocommit = True
    with pytest.raises(psycopg2.ProgrammingError, match="outside of transactions"):
        either.cursor("rows").execute("SELECT 1")


def test_copy_and_callproc(either: Any) -> None:
    """What cannot carry has the rest sent ahead."""
    cursor = either.cursor()
    cursor.copy_from(io.StringIO("1\ta\n2\tb\n"), "t")
    cursor.execute("SAVEPOINT a")
    file = io.StringIO()
    cursor.copy_to(file, "t")
    assert file.getvalue() == "1\ta\n2\tb\n"
    cursor.callproc("upper", ["a"])
    assert cursor.fetchall() == [("A",)]
    cursor.copy_expert("COPY t FROM STDIN", io.StringIO("3\tc\n"))
    assert cursor.rowcount == 1
    either.rollback()
    cursor.execute("SELECT count(*) FROM t")
    assert cursor.fetchone() == (0,)


def test_copy_in_autocommit_on_a_read_only_start(connect: MakeConnection) -> None:
    """It may write."""
    riding = connect(options="-c default_transaction_read_only=on")
    riding.autocommit = True
    riding.cursor().copy_from(io.StringIO("1\ta\n"), "t")
    assert rows_of(riding) == [1]


def test_with_block(either: Any, postgres: PostgreSQLDatabase) -> None:
    """It commits, or rolls back; in autocommit too it is a transaction."""
    for is_automatic, number in ((False, 1), (True, 2)):
        either.autocommit = is_automatic
        with either:
            either.cursor().execute("INSERT INTO t VALUES (%s, 'a')", (number,))
        with pytest.raises(ValueError, match="out"):
            with either:
                either.cursor().execute("INSERT INTO t VALUES (%s, 'a')", (10 + number,))
                raise ValueError("out")
    with either, pytest.raises(psycopg2.ProgrammingError, match="re-entered"):
        either.__enter__()

    assert postgres.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


def test_two_phase(either: Any, postgres: PostgreSQLDatabase) -> None:
    """The driver drives it, at the isolation level that was set."""
    either.isolation_level = "SERIALIZABLE"
    xid = either.xid(1, "global", "branch")
    either.tpc_begin(xid)
    assert either.status == extensions.STATUS_BEGIN
    cursor = either.cursor()
    cursor.execute("SHOW transaction_isolation")
    assert cursor.fetchone() == ("serializable",)
    cursor.execute("INSERT INTO t VALUES (1, 'a')")
    either.tpc_prepare()
    either.tpc_commit()
    either.tpc_begin(xid)
    either.cursor().execute("INSERT INTO t VALUES (2, 'a')")
    either.tpc_prepare()
    either.reset()
    (found,) = either.tpc_recover()
    assert either.status == extensions.STATUS_READY
    either.tpc_rollback(found)
    either.cursor().execute("INSERT INTO t VALUES (3, 'a')")
    either.commit()

    assert postgres.rows("SELECT id FROM t ORDER BY id") == [(1,), (3,)]


@pytest.mark.parametrize("options", ["", "-c default_transaction_read_only=on"], ids=["", "read-only at start"])
def test_two_phase_that_could_not_be_prepared(connect: MakeConnection, options: str) -> None:
    """The server has rolled it back, and psycopg2 believes it prepared: what comes before its end is refused."""
    messages = []
    for connection in (connect(options=options), connect(None)):
        connection.tpc_begin(connection.xid(1, "global", "branch"))
        fail(connection, "SELECT nowhere")
        connection.tpc_prepare()
        messages.append(str(fail(connection, "SELECT 1")))

    assert messages == ["execute cannot be used with a prepared two-phase transaction"] * 2


def test_transactions_of_the_drivers_own_write_on_a_read_only_start(connect: MakeConnection) -> None:
    """Two phases, and a large object's, also when a text has ended that unknown to the driver."""
    riding = connect(options="-c default_transaction_read_only=on")
    riding.cursor().execute("INSERT INTO t VALUES (3, 'a')")
    riding.rollback()
    riding.tpc_begin(riding.xid(1, "global", "branch"))
    riding.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    riding.tpc_commit()
    riding.lobject().write("content")
    riding.cursor().execute("INSERT INTO t VALUES (2, 'a')")
    riding.cursor().execute("COMMIT")
    riding.cursor().execute("INSERT INTO t VALUES (3, 'a')")
    assert rows_of(riding) == [1, 2, 3]


def test_prepared_transaction_is_ended_outside_of_others(either: Any) -> None:
    """A transaction of which the server knows nothing yet is one as well."""
    either.cursor().execute("SET LOCAL x.y = 1")
    for end in (either.tpc_commit, either.tpc_rollback):
        with pytest.raises(psycopg2.ProgrammingError, match="outside a transaction"):
            end("nobody's")


def test_large_object(either: Any) -> None:
    """The driver drives its transaction from there on, also one that is open already."""
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    lobject = either.lobject(0, "wb")
    lobject.write(b"content")
    oid = lobject.oid
    either.cursor().execute("SAVEPOINT a")
    assert either.notices == []
    either.commit()
    assert either.lobject(oid, "rb").read() == b"content"
    either.lobject(oid).unlink()
    either.rollback()
    cursor = either.cursor()
    cursor.execute("SELECT count(*) FROM pg_largeobject_metadata WHERE oid = %s", (oid,))
    assert cursor.fetchone() == (1,)


def test_another_encoding_ends_a_large_object(either: Any) -> None:
    """With the transaction that the driver drives: it is set outside of any, and the next one may be another kind."""
    either.lobject(0, "wb")
    either.set_client_encoding("LATIN1")
    assert (either.status, either.get_transaction_status()) == (1, 0)
    either.set_session(isolation_level="SERIALIZABLE")
    cursor = either.cursor()
    cursor.execute("SHOW transaction_isolation")
    assert cursor.fetchone() == ("serializable",)


def test_large_object_that_is_refused(either: Any) -> None:
    """What comes then is in a transaction of its own."""
    with pytest.raises(ValueError, match="bad mode"):
        either.lobject(0, "nonsense")
    either.rollback()
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    either.commit()
    either.set_session(readonly=True)
    assert fail(either, "INSERT INTO t VALUES (2, 'a')").pgcode == "25006"
    assert either.notices == []


def test_a_write_behind_a_large_object_that_is_refused_is_rolled_back(
    either: Any, postgres: PostgreSQLDatabase
) -> None:
    """Nothing was begun, so the write begins it."""
    with pytest.raises(ValueError, match="bad mode"):
        either.lobject(0, "nonsense")
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    either.rollback()

    assert postgres.rows("SELECT * FROM t") == []


def test_notifications(either: Any) -> None:
    """LISTEN and NOTIFY ride as any other statement."""
    either.cursor().execute("LISTEN channel")
    either.commit()
    either.cursor().execute("NOTIFY channel, 'payload'")
    assert either.notifies == []
    either.commit()
    either.poll()
    assert [notify.payload for notify in either.notifies] == ["payload"]


def test_cancel(either: Any) -> None:
    """A statement that carries can be cancelled; the transaction has then failed."""
    timer = threading.Timer(0.1, either.cancel)
    timer.start()
    assert isinstance(fail(either, "SELECT pg_sleep(30)"), extensions.QueryCanceledError)
    timer.join()
    assert either.get_transaction_status() == 3
    either.rollback()


def test_transaction_control_as_text(either: Any, postgres: PostgreSQLDatabase) -> None:
    """Begun is a belief: after COMMIT as text, VACUUM works."""
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    either.cursor().execute("COMMIT")
    assert either.get_transaction_status() == 0
    either.cursor().execute("VACUUM t")
    either.rollback()

    assert postgres.rows("SELECT id FROM t") == [(1,)]


def test_session_settings(either: Any) -> None:
    """They change the next BEGIN, and in autocommit the session."""
    either.set_session(isolation_level="repeatable read", readonly=True, deferrable=False)
    assert (either.isolation_level, either.readonly, either.deferrable, either.autocommit) == (2, True, False, False)
    assert fail(either, "INSERT INTO t VALUES (1, 'a')").pgcode == "25006"
    with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
        either.autocommit = True
    either.set_isolation_level(extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    assert (either.autocommit, either.get_transaction_status()) == (True, 0)
    either.readonly = None
    either.isolation_level = "SERIALIZABLE"
    cursor = either.cursor()
    cursor.execute("SHOW transaction_isolation")
    assert cursor.fetchone() == ("serializable",)
    cursor.execute("INSERT INTO t VALUES (1, 'a')")
    either.autocommit = False
    either.isolation_level = None
    cursor.execute("SHOW transaction_isolation")
    assert cursor.fetchone() == ("read committed",)
    either.rollback()
    for name, value in (("isolation_level", 7), ("isolation_level", "nonsense"), ("readonly", "nonsense")):
        with pytest.raises(ValueError, match=r"must be between|bad value|only string"):
            setattr(either, name, value)
    with pytest.raises(ValueError, match="between 0 and 4"):
        either.set_isolation_level(7)
    either.set_client_encoding("LATIN1")
    cursor.execute("SELECT chr(228)")
    assert cursor.fetchone() == ("ä",)
    assert either.encoding == "LATIN1"
    either.reset()
    assert (either.isolation_level, either.readonly, either.autocommit) == (None, None, False)


def test_autocommit_is_told_what_is_set_in_it(either: Any) -> None:
    """Not what was set before."""
    either.set_session(isolation_level="SERIALIZABLE", deferrable=True)
    either.autocommit = True
    either.readonly = True
    cursor = either.cursor()
    cursor.execute("SHOW transaction_isolation")
    assert cursor.fetchone() == ("read committed",)
    cursor.execute("SHOW transaction_deferrable")
    assert cursor.fetchone() == ("off",)
    assert fail(either, "INSERT INTO t VALUES (1, 'a')").pgcode == "25006"


def test_another_encoding_rolls_back(either: Any) -> None:
    """The same one does not."""
    either.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    either.set_client_encoding("utf-8")
    either.commit()
    either.cursor().execute("INSERT INTO t VALUES (2, 'a')")
    either.set_client_encoding("LATIN1")
    assert rows_of(either) == [1]


@pytest.mark.parametrize("options", ["", "-c default_transaction_read_only=on"])
@pytest.mark.parametrize("has_object", [False, True], ids=["", "with a large object"])
def test_reset(connect: MakeConnection, options: str, has_object: bool) -> None:
    """It ends the transaction, and all that was set with it; the start option holds again, and is known to."""
    riding = connect(options=options)
    riding.set_session(isolation_level="SERIALIZABLE", readonly=True)
    riding.cursor().execute("SELECT 1")
    riding.commit()
    riding.readonly = None
    riding.cursor().execute("SET default_transaction_read_only TO on")
    riding.commit()
    if has_object:
        riding.readonly = False
        riding.lobject()
    riding.reset()
    cursor = riding.cursor()
    cursor.execute("INSERT INTO t VALUES (1, 'a')")
    cursor.execute("SHOW transaction_isolation")
    assert cursor.fetchone() == ("read committed",)
    assert rows_of(riding) == [1]
    riding.rollback()
    assert not riding.autocommit


def test_savepoint_behind_a_setting_that_is_refused(connect: MakeConnection) -> None:
    """It was not made, and nobody may go back to it."""
    riding = connect()
    riding.cursor().execute("SELECT 1")
    riding.cursor().execute("SET LOCAL work_mem TO '-1'")
    riding.cursor().execute("SAVEPOINT a")
    assert fail(riding, "SELECT 1").pgcode == "22023"
    assert fail(riding, "ROLLBACK TO SAVEPOINT a").pgcode == "3B001"


def test_closed_connection_refuses(either: Any) -> None:
    """With the driver's own error."""
    cursor = either.cursor()
    cursor.execute("SELECT 1")
    either.close()
    for use in (
        either.commit,
        either.rollback,
        either.cursor,
        either.reset,
        either.__enter__,
        lambda: cursor.execute("SELECT 1"),
        lambda: setattr(either, "autocommit", True),
        lambda: either.set_isolation_level(1),
    ):
        with pytest.raises(psycopg2.InterfaceError, match="already closed"):
            use()


@pytest.mark.parametrize("name", [None, "named"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_lost_connection_is_lost(either: Any, postgres: PostgreSQLDatabase, name: str | None, is_begun: bool) -> None:
    """The statement's error says so, and the connection is closed."""
    if is_begun:
        either.cursor().execute("SELECT 1")
    postgres.kill(either.get_backend_pid())
    with pytest.raises(psycopg2.OperationalError, match=r"terminating connection|closed the connection"):
        either.cursor(name).execute("SELECT 1")
    assert either.closed


def test_connection_is_neither_copied_nor_pickled(either: Any) -> None:
    """As any that holds a socket."""
    for use in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot pickle"):
            use(either)


def test_asynchronous_connection_does_not_ride(connect: MakeConnection) -> None:
    """It is in autocommit, as ever."""
    connection = connect(async_=True)
    psycopg2.extras.wait_select(connection)
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    psycopg2.extras.wait_select(connection)
    assert cursor.fetchone() == (1,)
    with pytest.raises(psycopg2.ProgrammingError, match="asynchronous"):
        connection.commit()


@pytest.fixture
def wait_callback() -> Iterator[None]:
    """What gevent's users set."""
    extensions.set_wait_callback(psycopg2.extras.wait_select)
    yield
    extensions.set_wait_callback(None)


@pytest.mark.usefixtures("wait_callback")
def test_wait_callback(riding: RidingConnection, postgres: PostgreSQLDatabase) -> None:
    """Strings of several statements work there too, and their errors."""
    riding.cursor().execute("INSERT INTO t VALUES (1, 'a')")
    riding.cursor().execute("SAVEPOINT a")
    error = fail(riding, "SELECT nowhere")
    assert error.diag.statement_position == "8"
    riding.cursor().execute("ROLLBACK TO a")
    riding.commit()
    fail(riding, "SELEC 1")
    assert riding.get_transaction_status() == 3
    riding.rollback()

    assert postgres.rows("SELECT id FROM t") == [(1,)]


def test_threads_take_turns(riding: RidingConnection, proxy: Proxy) -> None:
    """Of two threads that share a connection, one sends BEGIN; none runs in front of it."""
    barrier = threading.Barrier(4)
    kinds: list[str] = []

    def write(number: int) -> None:
        barrier.wait()
        cursor = riding.cursor()
        cursor.execute("INSERT INTO t VALUES (%s, 'a')", (number,))
        kinds.append(cursor.statusmessage or "")

    for _ in range(10):
        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        riding.rollback()
        requests = proxy.requests()
        assert requests[0].startswith("BEGIN;\n")
        assert sum("BEGIN" in request for request in requests) == 1
    assert kinds == ["INSERT 0 1"] * 40


def test_remembered_texts_are_bounded(riding: RidingConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes values into its texts does not fill the memory."""
    monkeypatch.setattr(_texts, "MOST_REMEMBERED", 10)
    monkeypatch.setattr(_texts, "LONGEST_REMEMBERED", 50)
    for number in range(30):
        riding.cursor().execute(f"SELECT {number}")
    riding.cursor().execute("SELECT 1" + " " * 50)

    assert len(riding._texts) <= 10
    assert all(isinstance(text, int) or len(text) <= 50 for text in riding._texts)
