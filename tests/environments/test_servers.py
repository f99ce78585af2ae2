"""The servers on which apps run: right answers, numbers that agree, and nothing left of them when they end."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from flask_uow import UnitOfWork, stats
from tests.databases import Database
from tests.environments.servers import DEADLINE_S, FORK_LATE, SERVERS, post, serving
from tests.models import create_tables, names

CLIENTS = 4
ROUNDS = 10
# In turn, but for gevent's workers, which need a driver that waits with them.
PLACES = [
    pytest.param(server, "psycopg" if number % 2 or "gevent" in server else "psycopg2", id=server)
    for number, server in enumerate(SERVERS)
]


@pytest.mark.parametrize(("server", "database"), PLACES, indirect=["database"])
def test_a_server_serves_units_and_leaves_nothing(server: str, database: Database) -> None:
    """The app has used its database at import: each worker has connections of its own, and the boards count rightly."""
    create_tables(database)
    paths = [
        f"/{what}/{what}{number}{'?nap=0.01' if what == 'keep' else ''}"
        for number in range(ROUNDS)
        for what in ("keep", "lose", "stream")
    ]

    with serving(SERVERS[server], DATABASE_URL=database.url, USED="1") as port, ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda path: post(port, path), paths, timeout=DEADLINE_S))
        wait_for_sessions(database, {"idle"})  # a stream's last words are read before its context has ended

    assert [status for status, _ in answers] == [200, 500, 200] * ROUNDS
    assert names(database) == sorted(f"{what}{number}" for number in range(ROUNDS) for what in ("keep", "stream"))
    kept = [json.loads(text) for _, text in answers[::3]]
    workers = {(answer["worker"], answer["backend"]) for answer in kept}
    assert len({backend for _, backend in workers}) == len(workers), "Two processes have shared a connection."
    if server in FORK_LATE:
        assert not {answer["importer"] for answer in kept} & {backend for _, backend in workers}
    wait_for_sessions(database, set())
    ended = read_ended()
    assert ended.units == stats.UnitCounts(begun=3 * ROUNDS, committed=2 * ROUNDS, rolled_back=ROUNDS)
    assert ended.sessions.opened == ended.sessions.closed


def wait_for_sessions(database: Database, states: set[str]) -> None:
    """Wait until the server's sessions are in these states, and in no other; without one, until there are none."""
    deadline = time.monotonic() + DEADLINE_S
    while {session.state for session in database.sessions()} != states:
        assert time.monotonic() < deadline, database.sessions()
        time.sleep(0.01)


def read_ended() -> stats.Counts:
    """What the workers had counted when they ended; none lives."""
    app = Flask("served")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    UnitOfWork(app)
    boards = stats.read_boards(app)
    assert boards.workers == ()
    assert boards.ended is not None
    return boards.ended.counts
