"""psycopg 3's cursors, whose statements carry what waits on their connection."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import psycopg
from psycopg import errors
from psycopg._preparing import Prepare
from psycopg.adapt import Transformer

from .._drivers._libpq import execute
from .._fronts import in_front_of
from ._psycopg_texts import read_text
from ._riders import IN_ERROR, is_rider

if TYPE_CHECKING:
    from psycopg._queries import PostgresQuery
    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult

    from ._psycopg import RidingConnection

# What psycopg's cursors must have for their statements to carry riders; a class that has its own gets them sent ahead.
CURSOR_METHODS = (
    "_check_results",
    "_convert_query",
    "_execute_gen",
    "_execute_send",
    "_get_prepared",
    "_query_cls",
    "_reset",
    "_send_prepare",
    "_send_query_prepared",
    "_set_results",
)


def is_riding(connection: object) -> TypeGuard[RidingConnection]:
    """Whether statements may wait on a connection."""
    return hasattr(connection, "riders")


class CountedCursor(psycopg.Cursor[Any]):
    """A cursor that counts what it sends in psycopg's own way."""

    __slots__ = ()

    def _execute_send(self, *arguments: Any, **options: Any) -> None:
        super()._execute_send(*arguments, **options)
        self._count()

    def _send_prepare(self, *arguments: Any, **options: Any) -> None:
        super()._send_prepare(*arguments, **options)
        self._count()

    def _send_query_prepared(self, *arguments: Any, **options: Any) -> None:
        super()._send_query_prepared(*arguments, **options)
        self._count()

    def _count(self) -> None:
        connection = self._conn
        if is_riding(connection) and connection._pipeline is None:
            connection.trips += 1


class RidingCursor(CountedCursor):
    """A cursor whose statements carry what waits."""

    __slots__ = ()

    @property
    def statusmessage(self) -> str | None:
        """The server's tag for the last statement; for one that waits, the tag that it will have."""
        last = self._last_query
        if self._query is None and isinstance(last, str) and is_rider(last):
            return last.split(None, 1)[0].upper()
        return super().statusmessage

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        connection = self._conn
        if not is_riding(connection) or connection._pipeline is not None:
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
            return
        is_harmless = connection.riders.is_harmless(query)
        self._start(query)
        yield from connection._settle_defaults_gen() if connection._is_in_doubt else ()
        connection._begin()
        if not params and isinstance(query, str) and connection._defers(query):
            self._last_query = query
            return
        pgq = self._convert_query(query, params)
        is_free = connection.is_read_only_at_start and connection._is_free(pgq.query, is_harmless)
        text = read_text(pgq.query)
        is_carrier = text.is_carrier and bool(params or not text.has_several) and not connection.riders.is_doomed
        yield from () if is_carrier else connection._send_before_gen(query)
        if text.is_special:
            connection._note_text(text, query)
        prep, name = self._get_prepared(pgq, prepare)
        while True:
            try:
                if is_carrier and (prep is Prepare.SHOULD or connection._has_riders(is_free)):
                    results = yield from self._carry_gen(connection, pgq, prep, name, binary, is_free)
                else:
                    results = yield from self._run_gen(connection, pgq, prep, name, binary)
                self._read_results(connection, pgq, prep, name, results)
                break
            except errors.Error as error:
                was_free, was_prepared = is_free and is_carrier, prep is Prepare.YES
                if not connection._note_error(error, was_free=was_free, was_prepared=was_prepared):
                    raise
                prep, name = Prepare.NO, b""
        self._last_query = query
        yield from connection._prepared.maintain_gen(connection) if connection._prepared._to_flush else ()

    def _start(self, query: Query) -> None:
        """Do as psycopg's own ``_start_query``, but for the BEGIN."""
        if self._closed:
            raise errors.InterfaceError("the cursor is closed")
        self._reset()
        if not self._last_query or self._last_query is not query:
            self._last_query = None
            self._tx = Transformer(self)

    def _start_query(self, query: Query | None = None) -> PQGen[None]:
        """Do as psycopg does for a stream or a batch."""
        connection = self._conn
        if not is_riding(connection):
            yield from super()._start_query(query)
            return
        had_created = connection._may_have_created
        yield from super()._start_query(query)
        if isinstance(query, str):
            connection._may_have_created = had_created or read_text(query.encode()).may_create

    def _carry_gen(
        self,
        connection: RidingConnection,
        pgq: PostgresQuery,
        prep: Prepare,
        name: bytes,
        binary: bool | None,
        is_free: bool,
    ) -> Generator[Any, Any, list[PGresult]]:
        """Send a statement with all that waits for one."""
        riders = [] if is_free else connection._encode(connection.riders.waiting)
        sends: list[Callable[[], object]]
        if prep is Prepare.NO:
            sends = [partial(psycopg.Cursor._execute_send, self, pgq, force_extended=True, binary=binary)]
        else:
            sends = [partial(psycopg.Cursor._send_query_prepared, self, name, pgq, binary=binary)]
        if prep is Prepare.SHOULD:
            sends.insert(0, partial(psycopg.Cursor._send_prepare, self, name, pgq))
        answers = yield from connection._ride_gen(riders, sends)
        if prep is Prepare.SHOULD:
            connection._check_answer(answers[0])
        return answers[-1]

    def _run_gen(
        self, connection: RidingConnection, pgq: PostgresQuery, prep: Prepare, name: bytes, binary: bool | None
    ) -> Generator[Any, Any, list[PGresult]]:
        """Send a statement by itself, as psycopg does."""
        if prep is Prepare.NO:
            psycopg.Cursor._execute_send(self, pgq, binary=binary)
        else:
            if prep is Prepare.SHOULD:
                self._send_prepare(name, pgq)
                self._check_results((yield from execute(self._pgconn)))
            psycopg.Cursor._send_query_prepared(self, name, pgq, binary=binary)
        connection.trips += 1
        results: list[PGresult] = yield from execute(self._pgconn)
        return results

    def _read_results(
        self, connection: RidingConnection, pgq: PostgresQuery, prep: Prepare, name: bytes, results: list[PGresult]
    ) -> None:
        prepared = connection._prepared
        key = prepared.maybe_add_to_cache(pgq, prep, name)
        if key is not None:
            prepared.validate(key, prep, name, results)
        self._check_results(results)
        self._set_results(results)


class RidingServerCursor(CountedCursor, psycopg.ServerCursor[Any]):
    """A named cursor that is closed behind what waits: a transaction that had failed may live again by it.

    One that is read after its transaction is refused here: its FETCH would abort the next one on the connection, which
    may be another request's.
    """

    __slots__ = ("_beginnings",)

    def _start_query(self, query: Query | None = None) -> PQGen[None]:
        had_created = getattr(self._conn, "_may_have_created", False)
        yield from super()._start_query(query)
        if is_riding(self._conn):
            self._conn._may_have_created = had_created

    def _describe_gen(self) -> PQGen[None]:
        self._count()
        yield from super()._describe_gen()
        self._beginnings = getattr(self._conn, "beginnings", 0)

    def _is_past(self) -> bool:
        """Whether another transaction has begun since it was declared, with which the server has forgotten it."""
        return self._described and not self._withhold and self._beginnings != getattr(self._conn, "beginnings", 0)

    def _fetch_gen(self, num: int | None) -> PQGen[list[Any]]:
        self._refuse_past()
        return (yield from super()._fetch_gen(num))

    def _scroll_gen(self, value: int, mode: str) -> PQGen[None]:
        self._refuse_past()
        yield from super()._scroll_gen(value, mode)

    def _refuse_past(self) -> None:
        if self._is_past():
            raise errors.InvalidCursorName(f"cursor {self._name!r} is gone: its transaction has ended")

    def _close_gen(self) -> PQGen[None]:
        connection = self._conn
        if self._is_past():
            return
        if is_riding(connection) and connection.pgconn.transaction_status == IN_ERROR:
            yield from connection._send_ahead_gen()
        yield from super()._close_gen()


def riding_cursor_class(cursor_class: type[psycopg.Cursor[Any]]) -> type[psycopg.Cursor[Any]]:
    """Return a class whose statements carry what waits.

    Those of a class that sends them in a way of its own are only counted, and get what waits sent ahead.
    """
    if issubclass(cursor_class, CountedCursor):
        return cursor_class
    sends_itself = any(getattr(cursor_class, name) is not getattr(psycopg.Cursor, name) for name in CURSOR_METHODS)
    front: type[psycopg.Cursor[Any]] = in_front_of(cursor_class, CountedCursor if sends_itself else RidingCursor)
    return front
