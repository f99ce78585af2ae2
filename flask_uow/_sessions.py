"""Sessions: whose they are, which one is current, and how a context takes them back.

One session per app context and thread. The registry is keyed by the context object itself, never by ``id()``, which
is reused; a thread that runs an event loop works for the thread that pushed the context, and shares its session. The
thread that ends a context takes back the sessions of all threads that have worked under it.
"""

from __future__ import annotations

import weakref
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from flask import Flask, g
from flask.ctx import AppContext
from sqlalchemy import event
from sqlalchemy.orm import session as orm_session

from . import _fork, signals
from ._board import LEAKED
from ._checkouts import report_leaks
from ._drivers import TransactionStatus
from ._fronts import in_front_of
from ._guard import GuardedSession, connection_begun, know_connection, put_under_guard
from ._reader import ReadingSession
from ._rules import report_at_teardown, violation
from ._scopes import Scope, Scopes, contexts, current_context, find_context, thread
from ._settings import DEFAULT_BIND
from ._state import STATE_KEY, AppState, SessionState, guarded_state, has_pending, outermost_of, state_of, state_of_app
from ._threads import Report, SharedSession, share, work_of
from ._units import discard
from .exceptions import RuleViolationError, UnitOptionsError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction, scoped_session

    _Session = Session
else:
    _Session = object  # the class in front of which the routing is put


# What a session is whose first close() is its last; SQLAlchemy has had it since 2.0.22.
_ENDS_FOR_GOOD = getattr(getattr(orm_session, "_SessionCloseState", None), "ACTIVE", object())
_CLOSES = (GuardedSession.close, SharedSession.close)
_EVENTS = (
    *("after_transaction_create", "after_transaction_end", "after_begin", "before_commit", "after_commit"),
    *("before_attach", "after_attach", "transient_to_pending", "pending_to_persistent", "pending_to_transient"),
    *("before_flush", "after_flush", "after_flush_postexec", "persistent_to_detached", "persistent_to_transient"),
    *("deleted_to_detached", "do_orm_execute", "loaded_as_persistent"),
)
"""What SQLAlchemy asks of nearly every session."""


class Sessions(Protocol):
    """How the units reach the sessions of an app context, whoever owns them."""

    scopes: Scopes

    def current(self, context: AppContext) -> Session:
        """The calling thread's session under the current context, under guard."""

    def peek(self, context: AppContext) -> Session | None:
        """The same if there is one; none is made."""

    def bind(self) -> sa.Engine:
        """The engine of a session, of which nothing is counted."""

    def binds(self) -> list[sa.Engine | sa.Connection]:
        """What such a session is bound to, as far as that is known before its first statement."""

    def replace(self, context: AppContext, outer: Session) -> Session:
        """Make a session current in place of ``outer``."""

    def restore(self, context: AppContext, outer: Session, inner: Session) -> None:
        """Close ``inner`` and make ``outer`` current again."""


# ---- sessions of our own


class OwnSessions:
    """The registry behind ``uow.session``; a drop-in for ``scoped_session.registry``.

    :param make_session: makes a session.
    """

    def __init__(self, make_session: Callable[[], Session]) -> None:
        self.scopes = Scopes()
        self._make_session = make_session
        self._listeners: dict[type[Session], list[object]] = {}

    def __call__(self, context: AppContext | None = None) -> Session:
        """The calling thread's session under a context, the current one if None; ``uow.session`` asks at each use."""
        if context is None:
            context = contexts.get(None) or current_context("uow.session")
        scope: Scope = getattr(context, "_uow_scope", None) or self.scopes.of(context)
        key = thread.token if _get_running_loop() is None else scope.home
        slot = scope.slots.get(key)
        if slot:
            return slot[-1]
        if slot is None:
            slot = scope.slots.setdefault(key, [])
        session = self._make(context.app)
        self._put(scope, slot, session)
        return session

    current = __call__

    def peek(self, context: AppContext) -> Session | None:
        slot = self.scopes.of(context).slot()
        return slot[-1] if slot else None

    def has(self) -> bool:
        """Whether the calling thread has a session under the current context."""
        context = find_context()
        return context is not None and self.peek(context) is not None

    def set(self, session: Session) -> None:
        """Make ``session`` the current one; what is open in the one before it is closed with the context."""
        context = current_context("uow.session")
        scope = self.scopes.of(context)
        slot = scope.slot()
        if session in slot:
            slot.remove(session)
        else:
            if slot and _has_nothing_to_close(slot[-1]):
                guarded_state(slot.pop()).close()
            self._take_in(context.app, session)
        self._put(scope, slot, session)

    def clear(self) -> None:
        """Forget the current session; what it stands in for does not become the current one by that."""
        if not self.has():
            return
        context = current_context("uow.session")
        scope = self.scopes.of(context)
        slot = scope.slot()
        if slot[-1]._transaction is not None:
            slot[-1].close()
        guarded_state(slot.pop()).close()
        if slot:
            self._put(scope, slot, self._make(context.app))

    def bind(self) -> sa.Engine:
        with self._make_session() as session:
            return session.get_bind().engine

    def binds(self) -> list[sa.Engine | sa.Connection]:
        with self._make_session() as session:
            return _binds_of(session)

    def replace(self, context: AppContext, outer: Session) -> Session:
        scope = self.scopes.of(context)
        session = self._make(context.app)
        self._put(scope, scope.slot(), session)
        return session

    def restore(self, context: AppContext, outer: Session, inner: Session) -> None:
        for slot in list(self.scopes.of(context).slots.values()):
            if outer in slot:
                place = slot.index(outer) + 1
                left = [session for session in slot[place:] if session is not inner]
                del slot[place:]
                for session in left:
                    close_session(session)
        close_session(inner)

    @staticmethod
    def _put(scope: Scope, slot: list[Session], session: Session) -> None:
        if slot is not scope.slots.get(scope.home):
            share(session)
            work_of(session)  # the beginning of its first unit is whole
            _forget_ended(scope)
        slot.append(session)
        if scope.is_over:  # looked at last, because another thread may be ending the context right now
            slot.remove(session)
            close_session(session)
            raise violation("UOW201", what="uow.session")

    def _make(self, app: Flask) -> Session:
        session = self._make_session()
        self._take_in(app, session)
        if "dispatch" not in vars(session):
            self._tell_listeners(session)
        return session

    def _tell_listeners(self, session: Session) -> None:
        """Tell a new session at once who listens to its class; SQLAlchemy looks for that at each event's first time."""
        known = self._listeners.get(type(session))
        if known is None:
            self._listeners[type(session)] = [getattr(session.dispatch, name) for name in _EVENTS]
        else:
            deque(map(setattr, repeat(session.dispatch), _EVENTS, known), maxlen=0)

    def _take_in(self, app: Flask, session: Session) -> None:
        app_state = state_of_app(app, self)
        put_under_guard(session, SessionState(app_state, is_own_session=True))
        if session.bind is None:
            session.bind = app_state.default_engine
            if app_state.has_several_engines:
                _let_choose(session, app_state)


class RoutedSession(_Session):
    """Chooses the engine by ``__bind_key__`` of the class, or ``info["bind_key"]`` of the table or its metadata."""

    engines_by_name: dict[str, sa.Engine]

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kwargs: Any
    ) -> sa.Engine | sa.Connection:
        key = _bind_key(mapper, clause) if bind is None else None
        if key is not None and key != DEFAULT_BIND:  # which is where the unit runs, a reader say
            return self._engine(key)
        return super().get_bind(mapper, clause=clause, bind=bind, **kwargs)

    def _engine(self, key: str) -> sa.Engine:
        if key not in self.engines_by_name:
            names = ", ".join(sorted(self.engines_by_name))
            raise sa.exc.UnboundExecutionError(f"bind_key {key!r} is not in SQLALCHEMY_BINDS; the binds are: {names}.")
        return self.engines_by_name[key]


def route(session: Session, engines: dict[str, sa.Engine]) -> None:
    """Let a session choose among several engines; one with a single engine is not asked at every statement."""
    session.__class__ = in_front_of(type(session), RoutedSession)
    session.engines_by_name = engines  # type: ignore[attr-defined]


def _let_choose(session: Session, app_state: AppState) -> None:
    """Let a session find its engine by what it is asked for, and its units find a reader."""
    if len(app_state.binds) > 1:
        route(session, app_state.binds)
    if app_state.readers is not None:
        session.__class__ = in_front_of(type(session), ReadingSession)


def _bind_key(mapper: Any, clause: Any) -> str | None:
    if mapper is not None:
        inspected = sa.inspect(mapper)
        key: str | None = getattr(inspected.class_, "__bind_key__", None)
        return key or _table_key(inspected.local_table)
    for element in sa.sql.visitors.iterate(clause) if clause is not None else ():
        key = _table_key(element)
        if key is not None:
            return key
    return None


def _table_key(table: Any) -> str | None:
    if not isinstance(table, sa.Table):
        return None
    return table.info.get("bind_key") or table.metadata.info.get("bind_key")


# ---- sessions of another library


class AdoptedSessions:
    """A ``scoped_session`` that another library owns: its engines and its teardown stay there.

    :param scoped: the owner's registry, Flask-SQLAlchemy's ``db.session`` say.
    """

    def __init__(self, scoped: scoped_session[Session]) -> None:
        self.scopes = Scopes()
        self.scoped = scoped
        if _IS_HEARD not in vars(scoped):  # a factory may adopt one registry for each of its apps
            setattr(scoped, _IS_HEARD, True)
            event.listen(scoped, "after_begin", _begun_in(weakref.ref(scoped)), insert=True)

    def current(self, context: AppContext) -> Session:
        return _adopt(self.scopes.of(context), state_of_app(context.app, self), self.scoped())

    def peek(self, context: AppContext) -> Session | None:
        return self.current(context) if self.scoped.registry.has() else None

    def bind(self) -> sa.Engine:
        return self.scoped.get_bind().engine

    def binds(self) -> list[sa.Engine | sa.Connection]:
        return _binds_of(self.scoped())

    def replace(self, context: AppContext, outer: Session) -> Session:
        self.scoped.registry.set(self.scoped.session_factory())
        return self.current(context)

    def restore(self, context: AppContext, outer: Session, inner: Session) -> None:
        self.scoped.registry.set(outer)
        close_session(inner)


_IS_HEARD = "_uow_is_heard"


def _begun_in(find_scoped: weakref.ref[scoped_session[Session]]) -> Callable[..., None]:
    # SQLAlchemy keeps what listens to a class for as long as there is the class, and a registry knows its class.
    def begun(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
        """A session that no unit has met yet begins: its writes may be lost all the same (UOW103)."""
        context = find_context()
        if state_of(session) is not None or context is None:
            return
        app_state: AppState | None = context.app.extensions.get(STATE_KEY)
        sessions = None if app_state is None else app_state.sessions
        if app_state is None or not isinstance(sessions, AdoptedSessions) or sessions.scoped is not find_scoped():
            return  # an app of the same owner's that has no extension, or one of its own
        put_under_guard(session, SessionState(app_state, is_own_session=False))
        sessions.scopes.of(context).adopt(session)
        connection_begun(session, transaction, connection)

    return begun


class CalledSessions:
    """Sessions that a function of their owner returns, the same one each time under one app context.

    Another session is put in place where the owner keeps it, in Flask's ``g``.

    :param function: what ``UnitOfWork(session=...)`` was given.
    """

    def __init__(self, function: Callable[[], Session]) -> None:
        self.scopes = Scopes()
        self._function = function

    def __call__(self) -> Session:
        return self.current(current_context("uow.session"))

    def has(self) -> bool:
        """Whether there is an app context, in which the function makes a session when called."""
        return find_context() is not None

    def set(self, session: Session) -> None:
        """The owner alone makes sessions.

        :raises UnitOptionsError: always.
        """
        raise UnitOptionsError(
            "uow.session was called with arguments, and its sessions are another library's.",
            fix="Configure the sessions where they are made.",
        )

    def clear(self) -> None:
        """The owner forgets its sessions itself."""

    def current(self, context: AppContext) -> Session:
        return _adopt(self.scopes.of(context), state_of_app(context.app, self), self._function())

    peek = current

    def bind(self) -> sa.Engine:
        return self._function().get_bind().engine

    def binds(self) -> list[sa.Engine | sa.Connection]:
        return _binds_of(self._function())

    def replace(self, context: AppContext, outer: Session) -> Session:
        with context.app.app_context():
            inner = self._function()
        self._swap(outer, inner)
        if inner is outer or self._function() is not inner:
            if inner is not outer:
                inner.close()
            raise UnitOptionsError(
                "This session cannot be replaced for a unit on a connection of its own: its owner keeps it elsewhere "
                "than in flask.g.",
                fix="Adopt a scoped_session, or let the extension make the sessions.",
            )
        return self.current(context)

    def restore(self, context: AppContext, outer: Session, inner: Session) -> None:
        self._swap(inner, outer)
        close_session(inner)

    @staticmethod
    def _swap(old: Session, new: Session) -> None:
        for holder in (vars(g._get_current_object()), *vars(g._get_current_object()).values()):
            if isinstance(holder, dict):
                holder.update({key: new for key, value in holder.items() if value is old})


def _binds_of(session: Session) -> list[sa.Engine | sa.Connection]:
    name = "binds" if hasattr(session, "binds") else "_Session__binds"  # before SQLAlchemy 2.1
    by_class: dict[object, sa.Engine | sa.Connection] = getattr(session, name)
    return [bind for bind in (session.bind, *by_class.values()) if bind is not None]


def _adopt(scope: Scope, app_state: AppState, session: Session) -> Session:
    if state_of(session) is None:
        state = SessionState(app_state, is_own_session=False)
        put_under_guard(session, state)
        scope.adopt(session)
        if session.in_transaction():
            link = know_connection(state, session.connection())
            link.has_past = True
            link.was_begun = link.status() is not TransactionStatus.IDLE
    return session


# ---- the end of a context


def close_scope(scopes: Scopes, context: AppContext, exception: BaseException | None) -> None:
    """Take back every session of a context that ends; never raises.

    A session of another thread that is in a statement cannot be closed from here: it is named as a leak, and taken
    back as soon as that is done.

    :param exception: what ended the context; then lost writes are no surprise and UOW103 is not reported.
    """
    scope = scopes.of(context)
    scope.is_over = True
    slots, scope.slots = scope.slots, {}
    for token, slot in list(slots.items()):
        is_own = token is scope.home or token is thread.token
        for session in slot[::-1]:  # and leaves it as it is, for its thread may be about to look into it
            if is_own or not isinstance(session, SharedSession):
                if exception is None and session._transaction is not None:
                    report_lost_writes(session)
                close_session(session)
            elif not _take_back(session, is_news=exception is None):
                scopes.leaked.append(session)
                _report_leak(session)
    if scopes.leaked:
        _close_leaked(scopes)
    if scope.taken:
        report_leaks(state_of_app(context.app), scope)


def _forget_ended(scope: Scope) -> None:
    """Forget the sessions of threads that have ended and left nothing in them: a context may outlive many threads."""
    for token, slot in list(scope.slots.items()):
        if token() is None and token is not scope.home and all(map(_has_nothing_to_close, slot)):
            for session in scope.slots.pop(token, ()):
                _take_back(session, is_news=True)


def _close_leaked(scopes: Scopes) -> None:
    leaked = []
    with suppress(IndexError):
        while True:
            leaked.append(scopes.leaked.pop())  # one by one: another thread may be ending a context too
    scopes.leaked += [session for session in leaked if not _take_back(session, is_news=True)]


def _take_back(session: Session, *, is_news: bool) -> bool:
    """Close a session of another thread, or let that do so when it has done what it is at.

    :param is_news: whether lost writes are to be reported.
    :return: whether it was closed now.
    """
    return work_of(session).end(partial(_close_at_rest, session, is_news=is_news))


def _close_at_rest(session: Session, *, is_news: bool) -> Report | None:
    """Close a session that nobody is at work in.

    :return: reports what was lost.
    """
    state = guarded_state(session)
    try:
        lost = _writes_lost_by(session)
    except RuntimeError:
        lost = "objects that its thread was changing"  # which is no call of the session
    error = _lost_writes(state, lost) if lost and is_news else None
    has_lost_writes = state.has_lost_writes or bool(lost)
    if not close_session(session):
        state.app_state.sessions.scopes.leaked.append(session)
    state.has_lost_writes = has_lost_writes
    return None if error is None else partial(report_at_teardown, state.app, state.rules, error)


def release_adopted(scope: Scope, exception: BaseException | None) -> None:
    """Let another library take back its sessions, whatever unit was left open in them; report lost writes before.

    :param exception: what ended the context; then lost writes are no surprise and UOW103 is not reported.
    """
    for reference in scope.adopted or ():
        session = reference()
        state = state_of(session) if session is not None else None
        if session is None or state is None:
            continue
        if exception is None:
            report_lost_writes(session)
        state.close()
    scope.adopted = None


def report_lost_writes(session: Session) -> None:
    """UOW103: the session ends with writes that nobody committed."""
    lost = _writes_lost_by(session)
    if lost:
        state = guarded_state(session)
        report_at_teardown(state.app, state.rules, _lost_writes(state, lost))


def _writes_lost_by(session: Session) -> str:
    """What would be lost if a session were closed now, in words; empty if nothing, or nothing that is not known."""
    state = state_of(session)
    if state is None or state.is_inherited or not session.in_transaction():
        return ""
    if state.error is not None or not session.is_active:
        return ""  # an error has taken them, and was raised
    lost = []
    if state.wrote and any(link.status() is not TransactionStatus.IDLE for link in state.links):
        lost.append("statements that wrote were sent")
    if has_pending(session):
        lost.append(_pending_text(session))
    return "; ".join(lost)


def _lost_writes(state: SessionState, lost: str) -> RuleViolationError:
    if state.unit is None:
        return violation("UOW103", site=state.write_site or state.begin_site, lost=lost)
    unit = outermost_of(state.unit)
    return RuleViolationError(
        "UOW103",
        f"Unit of work {unit.label!r} had not ended at the end of the context, and its writes were lost: {lost}.",
        unit.where,
        "End the unit before its context: let a command return, for click's ctx.exit() ends the context at once; read "
        "a generator to its end.",
    )


def _pending_text(session: Session) -> str:
    counts = {"new": session.new, "deleted": session.deleted}
    parts = [f"{len(entities)} {name}" for name, entities in counts.items() if entities]
    changed = [entity for entity in session.dirty if session.is_modified(entity)]
    if changed:
        parts.append(f"{len(changed)} changed")
    return "objects never flushed: " + ", ".join(parts)


def close_session(session: Session) -> bool:
    """Roll back, close, give every connection back; a connection that refuses is discarded, and logged.

    :return: False if another thread is at work in the session, which is left to it.
    """
    state: SessionState = session._uow  # type: ignore[attr-defined]
    if state.generation != _fork.generation:
        return True
    links = state.links
    state.close()
    state.is_over = state.is_own_call = True
    try:
        if not _has_nothing_to_close(session):
            session.close()
    except sa.exc.IllegalStateChangeError:
        share(session)
        return False
    except Exception:  # whatever a driver raises: the context must end
        state.app.logger.warning("A session could not be closed; its connections are discarded.", exc_info=True)
        discard(links)
    if state.links:
        state.forget_connections()
    if state.is_own_session:
        share(session)  # who keeps it may begin again, and a later context takes that back
    return True


def _has_nothing_to_close(session: Session) -> bool:
    """Whether ``close()`` would find no transaction and no object, as after most requests, and leave all as it is."""
    return (
        session._transaction is None
        and not (session.identity_map or session._new or session._deleted)
        and session._closes_as_sqlalchemy  # type: ignore[attr-defined]
        and type(session).close in _CLOSES
        and getattr(session, "_close_state", None) is not _ENDS_FOR_GOOD
    )


def _report_leak(session: Session) -> None:
    state = state_of(session)
    assert state is not None
    site = state.write_site or state.begin_site
    if state.board is not None:
        state.board.count(LEAKED)
    error: RuleViolationError = violation(
        "UOW202", site=site, who="session", what="its thread was still in a statement when the context ended"
    )
    report_at_teardown(state.app, state.rules, error)
    signals.tell(signals.session_leaked, state.app, session=session, where=error.where)
