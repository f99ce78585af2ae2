"""What somebody should look at, found in a snapshot: a pure function of what was seen.

Who holds a connection is told once, with the worst that can be said of it. What each kind means and what to do about it
is left to the explanations.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

from ._explanations import EXPLANATIONS
from ._holders import Holder, holders
from ._values import DatabaseSnapshot, PoolSnapshot, Snapshot, State, Trouble
from ._wording import counted, duration

NEARLY_FULL = 0.9
# Whoever waits for a lock or a connection for less is a part of everyday life, and so is a failed statement whose
# savepoint is about to be rolled back.
GRACE_S = 0.1
# Between PREPARE and COMMIT PREPARED lie milliseconds, or the outage of another server.
PREPARED_S = 5.0

_KINDS: t.Final = tuple(EXPLANATIONS)


def find_troubles(snapshot: Snapshot, *, max_idle_seconds: float, max_unit_seconds: float) -> tuple[Trouble, ...]:
    """Find what somebody should look at, the worst first: what holds others up, then by kind, then by age.

    :param snapshot: the snapshot, with all of its sessions.
    :param max_idle_seconds: how long a transaction may do nothing.
    :param max_unit_seconds: how long a unit may take.
    """
    limits = (max_idle_seconds, max_unit_seconds)
    found = [trouble for holder in holders(snapshot) if (trouble := _of_holder(holder, snapshot, *limits))]
    for pool in known_pools(snapshot):
        found += _of_pool(pool, _longest_wait(pool, snapshot))
    for database in snapshot.databases:
        found += _of_prepared(database)
    found += _of_counts(snapshot)
    return tuple(sorted(found, key=_rank))


def known_pools(snapshot: Snapshot) -> tuple[PoolSnapshot, ...]:
    """Give the pools of all workers, or of this process where none tells of itself.

    :param snapshot: the snapshot.
    """
    if snapshot.workers:
        return tuple(pool for worker in snapshot.workers for pool in worker.pools)
    return tuple(pool for database in snapshot.databases for pool in database.pools)


def live_leaks(snapshot: Snapshot) -> tuple[Holder, ...]:
    """Give those who hold a connection that has outlived its context.

    :param snapshot: the snapshot.
    """
    return tuple(holder for holder in holders(snapshot) if holder.is_leaked)


def _rank(trouble: Trouble) -> tuple[bool, int, float]:
    return not trouble.holds_up, _KINDS.index(trouble.kind), -(trouble.seconds or 0.0)


def _of_holder(holder: Holder, snapshot: Snapshot, max_idle_s: float, max_unit_s: float) -> Trouble | None:
    """Tell the worst of a holder, if there is anything to tell."""
    if holder.is_leaked:
        return _trouble("leaked-connection", holder, "has left a connection behind", holder.seconds)
    if _exceeds(holder.aborted_seconds, GRACE_S):
        return _trouble("aborted-transaction", holder, "sits in a failed transaction", holder.aborted_seconds)
    if _exceeds(holder.blocked_seconds, GRACE_S):
        return _trouble("blocked", holder, f"waits for {_blockers(holder, snapshot)}", holder.blocked_seconds)
    if holder.is_waiting and _exceeds(holder.state_seconds, GRACE_S):
        what = f"waits for a connection{' while it holds one' if holder.backend_pids else ''}"
        return _trouble("waiting-for-connection", holder, what, holder.state_seconds)
    if holder.is_orphan:
        what = f"is known to no living worker, and {holder.state}"
        return _trouble("orphan", holder, what, holder.state_seconds)
    if _exceeds(holder.idle_seconds, max_idle_s):
        return _trouble("idle-in-transaction", holder, "is idle in its transaction", holder.idle_seconds)
    if holder.is_unit and _exceeds(holder.seconds, max_unit_s):
        return _trouble("long-unit", holder, f"has not ended ({holder.state} now)", holder.seconds)
    return None


def _exceeds(seconds: float | None, limit_s: float) -> bool:
    return seconds is not None and seconds > limit_s


def _trouble(kind: str, holder: Holder, what: str, seconds: float | None) -> Trouble:
    age = "" if seconds is None else f" for {duration(seconds)}"
    held_up = f"; {counted(holder.holds_up, 'other waits', 'others wait')} for its locks" if holder.holds_up else ""
    place = f": {holder.place}" if holder.place else ""
    return Trouble(
        kind=kind,
        text=f"{holder.name} {what}{age}{held_up}{place}",
        label=holder.label,
        where=holder.where,
        seconds=seconds,
        worker_pid=holder.worker_pid,
        backend_pid=next(iter(holder.backend_pids), None),
        view=holder.view,
        holds_up=holder.holds_up,
    )


def _blockers(holder: Holder, snapshot: Snapshot) -> str:
    strangers = {
        f"pid {session.pid}": f"session {session.pid} ({session.application_name or 'no name'}, role {session.user}), "
        f"which is not of this app and {session.state},"
        for database in snapshot.databases
        for session in database.blockers
    }
    names = " and ".join(strangers.get(name, name) for name in holder.waits_for)
    return f"{names} in its own thread, that is for itself," if holder.waits_for_itself else names


def _longest_wait(pool: PoolSnapshot, snapshot: Snapshot) -> float | None:
    """For how long somebody has waited for a pool's connection until now; None where it may be for another pool's."""
    for worker in snapshot.workers:
        if worker.pid == pool.process_pid and sum(bool(each.waiting) for each in worker.pools) == 1:
            return max((unit.state_seconds for unit in worker.live if unit.state == State.WAITING), default=None)
    return None


def _of_pool(pool: PoolSnapshot, longest_wait_s: float | None) -> Iterator[Trouble]:
    usage, waiting, worker = pool.usage or 0.0, pool.waiting or 0, pool.process_pid
    name = f"pool {pool.bind} of worker {worker}"
    waiters = f", and {counted(waiting, 'thread waits', 'threads wait')} for one" if waiting else ""
    # A pool for one is full whenever it is used.
    if usage >= 1 and (waiting or pool.limit != 1):
        text = f"{name} has all of its {counted(pool.limit or 0, 'connection')} in use{waiters}"
        yield Trouble("pool-exhausted", text, seconds=longest_wait_s if waiting else None, worker_pid=worker)
    elif NEARLY_FULL <= usage < 1:
        text = f"{name} has {pool.checked_out} of its {pool.limit} connections in use{waiters}"
        yield Trouble("pool-nearly-full", text, worker_pid=worker)
    if pool.timeouts:
        times = counted(pool.timeouts, "time")
        text = f"{name} was waited for in vain {times} since its worker was started"
        yield Trouble("pool-timeouts", text, worker_pid=worker)


def _of_prepared(database: DatabaseSnapshot) -> Iterator[Trouble]:
    for each in database.prepared:
        if each.age_seconds is not None and each.age_seconds <= PREPARED_S:
            continue
        what = f"end it with {each.command}" if each.command else f"bind {each.decided_by!r} has not decided"
        age = f" for {duration(each.age_seconds)}" if each.age_seconds is not None else ""
        text = f"a part of a unit lies prepared in {', '.join(database.binds)}{age}: {what}"
        yield Trouble("left-prepared", text, seconds=each.age_seconds)


def _of_counts(snapshot: Snapshot) -> Iterator[Trouble]:
    live = sum(unit.state == State.LEAKED for worker in snapshot.workers for unit in worker.live)
    ended = snapshot.totals.sessions.leaked - live
    if ended > 0:
        who = counted(ended, "session or connection has outlived its", "sessions or connections have outlived their")
        beside = ", beside those that are told of here" if live else ""
        yield Trouble("leaked-sessions", f"{who} context since the start{beside}")
    for worker in snapshot.workers:
        untold = ", ".join(f"{count:,} {what}" for what, count in worker.untold.items() if count)
        if untold:
            text = f"worker {worker.pid} has no room on its board for {untold}: they are not shown"
            yield Trouble("untold", text, worker_pid=worker.pid)
