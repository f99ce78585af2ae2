"""What is measured, as a table that knows no exporter: each metric's name, its meaning, how it is read off the boards.

The names are Prometheus's, without the ``_total`` of its counters; how else they are written is left to the exporters.
Nothing here asks a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from .._rules import RULES
from ..stats import BUCKET_BOUNDS_SECONDS, Boards, Counts, Histogram, LabelCounts, LiveUnit, PoolSnapshot, State

Values = Mapping[tuple[str, ...], float]
"""One number for each combination of label values."""

STATES = tuple(state for name, state in vars(State).items() if name.isupper())


class Kind(Enum):
    """What can be done with a number."""

    COUNTER = "never falls, and can be added up"
    AMOUNT = "rises and falls, and can be added up"
    EXTREME = "the largest of several: to add it up would mean nothing"


@dataclass(frozen=True, slots=True)
class Reading:
    """The boards at one moment.

    :param boards: the boards.
    :param totals: what they count together, added up once.
    """

    boards: Boards
    totals: Counts

    @classmethod
    def of(cls, boards: Boards) -> Reading:
        """Add up what the boards count."""
        return cls(boards, boards.totals)

    @property
    def live(self) -> list[tuple[LiveUnit, LiveUnit]]:
        """What the living workers do now: the outermost of each transaction, and the innermost, which knows its state.

        While a savepoint runs, the unit around it stays as it was when that began.
        """
        return [(stack[0], stack[-1]) for worker in self.boards.workers for stack in worker.stacks]

    @property
    def pools(self) -> dict[str, list[PoolSnapshot]]:
        """The living workers' pools by bind."""
        pools: dict[str, list[PoolSnapshot]] = {}
        for worker in self.boards.workers:
            for pool in worker.pools:
                pools.setdefault(pool.bind, []).append(pool)
        return pools


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    :param name: its name, ``_seconds`` at the end if that is its unit.
    :param kind: what can be done with it.
    :param meaning: one sentence.
    :param labels: the names of its labels.
    :param read: reads its values.
    """

    name: str
    kind: Kind
    meaning: str
    read: Callable[[Reading], Values]
    labels: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """``seconds``, or nothing for what is only counted."""
        return "seconds" if self.name.endswith("_seconds") else ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram.

    :param name: its name; the unit is seconds.
    :param meaning: one sentence.
    :param read: reads it.
    """

    name: str
    meaning: str
    read: Callable[[Counts], Histogram]


def buckets(histogram: Histogram) -> list[tuple[str, int]]:
    """Give each bucket's upper bound, and how many took no longer: all of them at ``+Inf``.

    :param histogram: of the boards, whose buckets count for themselves.
    """
    bounds = [*map(str, BUCKET_BOUNDS_SECONDS), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


# ---- how the values are read


def _total(read: Callable[[Counts], float]) -> Callable[[Reading], Values]:
    return lambda reading: {(): read(reading.totals)}


def _outcomes(reading: Reading) -> Values:
    units = reading.totals.units
    return {("committed",): units.committed, ("rolled_back",): units.rolled_back, ("failed",): units.failed}


def _violations(reading: Reading) -> Values:
    # A rule that nobody has broken is 0 and not missing, so that the first violation is seen as a rise.
    return {(code,): reading.totals.rules.get(code, 0) for code in sorted({*RULES, *reading.totals.rules})}


def _by_label(
    read: Callable[[LabelCounts], float], together: Callable[[float, float], float] = lambda one, other: one + other
) -> Callable[[Reading], Values]:
    """One value for each label, outermost and inner ones apart; places that share a label are one."""

    def values(reading: Reading) -> Values:
        found: dict[tuple[str, ...], float] = {}
        for counts in reading.totals.labels:
            key = (counts.label, "inner" if counts.is_inner else "outermost")
            found[key] = together(found[key], read(counts)) if key in found else read(counts)
        return found

    return values


def _by_bind(
    read: Callable[[PoolSnapshot], float | None], together: Callable[[Iterable[float]], float] = sum
) -> Callable[[Reading], Values]:
    """One value for each bind; none where a pool does not know its part, or has no limit."""

    def values(reading: Reading) -> Values:
        found: dict[tuple[str, ...], float] = {}
        for bind, pools in reading.pools.items():
            known = [value for value in map(read, pools) if value is not None]
            if len(known) == len(pools):
                found[(bind,)] = together(known)
        return found

    return values


def _states(live: Iterable[LiveUnit]) -> Values:
    found: dict[tuple[str, ...], float] = {(state,): 0 for state in STATES}
    for each in live:
        found[(each.state,)] = found.get((each.state,), 0) + 1
    return found


def _longest(seconds: Iterator[float]) -> Values:
    return {(): max(seconds, default=0.0)}


def _untold(reading: Reading) -> Values:
    found: dict[tuple[str, ...], float] = dict.fromkeys([("units",), ("connections",), ("labels",), ("pools",)], 0)
    for worker in reading.boards.workers:
        for what, count in worker.untold.items():
            found[(what,)] = found.get((what,), 0) + count
    return found


# ---- the table

METRICS = (
    Metric(
        "flask_uow_units_begun", Kind.COUNTER, "Outermost units that have begun.", _total(lambda it: it.units.begun)
    ),
    Metric("flask_uow_units", Kind.COUNTER, "Outermost units that have ended, by outcome.", _outcomes, ("outcome",)),
    Metric(
        "flask_uow_units_retried",
        Kind.COUNTER,
        "Attempts that were lost and made again.",
        _total(lambda it: it.units.retried),
    ),
    Metric(
        "flask_uow_sessions_opened",
        Kind.COUNTER,
        "Sessions that were made.",
        _total(lambda it: it.sessions.opened),
    ),
    Metric(
        "flask_uow_sessions_closed",
        Kind.COUNTER,
        "Sessions that were taken back.",
        _total(lambda it: it.sessions.closed),
    ),
    Metric(
        "flask_uow_sessions_leaked",
        Kind.COUNTER,
        "Sessions and connections that outlived their context.",
        _total(lambda it: it.sessions.leaked),
    ),
    Metric("flask_uow_statements", Kind.COUNTER, "Statements that were sent.", _total(lambda it: it.statements)),
    Metric("flask_uow_rule_violations", Kind.COUNTER, "Violations of the rules, by code.", _violations, ("code",)),
    Metric(
        "flask_uow_label_units",
        Kind.COUNTER,
        "Units that have ended, by label.",
        _by_label(lambda it: it.count),
        ("label", "nesting"),
    ),
    Metric(
        "flask_uow_label_errors",
        Kind.COUNTER,
        "Units that ended by an exception, by label.",
        _by_label(lambda it: it.errors),
        ("label", "nesting"),
    ),
    Metric(
        "flask_uow_label_seconds",
        Kind.COUNTER,
        "How long units took together, by label.",
        _by_label(lambda it: it.total_seconds),
        ("label", "nesting"),
    ),
    Metric(
        "flask_uow_label_statements",
        Kind.COUNTER,
        "Statements inside units, by label; those of an inner unit are the outer one's as well.",
        _by_label(lambda it: it.statements),
        ("label", "nesting"),
    ),
    Metric(
        "flask_uow_label_worst_seconds",
        Kind.EXTREME,
        "How long the longest unit took, by label.",
        _by_label(lambda it: it.worst_seconds, max),
        ("label", "nesting"),
    ),
    Metric(
        "flask_uow_pool_size",
        Kind.AMOUNT,
        "Connections that the pools keep open once they are.",
        _by_bind(lambda it: it.size),
        ("bind",),
    ),
    Metric(
        "flask_uow_pool_checked_out",
        Kind.AMOUNT,
        "Connections that are checked out.",
        _by_bind(lambda it: it.checked_out),
        ("bind",),
    ),
    Metric(
        "flask_uow_pool_overflow",
        Kind.AMOUNT,
        "Connections beyond the pools' size that are open.",
        _by_bind(lambda it: it.overflow),
        ("bind",),
    ),
    Metric(
        "flask_uow_pool_limit",
        Kind.AMOUNT,
        "The most connections that the pools may open; missing where there is no limit.",
        _by_bind(lambda it: it.limit),
        ("bind",),
    ),
    Metric(
        "flask_uow_pool_waiting",
        Kind.AMOUNT,
        "Who waits for a connection now.",
        _by_bind(lambda it: it.waiting),
        ("bind",),
    ),
    Metric(
        "flask_uow_pool_timeouts",
        Kind.AMOUNT,
        "Waits in vain for a connection in the workers that live now; falls when one ends.",
        _by_bind(lambda it: it.timeouts),
        ("bind",),
    ),
    Metric(
        "flask_uow_pool_longest_wait_seconds",
        Kind.EXTREME,
        "The longest wait for a connection.",
        _by_bind(lambda it: it.longest_wait_seconds, max),
        ("bind",),
    ),
    Metric(
        "flask_uow_live_units",
        Kind.AMOUNT,
        "Outermost units that are active now, by state.",
        lambda reading: _states(inner for outer, inner in reading.live if outer.kind == "unit"),
        ("state",),
    ),
    Metric(
        "flask_uow_live_connections",
        Kind.AMOUNT,
        "Connections that are in use outside of units now, by state.",
        lambda reading: _states(inner for outer, inner in reading.live if outer.kind != "unit"),
        ("state",),
    ),
    Metric(
        "flask_uow_oldest_unit_seconds",
        Kind.EXTREME,
        "How long ago the oldest active unit began; 0 if there is none.",
        lambda reading: _longest(outer.seconds for outer, _ in reading.live if outer.kind == "unit"),
    ),
    Metric(
        "flask_uow_oldest_idle_in_transaction_seconds",
        Kind.EXTREME,
        "How long the longest idle transaction has been so; 0 if there is none.",
        lambda reading: _longest(inner.state_seconds for _, inner in reading.live if inner.state == State.IDLE),
    ),
    Metric(
        "flask_uow_workers",
        Kind.AMOUNT,
        "Processes of the app that live.",
        lambda reading: {(): len(reading.boards.workers)},
    ),
    Metric(
        "flask_uow_workers_ended",
        Kind.COUNTER,
        "Processes of the app that have ended; what they counted is in the counters.",
        lambda reading: {(): reading.boards.ended.workers if reading.boards.ended else 0},
    ),
    Metric(
        "flask_uow_untold",
        Kind.AMOUNT,
        "What found no room on the living workers' boards and is missing here.",
        _untold,
        ("what",),
    ),
)

DISTRIBUTIONS = (
    Distribution("flask_uow_unit_seconds", "How long outermost units took.", lambda it: it.unit_seconds),
    Distribution(
        "flask_uow_connection_held_seconds",
        "How long connections were checked out at a time.",
        lambda it: it.held_seconds,
    ),
    Distribution(
        "flask_uow_idle_in_transaction_seconds",
        "How long outermost units were idle in their transaction in all.",
        lambda it: it.idle_seconds,
    ),
)
