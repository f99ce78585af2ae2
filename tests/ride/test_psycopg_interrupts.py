"""An interrupt at any moment leaves a riding connection of psycopg 3 usable or closed, never something between."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import psycopg
import pytest

from tests.databases import PostgreSQLDatabase
from tests.ride.psycopg_bench import Told, riding

INTERRUPTS = 150
LONGEST_WAIT_S = 0.0025
INSERT = "INSERT INTO item VALUES (%s)"


def write(connection: psycopg.Connection[Any], number: int) -> None:
    """A write behind a savepoint that was undone."""
    cursor = connection.cursor()
    cursor.execute("SELECT %s", (1,))
    cursor.execute("SAVEPOINT a")
    cursor.execute(INSERT, (number,))
    cursor.execute("ROLLBACK TO a")
    cursor.execute(INSERT, (number,))
    connection.commit()


def fail(connection: psycopg.Connection[Any], number: int) -> None:
    """A failed statement in a savepoint, and a rollback."""
    cursor = connection.cursor()
    cursor.execute("SAVEPOINT a")
    with pytest.raises(psycopg.errors.DivisionByZero):
        cursor.execute("SELECT 1 / %s", (0,))
    cursor.execute("ROLLBACK TO a")
    cursor.execute("SELECT pg_sleep(0.0005)")
    connection.rollback()


def write_many(connection: psycopg.Connection[Any], number: int) -> None:
    """A batch, and COPY."""
    cursor = connection.cursor()
    cursor.executemany(INSERT, [(number,)] * 10)
    with cursor.copy("COPY item FROM STDIN") as copy:
        copy.write_row((number,))
    connection.commit()


def pipe(connection: psycopg.Connection[Any], number: int) -> None:
    """A pipeline and a stream."""
    cursor = connection.cursor()
    with connection.pipeline():
        cursor.execute(INSERT, (number,))
        cursor.execute("SELECT 2")
    list(cursor.stream("SELECT * FROM generate_series(1, 50)"))
    connection.rollback()


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt at a time, unless the block ends before.

    Not where coverage is at work, which would keep its lock; and not by an alarm, which ends tests that take too long.
    """
    is_armed = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if is_armed and not any("coverage" in code for code in _files(frame)):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        is_armed = False
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def _files(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


@pytest.mark.parametrize("work", [write, fail, write_many, pipe])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts(postgres: PostgreSQLDatabase, work: Callable[[psycopg.Connection[Any], int], None]) -> None:
    """Afterwards a rollback and all that follows does what it says, or the connection says that it is closed."""
    postgres.execute("CREATE TABLE item (id bigint)")
    seed = int.from_bytes(os.urandom(4))
    times = random.Random(seed)
    interrupted = 0
    with ExitStack() as stack:
        told = stack.enter_context(riding(postgres.driverless_url))
        deadline = time.monotonic() + 60
        while interrupted < INTERRUPTS and time.monotonic() < deadline:
            if not is_interrupted(work, told, times.uniform(0.00003, LONGEST_WAIT_S)):
                continue
            interrupted += 1
            # No sooner: COPY holds psycopg's lock as long as the interrupt's traceback holds COPY.
            assert works(told) or told.connection.closed, f"seed {seed}"
            if told.connection.closed:
                told = stack.enter_context(riding(postgres.driverless_url))
    assert interrupted > 0
    assert interrupted == INTERRUPTS


def is_interrupted(work: Callable[[psycopg.Connection[Any], int], None], told: Told, seconds: float) -> bool:
    """Whether work was interrupted after a time, or had ended before."""
    try:
        with interrupted_after(seconds):
            for number in range(5):
                work(told.connection, number)
    except KeyboardInterrupt:
        return True
    return False


def works(told: Told) -> bool:
    """Whether the connection does what it is told; one that says that it is closed does not."""
    try:
        told.connection.rollback()
        cursor = told.connection.cursor()
        cursor.execute(INSERT, (-1,))
        cursor.execute("SAVEPOINT a")
        cursor.execute(INSERT, (-1,))
        cursor.execute("ROLLBACK TO a")
        found = cursor.execute("SELECT count(*) FROM item WHERE id = %s", (-1,)).fetchall()
        told.connection.rollback()
    except psycopg.OperationalError:
        assert told.connection.closed
        return False
    return found == [(1,)] and told.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
