"""What a connection pool of this process says of itself."""

from __future__ import annotations

import os

from sqlalchemy import Pool, QueuePool

from .._pool import class_name
from ._values import PoolSnapshot


def pool_snapshot(bind: str, pool: Pool) -> PoolSnapshot:
    """Read a pool's counters, if it has any: of SQLAlchemy's pools, the queues have.

    :param bind: the name of the engine that the pool belongs to.
    :param pool: the pool.
    """
    if not isinstance(pool, QueuePool):
        return PoolSnapshot(bind=bind, class_name=class_name(pool), process_pid=os.getpid())
    return PoolSnapshot(
        bind=bind,
        class_name=class_name(pool),
        process_pid=os.getpid(),
        size=pool.size(),
        checked_out=pool.checkedout(),
        checked_in=pool.checkedin(),
        # SQLAlchemy counts from minus the size upwards until the pool has filled.
        overflow=max(0, pool.overflow()),
        # There is no public way to ask.
        max_overflow=pool._max_overflow,
        timeout_seconds=float(pool.timeout()),
    )
