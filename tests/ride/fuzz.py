"""Random sequences of statements, on a plain connection and on a riding one: the caller must not see which is which.

``python -m tests.ride.fuzz --sequences 20000 --driver psycopg2`` compares, operation by operation, what was returned
or raised (class, SQLSTATE, message, position), the transaction's status and the driver's settings; and after each
sequence the tables, the session's settings and what the server says the session is doing. It prints the sequences that
differ and ends with 1 if there are any.

What may differ, and why:

* COMMIT of a transaction that has failed raises InFailedSqlTransaction. The plain driver rolls back in silence, and the
  caller believes that the work was kept.
* The error of a ``SET LOCAL`` that waits comes with the next statement that is sent, COMMIT included, or never, where
  the transaction or its savepoint is rolled back before that: then it has had no effect. In between the transaction
  counts as sound. What gets that error is not run, even if it is a COMMIT or ROLLBACK sent as text; such a sequence is
  not followed any further, nor is one where it is the savepoint's RELEASE: that is rolled back to then.
* What the server warns of where it is told a COMMIT or ROLLBACK out of a transaction, after transaction control sent as
  text: nothing is sent then, so nothing is warned of. Warnings are not compared.

What is left out, because the plain driver itself is then in a state that it does not know of, or because it differs:

* Large objects where the server is not in the transaction that psycopg2 believes in: the error's class is another one.
* Transaction control as text, with psycopg2 ``set_isolation_level`` and another encoding too, in a two-phase
  transaction: the driver goes on believing in that.
* Settings of a connection in autocommit in a transaction begun as text: psycopg2 sends SET at once, where it may fail
  or be rolled back; riding it is sent with the next statement.
* With connections that start read-only, ``COMMIT; BEGIN`` in one string: after a failed transaction the new one is
  read-only, and a write in it is an error, because nothing can be told the server in between.
* psycopg 3's named cursors after their transaction: riding they are refused before the server hears of them, which
  would abort the next transaction.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import psycopg2
from psycopg import pq

from flask_uow._ride import _psycopg
from flask_uow._ride._psycopg2 import RidingConnection
from tests.databases import PostgreSQLDatabase, run_server

TABLES = """
    CREATE TABLE t (id int PRIMARY KEY, name text);
    CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE FUNCTION twice(number int) RETURNS int LANGUAGE sql AS 'SELECT 2 * number';
    CREATE FUNCTION fails(number int) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'SELEC nonsense'; RETURN 1; END $$;
"""
ROWS = ("SELECT * FROM t ORDER BY id", "SELECT * FROM late ORDER BY id")
SESSION_SETTINGS = ("statement_timeout", "application_name", "default_transaction_isolation", "my.setting")
SEQUENCES_OF_A_CONNECTION = 50
CANCEL_AFTER_S = 0.02
FAILED = "25P02"
CONTROLS = ("COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT a; SELECT 1", "SELECT 1; ROLLBACK TO a", "COMMIT; BEGIN")
RIDERS = ("SAVEPOINT", "RELEASE", "ROLLBACK", "SET")
SERIES = "SELECT * FROM generate_series(1, 9)"
NAMES = ("a", "b", "B", '"a b"')

Operation = tuple[str, tuple[Any, ...]]
Outcome = tuple[Any, ...]

LAST: Operation = ("execute", ("SELECT 1", None, "new"))


class Side(ABC):
    """A connection to a database of its own, and what can be done with it; the names are those of operations.

    :param database: an empty one.
    :param is_riding: whether statements ride.
    :param is_read_only_at_start: whether harmless reads may go without a transaction.
    """

    def __init__(self, database: PostgreSQLDatabase, *, is_riding: bool, is_read_only_at_start: bool) -> None:
        self.database = database
        self.is_riding = is_riding
        self.options = "-c default_transaction_read_only=on" if is_riding and is_read_only_at_start else ""
        database.execute(TABLES)
        self.observer = database.connect()
        self.shared: Any = None
        self.named: Any = None
        self.is_two_phase = False
        self.connection: Any = self.connect()

    # ---- what each driver does in its own way

    @abstractmethod
    def connect(self) -> Any:
        """Connect, riding or not."""

    @abstractmethod
    def pid(self) -> int:
        """Return the server's process, 0 of a closed connection."""

    @abstractmethod
    def status(self) -> int:
        """Return libpq's status of the transaction."""

    @abstractmethod
    def settings(self) -> tuple[Any, ...]:
        """Return what the connection says of its transactions."""

    @abstractmethod
    def forget_texts(self) -> None:
        """Forget which texts have run."""

    @abstractmethod
    def forget_named(self) -> None:
        """Leave a named cursor alone whose transaction has ended, where that is not the same to both."""

    @abstractmethod
    def recognise(self, error: Exception) -> Outcome:
        """Return what an error says."""

    @abstractmethod
    def forget_all(self) -> None:
        """Be as if newly connected."""

    # ---- operations

    def execute(self, statement: Any, parameters: Any, how: str) -> Outcome:
        # Text that ends a two-phase transaction leaves the driver in one.
        if self.is_two_phase and statement in CONTROLS:
            return ()
        cursor = self.shared if how == "shared" else self.connection.cursor()
        if how == "harmless" and self.is_riding:
            self.connection.riders.harmless_query = statement
        cursor.execute(statement, parameters)
        return self.result(cursor)

    def executemany(self, statement: str, rows: list[Any]) -> Outcome:
        cursor = self.connection.cursor()
        cursor.executemany(statement, rows)
        return (cursor.rowcount,)

    def commit(self) -> Outcome:
        was_failed = self.status() == 3
        self.connection.commit()
        # What the plain driver keeps to itself.
        return ("error", "InFailedSqlTransaction", FAILED) if was_failed else ()

    def rollback(self) -> Outcome:
        self.connection.rollback()
        return ()

    def set(self, name: str, value: Any) -> Outcome:
        # Of a transaction that was begun as text in autocommit the plain driver's SETs are a part, and fail with it.
        if self.connection.autocommit and self.status() != 0:
            return ()
        setattr(self.connection, name, value)
        return ()

    def cancel(self) -> Outcome:
        is_over = threading.Event()

        def keep_cancelling() -> None:
            while not is_over.wait(CANCEL_AFTER_S):
                self.connection.cancel()

        thread = threading.Thread(target=keep_cancelling)
        thread.start()
        try:
            self.connection.cursor().execute("SELECT pg_sleep(10)")
        finally:
            is_over.set()
            thread.join()
        return ()

    def declare(self, name: str, statement: str, withhold: bool) -> Outcome:
        self.named = self.connection.cursor(name, withhold=withhold)
        self.named.execute(statement)
        return ()

    def fetch(self, method: str, *values: Any) -> Outcome:
        if self.named is None:
            return ()
        return (getattr(self.named, method)(*values),)

    # ---- around a sequence

    def begin_sequence(self, *, anew: bool) -> None:
        if anew and not self.connection.closed:
            self.connection.close()
        if self.connection.closed:
            self.connection = self.connect()
        else:
            self.forget_all()
        self.shared = self.connection.cursor()
        self.named = None
        self.is_two_phase = False

    def end_sequence(self) -> Outcome:
        """Return what the server holds after a sequence, and the session's settings; then nothing is left of it."""
        is_open = not self.connection.closed
        settings = [self.run(("rollback", ()))]
        state = self.ask("SELECT state FROM pg_stat_activity WHERE pid = %s", self.pid()) if is_open else None
        settings.append(self.run(("session", ())))
        rows = [self.ask(query) for query in ROWS]
        with suppress(psycopg2.Error, psycopg.Error):
            self.connection.rollback()
        if self.is_two_phase or self.status() != 0:
            self.connection.close()
        self.ask("DELETE FROM t; DELETE FROM late; SELECT 1")
        return (state, settings, rows, self.end_prepared())

    def session(self) -> Outcome:
        """Return the session's settings, by the connection itself."""
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(
                "SELECT " + ", ".join(f"nullif(current_setting('{name}', true), '')" for name in SESSION_SETTINGS)
            )
            return tuple(cursor.fetchall())

    def end_prepared(self) -> Outcome:
        found = self.ask("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
        for (gid,) in found:
            with closing(self.observer.cursor()) as cursor:
                cursor.execute("ROLLBACK PREPARED %s", (gid,))
        return (len(found),)

    def ask(self, query: str, *values: Any) -> list[Any]:
        with closing(self.observer.cursor()) as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())

    def result(self, cursor: Any) -> Outcome:
        rows = cursor.fetchall() if cursor.description is not None else None
        return (cursor.rowcount, rows, cursor.statusmessage, cursor.query)

    def run(self, operation: Operation) -> Outcome:
        """Return what an operation returned or raised."""
        name, values = operation
        try:
            outcome: Outcome = getattr(self, name)(*values)
        except Exception as error:  # noqa: BLE001  # whatever is raised is compared
            return self.recognise(error)
        return outcome if outcome[:1] == ("error",) else ("ok", *outcome)


class Psycopg2(Side):
    """What psycopg2 has of its own."""

    #: The class of the cursors of both sides, None for psycopg2's own.
    cursor_factory: Any = None

    def connect(self) -> Any:
        factory = RidingConnection if self.is_riding else None
        connection: Any = psycopg2.connect(
            self.database.driverless_url,
            connection_factory=factory,
            cursor_factory=self.cursor_factory,
            options=self.options,
        )
        assert not self.options or connection.note_read_only_at_start()
        return connection

    def pid(self) -> int:
        return int(self.connection.get_backend_pid())

    def status(self) -> int:
        return int(self.connection.get_transaction_status())

    def settings(self) -> tuple[Any, ...]:
        connection = self.connection
        return (
            *(connection.status, connection.info.transaction_status, connection.closed, connection.autocommit),
            *(connection.isolation_level, connection.readonly, connection.deferrable, connection.encoding),
            [(notify.channel, notify.payload) for notify in connection.notifies],
        )

    def forget_all(self) -> None:
        self.connection.reset()
        self.connection.set_client_encoding("UTF8")
        del self.connection.notifies[:], self.connection.notices[:]

    def forget_texts(self) -> None:
        if self.is_riding:
            self.connection._texts.clear()

    def forget_named(self) -> None:
        pass

    def recognise(self, error: Exception) -> Outcome:
        if not isinstance(error, psycopg2.Error):
            return ("error", type(error).__name__, None, str(error))
        kind, state = type(error).__name__, error.pgcode
        if state is None or state == FAILED:
            return ("error", kind, state) if state else ("error", kind, state, str(error))
        return ("error", kind, state, str(error), error.pgerror, error.diag.statement_position)

    def copy_out(self, statement: str) -> Outcome:
        file = io.StringIO()
        self.connection.cursor().copy_expert(statement, file)
        return (file.getvalue(),)

    def copy_in(self, statement: str, text: str) -> Outcome:
        cursor = self.connection.cursor()
        cursor.copy_expert(statement, io.StringIO(text))
        return (cursor.rowcount,)

    def callproc(self, name: str, parameters: list[Any]) -> Outcome:
        cursor = self.connection.cursor()
        cursor.callproc(name, parameters)
        return tuple(cursor.fetchall())

    # In a two-phase transaction psycopg2 rolls that back here and below, and believes in it still.

    def set_isolation_level(self, level: int) -> Outcome:
        if not self.is_two_phase:
            self.connection.set_isolation_level(level)
        return ()

    def set_client_encoding(self, encoding: str) -> Outcome:
        if not self.is_two_phase:
            self.connection.set_client_encoding(encoding)
        return ()

    def enter(self) -> Outcome:
        self.connection.__enter__()
        return ()

    def leave(self, kind: Any) -> Outcome:
        was_failed = kind is None and self.status() == 3
        self.connection.__exit__(kind, None, None)
        return ("error", "InFailedSqlTransaction", FAILED) if was_failed else ()

    def large_object(self, text: str) -> Outcome:
        # Where the server is not in the transaction that psycopg2 believes in, its own error is an odd one.
        if self.status() != (2 if self.connection.status == psycopg2.extensions.STATUS_BEGIN else 0):
            return ()
        with closing(self.connection.lobject(0, "rw")) as lobject:
            lobject.write(text)
            lobject.seek(0)
            return (lobject.read(),)

    def reset(self) -> Outcome:
        self.connection.reset()
        return ()

    def tpc(self, method: str) -> Outcome:
        self.is_two_phase = True
        values = (self.connection.xid(1, f"fuzz{self.pid()}", "branch"),) if method == "tpc_begin" else ()
        getattr(self.connection, method)(*values)
        return ()


class Psycopg(Side):
    """What psycopg 3 has of its own; what it has not stands for something else that it has."""

    def connect(self) -> Any:
        self.blocks: list[Any] = []
        url = self.database.driverless_url
        options: dict[str, Any] = {"options": self.options, "prepare_threshold": 2}
        if not self.is_riding:
            return psycopg.connect(url, **options)
        connection = _psycopg.connect([url], options)
        assert not self.options or connection.note_read_only_at_start()
        return connection

    def pid(self) -> int:
        return 0 if self.connection.closed else int(self.connection.info.backend_pid)

    def status(self) -> int:
        return int(self.connection.info.transaction_status)

    def settings(self) -> tuple[Any, ...]:
        connection = self.connection
        return (
            *(connection.closed, connection.autocommit, connection.isolation_level),
            *(connection.read_only, connection.deferrable, connection.info.encoding),
        )

    def forget_all(self) -> None:
        connection = self.connection
        try:
            connection.rollback()
            connection.autocommit = False
            connection.isolation_level = connection.read_only = connection.deferrable = None
            # As it was connected; what is prepared stays.
            connection.execute("RESET ALL")
            connection.commit()
        except psycopg.Error:
            connection.close()
            self.connection = self.connect()

    def forget_texts(self) -> None:
        pass

    def forget_named(self) -> None:
        if self.named is not None and not self.named.withhold:
            self.named = None

    def recognise(self, error: Exception) -> Outcome:
        if not isinstance(error, psycopg.Error):
            return ("error", type(error).__name__, None, str(error).split(" at 0x")[0])
        kind, state = type(error).__name__, error.sqlstate
        if state is None or state == FAILED:
            return ("error", kind, state)
        return ("error", kind, state, str(error), error.diag.statement_position)

    def result(self, cursor: Any) -> Outcome:
        rows = cursor.fetchall() if cursor.description is not None else None
        # A rider's own is not known before it is sent.
        return (cursor.rowcount, rows, cursor.statusmessage if rows else None)

    def set(self, name: str, value: Any) -> Outcome:
        return super().set("read_only" if name == "readonly" else name, value)

    def execute(self, statement: Any, parameters: Any, how: str) -> Outcome:
        # psycopg leaves a connection in COPY that nothing gets out of; one whose statements ride is closed then.
        return () if str(statement).startswith("COPY") else super().execute(statement, parameters, how)

    def executemany(self, statement: str, rows: list[Any]) -> Outcome:
        # Of two errors in a batch, the one that is known first is raised: the server's, or that of a later row.
        return super().executemany(statement, [(1,)] if (1,) in rows else rows)

    def copy_out(self, statement: str) -> Outcome:
        with self.connection.cursor().copy(statement) as copy:
            return (b"".join(copy),)

    def copy_in(self, statement: str, text: str) -> Outcome:
        cursor = self.connection.cursor()
        with cursor.copy(statement) as copy:
            copy.write(text)
        return (cursor.rowcount,)

    def callproc(self, name: str, parameters: list[Any]) -> Outcome:
        with psycopg.ClientCursor(self.connection) as cursor:
            return tuple(cursor.execute(f"SELECT * FROM {name}(%s)", parameters).fetchall())

    def set_isolation_level(self, level: int) -> Outcome:
        with self.connection.pipeline():
            self.connection.execute("SELECT %s", (level,))
            cursor = self.connection.execute("INSERT INTO t VALUES (%s, 'piped') RETURNING id", (level,))
            return tuple(cursor.fetchall())

    def set_client_encoding(self, encoding: str) -> Outcome:
        self.connection.execute(f"SET client_encoding TO '{encoding}'")
        return ()

    def reset(self) -> Outcome:
        return tuple(self.connection.cursor().stream("SELECT id FROM t ORDER BY id"))

    def large_object(self, text: str) -> Outcome:
        cursor = self.connection.cursor()
        cursor.executemany("INSERT INTO t VALUES (%s, %s) RETURNING id", [(8, text), (9, text)], returning=True)
        return tuple(result.fetchall() for result in cursor.results())

    def enter(self) -> Outcome:
        block = self.connection.transaction()
        block.transaction = block.__enter__()
        self.blocks.append(block)
        return ()

    def leave(self, kind: Any) -> Outcome:
        if not self.blocks:
            return ()
        is_lost = kind is None and self.status() == 3 and self.is_outermost()
        error = kind() if kind else None
        self.blocks.pop().__exit__(kind, error, None)
        return ("error", "InFailedSqlTransaction", FAILED) if is_lost else ()

    def is_outermost(self) -> bool:
        """Whether the block that ends is to end the transaction as well."""
        transaction = self.blocks[-1].transaction
        return bool(transaction._outer_transaction)

    def end_sequence(self) -> Outcome:
        while self.blocks:
            self.run(("leave", (ValueError,)))
        return super().end_sequence()

    def tpc(self, method: str) -> Outcome:
        self.is_two_phase = True
        was_failed = method == "tpc_commit" and self.status() == 3
        values = (self.connection.xid(1, f"fuzz{self.pid()}", "branch"),) if method == "tpc_begin" else ()
        getattr(self.connection, method)(*values)
        return ("error", "InFailedSqlTransaction", FAILED) if was_failed else ()


SIDES: dict[str, type[Side]] = {"psycopg2": Psycopg2, "psycopg": Psycopg}


# ---- random sequences


class Generator:
    """Random operations, which depend on a seed alone.

    :param seed: a number.
    :param is_read_only_at_start: whether a BEGIN that comes in one string with the end of a failed transaction is left
        out: it is read-only then, because nothing can be told the server in between.
    """

    def __init__(self, seed: int, *, is_read_only_at_start: bool) -> None:
        self._random = random.Random(seed)
        self._controls = CONTROLS[:-1] if is_read_only_at_start else CONTROLS

    def sequence(self) -> list[Operation]:
        """Return a sequence of operations."""
        length = self._random.randint(2, 25)
        return [self._operation() for _ in range(length)]

    def forgets_texts(self) -> bool:
        """Whether the texts that were run before are to be forgotten."""
        return self._random.random() < 0.4

    def _operation(self) -> Operation:
        makers: list[tuple[int, Callable[[], Operation]]] = [
            (30, self._statement),
            (28, self._savepoint),
            (6, self._setting),
            (6, lambda: ("commit", ())),
            (6, lambda: ("rollback", ())),
            (5, self._wrong),
            (5, self._many),
            (5, self._characteristic),
            (4, self._named),
            (3, self._copy),
            (2, self._function),
            (2, self._control),
            (2, self._creation),
            (2, self._slow),
            (2, self._session),
            (1, self._native),
        ]
        weights = [weight for weight, _ in makers]
        return self._random.choices([maker for _, maker in makers], weights)[0]()

    def _pick(self, makers: list[Callable[[], Operation]]) -> Operation:
        return self._random.choice(makers)()

    def _execute(self, statement: Any, parameters: Any = None, how: str = "") -> Operation:
        how = how or ("shared" if self._random.random() < 0.1 else "new")
        return ("execute", (statement, parameters, how))

    def _number(self) -> int:
        return self._random.randint(1, 6)

    def _statement(self) -> Operation:
        number = self._number()
        return self._pick(
            [
                lambda: self._execute("INSERT INTO t VALUES (%s, 'ä%%')", (number,)),
                lambda: self._execute("INSERT INTO t VALUES (%(id)s, 'x') RETURNING id", {"id": number}),
                lambda: self._execute("INSERT INTO late VALUES (%s)", (number // 2,)),
                lambda: self._execute(f"INSERT INTO t VALUES ({number}, '100%')"),
                lambda: self._execute(b"INSERT INTO t VALUES (%s, 'bytes')", (number,)),
                lambda: self._execute("UPDATE t SET name = name || 'x' WHERE id < %s", (number,)),
                lambda: self._execute("DELETE FROM t WHERE id = %s", (number,)),
                lambda: self._execute("SELECT * FROM t ORDER BY id"),
                lambda: self._execute("  SELECT count(*) FROM t WHERE id IN %s ;", ((number, 2),)),
                lambda: self._execute("SELECT count(*) FROM t", None, "harmless"),
                lambda: self._execute("SELECT 1 / (%s - 3)", (number,), "harmless"),
                lambda: self._execute("SHOW transaction_isolation"),
                lambda: self._execute("SHOW transaction_read_only"),
                lambda: self._execute("INSERT INTO t VALUES (7, ';'); SELECT id FROM t ORDER BY id"),
                lambda: self._execute("SELECT 1; SELECT 1 / 0"),
                lambda: self._execute("SELECT 'a' AS a, 2 AS b"),
            ]
        )

    def _savepoint(self) -> Operation:
        name = self._random.choice(NAMES)
        text = self._random.choice(
            [
                *["SAVEPOINT {}", "savepoint {} ", "SAVEPOINT {}"],
                *["RELEASE {}", "RELEASE SAVEPOINT {}"],
                *["ROLLBACK TO {}", "ROLLBACK TO SAVEPOINT {}", "rollback work to savepoint {}"],
            ]
        )
        return self._execute(text.format(name), self._random.choice([None, {}]))

    def _setting(self) -> Operation:
        return self._execute(
            self._random.choice(
                [
                    "SET LOCAL my.setting = 'one'",
                    "SET LOCAL my.setting TO two",
                    "SET LOCAL application_name = 'fuzz'",
                    "SET LOCAL statement_timeout = '30s'",
                    "SET LOCAL statement_timeout = 'soon'",
                    "SET LOCAL nonsense = 1",
                    "SET LOCAL my.setting = select",
                    "SELECT coalesce(current_setting('my.setting', true), ''), current_setting('application_name')",
                ]
            )
        )

    def _wrong(self) -> Operation:
        return self._pick(
            [
                lambda: self._execute("SELEC %s", (1,)),
                lambda: self._execute("SELECT\n  'ä', *\nFROM nowhere"),
                lambda: self._execute("SELECT 1 FROM t WHERE id IN %s", ((),)),
                lambda: self._execute("SELECT %s, %s", (1,)),
                lambda: self._execute("SELECT %(a)s", {}),
                lambda: self._execute("SELECT %s", ("a\0b",)),
                lambda: self._execute("SELECT %s", (object,)),
                lambda: self._execute(""),
                lambda: self._execute(" ; "),
                lambda: self._execute("-- nothing"),
                lambda: self._execute("/* a */ SELECT nope"),
                lambda: self._execute("COPY t TO STDOUT"),
                lambda: self._execute(1),
                lambda: self._execute("SELECT 'a'::int", None, "harmless"),
                lambda: self._execute("SELEC 1", None, "harmless"),
            ]
        )

    def _many(self) -> Operation:
        insert = "INSERT INTO t VALUES (%s, %s)"
        # So many that a driver prepares it within.
        numbers = self._random.choices(range(1, self._random.choice([7, 100])), k=self._random.randint(0, 5))
        rows: list[Any] = [(number, "many") for number in numbers]
        if self._random.random() < 0.2:
            rows.append((1,))
        return ("executemany", (self._random.choice([insert, insert, "SELEC %s, %s"]), rows))

    def _characteristic(self) -> Operation:
        return self._pick(
            [
                lambda: ("set", ("autocommit", self._random.random() < 0.4)),
                lambda: ("set", ("isolation_level", self._random.choice([None, 1, 2, 3, 4]))),
                lambda: ("set", ("readonly", self._random.choice([None, True, False, None]))),
                lambda: ("set", ("deferrable", self._random.choice([None, True, False]))),
                lambda: ("set_isolation_level", (self._random.choice([0, 1, 2, 3, 7]),)),
            ]
        )

    def _named(self) -> Operation:
        choice = self._random.choice
        return self._pick(
            [
                lambda: (
                    "declare",
                    (choice(["n", 'n "q"']), "SELECT * FROM generate_series(1, 9)", choice([True, False])),
                ),
                lambda: ("declare", ("n", choice(["SELECT * FROM t", "SELEC", "SELECT 1 / 0"]), False)),
                lambda: ("fetch", ("fetchone",)),
                lambda: ("fetch", ("fetchmany", 2)),
                lambda: ("fetch", ("fetchall",)),
                lambda: ("fetch", ("__next__",)),
                lambda: ("fetch", ("scroll", choice([1, -1]))),
                lambda: ("fetch", ("close",)),
            ]
        )

    def _copy(self) -> Operation:
        return self._pick(
            [
                lambda: ("copy_out", ("COPY (SELECT id FROM t ORDER BY id) TO STDOUT",)),
                lambda: ("copy_in", ("COPY t FROM STDIN", f"{self._number()}\tcopied\n")),
                lambda: ("copy_in", ("COPY t FROM STDIN", "nonsense\n")),
                lambda: ("copy_out", ("COPY nowhere TO STDOUT",)),
            ]
        )

    def _function(self) -> Operation:
        return ("callproc", (self._random.choice(["twice", "fails", "nope"]), [self._number()]))

    def _control(self) -> Operation:
        return self._execute(self._random.choice(self._controls))

    def _creation(self) -> Operation:
        return self._execute(
            self._random.choice(["CREATE TABLE made (id int)", "CREATE TABLE made ()", "DROP TABLE made"])
        )

    def _slow(self) -> Operation:
        if self._random.random() < 0.15:
            return ("cancel", ())
        return self._execute("SET LOCAL statement_timeout = '5ms'; SELECT pg_sleep(5)")

    def _session(self) -> Operation:
        return self._pick(
            [
                lambda: self._execute("LISTEN channel"),
                lambda: self._execute("NOTIFY channel, 'payload'"),
                lambda: self._execute("SET my.setting = 'session'"),
                lambda: ("set_client_encoding", (self._random.choice(["LATIN1", "utf-8"]),)),
                lambda: ("reset", ()),
                lambda: ("enter", ()),
                lambda: ("leave", (self._random.choice([None, ValueError]),)),
            ]
        )

    def _native(self) -> Operation:
        return self._random.choice(
            [
                ("large_object", ("text",)),
                ("tpc", ("tpc_begin",)),
                ("tpc", ("tpc_begin",)),
                ("tpc", ("tpc_prepare",)),
                ("tpc", ("tpc_commit",)),
                ("tpc", ("tpc_rollback",)),
            ]
        )


# ---- comparing


@dataclass
class Difference:
    """A sequence in which the two sides differ."""

    seed: int
    sequence: list[Operation]
    log: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([f"sequence {self.seed}:", *self.log])

    def short(self) -> str:
        """The operations before the one that differs, without their outcomes."""
        told = "\n".join(f"  {operation}" for operation in self.sequence[: max(0, len(self.log) - 2)])
        return "\n".join([f"sequence {self.seed}:", told, *self.log[-2:]])


class Comparison:
    """Two sides, and what is compared between them.

    :param plain: the driver as it is.
    :param riding: with statements that ride.
    """

    def __init__(self, plain: Side, riding: Side) -> None:
        self.plain = plain
        self.riding = riding
        self.operations = 0

    def run(self, seed: int) -> Difference | None:
        """Run a sequence on both sides; return it if they differ."""
        generator = Generator(seed, is_read_only_at_start=bool(self.riding.options))
        difference = Difference(seed, generator.sequence())
        is_anew = seed % SEQUENCES_OF_A_CONNECTION == 0
        self.plain.begin_sequence(anew=is_anew)
        self.riding.begin_sequence(anew=is_anew)
        if generator.forgets_texts():
            self.riding.forget_texts()
        late: Outcome | None = None
        is_equal = True
        for operation in (*difference.sequence, LAST):
            if operation is LAST and late is None:
                break  # else the error is told now, whatever ends the transaction
            self.operations += 1
            expected, found = self.plain.run(operation), self.riding.run(operation)
            was_late = late is not None
            is_equal, late = self._compare(operation, expected, found, late)
            difference.log.append(f"  {operation}\n      plain  {expected}\n      riding {found}")
            if self.plain.status() == pq.TransactionStatus.IDLE:
                self.plain.forget_named()
                self.riding.forget_named()
            is_left = was_late and late is None and (operation[0] == "declare" or is_release(operation))
            if not is_equal or is_left or (found[0] == "error" and expected[0] == "ok"):
                break
        return self._end(difference, is_equal)

    def _compare(
        self, operation: Operation, expected: Outcome, found: Outcome, late: Outcome | None
    ) -> tuple[bool, Outcome | None]:
        """Whether an operation's outcomes are as good as equal, and the error that is still to come."""
        if late is None and expected != found and is_setting(operation) and found[0] == "ok":
            return expected[0] == "error", expected
        if late is not None:
            return self._compare_late(operation, expected, found, late)
        if expected != found:
            return False, None
        return self._state(self.plain) == self._state(self.riding), None

    def _compare_late(
        self, operation: Operation, expected: Outcome, found: Outcome, late: Outcome
    ) -> tuple[bool, Outcome | None]:
        if found[:3] == late[:3]:  # where it stands in the text is another matter now
            return True, None
        if expected == found:
            is_over = self.plain.status() == self.riding.status()
            return True, None if is_over else late
        is_waiting = found[0] == "ok" and expected[0] == "error" and is_rider(operation)
        return is_waiting, late

    def _state(self, side: Side) -> Outcome:
        return (side.status(), side.settings())

    def _end(self, difference: Difference, is_equal: bool) -> Difference | None:
        ends = self.plain.end_sequence(), self.riding.end_sequence()
        if is_equal and ends[0] == ends[1]:
            return None
        difference.log.append(f"  in the end\n      plain  {ends[0]}\n      riding {ends[1]}")
        return difference


def is_setting(operation: Operation) -> bool:
    """Whether an operation is a setting of the transaction alone."""
    return is_rider(operation) and operation[1][0].startswith("SET LOCAL")


def is_release(operation: Operation) -> bool:
    """Whether an operation releases a savepoint."""
    return is_rider(operation) and operation[1][0].upper().startswith("RELEASE")


def is_rider(operation: Operation) -> bool:
    """Whether an operation may wait."""
    name, values = operation
    return name == "execute" and isinstance(values[0], str) and values[0].upper().startswith(RIDERS)


def compare(
    driver: str, plain: PostgreSQLDatabase, riding: PostgreSQLDatabase, seeds: Iterable[int], *, read_only: bool
) -> tuple[int, list[Difference]]:
    """Run sequences on both; return how many operations there were, and the sequences that differ.

    :param driver: SQLAlchemy's name of it.
    :param plain: an empty database.
    :param riding: another one.
    :param seeds: a number for each sequence.
    :param read_only: whether riding connections start read-only, so that harmless reads go without a transaction.
    """
    kind = SIDES[driver]
    sides = [
        kind(database, is_riding=is_riding, is_read_only_at_start=read_only)
        for database, is_riding in ((plain, False), (riding, True))
    ]
    comparison = Comparison(*sides)
    try:
        differences = [difference for seed in seeds if (difference := comparison.run(seed)) is not None]
    finally:
        for side in sides:
            side.connection.close()
            side.observer.close()
    return comparison.operations, differences


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--driver", choices=sorted(SIDES), default="psycopg2")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first sequence's")
    parser.add_argument("--read-only", action="store_true", help="riding connections start read-only")
    parser.add_argument("--shown", type=int, default=10, help="how many differences are printed")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.sequences)
    began = time.monotonic()
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of errors that are asked for here
    with run_server() as server:
        databases = server.database(arguments.driver, 0), server.database(arguments.driver, 1)
        operations, differences = compare(arguments.driver, *databases, seeds, read_only=arguments.read_only)
    for difference in differences[: arguments.shown]:
        sys.stdout.write(f"{difference.short()}\n")
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"{len(seeds)} sequences, {operations} operations, {len(differences)} differ: "
        f"{[difference.seed for difference in differences]} ({seconds:.0f} s)\n"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
