"""The guard: what may end a transaction by hand inside a unit is refused, and what ends it all the same is noticed.

A session under guard has a class of its own in front of its class, so that ``commit`` and its kin can be refused
before anything happened. What reaches past the session is met where SQLAlchemy calls the driver: a statement's text
before it is sent, a Connection's own commit by a rollback in its place. Nothing listens to the engine's ``commit``
event: raised from there, an error makes SQLAlchemy take the transaction for ended and give the connection back with
the transaction still open.

Rules UOW101, UOW102 and UOW111 (SIP-99B: the unit of work alone commits).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.engine import ExceptionContext

from . import _fork, signals
from ._application_name import rename
from ._board import COMMITTING, IDLE, LEAKED, RUNNING, STATEMENT
from ._callsite import application_site
from ._checkouts import hold, meet_by_hand, watch_pool
from ._commit import COMMIT, commit_in_order, in_order, learn_marks, run_locked, send_commit
from ._drivers import TransactionStatus, sqlstate, status_probe
from ._engines import NAME, begin_before_write, begin_sqlite, begins_by_statement
from ._fronts import in_front_of
from ._gevent import warn_of_what_blocks
from ._harmless import is_harmless_read
from ._limits import limit_again, limit_time
from ._notices import (
    MAX_INSERTS,
    note_end,
    notice,
    notice_begin,
    notice_commit,
    notice_delete,
    notice_idle,
    notice_merge,
)
from ._rules import report_now, violation
from ._session_transactions import shorten
from ._state import STATUS_PROBE, Begins, Link, SessionState, link_of, outermost_of
from ._statements import Kind, is_select, kind_of
from ._two_phase import commit_by_two_phases
from ._units import LET_IT_WRITE_FIRST, SQLITE_HAS_ONE_WRITER, is_inside_another, state_that_holds
from .exceptions import RuleViolationError, UnitFailedError, UnitOptionsError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

    from ._units import Unit

    _Session = Session
else:
    _Session = object  # the class in front of which the guard is put

End = Callable[[Any], None]
"""A dialect's method that ends a transaction, given the pooled connection."""

Execute = Callable[..., None]
"""A dialect's method that sends a statement."""

_OF_FLUSH, _NESTED = orm.SessionTransactionOrigin.SUBTRANSACTION, orm.SessionTransactionOrigin.BEGIN_NESTED
_AUTOBEGIN = orm.SessionTransactionOrigin.AUTOBEGIN
_NEVER, _READ, _WRITE, _IDLE = Begins.NEVER, Kind.READ, Kind.WRITE, TransactionStatus.IDLE
_OF_WRITING = (_WRITE, Kind.LEAVE_TO_WRITE)
_NOT_BEGUN = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
_NOT_YET = math.inf
_monotonic = time.monotonic
_TIMED_OUT = ("57014", "25P03", "25P04")  # of a statement, of a session that idled, of a transaction
_USE_FLUSH = "the outermost unit commits. Use session.flush() if you need the primary key now."
_OF_SAVEPOINTS = ("SAVEPOINT ", "RELEASE ", "ROLLBACK TO ")
_USE_NESTED = "the unit has begun the transaction. Use session.begin_nested() for a savepoint."


class GuardedSession(_Session):
    """Put in front of a session's class: refuses what only the unit may do."""

    _closes_as_sqlalchemy = False  # whether the class has no close() of its own
    _meet_transaction = staticmethod(shorten)
    _uow: SessionState | None = None

    def commit(self) -> None:
        state = self._uow
        if state is None or state.is_own_call:
            super().commit()
        elif state.unit is None:
            notice_commit(self, state)
            super().commit()
        elif state.settings.commit_inside_unit == "flush":
            self.flush()
        else:
            raise state.refusal("UOW101", call="session.commit()", noun="commit", reason=_USE_FLUSH)

    def begin(self, nested: bool = False) -> SessionTransaction:
        state = self._uow
        if nested or state is None or state.unit is None or state.is_own_call:
            return super().begin(nested=nested)
        if state.settings.commit_inside_unit == "flush":
            return super().begin(nested=True)
        raise state.refusal("UOW101", call="session.begin()", noun="begin", reason=_USE_NESTED)

    def prepare(self) -> None:
        self._refuse_end("UOW101", "prepare")
        super().prepare()

    def rollback(self) -> None:
        state = self._uow
        if state is not None and state.unit is not None and state.unit.is_undone and not state.is_own_call:
            state.unit.start_over()  # an error handler makes sure of what has been done already
            return
        self._refuse_end("UOW102", "rollback")
        super().rollback()

    def close(self) -> None:
        if self._uow is not None and self._uow.unit is not None:
            self._refuse_end("UOW102", "close")
        super().close()

    def reset(self) -> None:
        self._refuse_end("UOW102", "reset")
        super().reset()

    def invalidate(self) -> None:
        self._refuse_end("UOW102", "invalidate")
        super().invalidate()

    def add(self, instance: object, **options: Any) -> None:
        super().add(instance, **options)
        state = self._uow
        if state is not None and state.unit is None and state.write_site is None:
            state.write_site = application_site()

    def merge(self, instance: Any, **options: Any) -> Any:
        if self._uow is not None:
            notice_merge(self, self._uow, instance)
        return super().merge(instance, **options)

    def delete(self, instance: object) -> None:
        super().delete(instance)
        if self._uow is not None:
            notice_delete(self._uow, instance)

    def merge_all(self, instances: Iterable[Any], **options: Any) -> Sequence[Any]:
        """Of SQLAlchemy 2.1, which merges each without a call of ``merge()``."""
        state, instances = self._uow, list(instances)
        if state is not None:
            for instance in instances:
                notice_merge(self, state, instance)
        merged: Sequence[Any] = super().merge_all(instances, **options)
        return merged

    def delete_all(self, instances: Iterable[object]) -> None:
        """Of SQLAlchemy 2.1, which deletes each without a call of ``delete()``."""
        state, instances = self._uow, list(instances)
        super().delete_all(instances)
        if state is not None:
            for instance in instances:
                notice_delete(state, instance)

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        state = self._uow
        if state is None or state.is_flushing:
            super().flush(objects)
            return
        if state.breach is not None and state.is_guarded:
            raise state.breach
        if not self._new and self._is_clean():
            return  # as before most statements
        if state.is_stale:
            state.expire_unmodified(self)
        if self._new and len(state.inserted) < MAX_INSERTS:
            state.inserted += self._new.values()
        state.is_flushing = True
        try:
            super().flush(objects)
        except BaseException as error:
            state.note_error(error)
            raise
        finally:
            state.is_flushing = False
        if state.committing is not None:
            state.committing.run_late_hooks()

    def bulk_save_objects(self, *args: Any, **kwargs: Any) -> None:
        with _flushing(self._uow):
            super().bulk_save_objects(*args, **kwargs)

    def bulk_insert_mappings(self, *args: Any, **kwargs: Any) -> None:
        with _flushing(self._uow):
            super().bulk_insert_mappings(*args, **kwargs)

    def bulk_update_mappings(self, *args: Any, **kwargs: Any) -> None:
        with _flushing(self._uow):
            super().bulk_update_mappings(*args, **kwargs)

    def _refuse_end(self, code: str, name: str) -> None:
        if self._uow is not None and self._uow.is_guarded:
            raise self._uow.refusal(code, call=f"session.{name}()", noun=name, reason=_USE_FLUSH)


@contextmanager
def _flushing(state: SessionState | None) -> Iterator[None]:
    """SQLAlchemy sends many rows, and rolls back by itself if that fails."""
    if state is None or state.is_flushing:
        yield
        return
    state.is_flushing = True
    try:
        yield
    except BaseException as error:
        state.note_error(error)
        raise
    finally:
        state.is_flushing = False


def guarded_class(base: type[Session]) -> type[Session]:
    """``base`` with the guard in front of it; made once."""
    if issubclass(base, GuardedSession):
        return base
    guarded: type[Session] = in_front_of(
        base, GuardedSession, _watch_sessions, _closes_as_sqlalchemy=base is orm.Session
    )
    return guarded


def put_under_guard(session: Session, state: SessionState) -> None:
    """Give a session its state, and its class the guard."""
    if not isinstance(session, GuardedSession):
        had_listeners = session.__dict__.pop("dispatch", None)
        session.__class__ = guarded_class(type(session))
        if had_listeners is not None:
            session.dispatch._update(had_listeners, only_propagate=False)
    session._uow = state  # type: ignore[attr-defined]


# ---- what sessions tell


def _watch_sessions(cls: type[Session]) -> None:
    # Before what the application listens with: that may send statements, on a connection which is to be known by then.
    event.listen(cls, "after_transaction_create", _transaction_created, insert=True)
    event.listen(cls, "after_begin", connection_begun, insert=True)
    event.listen(cls, "before_commit", _about_to_commit)
    event.listen(cls, "after_soft_rollback", _rolled_back)


def _transaction_created(session: Session, transaction: SessionTransaction) -> None:
    session._meet_transaction(transaction)  # type: ignore[attr-defined]
    state: SessionState | None = session._uow  # type: ignore[attr-defined]
    origin = transaction.origin
    if origin is _OF_FLUSH or state is None:
        return
    if origin is _NESTED:
        failure = state.unit.failure if state.unit is not None else None
        transaction._uow_before = (state.wrote, failure)  # type: ignore[attr-defined]
        return
    if state.unit is not None and not state.is_own_call:
        return  # the unit's own transaction was ended by hand, and what is known of that must stay
    if state.inserted:
        note_end(state)
    state.begin_transaction()
    if not state.is_own_call:
        state.begin_site = application_site()
    if state.is_own_session and session.identity_map:
        state.is_stale = True
        if origin is not _AUTOBEGIN:
            state.expire_unmodified(session)


def connection_begun(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
    """A session's transaction takes a connection: know it, and begin as the unit asks."""
    state: SessionState | None = session._uow  # type: ignore[attr-defined]
    if state is None:
        return
    if transaction.nested:
        if state.unit is not None:
            state.unit.enlist(transaction, connection)
        return
    if state.is_stale:
        state.expire_unmodified(session)
    _, _, ends_transaction, closes_connection = transaction._connections[connection]  # whether SQLAlchemy does so
    link = know_connection(state, connection, None if closes_connection else not ends_transaction)
    unit = state.unit
    if unit is not None and state.is_own_call and not outermost_of(unit).owns(transaction):
        unit = None  # a listener to its end has begun another transaction
    _begin(link, connection, unit)
    if state.unit is None:
        _notice_begin(session, state)  # which may raise, and whoever swallows that goes on in the transaction
    if unit is not None and unit.parent is not None and session.connection_callable is not None:
        unit.expose(connection)


def _name_leak(session: Session, state: SessionState) -> None:
    """A session begins after its context has ended: say so, and let a later context take it back."""
    if state.is_own_session:
        state.app_state.sessions.scopes.leaked.append(session)
    if state.board is not None:
        state.board.count(LEAKED)
    error = violation("UOW202", who="session", what="it took a connection after its context had ended")
    signals.tell(signals.session_leaked, state.app, session=session, where=error.where)
    report_now(state.app, state.rules, error)


def _notice_begin(session: Session, state: SessionState) -> None:
    if state.last_commit is not None:
        notice_begin(state)
    if state.is_over:
        _name_leak(session, state)


def _begin(link: Link, connection: sa.Connection, unit: Unit | None) -> None:
    name, options = connection.dialect.name, connection.get_execution_options()
    if options and unit is not None and options.get("isolation_level") == "AUTOCOMMIT":
        raise UnitOptionsError(
            f"A connection in AUTOCOMMIT was asked for inside unit of work {unit.label!r}, which could not undo its "
            "writes.",
            unit.where,
            "Use uow.engine.connect() with that option, outside the unit.",
        )
    if name == "sqlite":
        _begin_on_sqlite(link, unit)
    elif name == "postgresql" and unit is not None:
        if getattr(link.dbapi_connection, "autocommit", False):
            raise UnitOptionsError(
                f"Unit of work {unit.label!r} met a connection in AUTOCOMMIT, and could not undo its writes.",
                unit.where,
                "Make the engine without AUTOCOMMIT; a listener or creator that needs it takes it back.",
            )
        outermost = unit if unit.parent is None else outermost_of(unit)
        if outermost.needs_connection or unit.read_only or unit.deadline is not None:
            _set_options(link, unit)
        if link.riders is not None and link.state.settings.label_server:
            own_name = getattr(link.pooled.dbapi_connection, NAME, None)
            if own_name is not None:
                link.riders.add((rename(own_name, outermost.label),))


def know_connection(state: SessionState, connection: sa.Connection, is_guest: bool | None = None) -> Link:
    """Tie a connection of a session's transaction to the session's state, and watch its engine.

    :param is_guest: whether the transaction of a connection that was lent is its lender's as well; None for one of its
        own.
    """
    if not hasattr(connection.dialect, STATUS_PROBE):
        watch_engine(connection.engine)
        watch_pool(connection.engine, state.app)
    link = Link(state, connection)
    if is_guest is not None:
        link.is_lent, link.is_guest = True, is_guest
    state.links.append(link)
    if state.board is not None:
        hold(link, state)
    return link


def _begin_on_sqlite(link: Link, unit: Unit | None) -> None:
    """Send the BEGIN that Python's sqlite3 leaves out."""
    driver: Any = link.pooled.dbapi_connection
    if driver.in_transaction and (link.is_lent or driver.isolation_level is not None):
        link.is_lent = True  # a transaction of its lender's; an engine's own recipe for BEGIN leaves no isolation level
    elif unit is not None:
        if unit.has_unit_around and not unit.read_only and is_inside_another(link):
            begin_sqlite(driver, for_writing=False)  # for what the body sends if it swallows the error
            raise UnitOptionsError(SQLITE_HAS_ONE_WRITER, unit.where, LET_IT_WRITE_FIRST)
        begin_sqlite(driver, for_writing=not unit.read_only)
        link.is_to_refuse_writes = unit.read_only  # to be told so costs SQLite its prepared statements
    elif driver.isolation_level is not None:  # else the session's owner wants no transaction
        link.begins = Begins.BEFORE_WRITE
    link.was_begun = driver.in_transaction
    link.changes_before = driver.total_changes


def _set_options(link: Link, unit: Unit) -> None:
    """Tell the server what the unit asks of its transaction, and the driver had no way to say: behind BEGIN, or now."""
    late_options = unit.late_options(link)
    if link.riders is None:
        if late_options is not None:
            link.connection.exec_driver_sql(late_options)
    else:
        if late_options is not None:
            link.riders.add((late_options,))
        if unit.read_only:
            link.reads_alone = link.dbapi_connection.is_read_only_at_start and unit.may_read_alone(link)
    if unit.deadline is not None:
        limit_time(link, unit.remaining_s, is_outermost=unit.parent is None)


def _about_to_commit(session: Session) -> None:
    state: SessionState | None = session._uow  # type: ignore[attr-defined]
    if state is None or state.is_own_call:
        return
    if state.unit is None:
        _refuse_aborted(session, state)
    elif not session.in_nested_transaction() or state.unit.owns(session.get_nested_transaction()):
        raise state.refusal("UOW101", call="get_transaction().commit()", noun="commit", reason=_USE_FLUSH)


def _refuse_aborted(session: Session, state: SessionState) -> None:
    if not session.in_nested_transaction() and state.has_aborted_transaction():
        raise _aborted_error(state)


def _aborted_error(state: SessionState) -> UnitFailedError:
    site = application_site()
    error = UnitFailedError(
        "session.commit() would have committed nothing: an error before it had aborted the transaction.",
        str(site) if site else None,
        "Call session.rollback() where the error is caught, or let @transactional do both.",
    )
    error.__cause__ = state.error
    return error


def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    state: SessionState | None = session._uow  # type: ignore[attr-defined]
    if state is not None and transaction.nested:
        if not state.has_lost_transaction():
            state.error = None  # the savepoint's rollback has healed what it broke
        state.wrote, failure = getattr(transaction, "_uow_before", (state.wrote, None))
        if state.unit is not None and not state.unit.owns(transaction):
            state.unit.heal(failure)


# ---- what engines tell


def watch_engine(engine: sa.Engine) -> None:
    """Watch what reaches past the session; once per dialect object, which an engine has for itself.

    SQLAlchemy's events of an engine would cost every connection several times what they tell; the methods of its
    dialect cost a call.
    """
    dialect = engine.dialect
    if hasattr(dialect, STATUS_PROBE):
        return
    setattr(dialect, STATUS_PROBE, status_probe(dialect.driver))
    warn_of_what_blocks(dialect.driver)
    event.listen(engine, "handle_error", _failed)
    for name in ("do_execute", "do_executemany"):
        setattr(dialect, name, _watched_execute(getattr(dialect, name)))
    without_parameters = _watched_execute(_with_parameters(dialect.do_execute_no_params))
    dialect.do_execute_no_params = lambda cursor, statement, context=None: without_parameters(  # type: ignore[method-assign]
        cursor, statement, None, context
    )
    setattr(dialect, COMMIT, dialect.do_commit)
    dialect.do_commit = _watched_commit(dialect.do_commit, dialect.do_rollback)  # type: ignore[method-assign,assignment]
    dialect.do_rollback = _watched_rollback(dialect.do_rollback)  # type: ignore[method-assign,assignment]


def _watched_commit(commit: End, rollback: End) -> End:
    def do_commit(connection: Any) -> None:
        link: Link | None = getattr(connection, "_uow", None)
        if link is None:
            commit(connection)
            return
        state = link.state
        if not state.is_own_call and state.unit is not None:
            rollback(connection)  # so that nothing is committed by halves
            raise _break(state, "UOW101", "commit")
        now_s, live = _monotonic(), state.live
        if live is not None:
            live.reals[live.at] = state.told + (COMMITTING + now_s)
        if link.was_begun and now_s > link.idle_since:
            _end_idle(link, now_s, may_raise=True)
        link.idle_since = _NOT_YET
        if not link.was_committed:
            # COMMIT alone is an error on one connection that rides, if the transaction is lost.
            if state.error is not None or link.riders is None or len(state.links) > 1:
                _refuse_lost(state)
            (send_commit if len(state.links) == 1 and not state.confirms else _commit)(link)

    return do_commit


def _refuse_lost(state: SessionState) -> None:
    """Refuse a COMMIT of what a listener to it has lost, before anything is committed.

    :raises UnitFailedError: then.
    """
    if state.sent_commit:
        return
    if state.committing is not None:
        state.committing.refuse_lost()
    elif state.has_aborted_transaction():
        raise _aborted_error(state)


def _commit(link: Link) -> None:
    """Commit a connection, and with the first of several all of them, in their order."""
    state = link.state
    if state.confirms and state.lost_commit is None:
        learn_marks(state)
    links = in_order(state) if len(state.links) > 1 else []
    if len(links) < 2 or link not in links:
        send_commit(link)
        return
    commit = partial(commit_by_two_phases, state) if state.settings.two_phase else commit_in_order
    if state.work is None:
        commit(links)
    else:
        state.work.run(commit, links)


def _watched_rollback(rollback: End) -> End:
    def do_rollback(connection: Any) -> None:
        link: Link | None = getattr(connection, "_uow", None)
        was_over = False
        if link is not None:
            if link.was_committed and link.is_at_rest():
                return  # its pool makes sure of what the COMMIT has done already
            was_over = link.was_begun and link.is_at_rest()  # and of what a flush that failed has undone
            _end_idle(link, _monotonic(), may_raise=False)
            link.idle_since = _NOT_YET
        if link is None or link.state.work is None:
            rollback(connection)
        else:
            link.state.work.run(rollback, connection)
        if link is not None and link.refuses_writes:
            link.accept_writes()
        if link is None or link.state.is_own_call or link.state.is_flushing or link.state.breach is not None:
            return
        if link.state.unit is not None and not was_over:
            raise _break(link.state, "UOW102", "rollback")

    return do_rollback


def _break(state: SessionState, code: str, name: str) -> RuleViolationError:
    call = f"{name}() of a connection or its transaction"
    state.breach = state.refusal(code, call=call, noun=name, reason=_USE_FLUSH)
    return state.breach


def _with_parameters(execute: Execute) -> Execute:
    """The dialect's way to send a statement without parameters, as if it took some."""
    return lambda cursor, statement, parameters, context: execute(cursor, statement, context)


def _watched_execute(execute: Execute) -> Execute:
    def do_execute(cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        link = _note_statement(statement, context) if context is not None else None
        if link is None:
            execute(cursor, statement, parameters, context)
            return
        state = link.state
        if link.was_lost and state.is_own_call:
            return  # a savepoint is gone with its transaction, and there is nothing to roll back to
        try:
            if state.work is None:
                execute(cursor, statement, parameters, context)
            else:
                run_locked(link, execute, cursor, statement, parameters, context)
        finally:
            link.idle_since = now_s = _monotonic()
            if not link.was_begun:
                link.was_begun = link.status() not in _NOT_BEGUN
            live = state.live
            if live is not None:
                live.reals[live.at] = state.told + (IDLE + now_s if link.was_begun else 0.0)

    return do_execute


def _note_statement(statement: str, context: Any) -> Link | None:
    link: Link | None = getattr(context.root_connection, "_uow", None)
    if link is None or link.state.generation != _fork.generation:
        _meet_stranger(link, context.root_connection, statement, context)
        return None
    state, unit = link.state, link.state.unit
    if statement.startswith(_OF_SAVEPOINTS) and _is_of_savepoint(statement):
        return _note_savepoint(link)
    kind = kind_of(statement, context)
    if link.begins is not _NEVER:
        _begin_late(link, kind)
    if unit is not None:
        _check_statement(link, state, unit, kind, statement)
    elif kind is _WRITE and state.write_site is None:
        state.write_site = application_site()
    _begin_statement(link, state, may_raise=True)
    if kind is _WRITE:
        state.wrote = True
    elif link.reads_alone and link.riders is not None:
        is_alone = link.limit_s is None and _needs_no_transaction(statement, context)
        link.riders.harmless_query = statement if is_alone else None
    return link


def _needs_no_transaction(statement: str, context: Any) -> bool:
    """Whether a statement reads and does nothing else, and no listener has put another one in its place."""
    return statement is context.statement and is_harmless_read(context)


def _begin_statement(link: Link, state: SessionState, *, may_raise: bool) -> None:
    """Count a statement, say that it runs, and look how long the server has waited for it."""
    state.told = told = state.told + STATEMENT
    now_s, live = _monotonic(), state.live
    if live is not None:
        live.reals[live.at] = told + (RUNNING + now_s)
    if link.was_begun and now_s > link.idle_since:
        _end_idle(link, now_s, may_raise=may_raise)


def _end_idle(link: Link, now_s: float, *, may_raise: bool) -> None:
    idle_s = now_s - link.idle_since
    if idle_s > 0.0 and link.was_begun:
        state = link.state
        state.idle_s += idle_s
        if idle_s > state.settings.max_idle_s:
            notice_idle(link, may_raise=may_raise)


def _is_of_savepoint(statement: str) -> bool:
    """Whether it is one of a savepoint's and nothing else; a COMMIT may stand behind a semicolon."""
    return statement.startswith(_OF_SAVEPOINTS) and ";" not in statement


def _note_savepoint(link: Link) -> Link:
    """What makes, keeps or undoes a savepoint is never refused for being late: what it undoes must be undone."""
    state = link.state
    if state.breach is not None and state.unit is not None:
        raise state.breach
    if link.begins is not Begins.NEVER:
        _begin_late(link, Kind.BEGIN)
    _begin_statement(link, state, may_raise=False)
    return link


def _begin_late(link: Link, kind: Kind) -> None:
    """Begin on SQLite what was not begun with the session's transaction."""
    if link.begins is Begins.BEFORE_WRITE and kind is Kind.READ:
        return
    if link.state.work is None:
        _begin_waiting(link)
    else:
        run_locked(link, _begin_waiting, link)


def _begin_waiting(link: Link) -> None:
    is_now, link.begins = link.begins is Begins.NOW, Begins.NEVER
    if is_now:
        begin_sqlite(link.dbapi_connection, for_writing=True)
    elif begins_by_statement(link.connection):
        begin_before_write(link.connection)


def _meet_stranger(link: Link | None, connection: sa.Connection, statement: str, context: Any) -> None:
    """A connection that is no session's under guard, or a parent process's, sends a statement."""
    if link is not None:
        link.state.check_process()
    if connection.closed:
        raise sa.exc.ResourceClosedError("This connection was taken back by another thread.")
    if begins_by_statement(connection) and (
        _is_of_savepoint(statement) or kind_of(statement, context) is not Kind.READ
    ):
        begin_before_write(connection)
    meet_by_hand(connection)
    state = state_that_holds(connection.engine.pool)
    if state is None or state.unit is None or state.is_own_call or hasattr(connection, "_uow"):
        return
    if state.rules.is_on("UOW110"):
        connection._uow = None  # type: ignore[attr-defined]  # it is noticed once
        notice(state, "UOW110", label=state.unit.label)


def _check_statement(link: Link, state: SessionState, unit: Unit, kind: Kind, statement: str) -> None:
    if state.breach is not None:
        raise state.breach
    if link.was_begun and (link.was_lost or link.status() is _IDLE) and not state.is_ending():
        link.was_lost = True
        raise UnitFailedError(
            f"Unit of work {unit.label!r} cannot go on: its transaction has ended, by an error inside it or by hand.",
            unit.where,
            "Let the exception leave the unit, and the transaction to it.",
        ) from state.error
    if unit.deadline is not None:
        unit.check_deadline()
        limit_again(link, unit.remaining_s or 0.0, is_outermost=unit.parent is None)
    if unit.parent is not None:
        unit.protect(link.connection)
    if kind is not _READ and (unit.read_only or kind not in _OF_WRITING):
        raise _refused_statement(state, kind, statement)
    if link.is_to_refuse_writes and not is_select(statement):
        link.refuse_writes()


def _refused_statement(state: SessionState, kind: Kind, statement: str) -> RuleViolationError:
    if kind in _OF_WRITING:
        return state.refusal("UOW111", statement=" ".join(statement.split())[:80])
    code = "UOW102" if kind is Kind.ROLLBACK else "UOW101"
    reason = _USE_NESTED if kind is Kind.BEGIN else _USE_FLUSH
    return state.refusal(code, call=f"the statement {kind.value}", noun="statement", reason=reason)


def _failed(context: ExceptionContext) -> None:
    link = link_of(context.connection)
    if link is None:
        return
    link.state.check_process()
    is_lost = context.is_disconnect or link.has_lost_transaction()
    if is_lost or link.status() is TransactionStatus.IN_ERROR:
        link.state.note_error(context.sqlalchemy_exception or context.original_exception)
    if is_lost:
        link.state.tell_rest(link)
    unit = link.state.unit
    if unit is None or unit.deadline is None:
        return
    was_ended = context.is_disconnect and not link.state.sent_commit  # what a lost COMMIT did is another question
    if was_ended or sqlstate(context.original_exception) in _TIMED_OUT:
        unit.check_deadline()  # the server has kept it
