"""Connections of psycopg 3, plain ones and those on which statements ride; both are told the same."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from flask_uow._ride._psycopg import RidingConnection, connect

READ_ONLY_AT_START = "-c default_transaction_read_only=on"

TABLE = "CREATE TABLE item (id integer PRIMARY KEY, name text)"
COMMIT, ROLLBACK = "commit()", "rollback()"
ENDINGS: dict[object, Callable[[psycopg.Connection[Any]], None]] = {
    COMMIT: psycopg.Connection.commit,
    ROLLBACK: psycopg.Connection.rollback,
}
# A statement, or one with its parameters.
Step = str | tuple[str, tuple[object, ...]]


class Told:
    """A connection, and what it has answered to one step after the other.

    :param connection: the connection.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.cursor = connection.cursor()

    def tell(self, *steps: Step) -> list[tuple[Step, object, str]]:
        """Return what each step has answered: rows or how many, or the error's code; and the transaction's status."""
        return [(step, self._tell(step), self.connection.info.transaction_status.name) for step in steps]

    def _tell(self, step: Step) -> object:
        try:
            if step in ENDINGS:
                ENDINGS[step](self.connection)
                return None
            statement, parameters = (step, None) if isinstance(step, str) else step
            self.cursor.execute(statement, parameters)
        except psycopg.Error as error:
            return type(error).__name__
        return self.cursor.fetchall() if self.cursor.description else self.cursor.rowcount


@contextlib.contextmanager
def plain(url: str) -> Iterator[Told]:
    """A connection as psycopg makes it."""
    with contextlib.closing(psycopg.connect(url)) as connection:
        yield Told(connection)


@contextlib.contextmanager
def riding(url: str, *, is_reader: bool = False, **options: Any) -> Iterator[Told]:
    """A connection on which statements ride.

    :param is_reader: whether it starts with ``default_transaction_read_only``.
    """
    if is_reader:
        options["options"] = READ_ONLY_AT_START
    with contextlib.closing(connect([url], options)) as connection:
        assert not is_reader or connection.note_read_only_at_start()
        yield Told(connection)


def riding_connection(told: Told) -> RidingConnection:
    """The connection, as what it is."""
    assert isinstance(told.connection, RidingConnection)
    return told.connection
