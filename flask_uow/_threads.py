"""Sessions that another thread may take back: that of a thread whose app context ends in the thread that pushed it.

SQLAlchemy's sessions are no thread's but one's. One that is closed in the middle of a flush drops the objects which it
is about to send, and sends a row without values; a driver that closes what another thread uses may end the process. So
whoever calls such a session is at work in it for the whole call, a unit for all of its end, and it is taken back when
it is at rest: at once, or by its own thread as soon as that is done.

What was taken back with writes in it says so to its thread at the next call, for what follows would be the other half.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from sqlalchemy import orm

from ._fronts import in_front_of
from ._state import guarded_state

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    _Session = Session
else:
    _Session = object  # the class in front of which the calls are put


class Work:
    """A thread's work in a session; entered by each call, and by what one call needs of others."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._take_back: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        self._lock.release()
        if self._take_back is not None:
            self._try()  # asked for before the lock was free; whoever has it now does the same

    def end(self, take_back: Callable[[], None]) -> bool:
        """Call a function when the session is at rest.

        :return: whether that was now.
        """
        self._take_back = take_back
        return self._try()

    def _try(self) -> bool:
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._depth:
                return False
            take_back, self._take_back = self._take_back, None
            if take_back is not None:
                take_back()
            return True
        finally:
            self._lock.release()


def share(session: Session) -> None:
    """Let other threads take a session back."""
    state = guarded_state(session)
    if state.work is None:
        state.work = Work()
        session.__class__ = in_front_of(type(session), SharedSession)


def _whole(name: str) -> Callable[..., Any]:
    """A method of a session during which nobody takes it back.

    :raises RuleViolationError: UOW202, once, if it was taken back with writes in it.
    """

    @wraps(getattr(orm.Session, name, _whole))
    def call(self: Session, *args: Any, **kwargs: Any) -> Any:
        state = guarded_state(self)
        assert state.work is not None
        with state.work:
            if state.has_lost_writes:
                state.has_lost_writes = False
                raise state.use_after_end()
            return getattr(super(SharedSession, self), name)(*args, **kwargs)

    return call


def _ending(name: str) -> Callable[..., Any]:
    """One that gives up what the session holds, and need not be told what it has lost."""

    @wraps(getattr(orm.Session, name, _ending))
    def call(self: Session, *args: Any, **kwargs: Any) -> Any:
        state = guarded_state(self)
        assert state.work is not None
        with state.work:
            state.has_lost_writes = False
            return getattr(super(SharedSession, self), name)(*args, **kwargs)

    return call


class SharedSession(_Session):
    """Put in front of a session's class: each call is whole."""

    _autobegin_t = _whole("_autobegin_t")
    add = _whole("add")
    add_all = _whole("add_all")
    begin = _whole("begin")
    begin_nested = _whole("begin_nested")
    bulk_insert_mappings = _whole("bulk_insert_mappings")
    bulk_save_objects = _whole("bulk_save_objects")
    bulk_update_mappings = _whole("bulk_update_mappings")
    commit = _whole("commit")
    connection = _whole("connection")
    delete = _whole("delete")
    execute = _whole("execute")
    flush = _whole("flush")
    get = _whole("get")
    merge = _whole("merge")
    prepare = _whole("prepare")
    refresh = _whole("refresh")
    scalar = _whole("scalar")
    scalars = _whole("scalars")
    close = _ending("close")
    expunge_all = _ending("expunge_all")
    invalidate = _ending("invalidate")
    reset = _ending("reset")
    rollback = _ending("rollback")
