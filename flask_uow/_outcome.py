"""What became of a COMMIT whose connection was lost.

The error looks the same whether the server had committed or not. Only the server knows: the transaction's id is
learnt before COMMIT, and a new connection asks ``pg_xact_status`` about it.
"""

from __future__ import annotations

import time
from contextlib import closing
from enum import Enum

import sqlalchemy as sa

DEADLINE_S = 5.0
POLL_S = 0.02

_LEARN = sa.text("SELECT pg_current_xact_id_if_assigned()::text")
_ASK = "SELECT pg_xact_status(CAST(CAST(%s AS text) AS xid8))"


class Outcome(Enum):
    """What the server says of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


def transaction_id(connection: sa.Connection) -> str | None:
    """The id of a PostgreSQL transaction that wrote, one round trip; None if it wrote nothing, or elsewhere."""
    if connection.dialect.name != "postgresql":
        return None
    xid: str | None = connection.scalar(_LEARN)
    return xid


class LostCommit:
    """Called when a COMMIT has lost its connection: learns what became of it, as far as that can be known.

    :param xids: the transaction's id by engine, None where nothing was written; an engine that is missing cannot be
        asked.
    :ivar outcome: what was learnt; unknown until it was asked for.
    :ivar xid: the id of the lost transaction, if it was learnt.
    """

    def __init__(self, xids: dict[sa.Engine, str | None]) -> None:
        self._xids = xids
        self.outcome = Outcome.UNKNOWN
        self.xid: str | None = None

    def __call__(self, engine: sa.Engine) -> bool:
        """Whether the server has committed, or had nothing to commit."""
        if engine in self._xids:
            self.xid = self._xids[engine]
            self.outcome = Outcome.COMMITTED if self.xid is None else learn_outcome(engine, self.xid)
        return self.outcome is Outcome.COMMITTED


def learn_outcome(engine: sa.Engine, xid: str) -> Outcome:
    """Ask the server, past a pool that may be dead or dry, until it knows or :data:`DEADLINE_S` is over."""
    end = time.monotonic() + DEADLINE_S
    while True:
        outcome = _ask(engine, xid)
        if outcome is not Outcome.UNKNOWN or time.monotonic() > end:
            return outcome
        time.sleep(POLL_S)


def _ask(engine: sa.Engine, xid: str) -> Outcome:
    fresh = engine.pool.recreate()
    try:
        with closing(fresh.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(_ASK, (xid,))
            (status,) = cursor.fetchone() or (None,)
    except (engine.dialect.loaded_dbapi.Error, sa.exc.SQLAlchemyError):
        return Outcome.UNKNOWN
    finally:
        fresh.dispose()
    return {"committed": Outcome.COMMITTED, "aborted": Outcome.ABORTED}.get(status or "", Outcome.UNKNOWN)
