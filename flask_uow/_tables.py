"""A snapshot as a person reads it: tables, trouble first, that fit into 80 columns.

Numbers are never cut. A label loses its middle where there is no room for it, and a place in the code goes on in the
next line. All text is made harmless first. ``rich`` draws the tables and is imported when there is one to draw, so that
an app which never runs the command does not pay for it.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from . import stats
from ._rules import RULES
from .stats import State, counted, duration

if t.TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

DEFAULT_LIMIT = 20
_IDLE_LIMIT = 5

_STYLES: t.Final = {
    "idle in transaction (aborted)": "bold red",
    "idle in transaction": "bold yellow",
    "blocked": "bold magenta",
    "active": "green",
    "hidden": "dim",
    State.LEAKED: "bold red",
    State.WAITING: "bold magenta",
    State.RUNNING: "green",
    State.COMMITTING: "green",
    State.NO_TRANSACTION: "dim",
}
_GRAVE: t.Final = ("aborted-transaction", "idle-in-transaction", "leaked-connection", "pool-exhausted", "orphan")
_KINDS: t.Final = {"session": " (session outside of units)", "connection": " (connection taken by hand)"}
# A session that does nothing and holds nothing is no news, however long it does so.
_AGELESS: t.Final = ("idle", "hidden", "disabled")

_BY_LABEL: t.Final[dict[str, Callable[[stats.LabelCounts], t.Any]]] = {
    "seconds": lambda each: -each.total_seconds,
    "mean": lambda each: -(each.total_seconds / each.count if each.count else 0.0),
    "worst": lambda each: -each.worst_seconds,
    "count": lambda each: -each.count,
    "errors": lambda each: -each.errors,
    "statements": lambda each: -each.statements,
    "label": lambda each: each.label,
}
_BY_UNIT: t.Final[dict[str, Callable[[Sequence[stats.LiveUnit]], t.Any]]] = {
    "statements": lambda stack: -stack[0].statements,
    "label": lambda stack: (stack[0].label, -stack[0].seconds),
}
SORTS: t.Final = tuple(_BY_LABEL)


@dataclasses.dataclass(frozen=True)
class Listing:
    """How a snapshot is laid out.

    :param sort: one of :data:`SORTS`, for the labels and, where it applies to them, the live units.
    :param limit: the most rows of a table; 0 for all of them.
    :param explains: whether each kind of trouble is explained.
    :param choice: what was chosen to be listed, in words, if not everything was.
    """

    sort: str = "seconds"
    limit: int = DEFAULT_LIMIT
    explains: bool = False
    choice: str = ""


def make_console() -> Console:
    """Make a console for the standard output; without colours where NO_COLOR asks for it."""
    from rich.console import Console

    return Console(highlight=False, markup=False, color_system=None if os.environ.get("NO_COLOR") else "auto")


def draw(snapshot: stats.Snapshot, console: Console, listing: Listing = Listing()) -> None:
    """Print a snapshot as tables, trouble first.

    :param snapshot: what to print.
    :param console: where to; 80 columns are enough.
    :param listing: how to lay it out.
    """
    print_parts(console, picture(snapshot, listing))


def print_parts(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print the parts of a picture, one below the other."""
    for part in parts:
        console.print(part)


def picture(snapshot: stats.Snapshot, listing: Listing) -> Iterator[RenderableType]:
    """Draw a snapshot part by part; what there is nothing of is left out.

    :param snapshot: what to draw.
    :param listing: how to lay it out.
    """
    yield from _head(snapshot, listing)
    yield from _troubles(snapshot.troubles, listing)
    yield from _live_units(snapshot.workers, listing)
    for database in snapshot.databases:
        yield from _database(database, listing, has_workers=bool(snapshot.workers))
    yield from _pools([pool for worker in snapshot.workers for pool in worker.pools], listing)
    yield from _labels(snapshot.totals.labels, listing)
    yield from _rules(snapshot.totals)
    notes = (*snapshot.notes, *(note for database in snapshot.databases for note in database.notes))
    for number, note in enumerate(dict.fromkeys(notes)):
        yield text_of(f"{'' if number else chr(10)}Note: {note}", "dim")
    if listing.explains:
        yield from _explanations(snapshot.troubles)


# ---- the head


def _head(snapshot: stats.Snapshot, listing: Listing) -> Iterator[RenderableType]:
    workers = snapshot.workers
    if workers:
        hosts = ", ".join(dict.fromkeys(worker.host for worker in workers))
        uptime = (snapshot.taken_at - min(worker.started_at for worker in workers)).total_seconds()
        ended = f" ({counted(snapshot.ended.workers, 'other')} ended)" if snapshot.ended else ""
        up = duration(max(0.0, uptime))
        yield text_of(f"{snapshot.app} on {hosts}: {counted(len(workers), 'worker')}{ended}, up {up}", "bold")
        yield from map(text_of, _totals(snapshot.totals))
    else:
        yield text_of(snapshot.app, "bold")
        yield text_of(_no_worker(listing))
    if listing.choice:
        yield text_of(f"Listed: {listing.choice}.")
    if not snapshot.databases:
        yield text_of(f"No database of app {snapshot.app!r} is known: its session is bound to none.")


def _no_worker(listing: Listing) -> str:
    if "worker" in listing.choice:
        return "No such worker publishes."
    return (
        "No worker publishes here: none has served a request since its start, UOW_STATS is False, or they run on "
        "another host, as another user or with another temporary folder (set UOW_STATS_DIR)."
    )


def _totals(totals: stats.Counts) -> Iterator[str]:
    units, sessions = totals.units, totals.sessions
    yield (
        f"units: {units.begun:,} begun, {units.committed:,} committed, {units.rolled_back:,} rolled back, "
        f"{units.failed:,} failed, {units.retried:,} retried"
    )
    yield (
        f"sessions: {sessions.opened:,} opened, {sessions.closed:,} closed, {sessions.leaked:,} leaked; "
        f"{counted(totals.statements, 'statement')}"
    )


# ---- trouble


def _troubles(troubles: Sequence[stats.Trouble], listing: Listing) -> Iterator[RenderableType]:
    if not troubles:
        return
    table = _table("kind", last="what")
    table.show_header, table.columns[0].justify = False, "left"
    for trouble in troubles[: listing.limit or None]:
        style = "bold red" if trouble.kind in _GRAVE else "bold yellow"
        table.add_row(text_of(trouble.kind, style), _with_own_line(trouble.text, trouble.where))
    yield text_of(f"\ntrouble ({len(troubles)})", "bold red")
    yield table
    yield from _rest(len(troubles), listing.limit)


def _with_own_line(text: str, where: str | None) -> RenderableType:
    """Let the place in the code begin a line, so that neither it nor what follows it is torn apart."""
    from rich.console import Group

    first, place, rest = text.partition(f": {where}")
    if not place:
        return text_of(text)
    return Group(text_of(first), _Parts(text_of(f"{where}"), *map(text_of, filter(None, rest.split(", ")))))


def _explanations(troubles: Sequence[stats.Trouble]) -> Iterator[RenderableType]:
    from rich.padding import Padding

    kinds = dict.fromkeys(trouble.kind for trouble in troubles)
    yield text_of("\nwhat it means, and what to do" if kinds else "\nNo trouble: there is nothing to explain.", "bold")
    for kind in kinds:
        explanation = stats.EXPLANATIONS[kind]
        yield text_of(kind, "bold")
        yield Padding(text_of(f"At the bank: {explanation.at_the_bank}", "italic"), (0, 0, 0, 2))
        yield Padding(text_of(explanation.meaning), (0, 0, 0, 2))
        yield Padding(text_of(f"What to do: {explanation.remedy}"), (0, 0, 0, 2))


# ---- live units


def _live_units(workers: Iterable[stats.Worker], listing: Listing) -> Iterator[RenderableType]:
    stacks = sorted((stack for worker in workers for stack in worker.stacks), key=_stack_order(listing.sort))
    if not stacks:
        return
    table = _table("age\nworker", "statements\nbackend", last="unit\nstate, thread, line")
    for stack in stacks[: listing.limit or None]:
        for unit in stack:
            _add_unit(table, unit, is_at_work=unit is stack[-1])
    yield text_of(f"\nlive units ({len(stacks)})", "bold")
    yield table
    yield from _rest(len(stacks), listing.limit)


def _stack_order(sort: str) -> Callable[[Sequence[stats.LiveUnit]], t.Any]:
    return _BY_UNIT.get(sort, lambda stack: -stack[0].seconds)


def _add_unit(table: Table, unit: stats.LiveUnit, *, is_at_work: bool) -> None:
    from rich.console import Group
    from rich.padding import Padding

    is_inner = unit.depth > 1
    state = [text_of(_state(unit), _state_style(unit))] if is_at_work else []
    thread = [] if is_inner else [text_of(unit.thread)]
    where = [text_of(unit.where)] if unit.where else []
    details = _Parts(*state, *thread, *where)
    kind = _KINDS.get(unit.kind, "")
    indent = 2 * (unit.depth - 1) if is_inner else 0
    table.add_row(
        _lines(duration(unit.seconds), "" if is_inner else str(unit.worker_pid)),
        _lines(f"{unit.statements:,}", "" if is_inner else "\n".join(map(str, unit.backend_pids)) or "-"),
        Padding(Group(Line(f"{'+ ' if is_inner else ''}{unit.label}{kind}"), details), (0, 0, 0, indent)),
    )


def _state(unit: stats.LiveUnit) -> str:
    state = stats.ABORTED if _is_aborted(unit) else unit.state
    if unit.server_state is not None and unit.state in (State.HELD, State.LEAKED):
        state = f"{state}, {unit.server_state}"
    attempt = f", attempt {unit.attempt}" if unit.attempt > 1 else ""
    waiting = f", waits for {_names(unit.waits_for)}" if unit.waits_for else ""
    return f"{state} for {duration(unit.state_seconds)}{attempt}{waiting}"


def _state_style(unit: stats.LiveUnit) -> str:
    group = stats.ABORTED if _is_aborted(unit) else stats.BLOCKED if unit.waits_for else unit.state
    return _STYLES.get(group, "")


def _is_aborted(unit: stats.LiveUnit) -> bool:
    return unit.server_state == stats.ABORTED


# ---- databases


def _database(database: stats.DatabaseSnapshot, listing: Listing, *, has_workers: bool) -> Iterator[RenderableType]:
    yield text_of(f"\n{', '.join(database.binds)}: {database.url}", "bold")
    yield from map(text_of, _facts(database))
    for group, sessions in _groups(database.sessions):
        limit = min(listing.limit or _IDLE_LIMIT, _IDLE_LIMIT) if group == "idle" and listing.limit else listing.limit
        yield text_of(f"\n{group} ({len(sessions)})", _STYLES.get(group, ""))
        yield _session_table(group, sessions[: limit or None])
        yield from _rest(len(sessions), limit)
    if database.blockers:
        yield text_of("\nnot of this app, but in its way", "bold magenta")
        yield _blocker_table(database.blockers)
    if database.prepared:
        yield text_of(f"\nleft prepared ({len(database.prepared)})", "bold red")
        yield _prepared_table(database.prepared)
    if not has_workers:
        yield text_of(f"\npools of this process ({os.getpid()}); other processes have their own", "bold")
        yield _pool_table(database.pools, listing)


def _facts(database: stats.DatabaseSnapshot) -> Iterator[str]:
    if database.server_version is not None:
        yield f"PostgreSQL {database.server_version.split()[0]}, sessions with {database.found_by}"
        yield _summary(database)
    if database.sqlite is not None:
        yield from _sqlite_facts(database.sqlite)
    if database.error is not None:
        yield f"cannot be read: {database.error}"


def _summary(database: stats.DatabaseSnapshot) -> str:
    summary = database.summary
    counts = ", ".join(_count(state) for state in summary.states)
    listed = len(database.sessions)
    chosen = f" ({listed} listed)" if listed < summary.total else ""
    return f"{counted(summary.total, 'session')}{': ' if counts else ''}{counts}{chosen}"


def _count(state: stats.StateCount) -> str:
    age = None if state.state in _AGELESS else state.longest_seconds
    return f"{state.count} {state.state}" + ("" if age is None else f" for {duration(age)}")


def _sqlite_facts(sqlite: stats.SQLiteDatabase) -> Iterator[str]:
    if sqlite.path is None:
        yield "SQLite in memory: it lives in the process that opened it, and nobody else can look into it."
        return
    log = "" if sqlite.wal_bytes is None else f", write-ahead log {sqlite.wal_bytes:,} bytes"
    yield f"SQLite file of {sqlite.size_bytes:,} bytes{log}, journal mode {sqlite.journal_mode or 'not known'}"
    yield "no writer seen" if sqlite.writer_pid is None else f"process {sqlite.writer_pid} holds the write lock"


def _groups(sessions: Iterable[stats.ServerSession]) -> Iterator[tuple[str, list[stats.ServerSession]]]:
    """Group sessions, trouble first and the longest first."""

    def rank(session: stats.ServerSession) -> tuple[int, str, float]:
        return stats.group_rank(session.group), session.group, -(session.state_age_seconds or 0.0)

    for group, members in groupby(sorted(sessions, key=rank), key=lambda session: session.group):
        yield group, list(members)


def _session_table(group: str, sessions: Iterable[stats.ServerSession]) -> Table:
    table = _table("pid", "worker", "in state", "in trans.", last="held by, waits for, query")
    for session in sessions:
        table.add_row(
            str(session.pid),
            _known(session.worker_pid),
            duration(session.state_age_seconds),
            duration(session.transaction_age_seconds),
            _what(session),
        )
    return table


def _what(session: stats.ServerSession) -> RenderableType:
    from rich.console import Group

    parts: list[RenderableType] = []
    if session.unit is not None:
        parts.append(Line(session.unit))
    if session.is_orphan:
        parts.append(text_of("orphan: no living worker knows it", "bold red"))
    if session.blocked_by:
        names = session.waits_for or [str(pid) if pid else "a prepared transaction" for pid in session.blocked_by]
        pids = ", ".join(str(pid) for pid in session.blocked_by if pid and str(pid) not in names)
        parts.append(text_of(f"waits for {_names(names)}{f' ({pids})' if pids else ''}", "magenta"))
    query = f"role {session.user}" if session.query is None else session.query
    return Group(*parts, Line(query, "dim" if session.unit is not None else "", keeps_end=False))


def _blocker_table(blockers: Iterable[stats.ServerSession]) -> Table:
    table = _table("pid", "in state", "in trans.", last="what")
    for session in blockers:
        waiting = f", waits for {_pids(session.blocked_by)}" if session.blocked_by else ""
        table.add_row(
            str(session.pid),
            duration(session.state_age_seconds),
            duration(session.transaction_age_seconds),
            text_of(f"{session.state}{waiting}: {session.application_name or 'no name'}, role {session.user}"),
        )
    return table


def _prepared_table(prepared: Iterable[stats.PreparedTransaction]) -> Table:
    table = _table("age", last="what ends it")
    for each in prepared:
        what = f"{each.command};  -- {each.decided_by!r} has {each.outcome} it"
        if each.command is None:
            what = f"{each.name}: {each.decided_by!r} has not decided ({each.outcome or 'not known'})"
        table.add_row(duration(each.age_seconds), text_of(what))
    return table


# ---- pools, labels, rules


def _pools(pools: Sequence[stats.PoolSnapshot], listing: Listing) -> Iterator[RenderableType]:
    if not pools:
        return
    in_use, limits = sum(pool.checked_out or 0 for pool in pools), [pool.limit for pool in pools]
    total = "" if None in limits else f" of {sum(filter(None, limits)):,}"
    waiting = sum(pool.waiting or 0 for pool in pools)
    yield text_of(f"\npools ({len(pools)}): {in_use:,}{total} connections in use, {waiting:,} waited for", "bold")
    yield _pool_table(pools, listing)
    yield from _rest(len(pools), listing.limit)


def _pool_table(pools: Sequence[stats.PoolSnapshot], listing: Listing) -> Table:
    heads = ("worker", "size", "in use", "overflow", "limit", "waiting", "timeouts", "longest")
    table = _table(*heads, last="bind", min_width=4, gap=1)
    for pool in sorted(pools, key=_fullness)[: listing.limit or None]:
        is_bounded = pool.limit is not None or not pool.has_counters
        style = "bold red" if (pool.usage or 0.0) >= 1 else "yellow" if (pool.usage or 0.0) >= 0.9 else ""
        table.add_row(
            str(pool.process_pid),
            *map(_known, (pool.size, pool.checked_out, pool.overflow)),
            _known(pool.limit) if is_bounded else "none",
            *map(_known, (pool.waiting, pool.timeouts)),
            duration(pool.longest_wait_seconds),
            text_of(pool.bind + ("" if pool.class_name == "QueuePool" else f" ({pool.class_name})")),
            style=style,
        )
    return table


def _fullness(pool: stats.PoolSnapshot) -> tuple[int, float, int]:
    return -(pool.waiting or 0), -(pool.usage or 0.0), -(pool.checked_out or 0)


def _labels(labels: Sequence[stats.LabelCounts], listing: Listing) -> Iterator[RenderableType]:
    if not labels:
        return
    table = _table("count", "errors", "mean", "worst", "stmts/unit", last="label", min_width=6)
    for each in sorted(labels, key=_BY_LABEL[listing.sort])[: listing.limit or None]:
        table.add_row(
            f"{each.count:,}",
            text_of(f"{each.errors:,}", "red" if each.errors else ""),
            _short(each.total_seconds / each.count if each.count else None),
            _short(each.worst_seconds),
            f"{each.statements / each.count:.1f}" if each.count else "-",
            _Label(f"{'+ ' if each.is_inner else ''}{each.label}", each.where),
        )
    inner = ", + is inside of another" if any(each.is_inner for each in labels) else ""
    yield text_of(f"\nlabels ({len(labels)}), by {listing.sort}{inner}", "bold")
    yield table
    yield from _rest(len(labels), listing.limit)


def _short(seconds: float | None) -> str:
    """Give a duration that is mostly one of milliseconds."""
    if seconds is None or seconds >= 1:
        return duration(seconds)
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def _rules(totals: stats.Counts) -> Iterator[RenderableType]:
    counts = {code: count for code, count in totals.rules.items() if count}
    if not counts:
        return
    table = _table("count", last="rule")
    table.columns[0].min_width = 6
    for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        title = RULES[code].title if code in RULES else "a rule of another version"
        table.add_row(f"{count:,}", text_of(f"{code}  {title}"))
    yield text_of("\nrules broken", "bold")
    yield table


def _rest(count: int, limit: int) -> Iterator[RenderableType]:
    if limit and count > limit:
        yield text_of(f"... and {count - limit:,} more (--limit 0 lists all)", "dim")


# ---- cells


class Line:
    """A line of text that loses its middle where there is no room for it, so that both ends can be read.

    :param text: the text.
    :param style: how to show it.
    :param keeps_end: whether the middle is lost; if not, the end is.
    """

    def __init__(self, text: str, style: str = "", *, keeps_end: bool = True) -> None:
        self.text = harmless(text)
        self.style = style
        self.keeps_end = keeps_end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        dots = "..." if options.ascii_only else "…"
        shortened = _shortened(self.text, options.max_width, dots, keeps_end=self.keeps_end)
        yield Text(shortened, self.style, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        return Measurement(min(10, options.max_width), min(cell_len(self.text), options.max_width))


class _Label(Line):
    """A label, with its place behind it where there is room for both."""

    def __init__(self, text: str, where: str | None) -> None:
        super().__init__(text)
        self.where = where

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = text_of(self.text).append_text(text_of(f"  {self.where or ''}".rstrip(), "dim"))
        if whole.cell_len <= options.max_width:
            yield whole
            return
        yield from super().__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(min(10, options.max_width), options.max_width)


class _Parts:
    """Parts of a line; each that does not fit behind the one before begins a line of its own."""

    def __init__(self, *parts: Text) -> None:
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        line = Text(overflow="fold")
        for part in self.parts:
            if line and line.cell_len + 2 + part.cell_len > options.max_width:
                yield line
                line = Text(overflow="fold")
            line.append_text(Text(", ") if line else Text()).append_text(part)
        if line:
            yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        longest = sum(part.cell_len + 2 for part in self.parts)
        return Measurement(min(10, options.max_width), min(longest, options.max_width))


def _shortened(text: str, width: int, dots: str, *, keeps_end: bool) -> str:
    """Shorten a text in its middle or at its end, whatever width its characters have.

    >>> _shortened("POST /transfers", 10, "…", keeps_end=True), _shortened("POST /transfers", 10, "…", keeps_end=False)
    ('POST …fers', 'POST /tra…')
    """
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    room = max(0, width - len(dots))
    tail = room // 2 if keeps_end else 0
    head = room - tail
    while head + tail and cell_len(text[:head] + text[len(text) - tail :]) > room:
        head, tail = (head - 1, tail) if head >= tail else (head, tail - 1)
    return text[:head] + dots[:width] + text[len(text) - tail :]


def _table(*numbers: str, last: str, min_width: int = 8, gap: int = 2) -> Table:
    """Make a table of narrow columns that are never cut, and a last one that takes what is left."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True, min_width=min_width)
    table.add_column(last, overflow="fold")
    return table


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def text_of(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text("\n" * text.startswith("\n") + harmless(text.lstrip("\n")), style=style, overflow="fold")


def harmless(text: str) -> str:
    """Replace what a terminal could take for a command, or what could turn a line around."""
    return "".join("?" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else char for char in text)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def _pids(pids: Iterable[int]) -> str:
    return ", ".join(str(pid) if pid else "a prepared transaction" for pid in pids)


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)
