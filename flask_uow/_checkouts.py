"""Who has which connection: every checkout of a watched pool is said on the board, with who waits for it.

A connection that the session of a unit takes is the unit's. One that a session takes outside of units, or that somebody
takes by hand, has a place of its own on the board, with the line that took it; if it is not back when its context ends,
it has leaked, and is named (UOW202).

A class in front of the pool's class does it: SQLAlchemy's events of a pool come too late to see who waits.
"""

from __future__ import annotations

import sys
import time
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
    LEAKED,
    LIVE_STATE,
    POOL_LONGEST_NS,
    POOL_MAX_OVERFLOW,
    POOL_SIZE,
    POOL_TIMEOUT_MS,
    POOL_TIMEOUTS,
    POOL_WORDS,
    SLOT_BITS,
    STATE_BITS,
    TURN_BITS,
    Board,
    Kind,
    Live,
    State,
)
from ._callsite import CallSite, application_site
from ._drivers import server_process
from ._rules import report_at_teardown, violation
from ._scopes import Scope, find_context
from ._state import STATE_KEY, AppState, Link, innermost
from ._views import find_request

CHECKOUT = "uow_checkout"
"""Where a pooled connection's ``info`` has its :class:`Checkout`."""

_ORM_SESSION = orm_session.__file__
_HELD_BITS = SLOT_BITS + TURN_BITS
_STATE_MASK = (1 << STATE_BITS) - 1
_UNIT, _OF_SESSION, _BY_HAND = int(Kind.UNIT), int(Kind.SESSION), int(Kind.CONNECTION)
_WAITING, _HELD, _LEAKED = int(State.WAITING), int(State.HELD), int(State.LEAKED)


# ---- pools


def _watched_class(base: Any) -> type[sa.Pool]:
    """Put the watch in front of a pool's class."""

    class WatchedPool(base):  # type: ignore[misc]
        __slots__ = ()
        _uow_watch: Watch | None = None

        def connect(self) -> Any:
            watch = self._uow_watch
            board = watch.app_state.board or watch.app_state.open_board() if watch is not None else None
            if watch is None or board is None:
                return super().connect()
            live, kind = watch.find_holder(board, sys._getframe(1))
            words, at = board.words, live.at + LIVE_STATE
            before = words[at] & _STATE_MASK
            began_ns = time.monotonic_ns()
            words[at] = began_ns << STATE_BITS | _WAITING
            try:
                connection = super().connect()
            except BaseException as error:
                watch.give_up(board, live, before, error, is_own=kind != _UNIT)
                raise
            now_ns = time.monotonic_ns()
            words[at] = now_ns << STATE_BITS | (before if kind == _UNIT else _HELD)
            checkout = connection.info.get(CHECKOUT) or watch.know(board, connection, self)
            checkout.begin(live, now_ns, is_own=kind != _UNIT)
            if kind == _BY_HAND:
                _note_taken(checkout)
            if now_ns - began_ns > watch.longest_ns:
                watch.note_wait(board, now_ns - began_ns)
            return connection

        def _do_return_conn(self, record: Any) -> None:
            checkout: Checkout | None = record.info.get(CHECKOUT)
            if checkout is not None and checkout.since_ns:
                checkout.end()
            super()._do_return_conn(record)

        def recreate(self) -> Any:
            pool = super().recreate()
            pool._uow_watch = self._uow_watch
            return pool

    WatchedPool.__name__ = WatchedPool.__qualname__ = base.__name__
    return WatchedPool


_watched_classes: dict[type[sa.Pool], type[sa.Pool]] = {}
_WATCH = "_uow_watch"
"""Where a watched pool has its :class:`Watch`."""


def watch_pool(engine: sa.Engine, app: Flask) -> None:
    """Watch who takes an engine's connections.

    :param app: whose board tells of them.
    """
    app_state: AppState = app.extensions[STATE_KEY]
    if not app_state.settings.stats or hasattr(engine.pool, _WATCH):
        return
    base = type(engine.pool)
    if base not in _watched_classes:
        _watched_classes[base] = _watched_class(base)
    engine.pool.__class__ = _watched_classes[base]
    setattr(engine.pool, _WATCH, Watch(app_state, engine))
    event.listen(engine, "connect", _forget_checkout)


def unwatched(pool: sa.Pool) -> sa.Pool:
    """A pool that is like another one, and told of nowhere."""
    alike = pool.recreate()
    if hasattr(alike, _WATCH):
        setattr(alike, _WATCH, None)
    return alike


def _forget_checkout(dbapi_connection: Any, record: Any) -> None:
    record.info.pop(CHECKOUT, None)  # another connection, and another process of the server


class Watch:
    """What is known of a pool besides what it knows itself.

    :param engine: whose pool it is.
    :ivar longest_ns: the longest wait so far.
    """

    def __init__(self, app_state: AppState, engine: sa.Engine) -> None:
        self.app_state = app_state
        self.longest_ns = 0
        self._dialect = engine.dialect
        names = (name for name, each in app_state.engines.items() if each is engine)
        self._bind = next(names, "default" if not app_state.engines else engine.url.database or engine.name)
        self._row: tuple[Board | None, int] = (None, -1)

    def find_holder(self, board: Board, frame: Any) -> tuple[Live, int]:
        """Whoever asks for a connection: the unit that runs, or a new place of its own.

        :param frame: that of SQLAlchemy's engine.
        :return: its place, and the :class:`Kind` of that.
        """
        is_of_session = _is_of_session(frame)
        unit = innermost.get(None)
        if unit is not None and is_of_session and unit.is_active and unit._state.live is not None:
            return unit._state.live, _UNIT
        site = application_site()
        row = board.row(_label(site), site, is_inner=False)
        kind = _OF_SESSION if is_of_session else _BY_HAND
        return board.occupy(kind, row, _WAITING, time.monotonic_ns()), kind

    def give_up(self, board: Board, live: Live, before: int, error: BaseException, *, is_own: bool) -> None:
        """A wait was in vain."""
        live.turn_to(before, time.monotonic_ns())
        if is_own:
            live.free()
        at = self._at(board, POOL_TIMEOUTS)
        if isinstance(error, sa.exc.TimeoutError) and at:
            board.count(at)

    def note_wait(self, board: Board, waited_ns: int) -> None:
        """Remember the longest wait."""
        self.longest_ns = waited_ns
        at = self._at(board, POOL_LONGEST_NS)
        if at:
            board.words[at] = max(waited_ns, board.words[at])

    def know(self, board: Board, connection: Any, pool: Any) -> Checkout:
        """A connection is met for the first time: give it a place on the board."""
        self._describe(board, pool)
        pid = server_process(self._dialect.driver, connection.dbapi_connection)
        checkout = connection.info[CHECKOUT] = Checkout(board, self._row[1], pid)
        return checkout

    def _describe(self, board: Board, pool: Any) -> None:
        if self._row[0] is board:
            return
        self.longest_ns = 0
        self._row = (board, board.pool_row(self._bind, type(pool).__name__))
        sizes = (-1, -1, -1)
        if isinstance(pool, sa.QueuePool):
            sizes = (pool.size(), pool._max_overflow, round(pool.timeout() * 1000))
        for field, number in zip((POOL_SIZE, POOL_MAX_OVERFLOW, POOL_TIMEOUT_MS), sizes, strict=True):
            at = self._at(board, field)
            if at:
                board.words[at] = number

    def _at(self, board: Board, field: int) -> int | None:
        known, row = self._row
        return AT_POOL_ROWS + POOL_WORDS * row + field if known is board and row >= 0 else None


def _is_of_session(frame: Any) -> bool:
    """Whether SQLAlchemy's session asks for the connection, and not the application."""
    for _ in range(5):
        if frame is None:
            return False
        if frame.f_code.co_filename == _ORM_SESSION:
            return True
        frame = frame.f_back
    return False


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
    :ivar since_ns: when it was taken, 0 while it is in the pool.
    :ivar own: the place of whoever took it outside of units.
    """

    __slots__ = ("_at", "_board", "_index", "_told", "own", "since_ns")

    def __init__(self, board: Board, pool_row: int, pid: int) -> None:
        self._board = board
        self._index = board.take_connection()
        self._at = 0 if self._index is None else AT_CONNECTIONS + CONNECTION_WORDS * self._index
        self.since_ns = 0
        self.own: Live | None = None
        self._told: Live | None = None
        if self._index is not None:
            board.words[self._at + CONNECTION_PID] = pid
            board.words[self._at] = pool_row + 1

    def __del__(self) -> None:
        if self.own is not None:
            self.own.free()
        if self._index is not None:
            self._board.free_connection(self._index)

    def begin(self, live: Live, now_ns: int, *, is_own: bool) -> None:
        """It was taken from the pool."""
        self.since_ns = now_ns
        self.own = live if is_own else None
        self._tell(live)

    def give_to(self, live: Live) -> None:
        """It is another's from now on."""
        if self.own is not None:
            self.own.free()
            self.own = None
        if live is not self._told:
            self._tell(live)

    def _tell(self, live: Live) -> None:
        self._told = live
        if self._index is not None:
            self._board.words[self._at + CONNECTION_HELD] = self.since_ns // 1000 << _HELD_BITS | live.tag

    def end(self) -> None:
        """It is back in the pool."""
        held_ns, self.since_ns = time.monotonic_ns() - self.since_ns, 0
        self._told = None
        board = self._board
        if self._index is not None:
            board.words[self._at + CONNECTION_HELD] = 0
        if self.own is not None:
            self.own.free()
            self.own = None
        board.count_held(held_ns)


def hold(link: Link) -> None:
    """Say that a connection is its session's: its outermost unit's, or its own outside of units."""
    checkout: Checkout | None = link.pooled_info.get(CHECKOUT)
    if checkout is None:
        return
    state = link.state
    unit = state.unit
    while unit is not None and unit.parent is not None:
        unit = unit.parent
    if unit is None:
        state.live = checkout.own
    elif unit.live is not None:
        checkout.give_to(unit.live)


# ---- leaks


class Taken(NamedTuple):
    """A connection that was taken by hand under a context.

    :ivar own: the place that it had on the board then.
    :ivar site: the line that took it.
    """

    checkout: Checkout
    own: Live | None
    site: CallSite | None


def _note_taken(checkout: Checkout) -> None:
    context = find_context()
    scope: Scope | None = getattr(context, "_uow_scope", None)
    if scope is not None:
        scope.taken = [each for each in scope.taken or () if each.checkout.own is each.own]
        scope.taken.append(Taken(checkout, checkout.own, application_site()))


def report_leaks(app_state: AppState, scope: Scope) -> None:
    """Name the connections that a context leaves behind (UOW202); never raises."""
    taken, scope.taken = scope.taken or (), None
    for checkout, own, site in taken:
        board = app_state.board
        if own is None or checkout.own is not own or board is None:
            continue
        own.turn_to(_LEAKED, time.monotonic_ns())
        board.count(LEAKED)
        error = violation("UOW202", site, what="a connection that was taken there was not given back")
        report_at_teardown(app_state.app, app_state.rules, error)
