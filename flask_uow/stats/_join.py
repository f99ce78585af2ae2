"""Put together what the servers and the workers say: which unit holds which session, and which waits for which.

A server knows its processes, not the views; a worker knows its units, and the number of the server's process behind
each of its connections. Where the two meet, each gets the other's word. What lies between them may hide one from the
other: a pooler has numbers of its own, and the workers of other hosts are not to be seen from here. That is said, and
nothing is guessed. A session that no worker here speaks of keeps the label that its server was told.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection, Iterable, Iterator

from .._application_name import is_of_another_host
from .._board import started_s
from ._values import IDLE, DatabaseSnapshot, LiveUnit, ServerSession, State, Worker, group_rank, last_holder
from ._wording import counted


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the workers of this host.

    :param workers: those that live.
    :param later: the same, read after the databases: a connection that was made meanwhile is no orphan.
    :param is_complete: whether all workers of this host's user could be read.
    :param processes: those of the servers that have been asked.
    """

    workers: tuple[Worker, ...]
    later: tuple[Worker, ...]
    is_complete: bool
    processes: frozenset[int] = frozenset()

    def is_known(self, session: ServerSession) -> bool:
        """Whether a worker has the connection to a session."""
        return any(
            session.pid in worker.backend_pids and session.worker_pid in (None, worker.pid)
            for worker in (*self.workers, *self.later)
        )

    def find(self, session: ServerSession, binds: Collection[str]) -> tuple[LiveUnit, LiveUnit] | None:
        """The outermost and the innermost unit, or whatever else, that hold a session.

        :param binds: those of its database; a worker has the same number twice where it has two servers.
        """
        holders = [
            (stack[0], live)
            for worker in self.workers
            if session.worker_pid in (None, worker.pid)
            for stack in worker.stacks
            for live in stack
            if session.pid in live.backend_pids
        ]
        return last_holder(holders, session.pid, binds) if holders else None

    def is_behind_pooler(self, pid: int, sessions: Iterable[ServerSession]) -> bool:
        """Whether a worker's connections end at something that is not the server.

        :param pid: the worker's.
        :param sessions: all that the server has of the app.
        """
        own = {number for worker in self._own(pid) for number in worker.backend_pids}
        known = self.processes.union(session.pid for session in sessions)  # it may have connections to others as well
        return self._is_told(pid) and bool(own) and own.isdisjoint(known)

    def is_lost(self, session: ServerSession, database: DatabaseSnapshot) -> bool:
        """Whether a session came from this host, and nobody who can be read here knows it any more."""
        pid = session.worker_pid
        if pid is None or session.is_hidden or self.is_known(session):
            return False
        if database.is_pooled or _is_elsewhere(session, database):
            return False
        if self._own(pid):
            return self._is_told(pid) and not self.is_behind_pooler(pid, database.sessions)
        return not _has_process(pid, session.connected_seconds) and not self._is_poolers(session, database)

    def _is_poolers(self, session: ServerSession, database: DatabaseSnapshot) -> bool:
        """Whether a session at rest may be a pooler's, which keeps it for whoever comes next."""
        return session.state == IDLE and any(
            self.is_behind_pooler(worker.pid, database.sessions) for worker in self.workers
        )

    def is_silent(self, session: ServerSession, database: DatabaseSnapshot) -> bool:
        """Whether a session's process runs here, and nothing is found that it publishes."""
        pid = session.worker_pid
        if pid is None or database.is_pooled or _is_elsewhere(session, database):
            return False
        return not self._own(pid) and _has_process(pid, session.connected_seconds)

    def _is_told(self, pid: int) -> bool:
        """Whether all connections of a worker are known here."""
        return all(worker.tells_connections for worker in self._own(pid))

    def _own(self, pid: int) -> list[Worker]:
        return [worker for worker in (*self.workers, *self.later) if worker.pid == pid]


def with_units(database: DatabaseSnapshot, known: Known) -> DatabaseSnapshot:
    """Say of each session which unit holds it, and by name for whom it waits."""
    everybody = (*database.sessions, *database.blockers)
    held = {session.pid: _held(session, known, database.shown_binds) for session in everybody}
    labels = {pid: session.unit for pid, session in held.items() if session.unit is not None}
    sessions = tuple(_placed(held[session.pid], known, labels, database) for session in database.sessions)
    blockers = tuple(_placed(held[session.pid], known, labels, database) for session in database.blockers)
    placed = dataclasses.replace(database, sessions=sessions, blockers=blockers)
    return dataclasses.replace(placed, notes=(*database.notes, *_notes(placed, known)))


def _held(session: ServerSession, known: Known, binds: Collection[str]) -> ServerSession:
    """Say what holds a session: a worker's word is better than what its server was told."""
    found = known.find(session, binds)
    if found is None:
        return session
    outermost, holder = found
    return dataclasses.replace(
        session, unit=holder.label, view=outermost.label, where=holder.where, is_told_by_server=False
    )


def _placed(session: ServerSession, known: Known, labels: dict[int, str], database: DatabaseSnapshot) -> ServerSession:
    is_lost = known.is_lost(session, database)
    return dataclasses.replace(
        session,
        waits_for=tuple(_name(pid, labels) for pid in session.blocked_by),
        is_orphan=is_lost and known.is_complete,
        may_be_orphan=is_lost and not known.is_complete,
    )


def _name(pid: int, labels: dict[int, str]) -> str:
    if pid == 0:
        return "a prepared transaction"
    return labels.get(pid, f"pid {pid}")


def _notes(database: DatabaseSnapshot, known: Known) -> Iterator[str]:
    hidden = sum(session.is_hidden for session in (*database.sessions, *database.blockers))
    if hidden:
        yield f"What {hidden} of the sessions do is hidden from the role that asked: grant it pg_read_all_stats."
    workers = {session.worker_pid for session in database.sessions if session.worker_pid is not None}
    pooled = sorted(pid for pid in workers if known.is_behind_pooler(pid, database.sessions))
    if pooled or database.is_pooled:
        unknown = f"connections of worker {', '.join(map(str, pooled))}" if pooled else "connection that asked it"
        yield (
            f"The server does not know the {unknown}: a pooler such as PgBouncer lies between. Sessions are matched "
            "with workers by name there, not with units, and none of them is called an orphan."
        )
    silent = sorted({str(each.worker_pid) for each in database.sessions if known.is_silent(each, database)})
    if silent and known.is_complete:  # else it is said already what cannot be read
        yield (
            f"No board of worker {', '.join(silent)} is found, and the process lives: its file was removed, "
            "or it publishes in another UOW_STATS_DIR or as another user. A restart makes a new file."
        )
    unsure = sum(session.may_be_orphan for session in database.sessions)
    if unsure:
        who = counted(unsure, "session is an orphan", "sessions are orphans")
        yield f"Whether {who} cannot be told: not all workers of this host can be read."
    elsewhere = sum(
        session.worker_pid is not None and _is_elsewhere(session, database) and not known.is_known(session)
        for session in database.sessions
    )
    if elsewhere:
        yield f"{elsewhere} of the sessions come from other hosts, whose workers are not to be seen from here."


def _is_elsewhere(session: ServerSession, database: DatabaseSnapshot) -> bool:
    """Whether a session came from another host, or a container; several may be behind one address."""
    if is_of_another_host(session.application_name):
        return True
    return not session.is_hidden and session.client_address not in (database.client_address, *database.other_addresses)


def with_servers(workers: Iterable[Worker], databases: Iterable[DatabaseSnapshot]) -> tuple[Worker, ...]:
    """Say of each live unit what its server says of it."""
    sessions = [(session, database.shown_binds) for database in databases for session in database.sessions]
    return tuple(
        dataclasses.replace(worker, live=tuple(_seen(live, worker, sessions) for live in worker.live))
        for worker in workers
    )


def _seen(live: LiveUnit, worker: Worker, sessions: Iterable[tuple[ServerSession, Collection[str]]]) -> LiveUnit:
    found = [
        (session, live.has(session.pid, binds))
        for session, binds in sessions
        if session.pid in live.backend_pids and session.worker_pid in (None, worker.pid)
    ]
    sure = {session.pid for session, is_sure in found if is_sure}
    own = [session for session, is_sure in found if is_sure or session.pid not in sure]
    if not own:
        return live
    waits_for = tuple(dict.fromkeys(name for session in own for name in session.waits_for))
    server_state = min((session.state for session in own), key=group_rank)
    seen = dataclasses.replace(live, waits_for=waits_for, server_state=server_state)
    return _told_by_server(seen, own)


def _told_by_server(live: LiveUnit, own: Iterable[ServerSession]) -> LiveUnit:
    """Take the server's word for what passed SQLAlchemy by: COPY, a later FETCH and the driver's own cursor."""
    if live.state not in (State.IDLE, State.NO_TRANSACTION):
        return live
    running = [session for session in own if session.is_running]
    if running:
        return dataclasses.replace(
            live, state=State.RUNNING, state_seconds=_longest(running), server_state=running[0].state
        )
    idle = [session for session in own if session.is_idle_in_transaction]
    if not idle:
        return live
    seconds = _longest(idle)
    if live.state == State.IDLE:  # what has passed by has ended since
        seconds = min(seconds, live.state_seconds)
    return dataclasses.replace(live, state=State.IDLE, state_seconds=seconds)


def _longest(sessions: Iterable[ServerSession]) -> float:
    return max(session.state_age_seconds or 0.0 for session in sessions)


def _has_process(pid: int, seconds: float | None) -> bool:
    """Whether the process that has connected so long ago still runs on this host."""
    return _is_running(pid) and not _is_younger(pid, seconds)


def _is_running(pid: int) -> bool:
    """Whether a process of that number runs on this host, whoever's it is."""
    if not hasattr(os, "geteuid"):
        return True  # asking would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _is_younger(pid: int, seconds: float | None) -> bool:
    """Whether a process is known to have been started later than so long ago: then it has the number of another."""
    if seconds is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return False
    since_s = started_s(pid)
    return since_s is not None and time.clock_gettime(time.CLOCK_BOOTTIME) - since_s < seconds
