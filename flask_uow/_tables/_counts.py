"""What the workers have counted: pools, labels and broken rules."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Sequence

from .. import stats
from .._rules import RULES
from ..stats import duration
from ._cells import Label, known, rest, table, text_of
from ._listing import BY_LABEL, Listing

if t.TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def pools_of(pools: Sequence[stats.PoolSnapshot], listing: Listing) -> Iterator[RenderableType]:
    """Draw the pools of all workers, the fullest first."""
    if not pools:
        return
    in_use, limits = sum(pool.checked_out or 0 for pool in pools), [pool.limit for pool in pools]
    total = "" if None in limits else f" of {sum(filter(None, limits)):,}"
    waiting = sum(pool.waiting or 0 for pool in pools)
    yield text_of(f"\npools ({len(pools)}): {in_use:,}{total} connections in use, {waiting:,} waited for", "bold")
    yield pool_table(pools, listing)
    yield from rest(len(pools), listing.limit)


def pool_table(pools: Sequence[stats.PoolSnapshot], listing: Listing) -> Table:
    """Make a table of pools; one without a limit has none, and what is not known is a dash."""
    heads = ("worker", "size", "in use", "overflow", "limit", "waiting", "timeouts", "longest")
    rows = table(*heads, last="bind", min_width=4, gap=1)
    for pool in sorted(pools, key=_fullness)[: listing.limit or None]:
        is_bounded = pool.limit is not None or not pool.has_counters
        style = "bold red" if (pool.usage or 0.0) >= 1 else "yellow" if (pool.usage or 0.0) >= 0.9 else ""
        rows.add_row(
            str(pool.process_pid),
            *map(known, (pool.size, pool.checked_out, pool.overflow)),
            known(pool.limit) if is_bounded else "none",
            *map(known, (pool.waiting, pool.timeouts)),
            duration(pool.longest_wait_seconds),
            text_of(pool.bind + ("" if pool.class_name == "QueuePool" else f" ({pool.class_name})")),
            style=style,
        )
    return rows


def _fullness(pool: stats.PoolSnapshot) -> tuple[int, float, int]:
    return -(pool.waiting or 0), -(pool.usage or 0.0), -(pool.checked_out or 0)


def labels_of(labels: Sequence[stats.LabelCounts], listing: Listing) -> Iterator[RenderableType]:
    """Draw what was counted of the units of each label."""
    if not labels:
        return
    rows = table("count", "errors", "mean", "worst", "stmts/unit", last="label", min_width=6)
    for each in sorted(labels, key=BY_LABEL[listing.sort])[: listing.limit or None]:
        rows.add_row(
            f"{each.count:,}",
            text_of(f"{each.errors:,}", "red" if each.errors else ""),
            _short(each.total_seconds / each.count if each.count else None),
            _short(each.worst_seconds),
            f"{each.statements / each.count:.1f}" if each.count else "-",
            Label(f"{'+ ' if each.is_inner else ''}{each.label}", each.where),
        )
    inner = ", + is inside of another" if any(each.is_inner for each in labels) else ""
    yield text_of(f"\nlabels ({len(labels)}), by {listing.sort}{inner}", "bold")
    yield rows
    yield from rest(len(labels), listing.limit)


def _short(seconds: float | None) -> str:
    """Give a duration that is mostly one of milliseconds."""
    if seconds is None or seconds >= 1:
        return duration(seconds)
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def rules_of(totals: stats.Counts) -> Iterator[RenderableType]:
    """Draw the rules that were broken, the most often broken first."""
    counts = {code: count for code, count in totals.rules.items() if count}
    if not counts:
        return
    rows = table("count", last="rule")
    rows.columns[0].min_width = 6
    for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        title = RULES[code].title if code in RULES else "a rule of another version"
        rows.add_row(f"{count:,}", text_of(f"{code}  {title}"))
    yield text_of("\nrules broken", "bold")
    yield rows
