"""What is known of one session: its unit, what failed in it, what it wrote.

It lives with its session, never in a thread-local: whatever ends the session ends this too, so a unit that an
interrupt cut short cannot leave its depth behind for the thread's next request.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import Flask, has_app_context
from flask.globals import app_ctx

from . import _fork
from ._board import CLOSED, IDLE, OPENED, STATEMENT, STATEMENTS_OUTSIDE, Board, Live
from ._board_files import open_board
from ._callsite import CallSite
from ._drivers import TransactionStatus
from ._engines import refuse_writes
from ._outcome import LostCommit
from ._rules import RuleBook, report, violation
from ._settings import DEFAULT_BIND, Settings
from .exceptions import ConfigurationError, RuleViolationError, UnitOfWorkError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ._reader import Reader, Readers
    from ._ride._riders import Riders
    from ._sessions import Sessions
    from ._threads import Work
    from ._units import Unit


@dataclass(slots=True, eq=False, weakref_slot=True)
class AppState:
    """What the extension keeps for one app.

    :param app: the app.
    :param settings: its configuration, checked.
    :param rules: its rule book.
    :param engines: its engines by name; empty where another library owns them.
    :param sessions: how its sessions are reached.
    :param readers: where its read-only units run; None for where all others do.
    :param dispatches: what serves a whole request as a unit; empty where requests are none.
    :param watched_pools: other libraries' engines, and what their pools are called as long as there are those.
    :param board: where this process says what it does; None before there is something to say.
    :param note_full: is told the name of a pool that has had no connection for as long as somebody was to wait.
    :param view_labels: the label of each function that was called as a unit in a request, by endpoint, rule and method.
    :ivar binds: the engines without the readers'.
    :ivar default_engine: where sessions run that are told of no other; None where another library owns the engines.
    :ivar has_several_engines: whether there are others.
    """

    app: Flask
    settings: Settings
    rules: RuleBook
    engines: dict[str, sa.Engine]
    sessions: Sessions
    readers: Readers | None = None
    dispatches: tuple[Callable[..., Any], ...] = ()
    board: Board | None = None
    watched_pools: list[tuple[weakref.ref[sa.Engine], str]] = field(default_factory=list)
    note_full: Callable[[str], None] = lambda bind: None
    board_lock: Any = field(default_factory=threading.Lock)
    view_labels: weakref.WeakKeyDictionary[Any, dict[tuple[str, str, str], str | None]] = field(
        default_factory=weakref.WeakKeyDictionary
    )
    binds: dict[str, sa.Engine] = field(init=False)
    default_engine: sa.Engine | None = field(init=False)
    has_several_engines: bool = field(init=False)

    def __post_init__(self) -> None:
        self.binds = {name: self.engines[name] for name in self.settings.binds}
        self.default_engine = self.engines.get(DEFAULT_BIND)
        self.has_several_engines = len(self.engines) > 1

    def named_engines(self) -> dict[str, sa.Engine]:
        """Its engines by name: ours, or in an app context those of Flask-SQLAlchemy and Flask-SQLAlchemy-Lite."""
        if self.engines:
            return self.engines
        if not has_app_context() or app_ctx.app is not self.app:
            return {}
        with contextlib.suppress(RuntimeError):
            owned = getattr(self.app.extensions.get("sqlalchemy"), "engines", None) or {}
            default_first = sorted(owned.items(), key=lambda named: named[0] is not None)
            return {name or DEFAULT_BIND: engine for name, engine in default_first}
        return {}

    def open_board(self) -> Board | None:
        """This process's board, made when it is first asked for; None where ``UOW_STATS`` is off."""
        if self.board is None and self.settings.stats:
            with self.board_lock:
                if self.board is None:
                    _fork.abandon_in_children(self)
                    self.board = open_board(self.app, self.settings.stats_dir)
        return self.board

    def abandon(self) -> object:
        """Hand over the parent's board; a forked child makes its own."""
        board, self.board, self.board_lock = self.board, None, threading.Lock()
        return board

    def publish_violation(self, code: str) -> None:
        """Count the violation of a rule where others can read it."""
        board = self.board or self.open_board()
        if board is not None:
            board.count_violation(code)


STATE_KEY = "uow_state"
"""Where ``app.extensions`` has an app's :class:`AppState`."""

innermost: ContextVar[Unit | None] = ContextVar("innermost")
"""The innermost unit as each task sees it: two tasks that interleave on one session see different ones."""

get_innermost, set_innermost = innermost.get, innermost.set
"""Bound once: every unit and every checkout asks."""

STATUS_PROBE = "_uow_probe"
"""Where a dialect that is watched has the function that reads its driver's transaction status."""


def state_of_app(app: Flask, sessions: Sessions | None = None) -> AppState:
    """What the extension keeps for an app.

    :param sessions: those of the extension that is asked for; any will do if None.
    :raises ConfigurationError: if none serves the app, or another one does.
    """
    state: AppState | None = app.extensions.get(STATE_KEY)
    if state is None:
        raise ConfigurationError(
            f"App {app.name!r} has no UnitOfWork.", fix="Call UnitOfWork(app), or init_app(app) of your UnitOfWork."
        )
    if sessions is not None and state.sessions is not sessions:
        raise ConfigurationError(
            f"App {app.name!r} is not served by this UnitOfWork.",
            fix="Call init_app(app) on it, and make one UnitOfWork per process, not one per app.",
        )
    return state


class SessionState:
    """The extension's side of one session.

    :param app_state: the app under whose context the session was made.
    :param is_own_session: whether this extension made the session, so that it may expire its objects, and takes it back
        in a later context if it goes on after its own.
    :ivar is_over: whether the context of the session has ended.
    :ivar work: its thread's work in it; None where no other thread takes the session back.
    :ivar has_lost_writes: whether it was taken back with writes in it, and its thread has not heard of that.
    :ivar is_stale: whether objects of an earlier transaction are still to be expired.
    :ivar wrote: whether this transaction has sent something that writes.
    :ivar last_commit: the label of the outermost unit that was committed last in a request's view, and that request;
        None before.
    :ivar committing: the unit whose COMMIT is being sent.
    :ivar confirms: whether the servers are to be asked if that is lost.
    :ivar board: where it says what it does; None where nobody is told.
    :ivar live: the slot there of its innermost unit, or of the connection it has outside of units.
    :ivar told: how many statements it has sent, each as the board's ``STATEMENT``.
    :ivar told_in_units: those that were in units that have ended.
    :ivar readers: where its app's read-only units run; None for where all others do.
    :ivar reader: the one on which its unit runs.
    :ivar idle_s: for how many seconds its transactions have waited for the next statement.
    :ivar is_closed: whether it was counted as closed.
    :ivar inserted: the objects that this transaction has inserted, but for those after very many, for UOW106.
    :ivar committed: the identity keys of those that earlier transactions have inserted and committed.
    """

    # What a session has at first, and most have until their end: said here, it makes each of them cheaper. What every
    # session is asked for is said in its own attributes, where it is found sooner; of these Python bears thirty before
    # it makes a dict of them.
    last_commit: tuple[str, object] | None = None
    committed: set[Any] | None = None
    error: BaseException | None = None
    begin_site: CallSite | None = None
    write_site: CallSite | None = None
    confirms = sent_commit = has_lost_writes = False
    board: Board | None = None
    lost_commit: LostCommit | None = None  # who is to be asked when a COMMIT loses its connection

    def __init__(self, app_state: AppState, *, is_own_session: bool) -> None:
        self.app_state = app_state
        self.settings = app_state.settings
        self.readers = app_state.readers
        self.generation = _fork.generation
        self.work: Work | None = None
        self.unit: Unit | None = None
        self.is_own_call = self.is_flushing = self.is_stale = self.wrote = False
        self.is_own_session = is_own_session
        self.committing: Unit | None = None
        self.inserted: list[Any] = []
        self.links: list[Link] = []
        self.breach: RuleViolationError | None = None
        self.live: Live | None = None
        self.told = self.told_in_units = self.idle_s = 0.0
        self.is_over = self.is_closed = False
        self.reader: Reader | None = None
        self.board = board = app_state.board or app_state.open_board()
        if board is not None:
            board.count(OPENED)

    def __del__(self) -> None:
        """Count a session that was dropped: its owner has removed it, or its context was left without an end."""
        if self.board is not None and not self.is_closed:
            self.close()

    def begin_transaction(self) -> None:
        """Forget the transaction before."""
        self.links = []
        self.error = self.breach = self.begin_site = self.write_site = None
        self.wrote = self.sent_commit = False
        if self.confirms or self.lost_commit is not None:
            self.confirms, self.lost_commit = False, None

    @property
    def app(self) -> Flask:
        """Its app."""
        return self.app_state.app

    @property
    def rules(self) -> RuleBook:
        """The app's rule book."""
        return self.app_state.rules

    def close(self) -> None:
        """Let the units be over that its owner closes it under, and count what it did outside of units."""
        unit, self.unit = self.unit, None
        while unit is not None:
            unit.outlive_session()
            unit = unit.parent
        self.inserted = []
        board = self.board
        if board is None:
            return
        self._count_outside(board)
        if not self.is_closed:
            self.is_closed = True
            board.count(CLOSED)

    def start_count_anew(self, board: Board) -> None:
        """Forget the statements so far when they are counted: very many leave no room for a time beside them."""
        self._count_outside(board)
        self.told = self.told_in_units = 0.0

    def _count_outside(self, board: Board) -> None:
        """Count the statements that were in no unit."""
        told = self.told
        if told > self.told_in_units:
            board.count(STATEMENTS_OUTSIDE, round((told - self.told_in_units) / STATEMENT))
            self.told_in_units = told

    def forget_connections(self) -> None:
        """Untie the connections of a transaction that has ended, so that no cycle keeps them."""
        for link in self.links:
            connection: Any = link.connection
            connection._uow = link.pooled._uow = None  # type: ignore[attr-defined]
            if not connection.closed and not link.is_lent:
                link.give_back()
        self.links = []

    def expire_unmodified(self, session: Session) -> None:
        """A new transaction reads fresh rows; what was changed before it began must not be lost, and stays.

        Not where a change is what begins it: a child that is appended begins one before its parent counts as modified.
        In a flush, what is sent is what was changed.
        """
        if self.is_flushing:
            return
        self.is_stale = False
        for entity in list(session.identity_map.values()):
            inspected = sa.inspect(entity)
            if not inspected.modified:
                session.expire(entity, inspected.mapper.attrs.keys() & inspected.dict.keys())

    def own_call(self) -> OwnCall:
        """Let the session's own methods pass the guard, for a ``with`` block."""
        return OwnCall(self)

    @property
    def is_guarded(self) -> bool:
        """Whether a commit or rollback that comes now is the user's, inside a unit."""
        return self.unit is not None and not self.is_own_call

    @property
    def is_inherited(self) -> bool:
        """Whether the session belongs to the process that forked this one."""
        return self.generation != _fork.generation

    def check_process(self) -> None:
        """Refuse a parent's session in a forked child.

        :raises UnitOfWorkError: then, before anything is sent on the parent's socket.
        """
        if self.is_inherited:
            raise UnitOfWorkError(
                "A session of the parent process was used after a fork.",
                fix="Use uow.session in the child; it makes a session and a connection of its own.",
            )

    def refusal(self, code: str, **details: str) -> RuleViolationError:
        """A violation that has been counted and signalled, to be raised."""
        label = self.unit.label if self.unit else ""
        error = violation(code, None, label=label, **details)
        report(self.app, self.rules, error)
        return error

    def use_after_end(self) -> RuleViolationError:
        """The refusal to go on with what was taken back from another thread."""
        return self.refusal(
            "UOW202", who="session", what="it was closed with its context, and its thread still used it"
        )

    def survives_lost_commit(self, engine: sa.Engine) -> bool:
        """Whether a COMMIT that lost its connection is known to have happened, or had nothing to do.

        :param engine: where it was sent.
        """
        if self.lost_commit is not None:
            return self.lost_commit(engine)
        return self.unit is not None and self.unit.has_nothing_to_commit and engine.dialect.name == "postgresql"

    def note_error(self, error: BaseException) -> None:
        """Keep the first error of those that may have taken the transaction with them."""
        if self.error is None:
            self.error = error

    def tell_rest(self, lost: Link | None = None) -> None:
        """Say on the board what it does until its next statement, where that is not what the last one has left.

        :param lost: a connection that was lost just now.
        """
        if self.live is not None:
            idle = [link.idle_since for link in self.links if link is not lost and link.is_idle()]
            # Of one that was noticed already, it is not known any more since when.
            since_s = min(max(idle), time.monotonic()) if idle else 0.0
            self.live.reals[self.live.at] = self.told + (IDLE + since_s if idle else 0.0)

    def has_lost_transaction(self) -> bool:
        """Whether a COMMIT sent now would not commit what was done: the servers' own word, at no cost."""
        for link in self.links:
            status = link.status()
            if status is _IN_TRANSACTION and not link.was_lost:
                continue  # as nearly always
            if link.was_lost or status is TransactionStatus.IN_ERROR or status is None:
                return True
            if status is _IDLE and link.has_lost_transaction():
                return True
        return False

    def is_ending(self) -> bool:
        """Whether the unit's own calls end the transaction, or a savepoint; the flush of a commit comes before that."""
        return self.is_own_call and (self.committing is None or self.sent_commit)

    def has_aborted_transaction(self) -> bool:
        """Whether a server has aborted its part of the transaction, so that COMMIT would lose it in silence."""
        return any(link.was_lost or link.status() is TransactionStatus.IN_ERROR for link in self.links)

    def has_ended_transaction(self) -> bool:
        """Whether a server is in no transaction although one was begun: somebody ended it by hand."""
        return any(link.was_begun and link.status() is TransactionStatus.IDLE for link in self.links)


class Begins(Enum):
    """When a SQLite connection's transaction is still to be begun."""

    NEVER = "it has been, or begins without us"
    BEFORE_WRITE = "before what is no read"
    NOW = "before the next statement, to write"


_NEVER, _NOT_YET = Begins.NEVER, math.inf
_IDLE, _IN_TRANSACTION = TransactionStatus.IDLE, TransactionStatus.IN_TRANSACTION
_UNKNOWN = TransactionStatus.UNKNOWN


class Link:
    """What ties a connection to the session whose transaction it carries.

    :ivar was_committed: whether its server has committed.
    :ivar is_lent: whether the session was given the connection, which is not its own to close.
    :ivar is_guest: whether the transaction is its lender's as well, and goes on when the session has ended its own.
    :ivar refuses_writes: whether SQLite was told to refuse writes on it.
    :ivar is_to_refuse_writes: whether it is to be told so before the first statement that may write.
    :ivar begins: when SQLite's transaction is still to be begun.
    :ivar changes_before: how many rows it had changed in its life when the transaction began; SQLite counts them.
    :ivar limit_s: what its server was told last of how long the transaction may still last, in seconds.
    :ivar idle_since: when the last statement was answered, in seconds of the monotonic clock; infinite before that.
    :ivar was_begun: whether its server was seen in the transaction; PostgreSQL begins it with the first statement.
    :ivar was_lost: whether the transaction was seen to have ended unasked.
    :ivar riders: what waits on it for the next statement; None where statements do not ride.
    :ivar reads_alone: whether a harmless read on it needs no transaction.
    :ivar has_past: whether the transaction was open already when it was met, so that it may have written unseen.
    """

    has_past = is_guest = refuses_writes = False
    changes_before = 0
    limit_s: float | None = None

    def __init__(self, state: SessionState, connection: sa.Connection) -> None:
        self.state = state
        self.connection = connection
        self.was_begun = self.was_committed = self.was_lost = self.is_to_refuse_writes = False
        self.is_lent = self.reads_alone = False
        self.begins = _NEVER
        self.idle_since = _NOT_YET
        self.pooled = pooled = connection.connection
        self.riders: Riders | None = getattr(pooled.dbapi_connection, "riders", None)
        self._probe: Callable[[Any], TransactionStatus | None] = connection.dialect._uow_probe  # type: ignore[attr-defined]
        connection._uow = pooled._uow = self  # type: ignore[attr-defined]

    @property
    def dbapi_connection(self) -> Any:
        """The driver's connection, None once it is closed or lost."""
        return self.pooled.dbapi_connection

    def is_from(self, pool: sa.Pool) -> bool:
        """Whether a connection of ``pool`` is held, and not closed or lost."""
        return self.connection.engine.pool is pool and self.pooled.dbapi_connection is not None

    def give_back(self) -> None:
        """Close what its session has lost sight of; its driver may refuse, and the pool replaces it."""
        with contextlib.suppress(Exception):
            self.connection.close()

    def refuse_writes(self) -> None:
        """Let SQLite itself refuse whatever writes."""
        self.is_to_refuse_writes, self.refuses_writes = False, True
        refuse_writes(self.connection, refuse=True)

    def accept_writes(self) -> None:
        """Let SQLite take writes again."""
        self.refuses_writes = False
        refuse_writes(self.connection, refuse=False)

    def has_lost_transaction(self) -> bool:
        """Whether the transaction has ended unasked, so that what follows would be another one.

        SQLite rolls back by itself after some errors: ``INSERT OR ROLLBACK``, ``RAISE(ROLLBACK, ...)``, a full disk.
        """
        if self.was_begun and self.status() is TransactionStatus.IDLE:
            self.was_lost = True
        return self.was_lost

    def is_idle(self) -> bool:
        """Whether its transaction waits for the next statement."""
        return self.was_begun and self.status() not in (None, _IDLE, _UNKNOWN)

    def is_at_rest(self) -> bool:
        """Whether its server and its driver know of no transaction."""
        return (self.riders is None or not self.riders.is_begun) and self.status() is _IDLE

    def status(self) -> TransactionStatus | None:
        """The server's word on its transaction; None if the connection is closed or was lost.

        What waits counts where it changes the word: a failure of which the server has not heard, and a ROLLBACK TO
        that heals the one of which it has.
        """
        dbapi_connection, riders = self.pooled.dbapi_connection, self.riders
        if dbapi_connection is None:
            return None
        status = self._probe(dbapi_connection)
        if riders is not None and riders.waiting and status is not None:
            if riders.is_doomed:
                return TransactionStatus.IN_ERROR
            if status is TransactionStatus.IN_ERROR:
                return _IN_TRANSACTION
        return status


def link_of(connection: object) -> Link | None:
    """The link of a SQLAlchemy or pooled connection, None if it is no session's that the extension knows."""
    return getattr(connection, "_uow", None)


class OwnCall:
    """A stretch in which the extension itself begins, commits or rolls back."""

    __slots__ = ("_state", "_was_own_call")

    def __init__(self, state: SessionState) -> None:
        self._state = state

    def __enter__(self) -> None:
        self._was_own_call = self._state.is_own_call
        self._state.is_own_call = True

    def __exit__(self, *exception: object) -> None:
        self._state.is_own_call = self._was_own_call


def state_of(session: Session) -> SessionState | None:
    """The state of a session, or None if it was never under the extension's eyes."""
    return getattr(session, "_uow", None)


def guarded_state(session: Session) -> SessionState:
    """The state of a session that the extension handed out."""
    return session._uow  # type: ignore[attr-defined,no-any-return]


def has_pending(session: Session) -> bool:
    """Whether the session holds changes that no flush has sent yet."""
    return bool(session.new or session.deleted) or any(session.is_modified(changed) for changed in session.dirty)


def bind_of(session: Session) -> sa.Engine | sa.Connection | None:
    """What a session is bound to; None if nobody knows before a statement names a class, or SQLAlchemy's sharding."""
    try:
        return session.get_bind()
    except (sa.exc.UnboundExecutionError, AssertionError):  # the latter is how ShardedSession asks for a class
        return None


def outermost_of(unit: Unit) -> Unit:
    """The unit that owns the transaction."""
    while unit.parent is not None:
        unit = unit.parent
    return unit
