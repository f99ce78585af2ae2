"""Who has which connection: every checkout of a watched pool is said on the board, with who waits for it.

A connection that the session of a unit takes is the unit's. One that a session takes outside of units, or that somebody
takes by hand, has a place of its own on the board, with the line that took it; if it is not back when its context ends,
it has leaked, and is named (UOW202).

A class in front of the pool's class does it: SQLAlchemy's events of a pool come too late to see who waits.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import session as orm_session

from ._board import (
    AT_CONNECTIONS,
    AT_POOL_ROWS,
    CONNECTION_HELD,
    CONNECTION_PID,
    CONNECTION_WORDS,
    HELD,
    LEAKED,
    LEAKING,
    LIVE_CONNECTION,
    LIVE_TOLD_BEFORE,
    POOL_LONGEST_S,
    POOL_MAX_OVERFLOW,
    POOL_SIZE,
    POOL_TIMEOUT_MS,
    POOL_TIMEOUTS,
    POOL_WORDS,
    SLOT_BITS,
    STATEMENT,
    WAITING,
    Board,
    Kind,
    Live,
    shown_name,
)
from ._board_files import notice_removal
from ._callsite import CallSite, application_site
from ._drivers import server_process
from ._fronts import made_of
from ._pool import class_name
from ._rules import report_at_teardown, violation
from ._scopes import Scope, find_context
from ._settings import DEFAULT_BIND
from ._state import STATE_KEY, AppState, Link, SessionState, get_innermost, outermost_of
from ._views import find_request

CHECKOUT = "uow_checkout"
"""Where a pooled connection's ``info`` has its :class:`Checkout`."""
ROOM_FOR_POOL = 56
"""The bytes of a pool's name on the board, but for what tells it from namesakes."""

_ORM_SESSION = orm_session.Session.close.__code__.co_filename
_getframe = sys._getframe
_UNIT, _OF_SESSION, _BY_HAND = int(Kind.UNIT), int(Kind.SESSION), int(Kind.CONNECTION)


# ---- pools


def _watched_class(base: Any) -> type[sa.Pool]:
    """Put the watch in front of a pool's class."""
    connect = base.connect
    has_queue = issubclass(base, sa.QueuePool) and not issubclass(base, sa.AsyncAdaptedQueuePool)

    class WatchedPool(base):  # type: ignore[misc]
        __slots__ = ()
        _uow_watch: Watch | None = None

        def connect(self) -> Any:
            unit = get_innermost(None)
            live = unit.live if unit is not None else None
            if live is not None and not live.held_since_s and has_queue and self._pool.queue:
                try:
                    # In all versions of SQLAlchemy, a session that asks for a connection is as far away.
                    if _getframe(4).f_code.co_filename == _ORM_SESSION:
                        return connect(self)  # at once, for the unit's session, which is about to tell
                except ValueError:
                    pass  # nobody is that far away
                except sa.exc.TimeoutError:  # another thread was faster
                    if self._uow_watch is not None:
                        self._uow_watch.note_timeout(self)
                    raise
            watch = self._uow_watch
            return connect(self) if watch is None else watch.connect(self, connect)

        def recreate(self) -> Any:
            pool = super().recreate()
            pool._uow_watch = self._uow_watch
            return pool

    WatchedPool.__name__ = WatchedPool.__qualname__ = base.__name__
    return WatchedPool


_WATCH = "_uow_watch"
"""Where a watched pool has its :class:`Watch`."""

REAL_POOL = "_uow_real_pool"
"""Where the function by which a test's pool connects has the pool that is the app's."""


def watch_pool(engine: sa.Engine, app: Flask) -> None:
    """Watch who takes an engine's connections.

    :param app: whose board tells of them.
    """
    app_state: AppState = app.extensions[STATE_KEY]
    if not app_state.settings.stats or hasattr(engine.pool, _WATCH):
        return
    base = type(engine.pool)
    made = made_of(base)
    if Watch not in made:
        made[Watch] = _watched_class(base)
    engine.pool.__class__ = made[Watch]
    setattr(engine.pool, _WATCH, Watch(app_state, engine))
    for what in ("connect", "invalidate", "detach", "close"):
        event.listen(engine, what, _forget_checkout)


def unwatched(pool: sa.Pool) -> sa.Pool:
    """A pool that is like another one, and told of nowhere; like the real one, where a test's stands in for it."""
    alike = getattr(pool._creator, REAL_POOL, pool).recreate()
    if hasattr(alike, _WATCH):
        setattr(alike, _WATCH, None)
    return alike


@contextmanager
def unseen(pool: sa.Pool) -> Iterator[None]:
    """Take a connection for a ``with`` block without a word of it to anybody."""
    watch = getattr(pool, _WATCH, None)
    if watch is not None:
        setattr(pool, _WATCH, None)
    try:
        yield
    finally:
        if watch is not None:
            setattr(pool, _WATCH, watch)


def _forget_checkout(dbapi_connection: Any, record: Any, *exception: Any) -> None:
    """Another connection is another process of the server, and one that is lost or closed is nobody's.

    What an error has met stays referenced by its traceback until the collector comes.
    """
    checkout = record.info.pop(CHECKOUT, None)
    if checkout is not None:
        checkout.end()


class Watch:
    """What is known of a pool besides what it knows itself.

    A pool may serve several apps, and outlive the one that has met it: Flask-SQLAlchemy's engines know their app by a
    weak reference alone.

    :param engine: whose pool it is.
    """

    def __init__(self, app_state: AppState, engine: sa.Engine) -> None:
        self._find_app_state = weakref.ref(app_state)
        self._driver = engine.dialect.driver
        self._bind = _bind_name(app_state, engine)
        self._row: tuple[Callable[[], Board | None], int] = (lambda: None, -1)

    def connect(self, pool: sa.Pool, connect: Callable[[Any], Any]) -> Any:
        """Take a connection that somebody may have to wait for, or that no unit's session asks for."""
        board = self.board
        if board is None:
            return connect(pool)
        row = self._describe(board, pool)
        live, kind = self._find_holder(board, _getframe(2))
        live.wait_for(row)
        is_full = isinstance(pool, sa.QueuePool) and -1 < pool._max_overflow <= pool.overflow() and not pool.checkedin()
        before, began_s = live.reals[live.at], time.monotonic()
        live.reals[live.at] = before // STATEMENT * STATEMENT + (WAITING + began_s)
        try:
            connection = connect(pool)
        except BaseException as error:
            live.wait_for(-1)
            live.reals[live.at] = before
            if kind != _UNIT:
                live.free()
            if isinstance(error, sa.exc.TimeoutError):
                self.note_timeout(pool)
            _note_wait(board, row, time.monotonic() - began_s if is_full else 0.0)
            raise
        now_s = time.monotonic()
        live.wait_for(-1)
        live.reals[live.at] = before if kind == _UNIT else HELD + now_s
        _note_wait(board, row, now_s - began_s if is_full else 0.0)
        if kind != _UNIT:
            checkout = connection.info.get(CHECKOUT)
            if checkout is None or checkout.find_board() is not board:
                checkout = self.know(connection, board)
            checkout.begin(live, now_s, connection)
            _note_taken(checkout, live)
        return connection

    def _find_holder(self, board: Board, frame: Any) -> tuple[Live, int]:
        """Whoever asks for a connection: the unit that runs, or a new place of its own.

        :param frame: that of SQLAlchemy's engine.
        :return: its place, and the :class:`Kind` of that.
        """
        is_of_session = any(map(_is_of_session, _frames(frame, 6)))
        unit = get_innermost(None)
        if unit is not None and is_of_session and unit.live is not None:
            return unit.live, _UNIT
        site = application_site()
        row = board.row(_label(site), site, is_inner=False)
        kind = _OF_SESSION if is_of_session else _BY_HAND
        return board.occupy(kind, row, time.monotonic()), kind

    def note_timeout(self, pool: sa.Pool) -> None:
        """Somebody has waited for a connection in vain."""
        board = self.board
        at = _at(self._describe(board, pool), POOL_TIMEOUTS) if board is not None else None
        if board is not None and at:
            board.count(at)
        app_state = self._app_state
        if app_state is not None:
            app_state.note_full(self._bind)

    @property
    def board(self) -> Board | None:
        """The board of the app that uses the pool."""
        app_state = self._app_state
        return app_state.board or app_state.open_board() if app_state is not None else None

    @property
    def _app_state(self) -> AppState | None:
        """What is kept for the app that uses the pool now; where that is not known, for the last one that did."""
        known, context = self._find_app_state(), find_context()
        user: AppState | None = context.app.extensions.get(STATE_KEY) if context is not None else None
        if user is None or user is known or not user.settings.stats:
            return known
        self._find_app_state = weakref.ref(user)
        return user

    def know(self, connection: Any, board: Board) -> Checkout:
        """A connection is met for the first time, or has been another app's: give it a place on the board."""
        row = self._describe(board, connection._pool)
        app_state = self._app_state
        if app_state is not None:
            notice_removal(app_state.app, board)
        pid = server_process(self._driver, connection.dbapi_connection)
        checkout: Checkout = Checkout(board, row, pid)
        connection.info[CHECKOUT] = checkout
        return checkout

    def _describe(self, board: Board, pool: sa.Pool) -> int:
        """Say once what pool it is.

        :return: its row, -1 for none.
        """
        find_board, row = self._row
        if find_board() is board:
            return row
        row = board.pool_row(self._bind, class_name(pool))
        self._row = (weakref.ref(board), row)
        sizes = (-1, -1, -1)
        if isinstance(pool, sa.QueuePool):
            sizes = (pool.size(), pool._max_overflow, round(pool.timeout() * 1000))
        for field, number in zip((POOL_SIZE, POOL_MAX_OVERFLOW, POOL_TIMEOUT_MS), sizes, strict=True):
            at = _at(row, field)
            if at:
                board.words[at] = number
        return row


def _note_wait(board: Board, row: int, waited_s: float) -> None:
    at = _at(row, POOL_LONGEST_S)
    if at and waited_s > board.reals[at]:
        with board.lock:
            board.reals[at] = max(waited_s, board.reals[at])


def _at(row: int, field: int) -> int | None:
    return AT_POOL_ROWS + POOL_WORDS * row + field if row >= 0 else None


def _is_of_session(frame: Any) -> bool:
    """Whether a frame is one of SQLAlchemy's sessions."""
    is_session: bool = frame.f_code.co_filename == _ORM_SESSION
    return is_session


def _bind_name(app_state: AppState, engine: sa.Engine) -> str:
    """The bind's name, or what an engine is called that has none."""
    named = app_state.named_engines()
    for name, each in named.items():
        if each is engine:
            return name
    known = [each for each in app_state.watched_pools if each[0]() is not None]
    name = name_without_bind(engine, {*named, *(its_name for _, its_name in known)})
    app_state.watched_pools = [*known, (weakref.ref(engine), name)]
    return name


def name_without_bind(engine: sa.Engine, names: Collection[str]) -> str:
    """What an engine is called that nobody has named: ``default`` if it is the first, and then after its database.

    :param names: those of others.
    """
    database = os.path.basename(engine.url.database or engine.name)
    name = shown_name(database, ROOM_FOR_POOL) if names else DEFAULT_BIND
    shown, number = name, 1
    while shown in names:
        number += 1
        shown = f"{name} ({number})"
    return shown


def _frames(frame: Any, number: int) -> Iterator[Any]:
    for _ in range(number):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _label(site: CallSite | None) -> str:
    now = find_request()
    if now is not None:
        return f"{now.method} {now.url_rule.rule if now.url_rule else 'without a view'}"
    return site.code.co_qualname if site else "not known"


# ---- connections


class Checkout:
    """A pooled connection's place on the board.

    :param pool_row: the row of its pool, -1 for none.
    :param pid: the server's process.
    :ivar find_board: gives the board as long as its app is there, which a pool may outlive.
    :ivar number: its row and one, 0 if it has none.
    :ivar own: the place of whoever took it outside of units.
    :ivar is_of_session: whether that is a session that its context takes back.
    """

    __slots__ = ("_at", "_since_s", "find_board", "is_of_session", "number", "own")

    def __init__(self, board: Board, pool_row: int, pid: int) -> None:
        self.find_board = weakref.ref(board)
        index = board.take_connection()
        self.number = 0 if index is None else index + 1
        self._at = 0 if index is None else AT_CONNECTIONS + CONNECTION_WORDS * index
        self._since_s = 0.0
        self.own: Live | None = None
        self.is_of_session = False
        if index is not None:
            board.words[self._at + CONNECTION_PID] = pid
            board.words[self._at] = pool_row + 1

    def __del__(self) -> None:
        if self.own is not None:
            self.own.free()
        board = self.find_board()
        if self.number and board is not None:
            board.free_connection(self.number - 1)

    def begin(self, live: Live, now_s: float, pooled: Any) -> None:
        """It was taken outside of units; its pool calls back when it returns."""
        if self.own is not None:
            self.own.free()  # a pool that lends one connection several times
        self.is_of_session = False
        self._since_s = now_s
        self.own = live
        self.tell(live)
        pooled._connection_record.finalize_callback.append(self._returned)

    def _returned(self, dbapi_connection: Any) -> None:
        self.end()

    def tell(self, live: Live | None) -> None:
        """Say who has it, where that does not say so itself."""
        board = self.find_board()
        if self.number and board is not None:
            held = 0 if live is None else live.turns << SLOT_BITS | live.index + 1
            board.words[self._at + CONNECTION_HELD] = held

    def end(self) -> None:
        """It is back in the pool, or a unit's."""
        own, self.own = self.own, None
        if own is not None:
            self.tell(None)
            own.free()
            own.board.count_checkout(time.monotonic() - self._since_s)


def hold(link: Link, state: SessionState) -> None:
    """Say that a connection is its session's: its outermost unit's, or its own outside of units."""
    pooled: Any = link.pooled
    record = pooled._connection_record  # its info by the public way takes twice as long
    checkout: Checkout | None = record.info.get(CHECKOUT) if record is not None else None
    if checkout is None or checkout.find_board() is not state.board:
        checkout = _know(pooled, state)
        if checkout is None:
            return
    unit = state.unit
    live = None if unit is None else (unit if unit.parent is None else outermost_of(unit)).live
    if live is None:
        _hold_outside(pooled, checkout, state)
        return
    if checkout.own is not None:
        if link.is_lent:
            return  # it stays with whoever took it
        checkout.end()
    if live.held_since_s:
        checkout.tell(live)
    else:
        live.held_since_s = time.monotonic()
        live.words[live.at + LIVE_CONNECTION] = checkout.number


def _hold_outside(pooled: Any, checkout: Checkout, state: SessionState) -> None:
    if checkout.own is None:  # another session than that of the unit for which it was taken
        _place(pooled, checkout, _OF_SESSION)
    checkout.is_of_session = True
    state.live = live = checkout.own
    if live is not None:
        live.reals[live.at + LIVE_TOLD_BEFORE] = state.told


def let_go(state: SessionState) -> None:
    """Say that a session's outermost unit has none of its connections any more, and goes on."""
    live = outermost_of(state.unit).live if state.unit is not None else None
    if live is not None:
        live.held_since_s = 0.0
        live.words[live.at + LIVE_CONNECTION] = 0


def _know(pooled: Any, state: SessionState) -> Checkout | None:
    """Give a place to a connection that was taken without a word of the pool's; not if it is no pool's any more."""
    watch: Watch | None = getattr(pooled._pool, _WATCH, None) if pooled._connection_record is not None else None
    return watch.know(pooled, state.board) if watch is not None and state.board is not None else None


def meet_by_hand(connection: sa.Connection) -> None:
    """Give a place to a connection that speaks, is no session's that is known, and has none yet."""
    pooled: Any = connection.connection
    record = pooled._connection_record
    checkout: Checkout | None = record.info.get(CHECKOUT) if record is not None else None
    if checkout is not None and checkout.own is None:
        _place(pooled, checkout, _BY_HAND)


def _place(pooled: Any, checkout: Checkout, kind: int) -> None:
    """Say late who has a connection: the line that speaks is near the one that took it."""
    board = checkout.find_board()
    if board is not None:
        site, now_s = application_site(), time.monotonic()
        live = board.occupy(kind, board.row(_label(site), site, is_inner=False), now_s)
        live.tell(HELD)
        checkout.begin(live, now_s, pooled)
        _note_taken(checkout, live)


# ---- leaks


class Taken(NamedTuple):
    """A connection that was taken by hand under a context.

    :ivar own: the place that it had on the board then.
    :ivar turn: and how often that had been taken.
    :ivar site: the line that took it.
    """

    checkout: Checkout
    own: Live
    turn: int
    site: CallSite | None

    @property
    def is_held(self) -> bool:
        """Whether it has not been given back since, nor is taken back with its session."""
        is_same = self.checkout.own is self.own and self.own.turns == self.turn
        return is_same and not self.checkout.is_of_session


def _note_taken(checkout: Checkout, live: Live) -> None:
    context = find_context()
    scope: Scope | None = getattr(context, "_uow_scope", None)
    if scope is not None:
        scope.taken = [each for each in scope.taken or () if each.is_held]
        scope.taken.append(Taken(checkout, live, live.turns, application_site()))


def report_leaks(app_state: AppState, scope: Scope) -> None:
    """Name the connections that a context leaves behind (UOW202); never raises."""
    taken, scope.taken = scope.taken or (), None
    for each in taken:
        if not each.is_held:
            continue
        each.own.tell(LEAKING)
        each.own.board.count(LEAKED)
        error = violation("UOW202", each.site, who="connection", what="it was taken there, and not given back")
        report_at_teardown(app_state.app, app_state.rules, error)
