"""How answers are read on psycopg 3: as psycopg's own generators do it, but seldom giving up the interpreter's lock.

psycopg's give it up three times for each result, and again for what ends the results of a command. Each time another
thread may be woken, which costs both of them more than what there is to read. The methods of its ``pgconn`` that take
a result, or read the socket, keep it: they wait for nothing where the result is known to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def execute(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Send a command that is in libpq's hands, and return its results."""
    yield from send(pgconn)
    results = yield from fetch_many(pgconn)
    hand_on_notifications(pgconn)
    return results


def send(pgconn: PGconn) -> PQGen[None]:
    """Send what is in libpq's hands, and wait until something comes back."""
    if pgconn.flush():
        # It may have read an answer while it waited to send: to wait again might be for ever.
        yield from generators.send(pgconn)
        return
    while not (yield READABLE):
        pass
    pgconn.consume_input()


def fetch_many(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Return the next results, those of one command.

    :raises psycopg.OperationalError: if the connection is lost, and none of the results says why.
    """
    results: list[PGresult] = []
    try:
        while True:
            while pgconn.is_busy():
                while not (yield READABLE):
                    pass
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                break
            results.append(result)
            if result.status in ENDLESS:
                break
            if pgconn.pipeline_status:
                # A command has one result there; what ends it is libpq's own, and not waited for.
                pgconn.get_result()
                break
    except errors.DatabaseError:
        if all(result.status != FATAL_ERROR for result in results):
            raise
    return results


def hand_on_notifications(pgconn: PGconn) -> None:
    """Give what LISTEN has heard to psycopg, as it does after each result."""
    while notification := pgconn.notifies():
        if pgconn.notify_handler:
            pgconn.notify_handler(notification)
