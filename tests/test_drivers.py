"""What the drivers know without asking the server again."""

import select
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest

from flask_uow._drivers import LIBPQ_DRIVERS, TransactionStatus, has_ended, status_probe
from tests.databases import PostgreSQLDatabase

CONNECT: dict[str, Callable[[str], Any]] = {"psycopg2": psycopg2.connect, "psycopg": psycopg.connect}
DEADLINE_S = 10.0
POLL_S = 0.005

IDLE, ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE
IN_TRANSACTION, IN_ERROR = TransactionStatus.IN_TRANSACTION, TransactionStatus.IN_ERROR
UNKNOWN = TransactionStatus.UNKNOWN


@pytest.fixture(params=LIBPQ_DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each driver that is built on libpq."""
    name: str = request.param
    return name


@pytest.fixture
def connection(driver: str, postgres: PostgreSQLDatabase) -> Iterator[Any]:
    """A connection of the driver's own, outside of any pool."""
    made = CONNECT[driver](postgres.driverless_url)
    yield made
    with suppress(psycopg.Error, psycopg2.Error):
        made.close()


def run(connection: Any, sql: str) -> Any:
    """Run a statement and return its first row, if it has any."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None


def pid_of(connection: Any) -> int:
    return int(connection.info.backend_pid)


def cancel(postgres: PostgreSQLDatabase, connection: Any) -> bool:
    """Cancel what a connection is doing, if anything."""
    return postgres.rows("SELECT pg_cancel_backend(%s)", pid_of(connection)) == [(True,)]


def comes_true(question: Callable[[], bool]) -> bool:
    """Ask again and again until the answer is yes, or the deadline is over."""
    end = time.monotonic() + DEADLINE_S
    while not question():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True


# ---- the transaction status


def test_status_follows_the_transaction(driver: str, connection: Any) -> None:
    """Idle, in a transaction, in one that an error has aborted, and idle again."""
    probe = status_probe(driver)
    seen = [probe(connection)]

    run(connection, "SELECT 1")
    seen.append(probe(connection))
    with pytest.raises((psycopg.Error, psycopg2.Error), match="division by zero"):
        run(connection, "SELECT 1/0")
    seen.append(probe(connection))
    connection.rollback()
    seen.append(probe(connection))

    assert seen == [IDLE, IN_TRANSACTION, IN_ERROR, IDLE]


def test_status_is_the_server_s_word_and_not_the_driver_s(driver: str, connection: Any) -> None:
    """A COMMIT that was sent as text, which the driver takes for any statement, is seen."""
    run(connection, "SELECT 1")

    run(connection, "COMMIT")

    assert status_probe(driver)(connection) is IDLE


def test_status_while_a_statement_runs(driver: str, connection: Any, postgres: PostgreSQLDatabase) -> None:
    """Seen from another thread, the connection is busy."""
    probe = status_probe(driver)

    def sleep() -> None:
        with suppress(psycopg.Error, psycopg2.Error):
            run(connection, "SELECT pg_sleep(60)")

    thread = threading.Thread(target=sleep)
    thread.start()
    is_active = comes_true(lambda: probe(connection) is ACTIVE)
    # A cancel that comes before the statement is lost.
    is_over = comes_true(lambda: cancel(postgres, connection) and not thread.is_alive())

    assert is_active
    assert is_over
    assert probe(connection) is IN_ERROR


def test_status_asks_nobody(driver: str, connection: Any, postgres: PostgreSQLDatabase) -> None:
    """It is what the server said last: the end of the server's session is no news until somebody reads it."""
    probe = status_probe(driver)
    run(connection, "SELECT 1")
    postgres.kill(pid_of(connection))

    before = probe(connection)
    with pytest.raises((psycopg.OperationalError, psycopg2.OperationalError), match="terminat"):
        run(connection, "SELECT 1")

    assert before is IN_TRANSACTION
    assert probe(connection) is None


def test_status_of_a_closed_connection(driver: str, connection: Any) -> None:
    """It has none, and that is no error."""
    connection.close()

    assert status_probe(driver)(connection) is None


def test_status_of_sqlite() -> None:
    """SQLite knows whether it is in a transaction."""
    probe = status_probe("pysqlite")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        seen = [probe(connection)]
        connection.execute("BEGIN")
        seen.append(probe(connection))
        connection.execute("ROLLBACK")
        seen.append(probe(connection))

    assert seen == [IDLE, IN_TRANSACTION, IDLE]


def test_status_of_an_unknown_driver() -> None:
    """A driver that this package does not know is not asked."""
    assert status_probe("oracledb")(object()) is UNKNOWN


# ---- liveness


@pytest.fixture(params=["poll", "select"])
def has_poll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A platform with ``poll``, and one that has only ``select``."""
    if request.param == "select":
        monkeypatch.delattr(select, "poll")
    return hasattr(select, "poll")


@pytest.mark.usefixtures("has_poll")
def test_a_live_connection_has_not_ended(connection: Any) -> None:
    """New, in a transaction, after one, after an error: the server waits for us."""
    seen = [has_ended(connection)]

    run(connection, "SELECT 1")
    seen.append(has_ended(connection))
    with pytest.raises((psycopg.Error, psycopg2.Error), match="division by zero"):
        run(connection, "SELECT 1/0")
    seen.append(has_ended(connection))
    connection.rollback()
    seen.append(has_ended(connection))

    assert seen == [False] * 4


@pytest.mark.usefixtures("has_poll")
def test_a_connection_whose_server_is_gone_has_ended(connection: Any, postgres: PostgreSQLDatabase) -> None:
    """It is seen as soon as the server has ended it, and stays so."""
    postgres.kill(pid_of(connection))

    assert comes_true(lambda: has_ended(connection))
    assert has_ended(connection)


@pytest.mark.usefixtures("has_poll")
def test_a_closed_connection_has_ended(connection: Any) -> None:
    """What has no socket any more is not to be used either."""
    connection.close()

    assert has_ended(connection)


@pytest.mark.usefixtures("has_poll")
def test_a_waiting_notification_is_no_end_and_is_kept(connection: Any, postgres: PostgreSQLDatabase) -> None:
    """A listener's connection lives, and its owner finds what has come where the driver keeps it."""
    connection.autocommit = True
    run(connection, "LISTEN news")
    postgres.execute("NOTIFY news, 'first'; NOTIFY news, 'second'")
    assert comes_true(lambda: bool(select.select([connection], [], [], 0)[0]))

    assert not has_ended(connection)
    assert not select.select([connection], [], [], 0)[0]
    kept = connection.notifies if isinstance(connection.notifies, list) else connection.notifies(timeout=0)
    assert [notification.payload for notification in kept] == ["first", "second"]


def test_looking_takes_nothing_away(connection: Any) -> None:
    """The connection works on."""
    for _ in range(3):
        assert not has_ended(connection)
        assert run(connection, "SELECT 7") == (7,)


@pytest.fixture
def waits_with_a_callback() -> Iterator[None]:
    """psycopg2 waits by a function of Python's, as under gevent."""
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.mark.parametrize("driver", ["psycopg2"], indirect=True)
@pytest.mark.usefixtures("driver", "waits_with_a_callback")
def test_a_driver_that_waits_by_a_callback(connection: Any, postgres: PostgreSQLDatabase) -> None:
    """The look needs no waiting: notifications are read, and the end is seen."""
    connection.autocommit = True
    run(connection, "LISTEN news")
    postgres.execute("NOTIFY news, 'first'")
    assert comes_true(lambda: bool(select.select([connection], [], [], 0)[0]))

    assert not has_ended(connection)
    assert [notification.payload for notification in connection.notifies] == ["first"]
    assert run(connection, "SELECT 7") == (7,)
    postgres.kill(pid_of(connection))
    assert comes_true(lambda: has_ended(connection))
