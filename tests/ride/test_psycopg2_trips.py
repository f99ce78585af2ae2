"""How many trips psycopg2's statements take when they ride, and what goes with what."""

import datetime
import decimal
import math
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy as sa
from psycopg2 import sql
from psycopg2.extras import NumericRange

from flask_uow._ride import ride
from flask_uow._ride._psycopg2 import RidingConnection
from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import LISTEN, Proxy
from tests.ride.conftest import MakeConnection

INSERT = "INSERT INTO t VALUES (%s, 'a')"
READ_ONLY = "-c default_transaction_read_only=on"


def run(connection: Any, statement: Any, *values: object) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement, values or {})
    return cursor


def prove(connection: Any, proxy: Proxy) -> None:
    """Let the server run INSERT once, so that a savepoint may ride in front of it."""
    run(connection, INSERT, 1000)
    connection.rollback()
    proxy.requests()


def test_begin_rides(riding: RidingConnection, proxy: Proxy) -> None:
    """A write waits twice."""
    cursor = run(riding, INSERT, 1)
    assert (cursor.rowcount, cursor.statusmessage) == (1, "INSERT 0 1")
    assert cursor.query == b"INSERT INTO t VALUES (1, 'a')"
    run(riding, "SELECT 1")
    riding.commit()

    assert proxy.requests() == ["BEGIN;\nINSERT INTO t VALUES (1, 'a')", "SELECT 1", "COMMIT"]


def test_characteristics_ride(riding: RidingConnection, proxy: Proxy) -> None:
    """An isolation level costs nothing, nor does taking it back."""
    riding.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
    run(riding, "SELECT 1")
    riding.commit()
    riding.isolation_level = None
    riding.readonly = riding.deferrable = None
    run(riding, "SELECT 1")
    riding.rollback()

    assert proxy.requests() == [
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;\nSELECT 1",
        "COMMIT",
        "BEGIN;\nSELECT 1",
        "ROLLBACK",
    ]


def test_three_savepoints_ride(riding: RidingConnection, proxy: Proxy) -> None:
    """An insert and three savepoints with one each: five trips."""
    prove(riding, proxy)
    run(riding, INSERT, 0)
    for number in (1, 2, 3):
        run(riding, "SAVEPOINT a")
        run(riding, INSERT, number)
        run(riding, "RELEASE SAVEPOINT a")
    riding.commit()

    assert [request.split("\n")[0] for request in proxy.requests()] == [
        "BEGIN;",
        "SAVEPOINT a;",
        "RELEASE SAVEPOINT a; SAVEPOINT a;",
        "RELEASE SAVEPOINT a; SAVEPOINT a;",
        "COMMIT",
    ]


def test_rollback_to_rides_after_an_error(riding: RidingConnection, proxy: Proxy, postgres: PostgreSQLDatabase) -> None:
    """Insert, a savepoint that meets a duplicate key, insert: four trips."""
    prove(riding, proxy)
    run(riding, INSERT, 1)
    run(riding, "SAVEPOINT a")
    with pytest.raises(psycopg2.errors.UniqueViolation, match="duplicate key"):
        run(riding, INSERT, 1)
    assert riding.get_transaction_status() == 3
    run(riding, "ROLLBACK TO SAVEPOINT a")
    assert riding.get_transaction_status() == riding.info.transaction_status == 2
    run(riding, INSERT, 2)
    riding.commit()

    assert len(proxy.requests()) == 4
    assert postgres.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


def test_savepoint_goes_ahead_of_a_text_that_was_never_run(riding: RidingConnection, proxy: Proxy) -> None:
    """A text that cannot be parsed would take the savepoint with it."""
    run(riding, "SELECT 'before'")
    run(riding, "SAVEPOINT a")
    with pytest.raises(psycopg2.errors.SyntaxError, match="SELEC"):
        run(riding, "SELEC 'nonsense'")
    run(riding, "ROLLBACK TO a")
    run(riding, "SELECT 'after'")
    riding.commit()

    assert proxy.requests() == [
        "BEGIN;\nSELECT 'before'",
        "SAVEPOINT a",
        "SELEC 'nonsense'",
        "ROLLBACK TO a;\nSELECT 'after'",
        "COMMIT",
    ]


def test_release_goes_ahead_of_a_text_that_was_never_run(riding: RidingConnection, proxy: Proxy) -> None:
    """Refused with the text, it would leave a savepoint that the program has released."""
    prove(riding, proxy)
    run(riding, "SAVEPOINT a")
    run(riding, INSERT, 1)
    run(riding, "RELEASE a")
    with pytest.raises(psycopg2.errors.SyntaxError, match="SELEC"):
        run(riding, "SELEC 'nonsense'")
    with pytest.raises(psycopg2.errors.InvalidSavepointSpecification, match="does not exist"):
        run(riding, "ROLLBACK TO a")
    riding.rollback()

    assert proxy.requests()[1:3] == ["RELEASE a", "SELEC 'nonsense'"]


@pytest.mark.parametrize(
    ("text", "sound", "unsound"),
    [
        ("SELECT 1 WHERE 1 IN %s", (1, 2), ()),
        ("SELECT 1 WHERE now() > DATE %s", "2020-01-01", None),
        ("SELECT now() - INTERVAL %s", "3 days", 3),
        ("SELECT true IS %s", True, 5),
        ("SELECT extract(%s FROM now())", "year", None),
        ("NOTIFY channel, %s", "payload", None),
        ("SELECT '1'::float(%s)", 1, 2**31),
        ("SELECT '1'::float(%s)", 1, -1),
        ("SELECT '1'::float(%s)", decimal.Decimal(1), decimal.Decimal("1.5")),
        ("SET LOCAL my.setting = %s", 1.5, math.nan),
        ("SET LOCAL my.setting = %s", [], [1]),
        ("SET LOCAL my.setting = %s", NumericRange(1, 2), NumericRange(1, math.nan)),
        ("SELECT %s (1)", datetime.timedelta(1), 1.5),
    ],
)
def test_savepoint_goes_ahead_of_parameters_that_change_the_grammar(
    riding: RidingConnection, proxy: Proxy, text: str, sound: object, unsound: object
) -> None:
    """An empty tuple, say, or NULL, is a syntax error in a text that was fine before."""
    run(riding, text, sound)
    run(riding, "SAVEPOINT a")
    with pytest.raises(psycopg2.errors.SyntaxError, match=r"syntax error|unterminated"):
        run(riding, text, unsound)
    run(riding, "ROLLBACK TO a")
    run(riding, text, sound)
    riding.commit()

    assert "SAVEPOINT a" in proxy.requests()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("INSERT INTO t VALUES (%s, %s)", [(1, "a"), (2, None), (3, "\\")]),
        (
            "INSERT INTO t (id, name) SELECT p0, p1 FROM (VALUES (%s, %s, 0), (9, 'a', 1)) AS p (p0, p1, p2)",
            [(1, None)],
        ),
        ("SELECT %s::int[]", [([1, 2],), ([3, None],)]),
        ("SELECT %s::int4range @> 1", [(NumericRange(1, 2),), (NumericRange(None, 5, "[]"),)]),
        ("SELECT %s /* " + "long " * 1000 + "*/", [(1,), (2,)]),
    ],
)
def test_savepoint_rides_with_parameters_that_leave_the_grammar(
    riding: RidingConnection, proxy: Proxy, text: str, values: list[tuple[object, ...]]
) -> None:
    """Values of a row may be NULL or not; lists, ranges and long texts are as good as others."""
    run(riding, text, *values[0])
    riding.rollback()
    proxy.requests()
    for each in values:
        run(riding, "SAVEPOINT a")
        run(riding, text, *each)
        riding.rollback()

    assert len(proxy.requests()) == 2 * len(values)


def test_parameters_of_another_shape_cost_a_trip_once(riding: RidingConnection, proxy: Proxy) -> None:
    """From then on the server is known to take them as well."""
    trips = []
    for value in ("a", "b", None, "c", None):
        before = riding.trips
        run(riding, "SAVEPOINT a")
        run(riding, "SELECT %s IS NULL", value)
        trips.append(riding.trips - before)

    assert trips == [2, 1, 2, 1, 1]
    assert sum(trips) == len(proxy.requests())


def test_savepoint_in_which_nothing_was_said_costs_nothing(riding: RidingConnection, proxy: Proxy) -> None:
    """It was never there."""
    run(riding, "SAVEPOINT a")
    run(riding, "RELEASE a")
    riding.commit()
    assert proxy.requests() == []


def test_rollback_to_goes_with_commit(riding: RidingConnection, proxy: Proxy, postgres: PostgreSQLDatabase) -> None:
    """Dropped, it would commit what was rolled back."""
    prove(riding, proxy)
    run(riding, INSERT, 1)
    run(riding, "SAVEPOINT a")
    run(riding, INSERT, 2)
    run(riding, "ROLLBACK TO a")
    riding.commit()

    assert proxy.requests()[-1] == "ROLLBACK TO a; COMMIT"
    assert postgres.rows("SELECT id FROM t") == [(1,)]


def test_bad_setting_is_an_error_at_commit(riding: RidingConnection, postgres: PostgreSQLDatabase) -> None:
    """A setting that nothing came behind is not dropped, and its error leaves no transaction."""
    run(riding, INSERT, 1)
    run(riding, "SET LOCAL statement_timeout = 'soon'")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="statement_timeout"):
        riding.commit()

    assert riding.get_transaction_status() == 0
    assert postgres.rows("SELECT id FROM t") == []


def test_timeout_rides_and_counts_from_its_statement(riding: RidingConnection, proxy: Proxy) -> None:
    """SERIALIZABLE and a timeout on one statement: two trips."""
    riding.isolation_level = "SERIALIZABLE"
    run(riding, "SET LOCAL statement_timeout = '50ms'")
    with pytest.raises(psycopg2.errors.QueryCanceled, match="statement timeout"):
        run(riding, "SELECT pg_sleep(10)")
    riding.rollback()

    assert len(proxy.requests()) == 2
    assert run(riding, "SHOW statement_timeout").fetchone() == ("0",)


def test_setting_that_was_once_sent_alone_rides_all_the_same(riding: RidingConnection, proxy: Proxy) -> None:
    """A used cursor still shows its last result, so that nothing waits that it is told."""
    setting = "SET LOCAL statement_timeout = '5s'"
    cursor = run(riding, "SELECT 1")
    cursor.execute(setting)
    with pytest.raises(psycopg2.ProgrammingError, match="no results"):
        cursor.fetchone()
    riding.rollback()
    run(riding, setting)
    run(riding, "SELECT 1")
    riding.rollback()

    assert proxy.requests()[1:] == [setting, "ROLLBACK", f"BEGIN; {setting};\nSELECT 1", "ROLLBACK"]


@pytest.mark.parametrize("send", ["executemany", "execute_batch", "execute_values", "bytes", "Composed"])
def test_batches_carry_on_their_first(riding: RidingConnection, proxy: Proxy, send: str) -> None:
    """BEGIN rides in front of the first of many."""
    rows = [(1, "a;"), (2, "%s"), (3, "é")]
    cursor = riding.cursor()
    expected = 1
    if send == "executemany":
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
        assert cursor.rowcount == expected + 2
        assert cursor.query == "INSERT INTO t VALUES (3, 'é')".encode()
        expected = 3
    elif send == "execute_batch":
        psycopg2.extras.execute_batch(cursor, "INSERT INTO t VALUES (%s, %s)", rows)
    elif send == "execute_values":
        found = psycopg2.extras.execute_values(cursor, "INSERT INTO t VALUES %s RETURNING id", rows, fetch=True)
        assert found == [(1,), (2,), (3,)]
    elif send == "bytes":
        cursor.execute("INSERT INTO t VALUES (%s, 'é')".encode(), (1,))
    else:
        cursor.execute(sql.SQL("INSERT INTO {} VALUES (%s, 'a')").format(sql.Identifier("t")), (1,))
    riding.commit()

    requests = proxy.requests()
    assert len(requests) == expected + 1
    assert requests[0].startswith("BEGIN;\nINSERT")


def test_executemany_of_nothing_begins_nothing(riding: RidingConnection, proxy: Proxy) -> None:
    """As with the plain driver, no transaction is open after it."""
    riding.cursor().executemany("INSERT INTO t VALUES (%s)", [])

    assert riding.get_transaction_status() == 0
    assert riding.status == psycopg2.extensions.STATUS_READY
    assert proxy.requests() == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_read_that_was_announced_and_never_sent_is_forgotten(connect: MakeConnection, proxy: Proxy, end: str) -> None:
    """A class of cursors may refuse it; the next transaction's statement of that text may be another matter."""
    riding = connect(options=READ_ONLY)
    riding.riders.harmless_query = "SELECT 1"
    getattr(riding, end)()
    run(riding, "SELECT 1")

    assert proxy.requests() == ["BEGIN READ WRITE;\nSELECT 1"]


def test_read_needs_no_transaction_where_the_server_forbids_writes(connect: MakeConnection, proxy: Proxy) -> None:
    """One trip, and a write in its place is refused."""
    riding = connect(options=READ_ONLY)
    assert riding.is_read_only_at_start
    riding.riders.harmless_query = "SELECT 1"
    run(riding, "SELECT 1")
    assert riding.riders.harmless_query is None
    assert riding.get_transaction_status() == 2
    riding.commit()
    assert proxy.requests() == ["SELECT 1"]

    riding.riders.harmless_query = INSERT
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction, match="INSERT"):
        run(riding, INSERT, 1)
    assert riding.get_transaction_status() == 3
    with pytest.raises(psycopg2.errors.InFailedSqlTransaction, match="aborted"):
        run(riding, "SELECT 1")
    riding.rollback()
    proxy.requests()

    run(riding, INSERT, 1)
    riding.commit()
    riding.readonly = True
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction, match="INSERT"):
        run(riding, INSERT, 2)
    riding.rollback()
    assert [request.split("\n")[0] for request in proxy.requests()] == [
        "BEGIN READ WRITE;",
        "COMMIT",
        "BEGIN READ ONLY;",
        "ROLLBACK",
    ]


@pytest.mark.parametrize("told", ["SET LOCAL x.y = 1", "SAVEPOINT a"])
def test_read_takes_a_transaction_where_something_needs_one(connect: MakeConnection, proxy: Proxy, told: str) -> None:
    """A setting of the transaction, or a savepoint, rides as ever."""
    riding = connect(options=READ_ONLY)
    run(riding, told)
    riding.riders.harmless_query = "SELECT 1"
    run(riding, "SELECT 1")
    riding.commit()

    assert proxy.requests()[0].startswith(f"BEGIN READ WRITE; {told}")


def test_read_takes_a_transaction_where_a_function_has_allowed_writes(connect: MakeConnection, proxy: Proxy) -> None:
    """Nobody sees that in a text, but the server tells."""
    riding = connect(options=READ_ONLY)
    setting = "set_config('default_transaction_' || 'read_only', 'off', false)"
    run(riding, f"CREATE FUNCTION allow() RETURNS text LANGUAGE sql AS $$ SELECT {setting} $$")
    run(riding, "SELECT allow()")
    riding.commit()
    proxy.requests()
    riding.riders.harmless_query = "SELECT 1"
    run(riding, "SELECT 1")
    riding.rollback()

    assert proxy.requests() == ["BEGIN READ WRITE;\nSELECT 1", "ROLLBACK"]


def test_script_that_ends_a_failed_transaction(connect: MakeConnection) -> None:
    """Nothing is sent ahead of it that the failed transaction would refuse."""
    riding = connect(options=READ_ONLY)
    with pytest.raises(psycopg2.errors.DivisionByZero):
        run(riding, "SELECT 1 / 0")
    run(riding, "ROLLBACK; BEGIN READ WRITE")
    run(riding, INSERT, 1)
    riding.commit()

    assert run(riding, "SELECT count(*) FROM t").fetchone() == (1,)


def test_read_alone_that_could_not_be_sent_has_not_failed(connect: MakeConnection, proxy: Proxy) -> None:
    """The server was asked nothing, and what comes next runs."""
    riding = connect(options=READ_ONLY)
    for statement in ("SELECT 1", "SELECT 2"):
        riding.riders.harmless_query = "SELECT %s"
        with pytest.raises(psycopg2.ProgrammingError, match="adapt"):
            run(riding, "SELECT %s", object())
        assert riding.get_transaction_status() == (0 if statement == "SELECT 1" else 2)
        run(riding, statement)
    riding.commit()

    assert proxy.requests() == ["BEGIN READ WRITE;\nSELECT 1", "SELECT 2", "COMMIT"]


def test_label_is_dropped_by_a_read_without_a_transaction(connect: MakeConnection, proxy: Proxy) -> None:
    """It goes along with a BEGIN, and only with one."""
    riding = connect(options=READ_ONLY)
    for needs_none in (True, False):
        riding.riders.add(["SET LOCAL application_name = 'view'"])
        riding.riders.harmless_query = "SELECT 1" if needs_none else None
        run(riding, "SELECT 1")
        riding.commit()

    assert proxy.requests() == [
        "SELECT 1",
        "BEGIN READ WRITE; SET LOCAL application_name = 'view';\nSELECT 1",
        "COMMIT",
    ]


def test_autocommit_writes_in_spite_of_the_start_option(connect: MakeConnection, proxy: Proxy) -> None:
    """The default is switched off ahead of what may write, and on again before a read relies on it."""
    riding = connect(options=READ_ONLY)
    riding.autocommit = True
    run(riding, "SELECT 1")
    run(riding, INSERT, 1)
    run(riding, INSERT, 2)
    riding.autocommit = False
    riding.riders.harmless_query = "SELECT 1"
    run(riding, "SELECT 1")
    riding.commit()

    assert [request.split(" TO ")[0].split("(")[0] for request in proxy.requests()] == [
        "SELECT 1",
        "SET default_transaction_read_only",
        "INSERT INTO t VALUES ",
        "INSERT INTO t VALUES ",
        "SET default_transaction_read_only",
        "SELECT 1",
    ]


def test_autocommit_sets_back_what_a_text_has_changed(connect: MakeConnection) -> None:
    """The default that it leaves behind is the start option's again, of which transactions must know."""
    riding = connect(options=READ_ONLY)
    run(riding, "SET default_transaction_read_only = off")
    riding.commit()
    run(riding, INSERT, 1)
    riding.commit()
    riding.set_session(autocommit=True, readonly=True)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction, match="INSERT"):
        run(riding, INSERT, 2)
    riding.set_session(autocommit=False, readonly="default")
    run(riding, INSERT, 2)
    riding.commit()

    assert riding.is_read_only_at_start


@pytest.mark.parametrize("reset", ["RESET ALL", "DISCARD ALL", "/* all */ reset default_transaction_read_only"])
def test_autocommit_writes_after_a_reset(connect: MakeConnection, reset: str) -> None:
    """It takes back what the connection said for itself, which is then said again."""
    riding = connect(options=READ_ONLY)
    riding.autocommit = True
    for number in range(3):
        riding.readonly = [None, None, False][number]
        run(riding, INSERT, number)
        run(riding, reset)
    riding.autocommit = False
    for number in range(3, 6):
        run(riding, INSERT, number)
        riding.commit()
        riding.autocommit = True
        run(riding, reset)
        riding.autocommit = False
    riding.readonly = None
    run(riding, "SELECT 1")  # before which the connection may ask what a text has changed
    riding.commit()
    riding.riders.harmless_query = "SELECT count(*) FROM t"
    before = riding.trips

    assert run(riding, "SELECT count(*) FROM t").fetchone() == (6,)
    assert riding.trips == before + 1


@pytest.mark.parametrize("reset", ["RESET ALL; SELECT 1", "DO $$ BEGIN RESET ALL; END $$"])
def test_autocommit_writes_after_a_reset_that_only_the_server_sees(connect: MakeConnection, reset: str) -> None:
    """Its tag is not that of a reset; from PostgreSQL 14 on the server tells the setting by itself."""
    riding = connect(options=READ_ONLY)
    riding.autocommit = True
    for number in range(2):
        run(riding, INSERT, number)
        run(riding, reset)
    run(riding, INSERT, 2)

    assert run(riding, "SELECT count(*) FROM t").fetchone() == (3,)


def test_what_many_texts_or_a_two_phase_transaction_make_read_only_stays_so(connect: MakeConnection) -> None:
    """As with the plain driver."""
    for is_two_phase in (False, True):
        riding = connect(options=READ_ONLY)
        if is_two_phase:
            riding.tpc_begin(riding.xid(1, "global", "branch"))
            run(riding, "SET default_transaction_read_only TO on")
            riding.tpc_commit()
        else:
            riding.cursor().executemany("SET default_transaction_read_only TO %s", [("on",)])
            riding.commit()
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            run(riding, INSERT, 1)


@pytest.mark.parametrize("is_of_many", [False, True], ids=["", "executemany"])
def test_writes_after_a_commit_that_has_failed_as_text(connect: MakeConnection, is_of_many: bool) -> None:
    """The server is in no transaction then, and what follows is none of ours, as with the plain driver."""
    riding = connect(options=READ_ONLY)
    run(riding, "CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    riding.commit()
    for _ in range(2):
        run(riding, "INSERT INTO late VALUES (1)")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        if is_of_many:
            riding.cursor().executemany("COMMIT", [()])
        else:
            run(riding, "COMMIT")
    run(riding, INSERT, 1)
    riding.commit()

    assert run(riding, "SELECT count(*) FROM t").fetchone() == (1,)


ENDLESS = r"SELECT 'a\'"
"""A text that has no end where a backslash quotes what follows it."""


def keeps_work_before(riding: Any) -> bool:
    """Whether the savepoint, and the work before it, outlive the text that has no end."""
    run(riding, INSERT, 1)
    run(riding, "SAVEPOINT a")
    with pytest.raises(psycopg2.errors.SyntaxError, match="unterminated"):
        run(riding, ENDLESS)
    run(riding, "ROLLBACK TO a")
    riding.commit()
    return bool(run(riding, "SELECT count(*) FROM t").fetchone() == (1,))


def test_savepoint_goes_ahead_of_a_text_that_is_read_otherwise_now(riding: RidingConnection) -> None:
    """A backslash has come to quote what follows it."""
    run(riding, ENDLESS)
    riding.commit()
    run(riding, "SET standard_conforming_strings = off")
    riding.commit()

    assert keeps_work_before(riding)


def test_savepoint_goes_ahead_of_a_text_that_another_connection_reads_otherwise(connect: MakeConnection) -> None:
    """There a backslash quotes from the start."""
    run(connect(), ENDLESS)

    assert keeps_work_before(connect(options="-c standard_conforming_strings=off"))


def test_numbers_of_many_digits(riding: RidingConnection) -> None:
    """What PostgreSQL takes, Python refuses to read as an integer."""
    for _ in range(2):
        run(riding, "SAVEPOINT a")
        assert run(riding, "SELECT length(%s::text)", decimal.Decimal("9" * 5000)).fetchone() == (5000,)


@pytest.mark.parametrize("reset", ["RESET ALL", "RESET search_path"])
def test_reset_leaves_what_the_program_has_set(connect: MakeConnection, reset: str) -> None:
    """As with the plain driver, only a RESET of everything takes that back, and it is not said again."""
    shown = []
    for riding in (connect(options=READ_ONLY), connect(None)):
        riding.set_session(isolation_level="SERIALIZABLE", readonly=True, autocommit=True)
        run(riding, reset)
        shown.append(run(riding, "SHOW transaction_isolation").fetchone())

    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "text", ["DO $$ BEGIN PERFORM 1; END $$", "SELECT 'BEGIN;'; SELECT 1 AS start", "COMMIT /* or START */"]
)
def test_reads_after_a_text_that_begins_nothing(connect: MakeConnection, text: str) -> None:
    """A BEGIN in quotes is none, and the next reads still need no transaction."""
    riding = connect(options=READ_ONLY)
    run(riding, text)
    riding.commit()
    for _ in range(2):
        riding.riders.harmless_query = "SELECT 1"
        before = riding.trips
        run(riding, "SELECT 1")
        riding.commit()

    assert riding.trips == before + 1


def test_engine_rides(postgres: PostgreSQLDatabase, proxy: Proxy) -> None:
    """SQLAlchemy's savepoints, isolation levels and pool come through."""
    url = sa.make_url(postgres.url).set(host=LISTEN, port=proxy.port)
    engine = ride(ride(sa.create_engine(url), read_only_at_start=True), read_only_at_start=True)
    insert = sa.text("INSERT INTO n VALUES (:id)")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE n (id int PRIMARY KEY)"))
        connection.execute(insert, {"id": 0})
    proxy.requests()

    with engine.begin() as connection:
        connection.execute(insert, {"id": 1})
        for number in (2, 3, 4):
            with connection.begin_nested():
                connection.execute(insert, {"id": number})
    assert len(proxy.requests()) == 5
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        connection.execute(sa.text("SET LOCAL statement_timeout = '5s'"))
        connection.execute(insert, {"id": 5})
        connection.commit()
    with engine.begin() as connection:
        connection.execute(insert, {"id": 6})
    assert [request.split(" ")[0] for request in proxy.requests()] == ["BEGIN", "COMMIT"] * 2
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert, {"id": 7})
    assert postgres.rows("SELECT count(*) FROM n") == [(8,)]
    engine.dispose()


@pytest.mark.parametrize(
    ("options", "is_read_only"),
    [
        ({}, True),
        ({"options": "-c geqo=off"}, True),
        ({"options": "-c default_transaction_read_only=off"}, False),
        ({"target_session_attrs": "read-write"}, False),
        ({"target_session_attrs": "primary"}, True),
    ],
)
def test_start_option_respects_the_applications_own(
    postgres: PostgreSQLDatabase, options: dict[str, str], is_read_only: bool
) -> None:
    """What the user has asked for stays as it is."""
    engine = ride(sa.create_engine(postgres.url, connect_args=options), read_only_at_start=True)
    with engine.connect() as connection:
        driver_connection: Any = connection.connection.dbapi_connection
        assert isinstance(driver_connection, RidingConnection)
        assert driver_connection.is_read_only_at_start is is_read_only
        if "geqo" in str(options):
            assert connection.execute(sa.text("SHOW geqo")).scalar() == "off"
    engine.dispose()


def test_another_driver_is_left_alone() -> None:
    """SQLite has nothing to ride on."""
    engine = sa.create_engine("sqlite://")
    assert ride(engine) is engine
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1
    engine.dispose()
