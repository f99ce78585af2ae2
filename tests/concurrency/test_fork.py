"""Forks: a child has sessions and connections of its own, and whatever it does, its parent's transaction stands."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.concurrency.forking import PARTS, PLACES
from tests.concurrency.workers import DEADLINE_S, ROOT, get, gunicorn
from tests.databases import Database
from tests.models import create_tables, names

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

    with (
        gunicorn(database.url, "--preload", f"--workers={WORKERS}", "--threads=2") as port,
        ThreadPoolExecutor(4) as pool,
    ):
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
