"""Which errors a unit may be tried again for, and how long to wait before it.

Only what the server itself says was rolled back whole: a serialization failure (40001) or a deadlock (40P01), and
SQLite's refusal of its write lock at BEGIN. A lost connection is not among them, but for what read from a reader.
"""

from __future__ import annotations

import random

from sqlalchemy.exc import DBAPIError

from ._drivers import sqlstate

RETRYABLE_STATES = frozenset({"40001", "40P01"})
BASE_DELAY_S = 0.02
MAX_DELAY_S = 1.0


def is_retryable(error: BaseException) -> bool:
    """Whether a unit that ended in ``error`` may be run once more on a clean session."""
    if sqlstate(error) in RETRYABLE_STATES:
        return True  # SQLAlchemy's error, or the driver's own where its cursor was used
    return (
        isinstance(error, DBAPIError)
        and getattr(error.orig, "sqlite_errorname", None) == "SQLITE_BUSY"
        and error.statement == "BEGIN IMMEDIATE"
    )


def has_lost_connection(error: BaseException) -> bool:
    """Whether ``error`` says that the connection is gone, so that what only reads may be run once more."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def delay_s(attempt: int) -> float:
    """Seconds to wait after a lost attempt: exponential backoff with full jitter.

    :param attempt: the number of the attempt that was lost, from 1.
    """
    return random.uniform(0, min(MAX_DELAY_S, BASE_DELAY_S * 2.0 ** min(attempt - 1, 16)))
