"""What psycopg 3 prepares on a riding connection: kept over rollbacks, forgotten where it could be stale."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors, pq

from tests.databases import PostgreSQLDatabase
from tests.ride.psycopg_bench import COMMIT, ROLLBACK, TABLE, Step, Told, riding, riding_connection

PREPARED: Step = "SELECT statement FROM pg_prepared_statements ORDER BY 1"
READ: Step = ("SELECT %s", (1,))
MOOD: Step = ("SELECT %s::mood", ("good",))
MAKE_MOOD: Step = "CREATE TYPE mood AS ENUM ('good', 'bad')"


@pytest.fixture
def told(postgres: PostgreSQLDatabase) -> Iterator[Told]:
    """A riding connection that prepares what it sends for the second time."""
    postgres.execute(TABLE)
    with riding(postgres.driverless_url, prepare_threshold=1) as told:
        yield told


def prepared(told: Told) -> list[str]:
    """What the server has prepared."""
    with told.connection.cursor() as cursor:
        found = cursor.execute("SELECT statement FROM pg_prepared_statements ORDER BY 1", prepare=False).fetchall()
    return [row[0] for row in found]


@pytest.mark.parametrize("ending", [COMMIT, ROLLBACK])
def test_it_outlives_the_transaction(told: Told, ending: str) -> None:
    """However that ends."""
    told.tell(READ, READ, READ, ending)

    assert prepared(told) == ["SELECT $1"]


def test_it_outlives_a_savepoint(told: Told) -> None:
    """That was undone, and nothing created in it."""
    told.tell("SAVEPOINT a", READ, READ, ("SELECT 1 / %s", (0,)), "ROLLBACK TO a", READ)

    assert prepared(told) == ["SELECT $1"]


def test_a_type_that_was_rolled_back(told: Told) -> None:
    """What was prepared for it is forgotten: it would fail for the one that has the type's name then."""
    for _ in range(3):
        steps = told.tell(MAKE_MOOD, MOOD, MOOD, MOOD, ROLLBACK)
        assert [answer for _, answer, _ in steps] == [-1, [("good",)], [("good",)], [("good",)], None]


@pytest.mark.parametrize("failing", [("SELECT 1 / %s", (0,)), "SET LOCAL work_mem TO '-1'"])
def test_a_type_that_a_failed_commit_has_undone(told: Told, failing: Step) -> None:
    """The same, also where what fails rides on the COMMIT."""
    for _ in range(3):
        steps = told.tell(MAKE_MOOD, MOOD, MOOD, MOOD, failing, COMMIT)
        assert [answer for _, answer, _ in steps[:4]] == [-1, [("good",)], [("good",)], [("good",)]]
        assert steps[-1][1:] in [("InFailedSqlTransaction", "IDLE"), ("InvalidParameterValue", "IDLE")]


def test_a_type_that_a_savepoint_s_rollback_has_undone(told: Told) -> None:
    """The same."""
    for _ in range(3):
        steps = told.tell("SAVEPOINT a", MAKE_MOOD, MOOD, MOOD, MOOD, "ROLLBACK TO a")
        assert [answer for _, answer, _ in steps] == [-1, -1, [("good",)], [("good",)], [("good",)], -1]


def test_a_table_made_of_a_read_that_was_rolled_back(told: Told) -> None:
    """It says SELECT, and creates all the same."""
    for columns in ("1 AS x", "'a' AS x, 2 AS y"):
        told.tell(f"SELECT {columns} INTO made", "SELECT * FROM made", "SELECT * FROM made")
        assert isinstance(told.tell("SELECT * FROM made")[0][1], list)
        told.tell(ROLLBACK)


def test_a_type_that_a_function_has_made(told: Told, postgres: PostgreSQLDatabase) -> None:
    """Nobody sees that: the statement fails once, and is prepared anew."""
    postgres.execute(
        "CREATE FUNCTION make() RETURNS void LANGUAGE plpgsql"
        " AS $$ BEGIN CREATE TYPE mood AS ENUM ('good', 'bad'); END $$"
    )
    told.tell("SELECT make()", MOOD, MOOD, MOOD, ROLLBACK)

    assert told.tell("SELECT make()", MOOD)[1][1] == "InternalError_"
    assert told.tell(ROLLBACK, "SELECT make()", MOOD, MOOD)[2:] == [(MOOD, [("good",)], "INTRANS")] * 2


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ("ALTER TABLE item ADD more text", "FeatureNotSupported"),
        ("DO $$ BEGIN EXECUTE format('DEALLOCATE %s', 'ALL'); END $$", "InvalidSqlStatementName"),
    ],
)
def test_a_plan_that_somebody_has_taken_away(
    told: Told, postgres: PostgreSQLDatabase, change: str, refusal: str
) -> None:
    """The statement fails once, and is prepared anew."""
    read: Step = ("SELECT * FROM item WHERE id = %s", (1,))
    told.tell(read, read, read, COMMIT)
    told.tell(change, COMMIT) if "DEALLOCATE" in change else postgres.execute(change)

    assert [answer for _, answer, _ in told.tell(read, ROLLBACK, read, read, read)] == [refusal, None, [], [], []]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE item ADD more text",
        "DROP TABLE item; CREATE TABLE item (id integer PRIMARY KEY, name text, more text)",
    ],
)
def test_a_read_whose_plan_somebody_has_taken_away_is_sent_again(postgres: PostgreSQLDatabase, change: str) -> None:
    """It was alone, so that nothing is undone by it; one that has a transaction around it is not."""
    postgres.execute(TABLE)
    read: Step = ("SELECT * FROM item WHERE id < %s", (2,))
    with riding(postgres.driverless_url, is_reader=True, prepare_threshold=1) as told:
        connection = riding_connection(told)

        def read_alone() -> object:
            connection.riders.harmless_query = read[0]
            ((_, answer, status),) = told.tell(read)
            assert status == "INTRANS"
            told.tell(COMMIT)
            return answer

        assert [read_alone(), read_alone(), read_alone()] == [[], [], []]
        postgres.execute(f"{change}; INSERT INTO item VALUES (1, 'one', 'more')")
        trips = connection.trips
        assert read_alone() == [(1, "one", "more")]
        assert connection.trips == trips + 2
        assert connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        assert [read_alone(), read_alone()] == [[(1, "one", "more")]] * 2
        assert prepared(told) == ["SELECT * FROM item WHERE id < $1"]
        postgres.execute("ALTER TABLE item DROP more")
        assert [answer for _, answer, _ in told.tell(read, ROLLBACK, read)] == [
            "FeatureNotSupported",
            None,
            [(1, "one")],
        ]


def test_what_the_program_deallocates(told: Told) -> None:
    """It is prepared anew; what waits to be forgotten does not take it along."""
    told.tell(READ, READ, READ, "DEALLOCATE ALL")
    told.tell(READ, READ, READ, READ, "CREATE TABLE other ()", ROLLBACK)

    assert [answer for _, answer, _ in told.tell(READ, READ, READ, READ, COMMIT)] == [[(1,)]] * 4 + [None]
    assert prepared(told) == ["SELECT $1"]


@pytest.mark.parametrize("text", ["DISCARD ALL", "DEALLOCATE ALL", "deallocate prepare all"])
def test_what_the_program_discards_again_and_again(told: Told, text: str) -> None:
    """In a pool's reset, say: psycopg sees it the first time alone, and no rollback makes up for that."""
    told.connection.autocommit = True
    for _ in range(3):
        answers = [answer for _, answer, _ in told.tell(text, READ, READ, READ)]
        assert answers == [-1] + [[(1,)]] * 3


def test_the_most_that_is_prepared(told: Told) -> None:
    """What is too much is forgotten with the next statement."""
    told.connection.prepared_max = 2
    for number in range(4):
        told.tell(*[(f"SELECT %s, {number}", (1,))] * 3)
    # psycopg looks for too many when a text is new.
    told.tell(READ, READ, COMMIT)

    assert prepared(told) == ["SELECT $1", "SELECT $1, 2", "SELECT $1, 3"]


def test_what_is_to_be_forgotten_in_a_failed_transaction(told: Told) -> None:
    """It waits until the server can do it."""
    told.tell("SAVEPOINT a", MAKE_MOOD, MOOD, MOOD, MOOD, ("SELECT 1 / %s", (0,)))
    steps = told.tell(READ, "ROLLBACK TO a", MAKE_MOOD, MOOD, MOOD, MOOD, COMMIT)

    assert [answer for _, answer, _ in steps] == ["InFailedSqlTransaction", -1, -1, *[[("good",)]] * 3, None]


def test_a_batch(told: Told) -> None:
    """It prepares at once, behind what is to be forgotten."""
    insert = "INSERT INTO item (id) VALUES (%s)"
    told.cursor.executemany(insert, [(1,), (2,)])
    told.tell("CREATE TABLE other ()", ROLLBACK)
    told.cursor.executemany(insert, [(1,), (2,)])
    told.cursor.executemany(insert, [(3,), (4,)])
    told.tell(COMMIT)

    assert prepared(told) == ["INSERT INTO item (id) VALUES ($1)"]


def test_a_batch_that_heals_a_failed_transaction(told: Told) -> None:
    """What the savepoint's rollback has made stale is forgotten before the batch prepares, not behind it."""
    insert: Step = ("INSERT INTO item (id) VALUES (%s)", (3,))
    told.tell("SAVEPOINT a", MAKE_MOOD, MOOD, MOOD, ("SELECT 1 / %s", (0,)), "ROLLBACK TO a")
    told.cursor.executemany(insert[0], [(1,), (2,)])

    assert [answer for _, answer, _ in told.tell(insert, COMMIT)] == [1, None]
    assert prepared(told) == ["INSERT INTO item (id) VALUES ($1)"]


def test_a_batch_in_a_failed_transaction(told: Told) -> None:
    """The server has prepared nothing of it, though its text was run before: it is prepared anew."""
    insert: Step = ("INSERT INTO item (id) VALUES (%s)", (1,))
    told.tell(insert, COMMIT, ("SELECT 1 / %s", (0,)))
    with pytest.raises(errors.InFailedSqlTransaction):
        told.cursor.executemany(insert[0], [(2,), (3,)])

    steps = told.tell(ROLLBACK, (insert[0], (4,)), (insert[0], (5,)), COMMIT)
    assert [answer for _, answer, _ in steps] == [None, 1, 1, None]
    assert prepared(told) == ["INSERT INTO item (id) VALUES ($1)"]


def test_a_statement_that_cannot_be_prepared(told: Told) -> None:
    """Its error is its own, and it is not believed to be prepared."""
    bad: Step = ("SELECT %s FROM nowhere", (1,))
    for _ in range(3):
        assert [answer for _, answer, _ in told.tell(READ, bad, ROLLBACK)] == [[(1,)], "UndefinedTable", None]


def test_the_user_s_pipeline(told: Told) -> None:
    """What ran in it is not known: a rollback forgets what is prepared."""
    told.tell(READ, READ, READ, COMMIT)
    with told.connection.pipeline():
        told.tell(READ)
    told.tell(ROLLBACK, "SHOW timezone")

    assert prepared(told) == []


def test_without_preparing(postgres: PostgreSQLDatabase) -> None:
    """Nothing is prepared where the application does not want it."""
    with riding(postgres.driverless_url, prepare_threshold=None) as told:
        told.tell(*[READ] * 8, COMMIT)

        assert prepared(told) == []
        with pytest.raises(errors.SyntaxError):
            told.cursor.execute("SELEC", prepare=True)
        assert told.connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR


def test_a_constraint_that_is_looked_at_when_autocommit_commits(told: Told) -> None:
    """The statement itself was fine, and the error comes after it: the connection is as usable as before."""
    connection = told.connection
    connection.execute("CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    connection.commit()
    connection.autocommit = True
    connection.execute("INSERT INTO late VALUES (%s)", (1,))
    for _ in range(3):
        with pytest.raises(errors.UniqueViolation):
            connection.execute("INSERT INTO late VALUES (%s)", (1,))

    connection.execute("INSERT INTO late VALUES (%s)", (2,))
    assert connection.execute("SELECT id FROM late ORDER BY id").fetchall() == [(1,), (2,)]
