"""What a snapshot consists of: frozen values, complete in themselves, without a live connection behind them.

A :class:`Snapshot` holds databases and workers. Each database holds what its server says of the app's sessions; each
worker what it has published on its board: what it has counted, its pools, and what it does now. A value that nobody can
know is None, never a number that looks like one.

How the values come about is left to the modules beside this one, how they look to the command.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from .._board import BUCKET_BOUNDS_SECONDS, shown_name
from ._filters import Filter

VERSION = 1
"""The version of the document that :meth:`Snapshot.as_dict` gives. It grows when a key changes its meaning or goes."""

ABORTED = "idle in transaction (aborted)"
IDLE_IN_TRANSACTION = "idle in transaction"
BLOCKED = "blocked"
ACTIVE = "active"
FASTPATH = "fastpath function call"
IDLE = "idle"
HIDDEN = "hidden"

SAID_BY_SERVER = "said by the server"
"""What is shown behind a label that no worker here tells."""

GROUPS: t.Final = (
    ABORTED,
    IDLE_IN_TRANSACTION,
    BLOCKED,
    ACTIVE,
    FASTPATH,
    "starting",
    IDLE,
    "disabled",
    HIDDEN,
)
"""The groups that sessions are shown in, trouble first: PostgreSQL's own states, ``blocked`` and ``hidden``."""


class State:
    """What a live unit does, in the words that are shown."""

    NO_TRANSACTION: t.Final = "no transaction"
    RUNNING: t.Final = "running SQL"
    IDLE: t.Final = "idle in transaction"
    WAITING: t.Final = "waiting for a connection"
    COMMITTING: t.Final = "committing"
    ROLLING_BACK: t.Final = "rolling back"
    HELD: t.Final = "held"
    """A connection that no session of ours has taken: only its server knows what it does."""
    LEAKED: t.Final = "leaked"
    """The context in which it was taken has ended."""


STATES: t.Final = (
    State.LEAKED,
    State.IDLE,
    State.WAITING,
    State.RUNNING,
    State.COMMITTING,
    State.ROLLING_BACK,
    State.HELD,
    State.NO_TRANSACTION,
)
"""What a live unit may be doing, trouble first."""


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
    wait_seconds: float | None = None
    """For how long it has waited for a lock; None if it waits for none, or its server is older than PostgreSQL 14."""
    connected_seconds: float | None = None
    """How long ago it connected."""
    unit: str | None = None
    """The label of what holds it: a unit of a worker, or whoever has taken the connection; None if nothing does."""
    is_told_by_server: bool = False
    """Whether :attr:`unit` is no worker's word, but what the server was told: the label of the outermost unit, maybe
    cut, whose line nobody here knows."""
    view: str | None = None
    """The label of the outermost unit around that, or :attr:`unit` again."""
    where: str | None = None
    """The line of :attr:`unit`: ``file:line in function``."""
    waits_for: tuple[str, ...] = ()
    """For each of :attr:`blocked_by`, the label of what holds it, or the pid if nobody knows."""
    is_orphan: bool = False
    """Whether it was this host's and no living worker knows it."""
    may_be_orphan: bool = False
    """Whether no worker knows it that can be read, and not all can."""

    @property
    def is_hidden(self) -> bool:
        """Whether the role that asked may not see what the session does."""
        return self.state == HIDDEN

    @property
    def is_idle_in_transaction(self) -> bool:
        """Whether the session holds a transaction open, a failed one included, and does nothing."""
        return self.state in (IDLE_IN_TRANSACTION, ABORTED)

    @property
    def is_running(self) -> bool:
        """Whether the session works on what it was sent."""
        return self.state in (ACTIVE, FASTPATH)

    @property
    def group(self) -> str:
        """The one of :data:`GROUPS` it is counted in: its state, or ``blocked`` while another holds it up."""
        return BLOCKED if self.blocked_by else self.state

    @property
    def group_seconds(self) -> float | None:
        """For how long it has been in its group: waits for a lock, or is in its state, where the wait is not told."""
        is_told = self.blocked_by and self.wait_seconds is not None
        return self.wait_seconds if is_told else self.state_age_seconds

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
            ages.setdefault(session.group, []).append(session.group_seconds)
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
    waiting: int | None = None
    """How many wait for a connection now, as far as they are seen."""
    timeouts: int | None = None
    """How often one has waited in vain."""
    longest_wait_seconds: float | None = None

    @property
    def has_counters(self) -> bool:
        """Whether the pool counts its connections."""
        return self.checked_out is not None

    @property
    def limit(self) -> int | None:
        """The most connections that it may open; None without a limit, or if that is not known."""
        if self.size is None or self.max_overflow is None or self.max_overflow < 0:
            return None
        return self.size + self.max_overflow

    @property
    def usage(self) -> float | None:
        """The part of :attr:`limit` that is checked out, from 0.0 to 1.0."""
        if not self.limit or self.checked_out is None:
            return None
        return self.checked_out / self.limit


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often something took how long."""

    counts: tuple[int, ...]
    """One for each of :data:`BUCKET_BOUNDS_SECONDS`, and one for what took longer than the last."""
    total_seconds: float

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def __add__(self, other: Histogram) -> Histogram:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(counts, self.total_seconds + other.total_seconds)


NO_TIMES: t.Final = Histogram((0,) * (len(BUCKET_BOUNDS_SECONDS) + 1), 0.0)


T = t.TypeVar("T")
Numbers = t.TypeVar("Numbers", "UnitCounts", "SessionCounts")


def _added(one: Numbers, other: Numbers) -> Numbers:
    """Add each number of one to the same of the other."""
    return type(one)(*map(sum, zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class UnitCounts:
    """The outermost units, by how they ended."""

    begun: int = 0
    committed: int = 0
    rolled_back: int = 0
    """By an exception, ``set_rollback_only()`` or the status veto."""
    failed: int = 0
    """The transaction was lost inside, or its COMMIT failed or is in doubt."""
    retried: int = 0
    """Those of the rolled back and failed ones that were tried again."""

    def __add__(self, other: UnitCounts) -> UnitCounts:
        return _added(self, other)


@dataclasses.dataclass(frozen=True)
class SessionCounts:
    """The sessions of the app contexts."""

    opened: int = 0
    closed: int = 0
    leaked: int = 0
    """Sessions and connections that outlived their context."""

    def __add__(self, other: SessionCounts) -> SessionCounts:
        return _added(self, other)


@dataclasses.dataclass(frozen=True)
class LabelCounts:
    """The ended units of one label."""

    label: str
    where: str | None
    is_inner: bool
    """Whether they were inside another unit, a savepoint or a join; their statements are the outer one's as well."""
    count: int = 0
    errors: int = 0
    """Those that ended by an exception."""
    total_seconds: float = 0.0
    worst_seconds: float = 0.0
    statements: int = 0

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            errors=self.errors + other.errors,
            total_seconds=self.total_seconds + other.total_seconds,
            worst_seconds=max(self.worst_seconds, other.worst_seconds),
            statements=self.statements + other.statements,
        )


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was counted, by one worker or by several; none of it ever falls while the workers live."""

    units: UnitCounts = UnitCounts()
    sessions: SessionCounts = SessionCounts()
    statements: int = 0
    rules: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Violations by code, those that occurred."""
    unit_seconds: Histogram = NO_TIMES
    """How long outermost units took."""
    held_seconds: Histogram = NO_TIMES
    """For how long connections were checked out at a time."""
    idle_seconds: Histogram = NO_TIMES
    """For how long outermost units were idle in their transaction altogether."""
    labels: tuple[LabelCounts, ...] = ()

    def __add__(self, other: Counts) -> Counts:
        labels = {(each.label, each.where, each.is_inner): each for each in self.labels}
        for each in other.labels:
            key = (each.label, each.where, each.is_inner)
            labels[key] = labels[key] + each if key in labels else each
        return Counts(
            units=self.units + other.units,
            sessions=self.sessions + other.sessions,
            statements=self.statements + other.statements,
            rules=dict(Counter(self.rules) + Counter(other.rules)),
            unit_seconds=self.unit_seconds + other.unit_seconds,
            held_seconds=self.held_seconds + other.held_seconds,
            idle_seconds=self.idle_seconds + other.idle_seconds,
            labels=tuple(labels.values()),
        )

    def only(self, wanted: Filter) -> Counts:
        """Keep some of the labels; what is counted otherwise stays as it is.

        :param wanted: what to keep.
        """
        return dataclasses.replace(self, labels=tuple(each for each in self.labels if wanted.keeps_label(each.label)))


@dataclasses.dataclass(frozen=True)
class LiveUnit:
    """A unit that has begun and not ended; or, of another kind, a connection that is in use outside of units."""

    kind: str
    """``unit``; ``session`` for the connection of a session outside of units; ``connection`` for one taken by hand."""
    label: str
    where: str | None
    """Where the unit is defined, or the connection was taken: ``file:line in function``."""
    worker_pid: int
    thread: str
    """The thread's name."""
    thread_id: int
    """The operating system's number of it."""
    depth: int
    """1 for an outermost unit, one more for each unit inside; 0 for what is none."""
    attempt: int
    state: str
    """One of :class:`State`; its server's word where something of which the worker saw nothing passed SQLAlchemy by."""
    state_seconds: float
    """How long it has been in that state."""
    seconds: float
    """How long ago it began."""
    statements: int
    """How many it has sent through SQLAlchemy; those of a connection taken by hand are not counted."""
    backend_pids: tuple[int, ...] = ()
    """The server's processes behind the connections that it holds."""
    binds: tuple[str, ...] = ()
    """The binds of these connections, in the same order, as the board calls them."""
    waits_for: tuple[str, ...] = ()
    """The labels of what holds the locks that it waits for, as its server says; a pid where nobody knows."""
    server_state: str | None = None
    """The server's own word on its session, where the two can be matched; of several, that which says most."""

    @property
    def server_group(self) -> str | None:
        """The server's word, or ``blocked`` while another holds it up, as its session's group is."""
        return BLOCKED if self.waits_for else self.server_state

    def has(self, pid: int, binds: Collection[str]) -> bool:
        """Whether it is known to hold a server's process by one of some binds: two servers may have its number.

        :param pid: the process.
        :param binds: as the board calls them.
        """
        held = zip(self.backend_pids, self.binds, strict=False)
        return any(number == pid and bind in binds for number, bind in held)


def last_holder(found: Sequence[tuple[T, LiveUnit]], pid: int, binds: Collection[str]) -> tuple[T, LiveUnit]:
    """Give the last of those that hold a server's process: of those that are known to hold it by a bind, if any are.

    :param found: some that hold a process of that number, on whichever server.
    :param pid: the process.
    :param binds: those of its database, as the board calls them.
    """
    sure = [each for each in found if each[1].has(pid, binds)]
    return (sure or found)[-1]


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process of the app, as it tells itself."""

    pid: int
    host: str
    started_at: datetime
    """When it began to publish."""
    counts: Counts
    pools: tuple[PoolSnapshot, ...] = ()
    backend_pids: tuple[int, ...] = ()
    """The servers' processes behind its open connections, those in its pools included."""
    live: tuple[LiveUnit, ...] = ()
    """The outermost first, what is inside it after it."""
    untold: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many ``units``, ``connections``, ``labels`` or ``pools`` found no room on the board."""

    @property
    def tells_connections(self) -> bool:
        """Whether all of its connections found room on the board."""
        return not (self.untold.get("connections") or self.untold.get("pools"))

    @property
    def stacks(self) -> tuple[tuple[LiveUnit, ...], ...]:
        """The live units, each outermost one together with what is inside it: the last one is what is at work."""
        stacks: list[list[LiveUnit]] = []
        for unit in self.live:
            # Not by its thread: an async view's units are inside the unit of the thread that waits for it.
            if stacks and unit.depth > 1 and stacks[-1][-1].depth == unit.depth - 1:
                stacks[-1].append(unit)
            else:
                stacks.append([unit])
        return tuple(map(tuple, stacks))

    def only(self, wanted: Filter) -> Worker:
        """Keep some of the live units and labels; what is counted stays as it is.

        :param wanted: what to keep.
        """
        live = tuple(unit for stack in self.stacks if wanted.keeps_stack(stack) for unit in stack)
        return dataclasses.replace(self, live=live, counts=self.counts.only(wanted))


@dataclasses.dataclass(frozen=True)
class EndedWorkers:
    """What workers had counted that have ended since the app was started."""

    workers: int
    counts: Counts


@dataclasses.dataclass(frozen=True)
class Boards:
    """What the workers of an app on this host have published; no database was asked for it."""

    workers: tuple[Worker, ...]
    """The living ones, the eldest first."""
    ended: EndedWorkers | None = None
    notes: tuple[str, ...] = ()
    """What is not shown here, and why."""
    is_complete: bool = True
    """Whether there is none of this host that lives and could not be read."""

    @property
    def totals(self) -> Counts:
        """The counts of all workers, those that have ended included."""
        counts = self.ended.counts if self.ended else Counts()
        for worker in self.workers:
            counts += worker.counts
        return counts


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Something that somebody should look at."""

    kind: str
    """One of :data:`~flask_uow.stats.EXPLANATIONS`."""
    text: str
    """One line that says who, where and for how long."""
    label: str | None = None
    where: str | None = None
    seconds: float | None = None
    worker_pid: int | None = None
    backend_pid: int | None = None
    view: str | None = None
    """The label of the outermost unit; :attr:`label` and :attr:`where` are those of the innermost, which is at work."""
    holds_up: int = 0
    """How many sessions wait for a lock of it."""


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
    identity: str | None = None
    """What tells it from other databases, under whichever address: its name, and when its server was started."""
    client_address: str | None = None
    """The address under which the server sees this host; None over a Unix socket, or if nobody was asked."""
    other_addresses: tuple[str | None, ...] = ()
    """The same, of other binds that lead to it another way."""
    is_pooled: bool = False
    """Whether the server was asked through a pooler: nobody knows then to whom its sessions belong now."""
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

    @property
    def shown_binds(self) -> frozenset[str]:
        """Its binds, as boards call them."""
        return frozenset(map(shown_name, self.binds))

    def with_other(self, other: DatabaseSnapshot) -> DatabaseSnapshot:
        """Put together what was seen of one database under two addresses, or by two roles.

        What is left prepared there, all of them see.

        :param other: the same database as other binds lead to it.
        """
        sessions = _by_pid(*self.sessions, *other.sessions)
        own = {session.pid for session in sessions}
        return dataclasses.replace(
            self,
            binds=(*self.binds, *other.binds),
            pools=(*self.pools, *other.pools),
            other_addresses=(*self.other_addresses, other.client_address),
            is_pooled=self.is_pooled or other.is_pooled,
            sessions=sessions,
            blockers=tuple(each for each in _by_pid(*self.blockers, *other.blockers) if each.pid not in own),
            summary=Summary.of(sessions),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def only(self, wanted: Filter) -> DatabaseSnapshot:
        """Keep some of the sessions; the summary and the blockers stay as they are.

        :param wanted: what to keep.
        """
        kept = tuple(session for session in self.sessions if wanted.keeps_session(session))
        return dataclasses.replace(self, sessions=kept)


def _by_pid(*sessions: ServerSession) -> tuple[ServerSession, ...]:
    """Each session once, as it is seen by the role that may see most of it."""
    found: dict[int, ServerSession] = {}
    for session in sessions:
        if session.pid not in found or found[session.pid].is_hidden:
            found[session.pid] = session
    return tuple(found.values())


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that could be seen of one app's sessions and connections at one moment."""

    app: str
    taken_at: datetime
    databases: tuple[DatabaseSnapshot, ...]
    workers: tuple[Worker, ...] = ()
    """The living workers of this host, the eldest first."""
    ended: EndedWorkers | None = None
    totals: Counts = Counts()
    """Of all workers, those that have ended included."""
    troubles: tuple[Trouble, ...] = ()
    """The worst first."""
    notes: tuple[str, ...] = ()
    """What of the workers is not shown here, and why."""
    version: int = VERSION

    @property
    def errors(self) -> tuple[str, ...]:
        """One line for each database that could not be read."""
        return tuple(
            f"Database {', '.join(database.binds)} ({database.url}) cannot be read: {database.error}"
            for database in self.databases
            if database.error is not None
        )

    def only(self, wanted: Filter | None = None, **criteria: t.Any) -> Snapshot:
        """Keep some of the sessions, live units, labels and troubles.

        .. code-block:: python

            stats.snapshot().only(label="transfers", min_age_seconds=5)

        :param wanted: what to keep.
        :param criteria: the same, as keyword arguments of :class:`Filter`.
        """
        wanted = wanted or Filter(**criteria)
        kept = tuple(worker for worker in self.workers if wanted.keeps_worker(worker.pid))
        totals = Boards(kept).totals if wanted.workers else self.totals
        return dataclasses.replace(
            self,
            databases=tuple(database.only(wanted) for database in self.databases),
            workers=tuple(worker.only(wanted) for worker in kept),
            ended=None if wanted.workers else self.ended,
            totals=totals.only(wanted),
            troubles=tuple(filter(wanted.keeps_trouble, self.troubles)),
        )

    def as_dict(self) -> dict[str, t.Any]:
        """Give what JSON can hold, under the names of the attributes, times in ISO 8601."""
        document: dict[str, t.Any] = _plain(self)
        return {"version": self.version, **document}


def _plain(value: t.Any) -> t.Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 6)
    return value.isoformat() if isinstance(value, datetime) else value


def group_rank(group: str) -> int:
    """Order groups, trouble first; a state that a later server may invent stands with the active ones.

    :param group: a :attr:`ServerSession.group`.
    """
    return GROUPS.index(group) if group in GROUPS else GROUPS.index(ACTIVE)
