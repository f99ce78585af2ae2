"""Who holds a connection or waits for one: what the workers tell and what the servers say, as one thing.

A live unit, what is inside it, and the server's session behind them are one holder, so that nothing is told twice. A
session that no living worker speaks of is a holder too, by the label that its server was told if there is one. What is
to be thought of it is left to the troubles and to the conditions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ._values import ABORTED, SAID_BY_SERVER, DatabaseSnapshot, LiveUnit, ServerSession, Snapshot, State, last_holder


@dataclasses.dataclass(frozen=True)
class Holder:
    """A stack of live units with its sessions, or a session alone."""

    stack: tuple[LiveUnit, ...]
    """The outermost first; empty for a session alone."""
    sessions: tuple[ServerSession, ...]
    holds_up: int = 0
    """How many sessions wait for a lock of it."""
    thread_pids: frozenset[int] = frozenset()
    """The server's processes behind all that its thread has begun, which does not go on before this does."""

    @property
    def label(self) -> str | None:
        """The label of what is at work."""
        return self.stack[-1].label if self.stack else self.sessions[0].unit

    @property
    def view(self) -> str | None:
        """The label of the outermost unit."""
        return self.stack[0].label if self.stack else self.sessions[0].unit

    @property
    def where(self) -> str | None:
        """The line of what is at work: ``file:line in function``."""
        return self.stack[-1].where if self.stack else self.sessions[0].where

    @property
    def worker_pid(self) -> int | None:
        """The process that it belongs to."""
        return self.stack[0].worker_pid if self.stack else self.sessions[0].worker_pid

    @property
    def backend_pids(self) -> tuple[int, ...]:
        """The server's processes behind it, those of what is at work first."""
        told = [pid for unit in reversed(self.stack) for pid in unit.backend_pids]
        return tuple(dict.fromkeys((*told, *(session.pid for session in self.sessions))))

    @property
    def state(self) -> str:
        """What it does, in a worker's words or its server's."""
        return self.stack[-1].state if self.stack else self.sessions[0].state

    @property
    def seconds(self) -> float | None:
        """How long ago it began."""
        return self.stack[0].seconds if self.stack else self.sessions[0].age_seconds

    @property
    def state_seconds(self) -> float | None:
        """How long it has been in its state."""
        return self.stack[-1].state_seconds if self.stack else self.sessions[0].state_age_seconds

    @property
    def is_leaked(self) -> bool:
        """Whether the context in which its connection was taken has ended."""
        return any(unit.state == State.LEAKED for unit in self.stack)

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a connection."""
        return bool(self.stack) and self.state == State.WAITING

    @property
    def is_unit(self) -> bool:
        """Whether it is a unit of work; of other connections no server is told a label."""
        return self.stack[0].kind == "unit" if self.stack else self.is_told_by_server

    @property
    def is_told_by_server(self) -> bool:
        """Whether no worker here speaks of it, and its label is what its server was told."""
        return not self.stack and self.sessions[0].is_told_by_server

    @property
    def is_orphan(self) -> bool:
        """Whether no living worker knows it, and one should."""
        return not self.stack and self.sessions[0].is_orphan

    @property
    def may_be_orphan(self) -> bool:
        """Whether nobody who can be read knows it, and somebody else may."""
        return not self.stack and self.sessions[0].may_be_orphan

    @property
    def aborted_seconds(self) -> float | None:
        """For how long it has sat in a transaction that has failed."""
        is_told = any(unit.server_state == ABORTED for unit in self.stack)
        told = (unit.state_seconds for unit in self.stack[-1:] if is_told)
        return _longest(*told, *(each.state_age_seconds or 0.0 for each in self.sessions if each.state == ABORTED))

    @property
    def idle_seconds(self) -> float | None:
        """For how long it has done nothing in its transaction, a failed one included."""
        told = (unit.state_seconds for unit in self.stack[-1:] if unit.state == State.IDLE)
        return _longest(*told, *(each.state_age_seconds or 0.0 for each in self.idle_sessions))

    @property
    def idle_sessions(self) -> tuple[ServerSession, ...]:
        """Those of its sessions that do nothing in their transaction, as their server says."""
        return tuple(session for session in self.sessions if session.is_idle_in_transaction)

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The labels of what holds the locks that it waits for; a pid where nobody knows."""
        told = [name for unit in self.stack for name in unit.waits_for]
        return tuple(dict.fromkeys(told or [name for session in self.sessions for name in _waits_for(session)]))

    @property
    def blocked_seconds(self) -> float | None:
        """For how long it has waited for another's lock."""
        if not self.waits_for:
            return None
        ages = [session.group_seconds or 0.0 for session in self.sessions if session.blocked_by]
        return _longest(*ages) if ages else self.state_seconds or 0.0

    @property
    def waits_for_itself(self) -> bool:
        """Whether its own thread has the lock that it waits for: a unit around one that is independent, say."""
        return any(self.thread_pids.intersection(session.blocked_by) for session in self.sessions)

    @property
    def name(self) -> str:
        """Who it is, for a line of text."""
        if self.label is None:
            session = self.sessions[0]
            return f"session {session.pid} ({session.application_name})"
        return self.label if self.view == self.label else f"{self.label} inside {self.view}"

    @property
    def place(self) -> str:
        """Where it is, for a line of text: the line, and what :attr:`name` leaves open of who it is."""
        if self.label is None:
            return self.where or ""
        address = self.sessions[0].client_address if self.is_told_by_server else None
        parts = [
            self.where or (self.is_told_by_server and SAID_BY_SERVER),
            self.worker_pid and f"worker {self.worker_pid}",
            self.backend_pids and f"backend {', '.join(map(str, self.backend_pids))}",
            address and f"from {address}",
        ]
        return ", ".join(part for part in parts if part)


def holders(snapshot: Snapshot) -> tuple[Holder, ...]:
    """Join what the workers of a snapshot tell with what its servers say.

    :param snapshot: the snapshot, with all of its sessions.
    """
    databases = snapshot.databases
    sessions = [session for database in databases for session in database.sessions]
    places = {id(session): number for number, database in enumerate(databases) for session in database.sessions}
    waiters = Counter((places[id(session)], pid) for session in sessions for pid in session.blocked_by)
    stacks = [stack for worker in snapshot.workers for stack in worker.stacks]
    behind = _behind(stacks, databases)
    known = {id(session) for matched in behind.values() for session in matched}
    of_threads = _pids_of_threads(stacks)
    found = [
        Holder(stack, tuple(behind.get(number, ())), thread_pids=frozenset(of_threads[_thread(stack[-1])]))
        for number, stack in enumerate(stacks)
    ]
    found += [Holder((), (session,)) for session in sessions if id(session) not in known]
    return tuple(
        dataclasses.replace(each, holds_up=sum(waiters[who] for who in _waited_for(each, places, len(databases))))
        for each in found
    )


def _pids_of_threads(stacks: Iterable[Sequence[LiveUnit]]) -> Mapping[tuple[int, int], set[int]]:
    found: dict[tuple[int, int], set[int]] = {}
    for stack in stacks:
        for unit in stack:
            found.setdefault(_thread(unit), set()).update(unit.backend_pids)
    return found


def _thread(unit: LiveUnit) -> tuple[int, int]:
    return unit.worker_pid, unit.thread_id


def _behind(
    stacks: Sequence[Sequence[LiveUnit]], databases: Iterable[DatabaseSnapshot]
) -> Mapping[int, list[ServerSession]]:
    """Give the sessions behind each stack, by the stack's number."""
    backends: dict[tuple[int, int | None], list[tuple[int, LiveUnit]]] = {}
    for number, stack in enumerate(stacks):
        for unit in stack:
            for pid in unit.backend_pids:
                for worker_pid in (unit.worker_pid, None):
                    backends.setdefault((pid, worker_pid), []).append((number, unit))
    behind: dict[int, list[ServerSession]] = {}
    for database in databases:
        binds = database.shown_binds
        for session in database.sessions:
            # Two servers may have processes of the same number; then the client's process decides, where it is named,
            # and the bind.
            found = backends.get((session.pid, session.worker_pid), [])
            if found:
                behind.setdefault(last_holder(found, session.pid, binds)[0], []).append(session)
    return behind


def _waited_for(holder: Holder, places: Mapping[int, int], databases: int) -> set[tuple[int, int]]:
    """Give the servers' processes behind it, each with its database's number; with all of them where none has it.

    :param places: the number of each session's database.
    :param databases: how many there are.
    """
    found = {(places[id(session)], session.pid) for session in holder.sessions}
    unseen = set(holder.backend_pids) - {pid for _, pid in found}
    return found | {(number, pid) for pid in unseen for number in range(databases)}


def _waits_for(session: ServerSession) -> tuple[str, ...]:
    return session.waits_for or tuple(f"pid {pid}" if pid else "a prepared transaction" for pid in session.blocked_by)


def _longest(*ages: float) -> float | None:
    return max(ages, default=None)
