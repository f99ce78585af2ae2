"""Connections of a driver's kind that share one real connection, see :mod:`flask_uow.testing._outer`.

Each stands where the driver's own would: SQLAlchemy, this package and the application find its methods, its state and
its errors. What is not about transactions is the real connection's.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeVar

from .._harmless import _KNOWN_FUNCTIONS
from .._statements import Kind, kind_of
from ._outer import OuterTransaction

T = TypeVar("T")

IDLE, IN_TRANSACTION, IN_ERROR = 0, 2, 3

_NAME = r'(?P<name>"[^"]+"|[^\W\d][\w$]*)'
_CONTROL = re.compile(
    rf"""
    \s*(?:
        (?P<begin> BEGIN | START\s+TRANSACTION )\b (?P<modes>[^;]*)
      | (?P<prepared> PREPARE\s+TRANSACTION | (?:COMMIT|ROLLBACK)\s+PREPARED )\b .*
      | (?P<commit> COMMIT | END )\b [^;]*
      | (?P<back_to> ROLLBACK (?:\s+(?:WORK|TRANSACTION))? \s+ TO (?:\s+SAVEPOINT)? )\s+ {_NAME}
      | (?P<rollback> ROLLBACK | ABORT )\b [^;]*
      | (?P<savepoint> SAVEPOINT )\s+ {_NAME.replace("name", "made")}
      | (?P<release> RELEASE (?:\s+SAVEPOINT)? )\s+ {_NAME.replace("name", "released")}
      | (?P<transaction> SET \s+ (?:LOCAL\s+|SESSION\s+CHARACTERISTICS\s+AS\s+)? TRANSACTION )\b (?P<options>[^;]*)
      | (?P<query_only> PRAGMA \s+ query_only \s*=\s* ) (?P<is_on>\w+)
    )\s*;?\s*\Z
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_FIRST_WORDS = ("BEG", "STA", "PRE", "COM", "END", "ROL", "ABO", "SAV", "REL", "SET", "PRA")
_SETTINGS = re.compile(r"\bSET\s+LOCAL\s+(?P<name>[\w.]+)|\bset_config\s*\(", re.IGNORECASE)
_LITERAL = re.compile(r"'([^\W\d][\w.]*)'")
_CALL = re.compile(r'([^\W\d][\w.]*|")\s*\(')
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|KEY\s+SHARE|SHARE)\b|^\s*LOCK\b", re.IGNORECASE)
_WORDS_BEFORE_A_BRACKET = frozenset(
    """
    all and any array as between bit by case cast char character check coalesce cross cube date decimal distinct else
    end except exists extract filter from full group grouping having ilike in inner intersect interval is join lateral
    left like limit materialized not numeric nullif offset on only or order outer over overlaps partition right rollup
    row select set sets similar some table then time timestamp union using values varchar when where window with within
    now current_setting pg_catalog set_config
    """.split()
)


class LogicalConnection:
    """What all drivers' connections have in common.

    :param outer: the transaction in which it lives.
    :ivar is_open: whether its own transaction has begun.
    :ivar is_aborted: whether that takes nothing but a rollback, and the real one has been healed of that.
    :ivar is_read_only: whether it may not write.
    :ivar settings: what SET LOCAL has changed in it, and the values before.
    :ivar thread: the one that used it last.
    """

    _own = frozenset(
        "_outer is_open is_aborted is_read_only settings thread _moved _is_closed _set autocommit readonly read_only "
        "deferrable isolation_level".split()
    )
    _hidden = frozenset(
        ("riders", "needs_no_transaction", "is_read_only_at_start", "trips", "tpc_begin", "pipeline", "xid")
    )

    def __init__(self, outer: OuterTransaction) -> None:
        self._outer = outer
        self.is_open = self.is_aborted = self.is_read_only = self._is_closed = False
        self.settings: dict[str, str | None] = {}
        self._set: dict[str, str] = {}
        self._moved: list[str] = []
        self.thread = threading.current_thread()

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise AttributeError(f"{name!r} is not there while a test is isolated")
        return getattr(self._outer.real, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._outer.real, name, value)

    # ---- as a driver's connection

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """A cursor of the real connection's, whose statements run in this one's transaction."""
        return LogicalCursor(self, self._outer.real.cursor(*arguments, **options))

    def commit(self) -> None:
        """Release what this connection has done."""
        self._outer.commit(self)

    def rollback(self) -> None:
        """Undo it."""
        self._outer.rollback(self)

    def close(self) -> None:
        """Undo it, and be closed."""
        if not self._is_closed:
            self._is_closed = True
            self._outer.rollback(self)

    @property
    def closed(self) -> Any:
        """Whether it is."""
        return self._is_closed or self._outer.real.closed

    # ---- for the outer transaction

    def end_transaction(self) -> None:
        """Be in no transaction any more."""
        self.is_open = self.is_aborted = False
        self._moved = []
        self.settings.clear()
        self._set.clear()

    def move(self, names: list[str], outer: OuterTransaction, *, is_whole: bool) -> None:
        """Its savepoints are taken away for a time.

        :param names: those of the code under test.
        :param is_whole: whether none is left.
        """
        self._moved = names + self._moved
        if is_whole and self.settings:
            self._set = {name: outer.ask(_CURRENT, [name]) or "" for name in self.settings}
            before = dict(self.settings)
            self.restore_settings(outer)
            self.settings = before

    def take_moved(self) -> list[str]:
        """The savepoints that are to be made again."""
        moved, self._moved = self._moved, []
        return moved

    def apply_settings(self, outer: OuterTransaction) -> None:
        """Set again what was set before its savepoints were taken away."""
        for name, value in self._set.items():
            outer.ask(_CONFIGURE, [name, value])
        self._set.clear()

    def restore_settings(self, outer: OuterTransaction) -> None:
        """Set what SET LOCAL has changed as it was: COMMIT would have."""
        for name, value in self.settings.items():
            if value is not None or "." in name:
                outer.ask(_CONFIGURE, [name, value or ""])
        self.settings.clear()

    def aborted_error(self) -> Exception:
        """The driver's error for a statement in a transaction that has failed."""
        errors = import_module(f"{self._outer.dialect.driver}.errors")
        error: Exception = errors.InFailedSqlTransaction(
            "current transaction is aborted, commands ignored until end of transaction block"
        )
        return error

    # ---- statements

    @property
    def is_automatic(self) -> bool:
        """Whether a statement that comes now commits by itself."""
        raise NotImplementedError

    def as_seen(self, text: Any) -> Any:
        """A statement that has the answer in it that this connection would get in life."""
        return text

    @property
    def begins_read_only(self) -> bool:
        """Whether the server is told of each of its savepoints that it refuses writes."""
        return False

    def run(self, text: object, parameters: object, statement: Callable[[], T]) -> T | None:
        """Run a statement, or do what it says of transactions.

        :param text: as the driver takes it.
        :param parameters: as the driver takes them.
        :param statement: sends it on the real connection.
        """
        text = text.decode() if isinstance(text, bytes) else text
        kind, writes = Kind.WRITE, True
        if isinstance(text, str):
            if self._controls(text):
                return None
            kind = kind_of(text, None)
            writes = kind is Kind.WRITE or (self._outer.is_postgresql and _is_more_than_read(text))
        if kind in (Kind.COMMIT, Kind.ROLLBACK, Kind.BEGIN):
            self._outer.refuse(
                f"{kind.value} in the middle of a text of several statements cannot be kept inside a test's "
                f"transaction: {' '.join(str(text).split())[:80]}",
                "Send it alone.",
            )
        return self._send(text, parameters, statement, writes=writes)

    def _send(self, text: object, parameters: object, statement: Callable[[], T], *, writes: bool) -> T:
        if self.is_automatic:
            return self._outer.run_alone(self, statement, writes=writes)
        if isinstance(text, str) and self._outer.is_postgresql and _SETTINGS.search(text):
            self._outer.run(self, lambda: self._note_settings(text, parameters), writes=False)
        return self._outer.run(self, statement, writes=writes)

    def _note_settings(self, text: str, parameters: object) -> None:
        for name in _named_settings(text, parameters):
            if name not in self.settings:
                value = self._outer.ask(_CURRENT, [name])
                if value is not None or "." in name:
                    self.settings[name] = value

    def _controls(self, text: str) -> bool:
        """Do what a text says of transactions, if that is what it says."""
        if text.lstrip()[:3].upper() not in _FIRST_WORDS or (match := _CONTROL.match(text)) is None:
            return False
        if match["prepared"]:
            self._outer.refuse(
                "Two-phase transactions cannot be had inside a test's transaction.", "Run this test without isolation."
            )
        if match["begin"]:
            self._begin(match["modes"])
        elif match["transaction"]:
            self._set_modes(match["options"])
        elif match["query_only"]:
            self.is_read_only = match["is_on"].upper() in ("1", "ON", "TRUE", "YES")
        elif match["commit"]:
            self._outer.commit(self)
        elif match["rollback"]:
            self._outer.rollback(self)
        else:
            self._control_savepoint(match)
        return True

    def _control_savepoint(self, match: re.Match[str]) -> None:
        if match["savepoint"]:
            self._outer.make(self, match["made"])
        elif match["release"]:
            self._outer.release(self, match["released"])
        else:
            self._outer.roll_back_to(self, match["name"])

    def _begin(self, modes: str) -> None:
        self._outer.begin(self, locks=modes.strip().upper().startswith(("IMMEDIATE", "EXCLUSIVE")))
        self._set_modes(modes)

    def _set_modes(self, modes: str) -> None:
        """Hear what a transaction is to be; of isolation levels, a savepoint has that of what it lies in."""
        if re.search(r"READ\s+ONLY", modes, re.IGNORECASE):
            self.is_read_only = True
            if not self.is_automatic:
                self._outer.run(
                    self, lambda: self._outer.ask(_CONFIGURE, ["transaction_read_only", "on"]), writes=False
                )


class LogicalSQLite(LogicalConnection):
    """sqlite3's: it begins a transaction by itself before what changes rows, unless it is told not to."""

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
        return self.is_open

    @property
    def closed(self) -> bool:
        """Whether it is; sqlite3 does not say so of its own."""
        return self._is_closed

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
        if not self.is_open:
            return IDLE
        return IN_ERROR if self._outer.is_aborted(self) else IN_TRANSACTION

    def __enter__(self) -> LogicalPostgreSQL:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.commit() if kind is None else self.rollback()

    def as_seen(self, text: Any) -> Any:
        """A statement that has the answer in it that this connection would get in life.

        A transaction that has not written has no number; the test's own may have one by then.
        """
        if isinstance(text, str) and _NUMBER in text and not self._outer.has_written(self):
            return text.replace(_NUMBER, "NULL")
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
        given = {"isolation_level": isolation_level, "readonly": readonly, "deferrable": deferrable}
        for name, value in (given | {"autocommit": autocommit}).items():
            if value is not None:
                setattr(self, name, None if isinstance(value, str) and value.upper() == "DEFAULT" else value)


class LogicalPsycopg(LogicalPostgreSQL):
    """psycopg's."""

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


class LogicalCursor:
    """A cursor of the real connection's, whose statements run in a logical one's transaction."""

    _own = frozenset(("_logical", "_real"))

    def __init__(self, logical: LogicalConnection, real: Any) -> None:
        self._logical = logical
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._real, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real)

    def __next__(self) -> Any:
        return next(self._real)

    def __enter__(self) -> LogicalCursor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._real.close()

    @property
    def connection(self) -> LogicalConnection:
        """The logical one."""
        return self._logical

    def execute(self, text: Any, *parameters: Any, **options: Any) -> Any:
        """Execute a statement."""
        text = self._logical.as_seen(text)
        self._logical.run(text, parameters[:1], lambda: self._real.execute(text, *parameters, **options))
        return self

    def executemany(self, text: Any, *parameters: Any, **options: Any) -> Any:
        """Execute a statement with many parameters."""
        self._logical.run(text, (), lambda: self._real.executemany(text, *parameters, **options))
        return self

    def callproc(self, *arguments: Any, **options: Any) -> Any:
        """Call a procedure."""
        return self._logical.run(None, (), lambda: self._real.callproc(*arguments, **options))

    def copy(self, text: Any, *arguments: Any, **options: Any) -> Any:
        """Copy rows, as psycopg does."""
        return self._logical.run(None, (), lambda: self._real.copy(text, *arguments, **options))

    def copy_expert(self, text: Any, *arguments: Any, **options: Any) -> Any:
        """Copy rows, as psycopg2 does."""
        return self._logical.run(None, (), lambda: self._real.copy_expert(text, *arguments, **options))

    def executescript(self, text: str, /) -> Any:
        """sqlite3 would commit before it begins."""
        self._logical._outer.refuse(
            "executescript() commits what came before it, and cannot be had inside a test's transaction.",
            "Send the statements one by one, or make tables before the test.",
        )


_LOGICAL: dict[str, type[LogicalConnection]] = {
    "pysqlite": LogicalSQLite,
    "psycopg2": LogicalPsycopg2,
    "psycopg": LogicalPsycopg,
}
DRIVERS = tuple(_LOGICAL)


def make_logical(outer: OuterTransaction) -> LogicalConnection:
    """A connection of the kind that the outer transaction's driver makes."""
    return _LOGICAL[outer.dialect.driver](outer)


_NUMBER = "pg_current_xact_id_if_assigned()"
_CURRENT = "SELECT current_setting(%s, true)"
_CONFIGURE = "SELECT set_config(%s, %s, true)"


def _is_more_than_read(text: str) -> bool:
    """Whether what looks like a read locks something, or calls a function of which nobody knows what it does."""
    if _LOCKS.search(text):
        return True
    names = (match[1].lower() for match in _CALL.finditer(text))
    return any(
        name not in _WORDS_BEFORE_A_BRACKET and name not in _KNOWN_FUNCTIONS and not name.startswith("pg_")
        for name in names
    )


def _named_settings(text: str, parameters: object) -> list[str]:
    """What SET LOCAL and ``set_config`` in a text may set: what is not known to the server is none of it."""
    matches = list(_SETTINGS.finditer(text))
    names = [match["name"] for match in matches if match["name"]]
    if any(match["name"] is None for match in matches):
        names += _LITERAL.findall(text)
        names += [value for value in _flat(parameters) if isinstance(value, str) and value.isprintable()]
    return [name for name in names if name.lower() != "transaction"]


def _flat(parameters: object) -> Iterator[object]:
    if isinstance(parameters, dict):
        yield from parameters.values()
    elif isinstance(parameters, (list, tuple)):
        for each in parameters:
            yield from _flat(each) if isinstance(each, (list, tuple, dict)) else (each,)
