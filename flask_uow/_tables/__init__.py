"""A snapshot as a person reads it: tables, trouble first, that fit into 80 columns.

Which sections there are, and in which order, stands here; each is drawn by a module of its own.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

from .. import stats
from ..stats import counted, duration
from ._cells import make_console, print_parts, text_of
from ._counts import labels_of, pools_of, rules_of
from ._databases import database_parts
from ._listing import DEFAULT_LIMIT, SORTS, Listing
from ._troubles import explanations_of, troubles_of
from ._units import live_units

if t.TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "DEFAULT_LIMIT",
    "SORTS",
    "Listing",
    "draw",
    "make_console",
    "picture",
    "print_parts",
    "text_of",
]


def draw(snapshot: stats.Snapshot, console: Console, listing: Listing | None = None) -> None:
    """Print a snapshot as tables, trouble first.

    :param snapshot: what to print.
    :param console: where to; 80 columns are enough.
    :param listing: how to lay it out.
    """
    print_parts(console, picture(snapshot, listing or Listing()))


def picture(snapshot: stats.Snapshot, listing: Listing) -> Iterator[RenderableType]:
    """Draw a snapshot part by part; what there is nothing of is left out.

    :param snapshot: what to draw.
    :param listing: how to lay it out.
    """
    yield from _head(snapshot, listing)
    yield from troubles_of(snapshot.troubles, listing)
    yield from live_units(snapshot.workers, listing)
    for database in snapshot.databases:
        yield from database_parts(database, listing, has_workers=bool(snapshot.workers))
    yield from pools_of([pool for worker in snapshot.workers for pool in worker.pools], listing)
    yield from labels_of(snapshot.totals.labels, listing)
    yield from rules_of(snapshot.totals)
    notes = (*snapshot.notes, *(note for database in snapshot.databases for note in database.notes))
    for number, note in enumerate(dict.fromkeys(notes)):
        yield text_of(f"{'' if number else chr(10)}Note: {note}", "dim")
    if listing.explains:
        yield from explanations_of(snapshot.troubles, listing)


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
        yield from map(text_of, _totals(snapshot.totals) if snapshot.ended else ())
    if listing.choice:
        yield text_of(f"Listed: {listing.choice}.")
    if not snapshot.databases:
        yield text_of(f"No database of app {snapshot.app!r} is known: its session is bound to none.")


def _no_worker(listing: Listing) -> str:
    if listing.workers:
        return f"No worker {' or '.join(map(str, listing.workers))} publishes here."
    return (
        "No worker publishes here: none has served a request since its start, UOW_STATS is False, their files were "
        "removed, or they run on another host, as another user or with another temporary folder (set UOW_STATS_DIR)."
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
