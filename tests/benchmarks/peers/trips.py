"""Round trips of a request: counted on the wire, and confirmed as time over latency."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
import sqlalchemy as sa

from tests.benchmarks.peers.client import Client
from tests.benchmarks.peers.stacks import Stack, served
from tests.benchmarks.peers.views import VIEWS
from tests.benchmarks.peers.wire import Latency, Wire
from tests.faults.proxy import LISTEN, Proxy, run_proxy

COUNTED_VIEWS = [name for name in VIEWS if name != "render-slowly"]
# What a driver or we learn from a statement's text, they have learned when it comes the second time.
WARM_UP = 2
CONFIRMING_LATENCY_S = 0.020
CONFIRMED = 4


@dataclass(frozen=True)
class Trips:
    """How many round trips a request makes: the least and the most of several."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


TripsTable = dict[str, dict[str, Trips]]
"""By stack, then by view."""


def count_trips(stacks: list[Stack], server: sa.URL, requests: int) -> TripsTable:
    """Count the requests that the server gets, for each view on each stack.

    :param server: the database.
    :param requests: how often each view is requested.
    """
    with run_proxy(server.host or "localhost", server.port or 5432) as proxy:
        url = through(server, proxy.port)
        return {stack.name: _count(stack, url, proxy, requests) for stack in stacks}


def _count(stack: Stack, url: str, proxy: Proxy, requests: int) -> dict[str, Trips]:
    counts: dict[str, Trips] = {}
    with served(stack, url) as app:
        client = Client(app)
        for name in COUNTED_VIEWS:
            seen = [_count_one(client, name, proxy) for _ in range(WARM_UP + requests)][WARM_UP:]
            counts[name] = Trips(min(seen), max(seen))
    return counts


def _count_one(client: Client, name: str, proxy: Proxy) -> int:
    if before := VIEWS[name].after:
        client.get(before)
    proxy.requests()
    client.get(name)
    return len(proxy.requests())


def wait_for_trips(stacks: list[Stack], server: sa.URL, wire: Wire) -> TripsTable:
    """Divide what a request takes longer on a slow wire by what a driver's round trip does.

    :param server: the database.
    :param wire: to its server.
    """
    url = through(server, wire.port)
    with _cursor(url) as cursor:
        trip_s = _delayed_s(wire, lambda: cursor.execute("SELECT 1"))
    waits: TripsTable = {}
    for stack in stacks:
        with served(stack, url) as app:
            client = Client(app)
            waits[stack.name] = {name: _wait(client, name, wire, trip_s) for name in COUNTED_VIEWS}
    return waits


def _wait(client: Client, name: str, wire: Wire, trip_s: float) -> Trips:
    before = VIEWS[name].after
    delayed_s = _delayed_s(wire, lambda: client.get(name), (lambda: client.get(before)) if before else None)
    trips = round(delayed_s / trip_s)
    return Trips(trips, trips)


def _delayed_s(wire: Wire, ask: Callable[[], object], before: Callable[[], object] | None = None) -> float:
    """Return by how much longer something takes on a slow wire, in seconds.

    The least of several is taken with and without latency, since others may use the machine as well.
    """
    least_s = []
    for delay_s in (0.0, CONFIRMING_LATENCY_S):
        wire.set_delay(delay_s)
        times_s = []
        for _ in range(CONFIRMED):
            if before:
                before()
            begun = time.perf_counter()
            ask()
            times_s.append(time.perf_counter() - begun)
        least_s.append(min(times_s))
    wire.set_delay(0.0)
    return least_s[1] - least_s[0]


def calibrate(wire: Wire, server: sa.URL, latency_s: float) -> Latency:
    """Give a wire a latency, by round trips of a driver to its server.

    :param latency_s: by how much a round trip is to take longer, in seconds.
    """
    with _cursor(server.render_as_string(hide_password=False)) as direct, _cursor(through(server, wire.port)) as wired:
        return wire.calibrate(latency_s, lambda: wired.execute("SELECT 1"), lambda: direct.execute("SELECT 1"))


@contextlib.contextmanager
def _cursor(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        yield connection.cursor()


def through(server: sa.URL, port: int) -> str:
    """Return a server's URL past which one goes by what listens on a port of this machine."""
    return server.set(host=LISTEN, port=port).render_as_string(hide_password=False)
