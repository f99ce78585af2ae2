"""psycopg2's connection, with statements that ride.

Underneath, psycopg2 is in autocommit: the class says BEGIN, COMMIT and ROLLBACK itself, where the driver would have.
For what the driver's C code does by its own fields, two-phase transactions and large objects, the driver drives that
one transaction.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, NoReturn

import psycopg2
from psycopg2 import extensions, sql
from psycopg2.extensions import connection as plain_connection
from psycopg2.extensions import cursor as plain_cursor

from .._fronts import behind, hides
from ._characteristics import (
    AS_THE_SERVER,
    LEVELS,
    OPTION_OFF,
    QUESTION,
    QUESTION_AGAIN,
    QUESTION_WITHOUT_WISH,
    READ_ONLY,
    Characteristics,
    begin_text,
    level_of,
    on_or_off,
    resets_all,
    session_texts,
    sets_defaults,
)
from ._psycopg2_cursors import PREFIX_END, RidingCursor, Trip, riding_cursor_class
from ._riders import FAILING, IDLE, IN_ERROR, SEPARATOR, Riders
from ._texts import Texts, begins_transaction

logger = logging.getLogger(__name__)

_REPORTING_VERSION = 140000  # the first server that reports the setting by itself

_ALONE_IN_AUTOCOMMIT = frozenset(("SELECT 1", "select 1", "SELECT 1;", ";"))

# What psycopg2 keeps in C; the names are taken by properties and methods here.
_members: Any = plain_connection
_real_autocommit = _members.autocommit
_real_isolation_level = _members.isolation_level
_real_readonly = _members.readonly
_real_deferrable = _members.deferrable
_REAL_CHARACTERISTICS = (_real_isolation_level, _real_readonly, _real_deferrable)
_real_status = _members.status
_real_cursor_factory = _members.cursor_factory
_server_status: Callable[[plain_connection], int] = _members.get_transaction_status

# What texts were run, by the server's version, whose grammar they satisfied, and how it reads a backslash.
_TEXTS: dict[tuple[int, str | None], Texts] = {}


class RidingConnection(plain_connection):
    """A connection that sends what needs no answer of its own in front of what does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_up()

    def _set_up(self) -> None:
        #: What it was told and has not sent.
        self.riders = Riders()
        #: How many round trips it has made, but for what psycopg2's large objects say, and for the rows of an
        #: ``executemany`` that it drives.
        self.trips = 0
        #: Whether the server has taken the start option by which all is read-only that does not say otherwise.
        self.is_read_only_at_start = False
        # Whether it was so once, and whether a text has been sent since that may have changed it.
        self._was_read_only_at_start = self._is_in_doubt = False
        self._may_be_standby = False
        # The BEGIN of the characteristics, None before it is known.
        self._said_at_begin: str | None = None
        # One thread at a time sends what waits.
        self._lock = threading.RLock()
        # Grows with each transaction's end, which named cursors do not survive.
        self._endings = 0
        # Whether psycopg2 drives the present transaction itself.
        self._is_native = False
        self._is_entered = False
        self._characteristics = AS_THE_SERVER
        # What was last SET for what runs without a BEGIN, and what is to be.
        self._session = self._session_wanted = AS_THE_SERVER
        self._cursor_factory: Any = None
        self._autocommit: bool = _real_autocommit.__get__(self)
        self._backslash = self.get_parameter_status("standard_conforming_strings")
        self._texts = _TEXTS.setdefault((self.server_version, self._backslash), {})
        if not self.async_:
            self._start()

    def _start(self) -> None:
        """Go on from what a class or a function of the program's own has told psycopg2."""
        if _real_status.__get__(self) == extensions.STATUS_BEGIN:
            plain_connection.commit(self)  # what it has set there is to hold
        self._characteristics = tuple(real.__get__(self) for real in _REAL_CHARACTERISTICS)
        if self._autocommit:
            self._session_wanted = self._characteristics
        self._set_cursor_factory(_real_cursor_factory.__get__(self))
        self._take_over()
        # In another encoding a server may refuse a whole string for one of its characters.
        self._is_utf8 = self.get_parameter_status("server_encoding") == "UTF8"

    def _reads_alike(self) -> bool:
        """Whether a text is read as whoever had it run before: not in another encoding, nor with other backslashes."""
        backslash = self.get_parameter_status("standard_conforming_strings")
        return self._is_utf8 and self.encoding == "UTF8" and backslash == self._backslash

    def note_read_only_at_start(self) -> bool:
        """Find out, and return, whether ``default_transaction_read_only`` is on by the start options for certain.

        A pooler may have dropped them, or may give each transaction another server's session; none knows the process
        number of one when it greets its client. A standby refuses to say READ WRITE, and an old one does not report
        what it is: it goes on without the option, which a promotion would leave behind. Where the role or the database
        is to be read-only, nobody is to say READ WRITE.
        """
        is_told = self.server_version >= _REPORTING_VERSION
        is_on = False
        if not is_told or self.get_parameter_status(READ_ONLY) == "on":
            cursor = plain_cursor(self)
            try:
                cursor.execute(QUESTION)
            except psycopg2.ProgrammingError:
                cursor.execute(QUESTION_WITHOUT_WISH)
            *answer, is_standby, is_wanted = cursor.fetchone() or (None, None, None, None)
            is_on = answer == [self.get_backend_pid(), "on"]
            is_left = is_standby and not is_told
            self.is_read_only_at_start = self._was_read_only_at_start = is_on and not (is_left or is_wanted)
            if is_on and is_left:
                cursor.execute(OPTION_OFF)
        # A primary does not become a standby while it is connected to.
        self._may_be_standby = self.get_parameter_status("in_hot_standby") == "on"
        return is_on

    def _doubt_defaults(self, text: str) -> None:
        """Before a text that may set what transactions are by default, or set it back; ROLLBACK may undo that."""
        # A text that resets all leaves the start option as it is where that holds.
        if not (sets_defaults(text) or (not self.is_read_only_at_start and resets_all(text))):
            return
        self.is_read_only_at_start, self._is_in_doubt, self._said_at_begin = False, True, None
        self._session = (self._session[0], None, self._session[2])

    def _settle_defaults(self) -> None:
        """Ask whether the start option holds, where a text may have changed that."""
        if self._is_native or self.closed or _server_status(self) != IDLE:
            return
        cursor = plain_cursor(self)
        self.trips += 1
        cursor.execute(QUESTION_AGAIN)
        is_ours, is_snapshot = cursor.fetchone() or (False, False)
        if is_ours and is_snapshot:
            self._run(OPTION_OFF)
        self.is_read_only_at_start = is_ours and not is_snapshot
        self._is_in_doubt = False

    # ---- transactions

    @property
    def transaction_status(self) -> int:
        """The transaction's status in libpq's numbers, as if nothing were waiting."""
        riders = self.riders
        if riders.waiting:
            return riders.status(IDLE)
        return _server_status(self)

    def get_transaction_status(self) -> int:
        """Return libpq's status of the transaction, as if nothing were waiting."""
        return self.transaction_status

    @property
    def status(self) -> int:
        """psycopg2's belief: whether a transaction is open."""
        if self.riders.is_begun and not self._is_native:
            return extensions.STATUS_BEGIN
        status: int = _real_status.__get__(self)
        return status

    @property
    def info(self) -> extensions.ConnectionInfo:
        """What libpq knows of the connection."""
        return _Info(self)

    def commit(self) -> None:
        """Commit; what must not be lost goes along.

        :raises psycopg2.errors.InFailedSqlTransaction: if the transaction had failed, so that nothing is committed.
        """
        riders = self.riders
        if riders.is_begun and self._is_native:
            return self._commit_natively()
        if riders.is_begun:
            with self._lock:
                self._commit_begun()
            return None
        riders.along, riders.harmless_query = (), None
        if not self._is_at_rest():
            super().commit()  # which refuses
        return None

    def rollback(self) -> None:
        """Roll back; where the server knows of no transaction, nothing is sent."""
        riders = self.riders
        is_begun = riders.is_begun
        if is_begun and not self._is_native:
            with self._lock:
                if _server_status(self) != IDLE:
                    self._run("ROLLBACK")
                self._ended()
        elif self._is_native:
            self.trips += self._is_begun_natively()
        riders.along, riders.harmless_query = (), None
        if not self._is_at_rest():
            super().rollback()  # or refuses
        if self._is_native:
            self._leave_native()

    def __enter__(self) -> RidingConnection:
        if self.closed or self.async_:
            super().__enter__()
        if self._is_entered:
            raise psycopg2.ProgrammingError("the connection cannot be re-entered recursively")
        self._is_entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._is_entered = False
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def reset(self) -> None:
        """Forget everything that the session was told."""
        if not self.closed and not self.async_ and self.riders.is_begun and not self._is_native:
            self.rollback()
        self.trips += 1 + self._is_begun_natively()
        super().reset()
        self._is_native = False
        self._ended()
        if self._was_read_only_at_start:
            self._doubt_defaults("RESET ALL")
        self._characteristics = self._session = self._session_wanted = AS_THE_SERVER
        self._said_at_begin = None
        self._autocommit = False
        _real_autocommit.__set__(self, True)

    def set_client_encoding(self, encoding: str, /) -> None:
        """Set the encoding; a transaction that is open is rolled back if it is another one, as psycopg2 does."""
        if _clean(encoding) != self.encoding:
            if self.riders.is_begun and not self._is_native and not self.closed:
                self.rollback()
            self.trips += 1 + self._is_begun_natively()
        try:
            super().set_client_encoding(encoding)
        finally:
            if self._is_native and _real_status.__get__(self) == extensions.STATUS_READY:
                self._leave_native()

    # ---- what the next BEGIN says

    @property
    def autocommit(self) -> bool:
        """Whether statements run without a transaction."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: Any) -> None:
        self.set_session(autocommit=bool(value))

    @property
    def isolation_level(self) -> int | None:
        """The level that BEGIN names, by psycopg2's number."""
        return self._characteristics[0]

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        self.set_session(isolation_level="default" if value is None else value)

    @property
    def readonly(self) -> bool | None:
        """The access mode that BEGIN names."""
        return self._characteristics[1]

    @readonly.setter
    def readonly(self, value: Any) -> None:
        self.set_session(readonly="default" if value is None else value)

    @property
    def deferrable(self) -> bool | None:
        """Whether BEGIN says DEFERRABLE."""
        return self._characteristics[2]

    @deferrable.setter
    def deferrable(self, value: Any) -> None:
        self.set_session(deferrable="default" if value is None else value)

    def set_session(
        self, isolation_level: Any = None, readonly: Any = None, deferrable: Any = None, autocommit: Any = None
    ) -> None:
        """Set what the next BEGIN says; None leaves a thing as it is."""
        self._check_between_transactions()
        level, is_read_only, is_deferrable = self._characteristics
        if isolation_level is not None:
            level = level_of(isolation_level)
        if readonly is not None:
            is_read_only = on_or_off(readonly)
        if deferrable is not None:
            is_deferrable = on_or_off(deferrable)
        if autocommit is not None:
            self._autocommit = bool(autocommit)
        self._characteristics = (level, is_read_only, is_deferrable)
        self._said_at_begin = None
        # In autocommit psycopg2 tells the session what is set, and only that.
        session = AS_THE_SERVER
        if self._autocommit:
            session = (
                self._session_wanted[0] if isolation_level is None else level,
                self._session_wanted[1] if readonly is None else is_read_only,
                self._session_wanted[2] if deferrable is None else is_deferrable,
            )
        self._session_wanted = session

    def set_isolation_level(self, level: int | None) -> None:
        """Roll back, and set the level of the next BEGIN; 0 is autocommit."""
        if self.closed or self.async_:
            return super().set_isolation_level(level)
        if self._is_native:
            self.trips += self._is_begun_natively()
            super().set_isolation_level(level)
            self._leave_native()
        elif isinstance(level, int) and not 0 <= level < len(LEVELS):
            raise ValueError(f"isolation level must be between 0 and {len(LEVELS) - 1}")
        else:
            self.rollback()
        if level == 0:
            return self.set_session(autocommit=True)
        return self.set_session(isolation_level="default" if level is None else level, autocommit=False)

    # ---- cursors

    def cursor(
        self,
        name: str | bytes | None = None,
        cursor_factory: Any = None,
        withhold: bool = False,
        scrollable: bool | None = None,
    ) -> Any:
        """Return a new cursor."""
        if name is None and cursor_factory is None and not withhold and scrollable is None:
            cursor = super().cursor()
            return cursor if type(cursor) is RidingCursor else self._let_ride(cursor)
        cursor = self._special_cursor(name, cursor_factory, withhold, scrollable)
        if type(cursor) is RidingCursor and name is None:
            return cursor
        return self._let_ride(cursor)

    def _special_cursor(self, name: Any, factory: Any, withhold: bool, scrollable: bool | None) -> Any:
        options: dict[str, Any] = {"withhold": withhold, "scrollable": scrollable}
        if isinstance(factory, type) and issubclass(factory, plain_cursor) and not self.async_:
            factory = riding_cursor_class(factory, is_named=name is not None)
        if factory is not None:
            options["cursor_factory"] = factory
        return super().cursor(name, **options)

    def _let_ride(self, cursor: Any) -> Any:
        """Let a cursor ride that a class of the program's own may have made, or a function."""
        if self.async_:
            return cursor
        is_named = cursor.name is not None
        riding = riding_cursor_class(type(cursor), is_named=is_named)
        if type(cursor) is not riding:
            cursor.__class__ = riding
        if is_named:
            cursor._endings = self._endings
        return cursor

    @property
    def cursor_factory(self) -> Any:
        """The class of the cursors, as the caller has set it."""
        return self._cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, factory: Any) -> None:
        self._set_cursor_factory(factory)

    def _set_cursor_factory(self, factory: Any) -> None:
        self._cursor_factory = factory
        if factory is None and not self.async_:
            factory = RidingCursor
        elif not self.async_ and isinstance(factory, type) and issubclass(factory, plain_cursor):
            factory = riding_cursor_class(factory, is_named=False)
        _real_cursor_factory.__set__(self, factory)

    # ---- what psycopg2 drives itself

    def tpc_begin(self, xid: Any, /) -> None:
        """Begin a two-phase transaction."""
        if not self.closed and not self.async_ and not self._is_native:
            self._check_outside("tpc_begin")
        if self._autocommit or self.closed or self.async_ or self._is_native:
            return super().tpc_begin(xid)
        self._prepare_session("", is_harmless=False)
        _real_autocommit.__set__(self, False)
        try:
            self._give_characteristics()
            with Trip(self):
                super().tpc_begin(xid)
        except BaseException:
            self._leave_native()
            raise
        self._is_native = True
        return self.riders.begun()

    def tpc_prepare(self) -> None:
        """Prepare a two-phase transaction."""
        with Trip(self):
            super().tpc_prepare()

    def tpc_commit(self, *xid: Any) -> None:
        """Commit a two-phase transaction."""
        self._check_recovery(xid)
        with Trip(self):
            super().tpc_commit(*xid)
        if not xid:
            self._leave_native()

    def tpc_rollback(self, *xid: Any) -> None:
        """Roll a two-phase transaction back."""
        self._check_recovery(xid)
        with Trip(self):
            super().tpc_rollback(*xid)
        if not xid:
            self._leave_native()

    def tpc_recover(self) -> list[Any]:
        """Return the two-phase transactions that are prepared."""
        was_begun = self.riders.is_begun
        with Trip(self):
            found = super().tpc_recover()
        if not was_begun and self.riders.is_begun:
            self.rollback()
        return found

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        """Open a large object; psycopg2 drives the transaction from here on."""
        if self._is_passive() or self._autocommit or self.closed:
            return super().lobject(*args, **kwargs)
        with self._lock:
            try:
                self._hand_over()
                return super().lobject(*args, **kwargs)
            finally:
                self._settle_hand_over()

    # ---- for the cursors

    @contextmanager
    def driven_by_psycopg2(self, query: Any) -> Iterator[None]:
        """Let psycopg2 drive the transaction in which a statement is sent past all that rides.

        One that has failed stays as it is: it takes no statement but those that psycopg2 need not know of.
        """
        is_passive = self._is_passive() or bool(self.closed)
        status = self.transaction_status
        is_ended = self.riders.is_begun and status == IDLE  # by a text, so that what follows is in autocommit
        hands_over = not (is_passive or is_ended or status == IN_ERROR)
        try:
            if is_passive:
                self._prepare_session(query, is_harmless=False)
            else:
                with self._lock:
                    self._hand_over() if hands_over else self._send_waiting()
            with Trip(self):
                yield
        finally:
            if hands_over:
                self._settle_hand_over()
                self.trips += self._is_begun_natively()  # psycopg2's BEGIN
            elif not (is_passive or is_ended or self.closed) and _server_status(self) == IDLE:
                self._after_control("")

    def _is_passive(self) -> bool:
        """Whether statements are psycopg2's own affair: in autocommit, or where it drives the transaction."""
        return self._is_native or (self._autocommit and not self._is_entered)

    def _is_at_rest(self) -> bool:
        """Whether psycopg2 has nothing to end or to refuse; to be told so it would give the interpreter's lock away."""
        return not (self.closed or self.async_ or self._is_native) and bool(
            _real_status.__get__(self) == extensions.STATUS_READY
        )

    def _begin(self) -> bool:
        """Let a BEGIN wait if no transaction is believed open; return whether one was."""
        riders = self.riders
        if riders.is_begun:
            return True
        if self._session is not self._session_wanted and self._session != self._session_wanted:
            self._set_session(self._session_wanted)
        riders.begin(self._said_at_begin or self._begin_text())
        return False

    def _begin_text(self) -> str:
        if self._is_in_doubt:
            self._settle_defaults()
        level, is_read_only, is_deferrable = self._characteristics
        if is_read_only is None and self.is_read_only_at_start:
            is_standby = self._may_be_standby and self.get_parameter_status("in_hot_standby") == "on"
            is_read_only = None if is_standby else False
        text = begin_text(level, is_read_only, is_deferrable)
        if not (self._may_be_standby or self._is_in_doubt):
            self._said_at_begin = text
        return text

    def _prefix(self) -> str:
        return self.riders.text + PREFIX_END

    def _send_waiting(self) -> None:
        """Send what waits by itself."""
        riders = self.riders
        if not riders.waiting:
            return
        if riders.is_doomed:
            self._fail_on_server()
            return
        try:
            self._run(riders.text)
        except BaseException as error:
            self._settle_refusal(error)
            raise
        riders.sent()

    def _settle_refusal(self, error: BaseException) -> None:
        """Find out whether a string that failed has begun the transaction that it was to begin."""
        riders = self.riders
        is_refused = isinstance(error, psycopg2.Error) and error.pgcode is not None and not self.closed
        if is_refused and riders.is_begin_waiting and _server_status(self) == IDLE:
            riders.is_doomed = True
        else:
            riders.sent(has_failed=True)

    def _fail_on_server(self) -> None:
        """Let the server's transaction fail as the program's has, so that its errors are genuine from here on."""
        riders = self.riders
        for text in (riders.failing_text, SEPARATOR.join((riders.waiting[0], FAILING))):
            try:
                self._run(text)
            except psycopg2.Error:
                if self.closed:
                    raise
            if _server_status(self) != IDLE:
                break
        riders.sent()

    def _can_read_alone(self) -> bool:
        """Whether a harmless read may go without a BEGIN now, kept from writing by the server all the same."""
        riders = self.riders
        if not self.is_read_only_at_start or self._characteristics[0] not in (None, 1) or riders.is_doomed:
            return False
        if riders.is_begun and not riders.is_untouched:
            return False
        if self._session != self._session_wanted:
            self._set_session(self._session_wanted)
        return self.server_version < _REPORTING_VERSION or self.get_parameter_status(READ_ONLY) == "on"

    def _send_before_control(self, text: str | bytes) -> None:
        """Send what waits ahead of transaction control as text."""
        way_back = self.riders.way_back(text) if isinstance(text, str) else ""
        try:
            self._send_waiting()
        except psycopg2.Error:
            if way_back and _server_status(self) == IN_ERROR:
                self.riders.go_back(way_back)
            raise
        self._before_control(text)

    def _before_control(self, text: str | bytes) -> None:
        """Before transaction control as text: a BEGIN in it is not to be read-only by the start option."""
        if self._was_read_only_at_start:
            self._doubt_defaults(_as_text(text, self))
        if not self.is_read_only_at_start or _server_status(self) == IN_ERROR:
            return
        if begins_transaction(_as_text(text, self)):
            self._allow_writes()

    def _after_control(self, text: str | bytes) -> None:
        """After transaction control as text: nothing is known of savepoints, and what follows may be in autocommit."""
        self.riders.forget_savepoints(text if isinstance(text, str) else "")
        if self._is_in_doubt:
            self._settle_defaults()
        if self.is_read_only_at_start and _server_status(self) == IDLE:
            self._allow_writes()

    def _allow_writes(self) -> None:
        is_lasting = _server_status(self) == IDLE
        self._run(f"SET {READ_ONLY} TO 'off'")
        if is_lasting:  # in a transaction it may be rolled back
            self._session = (self._session[0], False, self._session[2])

    def _prepare_session(self, query: Any, *, is_harmless: bool) -> None:
        """Before a statement in autocommit: let the session's defaults be what they should."""
        if self._is_in_doubt:
            self._settle_defaults()
        if self._is_native:
            self._prepare_native()
        if self._was_read_only_at_start and not (is_harmless or self.closed):
            self._look_at_defaults(query)
        if self._is_native or not self._autocommit or self.closed or self.async_:
            return self._leave_autocommit()
        wanted = self._session_wanted
        if wanted[1] is None and self.is_read_only_at_start:
            if is_harmless or (isinstance(query, str) and query in _ALONE_IN_AUTOCOMMIT):
                return None
            wanted = (wanted[0], False, wanted[2])
        if wanted != self._session:
            self._set_session(wanted)
        return None

    def _look_at_defaults(self, query: Any) -> None:
        """Before a statement that psycopg2 does not put into a transaction of ours: whether it sets the defaults."""
        self._doubt_defaults(_as_text(query, self))
        if self.server_version >= _REPORTING_VERSION and self.get_parameter_status(READ_ONLY) == "on":
            self._note_reset()  # in a script, say, or by a function

    def _leave_autocommit(self) -> None:
        if self._session is not AS_THE_SERVER and not self.closed and not self._is_native:
            self._set_session(AS_THE_SERVER)

    def _note_reset(self) -> None:
        """After a RESET or DISCARD in autocommit: the server may be read-only again, as by its start option."""
        if self._session[1] is False:
            self._session = (self._session[0], None, self._session[2])

    def _prepare_native(self) -> None:
        """Before a statement where psycopg2 drives the transaction: send what was told of it since it was begun."""
        if self.riders.waiting:
            self._send_waiting()
        if self.is_read_only_at_start and _server_status(self) == IDLE:
            self._let_psycopg2_write()

    def _let_psycopg2_write(self) -> None:
        """Where psycopg2 drives a transaction that has ended unknown to it, or is about to begin another one."""
        status = _real_status.__get__(self)
        if status == extensions.STATUS_PREPARED:
            return  # it refuses whatever comes
        if status != extensions.STATUS_BEGIN:
            self._give_characteristics()
        elif self._session[1] is not False:
            self._allow_writes()

    def _set_session(self, wanted: Characteristics) -> None:
        changes = session_texts(self._session, wanted)
        if changes:
            self._run(SEPARATOR.join(changes))
            if self._was_read_only_at_start and not self.is_read_only_at_start:  # what is set back is the start option
                self._is_in_doubt, self._said_at_begin = True, None
        self._session = wanted

    # ---- private

    def _run(self, text: str) -> str | None:
        """Send a text of our own; return the server's tag of its last statement."""
        cursor = plain_cursor(self)
        self.trips += 1
        cursor.execute(text)
        return cursor.statusmessage

    def _commit_begun(self) -> None:
        riders = self.riders
        if riders.is_doomed:
            self._ended()
            _raise_failed()
        along = riders.for_commit()
        if not along and _server_status(self) == IDLE:
            return self._ended()
        try:
            tag = self._run(SEPARATOR.join([*along, "COMMIT"]) if along else "COMMIT")
        except BaseException:
            if along and not self.closed and _server_status(self) == IN_ERROR:
                self._run("ROLLBACK")
            if self.closed or _server_status(self) == IDLE:
                self._ended()  # else an interrupt came before it was sent, and there is something to roll back
            raise
        self._ended()
        if tag == "ROLLBACK":
            _raise_failed()
        return None

    def _ended(self) -> None:
        self.riders.end()
        self._endings += 1

    def _commit_natively(self) -> None:
        has_failed = _server_status(self) == IN_ERROR and _real_status.__get__(self) == extensions.STATUS_BEGIN
        self.trips += self._is_begun_natively()
        super().commit()
        self._leave_native()
        if has_failed:
            _raise_failed()

    def _is_begun_natively(self) -> bool:
        return self._is_native and bool(_real_status.__get__(self) == extensions.STATUS_BEGIN)

    def _hand_over(self) -> None:
        """Let psycopg2 drive a transaction that may be open, and say its BEGIN if that waits."""
        riders = self.riders
        self._begin()
        if riders.is_begin_waiting and not riders.is_doomed:
            along = riders.waiting[1:]
            riders.sent()
            self._is_native = True
            _real_autocommit.__set__(self, False)
            self._give_characteristics()
            if along:
                self._run(SEPARATOR.join(along))
            return
        self._send_waiting()
        self._is_native = True
        _real_autocommit.__set__(self, False)
        self._run("SELECT 1")  # with a BEGIN of psycopg2's in front, of which the server warns
        if self.notices and "already a transaction" in self.notices[-1]:
            del self.notices[-1]

    def _settle_hand_over(self) -> None:
        """Where psycopg2 has begun nothing to drive, drive it again."""
        if not self._is_native or _real_status.__get__(self) == extensions.STATUS_BEGIN:
            return
        self._is_native = False
        if _server_status(self) == IDLE:
            self._ended()
        self._take_over()

    def _leave_native(self) -> None:
        self._is_native = False
        self._ended()
        self._take_over()

    def _take_over(self) -> None:
        """Drive transactions again."""
        if self.closed:
            return
        _real_autocommit.__set__(self, False)
        for real in _REAL_CHARACTERISTICS:
            real.__set__(self, None)
        _real_autocommit.__set__(self, True)

    def _give_characteristics(self) -> None:
        """Let psycopg2 say the BEGIN that we would."""
        level, is_read_only, is_deferrable = self._characteristics
        if is_read_only is None and self.is_read_only_at_start:
            is_read_only = False
        _real_isolation_level.__set__(self, level)
        _real_readonly.__set__(self, is_read_only)
        _real_deferrable.__set__(self, is_deferrable)

    def _check_between_transactions(self) -> None:
        if self.closed or self.async_ or self._is_native:
            real: bool = _real_autocommit.__get__(self)
            _real_autocommit.__set__(self, real)  # psycopg2 refuses
        self._check_outside("set_session")

    def _check_outside(self, what: str) -> None:
        if self.riders.is_begun:
            raise psycopg2.ProgrammingError(f"{what} cannot be used inside a transaction")

    def _check_recovery(self, xid: tuple[Any, ...]) -> None:
        if xid and self.riders.is_begun and not self._is_native:
            raise psycopg2.ProgrammingError("tpc_commit/tpc_rollback with a xid must be called outside a transaction")


class _Info(extensions.ConnectionInfo):
    """What libpq knows of a connection, and the status of the transaction as if nothing were waiting."""

    def __init__(self, connection: RidingConnection) -> None:
        super().__init__(connection)
        self._riding = connection

    @property
    def transaction_status(self) -> int:
        return self._riding.transaction_status


def riding_factory(factory: Callable[..., Any] | None) -> Callable[..., Any]:
    """What makes riding connections as a ``connection_factory`` makes plain ones.

    The class behind the factory's sees what that says by ``super()``, so that it is committed with the rest. What calls
    psycopg2's methods by name would go past it, and does not ride.

    :param factory: a class, or another function that makes a connection; None for psycopg2's own class.
    """
    if factory is None or factory is plain_connection:
        return RidingConnection
    if not isinstance(factory, type) or factory.__dictoffset__:
        return lambda *args, **kwargs: _turn_riding(factory(*args, **kwargs))
    # What it makes has no room to become a riding connection later.
    hiding = hides(factory, RidingConnection)
    if hiding is None:
        riding: type[RidingConnection] = behind(factory, RidingConnection)
        return riding
    _tell_why_not(f"{hiding} does not call super()", "Let it call super() where it names psycopg2's class.")
    return factory


def _turn_riding(connection: Any) -> Any:
    """Let a connection ride that somebody else has made, if that is possible.

    Whoever makes it may use it already: until then it is a plain one.
    """
    base = type(connection)
    if issubclass(base, RidingConnection):
        return connection
    if not (issubclass(base, plain_connection) and base.__dictoffset__):
        _tell_why_not(
            f"a connection_factory that is a function has made a {base.__qualname__}, which cannot be changed",
            "Let it make connections of a class of its own, derived from psycopg2.extensions.connection.",
        )
        return connection
    hiding = hides(base, RidingConnection, but=("__init__",))
    if hiding is not None:
        _tell_why_not(f"{hiding} does not call super()", "Let it call super() where it names psycopg2's class.")
        return connection
    connection.__class__ = behind(base, RidingConnection)
    connection._set_up()
    return connection


@lru_cache(64)
def _tell_why_not(what: str, fix: str) -> None:
    """Say in the log, once, why connections do not ride."""
    logger.warning("Statements do not ride: %s. fix: %s", what, fix)


def _raise_failed() -> NoReturn:
    message = "current transaction is aborted: COMMIT has rolled it back"
    error = psycopg2.errors.InFailedSqlTransaction(message)
    set_state: Callable[[dict[str, str]], None] = error.__setstate__
    set_state({"pgcode": "25P02", "pgerror": f"ERROR:  {message}\n"})
    raise error


def _as_text(query: Any, connection: RidingConnection) -> str:
    """What can be read of a statement; nothing of what psycopg2 will refuse."""
    if isinstance(query, sql.Composable):
        query = query.as_string(connection)
    if isinstance(query, bytes):
        return query.decode("latin-1")
    return query if isinstance(query, str) else ""


def _clean(encoding: str) -> str:
    """An encoding's name as psycopg2 keeps it."""
    return "".join(letter for letter in encoding.upper() if letter.isalnum())
