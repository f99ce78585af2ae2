"""libpq past psycopg 3, for riding above all: without giving up the interpreter's lock where nothing is waited for.

psycopg gives it up for each command that it hands to libpq, three times for each result that it takes, and again for
the end of a command's results. Each time another thread may be woken, which costs both of them more than what is done
meanwhile. So libpq's functions are called here as psycopg's manual tells, with the ``pgconn_ptr``, and the lock is
given up in the one place where a thread waits, psycopg's own. Where psycopg's implementation is the one in Python, or
its libpq is not found, the methods of its ``pgconn`` do the same.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_char_p, c_int, c_void_p
from typing import TYPE_CHECKING, Any

from psycopg import errors, generators, pq
from psycopg.waiting import Wait

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

READABLE = Wait.R
# Plain numbers: comparing members of an enumeration takes longer.
FATAL_ERROR = int(pq.ExecStatus.FATAL_ERROR)
# A Sync has no end; COPY has none before its data.
ENDLESS = frozenset(
    int(status)
    for status in (
        pq.ExecStatus.PIPELINE_SYNC,
        pq.ExecStatus.COPY_IN,
        pq.ExecStatus.COPY_OUT,
        pq.ExecStatus.COPY_BOTH,
    )
)


class _Notification(ctypes.Structure):
    """libpq's ``PGnotify``."""

    _fields_ = (("relname", c_char_p), ("be_pid", c_int), ("extra", c_char_p), ("next", c_void_p))


def _load() -> ctypes.PyDLL | None:
    """The libpq that psycopg's module in C has loaded, whose functions are found through that module.

    :return: None where it cannot be told which one that is.
    """
    try:
        libpq = ctypes.PyDLL(sys.modules[pq.PGconn.__module__].__file__)
        libpq.PQisBusy.argtypes = [c_void_p]
        libpq.PQnotifies.argtypes = [c_void_p]
        libpq.PQnotifies.restype = ctypes.POINTER(_Notification)
        libpq.PQfreemem.argtypes = [c_void_p]
        libpq.PQsendQuery.argtypes = [c_void_p, c_char_p]
        libpq.PQsendQueryParams.argtypes = [c_void_p, c_char_p, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_int]
        return libpq if libpq.PQlibVersion() == pq.version() else None
    except (AttributeError, OSError, TypeError):
        return None


_libpq = _load()


def send_query(pgconn: Any, command: bytes) -> None:
    """Hand a command without parameters to libpq, outside of a pipeline.

    :raises psycopg.OperationalError: if libpq does not take it.
    """
    if _libpq is None:
        pgconn.send_query(command)
    elif not _libpq.PQsendQuery(pgconn.pgconn_ptr, command):
        raise _not_taken(pgconn)


def queue_query(pgconn: Any, command: bytes) -> None:
    """Hand a command without parameters to libpq, in a pipeline.

    :raises psycopg.OperationalError: if libpq does not take it.
    """
    if _libpq is None:
        pgconn.send_query_params(command, None)
    elif not _libpq.PQsendQueryParams(pgconn.pgconn_ptr, command, 0, None, None, None, None, 0):
        raise _not_taken(pgconn)


def sync(pgconn: PGconn) -> None:
    """End what is sent together in a pipeline.

    :raises psycopg.OperationalError: if libpq does not take it; psycopg's own names a reason of its own.
    """
    try:
        pgconn.pipeline_sync()
    except errors.OperationalError as error:
        raise _not_taken(pgconn) from error


def _not_taken(pgconn: Any) -> errors.OperationalError:
    return errors.OperationalError(f"sending a command failed: {pgconn.get_error_message()}")


def execute(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Send a command that libpq has taken, and return its results."""
    yield from send(pgconn)
    results = yield from fetch_many(pgconn)
    hand_on_notifications(pgconn)
    return results


def send(pgconn: PGconn) -> PQGen[None]:
    """Send what libpq has taken, and wait until something comes back, unless that was read before."""
    if pgconn.flush():
        yield from generators.send(pgconn)
    elif _is_busy(pgconn):
        while not (yield READABLE):
            pass
        pgconn.consume_input()


def fetch_many(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Return the next results, those of one command.

    :raises psycopg.OperationalError: if the connection is lost or closed, and none of the results says why.
    """
    results: list[PGresult] = []
    try:
        while True:
            # What one read has not brought may be large: psycopg lets other threads run while it reads that.
            result = (yield from generators.fetch(pgconn)) if _is_busy(pgconn) else pgconn.get_result()
            if result is None:
                break
            results.append(result)
            # In a pipeline a command has one result. What ends it is then libpq's own, and not waited for.
            if result.status in ENDLESS or (pgconn.pipeline_status and pgconn.get_result() is None):
                break
    except errors.DatabaseError:
        if all(result.status != FATAL_ERROR for result in results):
            raise
    if not results:
        raise errors.OperationalError("got no result: the connection is closed")
    return results


def _is_busy(pgconn: Any) -> bool:
    # Nothing comes between the pointer and the call: another thread may close the connection.
    return bool(pgconn.is_busy() if _libpq is None else _libpq.PQisBusy(pgconn.pgconn_ptr))


def hand_on_notifications(pgconn: PGconn) -> None:
    """Give what LISTEN has heard to psycopg, as it does after each result."""
    while notification := _next_notification(pgconn):
        if pgconn.notify_handler:
            pgconn.notify_handler(notification)


def _next_notification(pgconn: Any) -> pq.misc.PGnotify | None:
    if _libpq is None:
        notification: pq.misc.PGnotify | None = pgconn.notifies()
        return notification
    pointer = _libpq.PQnotifies(pgconn.pgconn_ptr)
    if not pointer:
        return None
    heard = pointer.contents
    notification = pq.misc.PGnotify(heard.relname, heard.be_pid, heard.extra)
    _libpq.PQfreemem(pointer)
    return notification
