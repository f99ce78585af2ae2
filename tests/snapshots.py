"""Snapshots made by hand, of nights at the bank, that look like those of real workers."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flask_uow import stats
from flask_uow.stats import State

NOW = datetime(2026, 3, 1, 3, 12, 45, tzinfo=UTC)
LONG = "POST /api/v1/organisations/<int:organisation_id>/accounts/<int:account_id>/transfers"
HISTOGRAM = stats.Histogram((5, *[1] * 15), 12.5)
MAX_IDLE_S, MAX_UNIT_S = 1.0, 5.0


def unit(label: str = "POST /transfers", **changes: Any) -> stats.LiveUnit:
    """A live unit that runs SQL, unless changed."""
    running = stats.LiveUnit(
        kind="unit",
        label=label,
        where="bank/counter.py:27 in transfer",
        worker_pid=4711,
        thread="ThreadPoolExecutor-0_0",
        thread_id=471100,
        depth=1,
        attempt=1,
        state=State.RUNNING,
        state_seconds=0.02,
        seconds=0.05,
        statements=3,
        backend_pids=(5101,),
    )
    return replace(running, **changes)


def session(pid: int = 5101, worker_pid: int | None = 4711, **changes: Any) -> stats.ServerSession:
    """A server's session that is idle, unless changed."""
    idle = stats.ServerSession(
        pid=pid,
        application_name=f"flask_uow:bank:{worker_pid}",
        worker_pid=worker_pid,
        user="bank",
        database="bank",
        client_address=None,
        state="idle",
        transaction_age_seconds=None,
        state_age_seconds=12.0,
        wait_event=None,
        query="COMMIT",
        blocked_by=(),
    )
    return replace(idle, **changes)


def label_counts(label: str = "POST /transfers", **changes: Any) -> stats.LabelCounts:
    """What was counted of a label."""
    counts = stats.LabelCounts(label, "bank/counter.py:27 in transfer", False, 1200, 3, 14.4, 0.82, 8400)
    return replace(counts, **changes)


def worker(pid: int = 4711, *live: stats.LiveUnit, **changes: Any) -> stats.Worker:
    """A worker that was started three hours ago."""
    counts = stats.Counts(
        units=stats.UnitCounts(1320, 1290, 24, 6, 4),
        sessions=stats.SessionCounts(1500, 1496, 0),
        statements=9300,
        rules={"UOW109": 7, "UOW110": 2},
        unit_seconds=HISTOGRAM,
        held_seconds=HISTOGRAM,
        idle_seconds=HISTOGRAM,
        labels=(
            label_counts(),
            label_counts("transfer", is_inner=True, count=600, errors=12, total_seconds=1.25, worst_seconds=0.05),
            label_counts(LONG, count=90, errors=0, total_seconds=130.0, worst_seconds=34.2),
        ),
    )
    whole = stats.Worker(
        pid=pid,
        host="teller-1",
        started_at=NOW - timedelta(hours=3),
        counts=counts,
        pools=(pool(process_pid=pid),),
        live=tuple(replace(each, worker_pid=pid) for each in live),
    )
    return replace(whole, **changes)


def pool(**changes: Any) -> stats.PoolSnapshot:
    """A pool of fifteen connections, of which four are in use."""
    some = stats.PoolSnapshot("default", "QueuePool", 4711, 5, 4, 1, 0, 10, 5.0, 0, 0, 0.0)
    return replace(some, **changes)


def database(*sessions: stats.ServerSession, **changes: Any) -> stats.DatabaseSnapshot:
    """A PostgreSQL database with these sessions."""
    whole = stats.DatabaseSnapshot(
        binds=("default",),
        dialect="postgresql",
        driver="psycopg2",
        url="postgresql+psycopg2://bank:***@db.example/bank",
        pools=(pool(process_pid=1, checked_out=0, waiting=None, timeouts=None, longest_wait_seconds=None),),
        server_version="17.2",
        found_by="application_name flask_uow:bank:*",
        sessions=sessions,
        summary=stats.Summary.of(sessions),
    )
    return replace(whole, **changes)


def snapshot(
    *workers: stats.Worker, databases: tuple[stats.DatabaseSnapshot, ...] = (), **changes: Any
) -> stats.Snapshot:
    """A snapshot of these workers and databases, with its troubles and totals."""
    ended = changes.get("ended")
    bare = stats.Snapshot(
        app="bank",
        taken_at=NOW,
        databases=databases,
        workers=workers,
        totals=stats.Boards(workers, ended).totals,
    )
    bare = replace(bare, **changes)
    troubles = stats.find_troubles(bare, max_idle_seconds=MAX_IDLE_S, max_unit_seconds=MAX_UNIT_S)
    return replace(bare, troubles=changes.get("troubles", troubles))


def bad_night() -> stats.Snapshot:
    """One view sleeps inside its unit, others wait for its lock, one holds a leaked connection, a pool runs dry."""
    glasses = unit(
        "POST /withdrawals",
        where="bank/counter.py:58 in withdraw",
        state=State.IDLE,
        state_seconds=34.2,
        seconds=34.3,
        statements=6,
        server_state="idle in transaction",
    )
    waiting = unit(
        thread="ThreadPoolExecutor-0_1",
        thread_id=471101,
        state_seconds=21.7,
        seconds=21.8,
        statements=4,
        backend_pids=(5102,),
        waits_for=("POST /withdrawals",),
        server_state="active",
    )
    inner = replace(waiting, label="transfer", where="bank/services.py:41 in transfer", depth=2, seconds=21.75)
    leaked = unit(
        "engine.connect()",
        kind="connection",
        depth=0,
        thread="Thread-9 (nightly)",
        thread_id=471103,
        where="bank/reports.py:12 in nightly",
        state=State.LEAKED,
        state_seconds=1790.0,
        seconds=1800.0,
        statements=0,
        backend_pids=(5103,),
    )
    dry = unit(
        "GET /accounts/<int:number>",
        thread="ThreadPoolExecutor-0_2",
        thread_id=471202,
        where="bank/pages.py:30 in account",
        state=State.WAITING,
        state_seconds=3.1,
        seconds=3.1,
        statements=0,
        backend_pids=(),
    )
    busy = unit("GET /statement", thread_id=471203, where="bank/pages.py:77 in statement", backend_pids=(5201,))
    sessions = (
        session(
            5101,
            state="idle in transaction",
            state_age_seconds=34.2,
            transaction_age_seconds=34.3,
            query="UPDATE account SET balance_cents = ? WHERE id = ?",
            unit="POST /withdrawals",
            where="bank/counter.py:58 in withdraw",
        ),
        session(
            5102,
            state="active",
            state_age_seconds=21.7,
            transaction_age_seconds=21.8,
            blocked_by=(5101,),
            waits_for=("POST /withdrawals",),
            unit="transfer",
            where="bank/services.py:41 in transfer",
            query="SELECT account.id, account.balance_cents FROM account WHERE account.id = ? FOR UPDATE",
        ),
        session(
            5103,
            state="idle in transaction",
            state_age_seconds=1790.0,
            transaction_age_seconds=1795.0,
            query="SELECT count(*) FROM transfer",
            unit="engine.connect()",
            where="bank/reports.py:12 in nightly",
        ),
        session(
            5201,
            4712,
            state="active",
            state_age_seconds=0.1,
            transaction_age_seconds=0.1,
            query="SELECT * FROM transfer ORDER BY id",
            unit="GET /statement",
        ),
        session(
            4999,
            4600,
            state="idle in transaction",
            state_age_seconds=5400.0,
            transaction_age_seconds=5401.0,
            query="UPDATE branch SET open = ?",
            is_orphan=True,
        ),
        *(session(5110 + number, 4712) for number in range(8)),
    )
    full = pool(process_pid=4712, checked_out=15, overflow=10, waiting=1, timeouts=2, longest_wait_seconds=3.1)
    first = worker(4711, glasses, waiting, inner, leaked)
    leaks = replace(first.counts, sessions=stats.SessionCounts(1500, 1496, 1))
    return snapshot(
        replace(first, counts=leaks),
        worker(4712, dry, busy, pools=(full,)),
        databases=(database(*sessions),),
        ended=stats.EndedWorkers(1, stats.Counts(units=stats.UnitCounts(200, 198, 2, 0, 0), statements=1400)),
    )


def short_night() -> stats.Snapshot:
    """What fits into a picture: one looks for his glasses, one waits for him, one has left by the window."""
    night = bad_night()
    first = replace(night.workers[0], pools=(pool(checked_out=3, overflow=0),))
    second = replace(night.workers[1], live=(), pools=(pool(process_pid=4712, checked_out=1, overflow=0),))
    sessions = [each for each in night.databases[0].sessions if each.worker_pid == 4711]
    return snapshot(first, second, databases=(database(*sessions),))


def evening(number: int) -> stats.Snapshot:
    """One of many snapshots, two seconds apart: customers come and go, and the short night begins in the end."""
    night = short_night() if number >= 48 else snapshot(worker(4711), worker(4712))
    crowd = 40 + 25 * math.sin(number / 7) + 12 * math.sin(number / 2)
    begun = sum(int(80 + 50 * math.sin(each / 7) + 24 * math.sin(each / 2)) for each in range(number))
    units = stats.UnitCounts(begun, begun, number // 9 * 4, 0, 0)
    in_use = int(crowd / 6) + max(0, number - 48) // 2
    first, *others = night.workers
    first = replace(
        first,
        counts=replace(first.counts, units=units),
        pools=(replace(first.pools[0], checked_out=in_use, overflow=max(0, in_use - 5)),),
    )
    return replace(night, workers=(first, *others), taken_at=NOW + timedelta(seconds=2 * number))


def busy_night() -> stats.Snapshot:
    """Eight workers of eight threads each, all of them at work under long labels."""
    workers = []
    for pid in range(4190001, 4190009):
        live = [
            unit(
                LONG if number % 2 else "GET /accounts/<int:number>/statement.csv",
                thread=f"ThreadPoolExecutor-0_{number}",
                thread_id=pid * 10 + number,
                where="organisation/services/accounts/transfers.py:1041 in OrganisationAccounts.transfer_between",
                backend_pids=(pid + 1000 + number,),
                seconds=0.3 * number,
                state_seconds=0.1 * number,
                state=State.IDLE if number == 7 else State.RUNNING,
            )
            for number in range(8)
        ]
        workers.append(worker(pid, *live, pools=(pool(process_pid=pid, checked_out=8, overflow=3),)))
    sessions = [
        session(
            each.backend_pids[0],
            each.worker_pid,
            state="active",
            unit=each.label,
            state_age_seconds=0.1,
            transaction_age_seconds=0.2,
            query="SELECT transfer.id FROM transfer WHERE transfer.account_id = ?",
        )
        for one in workers
        for each in one.live
    ]
    return snapshot(*workers, databases=(database(*sessions),))
