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

from . import _fork
from ._fronts import in_front_of
from ._session_transactions import shorten
from ._state import SessionState, guarded_state

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

    _Session = Session
    _SessionTransaction = SessionTransaction
else:
    _Session = _SessionTransaction = object  # the classes in front of which the calls are put

Report = Callable[[], None]
TakeBack = Callable[[], "Report | None"]
"""Takes a session back; what it returns is called when others may work in the session again."""


class Work:
    """A thread's work in a session, of which one piece may be part of another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._take_back: TakeBack | None = None
        self._generation = _fork.generation

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function while nobody takes the session back, and take it back behind it if that was asked for."""
        if self._generation != _fork.generation:
            return function(*arguments, **options)  # who had the lock may be a thread of the parent process
        try:
            with self._lock:
                return function(*arguments, **options)
        finally:
            if self._take_back is not None:
                self._try()  # asked for before the lock was free; whoever has it now does the same

    def end(self, take_back: TakeBack) -> bool:
        """Call a function once, as soon as the session is at rest.

        :return: whether that was now.
        """
        self._take_back = self._take_back or take_back
        return self._try()

    def _try(self) -> bool:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return False  # the calling thread is in the middle of its work
        report = None
        try:
            if not self._lock.acquire(blocking=False):
                return False
            take_back, self._take_back = self._take_back, None
            if take_back is not None:
                report = take_back()
        finally:
            if self._lock._is_owned():  # type: ignore[attr-defined]
                self._lock.release()
        if report is not None:
            report()
        return True


def share(session: Session) -> None:
    """Let other threads take a session back, from its next call on."""
    if not isinstance(session, SharedSession):
        session.__class__ = in_front_of(type(session), SharedSession)


def work_of(session: Session) -> Work:
    """The work in a session that is shared."""
    state = guarded_state(session)
    if state.work is None:
        state.work = Work()
    return state.work


def _refuse_other_half(state: SessionState) -> None:
    if state.has_lost_writes:
        state.has_lost_writes = False
        raise state.use_after_end()


def _whole(name: str, *, gives_up: bool = False) -> Callable[..., Any]:
    """A method of a session during which nobody takes it back.

    :param gives_up: whether it gives up what the session holds, and need not be told what that has lost.
    :raises RuleViolationError: UOW202, once, if it was taken back with writes in it.
    """

    @wraps(getattr(orm.Session, name, _whole))
    def call(self: Session, *args: Any, **kwargs: Any) -> Any:
        state = guarded_state(self)
        method = getattr(super(SharedSession, self), name)

        def work() -> Any:
            if gives_up:
                state.has_lost_writes = False
            _refuse_other_half(state)
            return method(*args, **kwargs)

        return work_of(self).run(work)

    return call


class SharedSession(_Session):
    """Put in front of a session's class: each call is whole."""

    @staticmethod
    def _meet_transaction(transaction: SessionTransaction) -> None:
        shorten(transaction)
        transaction.__class__ = in_front_of(type(transaction), SharedTransaction)

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
    delete_all = _whole("delete_all")
    execute = _whole("execute")
    expire = _whole("expire")
    expire_all = _whole("expire_all")
    expunge = _whole("expunge")
    expunge_all = _whole("expunge_all")
    flush = _whole("flush")
    get = _whole("get")
    merge = _whole("merge")
    merge_all = _whole("merge_all")
    prepare = _whole("prepare")
    refresh = _whole("refresh")
    scalar = _whole("scalar")
    scalars = _whole("scalars")
    close = _whole("close", gives_up=True)
    invalidate = _whole("invalidate", gives_up=True)
    reset = _whole("reset", gives_up=True)
    rollback = _whole("rollback", gives_up=True)


class SharedTransaction(_SessionTransaction):
    """Put in front of the class of a shared session's transaction, which ends as a whole too."""

    def commit(self, _to_root: bool = False) -> None:
        work_of(self.session).run(super().commit, _to_root)

    def rollback(self, *args: Any, **kwargs: Any) -> None:
        work_of(self.session).run(super().rollback, *args, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> None:
        work_of(self.session).run(super().close, *args, **kwargs)

    def __exit__(self, type_: Any, value: Any, traceback: Any) -> None:
        super().__exit__(type_, value, traceback)
        if type_ is None:
            _refuse_other_half(guarded_state(self.session))
