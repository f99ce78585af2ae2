"""Throughput, latency, CPU, and how long a connection is held: in short rounds, of all stacks in turn.

Each round's order is another one, so that a machine that slows down slows all alike, and what is compared is one
stack's figure over another's of the same round; the median of that is given.
"""

import gc
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
from flask import Flask

from tests.benchmarks.peers.client import Client

WARM_UP = 5


@dataclass
class Figures:
    """What was measured of a stack, a figure for each round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    def over(self, other: "Figures") -> float:
        """Return by how many times it is another stack's: the median of the rounds' ratios."""
        return statistics.median(mine / its for mine, its in zip(self.rounds, other.rounds, strict=True))


@dataclass
class Load:
    """How a stack has borne a load.

    :param rate: requests each second.
    :param times_s: of each request, in seconds.
    """

    rate: Figures = field(default_factory=Figures)
    times_s: list[float] = field(default_factory=list)

    def percentile_s(self, percent: int) -> float:
        """Return the time in which so many of a hundred requests were answered."""
        return sorted(self.times_s)[len(self.times_s) * percent // 100]


def measure_loads(apps: dict[str, Flask], view: str, *, threads: int, rounds: int, round_s: float) -> dict[str, Load]:
    """Measure throughput and latency of a view.

    :param apps: by the name of their stack.
    :param threads: each of which makes one request after the other.
    :param round_s: how long a round of one stack is, in seconds.
    """
    loads = {name: Load() for name in apps}
    with ThreadPoolExecutor(threads) as pool, _settled():
        crew = _Crew(pool, threads)
        for app in apps.values():
            crew.run(_Runs(app, view, requests=WARM_UP))
        for name in _in_turn(apps, rounds):
            runs = crew.run(_Runs(apps[name], view, until=time.perf_counter() + round_s))
            loads[name].rate.rounds.append(sum(len(times_s) / sum(times_s) for times_s in runs))
            loads[name].times_s.extend(time_s for times_s in runs for time_s in times_s)
    return loads


def measure_cpu(apps: dict[str, Flask], view: str, *, rounds: int, requests: int) -> dict[str, Figures]:
    """Measure the CPU time of a request, in seconds, of which the server's is no part.

    :param apps: by the name of their stack.
    :param requests: how many a round has.
    """
    clients = {name: Client(app) for name, app in apps.items()}
    figures = {name: Figures() for name in apps}
    with _settled():
        for client in clients.values():
            _repeat(client, view, WARM_UP)
        for name in _in_turn(clients, rounds):
            before = time.process_time()
            _repeat(clients[name], view, requests)
            figures[name].rounds.append((time.process_time() - before) / requests)
    return figures


def measure_holding(app: Flask, view: str, requests: int) -> float:
    """Return for what part of a request a connection is out of its pool.

    :param requests: of which the median is taken.
    """
    client = Client(app)
    _repeat(client, view, 2)
    parts = []
    for _ in range(requests):
        with _watched_pools() as held_s:
            begun = time.perf_counter()
            client.get(view)
            parts.append(sum(held_s) / (time.perf_counter() - begun))
    return statistics.median(parts)


def _repeat(client: Client, view: str, requests: int) -> None:
    for _ in range(requests):
        client.get(view)


def _in_turn(names: dict[str, Flask] | dict[str, Client], rounds: int) -> Iterator[str]:
    for _ in range(rounds):
        yield from random.sample(list(names), len(names))


@contextmanager
def _settled() -> Iterator[None]:
    """What has been made so far is no matter of the garbage collector, which goes on as in any worker."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Runs:
    """What each thread does in a round."""

    def __init__(self, app: Flask, view: str, *, until: float | None = None, requests: int = 1) -> None:
        self._client = Client(app)
        self._view = view
        self._until = until
        self._requests = requests

    def __call__(self) -> list[float]:
        times_s: list[float] = []
        ended = time.perf_counter()
        # A round without a request would tell nothing, however short it is.
        while len(times_s) < self._requests or (self._until is not None and ended < self._until):
            begun = ended
            self._client.get(self._view)
            ended = time.perf_counter()
            times_s.append(ended - begun)
        return times_s


class _Crew:
    """Threads that begin together."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool = pool
        self._threads = threads

    def run(self, work: Callable[[], list[float]]) -> list[list[float]]:
        barrier = threading.Barrier(self._threads)

        def begin() -> list[float]:
            barrier.wait()
            return work()

        jobs = [self._pool.submit(begin) for _ in range(self._threads)]
        return [job.result() for job in jobs]


@contextmanager
def _watched_pools() -> Iterator[list[float]]:
    """Collect how long each checkout of any pool lasts, in seconds."""
    held_s: list[float] = []
    begun: dict[int, float] = {}

    def out(connection: object, record: object, proxy: object) -> None:
        begun[id(record)] = time.perf_counter()

    def back(connection: object, record: object) -> None:
        held_s.append(time.perf_counter() - begun.pop(id(record)))

    sa.event.listen(sa.Pool, "checkout", out)
    sa.event.listen(sa.Pool, "checkin", back)
    try:
        yield held_s
    finally:
        sa.event.remove(sa.Pool, "checkout", out)
        sa.event.remove(sa.Pool, "checkin", back)
