"""A pool that serves those who wait in the order in which they came.

SQLAlchemy's queue wakes one of them, and lets whoever asks next take the connection first: under load that is the
thread that has just given it back, so that a few are served again and again while others wait until ``pool_timeout``.
Here a connection that comes back is handed to the one who has waited for longest; and one who waits is told when a
connection that was being made could not be, and another may be tried.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Literal

from sqlalchemy import QueuePool
from sqlalchemy.util.queue import Empty, Full, Queue


class _Waiter:
    """A thread that waits for a connection; it sleeps on a lock of its own."""

    __slots__ = ("has_item", "is_called", "item", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.is_called = self.has_item = False
        self.item: Any = None

    def call(self) -> None:
        """Wake it; once, by whoever has taken it from the queue."""
        self.is_called = True
        self.lock.release()


class FairQueue(Queue[Any]):
    """SQLAlchemy's queue, with its waiters served in their order.

    There is something in it only while nobody waits. The collector may give a connection back between any two steps
    of a thread that is at work here, so that the mutex is one that a thread can take twice.

    :param maxsize: how many it keeps; 0 for all.
    :param use_lifo: whether what came last is taken first.
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self._waiters: deque[_Waiter] = deque()
        self._take = self.queue.pop if use_lifo else self.queue.popleft

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take a connection.

        :param timeout: how long to wait for one, in seconds; None for ever.
        :raises Empty: if there is none, or none has come back in that time; or if another one may be made.
        """
        try:
            return self._take()
        except IndexError:
            if not block:
                raise Empty from None
        waiter = _Waiter()
        with self.mutex:
            self._waiters.append(waiter)
            if not waiter.is_called and self.queue:  # it has come back meanwhile
                self._waiters.remove(waiter)
                return self._take()
        try:
            waiter.lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
            with self.mutex:
                if waiter.has_item:
                    return waiter.item
                if not waiter.is_called:
                    self._waiters.remove(waiter)
        except BaseException:  # an interrupt: what was meant for it is another's
            self._withdraw(waiter)
            raise
        raise Empty

    def _withdraw(self, waiter: _Waiter) -> None:
        with self.mutex:
            if waiter.has_item:
                self.put(waiter.item, False)
            elif waiter.is_called:
                self.call_one()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Give a connection to who has waited for longest, or keep it; a pool never waits for room.

        :raises Full: if nobody waits and as many are kept as may be.
        """
        with self.mutex:
            if self._waiters:
                waiter = self._waiters.popleft()
                waiter.item, waiter.has_item = item, True
                waiter.call()
                return
            if 0 < self.maxsize <= len(self.queue):
                raise Full
            self.queue.append(item)

    def call_one(self) -> None:
        """Let who has waited for longest look whether a connection can be made."""
        with self.mutex:
            if self._waiters:
                self._waiters.popleft().call()


class FairQueuePool(QueuePool):
    """A ``QueuePool`` that serves those who wait in their order."""

    _queue_class = FairQueue

    def _dec_overflow(self) -> Literal[True]:
        is_done = super()._dec_overflow()
        if isinstance(self._pool, FairQueue):
            self._pool.call_one()
        return is_done
