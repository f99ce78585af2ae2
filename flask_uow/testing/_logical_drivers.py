"""The logical connections of each driver: what sqlite3's, psycopg2's and psycopg's have of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from .._ride._characteristics import level_of, on_or_off
from ._logical import LogicalConnection
from ._outer import OuterTransaction

T = TypeVar("T")

IDLE, IN_TRANSACTION, IN_ERROR, UNKNOWN = 0, 2, 3, 4

_XACT_ID = "pg_current_xact_id_if_assigned()"


class LogicalSQLite(LogicalConnection):
    """sqlite3's: it begins a transaction by itself before what changes rows, unless it is told not to."""

    _when_closed = ("ProgrammingError", "Cannot operate on a closed database.")

    def __init__(self, outer: OuterTransaction) -> None:
        super().__init__(outer)
        self.isolation_level = outer.real.isolation_level

    @property
    def is_automatic(self) -> bool:
        """Whether a statement that comes now commits by itself: it is alone, and that is its end."""
        return not self.is_open and self.isolation_level is None

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        self._check_open()
        return self.is_open

    def execute(self, text: str, parameters: Any = (), /) -> Any:
        """Execute a statement on a cursor of its own."""
        return self.cursor().execute(text, parameters)

    def executemany(self, text: str, parameters: Any, /) -> Any:
        """Execute a statement with many parameters on a cursor of its own."""
        return self.cursor().executemany(text, parameters)

    def executescript(self, text: str, /) -> Any:
        """It would commit before it begins."""
        return self.cursor().executescript(text)

    def _send(self, text: object, parameters: object, statement: Callable[[], T], *, writes: bool) -> T:
        def send() -> T:
            self._outer.refuse_writes() if self.is_read_only else self._outer.accept_writes()
            return statement()

        is_change = isinstance(text, str) and text.lstrip()[:7].upper().startswith(_CHANGES)
        if self.is_open or (is_change and not self.is_automatic):
            return self._outer.run(self, send, writes=writes)
        return self._outer.run_alone(self, send, writes=writes)


_CHANGES = ("INSERT", "UPDATE", "DELETE", "REPLACE")


class LogicalPostgreSQL(LogicalConnection):
    """What psycopg2 and psycopg have in common: a transaction begins with the first statement.

    An isolation level that is set is remembered, and not had.
    """

    def __init__(self, outer: OuterTransaction) -> None:
        super().__init__(outer)
        self.autocommit = outer.was_automatic
        self.isolation_level: Any = None
        self.readonly: bool | None = None
        self.deferrable: bool | None = None

    @property
    def is_automatic(self) -> bool:
        """Whether a statement that comes now commits by itself."""
        return bool(self.autocommit) and not self.is_open

    @property
    def begins_read_only(self) -> bool:
        """Whether its savepoints are to refuse writes."""
        return self.is_read_only or bool(self.readonly)

    def end_transaction(self) -> None:
        """Be in no transaction any more."""
        super().end_transaction()
        self.is_read_only = False

    @property
    def transaction_status(self) -> int:
        """The status of its transaction, by libpq's number."""
        if self._is_closed:
            return UNKNOWN
        if not self.is_open:
            return IDLE
        return IN_ERROR if self._outer.is_aborted(self) else IN_TRANSACTION

    def as_seen(self, text: Any) -> Any:
        """A statement that has the answer in it that this connection would get in life.

        A transaction that has not written has no number; the test's own may have one by then.
        """
        if isinstance(text, str) and _XACT_ID in text and not self._outer.has_written(self):
            return text.replace(_XACT_ID, "NULL")
        return text

    def fileno(self) -> int:
        """A file descriptor by which a pool can tell whether the connection lives."""
        return self._outer.quiet_fileno()

    def set_isolation_level(self, level: Any) -> None:
        """Remember a level; psycopg2's 0 is autocommit."""
        self.autocommit = level == 0
        self.isolation_level = level


class LogicalPsycopg2(LogicalPostgreSQL):
    """psycopg2's."""

    _when_closed = ("InterfaceError", "connection already closed")

    def get_transaction_status(self) -> int:
        """The status of its transaction, by libpq's number."""
        return self.transaction_status

    @property
    def status(self) -> int:
        """psycopg2's belief: 1 for ready, 2 for begun."""
        return 2 if self.is_open else 1

    def set_session(
        self, isolation_level: Any = None, readonly: Any = None, deferrable: Any = None, autocommit: Any = None
    ) -> None:
        """Set what the next transaction is to be."""
        if isolation_level is not None:
            self.isolation_level = level_of(isolation_level)
        if readonly is not None:
            self.readonly = on_or_off(readonly)
        if deferrable is not None:
            self.deferrable = on_or_off(deferrable)
        if autocommit is not None:
            self.autocommit = bool(autocommit)

    def aborted_error(self) -> Exception:
        """The driver's error for a statement in a transaction that has failed, with the server's code."""
        error: Any = super().aborted_error()
        error.__setstate__({"pgcode": "25P02", "pgerror": f"ERROR:  {error}\n"})
        return cast(Exception, error)


class LogicalPsycopg(LogicalPostgreSQL):
    """psycopg's."""

    _when_closed = ("OperationalError", "the connection is closed")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        self.close()

    @property
    def pgconn(self) -> Any:
        """The connection of libpq, with the status of this one's transaction."""
        return _Seen(self._outer.real.pgconn, self)

    @property
    def info(self) -> Any:
        """What is known of the connection, with the status of this one's transaction."""
        return _Seen(self._outer.real.info, self)

    @property
    def read_only(self) -> bool | None:
        """Whether the next transaction is read-only."""
        return self.readonly

    @read_only.setter
    def read_only(self, value: bool | None) -> None:
        self.readonly = value

    def set_autocommit(self, value: bool) -> None:
        """Set whether statements commit by themselves."""
        self.autocommit = value

    def set_read_only(self, value: bool | None) -> None:
        """Set whether the next transaction is read-only."""
        self.readonly = value

    def set_deferrable(self, value: bool | None) -> None:
        """Set whether the next transaction is deferrable."""
        self.deferrable = value

    def execute(self, text: Any, parameters: Any = None, **options: Any) -> Any:
        """Execute a statement on a cursor of its own."""
        return self.cursor().execute(text, parameters, **options)

    def transaction(self, *arguments: Any, **options: Any) -> Any:
        """Not to be had: it would drive savepoints by itself."""
        self._outer.refuse("psycopg's transaction() cannot be had inside a test's transaction.", "Use savepoints.")

    def pipeline(self) -> Any:
        """Not to be had: a statement's answer tells whether the savepoint before it still stands."""
        self._outer.refuse(
            "psycopg's pipeline() cannot be had inside a test's transaction.",
            "Send the statements one by one, or run this test without isolation.",
        )


class _Seen:
    """An object of the driver's, with the status of a logical connection's transaction."""

    def __init__(self, real: Any, logical: LogicalPostgreSQL) -> None:
        self._real = real
        self._logical = logical

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @property
    def transaction_status(self) -> Any:
        status = self._logical.transaction_status
        return type(self._real.transaction_status)(status)


_LOGICAL: dict[str, type[LogicalConnection]] = {
    "pysqlite": LogicalSQLite,
    "psycopg2": LogicalPsycopg2,
    "psycopg": LogicalPsycopg,
}
DRIVERS = tuple(_LOGICAL)


def make_logical(outer: OuterTransaction) -> LogicalConnection:
    """A connection of the kind that the outer transaction's driver makes."""
    return _LOGICAL[outer.dialect.driver](outer)
