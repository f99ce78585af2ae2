"""A pool that serves those who wait in the order in which they came.

SQLAlchemy's queue wakes one of them, and lets whoever asks next take the connection first: under load that is the
thread that has just given it back, so that a few are served again and again while others wait until ``pool_timeout``.
Here a connection that comes back is handed to the one who has waited for longest. So is the place of one that could not
be made: whoever waits for a connection then makes it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import Pool, QueuePool
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.queue import Empty, Full, Queue


class _Waiter:
    """A thread that waits for a connection; it sleeps on a lock of its own, until it has one."""

    __slots__ = ("has_item", "item", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.has_item = False
        self.item: Any = None


class FairQueue(Queue[Any]):
    """SQLAlchemy's queue, with its waiters served in their order.

    There is something in it only while nobody waits. The collector may give a connection back between any two steps
    of a thread that is at work here, so that the mutex is one that a thread can take twice, and what has been looked at
    may have changed.

    :param maxsize: how many it keeps; 0 for all.
    :param use_lifo: whether what came last is taken first.
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self._waiters: deque[_Waiter] = deque()
        #: Takes one that nobody has, or raises IndexError.
        self.take: Callable[[], Any] = self.queue.pop if use_lifo else self.queue.popleft

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take a connection.

        :param timeout: how long to wait for one, in seconds; None for ever.
        :raises Empty: if there is none, or none has come back in that time.
        """
        try:
            return self.take()
        except IndexError:
            if not block:
                raise Empty from None
        waiter = _Waiter()
        try:
            return self._wait(waiter, timeout)
        except BaseException:  # an interrupt as well: what was meant for it is another's
            with self.mutex:
                if not self._leave(waiter) and waiter.has_item:
                    self._hand_on(waiter.item)
            raise

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Give a connection to who has waited for longest, or keep it; a pool never waits for room.

        :raises Full: if nobody waits and as many are kept as may be.
        """
        with self.mutex:
            if 0 < self.maxsize <= len(self.queue):
                raise Full
            if self._waiters:
                self._hand_on(item)
            else:
                self.queue.append(item)

    @property
    def has_waiter(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def _wait(self, waiter: _Waiter, timeout: float | None) -> Any:
        with self.mutex:
            self._waiters.append(waiter)
            while self.queue and self._leave(waiter):  # one has come back meanwhile
                try:
                    return self.take()
                except IndexError:  # and somebody was faster
                    self._waiters.appendleft(waiter)
        waiter.lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        if not waiter.has_item:  # to look for oneself among many takes long, and is seldom needed
            with self.mutex:
                if self._leave(waiter):
                    raise Empty
        return waiter.item

    def _leave(self, waiter: _Waiter) -> bool:
        """Wait no longer; whether it has waited until now."""
        try:
            self._waiters.remove(waiter)
        except ValueError:
            return False
        return True

    def _hand_on(self, item: Any) -> None:
        if not self._waiters:
            self.queue.append(item)
            return
        waiter = self._waiters.popleft()
        waiter.item, waiter.has_item = item, True
        waiter.lock.release()


class FairQueuePool(QueuePool):
    """A ``QueuePool`` that serves those who wait in their order."""

    _queue_class = FairQueue
    _pool: FairQueue

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._pool.take()  # type: ignore[no-any-return]  # as mostly
        except IndexError:
            return super()._do_get()

    def _dec_overflow(self) -> Literal[True]:
        with self._pool.mutex:
            if self._pool.has_waiter:
                self._pool.put(_ConnectionRecord(self, connect=False), False)
                return True
        return super()._dec_overflow()


def class_name(pool: Pool) -> str:
    """The name of a pool's class; SQLAlchemy's of one of ours, which nobody has asked for.

    :param pool: the pool.
    """
    return QueuePool.__name__ if isinstance(pool, FairQueuePool) else type(pool).__name__
