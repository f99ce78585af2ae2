"""One real connection per database while a test runs, in one transaction that is rolled back when it is over.

The connections that the code under test uses are logical ones upon it. What each calls a transaction is a *stretch* of
savepoints on the real connection: BEGIN makes one, COMMIT releases it, ROLLBACK goes back to it. Savepoints lie upon
each other, and transactions do not, which leaves these rules for logical connections that are open at once:

- What has only read, and locked nothing, is no hindrance: its stretch is released, and made again behind the other when
  it goes on.
- What has written keeps its stretch; another one of the same thread lies inside it, one of another thread waits.
- What a connection has committed lies inside such a stretch. If that is rolled back, it is lost, as it would not be in
  life: then the next statement of anybody raises an :class:`~flask_uow.exceptions.IsolationError`.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy import Engine

from .._checkouts import unseen
from .._drivers import has_ended
from ..exceptions import IsolationError

if TYPE_CHECKING:
    from ._logical import LogicalConnection

WAIT_S = 5.0
"""How long a connection waits for the transaction of another thread."""
_IN_ERROR = 3
_CHECK = ("SAVEPOINT uow_check", "SET CONSTRAINTS ALL IMMEDIATE", "ROLLBACK TO uow_check", "RELEASE uow_check")
_RESTARTS = """
    SELECT format('ALTER SEQUENCE %I.%I RESTART WITH %s', schemaname, sequencename,
                  coalesce(last_value + increment_by, start_value))
      FROM pg_sequences
     ORDER BY schemaname, sequencename
"""

_UNTRUE = "which in life would be there and is not."
_EARLIER = "Begin the independent unit before the one around it writes, or run this test without isolation."
_WITHOUT = "Run this test without isolation."

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Savepoint:
    """A savepoint of the real connection.

    :param owner: the logical connection whose it is; None once that has committed.
    :param name: its name in SQL.
    :param is_own: whether the code under test has made it, and not its connection's BEGIN.
    :ivar wrote: whether its owner has written in it, or locked something.
    :ivar holds_commit: whether another one's committed work lies in it.
    """

    owner: LogicalConnection | None
    name: str
    is_own: bool = False
    wrote: bool = False
    holds_commit: bool = False


class OuterTransaction:
    """A real connection of an engine, and the savepoints on it.

    :param engine: whose pool lends the connection.
    :ivar errors: what was refused, and why.
    :ivar was_automatic: whether the engine's connections are in autocommit.
    :ivar info: what listeners have noted of the real connection when it was made.
    :raises IsolationError: if the pool has none to lend.
    """

    def __init__(self, engine: Engine) -> None:
        self.errors: list[IsolationError] = []
        self.is_postgresql = engine.dialect.name == "postgresql"
        self.dialect = engine.dialect
        with unseen(engine.pool):
            self._pooled = engine.pool.connect()
        real: Any = self._pooled.dbapi_connection
        self.real = real
        self.info = dict(self._pooled.info)
        self.is_over = self.refuses_writes = False
        self._lost: IsolationError | None = None
        self._savepoints: list[Savepoint] = []
        self._numbers = itertools.count(1)
        self._quiet = os.pipe()
        self._changed = threading.Condition(threading.RLock())
        self.was_automatic = self.is_postgresql and bool(real.autocommit)
        if self.was_automatic:
            real.autocommit = False
        self._send(self._first_text)

    @property
    def _first_text(self) -> str:
        return "SELECT 1" if self.is_postgresql or self.real.in_transaction else "BEGIN"

    def end(self) -> None:
        """Roll everything back, and give the connection back to its pool."""
        with self._changed:
            self.is_over = True
            self._savepoints.clear()
            self._changed.notify_all()
            try:
                self.accept_writes()
                self.real.rollback()
                if self.was_automatic:
                    self.real.autocommit = True
            except self.dialect.loaded_dbapi.Error as error:
                self._pooled.invalidate(error)
            self._pooled.close()
            for end in self._quiet:
                os.close(end)

    def hold_sequences(self) -> None:
        """Restart PostgreSQL's sequences where they stand: a sequence that the transaction has restarted is its own."""
        if self.is_postgresql:
            with closing(self.real.cursor()) as cursor:
                cursor.execute(_RESTARTS)
                for (text,) in cursor.fetchall():
                    cursor.execute(text)

    # ---- statements

    def run(self, logical: LogicalConnection, statement: Callable[[], T], *, writes: bool) -> T:
        """Run a statement in its connection's transaction, which is begun if it is not."""
        with self._changed:
            self._open(logical)
            top = self._savepoints[-1]
            top.wrote = top.wrote or writes
            return self._run_real(statement)

    def run_alone(self, logical: LogicalConnection, statement: Callable[[], T], *, writes: bool) -> T:
        """Run a statement that its connection has no transaction for: it is committed when it has run."""
        if self.is_postgresql:
            try:
                result = self.run(logical, statement, writes=writes)
            except BaseException:
                self.rollback(logical)
                raise
            self.commit(logical)
            return result
        with self._changed:
            self._make_way(logical)
            if self._savepoints and writes:
                self._savepoints[-1].holds_commit = True
            return self._run_real(statement)

    def begin(self, logical: LogicalConnection, *, locks: bool) -> None:
        """Begin a connection's transaction now.

        :param locks: whether it keeps others from writing, as one that has written does.
        """
        with self._changed:
            self._open(logical)
            self._savepoints[-1].wrote |= locks

    def make(self, logical: LogicalConnection, name: str) -> None:
        """Make a savepoint of the code's own."""
        with self._changed:
            self._open(logical)
            self._push(Savepoint(logical, name, is_own=True))

    def release(self, logical: LogicalConnection, name: str) -> None:
        """Release one."""
        with self._changed:
            self._open(logical)
            place = self._place_of(logical, name)
            if place is not None and self._has_others(logical, place):
                self._savepoints[place].is_own = False  # it goes with its transaction: they lie upon it
                return
            self._send(f"RELEASE SAVEPOINT {name}")
            if place is not None:
                self._drop(place, is_commit=False)

    def roll_back_to(self, logical: LogicalConnection, name: str) -> None:
        """Roll back to one."""
        with self._changed:
            self._open(logical, heals=True)
            place = self._place_of(logical, name)
            if place is not None and self._has_others(logical, place):
                self._lose(f"A savepoint was rolled back while a transaction upon it was open, {_UNTRUE}", _EARLIER)
            elif place is not None and any(each.holds_commit for each in self._savepoints[place:]):
                self._lose_commit()
            self._send(f"ROLLBACK TO SAVEPOINT {name}")
            logical.is_aborted = False
            if place is not None:
                del self._savepoints[place + 1 :]
                self._savepoints[place].wrote = self._savepoints[place].holds_commit = False

    # ---- the end of a logical transaction

    def commit(self, logical: LogicalConnection) -> None:
        """Keep what a connection has done."""
        with self._changed:
            if self.is_over or not logical.is_open:
                self._forget(logical)
                return
            self._check()
            if self.is_aborted(logical):
                self._undo(logical)
                if hasattr(self.real, "riders"):
                    raise logical.aborted_error()
                return
            try:
                self._check_constraints(logical)
            except self.dialect.loaded_dbapi.Error:
                self._undo(logical)
                raise
            self._keep(logical, is_commit=True)

    def rollback(self, logical: LogicalConnection) -> None:
        """Undo what a connection has done."""
        with self._changed:
            if self.is_over or self._lost is not None or self._is_closed():
                self._forget(logical)
            else:
                self._undo(logical)

    def _keep(self, logical: LogicalConnection, *, is_commit: bool) -> None:
        self._clear_top(logical)
        own = self._of(logical)
        place = self._savepoints.index(own[0]) if own else 0
        if own and len(own) == len(self._savepoints) - place:
            logical.restore_settings(self)
            self._send(f"RELEASE SAVEPOINT {own[0].name}")
            self._drop(place, is_commit=is_commit)
        else:  # others go on above it
            for savepoint in own:
                savepoint.owner = None
                savepoint.holds_commit = savepoint.holds_commit or (savepoint.wrote and is_commit)
        self._forget(logical)

    def _undo(self, logical: LogicalConnection) -> None:
        self._clear_top(logical)
        self._heal(logical)
        own = self._of(logical)
        place = self._savepoints.index(own[0]) if own else 0
        has_written = any(each.wrote for each in own)
        if has_written and len(own) < len(self._savepoints) - place:
            self._lose(f"A transaction was rolled back while another one upon it was open, {_UNTRUE}", _EARLIER)
        elif has_written:
            if any(each.holds_commit for each in own):
                self._lose_commit()
            self._send(f"ROLLBACK TO SAVEPOINT {own[0].name}")
            self._send(f"RELEASE SAVEPOINT {own[0].name}")
            del self._savepoints[place:]
            logical.settings.clear()
        else:
            self._keep(logical, is_commit=False)
        self._forget(logical)

    def _forget(self, logical: LogicalConnection) -> None:
        logical.end_transaction()
        self._savepoints = [each for each in self._savepoints if each.owner is not logical]
        while self._lost is None and self._savepoints and self._savepoints[-1].owner is None:
            self._send(f"RELEASE SAVEPOINT {self._savepoints[-1].name}")
            self._drop(len(self._savepoints) - 1, is_commit=True)
        self._changed.notify_all()

    # ---- whose turn it is

    def _open(self, logical: LogicalConnection, *, heals: bool = False) -> None:
        """See that a connection's own savepoint is the innermost one."""
        self._make_way(logical)
        if logical.is_aborted and not heals:
            raise logical.aborted_error()
        moved = logical.take_moved()
        if self._is_on_top(logical) and not moved:
            return
        is_first = not logical.is_open
        logical.is_open = True
        self._push(Savepoint(logical, f"uow_test_{next(self._numbers)}"))
        for name in moved:
            self._push(Savepoint(logical, name, is_own=True))
        if not is_first:
            logical.apply_settings(self)
        if logical.begins_read_only:
            self._send("SET LOCAL transaction_read_only = on")

    def _make_way(self, logical: LogicalConnection) -> None:
        """Wait until nothing is above a connection's savepoints but what it may lie upon."""
        end_s = time.monotonic() + WAIT_S
        self._check()
        while self._clear_top(logical):
            if not self._changed.wait(end_s - time.monotonic()):
                self._refuse(
                    "Another thread's transaction has written and goes on, and a test's transactions share one "
                    f"connection: this one has waited for {WAIT_S:g} s.",
                    "End the one before the other begins, or run this test without isolation.",
                )
            self._check()
        logical.thread = threading.current_thread()

    def _clear_top(self, logical: LogicalConnection) -> bool:
        """Release the innermost savepoints of others that have only read; whether those of another thread are left."""
        while self._savepoints:
            owner = self._savepoints[-1].owner
            if owner is None or owner is logical:
                return False
            self._heal(owner)
            if not self._move(owner):
                thread = owner.thread
                return thread is not threading.current_thread() and thread.is_alive()
        return False

    def _move(self, owner: LogicalConnection) -> bool:
        """Release the innermost savepoints of a connection that has not written in them, until it goes on."""
        place = len(self._savepoints)
        while place and self._savepoints[place - 1].owner is owner:
            place -= 1
        moved = self._savepoints[place:]
        if any(each.wrote for each in moved):
            return False
        owner.move([each.name for each in moved if each.is_own], self, is_whole=len(moved) == len(self._of(owner)))
        self._send(f"RELEASE SAVEPOINT {moved[0].name}")
        self._drop(place, is_commit=False)
        return True

    def _heal(self, owner: LogicalConnection) -> None:
        """Undo what the server has aborted, back to its innermost savepoint; the connection goes on being aborted.

        Once: what is innermost when it has made way, or is to be undone, is another savepoint.
        """
        if owner.is_aborted or not self.is_aborted(owner):
            return
        top = self._savepoints[-1]
        if top.holds_commit:
            self._lose_commit()
        self._send(f"ROLLBACK TO SAVEPOINT {top.name}")
        owner.is_aborted = True
        top.wrote = top.holds_commit = False

    def is_aborted(self, logical: LogicalConnection) -> bool:
        """Whether a connection's transaction takes nothing but a rollback."""
        if logical.is_aborted:
            return True
        return self._is_on_top(logical) and self.is_postgresql and _status(self.real) == _IN_ERROR

    def _is_on_top(self, logical: LogicalConnection) -> bool:
        return bool(self._savepoints) and self._savepoints[-1].owner is logical

    # ---- savepoints

    def has_written(self, logical: LogicalConnection) -> bool:
        """Whether a connection's transaction has written, or locked something."""
        with self._changed:
            return any(each.wrote for each in self._of(logical))

    def _of(self, logical: LogicalConnection) -> list[Savepoint]:
        return [each for each in self._savepoints if each.owner is logical]

    def _place_of(self, logical: LogicalConnection, name: str) -> int | None:
        for place in range(len(self._savepoints) - 1, -1, -1):
            savepoint = self._savepoints[place]
            if savepoint.owner is logical and savepoint.is_own and savepoint.name == name:
                return place
        return None

    def _has_others(self, logical: LogicalConnection, place: int) -> bool:
        """Whether savepoints that are not a connection's own lie upon one of its own."""
        return any(each.owner is not logical for each in self._savepoints[place:])

    def _push(self, savepoint: Savepoint) -> None:
        self._send(f"SAVEPOINT {savepoint.name}")
        self._savepoints.append(savepoint)

    def _drop(self, place: int, *, is_commit: bool) -> None:
        """Forget savepoints that were released: what lay in them lies in the one below."""
        dropped = self._savepoints[place:]
        del self._savepoints[place:]
        if not self._savepoints:
            return
        below = self._savepoints[-1]
        below.holds_commit |= any(each.holds_commit for each in dropped)
        if below.owner is dropped[0].owner:
            below.wrote |= any(each.wrote for each in dropped)
        elif is_commit:
            below.holds_commit |= any(each.wrote for each in dropped)

    def _check_constraints(self, logical: LogicalConnection) -> None:
        """Let the server check what it would have checked at COMMIT."""
        if self.is_postgresql and self._is_on_top(logical) and any(each.wrote for each in self._of(logical)):
            for text in _CHECK:
                self._send(text)

    # ---- the real connection

    def _run_real(self, statement: Callable[[], T]) -> T:
        try:
            return statement()
        finally:
            if not self.is_postgresql and not self.real.in_transaction:
                self._lose("SQLite has rolled back the test's whole transaction by itself.", _WITHOUT)

    def ask(self, text: str, values: Iterable[object]) -> Any:
        """Ask the server for one value."""
        with closing(self.real.cursor()) as cursor:
            cursor.execute(text, tuple(values))
            return cursor.fetchone()[0]

    def refuse_writes(self) -> None:
        """Let SQLite itself refuse them."""
        if not self.refuses_writes:
            self._send("PRAGMA query_only = 1")
            self.refuses_writes = True

    def accept_writes(self) -> None:
        """Let SQLite take them again."""
        if self.refuses_writes:
            self._send("PRAGMA query_only = 0")
            self.refuses_writes = False

    def _send(self, text: str) -> None:
        with closing(self.real.cursor()) as cursor:
            cursor.execute(text)

    # ---- what cannot hold

    def quiet_fileno(self) -> int:
        """Where nothing is ever to be read: a thread that listened at the socket would take another one's answer.

        :raises OSError: if the real connection has ended.
        """
        with self._changed:
            if self.is_over or has_ended(self.real):
                raise OSError("The test's connection has ended.")
            return self._quiet[0]

    def check(self) -> None:
        """Refuse to go on where that would show something else than in life.

        :raises IsolationError: then.
        """
        with self._changed:
            self._check()

    def refuse(self, what: str, fix: str) -> NoReturn:
        """Say what cannot be had in the test's transaction.

        :raises IsolationError: always.
        """
        with self._changed:
            self._refuse(what, fix)

    def _check(self) -> None:
        if self.is_over:
            self._refuse("The test has ended, and with it the transaction that isolated it.", "End what it started.")
        if self._lost is None and self._is_closed():
            self._lose("The test's connection was lost, and with it all that the test has done.", _WITHOUT)
        if self._lost is not None:
            if self._lost not in self.errors:
                self.errors.append(self._lost)
            raise self._lost

    def _is_closed(self) -> bool:
        return self.is_postgresql and bool(self.real.closed)

    def _lose_commit(self) -> None:
        self._lose(
            f"A transaction that had written was rolled back, and what another one had committed inside it, {_UNTRUE}",
            _EARLIER,
        )

    def _lose(self, what: str, fix: str) -> None:
        self._lost = self._lost or IsolationError(what, fix=fix)

    def _refuse(self, what: str, fix: str) -> NoReturn:
        error = IsolationError(what, fix=fix)
        self.errors.append(error)
        raise error


def _status(real: Any) -> int:
    """The status, by libpq's number, of the real connection, as if nothing were waiting to ride."""
    told = real.transaction_status if hasattr(real, "riders") else None
    if told is None:
        told = real.get_transaction_status() if hasattr(real, "get_transaction_status") else _of_pgconn(real)
    return int(told)


def _of_pgconn(real: Any) -> int:
    return int(real.pgconn.transaction_status)
