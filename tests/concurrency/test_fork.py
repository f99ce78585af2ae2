"""Forks: a child has sessions and connections of its own, and whatever it does, its parent's transaction stands."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.concurrency.forking import PARTS, PLACES
from tests.databases import Database
from tests.models import create_tables, names
from tests.throwaway_server import find_free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
WORKERS = 2
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@on_postgresql
@pytest.mark.parametrize("place", PLACES)
def test_a_child_leaves_its_parents_transaction_alone(database: Database, place: str) -> None:
    """Whatever the child does with what it has inherited, the parent commits all that it has written."""
    create_tables(database)
    program = [sys.executable, "-m", "tests.concurrency.forking", place, database.url]

    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    assert ended.returncode == 0, ended.stderr
    statuses = json.loads(ended.stdout)
    assert statuses == dict.fromkeys(statuses, 0), ended.stderr
    assert set(statuses) >= set(PARTS) - {"commit", "execute"}
    assert names(database) == sorted([*statuses, "child"])


@on_postgresql
def test_workers_that_were_forked_from_a_used_app_share_no_connection(database: Database) -> None:
    """Gunicorn with ``--preload`` and a query at import: every answer is right, each worker has its own backends."""
    create_tables(database)
    answers: list[dict[str, int]] = []

    with gunicorn(database.url) as port, ThreadPoolExecutor(4) as pool:
        deadline = time.monotonic() + DEADLINE_S
        while len({answer["worker"] for answer in answers}) < WORKERS and time.monotonic() < deadline:
            paths = [f"/item{number}" for number in range(len(answers), len(answers) + 20)]
            answers += pool.map(lambda path: get(port, path), paths, timeout=DEADLINE_S)

    workers_of: defaultdict[int, set[int]] = defaultdict(set)
    for answer in answers:
        workers_of[answer["backend"]].add(answer["worker"])
    assert len(set.union(*workers_of.values())) == WORKERS
    assert all(len(workers) == 1 for workers in workers_of.values())
    assert answers[0]["master"] not in workers_of
    assert names(database) == sorted(f"item{number}" for number in range(len(answers)))


@contextlib.contextmanager
def gunicorn(url: str) -> Iterator[int]:
    """Run the app with two workers, forked after it was loaded, and yield the port."""
    port = find_free_port()
    options = ["--preload", f"--workers={WORKERS}", "--threads=2", f"--bind=127.0.0.1:{port}", "--no-control-socket"]
    command = [sys.executable, "-m", "gunicorn", *options, "--log-level=warning", "tests.concurrency.preloaded:app"]
    environment = {**os.environ, "DATABASE_URL": url}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            wait_until_open(port)
            yield port
        finally:
            process.terminate()


def wait_until_open(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            connection.connect()
            connection.close()
            return
        threading.Event().wait(0.05)
    pytest.fail("gunicorn does not listen.")


def get(port: int, path: str) -> Any:
    """Get a path on a connection of its own, and return what it answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())
    finally:
        connection.close()
