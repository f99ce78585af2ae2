"""See the sessions and connections of an app: what its databases, its pools and its units say.

:func:`snapshot` gives it all as frozen values; ``flask db-session-stats`` prints them and adds nothing of its own.
"""

from ._conditions import Condition, parse_seconds
from ._snapshot import snapshot
from ._values import (
    GROUPS,
    VERSION,
    DatabaseSnapshot,
    PoolSnapshot,
    PreparedTransaction,
    ServerSession,
    Snapshot,
    SQLiteDatabase,
    StateCount,
    Summary,
    group_rank,
)

__all__ = [
    "GROUPS",
    "VERSION",
    "Condition",
    "DatabaseSnapshot",
    "PoolSnapshot",
    "PreparedTransaction",
    "SQLiteDatabase",
    "ServerSession",
    "Snapshot",
    "StateCount",
    "Summary",
    "group_rank",
    "parse_seconds",
    "snapshot",
]
