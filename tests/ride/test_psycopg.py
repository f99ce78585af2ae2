"""What statements do that ride on psycopg 3: the same as on a plain connection, step by step."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, RawCursor, errors
from psycopg.rows import dict_row

from flask_uow._ride._psycopg_cursors import RidingCursor
from tests.databases import SERVER_VARIABLE, PostgreSQLDatabase
from tests.ride.psycopg_bench import COMMIT, ROLLBACK, TABLE, Step, Told, plain, riding, riding_connection

ONE: Step = ("INSERT INTO item VALUES (%s, %s)", (1, "one"))
TWO: Step = ("INSERT INTO item VALUES (%s, %s)", (2, "two"))
ALL: Step = ("SELECT id FROM item WHERE id < %s ORDER BY id", (100,))
FAILS: Step = ("SELECT 1 / %s", (0,))
SAVEPOINT, RELEASE, BACK = "SAVEPOINT a", "RELEASE SAVEPOINT a", "ROLLBACK TO SAVEPOINT a"

PROGRAMS: dict[str, list[Step]] = {
    "a read": [ALL, COMMIT],
    "two writes": [ONE, TWO, ALL, COMMIT, ALL],
    "a write rolled back": [ONE, ROLLBACK, ALL],
    "an error": [ONE, FAILS, TWO, ROLLBACK, ALL],
    "an error at first": [FAILS, ONE, ROLLBACK, ONE, COMMIT, ALL],
    "a savepoint": [ONE, SAVEPOINT, TWO, RELEASE, COMMIT, ALL],
    "a savepoint at first": [SAVEPOINT, ONE, RELEASE, COMMIT, ALL],
    "a savepoint undone": [ONE, SAVEPOINT, TWO, BACK, ALL, COMMIT, ALL],
    "a savepoint undone, then committed": [ONE, SAVEPOINT, TWO, BACK, COMMIT, ALL],
    "an error in a savepoint": [ONE, SAVEPOINT, FAILS, BACK, TWO, COMMIT, ALL],
    "a duplicate key in a savepoint": [ONE, SAVEPOINT, ONE, BACK, RELEASE, TWO, COMMIT, ALL],
    "a savepoint in an aborted transaction": [FAILS, SAVEPOINT, ROLLBACK, ALL],
    "a savepoint nobody made": [ONE, BACK, ROLLBACK, ALL],
    "a release of a savepoint nobody made": [ONE, "RELEASE b", ROLLBACK, ALL],
    "a release of a savepoint that is gone": [ONE, SAVEPOINT, TWO, RELEASE, RELEASE, ROLLBACK, ALL],
    "savepoints of one name": [SAVEPOINT, ONE, SAVEPOINT, TWO, BACK, RELEASE, ALL, BACK, ALL, COMMIT, ALL],
    "an inner savepoint is gone with its outer": [ONE, SAVEPOINT, "SAVEPOINT b", TWO, BACK, "RELEASE b", ROLLBACK],
    "a quoted name": [ONE, 'SAVEPOINT "A b"', TWO, 'ROLLBACK TO "A b"', ALL, COMMIT, ALL],
    "a setting": ["SET LOCAL work_mem = '65kB'", "SHOW work_mem", COMMIT, "SHOW work_mem"],
    "a setting undone": [ALL, SAVEPOINT, "SET LOCAL work_mem = '65kB'", ALL, BACK, "SHOW work_mem", ROLLBACK],
    "a COMMIT as text": [ONE, "COMMIT", TWO, ROLLBACK, ALL],
    "a ROLLBACK as text": [ONE, "ROLLBACK", TWO, COMMIT, ALL],
    "a ROLLBACK TO with a comment": [ONE, SAVEPOINT, TWO, "ROLLBACK TO a -- back", COMMIT, ALL],
    "a release behind an inner one undone as text": [
        *(ONE, SAVEPOINT, "SAVEPOINT b", TWO, "ROLLBACK TO a; SELECT 1", "RELEASE b", ROLLBACK, ALL),
    ],
    "several statements at once": ["INSERT INTO item VALUES (1); INSERT INTO item VALUES (2)", ALL, COMMIT, ALL],
    "several statements, one of them bad": ["INSERT INTO item VALUES (1); SELECT 1/0", ALL, ROLLBACK, ALL],
    "several statements with parameters": [("SELECT %s; SELECT 1", (1,)), ROLLBACK, ALL],
    "a syntax error behind a savepoint": [ONE, SAVEPOINT, "SELEC", BACK, TWO, COMMIT, ALL],
    "a syntax error at first": ["SELEC", ONE, ROLLBACK, ONE, COMMIT, ALL],
    "a syntax error with parameters": [ONE, SAVEPOINT, ("SELECT %s FROM", (1,)), BACK, TWO, COMMIT, ALL],
    "nothing": ["", ONE, COMMIT, ALL],
    "a comment": ["-- nothing", ONE, COMMIT, ALL],
    "a commented read": ["/* view */ SELECT 1", "-- view\nSELECT 2", COMMIT],
    "what cannot be adapted": [ONE, SAVEPOINT, ("SELECT %s", (object(),)), BACK, TWO, COMMIT, ALL],
    "what cannot be adapted, at first": [("SELECT %s", (object(),)), ONE, COMMIT, ALL],
    "too few parameters": [("SELECT %s, %s", (1,)), ONE, COMMIT, ALL],
    "too many parameters for libpq": [ONE, SAVEPOINT, (f"SELECT {'%s,' * 70000} 1", (1,) * 70000), BACK, COMMIT, ALL],
    "DDL": ["CREATE TABLE other ()", SAVEPOINT, "DROP TABLE other", BACK, "SELECT * FROM other", COMMIT],
    "a table made of a read": [("SELECT %s::int AS x INTO other", (1,)), "SELECT * FROM other", ROLLBACK],
    "LISTEN": ["LISTEN x", COMMIT],
    "an encoding": [ONE, SAVEPOINT, "SET client_encoding TO latin1", BACK, ("SELECT %s", ("ä",)), COMMIT],
    "an encoding behind a comment": [SAVEPOINT, "/**/ SET NAMES 'latin1'", BACK, ("SELECT %s", ("ä",)), COMMIT],
    "an encoding by a function": [
        *(ONE, SAVEPOINT, "SELECT set_config('client_encoding', 'latin1', true)", BACK, ("SELECT %s", ("ä",)), COMMIT),
    ],
    "an encoding of the transaction": ["SET LOCAL client_encoding = 'latin1'", ("SELECT %s", ("ä",)), COMMIT],
    "an empty transaction": [COMMIT, ROLLBACK, SAVEPOINT, COMMIT, SAVEPOINT, ROLLBACK, ALL],
    "BEGIN as text": ["BEGIN", ONE, COMMIT, ALL],
    "a chain": [ONE, SAVEPOINT, TWO, "COMMIT AND CHAIN", BACK, ROLLBACK, ALL],
    "a cursor by hand": [("DECLARE c CURSOR FOR SELECT 1 UNION SELECT 2", ()), "FETCH 1 FROM c", "CLOSE c", COMMIT],
    "a deferred constraint": [
        "CREATE TABLE late (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        *("INSERT INTO late VALUES (1)", "INSERT INTO late VALUES (1)", COMMIT, ALL),
    ],
}


@pytest.fixture
def database(postgres: PostgreSQLDatabase) -> PostgreSQLDatabase:
    """A database with the table."""
    postgres.execute(TABLE)
    return postgres


@pytest.fixture
def told(database: PostgreSQLDatabase) -> Iterator[Told]:
    """A riding connection."""
    with riding(database.driverless_url) as told:
        yield told


@pytest.fixture
def reader(database: PostgreSQLDatabase) -> Iterator[Told]:
    """One that starts read-only."""
    with riding(database.driverless_url, is_reader=True) as told:
        yield told


def answers(told: list[tuple[Step, object, str]]) -> list[object]:
    """The answers alone."""
    return [answer for _, answer, _ in told]


@pytest.mark.parametrize("is_reader", [False, True], ids=["", "read-only at start"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_same_answers(database: PostgreSQLDatabase, program: str, is_reader: bool) -> None:
    """Each step answers the same, leaves the same status, and the same is committed."""
    with plain(database.driverless_url) as expected:
        wanted = expected.tell(*PROGRAMS[program])
    database.clear()
    database.execute(TABLE)

    with riding(database.driverless_url, is_reader=is_reader) as told:
        assert told.tell(*PROGRAMS[program]) == wanted


def test_the_tag_of_what_waits(database: PostgreSQLDatabase) -> None:
    """It is the one that the server will give."""
    tags: list[list[str | None]] = []
    for side in (plain, riding):
        with side(database.driverless_url) as told:
            tags.append([])
            for step in (SAVEPOINT, ONE, SAVEPOINT, "SET LOCAL my.setting = 'one'", BACK, RELEASE, ROLLBACK, RELEASE):
                told.tell(step)
                tags[-1].append(told.cursor.statusmessage)

    assert tags[0] == tags[1]
    assert tags[0][:3] == ["SAVEPOINT", "INSERT 0 1", "SAVEPOINT"]


@pytest.mark.parametrize("program", [[ONE, FAILS], [FAILS], [ONE, SAVEPOINT, FAILS]])
def test_commit_of_an_aborted_transaction(told: Told, program: list[Step]) -> None:
    """It raises, and the connection is usable afterwards."""
    told.tell(*program)

    with pytest.raises(errors.InFailedSqlTransaction, match="rolled it back"):
        told.connection.commit()
    assert told.tell(ALL) == [(ALL, [], "INTRANS")]


def test_a_setting_that_is_refused(told: Told) -> None:
    """Its error comes with the statement that carries it, at the latest with COMMIT, and nothing is kept."""
    bad = "SET LOCAL work_mem = 'much'"

    assert answers(told.tell(bad, ONE, COMMIT)) == [-1, "InvalidParameterValue", "InFailedSqlTransaction"]
    assert answers(told.tell(ONE, bad, COMMIT, ROLLBACK, ALL)) == [1, -1, "InvalidParameterValue", None, []]
    assert answers(told.tell(bad, COMMIT, ALL)) == [-1, "InvalidParameterValue", []]


def test_a_savepoint_behind_a_setting_that_is_refused(told: Told) -> None:
    """It was not made, and nobody may go back to it."""
    told.tell("SET LOCAL work_mem = '-1'", SAVEPOINT)

    assert answers(told.tell(ALL, BACK)) == ["InvalidParameterValue", "InvalidSavepointSpecification"]


def test_a_failed_read_without_a_transaction(reader: Told) -> None:
    """The program is in a failed transaction, for the server as well as soon as it is asked anything."""
    riding_connection(reader).riders.harmless_query = FAILS[0]
    steps: list[Step] = [FAILS, SAVEPOINT, ALL]

    assert [answer[1:] for answer in reader.tell(*steps)] == [
        ("DivisionByZero", "INERROR"),
        ("InFailedSqlTransaction", "INERROR"),
        ("InFailedSqlTransaction", "INERROR"),
    ]
    assert [answer[1:] for answer in reader.tell(ROLLBACK, ONE, COMMIT)] == [
        (None, "IDLE"),
        (1, "INTRANS"),
        (None, "IDLE"),
    ]


def test_a_batch_behind_a_failed_read_without_a_transaction(reader: Told) -> None:
    """It fails as well."""
    riding_connection(reader).riders.harmless_query = FAILS[0]
    reader.tell(FAILS)

    with pytest.raises(errors.InFailedSqlTransaction):
        reader.cursor.executemany("INSERT INTO item VALUES (%s)", [(1,)])


def test_commit_of_a_failed_read_without_a_transaction(reader: Told) -> None:
    """It raises as for any other transaction that has failed."""
    riding_connection(reader).riders.harmless_query = FAILS[0]
    assert [answer[1:] for answer in reader.tell(FAILS, COMMIT, ONE, COMMIT)] == [
        ("DivisionByZero", "INERROR"),
        ("InFailedSqlTransaction", "IDLE"),
        (1, "INTRANS"),
        (None, "IDLE"),
    ]


def test_a_write_that_was_told_to_be_a_read(reader: Told, database: PostgreSQLDatabase) -> None:
    """The server refuses it."""
    riding_connection(reader).riders.harmless_query = ONE[0]

    assert reader.tell(ONE) == [(ONE, "ReadOnlySqlTransaction", "INERROR")]
    assert database.rows("SELECT * FROM item") == []


def test_attributes_in_a_transaction_that_waits(told: Told) -> None:
    """They cannot be changed, as if it had been begun."""
    told.tell(SAVEPOINT)

    with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now"):
        told.connection.autocommit = True
    with pytest.raises(psycopg.ProgrammingError, match="can't start two-phase transaction"):
        told.connection.tpc_begin("x")


def test_two_phase(told: Told, database: PostgreSQLDatabase) -> None:
    """Psycopg drives it; statements and savepoints in it ride."""
    assert told.connection.tpc_recover() == []
    told.connection.tpc_begin("x")
    told.tell(ONE, SAVEPOINT, TWO, BACK)
    told.connection.tpc_prepare()
    told.connection.tpc_commit()

    assert database.rows("SELECT id FROM item") == [(1,)]
    assert told.tell(TWO, COMMIT, ALL)[-1][1] == [(1,), (2,)]


def test_copy_behind_a_savepoint(told: Told, database: PostgreSQLDatabase) -> None:
    """What waits goes ahead."""
    told.tell(SAVEPOINT)
    with told.cursor.copy("COPY item FROM STDIN") as copy:
        copy.write_row((1, "one"))
    told.tell(BACK)
    with told.cursor.copy("COPY item FROM STDIN") as copy:
        copy.write_row((2, "two"))
    told.tell(COMMIT)

    assert database.rows("SELECT id FROM item") == [(2,)]


def test_a_named_cursor(told: Told) -> None:
    """What waits goes ahead of its DECLARE and of each FETCH and CLOSE."""
    told.tell(ONE, TWO, SAVEPOINT)
    with told.connection.cursor("c") as cursor:
        cursor.execute("SELECT id FROM item ORDER BY id")
        assert cursor.fetchone() == (1,)
        told.tell("SAVEPOINT b")
        assert cursor.fetchone() == (2,)
        told.tell(FAILS, "ROLLBACK TO b")
    assert told.tell("SELECT name FROM pg_cursors") == [("SELECT name FROM pg_cursors", [], "INTRANS")]


@pytest.mark.parametrize("use", ["fetchone", "fetchmany", "fetchall", "scroll", "close"])
@pytest.mark.parametrize("end", [COMMIT, ROLLBACK])
def test_a_named_cursor_that_is_used_after_its_transaction(told: Told, end: str, use: str) -> None:
    """It is refused or closed without a word to the server, in whose next transaction it would be an error."""
    cursor = told.connection.cursor("c", scrollable=True)
    cursor.execute("SELECT 1 UNION SELECT 2")
    told.tell(end, ONE)

    if use == "close":
        cursor.close()
        cursor = told.connection.cursor("c")
    else:
        with pytest.raises(psycopg.errors.InvalidCursorName, match="'c' is gone: its transaction has ended"):
            getattr(cursor, use)(*[1][: use == "scroll"])

    assert answers(told.tell(ALL)) == [[(1,)]]
    cursor.execute("SELECT 3")  # of the same name, in this transaction
    assert cursor.fetchall() == [(3,)]
    cursor.close()


def test_stream(told: Told) -> None:
    """What waits goes ahead."""
    told.tell(ONE, SAVEPOINT, TWO, BACK)

    assert list(told.cursor.stream("SELECT id FROM item")) == [(1,)]


@pytest.mark.parametrize("factory", [ClientCursor, RawCursor])
def test_cursors_that_send_in_their_own_way(told: Told, factory: type[psycopg.Cursor[Any]]) -> None:
    """What waits goes ahead of theirs."""
    told.tell(ONE, SAVEPOINT, TWO, BACK)
    with factory(told.connection) as cursor:
        assert cursor.execute("SELECT id FROM item").fetchall() == [(1,)]
        cursor.execute("SAVEPOINT b")
        cursor.execute("INSERT INTO item VALUES (3)")

    assert answers(told.tell("ROLLBACK TO b", ALL)) == [-1, [(1,)]]


def test_a_savepoint_that_another_kind_of_cursor_has_ended(told: Told) -> None:
    """It is not known any more: to end it again is an error, which COMMIT would drop."""
    told.tell(ONE, SAVEPOINT, TWO)
    with ClientCursor(told.connection) as cursor:
        cursor.execute(RELEASE)

    assert answers(told.tell(RELEASE)) == ["InvalidSavepointSpecification"]


def test_a_cursor_class_of_the_application(database: PostgreSQLDatabase) -> None:
    """It keeps what it does, and its statements ride."""

    class Shouting(psycopg.Cursor[Any]):
        def fetchall(self) -> list[Any]:
            return [*super().fetchall(), "!"]

    with riding(database.driverless_url, cursor_factory=Shouting, row_factory=dict_row) as told:
        assert isinstance(told.cursor, Shouting)
        assert isinstance(told.cursor, RidingCursor)
        assert told.tell("SELECT 1 AS x")[0][1] == [{"x": 1}, "!"]


def test_the_user_s_pipeline(told: Told, database: PostgreSQLDatabase) -> None:
    """It begins behind what waits."""
    told.tell(ONE, SAVEPOINT, TWO, BACK)
    with told.connection.pipeline():
        told.tell(TWO, ALL)
        assert told.cursor.fetchall() == [(1,), (2,)]
    told.tell(COMMIT)

    assert database.rows("SELECT count(*) FROM item") == [(2,)]


def test_a_batch_that_fails(told: Told) -> None:
    """What waited was sent with it."""
    told.tell(ONE, SAVEPOINT)
    with pytest.raises(errors.UniqueViolation):
        told.cursor.executemany("INSERT INTO item VALUES (%s)", [(5,), (1,)])

    assert answers(told.tell(BACK, ALL, COMMIT)) == [-1, [(1,)], None]


def test_a_batch_that_cannot_be_adapted(told: Told) -> None:
    """The transaction stands as on a plain connection."""
    told.tell(SAVEPOINT)
    with pytest.raises(psycopg.ProgrammingError, match="cannot adapt"):
        told.cursor.executemany("INSERT INTO item VALUES (%s)", [(5,), (object(),)])

    assert answers(told.tell(BACK, ALL, COMMIT)) == [-1, [], None]


def test_the_blocks_of_psycopg(told: Told) -> None:
    """They nest into what was told before."""
    told.tell(ONE, SAVEPOINT)
    with contextlib.suppress(errors.DivisionByZero), told.connection.transaction():
        told.cursor.execute(*FAILS)
    told.tell(TWO, BACK)

    assert answers(told.tell(ALL, COMMIT)) == [[(1,)], None]


def test_a_connection_that_the_server_has_ended(told: Told, database: PostgreSQLDatabase) -> None:
    """The error is what the server has said, and the connection is closed."""
    pid = told.connection.info.backend_pid
    told.tell(SAVEPOINT)
    database.kill(pid)

    with pytest.raises(psycopg.OperationalError, match="terminating connection"):
        told.cursor.execute(*ONE)
    assert told.connection.closed
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        told.cursor.execute(*ONE)


def test_a_closed_cursor_and_a_closed_connection(told: Told) -> None:
    """They take no rider."""
    told.cursor.close()
    with pytest.raises(psycopg.InterfaceError, match="the cursor is closed"):
        told.cursor.execute(SAVEPOINT)
    cursor = told.connection.cursor()
    told.connection.close()
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        cursor.execute(SAVEPOINT)
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        told.connection.commit()


@pytest.mark.timeout(600)
@pytest.mark.skipif(psycopg.pq.__impl__ == "python", reason="This is it.")
@pytest.mark.skipif(find_library("pq") is None, reason="The Python implementation needs a libpq of the system's.")
def test_the_other_implementation(database: PostgreSQLDatabase) -> None:
    """All of it holds with psycopg's Python implementation, on the system's libpq."""
    folder = Path(__file__).parent
    files = [str(path) for path in folder.glob("test_psycopg*.py") if not path.name.startswith("test_psycopg2")]
    environment = os.environ | {"PSYCOPG_IMPL": "python", SERVER_VARIABLE: database.driverless_url}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    root = folder.parent.parent

    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=500)

    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-1000:]
