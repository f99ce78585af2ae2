"""Boards as workers would publish them, made by hand: each number in them is another one."""

import os
from dataclasses import replace
from datetime import UTC, datetime

from flask_uow.stats import (
    BUCKET_BOUNDS_SECONDS,
    Boards,
    Counts,
    EndedWorkers,
    Histogram,
    LabelCounts,
    LiveUnit,
    PoolSnapshot,
    SessionCounts,
    State,
    UnitCounts,
    Worker,
)

OTHER_PID = os.getpid() + 1


def histogram(*counts: int, total_seconds: float) -> Histogram:
    """Make a histogram from the counts of its first buckets; what took longer than the last bound is the last one."""
    *first, longer = counts
    rest = [0] * (len(BUCKET_BOUNDS_SECONDS) - len(first))
    return Histogram((*first, *rest, longer), total_seconds)


def live(
    kind: str = "unit", *, depth: int = 1, state: str = State.RUNNING, since: float = 0.0, age: float = 0.0
) -> LiveUnit:
    """Make what a worker does now."""
    return LiveUnit(
        kind=kind,
        label="GET /",
        where=None,
        worker_pid=os.getpid(),
        thread="MainThread",
        thread_id=1,
        depth=depth,
        attempt=1,
        state=state,
        state_seconds=since,
        seconds=age,
        statements=0,
    )


COUNTS = Counts(
    units=UnitCounts(begun=100, committed=80, rolled_back=10, failed=5, retried=3),
    sessions=SessionCounts(opened=60, closed=50, leaked=2),
    statements=700,
    rules={"UOW103": 4},
    unit_seconds=histogram(5, 0, 7, 1, total_seconds=90.5),
    held_seconds=histogram(2, 1, total_seconds=61.0),
    idle_seconds=histogram(1, 0, total_seconds=0.0005),
    labels=(
        LabelCounts("transfer", "bank.py:1 in transfer", False, 6, 1, 1.5, 0.5, 12),
        LabelCounts("transfer", "bank.py:9 in transfer", False, 4, 0, 2.5, 0.75, 8),
        LabelCounts("transfer", "bank.py:1 in transfer", True, 3, 2, 0.25, 0.125, 5),
    ),
)

POOL = PoolSnapshot(
    bind="default",
    class_name="QueuePool",
    process_pid=os.getpid(),
    size=5,
    checked_out=7,
    checked_in=0,
    overflow=2,
    max_overflow=10,
    timeout_seconds=5.0,
    waiting=1,
    timeouts=4,
    longest_wait_seconds=3.5,
)

OWN = Worker(
    pid=os.getpid(),
    host="bank",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    counts=COUNTS,
    pools=(POOL,),
    live=(
        # Idle when the savepoint inside it began; what runs now is known to that.
        live(age=9.0, since=35.0, state=State.IDLE),
        live(depth=2, age=8.0, state=State.IDLE, since=34.0),
        live(depth=3, age=7.0, since=1.0),
        live("session", depth=0, age=40.0, since=30.0, state=State.IDLE),
    ),
    untold={"labels": 11},
)

OTHER = Worker(
    pid=OTHER_PID,
    host="bank",
    started_at=datetime(2026, 1, 2, tzinfo=UTC),
    counts=Counts(units=UnitCounts(begun=1000, committed=900), statements=7000, rules={"UOW103": 40, "UOW201": 1}),
    pools=(replace(POOL, process_pid=OTHER_PID, checked_out=1, longest_wait_seconds=1.5),),
    live=(
        live(age=5.0, state=State.IDLE, since=4.0),
        live("connection", depth=0, age=60.0, since=50.0, state=State.HELD),
    ),
)

ENDED = EndedWorkers(workers=2, counts=Counts(units=UnitCounts(begun=10_000, committed=9000), statements=70_000))

BOARDS = Boards((OWN, OTHER), ENDED)
