"""Connections of a driver's kind that share one real connection, see :mod:`flask_uow.testing._outer`.

Each stands where the driver's own would: SQLAlchemy, this package and the application find its methods, its state and
its errors. What is not about transactions is the real connection's.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Self, TypeVar

from .._statements import Kind, kind_of
from ._outer import OuterTransaction
from ._texts import CONTROL, FIRST_WORDS, SETTINGS, is_more_than_read, named_settings

T = TypeVar("T")

_CURRENT = "SELECT current_setting(%s, true)"
_CONFIGURE = "SELECT set_config(%s, %s, true)"


class LogicalConnection(ABC):
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
    _hidden = frozenset(("riders", "is_read_only_at_start", "trips", "tpc_begin", "xid"))
    _when_closed: tuple[str, str]  # the driver's error and its text

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.commit() if kind is None else self.rollback()

    def commit(self) -> None:
        """Release what this connection has done."""
        self._check_open()
        self._outer.commit(self)

    def rollback(self) -> None:
        """Undo it."""
        self._check_open()
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

    def _check_open(self) -> None:
        if self._is_closed:
            name, text = self._when_closed
            raise getattr(self._outer.dialect.loaded_dbapi, name)(text)

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
    @abstractmethod
    def is_automatic(self) -> bool:
        """Whether a statement that comes now commits by itself."""

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
        self._check_open()
        text = text.decode() if isinstance(text, bytes) else text
        kind, writes = Kind.WRITE, True
        if isinstance(text, str):
            if self._controls(text):
                return None
            kind = kind_of(text, None)
            writes = kind is Kind.WRITE or (self._outer.is_postgresql and is_more_than_read(text))
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
        if isinstance(text, str) and self._outer.is_postgresql and SETTINGS.search(text):
            self._outer.run(self, lambda: self._note_settings(text, parameters), writes=False)
        return self._outer.run(self, statement, writes=writes)

    def _note_settings(self, text: str, parameters: object) -> None:
        for name in named_settings(text, parameters):
            if name not in self.settings:
                value = self._outer.ask(_CURRENT, [name])
                if value is not None or "." in name:
                    self.settings[name] = value

    def _controls(self, text: str) -> bool:
        """Do what a text says of transactions, if that is what it says."""
        if text.lstrip()[:3].upper() not in FIRST_WORDS or (match := CONTROL.match(text)) is None:
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

    def stream(self, text: Any, *parameters: Any, **options: Any) -> Any:
        """Read rows as they come, as psycopg does."""
        return self._logical.run(text, parameters[:1], lambda: self._real.stream(text, *parameters, **options))

    def copy_from(self, *arguments: Any, **options: Any) -> Any:
        """Copy a file into a table, as psycopg2 does."""
        return self._logical.run(None, (), lambda: self._real.copy_from(*arguments, **options))

    def copy_to(self, *arguments: Any, **options: Any) -> Any:
        """Copy a table into a file, as psycopg2 does."""
        return self._logical.run(None, (), lambda: self._real.copy_to(*arguments, **options))

    def copy_expert(self, text: Any, *arguments: Any, **options: Any) -> Any:
        """Copy rows, as psycopg2 does."""
        return self._logical.run(None, (), lambda: self._real.copy_expert(text, *arguments, **options))

    def executescript(self, text: str, /) -> Any:
        """sqlite3 would commit before it begins."""
        self._logical._outer.refuse(
            "executescript() commits what came before it, and cannot be had inside a test's transaction.",
            "Send the statements one by one, or make tables before the test.",
        )
