"""What a crowd costs: 200 clients on a pool of five connections, beside five clients, who never wait for one.

Both are served by the same app, one after the other, several times; each pair gives a ratio, and the median of them
stands.
"""

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork, transactional
from tests.databases import PostgreSQLDatabase

POOL = {"pool_size": 5, "max_overflow": 0}
FEW, MANY = 5, 200
PAIRS, SECONDS = 5, 4.0
LEAST_OF_THROUGHPUT = 0.9
TIMEOUT_S = 5.0  # the pool's default


def busy_app(url: str) -> Flask:
    """An app whose view has a connection for as long as a usual statement takes."""
    app = Flask("busy")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS=POOL)
    uow = UnitOfWork(app)

    @app.get("/")
    @transactional
    def view() -> str:
        uow.session.execute(sa.text("SELECT pg_sleep(0.005)"))
        return "served"

    return app


def serve(app: Flask, clients: int) -> tuple[list[int], float]:
    """How many requests each client was served, and the longest that one took, in seconds."""
    until = time.monotonic() + SECONDS
    all_there = threading.Barrier(clients)

    def visit(_: int) -> tuple[int, float]:
        client, served, longest_s = app.test_client(), 0, 0.0
        all_there.wait(TIMEOUT_S)
        while (began := time.monotonic()) < until:
            assert client.get("/").status_code == 200
            served, longest_s = served + 1, max(longest_s, time.monotonic() - began)
        return served, longest_s

    with ThreadPoolExecutor(clients) as threads:
        counts, longest = zip(*threads.map(visit, range(clients)), strict=True)
    return list(counts), max(longest)


def test_many_are_served_as_fast_as_few(postgres: PostgreSQLDatabase, say: Callable[[str], None]) -> None:
    """None is refused, and none waits for as long as the pool would let it."""
    app = busy_app(postgres.url)
    serve(app, FEW)
    ratios, turns, waits_s = [], [], []
    for _ in range(PAIRS):
        few, _ = serve(app, FEW)
        many, longest_s = serve(app, MANY)
        ratios.append(sum(many) / sum(few))
        turns += many
        waits_s.append(longest_s)

    ratio = statistics.median(ratios)
    say(
        f"\n{MANY} clients on a pool of {POOL['pool_size']}: {ratio:.2f} of the throughput of {FEW}; "
        f"each was served {min(turns)} to {max(turns)} times in {SECONDS:.0f} s, and waited {max(waits_s):.2f} s"
    )
    assert ratio >= LEAST_OF_THROUGHPUT
    assert max(waits_s) < TIMEOUT_S
