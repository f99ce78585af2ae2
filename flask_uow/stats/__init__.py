"""See the sessions and connections of an app: what its databases, its pools and its units say.

:func:`snapshot` gives it all as frozen values; ``flask db-session-stats`` prints them and adds nothing of its own.
"""

from .._board import BUCKET_BOUNDS_SECONDS
from ._boards import read_boards
from ._conditions import Condition, parse_seconds
from ._snapshot import snapshot
from ._values import (
    GROUPS,
    VERSION,
    Boards,
    Counts,
    DatabaseSnapshot,
    EndedWorkers,
    Histogram,
    LabelCounts,
    LiveUnit,
    PoolSnapshot,
    PreparedTransaction,
    ServerSession,
    SessionCounts,
    Snapshot,
    SQLiteDatabase,
    State,
    StateCount,
    Summary,
    Trouble,
    UnitCounts,
    Worker,
    group_rank,
)

__all__ = [
    "BUCKET_BOUNDS_SECONDS",
    "GROUPS",
    "VERSION",
    "Boards",
    "Condition",
    "Counts",
    "DatabaseSnapshot",
    "EndedWorkers",
    "Histogram",
    "LabelCounts",
    "LiveUnit",
    "PoolSnapshot",
    "PreparedTransaction",
    "SQLiteDatabase",
    "ServerSession",
    "SessionCounts",
    "Snapshot",
    "State",
    "StateCount",
    "Summary",
    "Trouble",
    "UnitCounts",
    "Worker",
    "group_rank",
    "parse_seconds",
    "read_boards",
    "snapshot",
]
