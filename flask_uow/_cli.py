"""``flask db-session-stats``: print a snapshot.

Everything that is known comes from :mod:`flask_uow.stats`; here it is laid out, for a person in tables and for a
program as JSON. ``rich`` draws the tables and is imported when there is one to draw, so that an app which never runs
the command does not pay for it.
"""

from __future__ import annotations

import json
import os
import sys
import typing as t
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import click
from flask.cli import with_appcontext

from . import stats
from .exceptions import UnitOfWorkError

if t.TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_FAILED = 1
_UNREADABLE = 2

_STYLES: t.Final = {
    "idle in transaction (aborted)": "bold red",
    "idle in transaction": "bold yellow",
    "blocked": "bold magenta",
    "active": "green",
    "hidden": "dim",
}
# A session that does nothing and holds nothing is no news, however long it does so.
_AGELESS: t.Final = ("idle", "hidden", "disabled")


def _read_with(read: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, t.Any], object]:
    """Make the callback of an option that may be repeated or not, out of what reads one value or raises ValueError."""

    def callback(context: click.Context, option: click.Parameter, typed: t.Any) -> object:
        try:
            return read(typed) if isinstance(typed, str) else tuple(map(read, typed))
        except ValueError as error:
            raise click.BadParameter(str(error), context, option) from None

    return callback


def _read_state(typed: str) -> str:
    state = typed.lower().replace("-", " ")
    if state not in stats.GROUPS:
        raise ValueError(f"{typed!r} is no state. Choose from: {', '.join(stats.GROUPS)}.")
    return state


@click.command("db-session-stats")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--min-age",
    callback=_read_with(stats.parse_seconds),
    default="0",
    metavar="SECONDS",
    help="List only sessions that are in their transaction or state for at least so long.",
)
@click.option(
    "--state",
    "states",
    callback=_read_with(_read_state),
    metavar="STATE",
    multiple=True,
    help=f"List only sessions in this state; may be repeated. One of: {', '.join(stats.GROUPS)}.",
)
@click.option(
    "--fail-on",
    "conditions",
    callback=_read_with(stats.Condition.parse),
    multiple=True,
    metavar="CONDITION",
    help="Exit with status 1 if a session is idle in a transaction for longer: idle-in-transaction=SECONDS. "
    "All sessions count, listed or not; may be repeated.",
)
@with_appcontext
def db_session_stats(
    *, as_json: bool, min_age: float, states: tuple[str, ...], conditions: tuple[stats.Condition, ...]
) -> None:
    """Show every database session and connection of this app.

    Exit status: 0; 1 if a condition of --fail-on holds; 2 if a database cannot be read, or on wrong usage.

    \b
    The JSON document has these keys; what is not known is null:
      version    1; grows when a key changes its meaning or goes
      app        the app's name
      taken_at   ISO 8601, UTC
      databases  a list, one entry for each database:
        binds, dialect, driver, url, server_version, found_by
        sessions, blockers  pid, application_name, worker_pid, user,
                   database, client_address, state, wait_event, query,
                   transaction_age_seconds, state_age_seconds, blocked_by
        prepared   name, role, age_seconds, bind, decided_by, xid, outcome
        summary    total; states: state, count, longest_seconds
        pools      bind, class_name, process_pid, size, checked_out,
                   checked_in, overflow, max_overflow, timeout_seconds
        sqlite     path, size_bytes, wal_bytes, journal_mode, writer_pid
        error      why the database could not be read
        notes      what is not shown, and why
    """  # noqa: D301 (click's mark for lines to be left alone)
    snapshot = _take()
    shown = snapshot.only(min_age_seconds=min_age, states=states)
    if as_json:
        click.echo(json.dumps(shown.as_dict(), indent=2))
    elif not snapshot.databases or len(snapshot.errors) < len(snapshot.databases):
        # rich has decided on colours; click would take out those that FORCE_COLOR asks for.
        click.echo(_drawn(shown), nl=False, color=True)
    failures = [failure for condition in conditions for failure in condition.failures(snapshot)]
    for line in (*snapshot.errors, *failures):
        click.echo(_harmless(line), err=True)
    click.get_current_context().exit(_UNREADABLE if snapshot.errors else _FAILED if failures else 0)


def _take() -> stats.Snapshot:
    try:
        return stats.snapshot()
    except UnitOfWorkError as error:
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(_UNREADABLE) from error


def _drawn(snapshot: stats.Snapshot) -> str:
    """Draw for the terminal that the output goes to; in plain text where it goes elsewhere or NO_COLOR asks for it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    with console.capture() as capture:
        draw(snapshot, console)
    encoding = sys.stdout.encoding or "utf-8"
    return capture.get().encode(encoding, "replace").decode(encoding)


def draw(snapshot: stats.Snapshot, console: Console) -> None:
    """Print a snapshot as tables, trouble first.

    :param snapshot: what to print.
    :param console: where to; 80 columns are enough.
    """
    if not snapshot.databases:
        console.print(_text(f"No database of app {snapshot.app!r} is known: its session is bound to none."))
    for place, database in enumerate(snapshot.databases):
        if place:
            console.print()
        _draw_database(database, console)


def _draw_database(database: stats.DatabaseSnapshot, console: Console) -> None:
    console.print(_text(f"{', '.join(database.binds)}: {database.url}", "bold"))
    for line in _facts(database):
        console.print(_text(line))
    for group, sessions in _groups(database.sessions):
        title = f"{group} ({len(sessions)})"
        console.print(_text(f"\n{title}", _STYLES.get(group, "")), _session_table(group, sessions), sep="\n")
    if database.blockers:
        console.print(_text("\nnot of this app, but in its way", "bold magenta"), _blocker_table(database.blockers))
    if database.prepared:
        console.print(
            _text(f"\nleft prepared ({len(database.prepared)})", "bold red"), _prepared_table(database.prepared)
        )
    console.print(_text(f"\npools of this process ({os.getpid()}); other processes have their own", "bold"))
    console.print(_pool_table(database.pools))
    for note in database.notes:
        console.print(_text(f"Note: {note}", "dim"))


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
    sessions = f"{summary.total} session{'' if summary.total == 1 else 's'}"
    listed = len(database.sessions)
    return f"{sessions}{': ' if counts else ''}{counts}{f' ({listed} listed)' if listed < summary.total else ''}"


def _count(state: stats.StateCount) -> str:
    age = None if state.state in _AGELESS else state.longest_seconds
    return f"{state.count} {state.state}" + ("" if age is None else f" for {_duration(age)}")


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
    is_blocked = group == "blocked"
    table = _table("pid", "worker", "in state", "in trans.", *(["waits for"] if is_blocked else []), last="query")
    for session in sessions:
        table.add_row(
            str(session.pid),
            _known(session.worker_pid),
            _duration(session.state_age_seconds),
            _duration(session.transaction_age_seconds),
            *([_pids(session.blocked_by)] if is_blocked else []),
            _cell(f"role {session.user}" if session.query is None else session.query),
        )
    return table


def _blocker_table(blockers: Iterable[stats.ServerSession]) -> Table:
    table = _table("pid", "in state", "in trans.", last="what")
    for session in blockers:
        waiting = f", waits for {_pids(session.blocked_by)}" if session.blocked_by else ""
        table.add_row(
            str(session.pid),
            _duration(session.state_age_seconds),
            _duration(session.transaction_age_seconds),
            _text(f"{session.state}{waiting}: {session.application_name or 'no name'}, role {session.user}"),
        )
    return table


def _prepared_table(prepared: Iterable[stats.PreparedTransaction]) -> Table:
    table = _table("age", last="what ends it")
    for each in prepared:
        what = f"{each.command};  -- {each.decided_by!r} has {each.outcome} it"
        if each.command is None:
            what = f"{each.name}: {each.decided_by!r} has not decided ({each.outcome or 'not known'})"
        table.add_row(_duration(each.age_seconds), _text(what))
    return table


def _pool_table(pools: Iterable[stats.PoolSnapshot]) -> Table:
    table = _table("size", "in use", "overflow", "max_overflow", last="bind")
    for pool in pools:
        counts = (pool.size, pool.checked_out, pool.overflow)
        limit = "no limit" if pool.max_overflow == -1 else _known(pool.max_overflow)
        table.add_row(*map(_known, counts), limit, _text(f"{pool.bind} ({pool.class_name})"))
    return table


def _table(*numbers: str, last: str) -> Table:
    """Make a table of narrow columns that are never cut, and a last one that takes what is left."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True, min_width=8)
    table.add_column(last, overflow="fold")
    return table


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text("\n" * text.startswith("\n") + _harmless(text.lstrip("\n")), style=style, overflow="fold")


def _cell(text: str) -> Text:
    from rich.text import Text

    return Text(_harmless(text), no_wrap=True, overflow="ellipsis")


def _harmless(text: str) -> str:
    """Replace what a terminal could take for a command, or what could turn a line around."""
    return "".join("?" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else char for char in text)


def _pids(pids: Iterable[int]) -> str:
    return ", ".join(str(pid) if pid else "a prepared transaction" for pid in pids)


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)


def _duration(seconds: float | None) -> str:
    """Give a duration in its two largest units.

    >>> _duration(0.25), _duration(34.6), _duration(125), _duration(7325), _duration(200000)
    ('0.2 s', '34 s', '2 min 5 s', '2 h 2 min', '2 d 7 h')
    """
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest, parts = int(seconds), []
    for name, size in units:
        count, rest = divmod(rest, size)
        parts.append((count, name))
    while not parts[0][0]:
        del parts[0]
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count)
