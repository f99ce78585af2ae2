"""Celery: a task is a unit in a context of its own, run by a worker's forked processes or at once by its caller."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from flask_uow import stats, transactional
from tests.databases import Database
from tests.environments.servers import DEADLINE_S, ROOT
from tests.models import Item, checked_out, create_tables, names

MODULE = "tests.environments.celery_tasks"
NUMBER = 12
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@pytest.fixture
def tasks(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The tasks, on the test's database; a worker that is started now finds the same."""
    from celery import _state

    # A task of one app is registered with each that is finished later.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    create_tables(database)
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("CELERY_FOLDER", str(tmp_path))
    sys.modules.pop(MODULE, None)
    module = importlib.import_module(MODULE)
    module.context.pop()
    with module.flask_app.app_context():
        module.uow.engine.dispose()
    yield module
    module.celery_app.close()


@contextmanager
def working(*options: str) -> Iterator[None]:
    """Run a worker, and let it end as an operator does."""
    always = ["--loglevel=warning", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    command = [sys.executable, "-m", "celery", "--app", f"{MODULE}:celery_app", "worker", *always, *options]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "C_FORCE_ROOT": "1"}) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


@on_postgresql
def test_a_workers_processes_commit_once_or_not_at_all(tasks: ModuleType, database: Database) -> None:
    """Each of the pool's processes has connections of its own, whatever its parent had open when it forked them."""
    with working("--pool=prefork", "--concurrency=2"):
        kept = [tasks.keep.delay(f"kept {number}") for number in range(NUMBER)]
        lost = [tasks.lose.delay(f"lost {number}") for number in range(3)]
        tried = tasks.try_again.delay("tried")
        tasks.order.delay("ordered")
        told = [result.get(timeout=DEADLINE_S) for result in kept]
        ends = [str(result.get(timeout=DEADLINE_S, propagate=False)) for result in lost]
        retries = tried.get(timeout=DEADLINE_S)
        wait_for(lambda: "ordered, seen" in names(database))
    wait_for(lambda: not database.sessions())

    assert names(database) == sorted([*(f"kept {n}" for n in range(NUMBER)), "ordered", "ordered, seen", "tried"])
    assert ends == [f"lost {number}" for number in range(3)]
    assert retries == 1
    places = {(each["worker"], each["backend"]) for each in told}
    assert len({backend for _, backend in places}) == len(places), "Two processes have shared a connection."
    assert not {each["importer"] for each in told} & {backend for _, backend in places}
    boards = stats.read_boards(tasks.flask_app)
    assert boards.ended is not None
    units = boards.ended.counts.units
    assert (units.committed, units.rolled_back) == (NUMBER + 3, 3 + 1)


@on_postgresql
def test_a_task_that_is_run_at_once_commits_apart_from_its_caller(tasks: ModuleType, database: Database) -> None:
    """It has a context of its own, as it will have in a worker: what the caller undoes later, it has kept."""
    tasks.celery_app.conf.task_always_eager = True

    with tasks.flask_app.app_context(), pytest.raises(ValueError, match="of the caller"), transactional():
        tasks.uow.session.add(Item(name="caller"))
        tasks.uow.session.flush()
        assert tasks.keep.delay("kept").successful()
        assert tasks.lose.delay("lost").failed()
        assert tasks.try_again.delay("tried").get() == 1
        raise ValueError("of the caller")

    assert names(database) == ["kept", "tried"]
    assert checked_out(tasks.flask_app) == 0


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
