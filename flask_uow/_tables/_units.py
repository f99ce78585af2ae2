"""What the workers do now: live units, what is inside them, and connections outside of units."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Callable, Iterable, Iterator, Sequence

from .. import stats
from ..stats import State, duration
from ._cells import STYLES, Line, Parts, rest, table, text_of
from ._listing import BY_UNIT, Listing

if t.TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_KINDS: t.Final = {"session": " (session outside of units)", "connection": " (connection taken by hand)"}


def live_units(workers: Iterable[stats.Worker], listing: Listing) -> Iterator[RenderableType]:
    """Draw the live units, what is inside of each below it; the oldest first, if nothing else is asked for."""
    stacks = sorted((stack for worker in workers for stack in worker.stacks), key=_stack_order(listing.sort))
    if not stacks:
        return
    rows = table("age\nworker", "statements\nbackend", last="unit\nstate, thread, line")
    for stack in stacks[: listing.limit or None]:
        for unit in stack[:-1]:
            _add_unit(rows, unit, is_at_work=False)
        _add_unit(rows, _at_work(stack), is_at_work=True)
    yield text_of(f"\nlive units ({len(stacks)})", "bold")
    yield rows
    yield from rest(len(stacks), listing.limit)


def _stack_order(sort: str) -> Callable[[Sequence[stats.LiveUnit]], t.Any]:
    return BY_UNIT.get(sort, lambda stack: -stack[0].seconds)


def _at_work(stack: Sequence[stats.LiveUnit]) -> stats.LiveUnit:
    """Give the innermost unit with what is known of the connection, which may be one of the units around it."""
    told = (unit.server_state for unit in reversed(stack) if unit.server_state is not None)
    names = dict.fromkeys(name for unit in stack for name in unit.waits_for)
    return dataclasses.replace(stack[-1], server_state=next(told, None), waits_for=tuple(names))


def _add_unit(rows: Table, unit: stats.LiveUnit, *, is_at_work: bool) -> None:
    from rich.console import Group
    from rich.padding import Padding

    is_inner = unit.depth > 1
    state = [text_of(_state(unit), _state_style(unit))] if is_at_work else []
    thread = [] if is_inner else [text_of(unit.thread)]
    where = [text_of(unit.where)] if unit.where else []
    details = Parts(*state, *thread, *where)
    kind = _KINDS.get(unit.kind, "")
    backends = "\n".join(map(str, unit.backend_pids)) or "-"
    indent = 2 * (unit.depth - 1) if is_inner else 0
    rows.add_row(
        f"{duration(unit.seconds)}\n{'' if is_inner else unit.worker_pid}",
        f"{unit.statements:,}\n{'' if is_inner else backends}",
        Padding(Group(Line(f"{'+ ' if is_inner else ''}{unit.label}{kind}"), details), (0, 0, 0, indent)),
    )


def _state(unit: stats.LiveUnit) -> str:
    state = stats.ABORTED if _is_aborted(unit) else unit.state
    if unit.server_state is not None and unit.state in (State.HELD, State.LEAKED):
        state = f"{state}, {unit.server_state}"
    attempt = f", attempt {unit.attempt}" if unit.attempt > 1 else ""
    waiting = f", waits for {', '.join(unit.waits_for)}" if unit.waits_for else ""
    return f"{state} for {duration(unit.state_seconds)}{attempt}{waiting}"


def _state_style(unit: stats.LiveUnit) -> str:
    group = stats.ABORTED if _is_aborted(unit) else stats.BLOCKED if unit.waits_for else unit.state
    return STYLES.get(group, "")


def _is_aborted(unit: stats.LiveUnit) -> bool:
    return unit.server_state == stats.ABORTED
