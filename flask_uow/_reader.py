"""Readers: where read-only units run, and when they run on the primary all the same.

A reader is a copy of the default database, or the same server again (``UOW_READER_URI``). Read-only units that begin a
transaction of their own take their connection there: of several readers those of one app context take the same, and the
contexts take turns. A reader that cannot be reached is left alone for :data:`RETRY_S`, and the next one serves; where
there is none, the primary does. So it does for ``SERIALIZABLE``, which a standby cannot, and for another attempt.

A copy is late. With ``UOW_READ_YOUR_WRITES`` the last write is remembered in Flask's session and the request, or where
there is none under the app context: its time, or the position of the primary's log after the COMMIT; where nobody knows
whether that was carried out, its time. Each connection remembers how far its server had come when it was asked last, so
that it is asked only by who has written since.

When a unit asks for its connection is left to ``_units``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import Flask, Response, has_request_context, request
from flask import session as flask_session
from flask.sessions import SessionMixin

from ._drivers import run_alone
from ._hiding import error_line
from ._scopes import Scope, find_context
from ._settings import DEFAULT_BIND, Settings
from ._state import Link, SessionState, guarded_state, has_pending, outermost_of
from .exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ._units import Unit

    _Session = Session
else:
    _Session = object  # the class in front of which the reading is put

RETRY_S = 10.0
"""For how many seconds a reader that could not be reached is left alone."""

WRITTEN = "_uow_written"
"""Where Flask's session, and the request, have what is known of the last write: a position, or else its time."""

_SET_KEY, _SWITCH_OFF = "Set app.config['SECRET_KEY']", "UOW_READ_YOUR_WRITES = 'off'"

_REPLAYED = "uow_replayed"
"""Where a pooled connection's ``info`` has how far its server had come."""

_WRITTEN_UP_TO = "SELECT CAST(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0') AS bigint)"
_REPLAYED_UP_TO = (
    "SELECT CAST(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') "
    "ELSE pg_current_wal_insert_lsn() END, '0/0') AS bigint)"
)


class Reader:
    """One reader.

    :param name: what its engine is called.
    :ivar is_lost: whether it could not be reached when that was tried last.
    """

    def __init__(self, app: Flask, name: str, engine: sa.Engine) -> None:
        self._app = app
        self.name = name
        self.engine = engine
        self.is_lost = False
        self._try_again_s = 0.0

    def is_to_be_tried(self) -> bool:
        """Whether to take a connection from it; where it was lost, one unit at a time tries."""
        if not self.is_lost:
            return True
        now_s = time.monotonic()
        if now_s < self._try_again_s:
            return False
        self._try_again_s = now_s + RETRY_S
        return True

    def note_lost(self, error: BaseException) -> None:
        """It could not be reached: log that once, and leave it alone for a time."""
        self._try_again_s = time.monotonic() + RETRY_S
        if not self.is_lost:
            self.is_lost = True
            self._app.logger.warning(
                "The reader %r cannot be reached; until it can, its units run on the next one, or on the primary: %s",
                self.name,
                error_line(error, self.engine.url),
            )

    def note_found(self) -> None:
        """It could be reached."""
        if self.is_lost:
            self.is_lost = False
            self._app.logger.info("The reader %r can be reached again.", self.name)


class Readers:
    """The readers of an app, and what is known of its last writes.

    :param engines: all of the app's.
    :ivar primary: the engine of the database whose copies they are.
    :ivar engines: those of the readers.
    """

    def __init__(self, app: Flask, settings: Settings, engines: dict[str, sa.Engine]) -> None:
        self._app = app
        self._mode = settings.read_your_writes
        self._seconds = settings.read_your_writes_s
        self._readers = [Reader(app, name, engines[name]) for name in settings.readers]
        self._turns = itertools.count()
        self.primary = engines[DEFAULT_BIND]
        self.engines = [reader.engine for reader in self._readers]
        if self._mode != "off":
            app.after_request_funcs[None].insert(0, self.keep_written)  # as the last of them

    # ---- which one

    def candidates(self, unit: Unit) -> Iterator[Reader]:
        """The readers on which an outermost unit may run, in the order in which they are to be tried.

        :raises ConfigurationError: if it cannot be known what the browser session has written.
        """
        if not self._may_serve(unit) or not self._is_late_enough(self._written()):
            return
        scope = _scope()
        turn = next(self._turns) if scope is None or scope.turn is None else scope.turn
        if scope is not None:
            scope.turn = turn
        for place in range(len(self._readers)):
            reader = self._readers[(turn + place) % len(self._readers)]
            if reader.is_to_be_tried():
                yield reader

    def _may_serve(self, unit: Unit) -> bool:
        """Not where only the primary can, nor where a reader has failed before."""
        is_ours = unit.session.bind is self.primary
        return unit.read_only and unit.attempt == 1 and unit.isolation != "SERIALIZABLE" and is_ours

    def _is_late_enough(self, written: object) -> bool:
        """Whether a write is too long ago for its time alone to keep a reader from serving."""
        # Another host's clock may be ahead of this one's, but not by much.
        return not isinstance(written, float) or not abs(time.time() - written) < self._seconds

    def serve(self, reader: Reader, unit: Unit, connect: Callable[[], None]) -> bool:
        """Let a unit take its connection from a reader.

        :param connect: takes it, from where its session is bound to.
        :return: whether it has one; not if the reader cannot be reached, or has not come far enough.
        """
        state = guarded_state(unit.session)
        unit.session.bind, state.reader = reader.engine, reader
        try:
            connect()
            is_served = self._has_come(unit, state)
        except (sa.exc.DBAPIError, reader.engine.dialect.loaded_dbapi.Error) as error:
            reader.note_lost(error)
            for link in state.links:
                link.connection.invalidate(error)
            is_served = False
        else:
            reader.note_found()
        if not is_served:
            unit.start_elsewhere()
        return is_served

    def leave(self, session: Session, state: SessionState) -> None:
        """A session's unit has ended on a reader, or could not run there."""
        session.bind, state.reader = self.primary, None

    # ---- what was written

    def note_commit(self, link: Link, *, is_known: bool = True) -> None:
        """Remember that something was written and committed; one round trip with ``lsn``.

        :param is_known: whether the server has said so; else it is the time that is remembered, for who asks again.
        """
        if self._mode == "off" or link.connection.engine is not self.primary:
            return
        can_ask = self._mode == "lsn" and is_known and link.dbapi_connection is not None
        written = self._position(link) if can_ask else time.time()
        session, scope = _browser_session(), _scope()
        if session is not None and not self._is_null(session):
            session[WRITTEN] = request.environ[WRITTEN] = written
        elif scope is not None:
            scope.written = written

    def keep_written(self, response: Response) -> Response:
        """Put back what a function has removed that empties Flask's session, to fill it for who has logged in."""
        session, written = _browser_session(), request.environ.get(WRITTEN)
        if written is not None and session and WRITTEN not in session:  # one that was emptied for good stays so
            session[WRITTEN] = written
        return response

    def save_late(self, unit: Unit, response: Response) -> None:
        """A whole request's unit is committed when its response has Flask's session already: give it that once more."""
        session = _browser_session()
        if self._mode == "off" or session is None or self._is_null(session):
            return
        before, interface = session.get(WRITTEN), self._app.session_interface

        def save() -> None:
            if session.get(WRITTEN) == before:
                return
            name = f"{interface.get_cookie_name(self._app)}="
            others = [cookie for cookie in response.headers.getlist("Set-Cookie") if not cookie.startswith(name)]
            response.headers.setlist("Set-Cookie", others)
            interface.save_session(self._app, session, response)

        unit.after_commit(save)

    def _position(self, link: Link) -> float:
        """How far the primary's log reaches, right after a COMMIT; the time if it cannot say so."""
        try:
            position: int = run_alone(link.dbapi_connection, _WRITTEN_UP_TO, is_question=True)
        except link.connection.dialect.loaded_dbapi.Error as error:  # what was committed stays so
            self._app.logger.warning("The position of a COMMIT could not be learnt; its time is taken.", exc_info=True)
            link.connection.connection.invalidate(error)
            return time.time()
        return position

    def _written(self) -> object:
        """What is known of the last write; of a position it is a whole number, of a time it is not.

        :raises ConfigurationError: if the request has no session that could tell.
        """
        if self._mode == "off":
            return None
        session = _browser_session()
        if session is None:
            scope = _scope()
            return None if scope is None else scope.written
        if self._is_null(session):
            has_key = bool(self._app.secret_key)
            raise ConfigurationError(
                f"UOW_READ_YOUR_WRITES = {self._mode!r}: what was written is remembered in Flask's session, and app "
                f"{self._app.name!r} has {'opened none for this request' if has_key else 'no secret key'}.",
                fix=f"{'Let its session_interface open one' if has_key else _SET_KEY}, or {_SWITCH_OFF}.",
            )
        return session.get(WRITTEN, request.environ.get(WRITTEN))

    def _is_null(self, session: SessionMixin) -> bool:
        return self._app.session_interface.is_null_session(session)

    def _has_come(self, unit: Unit, state: SessionState) -> bool:
        """Whether the server behind a unit's connection has come as far as the last write; it may have to be asked."""
        written = self._written()
        if self._mode != "lsn" or not isinstance(written, int):
            return True
        (link,) = state.links
        info = link.connection.info
        if info.get(_REPLAYED, 0) < written:
            info[_REPLAYED] = _ask_how_far(link)
            unit.renew_snapshot(link)
        is_far_enough: bool = info.get(_REPLAYED, 0) >= written
        return is_far_enough


def _ask_how_far(link: Link) -> int:
    """How far the server behind a connection has come; where statements ride, no transaction is begun for that."""
    position: int
    if link.riders is not None:
        position = run_alone(link.dbapi_connection, _REPLAYED_UP_TO, is_question=True)
    else:
        with closing(link.dbapi_connection.cursor()) as cursor:
            cursor.execute(_REPLAYED_UP_TO)
            (position,) = cursor.fetchone()
    return position


def _browser_session() -> SessionMixin | None:
    """Flask's session, None outside of a request, and while it is being opened."""
    if not has_request_context():
        return None
    opened: Any = flask_session._get_current_object()  # type: ignore[attr-defined]
    return opened  # type: ignore[no-any-return]


def _scope() -> Scope | None:
    return getattr(find_context(), "_uow_scope", None)


# ---- a reader that is lost before it has answered


class ReadingSession(_Session):
    """Sends a unit's first statement again where the reader is lost that was to answer it."""

    def _execute_internal(self, *args: Any, **options: Any) -> Any:
        while True:
            try:
                return super()._execute_internal(*args, **options)
            except sa.exc.DBAPIError as error:
                if not _is_first(self, error):
                    raise
                _go_on_elsewhere(self, error)


def _is_first(session: Session, error: sa.exc.DBAPIError) -> bool:
    """Whether a reader was lost before its unit has read or changed anything."""
    state = guarded_state(session)
    if state.reader is None or state.unit is None or not error.connection_invalidated:
        return False
    is_first = outermost_of(state.unit).is_at_first_statement
    return is_first and not session.in_nested_transaction() and not has_pending(session)


def _go_on_elsewhere(session: Session, error: sa.exc.DBAPIError) -> None:
    state = guarded_state(session)
    assert state.reader is not None
    assert state.unit is not None
    state.reader.note_lost(error)
    unit = outermost_of(state.unit)
    unit.start_elsewhere()
    unit.take_connection()
