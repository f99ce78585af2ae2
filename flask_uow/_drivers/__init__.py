"""What only the driver knows: the server's transaction status, an error's code, whether a pooled connection is alive.

The answers are free: libpq keeps the status of the last reply, and the socket knows whether its stream has ended. A
driver that this package does not know answers None, and SQLAlchemy's own checks remain.
"""

from __future__ import annotations

import ctypes
import select
import sys
from collections.abc import Callable
from contextlib import closing
from enum import IntEnum
from importlib import import_module
from typing import Any

from .._gevent import poll_at_once


class TransactionStatus(IntEnum):
    """libpq's transaction status of a connection; ``UNKNOWN`` where the driver cannot tell."""

    IDLE = 0
    ACTIVE = 1
    IN_TRANSACTION = 2
    IN_ERROR = 3
    UNKNOWN = 4


LIBPQ_DRIVERS = ("psycopg2", "psycopg")


def _probe_of_psycopg2() -> Callable[[Any], TransactionStatus | None]:
    from psycopg2.extensions import connection

    ask = connection.get_transaction_status  # the driver's own: one whose statements ride says what it will be

    def psycopg2_status(dbapi_connection: Any) -> TransactionStatus | None:
        try:
            return _STATUSES.get(ask(dbapi_connection))
        except TypeError:  # what somebody has put around it
            return _STATUSES.get(dbapi_connection.get_transaction_status())

    return psycopg2_status


def _psycopg(dbapi_connection: Any) -> TransactionStatus | None:
    return _STATUSES.get(dbapi_connection.pgconn.transaction_status)


def _pysqlite(dbapi_connection: Any) -> TransactionStatus:
    return TransactionStatus.IN_TRANSACTION if dbapi_connection.in_transaction else TransactionStatus.IDLE


def _silent(dbapi_connection: Any) -> TransactionStatus:
    return TransactionStatus.UNKNOWN


_STATUSES: dict[object, TransactionStatus] = {status.value: status for status in list(TransactionStatus)[:-1]}
_PROBES: dict[str, Callable[[], Callable[[Any], TransactionStatus | None]]] = {
    "psycopg2": _probe_of_psycopg2,
    "psycopg": lambda: _psycopg,
    "pysqlite": lambda: _pysqlite,
}


def status_probe(driver: str) -> Callable[[Any], TransactionStatus | None]:
    """A function of a driver's connection that tells what its server said last, without asking it again.

    It answers None for a connection that the driver knows to be broken.

    :param driver: SQLAlchemy's name of the driver, ``dialect.driver``; for one that cannot tell, the answer is always
        ``UNKNOWN``.
    """
    return _PROBES.get(driver, lambda: _silent)()


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


def parameter_status(dbapi_connection: Any, name: str) -> str | None:
    """What a server reports of a setting without being asked; None if it reports nothing.

    :param dbapi_connection: a psycopg2 or psycopg connection.
    """
    if hasattr(dbapi_connection, "get_parameter_status"):
        value: str | None = dbapi_connection.get_parameter_status(name)
        return value
    told: bytes | None = dbapi_connection.pgconn.parameter_status(name.encode())
    return None if told is None else told.decode()


def libpq_version(driver: str) -> int:
    """The version of the libpq that a driver has loaded, 160004 for 16.4.

    :param driver: ``"psycopg2"`` or ``"psycopg"``.
    """
    if driver == "psycopg2":
        return int(import_module("psycopg2.extensions").libpq_version())
    return int(import_module("psycopg").pq.version())


def has_ended(dbapi_connection: Any) -> bool:
    """Whether an idle connection is dead, told by its socket: nothing is sent, and nothing waited for.

    A socket with nothing to read lives, as far as its own machine knows. One with something to read is at its end
    mostly, but it may have a notification, a parameter's new value, a notice or a record of TLS's own: these are
    read, and kept where the driver keeps them.

    :param dbapi_connection: a psycopg2 or psycopg connection that is not in a statement.
    """
    try:
        file_descriptor = dbapi_connection.fileno()
    except Exception:  # noqa: BLE001  # a closed connection has no file descriptor, and each driver says so in its own way
        return True
    return _is_readable(file_descriptor, 0) and _ends_with_what_it_reads(dbapi_connection, file_descriptor)


def _ends_with_what_it_reads(dbapi_connection: Any, file_descriptor: int) -> bool:
    for _ in range(_READS):
        try:
            has_notice = _read_waiting(dbapi_connection)
        except Exception:  # noqa: BLE001  # either driver's error for a stream that has ended, or makes no sense
            return True
        if not _is_readable(file_descriptor, _LAST_WORDS_MS if has_notice else 0):
            return False
    return False  # a listener whose notifications come faster than they are read


_READS = 10
_LAST_WORDS_MS = 100
"""How long the end may take that follows a server's last words; libpq hands these on as a notice like any other."""


def _systems_poll() -> Callable[[Any, int, int], int] | None:
    """The system's ``poll``, called without a release of the interpreter's lock.

    To get that back can take a busy process of many threads milliseconds, and a question that waits for nothing would
    pay them at every checkout. None where the system has no such function.
    """
    try:
        return ctypes.PyDLL(None).poll if sys.byteorder == "little" else None
    except (AttributeError, OSError, TypeError):
        return None


_poll = _systems_poll()
_POLL_FOR_INPUT = select.POLLIN << 32 if hasattr(select, "POLLIN") else 0
"""With a file descriptor in its lower half, the ``struct pollfd`` that asks whether that has something to read."""


def _is_readable(file_descriptor: int, wait_ms: int) -> bool:
    """Whether a socket has something to read, an end or an error included."""
    if not wait_ms and _poll is not None:
        return _poll(ctypes.byref(ctypes.c_uint64(file_descriptor | _POLL_FOR_INPUT)), 1, 0) > 0
    if not hasattr(select, "poll"):
        return bool(select.select([file_descriptor], [], [], wait_ms / 1000)[0])
    poll = select.poll() if wait_ms else poll_at_once()
    poll.register(file_descriptor, select.POLLIN)
    return bool(poll.poll(wait_ms))


def _read_waiting(dbapi_connection: Any) -> bool:
    """Let libpq read what has come, and return whether a notice was in it.

    :raises Exception: the driver's own error, if the stream has ended.
    """
    if hasattr(dbapi_connection, "pgconn"):
        return _read_waiting_psycopg(dbapi_connection)
    notices: list[Any] = []
    kept, dbapi_connection.notices = dbapi_connection.notices, notices
    try:
        dbapi_connection.poll()
    finally:
        dbapi_connection.notices = kept
    for notice in notices:
        kept.append(notice)
    return bool(notices)


def _read_waiting_psycopg(dbapi_connection: Any) -> bool:
    from ._libpq import hand_on_notifications

    notices: list[Any] = []
    dbapi_connection.add_notice_handler(notices.append)
    pgconn = dbapi_connection.pgconn
    try:
        pgconn.consume_input()
        pgconn.is_busy()  # which looks at what was read
    finally:
        dbapi_connection.remove_notice_handler(notices.append)
    hand_on_notifications(pgconn)
    return bool(notices)


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
            if is_question and hasattr(dbapi_connection, "riders"):
                dbapi_connection.riders.harmless_query = statement  # nor the leave to write
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
