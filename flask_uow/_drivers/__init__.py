"""What only the driver knows: the server's transaction status, an error's code, whether a pooled connection is alive.

The answers are free: libpq keeps the status of the last reply, and an idle socket that is readable has been closed
by its server. A driver that this package does not know answers None, and SQLAlchemy's own checks remain.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import closing
from enum import IntEnum
from typing import Any


class TransactionStatus(IntEnum):
    """libpq's transaction status of a connection; ``UNKNOWN`` where the driver cannot tell."""

    IDLE = 0
    ACTIVE = 1
    IN_TRANSACTION = 2
    IN_ERROR = 3
    UNKNOWN = 4


LIBPQ_DRIVERS = ("psycopg2", "psycopg")


def _psycopg2(dbapi_connection: Any) -> TransactionStatus | None:
    return _STATUSES.get(dbapi_connection.get_transaction_status())


def _psycopg(dbapi_connection: Any) -> TransactionStatus | None:
    return _STATUSES.get(dbapi_connection.pgconn.transaction_status)


def _pysqlite(dbapi_connection: Any) -> TransactionStatus:
    return TransactionStatus.IN_TRANSACTION if dbapi_connection.in_transaction else TransactionStatus.IDLE


def _silent(dbapi_connection: Any) -> TransactionStatus:
    return TransactionStatus.UNKNOWN


_STATUSES: dict[object, TransactionStatus] = {status.value: status for status in list(TransactionStatus)[:-1]}
_PROBES: dict[str, Callable[[Any], TransactionStatus | None]] = {
    "psycopg2": _psycopg2,
    "psycopg": _psycopg,
    "pysqlite": _pysqlite,
}


def status_probe(driver: str) -> Callable[[Any], TransactionStatus | None]:
    """A function of a driver's connection that tells what its server said last, without asking it again.

    It answers None for a connection that the driver knows to be broken.

    :param driver: SQLAlchemy's name of the driver, ``dialect.driver``; for one that cannot tell, the answer is always
        ``UNKNOWN``.
    """
    return _PROBES.get(driver, _silent)


def server_process(driver: str, dbapi_connection: Any) -> int:
    """The number of the server's process behind a connection, as the server told it; 0 where there is none.

    A pooler tells 32 random bits in its place, which a driver may take for a negative number.

    :param driver: SQLAlchemy's name of the driver.
    """
    pid = 0
    if driver == "psycopg2":
        pid = dbapi_connection.get_backend_pid()
    elif driver == "psycopg":
        pid = dbapi_connection.pgconn.backend_pid
    return pid & 0xFFFFFFFF


def is_readable_while_idle(dbapi_connection: Any) -> bool:
    """Whether an idle connection has something to read, which after a server's end is the end of its stream.

    A connection that listens for notifications may have one waiting, and is called dead as well; its owner takes it
    out of the pool anyway.

    :param dbapi_connection: a psycopg2 or psycopg connection that is not in a statement.
    """
    try:
        file_descriptor = dbapi_connection.fileno()
    except Exception:  # noqa: BLE001  # a closed connection has no file descriptor, and each driver says so in its own way
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([file_descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(file_descriptor, select.POLLIN | select.POLLPRI | getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def sqlstate(error: BaseException) -> str | None:
    """The server's five-letter code for an error of a driver, or of SQLAlchemy about one.

    psycopg 3 calls it ``sqlstate``, psycopg2 ``pgcode``.
    """
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)


def run_alone(dbapi_connection: Any, statement: str, *, is_question: bool = False) -> Any:
    """Run what a server refuses in a transaction, or what needs none, on a connection that is in none.

    :param dbapi_connection: a psycopg2 or psycopg connection.
    :param is_question: whether there is an answer.
    :return: the answer's first value, None without one.
    """
    was_automatic = dbapi_connection.autocommit
    dbapi_connection.autocommit = True
    try:
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if is_question else None
    finally:
        if not dbapi_connection.closed:
            dbapi_connection.autocommit = was_automatic


def run_after_prepare(driver: str, dbapi_connection: Any, statement: str) -> None:
    """Run what a server refuses in a transaction, right after PREPARE TRANSACTION has taken that away.

    :param driver: SQLAlchemy's name of the driver.
    """
    if driver != "psycopg2":
        run_alone(dbapi_connection, statement)
        return
    with closing(dbapi_connection.cursor()) as cursor:  # for psycopg2 the transaction goes on, so it sends no BEGIN
        cursor.execute(statement)
        cursor.execute("BEGIN")  # what it believes, so that its ROLLBACK has something to roll back
