"""psycopg2's cursors that send what waits: in front of their statement where it can carry that, else ahead of it.

One for what is run by the client, one for a named cursor, which lives on the server. Both are put behind the class that
a ``cursor_factory`` names: it is told the program's statements, and what it says by ``super()`` is sent by them. Of a
class that calls psycopg2's methods by name, past all that is between, psycopg2 itself drives the transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from inspect import GEN_SUSPENDED, getgeneratorstate
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as plain_connection
from psycopg2.extensions import cursor as plain_cursor

from .._fronts import behind, hides, in_front_of
from ._positions import shift_back
from ._riders import IDLE, IN_ERROR, IN_TRANSACTION, Riders, is_rider
from ._shapes import are_odd
from ._texts import Carrying, carrying_of, is_proven_with, known_carrying, remember

if TYPE_CHECKING:
    from ._psycopg2 import RidingConnection

PREFIX_END = ";\n"  # the caller's first line is the second that the server reads
PROVEN = Carrying.ALL
_RESETTING = frozenset(("RESET", "DISCARD ALL"))  # the tags of what takes the start options up again

# What psycopg2 keeps in C; the names are taken by properties here.
_members: Any = plain_cursor
_last_query = _members.query
_last_tag = _members.statusmessage
_connection_members: Any = plain_connection
# Those without a code after which something was sent: a connection that was lost, the end of a named cursor's rows.
_ERRORS_OF_THE_WIRE = (psycopg2.OperationalError, psycopg2.DatabaseError, StopIteration)
_real_autocommit = _connection_members.autocommit


class Trip:
    """What is sent inside of it is one round trip, unless psycopg2 refuses it by itself."""

    __slots__ = ("_connection",)

    def __init__(self, connection: RidingConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.trips += error is None or was_sent(error)


def was_sent(error: BaseException) -> bool:
    """Whether the server was asked before an error; psycopg2 has no code for those of its own."""
    is_own = isinstance(error, Exception) and getattr(error, "pgcode", None) is None
    return not is_own or type(error) in _ERRORS_OF_THE_WIRE


class RidingCursor(plain_cursor):
    """A cursor run by the client: what waits rides in front of its statement."""

    connection: RidingConnection

    # Whether one of the two below is not empty.
    _is_odd = False
    # How many bytes of what it sent last were not the caller's.
    _shift = 0
    # The statement that it was told last, while that waits.
    _deferred = ""

    def execute(self, query: Any, vars: Any = None) -> None:
        """Run a statement, or let it wait."""
        connection = self.connection
        riders = connection.riders
        if (
            not self._is_odd
            and type(query) is str
            and connection._texts.get(query) is PROVEN
            and riders.harmless_query is None
        ):
            if riders.is_begun and not riders.waiting and not connection._is_native:
                return self._send(query, vars)
            if not riders.is_begun and not connection._is_passive() and not self.closed:
                with connection._lock:
                    return self._execute_first(query, vars)
        return self._execute_with_care(query, vars)

    def _execute_with_care(self, query: Any, vars: Any) -> None:
        """Run a statement of which nothing is known yet, or which may wait, or go without a transaction."""
        connection = self.connection
        if self._is_odd:
            self._be_even()
        is_harmless = connection.riders.is_harmless(query)
        if connection._is_passive() or self.closed:
            connection._prepare_session(query, is_harmless=is_harmless)
            self._send(query, vars)
            if _last_tag.__get__(self) in _RESETTING:
                connection._note_reset()
            return None
        if isinstance(query, sql.Composable):
            query = query.as_string(connection)
        if not query or not isinstance(query, (str, bytes)):
            return super().execute(query, vars)  # psycopg2 refuses
        with connection._lock:
            return self._execute_in_transaction(query, vars, is_harmless)

    def _execute_first(self, query: str, parameters: Any) -> None:
        """Run a statement that the server knows, as a transaction's first: it can carry all that may wait then."""
        connection = self.connection
        connection._begin()
        self._send_behind(connection._prefix(), query, parameters, was_begun=False)

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """Run a statement for each of many parameters; what waits rides in front of the first."""
        connection = self.connection
        self._be_even()
        if connection._is_passive() or self.closed:
            connection._prepare_session(query, is_harmless=False)
            return self._send_many(query, vars_list)
        text = query.as_string(connection) if isinstance(query, sql.Composable) else query
        if not text or not isinstance(text, (str, bytes)):
            return super().executemany(query, vars_list)  # psycopg2 refuses
        with connection._lock:
            was_begun = connection._begin()
            carrying = self._carrying(text)
            riders = connection.riders
            if carrying is Carrying.NOTHING_AND_ENDS:
                return self._send_control(text, lambda: self._send_many(query, vars_list))
            if not riders.waiting or carrying < Carrying.NO_SAVEPOINT:
                connection._send_waiting()
                return self._send_many(query, vars_list)
            return self._send_many_behind(_FirstWith(riders, text), vars_list, was_begun)

    def callproc(self, procname: Any, parameters: Any = None, /) -> Any:
        """Call a function; what waits is sent ahead."""
        self._send_ahead()
        with Trip(self.connection):
            return super().callproc(procname) if parameters is None else super().callproc(procname, parameters)

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        """Copy a file into a table; what waits is sent ahead."""
        self._send_ahead()
        with Trip(self.connection):
            super().copy_from(*args, **kwargs)

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        """Copy a table into a file; what waits is sent ahead."""
        self._send_ahead()
        with Trip(self.connection):
            super().copy_to(*args, **kwargs)

    def copy_expert(self, sql: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        """Run a COPY statement; what waits is sent ahead."""
        self._send_ahead()
        with Trip(self.connection):
            super().copy_expert(sql, file, *args, **kwargs)

    @property
    def query(self) -> bytes | None:
        """The caller's last statement, without what rode in front of it."""
        if self._deferred:
            return self._deferred.encode()
        query: bytes | None = _last_query.__get__(self)
        return query[self._shift :] if query is not None and self._shift else query

    @property
    def statusmessage(self) -> str | None:
        """The server's tag for the last statement; for one that waits, the tag that it will have."""
        if self._deferred:
            return self._deferred.split(None, 1)[0].upper()
        tag: str | None = _last_tag.__get__(self)
        return tag

    def _execute_in_transaction(self, query: Any, parameters: Any, is_harmless: bool) -> None:
        connection = self.connection
        riders = connection.riders
        texts = connection._texts
        carrying = texts.get(query) if type(query) is str else None
        if carrying is None and type(query) is str and self._defer(query, parameters):
            return
        if is_harmless and connection._can_read_alone():
            self._read_alone(query, parameters)
            return
        if carrying is None:
            carrying = self._carrying(query)
        was_begun = connection._begin()
        if carrying is Carrying.NOTHING_AND_ENDS:
            self._send_control(query, lambda: self._send(query, parameters))
            return
        if riders.waiting:
            self._execute_with_riders(query, parameters, carrying, was_begun)
        else:
            self._send(query, parameters)
        if carrying is Carrying.NO_SAVEPOINT and type(query) is str and not is_rider(query):
            remember(texts, query, parameters)

    def _send_control(self, text: str | bytes, send: Callable[[], None]) -> None:
        """Send a text that may begin or end transactions, also by its error: a COMMIT that a constraint refuses."""
        connection = self.connection
        connection._send_before_control(text)
        try:
            send()
        except psycopg2.Error:
            if not connection.closed and connection.transaction_status == IDLE:
                connection._after_control(text)
            raise
        connection._after_control(text)

    def _execute_with_riders(self, query: Any, parameters: Any, carrying: Carrying, was_begun: bool) -> None:
        connection = self.connection
        riders = connection.riders
        needs_sound_text = riders.needs_sound_text
        is_unsound = needs_sound_text and not (
            carrying is PROVEN and connection._reads_alike() and is_proven_with(connection._texts, query, parameters)
        )
        if carrying < Carrying.NO_SAVEPOINT or is_unsound or riders.is_doomed:
            connection._send_waiting()
            self._send(query, parameters)
            if carrying is PROVEN and type(query) is str:
                remember(connection._texts, query, parameters)
            return
        if not needs_sound_text and are_odd(parameters):
            self._execute_rendered(query, parameters, carrying, was_begun)
            return
        self._send_behind(connection._prefix(), query, parameters, was_begun=was_begun)

    def _execute_rendered(self, query: Any, parameters: Any, carrying: Carrying, was_begun: bool) -> None:
        """Run a statement with parameters whose adapters may use the connection: they come before what still waits."""
        riders = self.connection.riders
        try:
            rendered = self.mogrify(query, parameters)
        except BaseException:
            if not was_begun:
                riders.take_back_begin()
            raise
        if riders.waiting:
            self._execute_with_riders(rendered, None, carrying, was_begun=True)
        else:
            self._send(rendered, None)

    def _send_behind(self, prefix: str, query: Any, parameters: Any, *, was_begun: bool) -> None:
        """Run a statement with what waits in front of it."""
        before = _last_query.__get__(self)
        self._shift, self._is_odd = len(prefix.encode()), True
        try:
            self._send(prefix + query if isinstance(query, str) else prefix.encode() + query, parameters)
        except BaseException as error:
            self._settle_failure(error, prefix, before, was_begun)
            raise
        self.connection.riders.sent()

    def _read_alone(self, query: Any, parameters: Any) -> None:
        """Read without a transaction on the server; one that fails has failed for the caller all the same."""
        connection = self.connection
        was_begun = connection._begin()
        try:
            self._send(query, parameters)
        except psycopg2.Error as error:
            if error.pgcode is not None:
                connection.riders.is_doomed = True
            elif not was_begun:
                connection.riders.take_back_begin()
            raise

    def _send(self, query: Any, parameters: Any) -> None:
        """Let psycopg2 run a statement, and count it."""
        try:
            super().execute(query, parameters)
        except BaseException as error:
            self.connection.trips += was_sent(error)
            raise
        self.connection.trips += 1

    def _send_many(self, query: Any, parameters: Iterable[Any]) -> None:
        """Let psycopg2 run a statement for each of many parameters, and count them."""
        rows = self._counted(query, parameters)
        try:
            super().executemany(query, rows)
        except BaseException as error:
            self.connection.trips += getgeneratorstate(rows) == GEN_SUSPENDED and was_sent(error)
            raise

    def _send_many_behind(self, first: _FirstWith, parameters: Iterable[Any], was_begun: bool) -> None:
        """Let psycopg2 run a statement for each of many parameters, with what waits in front of the first."""
        before = _last_query.__get__(self)
        try:
            self._send_many(first, parameters)
        except BaseException as error:
            if first.is_under_way:
                self._settle_failure(error, first.prefix, before, was_begun)
            elif not (first.is_used or was_begun):
                self.connection.riders.take_back_begin()
            raise
        if first.is_used:
            self._shift_by(first.prefix if first.is_first else "")
        elif not was_begun:
            self.connection.riders.take_back_begin()

    def _counted(self, query: Any, parameters: Iterable[Any]) -> Generator[Any, None, None]:
        """Each of many parameters; who makes them may use the connection, and have something wait."""
        connection = self.connection
        riders = connection.riders
        first = query if isinstance(query, _FirstWith) else None
        for each in parameters:
            if riders.waiting and (first is None or not first.can_carry(each)):
                connection._send_waiting()
            yield each
            connection.trips += 1
            if first is not None and first.is_under_way:
                first.settle()

    def _defer(self, text: str, parameters: Any) -> bool:
        """Let a statement wait, and return whether it does; a used cursor would still show its last result."""
        if parameters or text[:1] not in "sSrR" or _last_tag.__get__(self) is not None:
            return False
        connection = self.connection
        was_begun = connection._begin()
        if connection.riders.defer(text, connection.transaction_status):
            self._deferred = text
            self._is_odd = True
            return True
        if not was_begun:
            connection.riders.take_back_begin()
        return False

    def _carrying(self, query: str | bytes) -> Carrying:
        if isinstance(query, bytes):
            return carrying_of(query.decode("latin-1"))
        return known_carrying(self.connection._texts, query) or carrying_of(query)

    def _send_ahead(self) -> None:
        """Send what waits, and nothing behind it."""
        connection = self.connection
        self._be_even()
        if connection._is_passive() or self.closed:
            connection._prepare_session("", is_harmless=False)
            return
        with connection._lock:
            connection._begin()
            connection._send_waiting()

    def _settle_failure(self, error: BaseException, prefix: str, before: bytes | None, was_begun: bool) -> None:
        """Find out what has become of the riders of a statement that failed."""
        connection = self.connection
        riders = connection.riders
        sent = _last_query.__get__(self)
        if sent is None or sent is before:  # psycopg2 has not sent it
            if not was_begun:
                riders.take_back_begin()
            self._be_even()
            return
        connection._settle_refusal(error)
        if prefix and isinstance(error, psycopg2.Error) and error.pgcode is not None:
            shift_back(error, prefix)

    def _shift_by(self, prefix: str) -> None:
        self._shift = len(prefix.encode())
        self._is_odd = bool(prefix)

    def _be_even(self) -> None:
        self._shift = 0
        self._deferred = ""
        self._is_odd = False


class RidingNamedCursor(RidingCursor):
    """A cursor on the server: what waits is sent ahead of all that it does."""

    # How many transactions had ended when it was made; the connection sets it.
    _endings = 0

    def execute(self, query: Any, vars: Any = None) -> None:
        """Declare the cursor."""
        connection = self.connection
        self._check()
        is_refused = self.closed or _last_query.__get__(self) is not None
        if connection._is_native:
            connection._prepare_native()
        if is_refused or connection._is_passive() or (connection.autocommit and not self.withhold):
            return self._declare(query, vars)
        with connection._lock:
            connection._begin()
            connection._send_waiting()
            if self.withhold:
                return self._declare(query, vars)
            # psycopg2 refuses in autocommit, and says BEGIN out of it: it is out of it for the time between the two.
            _real_autocommit.__set__(connection, False)
            try:
                return self._declare(_InAutocommit(query), vars)
            finally:
                if not connection.closed:
                    _real_autocommit.__set__(connection, True)

    def fetchone(self) -> Any:
        """Fetch a row."""
        self._send_before_use()
        with Trip(self.connection):
            return super().fetchone()

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Fetch some rows."""
        self._send_before_use()
        with Trip(self.connection):
            return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        """Fetch all rows that are left."""
        self._send_before_use()
        with Trip(self.connection):
            return super().fetchall()

    def __next__(self) -> Any:
        self._send_before_use()
        if self.rownumber < self.rowcount:  # it has been fetched
            return super().__next__()
        with Trip(self.connection):
            return super().__next__()

    def scroll(self, value: int, mode: Literal["absolute", "relative"] = "relative") -> None:
        """Move the cursor."""
        self._send_before_use()
        with Trip(self.connection):
            super().scroll(value, mode)

    def close(self) -> None:
        """Close the cursor on the server."""
        connection = self.connection
        if connection.transaction_status == IN_ERROR:  # psycopg2 then sends nothing
            connection._send_waiting()
        elif not self.closed:
            self._send_before_use()
        if self.closed or connection.transaction_status not in (IDLE, IN_TRANSACTION):
            return super().close()
        is_sought = _last_query.__get__(self) is None  # psycopg2 asks whether somebody else has made it
        with Trip(connection):
            super().close()
        connection.trips += is_sought and str(_last_tag.__get__(self)).startswith("CLOSE")
        return None

    def _declare(self, query: Any, parameters: Any) -> None:
        with Trip(self.connection):
            super(RidingCursor, self).execute(query, parameters)

    def _check(self) -> None:
        if self._endings != self.connection._endings and not self.withhold and not self.closed:
            raise psycopg2.ProgrammingError("named cursor isn't valid anymore")

    def _send_before_use(self) -> None:
        connection = self.connection
        self._check()
        if connection.riders.waiting:
            with connection._lock:
                connection._send_waiting()


class _FirstWith(sql.Composable):
    """A text that has what waits in front of it the first time that it is asked for."""

    def __init__(self, riders: Riders, text: str | bytes) -> None:
        super().__init__(text)
        self._riders = riders
        self._text = text
        self._times = 0
        #: What was in front of it.
        self.prefix = ""
        #: Whether it was asked for once and is not known to have been run.
        self.is_under_way = False

    @property
    def is_used(self) -> bool:
        """Whether it was asked for."""
        return self._times > 0

    @property
    def is_first(self) -> bool:
        """Whether what was asked for last is the first."""
        return self._times == 1

    def can_carry(self, parameters: Any) -> bool:
        """Whether what waits may ride when it is asked for next, to be run with these parameters.

        Of many parameters any may be odd: what a savepoint needs is not looked for.
        """
        riders = self._riders
        return not (self.is_used or riders.is_doomed or riders.needs_sound_text or are_odd(parameters))

    def settle(self) -> None:
        """Believe that what was in front of it has reached the server."""
        self.is_under_way = False
        if self.prefix:
            self._riders.sent()

    def as_string(self, context: Any) -> Any:
        """Give the text to psycopg2."""
        self._times += 1
        self.is_under_way = self.is_first
        if not (self.is_first and self._riders.waiting):
            return self._text
        self.prefix = self._riders.text + PREFIX_END
        return self.prefix + self._text if isinstance(self._text, str) else self.prefix.encode() + self._text


class _InAutocommit(sql.Composable):
    """A text that switches autocommit on where psycopg2 asks for it, between its check and its BEGIN."""

    def __init__(self, query: Any) -> None:
        super().__init__(query)
        self._query = query

    def as_string(self, context: Any) -> Any:
        """Give the text to psycopg2."""
        _real_autocommit.__set__(context, True)
        query = self._query
        return query.as_string(context) if isinstance(query, sql.Composable) else query


class DrivenCursor(plain_cursor):
    """In front of a class that calls psycopg2's methods by name: psycopg2 drives its transactions."""

    connection: RidingConnection

    def execute(self, query: Any, vars: Any = None) -> None:
        """Run a statement."""
        with self.connection.driven_by_psycopg2(query):
            super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Iterable[Any]) -> None:
        """Run a statement for each of many parameters."""
        with self.connection.driven_by_psycopg2(query):
            super().executemany(query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None, /) -> Any:
        """Call a function."""
        with self.connection.driven_by_psycopg2(""):
            return super().callproc(procname) if parameters is None else super().callproc(procname, parameters)

    def copy_from(self, *args: Any, **kwargs: Any) -> None:
        """Copy a file into a table."""
        with self.connection.driven_by_psycopg2(""):
            super().copy_from(*args, **kwargs)

    def copy_to(self, *args: Any, **kwargs: Any) -> None:
        """Copy a table into a file."""
        with self.connection.driven_by_psycopg2(""):
            super().copy_to(*args, **kwargs)

    def copy_expert(self, sql: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        """Run a COPY statement."""
        with self.connection.driven_by_psycopg2(sql):
            super().copy_expert(sql, file, *args, **kwargs)


def riding_cursor_class(base: type[Any], *, is_named: bool) -> type[Any]:
    """The class for a connection that rides: a riding one behind the given one, if that hands on what it is told."""
    riding = RidingNamedCursor if is_named else RidingCursor
    if issubclass(riding, base):
        return riding
    if issubclass(base, (riding, DrivenCursor)):
        return base
    made: type[Any] = in_front_of(base, DrivenCursor) if hides(base, riding) else behind(base, riding)
    return made
