"""What statements cost that ride on psycopg 3: each request is one wait."""

from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa

from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import LISTEN, Proxy
from tests.ride.psycopg_bench import COMMIT, ROLLBACK, TABLE, Step, Told, riding, riding_connection

INSERT = "INSERT INTO item VALUES (%s)"
SELECT: Step = ("SELECT %s", (1,))


@pytest.fixture
def url(postgres: PostgreSQLDatabase, proxy: Proxy) -> str:
    """Where the proxy stands before a database with the table."""
    postgres.execute(TABLE)
    url = sa.make_url(postgres.driverless_url).set(host=LISTEN, port=proxy.port)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def told(url: str, proxy: Proxy) -> Iterator[Told]:
    """A riding connection; its start-up is not counted."""
    with riding(url) as told:
        proxy.requests()
        yield told


@pytest.fixture
def reader(url: str, proxy: Proxy) -> Iterator[Told]:
    """One that starts read-only."""
    with riding(url, is_reader=True) as told:
        proxy.requests()
        yield told


def insert(number: int) -> Step:
    """An INSERT of one row."""
    return INSERT, (number,)


def test_a_read(told: Told, proxy: Proxy) -> None:
    """BEGIN rides, the transaction's end does not."""
    told.tell(SELECT, COMMIT)

    assert proxy.requests() == ["BEGIN; SELECT $1", "COMMIT"]


def test_a_write(told: Told, proxy: Proxy) -> None:
    """BEGIN rides."""
    told.tell(insert(1), COMMIT)

    assert proxy.requests() == ["BEGIN; INSERT INTO item VALUES ($1)", "COMMIT"]


@pytest.mark.parametrize(
    "statement",
    [
        *("LOCK TABLE item", "SHOW work_mem", "EXPLAIN SELECT 1", "TABLE item", "TRUNCATE item", "NOTIFY channel"),
        *("SELECT 'a;b'", 'SELECT 1 AS "a;b";', "SELECT $$a;b$$ -- ; c"),
    ],
)
def test_what_else_carries(told: Told, proxy: Proxy, statement: str) -> None:
    """A semicolon in quotes ends no statement."""
    for _ in range(7):
        told.tell(statement, COMMIT)

    assert proxy.requests() == [f"BEGIN; {statement}", "COMMIT"] * 7


def test_a_write_with_three_savepoints(told: Told, proxy: Proxy) -> None:
    """Savepoints cost nothing besides what is said in them."""
    told.tell(insert(0))
    for number in (1, 2, 3):
        told.tell("SAVEPOINT a", insert(number), "RELEASE SAVEPOINT a")
    told.tell(COMMIT)

    assert len(proxy.requests()) == 5


def test_a_savepoint_that_fails(told: Told, proxy: Proxy) -> None:
    """ROLLBACK TO rides behind a duplicate key as well."""
    told.tell(insert(1), "SAVEPOINT a", insert(1), "ROLLBACK TO SAVEPOINT a", insert(2), COMMIT)

    assert len(proxy.requests()) == 4


def test_a_savepoint_in_which_nothing_was_said(told: Told, proxy: Proxy) -> None:
    """It is never sent."""
    told.tell("SAVEPOINT a", "RELEASE SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO SAVEPOINT b", "RELEASE SAVEPOINT b")
    told.tell(insert(1), COMMIT)

    assert proxy.requests() == ["BEGIN; INSERT INTO item VALUES ($1)", "COMMIT"]


def test_serializable_and_a_timeout(told: Told, proxy: Proxy) -> None:
    """The transaction's options and its settings ride; the next transaction has them no more."""
    told.connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    told.tell("SET LOCAL statement_timeout = 1000", insert(1), COMMIT)
    told.connection.isolation_level = None
    told.tell(insert(2), COMMIT)

    assert proxy.requests() == [
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL statement_timeout = 1000; INSERT INTO item VALUES ($1)",
        "COMMIT",
        "BEGIN; INSERT INTO item VALUES ($1)",
        "COMMIT",
    ]


def test_a_batch(told: Told, proxy: Proxy) -> None:
    """BEGIN rides on executemany."""
    told.cursor.executemany(INSERT, [(number,) for number in range(20)])
    told.tell(COMMIT)

    assert len(proxy.requests()) == 2


def test_a_batch_behind_a_failed_savepoint(told: Told, proxy: Proxy) -> None:
    """What else waits rides on executemany too."""
    told.tell(insert(1), "SAVEPOINT a", insert(1), "ROLLBACK TO SAVEPOINT a", "SAVEPOINT b")
    proxy.requests()
    told.cursor.executemany(INSERT, [(2,), (3,)])
    told.tell(COMMIT)

    assert proxy.requests() == [
        "ROLLBACK TO SAVEPOINT a; SAVEPOINT b; " + "; ".join([INSERT.replace("%s", "$1")] * 2),
        "COMMIT",
    ]


def test_a_transaction_without_a_statement(told: Told, proxy: Proxy) -> None:
    """It is never begun."""
    told.tell("SAVEPOINT a", COMMIT, "SAVEPOINT a", ROLLBACK)

    assert proxy.requests() == []


def test_what_is_prepared_stays_so(told: Told, proxy: Proxy) -> None:
    """PREPARE rides; neither a rollback nor a savepoint's undoes it, as nothing was created."""
    for _ in range(4):
        told.tell(SELECT, ROLLBACK, SELECT, "SAVEPOINT a", SELECT, "ROLLBACK TO SAVEPOINT a", COMMIT)

    prepared = told.tell("SELECT name, statement FROM pg_prepared_statements")[0][1]

    assert prepared == [("_pg3_0", "SELECT $1")]
    reads = {"BEGIN; SELECT $1", "SAVEPOINT a; SELECT $1"}
    assert set(proxy.requests()[:-1]) == reads | {"ROLLBACK", "ROLLBACK TO SAVEPOINT a; COMMIT"}


def test_what_is_prepared_behind_ddl(told: Told, proxy: Proxy) -> None:
    """DEALLOCATE rides where a rollback has undone what may have been created."""
    for _ in range(6):
        told.tell(SELECT, COMMIT)
    told.tell("CREATE TABLE other ()", ROLLBACK)
    proxy.requests()
    told.tell(SELECT, COMMIT)

    assert proxy.requests() == ["BEGIN; DEALLOCATE ALL; SELECT $1", "COMMIT"]


def test_reads_without_a_transaction(reader: Told, proxy: Proxy) -> None:
    """A harmless read is one request, as often as it is asked for; the transaction has begun for everybody else."""
    for _ in range(3):
        riding_connection(reader).riders.harmless_query = SELECT[0]
        told = reader.tell(SELECT)
        assert told == [(SELECT, [(1,)], "INTRANS")]
        assert proxy.requests() == ["SELECT $1"]
        reader.tell(COMMIT)

    assert proxy.requests() == []


def test_a_write_after_reads_without_a_transaction(reader: Told, proxy: Proxy) -> None:
    """The BEGIN that waited rides on it, and allows it."""
    riding_connection(reader).riders.harmless_query = SELECT[0]
    reader.tell(SELECT, insert(1), COMMIT)

    assert proxy.requests() == ["SELECT $1", "BEGIN READ WRITE; INSERT INTO item VALUES ($1)", "COMMIT"]


@pytest.mark.parametrize("step", ["SAVEPOINT a", "SET LOCAL statement_timeout = 1000"])
def test_a_read_behind_what_needs_a_transaction(reader: Told, proxy: Proxy, step: str) -> None:
    """BEGIN rides with what waits."""
    reader.connection.read_only = True
    reader.tell(step)
    riding_connection(reader).riders.harmless_query = SELECT[0]
    reader.tell(SELECT, COMMIT)

    assert proxy.requests() == [f"BEGIN READ ONLY; {step}; SELECT $1", "COMMIT"]


def test_a_read_in_a_stricter_isolation(reader: Told, proxy: Proxy) -> None:
    """Its transaction is one."""
    reader.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    riding_connection(reader).riders.harmless_query = SELECT[0]
    reader.tell(SELECT, COMMIT)

    assert proxy.requests() == ["BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; SELECT $1", "COMMIT"]


def test_a_read_where_the_server_is_not_read_only(told: Told, proxy: Proxy) -> None:
    """Nothing but a transaction would keep a read from writing."""
    riding_connection(told).riders.harmless_query = SELECT[0]
    told.tell(SELECT, COMMIT)

    assert proxy.requests() == ["BEGIN; SELECT $1", "COMMIT"]


def test_the_flag_is_for_one_statement(reader: Told, proxy: Proxy) -> None:
    """The next statement is in a transaction, whatever became of the first."""
    riding_connection(reader).riders.harmless_query = "SELECT %s"
    reader.tell(("SELECT %s", (object(),)), COMMIT)
    reader.tell(SELECT, COMMIT)
    assert proxy.requests() == ["BEGIN READ WRITE; SELECT $1", "COMMIT"]
    riding_connection(reader).riders.harmless_query = "SHOW timezone"
    reader.tell("SHOW timezone", COMMIT)
    proxy.requests()
    reader.tell(SELECT, COMMIT)

    assert proxy.requests() == ["BEGIN READ WRITE; SELECT $1", "COMMIT"]


def test_a_ping_on_a_reader(reader: Told, proxy: Proxy) -> None:
    """What only asks whether the connection lives undoes nothing."""
    reader.connection.autocommit = True
    reader.tell(";")
    reader.connection.autocommit = False

    assert proxy.requests() == [";"]


def test_autocommit_on_a_reader(reader: Told, proxy: Proxy) -> None:
    """It may write: what the start asked for is undone once, and done again before the next read without BEGIN."""
    reader.connection.autocommit = True
    assert [answer for _, answer, _ in reader.tell(insert(1), insert(2))] == [1, 1]
    reader.connection.autocommit = False
    riding_connection(reader).riders.harmless_query = SELECT[0]
    reader.tell(SELECT, COMMIT)
    riding_connection(reader).riders.harmless_query = SELECT[0]
    reader.tell(SELECT, COMMIT)

    assert proxy.requests() == [
        "SET default_transaction_read_only TO off",
        "INSERT INTO item VALUES ($1)",
        "INSERT INTO item VALUES ($1)",
        "SET default_transaction_read_only TO DEFAULT",
        "SELECT $1",
        "SELECT $1",
    ]


def test_a_batch_in_autocommit_on_a_reader(reader: Told) -> None:
    """It may write, by itself and in the user's pipeline."""
    reader.connection.autocommit = True
    reader.cursor.executemany(INSERT, [(1,), (2,)])
    reader.connection.autocommit = False
    riding_connection(reader).riders.harmless_query = SELECT[0]
    reader.tell(SELECT, COMMIT)
    reader.connection.autocommit = True
    with reader.connection.pipeline():
        reader.tell(insert(3))

    assert reader.tell("SELECT count(*) FROM item")[0][1] == [(3,)]


@pytest.mark.parametrize("is_automatic", [False, True])
def test_copy_on_a_reader(reader: Told, is_automatic: bool) -> None:
    """It may write, behind what was told and undone, and behind what only asks whether the connection lives."""
    reader.tell("SET default_transaction_read_only TO on", ROLLBACK)
    if is_automatic:
        reader.connection.autocommit = True
        reader.tell("SELECT 1")
    with reader.cursor.copy("COPY item (id) FROM STDIN") as copy:
        copy.write_row((1,))

    assert reader.tell(COMMIT, "SELECT id FROM item")[1][1] == [(1,)]


def test_a_rollback_to_rides_on_commit(told: Told, proxy: Proxy) -> None:
    """Dropped, it would commit what was undone."""
    told.tell(insert(1), "SAVEPOINT a", insert(2), "ROLLBACK TO SAVEPOINT a", COMMIT)

    assert proxy.requests()[-1] == "ROLLBACK TO SAVEPOINT a; COMMIT"


def test_psycopg_s_own_blocks(told: Told, proxy: Proxy) -> None:
    """What waits goes ahead of them, in one request."""
    told.tell("SAVEPOINT a")
    with told.connection.transaction():
        told.tell(SELECT)

    assert proxy.requests() == ["BEGIN; SAVEPOINT a", 'SAVEPOINT "_pg3_1"', "SELECT $1", 'RELEASE "_pg3_1"']
