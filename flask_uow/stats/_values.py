"""What a snapshot consists of: frozen values, complete in themselves, without a live connection behind them.

A :class:`Snapshot` holds databases; each database holds what its server says of the app's sessions and what the pools
say that lead to it. A value that nobody can know is None, never a number that looks like one.

How the values come about is left to the modules beside this one, how they look to the command.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Collection, Iterable
from datetime import datetime

VERSION = 1
"""The version of the document that :meth:`Snapshot.as_dict` gives. It grows when a key changes its meaning or goes."""

ABORTED = "idle in transaction (aborted)"
IDLE_IN_TRANSACTION = "idle in transaction"
BLOCKED = "blocked"
ACTIVE = "active"
HIDDEN = "hidden"

GROUPS: t.Final = (
    ABORTED,
    IDLE_IN_TRANSACTION,
    BLOCKED,
    ACTIVE,
    "fastpath function call",
    "starting",
    "idle",
    "disabled",
    HIDDEN,
)
"""The groups that sessions are shown in, trouble first: PostgreSQL's own states, ``blocked`` and ``hidden``."""


@dataclasses.dataclass(frozen=True)
class ServerSession:
    """One session as the database server sees it."""

    pid: int
    """The server's process, also called the backend."""
    application_name: str
    worker_pid: int | None
    """The client's process, where :mod:`flask_uow` named the connection."""
    user: str | None
    database: str | None
    client_address: str | None
    state: str
    """The server's word for it, or ``hidden`` where the role that asked may not see it."""
    transaction_age_seconds: float | None
    """None outside of a transaction, and for an aborted one: the server forgets when it began."""
    state_age_seconds: float | None
    wait_event: str | None
    query: str | None
    """The first line of the current or latest statement; string literals are replaced by ``'?'``."""
    blocked_by: tuple[int, ...]
    """The server's pids that this session waits for; 0 is a prepared transaction, which has no process."""

    @property
    def is_hidden(self) -> bool:
        """Whether the role that asked may not see what the session does."""
        return self.state == HIDDEN

    @property
    def is_idle_in_transaction(self) -> bool:
        """Whether the session holds a transaction open, a failed one included, and does nothing."""
        return self.state in (IDLE_IN_TRANSACTION, ABORTED)

    @property
    def group(self) -> str:
        """The one of :data:`GROUPS` it is counted in: its state, or ``blocked`` while another holds it up."""
        return BLOCKED if self.blocked_by else self.state

    @property
    def age_seconds(self) -> float | None:
        """The longer of the two ages."""
        known = [age for age in (self.transaction_age_seconds, self.state_age_seconds) if age is not None]
        return max(known, default=None)

    def is_within(self, min_age_seconds: float, states: Collection[str]) -> bool:
        """Tell whether a filter lets the session through.

        :param min_age_seconds: the least age in seconds; an age that is not known is not at least anything.
        :param states: the states or groups to keep; all of them if empty.
        """
        is_old = not min_age_seconds or (self.age_seconds or 0.0) >= min_age_seconds
        return is_old and (not states or self.state in states or self.group in states)


@dataclasses.dataclass(frozen=True)
class PreparedTransaction:
    """A part of a unit over several databases that was prepared and has not been ended (``UOW_TWO_PHASE``).

    It is there for some milliseconds of every such unit. One that stays holds its locks until somebody ends it.
    """

    name: str
    role: str
    age_seconds: float | None
    bind: str
    decided_by: str
    """The bind whose commit decides."""
    xid: str
    """The id of the transaction there."""
    outcome: str | None = None
    """What its server says of that: ``committed``, ``aborted`` or ``in progress``; None if it cannot say."""

    @property
    def command(self) -> str | None:
        """What ends it, None as long as nobody knows how."""
        verb = {"committed": "COMMIT", "aborted": "ROLLBACK"}.get(self.outcome or "")
        name = self.name.replace("'", "''")
        return f"{verb} PREPARED '{name}'" if verb else None


@dataclasses.dataclass(frozen=True)
class StateCount:
    """How many sessions are in one group, and for how long at most."""

    state: str
    count: int
    longest_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The sessions counted by group, trouble first."""

    total: int
    states: tuple[StateCount, ...]

    @classmethod
    def of(cls, sessions: Iterable[ServerSession]) -> Summary:
        """Count sessions.

        :param sessions: the sessions, in any order.
        """
        ages: dict[str, list[float | None]] = {}
        for session in sessions:
            ages.setdefault(session.group, []).append(session.state_age_seconds)
        states = tuple(
            StateCount(group, len(ages[group]), max((age for age in ages[group] if age is not None), default=None))
            for group in sorted(ages, key=group_rank)
        )
        return cls(sum(state.count for state in states), states)


@dataclasses.dataclass(frozen=True)
class PoolSnapshot:
    """One connection pool of one process. A pool that keeps no counters has None for all of them."""

    bind: str
    class_name: str
    process_pid: int
    """The process whose pool it is: no process sees the pool of another."""
    size: int | None = None
    checked_out: int | None = None
    checked_in: int | None = None
    overflow: int | None = None
    """Connections beyond ``size`` that are open now."""
    max_overflow: int | None = None
    """-1 stands for no limit, as in SQLAlchemy."""
    timeout_seconds: float | None = None

    @property
    def has_counters(self) -> bool:
        """Whether the pool counts its connections."""
        return self.checked_out is not None


@dataclasses.dataclass(frozen=True)
class SQLiteDatabase:
    """What can be known of a SQLite database, which has no server to ask."""

    path: str | None
    """None in memory."""
    size_bytes: int | None = None
    wal_bytes: int | None = None
    journal_mode: str | None = None
    writer_pid: int | None = None
    """The process seen to hold the write lock. None says that none was seen, not that there is none."""


@dataclasses.dataclass(frozen=True)
class DatabaseSnapshot:
    """One database, whichever and however many binds lead to it."""

    binds: tuple[str, ...]
    dialect: str
    driver: str
    url: str
    """The first bind's URL, without its password."""
    pools: tuple[PoolSnapshot, ...]
    server_version: str | None = None
    found_by: str | None = None
    """How the app's sessions were told from those of others."""
    sessions: tuple[ServerSession, ...] = ()
    blockers: tuple[ServerSession, ...] = ()
    """Sessions that are not this app's, but which one of its sessions waits for, directly or not."""
    prepared: tuple[PreparedTransaction, ...] = ()
    """What units over several databases have left prepared here."""
    summary: Summary = Summary(0, ())
    """Counts all of the app's sessions, also where :attr:`sessions` is filtered."""
    sqlite: SQLiteDatabase | None = None
    error: str | None = None
    """One line that says why the database could not be read."""
    notes: tuple[str, ...] = ()
    """What is not shown here, and why."""

    def only(self, *, min_age_seconds: float = 0.0, states: Collection[str] = ()) -> DatabaseSnapshot:
        """Keep some of the sessions; the summary and the blockers stay as they are.

        :param min_age_seconds: the least age in seconds, of the transaction or of the state.
        :param states: the states or groups to keep; all of them if empty.
        """
        kept = tuple(session for session in self.sessions if session.is_within(min_age_seconds, states))
        return dataclasses.replace(self, sessions=kept)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that could be seen of one app's sessions and connections at one moment."""

    app: str
    taken_at: datetime
    databases: tuple[DatabaseSnapshot, ...]
    version: int = VERSION

    @property
    def errors(self) -> tuple[str, ...]:
        """One line for each database that could not be read."""
        return tuple(
            f"Database {', '.join(database.binds)} ({database.url}) cannot be read: {database.error}"
            for database in self.databases
            if database.error is not None
        )

    def only(self, *, min_age_seconds: float = 0.0, states: Collection[str] = ()) -> Snapshot:
        """Keep some of the sessions of every database.

        :param min_age_seconds: the least age in seconds, of the transaction or of the state.
        :param states: the states or groups to keep; all of them if empty.
        """
        kept = (database.only(min_age_seconds=min_age_seconds, states=states) for database in self.databases)
        return dataclasses.replace(self, databases=tuple(kept))

    def as_dict(self) -> dict[str, t.Any]:
        """Give what JSON can hold, under the names of the attributes, the time in ISO 8601."""
        return {"version": self.version, **dataclasses.asdict(self), "taken_at": self.taken_at.isoformat()}


def group_rank(group: str) -> int:
    """Order groups, trouble first; a state that a later server may invent stands with the active ones.

    :param group: a :attr:`ServerSession.group`.
    """
    return GROUPS.index(group) if group in GROUPS else GROUPS.index(ACTIVE)
