"""What happened in one request, on the clock: its units, its connections and what was sent on them, its templates.

Here is what a timeline holds and what follows from it: round trips, SQL, idle, unit. How one is filled is left to
:mod:`flask_uow._recording`. All times are seconds of the monotonic clock.

A duration is time on the clock: what happens on two connections at once counts once.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

clock = time.monotonic

Stretch = tuple[float, float]
"""From when to when."""


class Sent(StrEnum):
    """What the client has sent, and waited for."""

    BEGIN = "begin"
    DEADLINE = "deadline"
    STATEMENT = "statement"
    SAVEPOINT = "savepoint"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    PING = "ping"
    CONNECT = "connect"


@dataclass(slots=True)
class Span:
    """Something that was sent on a connection, until its answer.

    :param kind: what it was.
    :param start: when it was sent.
    :param end: when the answer was there.
    :param text: the statement, without its parameters.
    :param unit: the label of the innermost unit of the session that sent it, None outside of units.
    :param trips: how many round trips it took; none where it waited for the next statement, or was never sent.
    :param begins: whether the driver sent BEGIN ahead of it, in a trip of its own or in the same one; its time is in
        the span.
    :param is_in_transaction: whether the connection was in a transaction after it.
    :param error: the class of the exception that it ended in, None if it was answered well.
    """

    kind: Sent
    start: float
    end: float
    text: str
    unit: str | None = None
    trips: int = 1
    begins: bool = False
    is_in_transaction: bool = False
    error: str | None = None


@dataclass(slots=True)
class Lane:
    """One connection, as far as the request used it.

    :param bind: the database's name in the configuration.
    :param dbapi_connection: the driver's connection; forgotten when the request is over.
    :ivar spans: what was sent, in order.
    :ivar holds: when it was out of the pool; the end of one that still is, is infinite.
    :ivar is_in_transaction: whether it was when it was seen last.
    :ivar begun_at: when SQLAlchemy began a transaction on it, None if something was sent since.
    :ivar limit_s: what its server was told of a unit's deadline when it was seen last.
    :ivar seen_trips: how many round trips it had counted itself when it was seen last; None where it does not, or was
        given back.
    """

    bind: str
    dbapi_connection: Any = None
    spans: list[Span] = field(default_factory=list)
    holds: list[Stretch] = field(default_factory=list)
    is_in_transaction: bool = False
    begun_at: float | None = None
    limit_s: float | None = None
    seen_trips: int | None = None

    def count_trips(self) -> int | None:
        """The round trips since this was asked last, by the connection's own count; None where it does not count."""
        now: int | None = getattr(self.dbapi_connection, "trips", None)
        before, self.seen_trips = self.seen_trips, now
        if now is None:
            return None
        return 0 if before is None else now - before

    def hold(self, now: float) -> None:
        """The connection leaves the pool."""
        if not self.holds or self.holds[-1][1] <= now:
            self.holds.append((now, float("inf")))

    def give_back(self, now: float) -> None:
        """The connection is back in the pool, or lost."""
        self.is_in_transaction, self.begun_at, self.seen_trips = False, None, None
        if self.holds and self.holds[-1][1] > now:
            self.holds[-1] = (self.holds[-1][0], now)

    def idle(self, until: float) -> Iterator[Stretch]:
        """The stretches in which it was in a transaction, and the client did not talk to its server."""
        spans, ends = list(self.spans), self._ends_of_holds()
        for position, span in enumerate(spans):
            if span.is_in_transaction:
                following = spans[position + 1].start if position + 1 < len(spans) else until
                end = min(following, _first_after(ends, span.end, until))
                if end > span.end:
                    yield span.end, end

    def transactions(self, until: float) -> Iterator[Stretch]:
        """From each BEGIN to its COMMIT, ROLLBACK or loss."""
        start: float | None = None
        for span in list(self.spans):
            if start is None and (span.is_in_transaction or span.begins):
                start = span.start
            if start is not None and not span.is_in_transaction:
                yield start, span.end
                start = None
        if start is not None:
            yield start, _first_after(self._ends_of_holds(), start, until)

    def _ends_of_holds(self) -> list[float]:
        """When it was given back, in order: a lane is held once at a time."""
        return [end for _, end in self.holds]


@dataclass(slots=True)
class UnitSpan:
    """An outermost unit or a savepoint.

    :param label: the unit's.
    :param depth: the unit's.
    :param attempt: the unit's.
    :param read_only: the unit's.
    :param start: when it had begun.
    :param end: when it had ended; infinite before that.
    :param outcome: ``committed`` or ``rolled back``; None where nobody was told.
    :param unit: the unit itself, until it has ended.
    """

    label: str
    depth: int
    attempt: int
    read_only: bool
    start: float
    end: float = float("inf")
    outcome: str | None = None
    unit: Any = None


@dataclass(slots=True)
class Rendering:
    """A template, from its context to its text.

    :param template: its name.
    """

    template: str
    start: float
    end: float = float("inf")


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule's violation, where it happened.

    :param at: when it was noticed.
    :param where: the application's line, None if there is none to blame.
    """

    code: str
    at: float
    what: str
    where: str | None
    fix: str | None


@dataclass(slots=True)
class Timeline:
    """One request.

    :param request: its method and path.
    :ivar end: when its response was ready; infinite before that.
    """

    request: str
    start: float = field(default_factory=clock)
    end: float = float("inf")
    lanes: list[Lane] = field(default_factory=list)
    units: list[UnitSpan] = field(default_factory=list)
    renderings: list[Rendering] = field(default_factory=list)
    breaches: list[Breach] = field(default_factory=list)

    def lane(self, dbapi_connection: object, bind: str) -> Lane:
        """The lane of a driver's connection."""
        for lane in self.lanes:
            if lane.dbapi_connection is dbapi_connection:
                return lane
        lane = Lane(bind, dbapi_connection)
        lane.count_trips()
        self.lanes.append(lane)
        return lane

    def close(self) -> None:
        """The response is ready: what is open goes on until here, as far as the timeline knows."""
        self.end = clock()
        for lane in self.lanes:
            lane.holds = [(start, min(end, self.end)) for start, end in lane.holds]
            lane.dbapi_connection = None
        for unit in self.units:
            unit.end = min(unit.end, self.end)
            unit.unit = None
        for rendering in self.renderings:
            rendering.end = min(rendering.end, self.end)

    @property
    def is_over(self) -> bool:
        """Whether the response is ready."""
        return self.end != float("inf")

    @property
    def is_empty(self) -> bool:
        """Whether no unit was begun and nothing was sent."""
        return not self.units and not any(lane.spans for lane in self.lanes)

    @property
    def unit_count(self) -> int:
        """How many outermost units there were, independent ones and each attempt included."""
        return sum(unit.depth == 1 for unit in self.units)

    @property
    def trips(self) -> int:
        """Round trips; what a driver says to open a connection is not counted."""
        return sum(span.trips for lane in self.lanes for span in lane.spans)

    @property
    def unit_s(self) -> float:
        """Seconds in which a unit was active."""
        return covered((unit.start, unit.end) for unit in self.units)

    @property
    def sql_s(self) -> float:
        """Seconds in which the client waited for a server."""
        return covered((span.start, span.end) for lane in self.lanes for span in lane.spans)

    @property
    def idle_s(self) -> float:
        """Seconds in which a connection sat idle in its transaction."""
        return covered(stretch for lane in self.lanes for stretch in lane.idle(self.end))


def _first_after(moments: list[float], moment: float, until: float) -> float:
    """The first of some moments, which are in order, that is not before another; ``until`` if there is none."""
    place = bisect_left(moments, moment)
    return moments[place] if place < len(moments) else until


def covered(stretches: Iterable[Stretch]) -> float:
    """How long it was that at least one of the stretches went on."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(stretches):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
