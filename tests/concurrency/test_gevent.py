"""gevent: greenlets have sessions apart, nothing of theirs is left behind, and what would block them is warned of.

gevent patches a whole process, so that each test runs one of its own.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.concurrency.workers import DEADLINE_S, ROOT, get, gunicorn
from tests.databases import Database
from tests.models import create_tables, names

GREENLETS = 8
NAP_S = 0.2  # for which each of them waits in its unit
BLOCKS = "psycopg2 waits for PostgreSQL without gevent"


def run(what: str, database: Database, *how: str) -> tuple[dict[str, Any], str]:
    """Run the program, and return what it prints and what it warns of."""
    create_tables(database)
    program = [sys.executable, "-m", "tests.concurrency.greenlets", what, database.url, *how]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


@pytest.mark.parametrize(
    ("database", "how"), [("psycopg", ()), ("psycopg2", ("waits",))], indirect=["database"], ids=["psycopg", "psycopg2"]
)
def test_greenlets_take_turns_in_units_apart(database: Database, how: tuple[str, ...]) -> None:
    """All wait at the same time, each in a session of its own; half of them fail, and only those are undone."""
    came, warned = run("requests", database, *how)

    assert came["statuses"] == [200, 500] * (GREENLETS // 2)
    assert came["seconds"] < GREENLETS * NAP_S / 2
    assert came["checked_out"] == 0
    assert names(database) == sorted(["warm", *(f"item{number}" for number in range(0, GREENLETS, 2))])
    assert "RuntimeWarning" not in warned


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
def test_psycopg2_that_would_block_is_warned_of_and_works(database: Database) -> None:
    """One greenlet after the other, and right."""
    came, warned = run("requests", database)

    assert came["statuses"] == [200, 500] * (GREENLETS // 2)
    assert came["seconds"] > GREENLETS * NAP_S
    assert warned.count(BLOCKS) == 1
    assert "psycogreen" in warned


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_a_patch_that_comes_late_is_warned_of(database: Database) -> None:
    """Locks that were made before it are those of threads."""
    came, warned = run("requests", database, "late")

    assert came["statuses"] == [200, 500] * (GREENLETS // 2)
    assert warned.count("was imported before gevent had patched") == 1


@pytest.mark.parametrize(
    ("database", "how"), [("psycopg", ()), ("psycopg2", ("waits",))], indirect=["database"], ids=["psycopg", "psycopg2"]
)
def test_a_timeout_of_gevent_rolls_back(database: Database, how: tuple[str, ...]) -> None:
    """It is no Exception, and may come in the middle of a statement: the unit is undone, the next one is whole."""
    came, _ = run("timeouts", database, *how)

    assert came["ends"] == ["timeout", "depth 1"] * 3
    assert came["checked_out"] == 0
    assert names(database) == ["after between", "after savepoint", "after statement"]


@pytest.mark.parametrize(
    ("database", "how"), [("psycopg", ()), ("psycopg2", ("waits",))], indirect=["database"], ids=["psycopg", "psycopg2"]
)
def test_dead_connections_are_told_from_listeners(database: Database, how: tuple[str, ...]) -> None:
    """The look at the socket works with gevent's functions in the place of the system's."""
    came, _ = run("deaths", database, *how)

    assert came == {"is_left_alone": True, "is_replaced": True, "is_closed": True, "checked_out": 0}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_without_postgresql_nothing_blocks(database: Database) -> None:
    """SQLite never waits for a network."""
    create_tables(database)
    program = "from gevent import monkey; monkey.patch_all(); import sys, flask, flask_uow\n"
    program += "app = flask.Flask('a'); app.config['SQLALCHEMY_DATABASE_URI'] = sys.argv[1]\n"
    program += "uow = flask_uow.UnitOfWork(app)\n"
    program += "with app.app_context(), flask_uow.transactional(): uow.session.connection()"
    command = [sys.executable, "-W", "error", "-c", program, database.url]

    subprocess.run(command, cwd=ROOT, timeout=DEADLINE_S, check=True)


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_a_gevent_worker_of_gunicorn_serves_requests_at_once(database: Database) -> None:
    """One worker, one thread, and more units open at a time than that."""
    create_tables(database)
    with (
        gunicorn(database.url, "--worker-class=gevent", "--workers=1") as port,
        ThreadPoolExecutor(GREENLETS) as pool,
    ):
        paths = [f"/item{number}?nap={NAP_S}" for number in range(2 * GREENLETS)]
        answers = list(pool.map(lambda path: get(port, path), paths, timeout=DEADLINE_S))

    assert len({answer["worker"] for answer in answers}) == 1
    assert len({answer["backend"] for answer in answers}) > 1
    assert names(database) == sorted(f"item{number}" for number in range(2 * GREENLETS))
