"""What happened in an app's databases, in order: units, statements, violations; and what a test may ask of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from .. import signals
from .._callsite import application_site
from .._state import link_of
from ..exceptions import RuleViolationError, RuleWarning
from ._tested import engines_of, tested

if TYPE_CHECKING:
    from .._units import Unit

_OF_TRANSACTIONS = ("SAVEPOINT ", "RELEASE ", "ROLLBACK TO ", "SET LOCAL TRANSACTION ")
_LONGEST = 100


@dataclass(slots=True)
class Event:
    """Something that happened.

    :param kind: ``unit``, ``commit``, ``rollback``, ``statement``, ``transaction`` (what makes and ends savepoints, or
        gives a transaction its options) or ``violation``.
    :param text: the unit's label, the statement without its parameters, or what was wrong.
    :param unit: the label of the unit in which it happened, None outside of units.
    :param where: the application's line that did it, None if there is none.
    :param depth: the unit's, for what units do.
    """

    kind: str
    text: str
    unit: str | None
    where: str | None
    depth: int = 0

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
        return f"{self.kind:<11}  {self.unit or '-':<24}  {shown}" + (f"\n{'':17}at {self.where}" if self.where else "")


@dataclass(slots=True)
class Trace:
    """What :func:`traced` saw, in order.

    :ivar events: all of it.
    """

    events: list[Event] = field(default_factory=list)
    _connections: list[_Counted] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds."""
        return [each for each in self.events if each.kind in kinds]

    @property
    def units(self) -> list[str]:
        """The labels of the outermost units, independent ones and each attempt included, as they began."""
        return [each.text for each in self.of("unit") if each.depth == 1]

    @property
    def commits(self) -> list[str]:
        """The labels of the units whose work was kept, savepoints included."""
        return [each.text for each in self.of("commit")]

    @property
    def rollbacks(self) -> list[str]:
        """The labels of the units whose work was undone, savepoints included."""
        return [each.text for each in self.of("rollback")]

    @property
    def statements(self) -> list[str]:
        """The statements' texts; what makes and ends savepoints, or gives a transaction its options, is none."""
        return [each.text for each in self.of("statement")]

    @property
    def violations(self) -> list[str]:
        """The violations of rules."""
        return [each.text for each in self.of("violation")]

    @property
    def round_trips(self) -> int | None:
        """How often a server was waited for; None where that is not told: on SQLite, without riding, in isolation."""
        counts = [connection.trips for connection in self._connections]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def clear(self) -> None:
        """Forget what has happened so far."""
        self.events.clear()
        self._connections[:] = [each for each in self._connections if each.is_out]
        for connection in self._connections:
            connection.begin()

    def assert_units(self, number: int) -> None:
        """Fail unless so many outermost units began."""
        if len(self.units) != number:
            raise AssertionError(self._told(f"{_counted(len(self.units), 'unit')} began, and not {number}"))

    def assert_max_statements(self, number: int) -> None:
        """Fail if more statements were sent."""
        if len(self.statements) > number:
            sent = _counted(len(self.statements), "statement")
            raise AssertionError(self._told(f"{sent} sent, and at most {number} were expected", "statement"))

    def assert_max_round_trips(self, number: int) -> None:
        """Fail if a server was waited for more often, or if nobody can tell how often."""
        trips = self.round_trips
        if trips is None:
            raise AssertionError(self._told("Round trips are told where statements ride, and in no isolation"))
        if trips > number:
            raise AssertionError(self._told(f"{_counted(trips, 'round trip')}, and at most {number} were expected"))

    def assert_no_violations(self) -> None:
        """Fail if a rule was broken."""
        if self.violations:
            raise AssertionError(self._told(f"{_counted(len(self.violations), 'violation')} of rules"))

    def _told(self, what: str, *kinds: str) -> str:
        return f"{what}:\n{listing(self.of(*kinds) if kinds else self.events)}"

    def __str__(self) -> str:
        return listing(self.events)


class _Counted:
    """A connection, from when it was taken until it is back, and its own count of round trips."""

    def __init__(self, dbapi_connection: Any) -> None:
        self._connection = dbapi_connection
        self._ended: int | None = None
        self.is_out = True
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._began: int | None = getattr(self._connection, "trips", None)

    def end(self) -> None:
        """It is back."""
        self._ended, self._connection, self.is_out = getattr(self._connection, "trips", None), None, False

    def is_of(self, dbapi_connection: object) -> bool:
        """Whether it is that connection's present use; one that was lost comes back to its pool as None."""
        return self.is_out and self._connection is dbapi_connection

    @property
    def trips(self) -> int | None:
        """How many there were."""
        now: int | None = getattr(self._connection, "trips", None) if self.is_out else self._ended
        return None if now is None or self._began is None else now - self._began


def listing(events: Iterable[Event]) -> str:
    """Events line by line: what, in which unit, by which line of the application."""
    return "\n".join(f"{number:>3} {each}" for number, each in enumerate(events, 1)) or "  (nothing happened)"


@contextmanager
def traced(app: Flask) -> Iterator[Trace]:
    """Trace what happens in an app's databases while the block runs.

    .. code-block:: python

        with traced(app) as trace:
            client.post("/transfers", json={"amount": 30})
        trace.assert_units(1)
        trace.assert_max_statements(5)
    """
    app, state = tested(app)
    trace = Trace()
    with ExitStack() as stack:
        for engine in engines_of(app, state):
            _listen(stack, engine, "before_cursor_execute", _Statements(trace))
            _listen(stack, engine.pool, "checkout", _Checkouts(trace))
            _listen(stack, engine.pool, "checkin", _Checkins(trace))
        for signal, receiver in _receivers(trace):
            stack.enter_context(signal.connected_to(receiver, app))
        yield trace


def _listen(stack: ExitStack, target: Any, name: str, listener: Any) -> None:
    event.listen(target, name, listener)
    stack.callback(event.remove, target, name, listener)


def _receivers(trace: Trace) -> Iterator[tuple[Any, Any]]:
    def began(sender: Any, unit: Unit) -> None:
        trace.events.append(_of_unit("unit", unit))

    def committed(sender: Any, unit: Unit) -> None:
        trace.events.append(_of_unit("commit", unit))

    def rolled_back(sender: Any, unit: Unit, exception: BaseException | None) -> None:
        trace.events.append(_of_unit("rollback", unit))

    def violated(sender: Any, code: str, violation: RuleViolationError | RuleWarning) -> None:
        trace.events.append(Event("violation", f"[{code}] {violation.what}", None, violation.where))

    yield signals.unit_began, began
    yield signals.unit_committed, committed
    yield signals.unit_rolled_back, rolled_back
    yield signals.rule_violated, violated


def _of_unit(kind: str, unit: Unit) -> Event:
    return Event(kind, unit.label, unit.parent.label if unit.parent else None, unit.where, unit.depth)


class _Statements:
    """Is told of each statement before it is sent."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(
        self, connection: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        link, site = link_of(connection), application_site()
        unit = link.state.unit if link is not None else None
        kind = "transaction" if statement.startswith(_OF_TRANSACTIONS) else "statement"
        self._trace.events.append(Event(kind, statement, unit.label if unit else None, str(site) if site else None))


class _Checkouts:
    """Is told of each connection that leaves the pool."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        self._trace._connections.append(_Counted(dbapi_connection))


class _Checkins:
    """Is told of each connection that comes back."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(self, dbapi_connection: Any, record: Any) -> None:
        for connection in self._trace._connections:
            if connection.is_of(dbapi_connection):
                connection.end()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
