"""Units of work: how one begins, what its ending means, and how that ending is carried out.

How a unit ends is decided by :func:`ending`, a pure function over this table; :meth:`Unit.end` obeys it.

=============================  =====================================  ==========================================
the body                       the unit                               ending
=============================  =====================================  ==========================================
returned                       healthy                                COMMIT
returned                       ``set_rollback_only()``, status veto   ROLLBACK, the value stands
returned                       failed                                 FAIL: rollback and ``UnitFailedError``
raised what is to be kept      healthy                                COMMIT, the exception goes on
raised anything else           any                                    ROLLBACK, the exception goes on
raised                         failed, or set to roll back            ROLLBACK, the exception goes on
=============================  =====================================  ==========================================

A unit is one of three: *outermost* (it owns the session's transaction), a *savepoint*, or a *join*, which only
hands its failure to the unit that it joined. The rules are those of SIP-99B, completed by savepoints.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from . import _fork, signals
from ._board import BEGUN, IDLE, ROLLING_BACK, STATEMENT, Board, Kind, Live, Row, pack_live
from ._board import Outcome as End
from ._callsite import CallSite, is_of_application
from ._checkouts import hold, let_go
from ._drivers import TransactionStatus
from ._hooks import Hook, Hooks, When
from ._limits import limit_time
from ._notices import has_written_unseen, is_before_view, notice_idle, notice_length
from ._options import ISOLATION_LEVELS, Relation, UnitOptions
from ._outcome import Outcome
from ._ride import RIDES
from ._settings import is_in_memory
from ._state import (
    Begins,
    Link,
    SessionState,
    bind_of,
    get_innermost,
    guarded_state,
    has_pending,
    outermost_of,
    set_innermost,
)
from ._unit_log import UnitOutcome, log_unit
from ._views import site_of_view
from .exceptions import (
    CommitOutcomeUnknownError,
    NoActiveUnitError,
    RuleViolationError,
    UnitFailedError,
    UnitOptionsError,
    UnitTimeoutError,
)

if TYPE_CHECKING:
    from flask import Request
    from sqlalchemy.orm import Session, SessionTransaction


_get_ident, _monotonic = threading.get_ident, time.monotonic
_unit_began, _unit_committed, _unit_rolled_back = signals.unit_began, signals.unit_committed, signals.unit_rolled_back
_COMMITTED, _ROLLED_BACK, _FAILED = int(End.COMMITTED), int(End.ROLLED_BACK), int(End.FAILED)
_MANY_TOLD = STATEMENT * (1 << 16)
"""So many statements leave a time of which the last digit is a thirtieth of a second."""
SQLITE_HAS_ONE_WRITER = (
    "SQLite has one writer: a unit on a connection of its own cannot run after the unit around it has sent a statement."
)
LET_IT_WRITE_FIRST = "Run it first, before the outer unit's first statement; or use PostgreSQL."


def _states_around() -> Iterator[SessionState]:
    """The sessions of the units that are active here, the innermost first; each as often as it has units."""
    unit = get_innermost(None)
    while unit is not None:
        if unit.is_active:
            yield unit._state
        unit = unit._around


def state_that_holds(pool: sa.Pool) -> SessionState | None:
    """The session whose unit, the innermost here or one around it, holds a connection of a pool."""
    holders = (state for state in _states_around() if any(link.is_from(pool) for link in state.links))
    return next(holders, None)


def connections_held(pool: sa.Pool) -> int:
    """How many connections of a pool the units hold that are active here."""
    return sum(link.is_from(pool) for state in set(_states_around()) for link in state.links)


def is_used_up(pool: sa.Pool) -> bool:
    """Whether the units that are active here hold all connections that a pool may have."""
    if not isinstance(pool, sa.QueuePool) or pool._max_overflow < 0:
        return False
    return connections_held(pool) >= pool.size() + pool._max_overflow


def is_inside_another(link: Link) -> bool:
    """Whether a unit around, in an app context of its own, has a lock on SQLite's file: it would be waited for in vain.

    One that has only read keeps the COMMIT of another one waiting.
    """
    return any(
        other.status() is TransactionStatus.IN_TRANSACTION
        for state in _states_around()
        if state is not link.state and state.unit is not None
        for other in state.links
        if _is_same_file(other, link)
    )


def _is_same_file(link: Link, other: Link) -> bool:
    """Whether two connections to SQLite are to one database; each engine has one in memory for itself."""
    engine, its = link.connection.engine, other.connection.engine
    return engine is its or (engine.url == its.url and not is_in_memory(engine.url))


class Ending(Enum):
    """What is done with a unit's work."""

    COMMIT = "commit"
    ROLLBACK = "roll back"
    FAIL = "roll back, and say that the work was lost"


def ending(*, has_raised: bool, is_kept: bool, is_failed: bool, is_rollback_only: bool) -> Ending:
    """The table of this module.

    :param has_raised: whether the body ended by an exception.
    :param is_kept: whether that exception is one of ``no_rollback_for``.
    :param is_failed: whether the transaction was lost inside the body.
    :param is_rollback_only: whether ``set_rollback_only()`` was called, or the status veto holds.
    """
    if has_raised and (is_failed or not is_kept):
        return Ending.ROLLBACK
    if is_rollback_only:
        return Ending.ROLLBACK
    return Ending.FAIL if is_failed else Ending.COMMIT


_COMMIT = Ending.COMMIT


class Unit:
    """One unit of work; made by ``transactional``, reached as ``current_unit``.

    :ivar session: the session whose transaction it is.
    :ivar label: ``POST /accounts/<id>`` for a view, the qualified name for a function.
    :ivar depth: 1 for an outermost unit, one more for each unit inside.
    :ivar attempt: 1, and one more for each retry.
    :ivar read_only: whether it refuses writes.
    :ivar needs_connection: whether a server is to hear of its options.
    :ivar is_active: whether it has begun and not ended.
    :ivar was_committed: whether it has ended and its work was kept: committed, or handed to the unit around it.
    :ivar is_known_aborted: whether the server said that a COMMIT that lost its connection did not happen.
    :ivar is_repeatable: whether another attempt would do all of its work, and none twice: not if writes came before it,
        nor if one of several databases has committed.
    :ivar was_on_reader: whether it has run on a reader.
    :ivar is_undone: whether it was rolled back before its end, and goes on in a transaction that will be as well.
    :ivar is_view: whether it is the current request's view, or its dispatch.
    :ivar request: the request in which it was begun, None outside of one.
    :ivar live: its place on the board, None where nobody is told.
    :ivar deadline: until when it may send statements, in seconds of the monotonic clock; None without a timeout.
    :ivar took_s: how long it took, in seconds, when it has ended.
    :ivar parent: the unit around it on the same session, or None.
    :ivar hooks: what was added that is to run; None if there is nothing.
    """

    # What a unit is at first, and most are until their end: said here, it makes each of them cheaper. What every unit
    # is asked for is said in its own attributes, where it is found sooner.
    depth = 1
    is_active = is_known_aborted = is_undone = is_view = was_on_reader = False
    is_repeatable = True
    request: Request | None = None
    took_s = 0.0
    _asked_before = _told = 0.0
    _has_failed = _has_savepoint = _is_in_doubt = _is_length_noticed = _is_outlived = False
    _transaction: SessionTransaction | None = None
    _unprotected: frozenset[sa.Connection] = frozenset()
    _row: Row

    def __init__(
        self,
        session: Session,
        state: SessionState,
        options: UnitOptions,
        label: str,
        place: Callable[..., Any] | CallSite,
        attempt: int = 1,
        deadline: float | None = None,
    ) -> None:
        self.session = session
        self.label = label
        self.parent = parent = state.unit
        if parent is not None:
            self.depth = parent.depth + 1
        self.read_only = options.read_only
        self.needs_connection = options.needs_connection
        self.attempt = attempt
        self.deadline = deadline
        self.was_committed = self._is_rollback_only = False
        self._failure: BaseException | None = None
        self._unended: UnitFailedError | None = None
        self.live: Live | None = None
        self._state = state
        self._options = options
        self._place = place
        self._around: Unit | None = None
        self._joined: Unit | None = None
        self.hooks: Hooks | None = None

    def __repr__(self) -> str:
        return f"<Unit {self.label!r} depth={self.depth} {'active' if self.is_active else 'ended'}>"

    # ---- for the code inside

    def before_commit(self, function: Hook) -> Hook:
        """Run ``function`` inside the outermost unit just before its COMMIT; may write. Usable as a decorator.

        :raises NoActiveUnitError: if the unit has ended.
        """
        return self._add(When.BEFORE_COMMIT, function)

    def after_commit(self, function: Hook) -> Hook:
        """Run ``function`` after the outermost COMMIT, when the connection is back in the pool.

        .. code-block:: python

            current_unit.after_commit(lambda: send_receipt(transfer_id))

        It is dropped if this unit, or a savepoint around it, is rolled back. An error in it is logged and changes
        nothing; with ``TESTING`` it is raised after all hooks have run.

        :raises NoActiveUnitError: if the unit has ended.
        """
        return self._add(When.AFTER_COMMIT, function)

    def after_rollback(self, function: Hook) -> Hook:
        """Run ``function`` when this unit, or one around it, was rolled back and the outermost has ended.

        :raises NoActiveUnitError: if the unit has ended.
        """
        return self._add(When.AFTER_ROLLBACK, function)

    def set_rollback_only(self) -> None:
        """Let the unit be rolled back at its end, without an exception; in a join, the unit that it joined.

        :raises NoActiveUnitError: if the unit has ended.
        """
        self._require_active()
        self._owner._is_rollback_only = True

    def _add(self, when: When, function: Hook) -> Hook:
        owner = self._owner
        if owner.hooks is None or not owner.hooks.is_running:
            self._require_active()
        if owner.hooks is None:
            owner.hooks = Hooks()
        owner.hooks.add(when, function)
        return function

    def _require_active(self) -> None:
        if not self.is_active:
            raise NoActiveUnitError(
                f"Unit of work {self.label!r} has ended.", fix="Use the unit that is active now: current_unit."
            )

    # ---- the beginning

    def begin_inside(self, parent: Unit, how: Relation) -> None:
        """Begin as a savepoint or a join.

        :raises UnitOptionsError: if an option cannot hold here.
        """
        self._check_options_inside(parent)
        if how is Relation.JOIN:
            self._joined = parent._owner
            self._activate()
            self._limit(self._state.links)
            return
        self._transaction = self.session.begin_nested()
        self._unprotected = frozenset(link.connection for link in self._state.links)
        self._activate()
        self._limit(self._state.links)

    def begin_outermost(self) -> None:
        """Begin as the unit that owns the transaction.

        :raises UnitOptionsError: if an option cannot hold here.
        """
        session, state, options = self.session, self._state, self._options
        if not state.links and get_innermost(None) is not None:
            self._check_memory()
        if state.links or (options.needs_connection and session._transaction is not None):
            _meet_open_transaction(session, state, options)
        if session._transaction is None:
            state.is_own_call = True
            try:
                self._transaction = session.begin()
            finally:
                state.is_own_call = False
        else:
            self._transaction = session.get_transaction()
            self.is_repeatable = not (state.wrote or has_pending(session))
            if state.is_stale:
                state.expire_unmodified(session)
        self._activate()
        if options.timeout is not None:
            self._limit(state.links)
        if options.needs_connection and not state.links:
            if state.readers is None:
                _connect(session, options)
            else:
                self.take_connection()

    def _check_memory(self) -> None:
        """A database in memory has one connection, which a unit around, in an app context of its own, may have.

        :raises UnitOptionsError: at once, instead of a wait that only that unit's end could end.
        """
        bind = bind_of(self.session)
        if bind is not None and is_in_memory(bind.engine.url) and is_used_up(bind.engine.pool):
            raise UnitOptionsError(SQLITE_HAS_ONE_WRITER, self.where, LET_IT_WRITE_FIRST)

    def take_connection(self) -> None:
        """Take the connection with the unit's options: from a reader that will do, else from the primary."""
        readers = self._state.readers
        self._asked_before = self._state.told
        if readers is not None:
            for reader in readers.candidates(self):
                if is_used_up(reader.engine.pool):
                    continue
                self.was_on_reader = readers.serve(reader, self, lambda: _connect(self.session, self._options))
                if self.was_on_reader:
                    return
        _connect(self.session, self._options)

    def start_elsewhere(self) -> None:
        """Leave the reader, of which nothing was read that counts, and go on in a transaction without a connection."""
        state = self._state
        self.was_on_reader = False
        let_go(state)
        with state.own_call():
            self.session.rollback()
            state.forget_connections()
            self._leave_reader()
            self._transaction = self.session.begin()

    def renew_snapshot(self, link: Link) -> None:
        """Begin anew on a connection that was asked something, where the transaction would go on seeing what it saw."""
        link.was_begun = link.status() is not TransactionStatus.IDLE
        if not link.was_begun or _strength(_isolation_of(self.session, self)) <= _strength("READ COMMITTED"):
            return
        link.was_begun = False
        link.dbapi_connection.rollback()
        link.limit_s = None
        self._limit([link])

    def _leave_reader(self) -> None:
        if self._state.reader is not None and self._state.readers is not None:
            self._state.readers.leave(self.session, self._state)

    def _activate(self) -> None:
        state = self._state
        self._began_s = _monotonic()
        self._told_before = state.told
        state.unit = self
        self.is_active = True
        if state.board is not None:
            if self.parent is None:
                self._enter_board(state, state.board)
            else:
                self._enter_board_inside(state, state.board, self.parent)
        around = get_innermost(None)
        if around is not None:
            while around is not None and not around.is_active:
                around = around._around
            self._around = around
        set_innermost(self)
        if _unit_began.receivers and self._joined is None:
            signals.tell(_unit_began, state.app, unit=self)

    def _check_options_inside(self, parent: Unit) -> None:
        if parent.read_only and not self.read_only:
            raise UnitOptionsError(
                f"Unit of work {self.label!r} may write, and {parent.label!r} around it is read-only.",
                fix="Give both read_only=True, or drop it from the outer one.",
            )
        wanted = self._options.isolation
        if wanted and _strength(wanted) > _strength(_isolation_of(self.session, parent)):
            raise UnitOptionsError(
                f"Unit of work {self.label!r} asks for {wanted}, and {parent.label!r} around it runs with less.",
                fix=f"Give isolation={wanted!r} to the outermost unit, or propagation='requires_new' to this one.",
            )
        if self._options.deferrable and not outermost_of(parent)._options.deferrable:
            raise UnitOptionsError(
                f"Unit of work {self.label!r} is deferrable, and {parent.label!r} around it is not.",
                fix="Give deferrable=True to the outermost unit, or propagation='requires_new' to this one.",
            )
        if self.read_only and not parent.read_only:
            self.session.flush()
        if parent.deadline is not None:
            self.deadline = min(parent.deadline, self.deadline or parent.deadline)

    # ---- what others can see of it

    def _enter_board(self, state: SessionState, board: Board) -> None:
        """Take a place on the board; every outermost unit pays for each line here."""
        if state.told > _MANY_TOLD:
            state.start_count_anew(board)
            self._told_before = 0.0
        told, place = state.told, self._place
        self._idle_before_s = state.idle_s
        row = board.rows.get(self.label)
        if row is None or row.find_function() is not place:
            row = board.row(self.label, self._site, is_inner=False)
            if not isinstance(place, CallSite):
                row.find_function = weakref.ref(place)
        self._row = row
        live = board.homes.get(_get_ident())
        if live is None or live.is_taken or self.attempt > 1:
            live = self._take_other_place(board, row)
        else:
            live.is_taken = True
            live.held_since_s = 0.0
            live.turns = turn = live.turns + 1
            board.memory[live.span] = pack_live(turn, told, self._began_s, told, row.index, 0, turn)
        self.live = state.live = live
        if state.links:
            self._adopt_links(live)

    def _enter_board_inside(self, state: SessionState, board: Board, parent: Unit) -> None:
        """Take a place beside that of the unit around."""
        self._idle_before_s = state.idle_s
        self._row = row = board.row(self.label, self._site, is_inner=True)
        self.live = state.live = board.occupy(
            Kind.UNIT, row, self._began_s, state.told, parent=parent.live, depth=self.depth, attempt=self.attempt
        )
        if parent.live is not None:
            self.live.reals[self.live.at] = parent.live.reals[parent.live.at]

    def _adopt_links(self, live: Live) -> None:
        """Connections that the session has already are the unit's from now on, idle as long as they were."""
        state = self._state
        idle_since = max(link.idle_since for link in state.links)
        live.reals[live.at] = state.told + (IDLE + min(idle_since, self._began_s))
        for link in state.links:
            hold(link, state)

    def _take_other_place(self, board: Board, row: Row) -> Live:
        """Where the thread's own place is not for this unit, or there is none yet."""
        now_s, told = self._began_s, self._state.told
        home = board.home()
        if home is None or home.is_taken or self.attempt > 1:
            board.count(BEGUN)
            return board.occupy(Kind.UNIT, row, now_s, told, depth=1, attempt=self.attempt)
        home.take(row, now_s, told)
        return home

    def leave_board(self, outcome: int, *, is_error: bool) -> None:
        """Count the unit, and leave its place to another; once.

        :param outcome: an :class:`~flask_uow._board.Outcome`.
        """
        live, state = self.live, self._state
        if live is None:
            return
        held_since_s, took_s = live.held_since_s, self.took_s or _monotonic() - self._began_s
        told = state.told - self._told_before
        # From here on there is no call, in which an interrupt would leave the place taken for ever.
        self.live = None
        if self.parent is None:
            state.live = None
            state.told_in_units += told
        else:
            state.live = around = self.parent.live
            if around is not None:
                around.reals[around.at] = live.reals[live.at]
        live.words[live.place] = 0
        live.is_taken = False
        if not live.is_home:
            live.board.free.append(live)
        idle_s = state.idle_s - self._idle_before_s
        live.board.count_unit(
            self._row,
            outcome,
            is_error,
            told / STATEMENT,
            took_s,
            idle_s,
            # What is no pool's any more has no beginning, but a transaction that was idle was on some connection.
            self._began_s + took_s - held_since_s if held_since_s else idle_s,
        )

    def _tell(self, what: float) -> None:
        """Say what it does from now on."""
        live = self.live
        if live is not None:
            live.reals[live.at] = self._state.told + (what + _monotonic())

    @property
    def outcome(self) -> UnitOutcome:
        """How it ended: in doubt is a unit of whose COMMIT nobody knows what it did."""
        if self._is_in_doubt:
            return "unknown"
        return "committed" if self.was_committed else "failed" if self._has_failed else "rolled_back"

    def log(self, error: BaseException | None, *, is_slow: bool, is_retried: bool) -> None:
        """Log an outermost unit that has ended, if there is anything to say about it.

        :param error: what left it.
        :param is_slow: whether it took longer than it should.
        :param is_retried: whether another attempt follows.
        """
        log_unit(
            label=self.label,
            where=self.where,
            attempt=self.attempt,
            seconds=self.took_s,
            statements=round(self._told / STATEMENT),
            outcome=self.outcome,
            error=error,
            is_slow=is_slow,
            is_retried=is_retried,
        )

    # ---- for the guard

    @property
    def is_at_first_statement(self) -> bool:
        """Whether the connection that it took was asked one thing at most."""
        return self._state.told - self._asked_before <= STATEMENT

    @property
    def isolation(self) -> str | None:
        """The isolation level that it asks for."""
        return self._options.isolation

    @property
    def has_nothing_to_commit(self) -> bool:
        """Whether its COMMIT says nothing: a server that was told READ ONLY has kept it from writing.

        In ``SERIALIZABLE`` it says that what was read is to be believed.
        """
        return self.read_only and not self.is_serializable

    @property
    def is_serializable(self) -> bool:
        """Whether its transaction may be refused at COMMIT for what it has read."""
        return _isolation_of(self.session, self) == "SERIALIZABLE"

    @property
    def where(self) -> str | None:
        """The function that is the unit, or the line of its ``with``; None if nobody has written it in Python."""
        site = self._site
        return str(site) if site is not None else None

    @property
    def _site(self) -> CallSite | None:
        place = self._place
        if isinstance(place, CallSite):
            return place
        site: CallSite | None = place._uow_site  # type: ignore[attr-defined]
        if self.is_view and (site is None or not is_of_application(site)):
            return site_of_view(self._state.app_state, self.request) or site
        return site

    @property
    def ended_around(self) -> Unit | None:
        """The unit around it, on whichever session, if that has ended before it."""
        around = self._around
        return around if around is not None and not around.is_active else None

    @property
    def has_unit_around(self) -> bool:
        """Whether it has begun inside another one, on whichever session."""
        return self._around is not None

    @property
    def is_seen_by_task(self) -> bool:
        """Whether the code that runs now is inside this unit, and not another task beside the one that is."""
        unit = get_innermost(None)
        while unit is not None and not unit.is_active:
            unit = unit._around
        return unit is self

    def check_deadline(self) -> None:
        """Refuse a statement, or an end without an error, that comes after ``timeout``.

        :raises UnitTimeoutError: then.
        """
        if self.deadline is not None and _monotonic() > self.deadline:
            raise UnitTimeoutError(
                f"Unit of work {self.label!r} ran past its deadline.",
                self.where,
                "Do less in one unit, or give it a longer timeout (in seconds).",
            )

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self.deadline is None else max(self.deadline - _monotonic(), 0.001)

    def _limit(self, links: list[Link]) -> None:
        """Let the servers end what runs past the deadline, on connections that were taken before the unit."""
        if self._options.timeout is not None:
            for link in links:
                limit_time(link, self.remaining_s, is_outermost=self.parent is None)

    def _lift_limit(self) -> sa.exc.DBAPIError | None:
        """Give the time back to the unit around.

        :return: what the server had against it.
        """
        if self.parent is not None and not self.parent._is_failed():
            try:
                for link in self._state.links:
                    limit_time(link, self.parent.remaining_s, is_outermost=self.parent.parent is None)
            except sa.exc.DBAPIError as error:
                return error
        return None

    def start_over(self) -> None:
        """Roll back what was done so far, and go on in a transaction of which nothing will be kept either."""
        owner = self._owner
        owner._end_strays()
        owner._is_rollback_only = owner.is_undone = True
        owner._undo(None)
        with self._state.own_call():
            begun = self.session.get_transaction() if owner.parent is None else None  # by a listener to the rollback
            owner._transaction = begun or self.session.begin(nested=owner.parent is not None)

    def may_read_alone(self, link: Link) -> bool:
        """Whether its harmless reads need no transaction: each would have a snapshot of its own in one as well."""
        options = outermost_of(self)._options
        isolation = options.isolation or _isolation_by(link.connection.engine)
        return options.read_only and options.timeout is None and isolation == "READ COMMITTED"

    def late_options(self, link: Link) -> str | None:
        """What gives the unit's options to a PostgreSQL connection taken without them: they ride, or it is late.

        A lender's transaction is not made read-only, for it could not be made to write again.
        """
        options = outermost_of(self)._options
        if not options.needs_connection:
            return None
        given = link.connection.get_execution_options()
        return _set_transaction(
            None if given.get("isolation_level") == options.isolation else options.isolation,
            read_only=options.read_only and not link.is_guest and not given.get("postgresql_readonly"),
            deferrable=options.deferrable and not given.get("postgresql_deferrable"),
        )

    def enlist(self, savepoint: SessionTransaction, connection: sa.Connection) -> None:
        """Note that a savepoint was sent on a connection, if it is the unit's."""
        if self.owns(savepoint):
            self._owner._has_savepoint = True
            self._owner._unprotected -= {connection}

    def expose(self, connection: sa.Connection) -> None:
        """Note that SQLAlchemy sends no savepoint on a connection: where it shards, it takes one for the whole."""
        self._owner._unprotected |= {connection}

    def protect(self, connection: sa.Connection) -> None:
        """Send the unit's savepoint on a connection that was taken before it, and speaks past the session now."""
        owner = self._owner
        if connection in owner._unprotected and not self._state.is_own_call:
            owner._unprotected -= {connection}
            if owner._holds_transaction():
                self.session.connection(bind_arguments={"bind": connection})

    @property
    def failure(self) -> BaseException | None:
        """What has failed the unit, or the one that it joined."""
        return self._owner._failure

    def heal(self, failure: BaseException | None) -> None:
        """A savepoint that was made by hand was rolled back: what failed inside it is undone.

        :param failure: what had failed the unit before.
        """
        self._owner._failure = failure

    def owns(self, transaction: SessionTransaction | None) -> bool:
        """Whether ``transaction`` is the one of this unit, or of the unit that it joined."""
        return transaction is not None and self._owner._transaction is transaction

    # ---- the end

    def end(self, exception: BaseException | None) -> BaseException | None:
        """End the unit as :func:`ending` says.

        :param exception: what the body raised, None if it returned.
        :return: what is to be raised: ``exception`` again, another error, or None.
        """
        state = self._state
        if state.work is None:
            return self._end(exception)
        leaving: BaseException | None = state.work.run(self._end, exception)
        return leaving

    def _end(self, exception: BaseException | None) -> BaseException | None:
        state = self._state
        if not self.is_active or state.generation != _fork.generation:
            return self._end_too_late(exception)
        if state.unit is not self:
            self._end_strays()
        leaving = exception
        try:
            leaving = self._carry_out(exception)
        except BaseException as error:  # noqa: BLE001  # returned, and raised by the caller
            leaving = error
        try:
            self._settle(leaving, has_failed=leaving is not exception)
        except BaseException:
            self._settle(leaving, has_failed=leaving is not exception)  # an interrupt was in the middle of it
            raise
        if self._options.timeout is not None:
            refusal = self._lift_limit()
            leaving = leaving or refusal
        self._announce(leaving)
        return leaving

    def _settle(self, leaving: BaseException | None, *, has_failed: bool) -> None:
        """Undo what is not to be kept, be over, and tell whoever watches; a second time does what the first has not.

        :param has_failed: whether the work was to be kept, and could not be.
        """
        if not self.was_committed:
            self._undo(leaving)
        self._conclude(leaving, has_failed=has_failed)

    def _conclude(self, leaving: BaseException | None, *, has_failed: bool) -> None:
        state = self._state
        self.is_active = False
        state.unit = parent = self.parent
        if get_innermost(None) is self:
            set_innermost(self._around)
        if parent is None:
            self._leave_session(state)
        self.took_s = _monotonic() - self._began_s
        self._told = state.told - self._told_before
        if has_failed:
            self._has_failed = True
        if self.live is not None:
            outcome = _COMMITTED if self.was_committed else _FAILED if has_failed else _ROLLED_BACK
            self.leave_board(outcome, is_error=leaving is not None)
        if parent is None:
            for link in state.links:  # of what a listener to its end has begun
                hold(link, state)
            if not self.was_committed:
                self._notice_length(may_raise=False)

    def _be_past(self) -> None:
        """Let what was innermost around it be so again, if nothing else is."""
        if get_innermost(None) is self:
            set_innermost(self._around)

    def outlive_session(self) -> None:
        """Be over before the body has ended: its thread is not to take it for what is around its next units."""
        self._is_outlived = True
        self.leave_board(_ROLLED_BACK, is_error=True)
        self._be_over(
            self._failure
            or self._not_committed(
                "its session was closed before it ended", "End the unit before its context, or the unit around it."
            )
        )

    def _be_over(self, error: BaseException) -> None:
        """Be over before the body has ended.

        :param error: what the body hears at its end.
        """
        self.is_active = False
        self._failure = error
        self._be_past()

    def _end_too_late(self, exception: BaseException | None) -> BaseException | None:
        """It has ended already, is the parent process's, or was rolled back with its session, which is closed."""
        self._be_past()
        if not self._is_outlived or self._state.generation != _fork.generation:
            self.hooks = None  # in a forked child, they are the parent's to run
            return exception or self._failure
        self._is_outlived = self.is_repeatable = False
        leaving = exception or self._failure
        if self.parent is None and self._state.unit is None and self.session.in_transaction():
            self._undo(leaving)  # what its body has begun since
        self.took_s = _monotonic() - self._began_s
        self._told = self._state.told - self._told_before
        self._announce(leaving)
        return leaving

    def _carry_out(self, exception: BaseException | None) -> BaseException | None:
        joined = self._joined
        if joined is not None and self.read_only and exception is None:
            self.session.flush()  # what was added in it is refused in it
        decision = self._decide(exception)
        if self.hooks is not None and decision is _COMMIT and joined is None and self.parent is None:
            self.hooks.run_before_commit()
            decision = self._decide(exception)
        if decision is _COMMIT:
            if self.parent is None:
                self._commit()
            else:
                self.check_deadline()
                if joined is None:
                    self._release()
            self.was_committed = True
            return exception
        return self._failed_error() if decision is Ending.FAIL else exception

    def run_late_hooks(self) -> None:
        """Run the hooks before the commit that the flush of the commit itself has added.

        :raises UnitFailedError: if one has swallowed an error that took the transaction with it.
        """
        if self.hooks is not None and self.hooks.run_before_commit() and self._is_failed():
            raise self._failed_error()

    def refuse_lost(self) -> None:
        """Refuse the COMMIT if the transaction is lost already.

        :raises UnitFailedError: if a listener to the commit has swallowed an error that took the transaction with it.
        """
        if self._state.has_lost_transaction():
            raise self._failed_error()

    def _notice_length(self, *, may_raise: bool) -> None:
        seconds = _monotonic() - self._began_s
        if seconds > self._state.settings.max_unit_s and not self._is_length_noticed:
            self._is_length_noticed = True
            notice_length(self._state, self.label, self._site, seconds, may_raise=may_raise)

    def _leave_session(self, state: SessionState) -> None:
        """Leave the session to what comes after an outermost unit."""
        state.last_commit = None
        if state.links:
            if self.was_committed and self.request is not None and (self.is_view or not is_before_view()):
                state.last_commit = (self.label, self.request)
            if self.session._transaction in (None, self._transaction):  # else a listener to its end has begun another
                state.forget_connections()
        if state.reader is not None:
            self._leave_reader()

    @property
    def _owner(self) -> Unit:
        """The savepoint or outermost unit whose fate this one shares: itself, or the one that it joined."""
        return self._joined or self

    def _end_strays(self) -> None:
        """Undo units inside this one that have not ended yet: generators that were left, or go on past it.

        What they undo may be this unit's own work, done since they began; then this one has failed.
        """
        while (stray := self._state.unit) is not None and stray is not self:
            error = self._not_committed(
                f"unit of work {stray.label!r} inside it had not ended",
                "End the inner unit first: a generator holds its with block open until it is read to its end.",
            )
            if stray._has_savepoint or stray._joined is not None or has_pending(self.session):
                self._owner._unended = self._owner._unended or error
            stray._undo(error)
            stray._be_over(error)
            stray.leave_board(_FAILED, is_error=True)
            self._state.unit = stray.parent

    def _decide(self, exception: BaseException | None) -> Ending:
        if exception is None and not self._is_rollback_only and not self._is_failed():
            return _COMMIT  # as mostly
        return ending(
            has_raised=exception is not None,
            is_kept=exception is not None and not self._options.rolls_back_for(exception),
            is_failed=self._is_failed(),
            is_rollback_only=self._is_rollback_only,
        )

    def _is_failed(self) -> bool:
        owner, state = self._joined or self, self._state
        transaction = owner._transaction
        return (
            owner._failure is not None
            or owner._unended is not None
            or state.breach is not None
            or transaction is None
            or not transaction.is_active
            or (self.session._transaction is not transaction and not self.session.is_active)
            or state.has_lost_transaction()
        )

    def _holds_transaction(self) -> bool:
        """Whether the session is still in the transaction, or savepoint, in which the unit began."""
        if self.parent is None:
            return self.session.get_transaction() is self._transaction
        transaction = self.session.get_nested_transaction()
        while transaction is not None and transaction is not self._transaction:
            transaction = transaction.parent
        return transaction is not None

    def _failed_error(self) -> BaseException:
        state = self._state
        if state.breach is not None:
            return state.breach
        failure = self._owner._failure or state.error
        if self._owner._unended is not None:
            return self._owner._unended
        if failure is None and (state.has_ended_transaction() or not self._owner._holds_transaction()):
            reason = "its transaction was ended by hand"
        else:
            reason = "an error inside it was swallowed that had taken the transaction with it"
        error = self._not_committed(
            reason,
            "Let the exception leave the unit, or put what may fail into a nested unit: with transactional(): ...",
        )
        error.__cause__ = failure
        return error

    def _not_committed(self, reason: str, fix: str) -> UnitFailedError:
        return UnitFailedError(f"Unit of work {self.label!r} was not committed: {reason}.", self.where, fix)

    def _release(self) -> None:
        """Make a savepoint's work part of what lies around."""
        assert self._transaction is not None
        for link in self._state.links:
            notice_idle(link)
        try:
            with self._state.own_call():
                self._transaction.commit()
        except sa.exc.DBAPIError:
            raise  # the server has the last word on what its refusal undoes
        except BaseException as error:
            if self._transaction._state.name == "PREPARED":
                self._fail_around(error)  # after a RELEASE that was not sent, SQLAlchemy sends no ROLLBACK TO either
            raise

    def _undo(self, leaving: BaseException | None) -> None:
        """Undo the work; an error of the undoing itself never replaces what ended the unit."""
        if self._joined is not None:
            self._owner._failure = self._owner._failure or leaving
            return
        links = self._state.links
        self._tell(ROLLING_BACK)
        try:
            with self._state.own_call():
                self._roll_back()
        except Exception:
            self._state.app.logger.warning(
                "The rollback of unit of work %r failed; its connections are discarded.", self.label, exc_info=True
            )
            discard(links)
            if self.parent is None:
                with contextlib.suppress(Exception), self._state.own_call():
                    self.session.rollback()  # an interrupt may have come before it
        if self.parent is not None:
            self._state.tell_rest()  # a rollback that had nothing to undo was no statement

    def _roll_back(self) -> None:
        if self.read_only and self.parent is None:
            _lift_read_only(self._state)
        if self.parent is None and self._state.breach is not None:
            self.session.close()  # the connection is out of its transaction already, and rollback() would complain
        elif self.parent is None:
            self.session.rollback()
        elif self._holds_transaction() and self._state.breach is None:
            assert self._transaction is not None
            self._transaction.rollback()
        else:
            self._fail_around(self._failed_error())  # what came after a savepoint that was ended by hand

    def _fail_around(self, error: BaseException) -> None:
        """What a savepoint cannot undo fails the unit around it too."""
        assert self.parent is not None
        around = self.parent._owner
        around._failure = around._failure or error

    def _commit(self) -> None:
        """Make an outermost unit's work part of the database.

        :raises CommitOutcomeUnknownError: if the connection was lost in it and the server cannot be asked.
        """
        state = self._state
        if self.deadline is not None:
            self.check_deadline()
        if _monotonic() - self._began_s > state.settings.max_unit_s:
            self._notice_length(may_raise=True)
        if self.read_only and state.links:
            _refuse_unseen_writes(state)
            _lift_read_only(state)
        if self._options.confirm_commit:
            state.confirms = True
        state.committing = self
        state.is_own_call = True
        try:
            self.session.commit()
        except BaseException as error:
            self._judge_failed_commit(error)
            raise
        finally:
            state.is_own_call = False
            state.committing = None

    def _judge_failed_commit(self, error: BaseException) -> None:
        """Note what is known of the outcome.

        :raises CommitOutcomeUnknownError: in place of an error that tells nothing of it.
        """
        state = self._state
        if isinstance(error, Exception) and state.links and all(link.was_committed for link in state.links):
            self.was_committed = True  # a listener's error comes too late to undo anything
            self.session.close()
        elif isinstance(error, sa.exc.DBAPIError):
            if state.sent_commit and error.connection_invalidated:
                self._meet_lost_commit(error)
        elif state.sent_commit and not isinstance(error, RuleViolationError):  # a rule refuses what is not sent yet
            # An interrupt says nothing of what the server did, and that of a time limit may be any Exception.
            self._is_in_doubt = True
            self.is_repeatable = False

    def _meet_lost_commit(self, error: sa.exc.DBAPIError) -> None:
        """A COMMIT lost its connection, and is not known to have happened.

        :raises CommitOutcomeUnknownError: unless it is known not to have happened.
        """
        lost = self._state.lost_commit
        self.is_known_aborted = lost is not None and lost.outcome is Outcome.ABORTED
        if self.is_known_aborted:
            error.add_note("flask_uow asked the server: the transaction was aborted.")
            return
        self._is_in_doubt = True
        raise CommitOutcomeUnknownError(
            f"The connection was lost while unit of work {self.label!r} was being committed; "
            "it may or may not have been.",
            self.where,
            "Look whether the work is there before you repeat it; confirm_commit=True asks the server.",
            lost.xid if lost else None,
        ) from error

    # ---- after the end

    def _announce(self, leaving: BaseException | None) -> None:
        if self._joined is not None:
            return  # what it joined will
        if self.parent is not None and self.hooks is not None:
            self._hand_on_hooks(self.parent._owner, self.hooks)
        if self.was_committed:
            if _unit_committed.receivers:
                signals.tell(_unit_committed, self._state.app, unit=self)
            return
        self._failure = None  # its traceback holds the frames, and those this unit
        if _unit_rolled_back.receivers and not self._is_in_doubt:
            signals.tell(_unit_rolled_back, self._state.app, unit=self, exception=leaving)

    def _hand_on_hooks(self, around: Unit, hooks: Hooks) -> None:
        if around.hooks is None:
            around.hooks = Hooks()
        if self.was_committed:
            around.hooks.take_from(hooks)
        else:
            around.hooks.take_undone(hooks)
        self.hooks = around.hooks

    def run_after_hooks(self) -> list[Exception]:
        """Run the hooks of an outermost unit that has ended, when its connection is back in the pool.

        :return: their errors, which have been logged.
        """
        if self.hooks is None or self._is_in_doubt:
            return []  # after a COMMIT of unknown outcome neither kind would be right
        when = When.AFTER_COMMIT if self.was_committed else When.AFTER_ROLLBACK
        return self.hooks.run_after(when, self._state.app, self.label)


# ---- the transaction that is open when a unit begins


def _meet_open_transaction(session: Session, state: SessionState, options: UnitOptions) -> None:
    """Adopt it, or end it if it lacks what the unit asks for; never ignore the option.

    :raises UnitOptionsError: if it lacks that and holds writes.
    """
    if not session.in_transaction():
        return
    of_sqlite = [link for link in state.links if link.connection.dialect.name == "sqlite" and not link.is_lent]
    if not of_sqlite and not options.needs_connection:
        return
    has_written = state.wrote or any(map(has_written_unseen, state.links))
    if options.needs_connection:
        if has_written or has_pending(session):
            raise UnitOptionsError(
                "Writes came before this unit of work, in a transaction that has not the options the unit asks for.",
                str(state.write_site) if state.write_site else None,
                "Put those writes into the unit, or commit them before it.",
            )
        with state.own_call():
            session.rollback()
            begun = session.get_transaction()  # by a listener to the rollback
            if begun is not None:
                begun.close()
    elif not has_written and not session.in_nested_transaction():
        for link in of_sqlite:
            link.begins = Begins.NOW  # what was read may have changed before the unit has the write lock
        state.expire_unmodified(session)


def _connect(session: Session, options: UnitOptions) -> None:
    """Take the connection with the unit's options; the driver sends them with BEGIN."""
    bind = bind_of(session)
    if bind is None:
        return  # each database hears of them when the unit first speaks to it
    dialect = bind.dialect
    if dialect.name == "sqlite":
        return  # its transactions are serializable, and read-only is switched on where one begins
    if isinstance(bind, sa.Connection) and bind.in_transaction():
        return  # SQLAlchemy gives options to no transaction that has begun
    # What listens to the beginning may send a statement, behind which the isolation would come too late.
    if hasattr(dialect, RIDES) and not (options.isolation and bind.dispatch.begin):
        if guarded_state(session).reader is not None:
            session.connection()  # whether it can be reached is to be known now
        return  # the options ride, see the guard
    session.connection(execution_options=_execution_options(dialect, options))


def _execution_options(dialect: sa.Dialect, options: UnitOptions) -> dict[str, object]:
    """A unit's options as SQLAlchemy names them."""
    wanted: dict[str, object] = {}
    if options.isolation is not None:
        wanted["isolation_level"] = options.isolation
    if dialect.name == "postgresql":
        if options.read_only:
            wanted["postgresql_readonly"] = True
        if options.deferrable:
            wanted["postgresql_deferrable"] = True
    return wanted


def _refuse_unseen_writes(state: SessionState) -> None:
    """Look, before its COMMIT, whether a read-only unit has written on SQLite past SQLAlchemy, which counts the rows.

    :raises RuleViolationError: UOW111, then.
    """
    for link in state.links:
        if link.is_to_refuse_writes and has_written_unseen(link):
            raise state.refusal("UOW111", statement="a statement of the driver's own connection")


def _lift_read_only(state: SessionState) -> None:
    for link in state.links:
        if link.refuses_writes and link.status() is not None:
            link.accept_writes()


def discard(links: list[Link]) -> None:
    """Close what an unsuccessful rollback left checked out; the pool replaces it."""
    for link in links:
        with contextlib.suppress(Exception):
            if not link.connection.closed:
                link.connection.invalidate()
                link.connection.close()


_STRENGTH = {level: rank for rank, level in enumerate(ISOLATION_LEVELS)}


def _strength(level: str) -> int:
    return _STRENGTH[level]


@lru_cache
def _set_transaction(isolation: str | None, *, read_only: bool, deferrable: bool) -> str | None:
    """The statement that gives a transaction its modes; None if there are none."""
    modes = [f"ISOLATION LEVEL {isolation}"] if isolation else []
    modes += ["READ ONLY"] * read_only + ["DEFERRABLE"] * deferrable
    # LOCAL, or the server takes the modes for settings of the session that are not at their default.
    return f"SET LOCAL TRANSACTION {', '.join(modes)}" if modes else None


def _isolation_of(session: Session, unit: Unit) -> str:
    """The isolation of the transaction around: what it asked for, what its engine does, or PostgreSQL's default."""
    asked_for = outermost_of(unit)._options.isolation
    if asked_for is not None:
        return asked_for
    bind = bind_of(session)
    return "READ COMMITTED" if bind is None else _isolation_by(bind.engine)


def _isolation_by(engine: sa.Engine) -> str:
    """The isolation of a transaction that asks for none."""
    if engine.dialect.name == "sqlite":
        return "SERIALIZABLE"
    by_server = getattr(engine.dialect, "default_isolation_level", None)
    level = getattr(engine.dialect, "_on_connect_isolation_level", None) or by_server
    return level if level in _STRENGTH else "READ COMMITTED"
