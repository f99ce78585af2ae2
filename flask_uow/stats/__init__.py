"""See the sessions and connections of an app: what its databases, its pools and its units say.

:func:`snapshot` gives it all as frozen values; ``flask db-session-stats`` prints them and adds nothing of its own.
"""

from .._board import BUCKET_BOUNDS_SECONDS
from ._boards import read_boards
from ._conditions import Condition, condition_forms, parse_seconds
from ._explanations import EXPLANATIONS, Explanation
from ._filters import Filter
from ._snapshot import snapshot
from ._troubles import find_troubles
from ._values import (
    ABORTED,
    BLOCKED,
    GROUPS,
    SAID_BY_SERVER,
    STATES,
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
from ._wording import counted, duration

__all__ = [
    "ABORTED",
    "BLOCKED",
    "BUCKET_BOUNDS_SECONDS",
    "EXPLANATIONS",
    "GROUPS",
    "SAID_BY_SERVER",
    "STATES",
    "VERSION",
    "Boards",
    "Condition",
    "Counts",
    "DatabaseSnapshot",
    "EndedWorkers",
    "Explanation",
    "Filter",
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
    "condition_forms",
    "counted",
    "duration",
    "find_troubles",
    "group_rank",
    "parse_seconds",
    "read_boards",
    "snapshot",
]
