"""What became of a COMMIT whose connection was lost.

The error looks the same whether the server had committed or not. Only the server knows: the transaction's id is
learnt before COMMIT, and a new connection asks ``pg_xact_status`` about it. It is believed if it was running when the
COMMIT was sent. A standby that was promoted since may have lost the transaction, and have given its id to another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import Enum
from typing import Any, NamedTuple

import sqlalchemy as sa

DEADLINE_S = 5.0
POLL_S = 0.02

_STARTED = "CAST(extract(epoch FROM pg_postmaster_start_time()) AS text)"
_LEARN = sa.text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)")
_LEARN_ALL = sa.text(f"SELECT CAST(pg_current_xact_id_if_assigned() AS text), {_STARTED}")
_ASK = f"SELECT {_STARTED}, pg_xact_status(CAST(CAST(%s AS text) AS xid8))"


class Outcome(Enum):
    """What the server says of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


def transaction_id(connection: sa.Connection) -> str | None:
    """The id of a PostgreSQL transaction that wrote, one round trip; None if it wrote nothing."""
    xid: str | None = connection.scalar(_LEARN)
    return xid


class Mark(NamedTuple):
    """What a transaction is found by later.

    :ivar xid: its id.
    :ivar server: when its server was started; another time is another server, or the same one after a restart.
    """

    xid: str
    server: str

    @classmethod
    def of(cls, connection: sa.Connection) -> Mark | None:
        """The mark of a PostgreSQL transaction that wrote, one round trip; None if it wrote nothing."""
        xid, server = connection.execute(_LEARN_ALL).one()
        return None if xid is None else cls(xid, server)


class LostCommit:
    """Called when a COMMIT has lost its connection: learns what became of it, as far as that can be known.

    :param marks: the transaction's mark by engine, None where nothing was written; an engine that is missing cannot
        be asked.
    :ivar outcome: what was learnt; unknown until it was asked for.
    :ivar xid: the id of the lost transaction, if it was learnt.
    """

    def __init__(self, marks: dict[sa.Engine, Mark | None]) -> None:
        self._marks = marks
        self.outcome = Outcome.UNKNOWN
        self.xid: str | None = None

    def __call__(self, engine: sa.Engine) -> bool:
        """Whether the server has committed, or had nothing to commit."""
        if engine in self._marks:
            mark = self._marks[engine]
            self.xid = mark.xid if mark else None
            self.outcome = learn_outcome(engine, mark) if mark else Outcome.COMMITTED
        return self.outcome is Outcome.COMMITTED


def learn_outcome(engine: sa.Engine, mark: Mark) -> Outcome:
    """Ask the server, past a pool that may be dead or dry, until it knows or :data:`DEADLINE_S` is over."""
    end = time.monotonic() + DEADLINE_S
    while True:
        outcome = _ask(engine, mark)
        if outcome is not Outcome.UNKNOWN or time.monotonic() > end:
            return outcome
        time.sleep(POLL_S)


def _ask(engine: sa.Engine, mark: Mark) -> Outcome:
    try:
        with own_connection(engine) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(_ASK, (mark.xid,))
            server, status = cursor.fetchone() or (None, None)
    except (engine.dialect.loaded_dbapi.Error, sa.exc.SQLAlchemyError):
        return Outcome.UNKNOWN
    if server != mark.server:
        return Outcome.UNKNOWN
    return {"committed": Outcome.COMMITTED, "aborted": Outcome.ABORTED}.get(status or "", Outcome.UNKNOWN)


@contextmanager
def own_connection(engine: sa.Engine) -> Iterator[Any]:
    """A new connection, made as the engine makes its own, and not of its pool."""
    fresh = engine.pool.recreate()
    try:
        with closing(fresh.connect()) as connection:
            yield connection
    finally:
        fresh.dispose()
