"""Databases of a test's own, and an eye on each that shares nothing with the code under test."""

import contextlib
import os
import secrets
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from tests.throwaway_server import ServerError, throwaway_server

BACKENDS = ("sqlite", "psycopg2", "psycopg")
SERVER_VARIABLE = "UOW_TEST_POSTGRES_URL"
KILL_TIMEOUT_S = 5.0
# What the second connection calls itself, so that a test can tell it from the application's.
OBSERVER = "observer"

Row = tuple[Any, ...]

# The look before this one may not have left yet.
SESSIONS = f"""
    SELECT pid, state, coalesce(application_name, ''), coalesce(query, ''), wait_event_type, usename
      FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> '{OBSERVER}'
     ORDER BY backend_start
"""
OTHERS = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"


@dataclass(frozen=True)
class ServerSession:
    """A connection as the server sees it."""

    pid: int
    state: str | None
    application_name: str
    query: str
    wait_event_type: str | None
    user: str | None


class Database(ABC):
    """One empty database: its URL for the code under test, and connections of its own for the test."""

    def __init__(self, url: URL, backend: str) -> None:
        self.url = url.render_as_string(hide_password=False)
        self.backend = backend

    def __repr__(self) -> str:
        return f"<Database {self.backend}>"

    @property
    def is_postgresql(self) -> bool:
        """Whether a server stands behind it."""
        return self.backend != "sqlite"

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Return what was committed, read on a new connection in a transaction of its own."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            # Without values a driver leaves a % alone.
            cursor.execute(sql, values) if values else cursor.execute(sql)
            return [tuple(row) for row in cursor.fetchall()]

    def execute(self, sql: str, *values: object) -> None:
        """Run a statement on a new connection and commit it."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql, values) if values else cursor.execute(sql)

    @abstractmethod
    def connect(self) -> Any:
        """Return a new DBAPI connection in autocommit mode; the test closes it."""

    def sessions(self) -> list[ServerSession]:
        """Return the server's sessions in this database but the tests' own; of a SQLite file there are none."""
        return []

    def kill(self, pid: int) -> None:
        """End a session of the server, and wait until it is gone."""
        raise TypeError("A SQLite file has no server whose session could be killed.")


class SQLiteDatabase(Database):
    """A file."""

    def __init__(self, file: Path) -> None:
        super().__init__(URL.create("sqlite", database=str(file)), "sqlite")
        self.file = file

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, isolation_level=None)


class PostgreSQLDatabase(Database):
    """A database of the run's server, reached by one of the two drivers."""

    def __init__(self, server: URL, backend: str) -> None:
        super().__init__(server.set(drivername=f"postgresql+{backend}"), backend)
        self.driverless_url = server.set(drivername="postgresql").render_as_string(hide_password=False)

    def connect(self) -> Any:
        return _connect(self.driverless_url)

    def sessions(self) -> list[ServerSession]:
        return [ServerSession(*row) for row in self.rows(SESSIONS)]

    def kill(self, pid: int) -> None:
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            _kill(cursor, "SELECT pid FROM pg_stat_activity WHERE pid = %s", pid)

    def clear(self) -> None:
        """End every session, forget every prepared transaction, drop every object."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            _kill(cursor, OTHERS)
            cursor.execute(PREPARED)
            for (gid,) in cursor.fetchall():
                cursor.execute("ROLLBACK PREPARED %s", (gid,))
            cursor.execute(SCHEMAS)
            # A new schema takes 1 ms, a new database 60.
            drops = [f'DROP SCHEMA "{schema}" CASCADE;' for (schema,) in cursor.fetchall()]
            cursor.execute(" ".join([*drops, "CREATE SCHEMA public"]))


class Server:
    """The PostgreSQL of a run, and the databases that the run has made there."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._names: list[str] = []

    def database(self, backend: str, number: int = 0) -> PostgreSQLDatabase:
        """Return the run's database of this number, empty."""
        while len(self._names) <= number:
            self._make_one()
        database = PostgreSQLDatabase(self.url.set(database=self._names[number]), backend)
        database.clear()
        return database

    def drop_databases(self) -> None:
        """Leave the server as it was found."""
        while self._names:
            self._administer(f"DROP DATABASE IF EXISTS {self._names.pop()} WITH (FORCE)")

    def _make_one(self) -> None:
        name = f"uow_test_{secrets.token_hex(4)}"
        self._administer(f"CREATE DATABASE {name} TEMPLATE template0")
        self._names.append(name)

    def _administer(self, sql: str) -> None:
        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with closing(_connect(url)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)


@contextlib.contextmanager
def run_server() -> Iterator[Server]:
    """Yield the server that the environment names, else one that lives as long as the run.

    :raises ServerError: if it cannot be reached, may not be used or does not start.
    """
    named = os.environ.get(SERVER_VARIABLE)
    with contextlib.nullcontext(named) if named else throwaway_server() as url:
        try:
            server = Server(url)
            server.database("psycopg2")
        except ArgumentError as error:
            raise ServerError(f"{SERVER_VARIABLE} is not a URL.") from error
        except psycopg2.Error as error:
            raise ServerError(f"{server.url!r}: {error}".strip()) from error
        try:
            yield server
        finally:
            server.drop_databases()


def _kill(cursor: Any, pids: str, *values: object) -> None:
    """End the sessions that a query finds, until it finds none; the server's own waiting would take 100 ms."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while True:
        cursor.execute(f"SELECT pg_terminate_backend(pid) FROM ({pids}) AS found", values)
        if not cursor.fetchall():
            return
        assert time.monotonic() < deadline, f"The server does not end its sessions: {pids}"
        time.sleep(0.001)


def _connect(url: str) -> Any:
    connection = psycopg2.connect(url, application_name=OBSERVER, connect_timeout=5)
    connection.autocommit = True
    return connection
