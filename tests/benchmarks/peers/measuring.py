"""What is measured, in which order, and for how long."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import psycopg2
import sqlalchemy as sa
from flask import Flask

from tests.benchmarks.peers.speed import Figures, Load, measure_cpu, measure_holding, measure_loads
from tests.benchmarks.peers.stacks import IN_MEMORY, Stack, make_stacks, served
from tests.benchmarks.peers.trips import TripsTable, calibrate, count_trips, through, wait_for_trips
from tests.benchmarks.peers.wire import Latency, Used, run_wire
from tests.throwaway_server import ServerError

SQLITE = "SQLite in memory"
POSTGRESQL = "PostgreSQL"
TIMED_VIEWS = ("write", "read")
SLOW_VIEW = "render-slowly"
DRIVER = "psycopg2"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    :param counted: requests of each view whose round trips are counted.
    :param is_confirmed: whether the round trips are confirmed as time over latency.
    :param cpu_rounds: rounds in which CPU time is measured.
    :param cpu_requests: requests in each.
    :param rounds: rounds in which throughput is measured.
    :param round_s: how long each is, in seconds.
    :param latencies_s: of the wire, in seconds; 0 is the server without a wire.
    :param threads: how many make requests at once.
    """

    counted: int = 8
    is_confirmed: bool = True
    cpu_rounds: int = 100
    cpu_requests: int = 40
    rounds: int = 25
    round_s: float = 0.1
    latencies_s: tuple[float, ...] = (0.0, 0.0005, 0.002)
    threads: tuple[int, ...] = (1, 8)

    @classmethod
    def quick(cls) -> Self:
        """Measure all of it once: enough to see that it works, and to count round trips."""
        return cls(
            counted=2,
            is_confirmed=False,
            cpu_rounds=1,
            cpu_requests=2,
            rounds=1,
            round_s=0.0,
            latencies_s=(0.0, 0.0005),
            threads=(1,),
        )


def wire_of(latency_s: float, threads: int) -> str:
    """Say on what wire and by how many."""
    return f"{latency_s * 1e3:g} ms to the server, {threads} {'thread' if threads == 1 else 'threads'}"


@dataclass(frozen=True, order=True)
class Cell:
    """Under what load and on what wire a view was measured."""

    latency_s: float
    threads: int
    view: str

    def __str__(self) -> str:
        return f"{self.view}s per second, {wire_of(self.latency_s, self.threads)}"


@dataclass(frozen=True)
class WireCost:
    """What a wire did at a latency.

    :param latency: what it added.
    :param used: what its process used meanwhile.
    :param elapsed_s: for how long it was used, in seconds.
    """

    latency: Latency
    used: Used
    elapsed_s: float


@dataclass
class Results:
    """What was measured; each by the name of its stack at last.

    :param stacks: what was measured.
    :param missing: packages of stacks that could not be.
    :param load: the machine's load average before.
    :param waits: the round trips as time over latency.
    :param holding: for what part of a request that commits and then renders a connection is held.
    :param cpu: by database and view, in seconds.
    """

    stacks: list[Stack]
    missing: list[str]
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    trips: TripsTable = field(default_factory=dict)
    waits: TripsTable = field(default_factory=dict)
    holding: dict[str, float] = field(default_factory=dict)
    cpu: dict[tuple[str, str], dict[str, Figures]] = field(default_factory=dict)
    loads: dict[Cell, dict[str, Load]] = field(default_factory=dict)
    wires: dict[float, WireCost] = field(default_factory=dict)


def measure(server: sa.URL, plan: Plan, say: Callable[[str], object]) -> Results:
    """Measure all stacks that are installed.

    :param server: an empty database, without a driver.
    :param say: is told what is being measured.
    :raises ServerError: if the server has too few connections.
    """
    results = Results(*make_stacks())
    _check_room(server, results, plan)
    say("Counting round trips")
    results.trips = count_trips(results.stacks, server, plan.counted)
    _measure_cpu(results, IN_MEMORY, SQLITE, plan, say)
    url = server.render_as_string(hide_password=False)
    _measure_cpu(results, url, POSTGRESQL, plan, say)
    say("Measuring how long connections are held")
    for stack in results.stacks:
        with served(stack, url) as app:
            results.holding[stack.name] = measure_holding(app, SLOW_VIEW, plan.counted)
    _measure_loads(results, server, plan, say)
    return results


def _check_room(server: sa.URL, results: Results, plan: Plan) -> None:
    # Hand tuned has two engines; some are the superuser's own, and one is ours, to look.
    needed = (len(results.stacks) + 1) * max(plan.threads) + 5
    url = server.render_as_string(hide_password=False)
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('max_connections')::int")
        ((room,),) = cursor.fetchall()
    if room < needed:
        raise ServerError(f"The benchmark needs a server with max_connections = {needed}, and this one has {room}.")


def _measure_cpu(results: Results, url: str, database: str, plan: Plan, say: Callable[[str], object]) -> None:
    # On SQLite the driver is Python's own: a stack whose driver is another one would be the same one twice.
    stacks = [stack for stack in results.stacks if url != IN_MEMORY or stack.driver == DRIVER]
    with _all_served(stacks, url) as apps:
        for view in TIMED_VIEWS:
            say(f"Measuring the CPU time of a {view} on {database}")
            measured = measure_cpu(apps, view, rounds=plan.cpu_rounds, requests=plan.cpu_requests)
            results.cpu[database, view] = measured


def _measure_loads(results: Results, server: sa.URL, plan: Plan, say: Callable[[str], object]) -> None:
    with run_wire(server.host or "localhost", server.port or 5432) as wire:
        if plan.is_confirmed:
            say("Confirming the round trips as time over latency")
            results.waits = wait_for_trips(results.stacks, server, wire)
        for latency_s in plan.latencies_s:
            url = through(server, wire.port) if latency_s else server.render_as_string(hide_password=False)
            if latency_s:
                latency = calibrate(wire, server, latency_s)
            before, begun = wire.used(), time.perf_counter()
            with _all_served(results.stacks, url) as apps:
                _measure_cells(results, apps, latency_s, plan, say)
            if latency_s:
                used, elapsed_s = wire.used().since(before), time.perf_counter() - begun
                results.wires[latency_s] = WireCost(latency, used, elapsed_s)


def _measure_cells(
    results: Results, apps: dict[str, Flask], latency_s: float, plan: Plan, say: Callable[[str], object]
) -> None:
    for threads in plan.threads:
        for view in TIMED_VIEWS:
            cell = Cell(latency_s, threads, view)
            say(f"Measuring {cell}")
            results.loads[cell] = measure_loads(apps, view, threads=threads, rounds=plan.rounds, round_s=plan.round_s)


@contextlib.contextmanager
def _all_served(stacks: list[Stack], url: str) -> Iterator[dict[str, Flask]]:
    with contextlib.ExitStack() as stack_of_apps:
        yield {stack.name: stack_of_apps.enter_context(served(stack, url)) for stack in stacks}
