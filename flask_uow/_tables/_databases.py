"""What the servers say: the sessions of each database, who is in their way, and what was left prepared."""

from __future__ import annotations

import os
import typing as t
from collections.abc import Iterable, Iterator
from itertools import groupby

from .. import stats
from ..stats import counted, duration
from ._cells import STYLES, Line, known, named_pids, rest, table, text_of
from ._counts import pool_table
from ._listing import Listing

if t.TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# A session that does nothing and holds nothing is no news, however long it does so.
_AGELESS: t.Final = ("idle", "hidden", "disabled")
_IDLE_LIMIT = 5


def database_parts(
    database: stats.DatabaseSnapshot, listing: Listing, *, has_workers: bool
) -> Iterator[RenderableType]:
    """Draw what a server says, and, where no worker tells of its own, the pools of this process."""
    yield text_of(f"\n{', '.join(database.binds)}: {database.url}", "bold")
    yield from map(text_of, _facts(database))
    for group, sessions in _groups(database.sessions):
        limit = min(listing.limit, _IDLE_LIMIT) if group == "idle" else listing.limit
        yield text_of(f"\n{group} ({len(sessions)})", STYLES.get(group, ""))
        yield _session_table(sessions[: limit or None])
        yield from rest(len(sessions), limit)
    if database.blockers:
        yield text_of("\nnot of this app, but in its way", "bold magenta")
        yield _blocker_table(database.blockers)
    if database.prepared:
        yield text_of(f"\nleft prepared ({len(database.prepared)})", "bold red")
        yield _prepared_table(database.prepared)
    if not has_workers:
        yield text_of(f"\npools of this process ({os.getpid()}); other processes have their own", "bold")
        yield pool_table(database.pools, listing)


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


def _session_table(sessions: Iterable[stats.ServerSession]) -> Table:
    rows = table("pid", "worker", "in state", "in trans.", last="held by, waits for, query")
    for session in sessions:
        rows.add_row(
            str(session.pid),
            known(session.worker_pid),
            duration(session.state_age_seconds),
            duration(session.transaction_age_seconds),
            _what(session),
        )
    return rows


def _what(session: stats.ServerSession) -> RenderableType:
    from rich.console import Group

    parts: list[RenderableType] = []
    if session.unit is not None:
        parts.append(Line(session.unit))
    if session.is_told_by_server:
        parts.append(text_of(stats.SAID_BY_SERVER, "dim"))
    if session.is_orphan:
        parts.append(text_of("orphan: no living worker knows it", "bold red"))
    if session.blocked_by:
        names, pids = ", ".join(session.waits_for), named_pids(session.blocked_by)
        parts.append(text_of(f"waits for {f'{names} ({pids})' if names not in ('', pids) else pids}", "magenta"))
    query = f"role {session.user}" if session.query is None else session.query
    return Group(*parts, Line(query, "dim" if session.unit is not None else "", keeps_end=False))


def _blocker_table(blockers: Iterable[stats.ServerSession]) -> Table:
    rows = table("pid", "in state", "in trans.", last="what")
    for session in blockers:
        waiting = f", waits for {named_pids(session.blocked_by)}" if session.blocked_by else ""
        rows.add_row(
            str(session.pid),
            duration(session.state_age_seconds),
            duration(session.transaction_age_seconds),
            text_of(f"{session.state}{waiting}: {session.application_name or 'no name'}, role {session.user}"),
        )
    return rows


def _prepared_table(prepared: Iterable[stats.PreparedTransaction]) -> Table:
    rows = table("age", last="what ends it")
    for each in prepared:
        what = f"{each.command};  -- {each.decided_by!r} has {each.outcome} it"
        if each.command is None:
            what = f"{each.name}: {each.decided_by!r} has not decided ({each.outcome or 'not known'})"
        rows.add_row(duration(each.age_seconds), text_of(what))
    return rows
