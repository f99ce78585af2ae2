"""What ours has to show, as figures, and whether it does."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.peers.measuring import DRIVER, POSTGRESQL, SQLITE, TIMED_VIEWS, Cell, Results
from tests.benchmarks.peers.stacks import (
    FLASK_SQLALCHEMY_PING,
    FLASK_SQLALCHEMY_PING_3,
    HAND,
    HAND_3,
    OURS,
    OURS_3,
)
from tests.benchmarks.peers.views import VIEWS

MOST_TRIPS = {
    "read": 1,
    "select": 2,
    "write": 2,
    "nested": 5,
    "exception": 4,
    "duplicate": 4,
    "reads-nested": 5,
    "render": 3,
    "strict": 2,
    "after-strict": 2,
}
LEAST_THROUGHPUT = {
    Cell(0.0005, 1, "write"): 1.6,
    Cell(0.0005, 1, "read"): 2.5,
    Cell(0.002, 8, "write"): 1.5,
    Cell(0.002, 8, "read"): 2.2,
    Cell(0.0005, 8, "write"): 1.15,
    Cell(0.0005, 8, "read"): 1.25,
}
"""How many times Flask-SQLAlchemy's with ``pool_pre_ping``, on the same driver."""
MOST_CPU = {POSTGRESQL: 1.05, SQLITE: 1.08}
"""How many times that of the same view by hand, on the same driver."""
MOST_HOLDING = 0.10

HAND_OF_DRIVER = {DRIVER: HAND, "psycopg": HAND_3}
PEER_OF_DRIVER = {DRIVER: FLASK_SQLALCHEMY_PING, "psycopg": FLASK_SQLALCHEMY_PING_3}


@dataclass(frozen=True)
class Demand:
    """A figure that has to be reached.

    :param what: what it is of.
    :param measured: the figure.
    :param wanted: its bound.
    :param is_most: whether that is the most that it may be, or the least.
    """

    what: str
    measured: float
    wanted: float
    is_most: bool = True

    @property
    def is_met(self) -> bool:
        """Whether it is reached."""
        return self.measured <= self.wanted if self.is_most else self.measured >= self.wanted


def check(results: Results) -> list[Demand]:
    """Compare what was measured with what is demanded of it, on both drivers."""
    ours = [stack for stack in results.stacks if stack.name in (OURS, OURS_3)]
    return [demand for stack in ours for demand in _check(results, stack.name, stack.driver)]


def _check(results: Results, name: str, driver: str) -> Iterator[Demand]:
    for view, most in MOST_TRIPS.items():
        yield Demand(f"{name}: round trips of {VIEWS[view].title}", results.trips[name][view].most, most)
    holding = f"{name}: part of a request that commits and renders for which a connection is held"
    yield Demand(holding, results.holding[name], MOST_HOLDING)
    for database, most_cpu in MOST_CPU.items():
        for view in TIMED_VIEWS:
            figures = results.cpu[database, view]
            if name in figures:
                ratio = figures[name].over(figures[HAND_OF_DRIVER[driver]])
                yield Demand(f"{name}: CPU of a {view} on {database}, over by hand", ratio, most_cpu)
    for cell, least in LEAST_THROUGHPUT.items():
        if cell not in results.loads:
            continue
        loads = results.loads[cell]
        ratio = loads[name].rate.over(loads[PEER_OF_DRIVER[driver]].rate)
        yield Demand(f"{name}: {cell}, over Flask-SQLAlchemy", ratio, least, is_most=False)
