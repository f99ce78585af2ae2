"""Which errors a unit may be tried again for, and how long it waits."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from flask_uow._drivers import sqlstate
from flask_uow._engines import begin_sqlite
from flask_uow._retry import BASE_DELAY_S, MAX_DELAY_S, delay_s, is_retryable
from tests.databases import Database

DEADLINE_S = 20.0
TRIES = 2_000

on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    """An engine of SQLAlchemy's own making, and two rows."""
    made = sa.create_engine(database.url, connect_args={} if database.is_postgresql else {"timeout": 0})
    database.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)")
    database.execute("INSERT INTO account VALUES (1, 100), (2, 100)")
    yield made
    made.dispose()


def update(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.text("UPDATE account SET balance = balance + 1 WHERE id = :number"), {"number": number})


def read_all(connection: sa.Connection) -> None:
    connection.execute(sa.text("SELECT sum(balance) FROM account")).all()


def error_of(function: Callable[[], object]) -> DBAPIError:
    """Return the error by which a function ends."""
    with pytest.raises(DBAPIError, match=r"\(") as caught:
        function()
    return caught.value


# ---- what the databases say


@on_postgresql
@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
def test_update_that_cannot_be_serialized_is_retryable(engine: sa.Engine, level: str) -> None:
    """Another transaction has changed the row since ours began."""
    with (
        closing(engine.connect().execution_options(isolation_level=level)) as ours,
        closing(engine.connect()) as theirs,
    ):
        read_all(ours)
        update(theirs, 1)
        theirs.commit()

        error = error_of(lambda: update(ours, 1))

    assert sqlstate(error) == "40001"
    assert is_retryable(error)


@on_postgresql
def test_commit_that_cannot_be_serialized_is_retryable(engine: sa.Engine) -> None:
    """Two transactions that each read what the other wrote: the second one to commit fails."""
    with (
        closing(engine.connect().execution_options(isolation_level="SERIALIZABLE")) as ours,
        closing(engine.connect().execution_options(isolation_level="SERIALIZABLE")) as theirs,
    ):
        read_all(ours)
        read_all(theirs)
        update(ours, 1)
        update(theirs, 2)
        theirs.commit()

        error = error_of(ours.commit)

    assert sqlstate(error) == "40001"
    assert is_retryable(error)


@on_postgresql
def test_deadlock_is_retryable(engine: sa.Engine) -> None:
    """Two transactions wait for each other, and the server ends one of them."""
    both_hold_one = threading.Barrier(2, timeout=DEADLINE_S)
    errors: list[DBAPIError] = []

    def move(source: int, target: int) -> None:
        with closing(engine.connect()) as connection:
            update(connection, source)
            both_hold_one.wait()
            try:
                update(connection, target)
                connection.commit()
            except DBAPIError as error:
                errors.append(error)
                connection.rollback()

    threads = [threading.Thread(target=move, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert [sqlstate(error) for error in errors] == ["40P01"]
    assert is_retryable(errors[0])


@on_postgresql
@pytest.mark.parametrize(
    ("sql", "state"),
    [
        ("SELECT 1/0", "22012"),
        ("INSERT INTO account VALUES (1, 0)", "23505"),
        ("INSERT INTO account VALUES (3, NULL)", "23502"),
        ("SELECT nothing FROM account", "42703"),
        ("SET LOCAL statement_timeout = 1; SELECT pg_sleep(10)", "57014"),
        ("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40002'; END $$", "40002"),
    ],
)
def test_other_errors_of_the_server_are_final(engine: sa.Engine, sql: str, state: str) -> None:
    """The same again would end the same, or nobody knows how it ended."""
    with closing(engine.connect()) as connection:
        error = error_of(lambda: connection.exec_driver_sql(sql))

    assert sqlstate(error) == state
    assert not is_retryable(error)


@on_postgresql
def test_lost_connection_is_final(engine: sa.Engine, database: Database) -> None:
    """Whether the server has done it is not known, so it is not done twice."""
    with closing(engine.connect()) as connection:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        assert isinstance(pid, int)
        database.kill(pid)

        error = error_of(lambda: read_all(connection))

    assert error.connection_invalidated
    assert not is_retryable(error)


def lock(connection: sa.Connection) -> None:
    driver: Any = connection.connection.dbapi_connection
    begin_sqlite(driver, for_writing=True)


@on_sqlite
def test_refused_write_lock_of_sqlite_is_retryable(engine: sa.Engine) -> None:
    """At its BEGIN a transaction has done nothing yet that could be lost."""
    with closing(engine.connect()) as ours, closing(engine.connect()) as theirs:
        lock(theirs)

        error = error_of(lambda: lock(ours))
        ours.rollback()

    assert isinstance(error, OperationalError)
    assert "database is locked" in str(error)
    assert is_retryable(error)


@on_sqlite
def test_sqlite_that_is_busy_later_is_final(engine: sa.Engine) -> None:
    """A lock that is refused in the middle says nothing of what came before."""
    with closing(engine.connect()) as ours, closing(engine.connect()) as theirs:
        lock(theirs)

        error = error_of(lambda: update(ours, 1))

    assert "database is locked" in str(error)
    assert not is_retryable(error)


@on_sqlite
def test_other_errors_of_sqlite_are_final(engine: sa.Engine) -> None:
    """SQLite has no code for what may be tried again."""
    with closing(engine.connect()) as connection:
        error = error_of(lambda: connection.exec_driver_sql("INSERT INTO account VALUES (1, 0)"))

    assert isinstance(error, IntegrityError)
    assert sqlstate(error) is None
    assert not is_retryable(error)


@pytest.mark.parametrize("error", [ValueError("40001"), KeyboardInterrupt(), sa.exc.InvalidRequestError("40P01")])
def test_errors_from_elsewhere_are_final(error: BaseException) -> None:
    """Only what a driver raised is looked at."""
    assert not is_retryable(error)


# ---- the waiting


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 0.02), (2, 0.04), (3, 0.08), (4, 0.16), (6, 0.64), (7, 1.0), (20, 1.0), (100_000, 1.0)]
)
def test_delay_grows_to_a_bound(attempt: int, longest: float) -> None:
    """Each lost attempt doubles the longest possible delay, up to a second; none is negative."""
    delays = [delay_s(attempt) for _ in range(TRIES)]

    assert min(delays) >= 0
    assert 0.9 * longest < max(delays) <= longest


def test_delay_is_spread_over_the_whole_range() -> None:
    """Full jitter: those that met once are not to meet again, so that short delays are as likely as long ones."""
    random.seed(7)
    delays = [delay_s(3) / 0.08 for _ in range(TRIES)]

    for tenth in range(10):
        share = sum(tenth <= delay * 10 < tenth + 1 for delay in delays) / TRIES
        assert 0.06 < share < 0.14


def test_constants_are_short_enough_for_a_request() -> None:
    """Somebody waits for the answer."""
    assert 0 < BASE_DELAY_S < MAX_DELAY_S <= 1.0
