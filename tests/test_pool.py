"""The queue of a pool: who waits is served in the order of coming, and nothing that comes back is lost."""

import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.util.queue import Empty, Full

from flask_uow._pool import FairQueue, FairQueuePool

DEADLINE_S = 15.0


def await_that(question: Callable[[], bool]) -> None:
    """Ask again and again until the answer is yes."""
    end = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting(queue: FairQueue, threads: ThreadPoolExecutor, number: int) -> list["Future[object]"]:
    """So many who wait one after the other."""
    futures = []
    for each in range(number):
        futures.append(threads.submit(queue.get, True, DEADLINE_S))
        await_that(lambda each=each: len(queue._waiters) == each + 1)  # type: ignore[misc]
    return futures


@pytest.mark.parametrize(("use_lifo", "taken"), [(False, [1, 2]), (True, [2, 1])])
def test_what_is_kept_is_taken_in_order(use_lifo: bool, taken: list[int]) -> None:
    """The first or the last one first."""
    queue = FairQueue(2, use_lifo)
    queue.put(1, False)
    queue.put(2, False)

    with pytest.raises(Full):
        queue.put(3, False)
    assert [queue.get(False), queue.get(False)] == taken
    with pytest.raises(Empty):
        queue.get(False)
    assert queue.qsize() == 0


def test_a_queue_without_a_limit_keeps_all() -> None:
    """As one of SQLAlchemy's of size 0."""
    queue = FairQueue(0)
    for number in range(100):
        queue.put(number, False)

    assert queue.qsize() == 100


@pytest.mark.parametrize("use_lifo", [False, True])
def test_who_waits_is_served_in_order(use_lifo: bool) -> None:
    """And before anybody who comes later, the thread that puts included."""
    queue = FairQueue(1, use_lifo)
    with ThreadPoolExecutor(5) as threads:
        futures = waiting(queue, threads, 5)
        for number, future in enumerate(futures):
            queue.put(number, False)
            with pytest.raises(Empty):
                queue.get(False)
            assert future.result(DEADLINE_S) == number


def test_a_wait_ends_in_time() -> None:
    """And leaves nobody behind to whom something could be handed."""
    queue = FairQueue(1)
    began = time.monotonic()
    with pytest.raises(Empty):
        queue.get(True, 0.1)

    assert 0.1 <= time.monotonic() - began < DEADLINE_S
    queue.put("kept", False)
    assert queue.get(False) == "kept"


class InterruptedWaitError(BaseException):
    """What a signal raises wherever the main thread is."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread."""

    def raise_it(number: int, frame: object) -> None:
        raise InterruptedWaitError

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_what_was_meant_for_one_who_was_interrupted_is_another_ones(interrupt: Callable[[], None]) -> None:
    """The main thread is interrupted while it waits; what comes then is not handed to it."""
    queue = FairQueue(1)

    def interrupt_it() -> None:
        await_that(lambda: queue.has_waiter)
        interrupt()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(interrupt_it)
        with pytest.raises(InterruptedWaitError):
            queue.get(True, DEADLINE_S)

    assert not queue.has_waiter
    queue.put("kept", False)
    assert queue.get(False) == "kept"


def test_threads_that_come_and_go_lose_nothing() -> None:
    """Some give up while something is handed to them."""
    queue = FairQueue(3)
    for number in range(3):
        queue.put(number, False)

    def take_and_give(seed: int) -> int:
        taken = 0
        for turn in range(400):
            try:
                item = queue.get((seed + turn) % 5 > 0, 0.0005 * (turn % 3))
            except Empty:
                continue
            taken += 1
            time.sleep(0)
            queue.put(item, False)
        return taken

    with ThreadPoolExecutor(12) as threads:
        assert sum(threads.map(take_and_give, range(12))) > 0
    assert sorted(queue.get(False) for _ in range(3)) == [0, 1, 2]
    assert not queue._waiters


def test_who_waits_tries_again_where_a_connection_could_not_be_made() -> None:
    """Its place in the pool is free, and nobody would come back to say so."""
    may_fail, has_begun, attempts = threading.Event(), threading.Event(), iter([True, False])

    def connect() -> Any:
        if next(attempts):
            has_begun.set()
            may_fail.wait(DEADLINE_S)
            raise sa.exc.InterfaceError("no", None, Exception("the server is away"))
        return sqlite3.connect(":memory:", check_same_thread=False)

    pool = FairQueuePool(connect, pool_size=1, max_overflow=0, timeout=DEADLINE_S, reset_on_return=None)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool._do_get)
        assert has_begun.wait(DEADLINE_S)
        second = threads.submit(pool._do_get)
        await_that(lambda: pool._pool.has_waiter)
        may_fail.set()
        with pytest.raises(sa.exc.InterfaceError):
            first.result(DEADLINE_S)
        record: Any = second.result(DEADLINE_S)
        assert isinstance(record.get_connection(), sqlite3.Connection)
        pool._do_return_conn(record)
    assert pool.checkedout() == 0
    pool.dispose()
