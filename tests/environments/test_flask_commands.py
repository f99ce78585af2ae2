"""Flask's own commands: the shell, and the development server that starts anew when a file changes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from flask_uow import stats
from tests import boards
from tests.databases import Database, PostgreSQLDatabase
from tests.environments.servers import APP, DEADLINE_S, ROOT, post, serving
from tests.models import create_tables, names

TYPED = """
from flask_uow import transactional
from tests.environments.served import uow
from tests.models import Item

with transactional():
    uow.session.add(Item(name="by a unit"))

uow.session.add(Item(name="by hand"))
uow.session.commit()
uow.session.add(Item(name="forgotten"))
uow.session.flush()
"""

CLIENTS = 4
RELOADED = """
import os
import sqlalchemy as sa
from flask import Flask
from flask_uow import UnitOfWork, transactional
from tests.models import Item

VERSION = "first"
app = Flask("reloaded")
app.config.update(SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"], UOW_STATS_DIR=os.environ["BOARDS"])
uow = UnitOfWork(app)

@app.post("/<name>")
@transactional
def add(name):
    uow.session.add(Item(name=name))
    uow.session.flush()
    uow.session.execute(sa.text("SELECT pg_sleep(0.05)"))
    return VERSION
"""


def test_the_shell_is_one_context(postgres: PostgreSQLDatabase) -> None:
    """Units and commits work there, and what nobody has committed when it ends is named."""
    create_tables(postgres)

    ended = subprocess.run(
        [sys.executable, "-m", "flask", "--app", APP, "shell"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": postgres.url},
        input=TYPED,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert names(postgres) == ["by a unit", "by hand"]
    assert "[UOW103] Writes outside a unit of work were lost" in ended.stderr
    assert postgres.sessions() == []


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_the_development_server_starts_anew_under_load(database: Database, tmp_path: Path) -> None:
    """Requests that it cuts short are undone, those that it has answered are kept, its sessions end, its board goes."""
    create_tables(database)
    file, folder = tmp_path / "reloaded.py", tmp_path / "boards"
    file.write_text(RELOADED)
    command = ["-m", "flask", "--app", str(file), "run", "--reload", "--port={port}"]
    watched, _ = boards.make_app(folder, "reloaded")

    with serving(command, DATABASE_URL=database.url, BOARDS=str(folder)) as port, clients(port) as answers:
        wait_for(lambda: "first" in answers.values())
        (first,) = stats.read_boards(watched).workers
        file.write_text(RELOADED.replace('"first"', '"second"'))
        wait_for(lambda: "second" in answers.values())
        seen = stats.read_boards(watched)
        backends = {session.pid for session in database.sessions()}

    (second,) = seen.workers
    assert second.pid != first.pid
    assert seen.ended is not None
    assert seen.ended.workers == 1
    assert not backends & set(first.backend_pids)
    assert set(answers) <= set(names(database))
    # What is at work when its interpreter ends may be answered after its board has gone.
    assert seen.ended.counts.units.committed >= list(answers.values()).count("first") - CLIENTS


@contextmanager
def clients(port: int, number: int = CLIENTS) -> Iterator[dict[str, str]]:
    """Let clients post one row after the other; yields what each row was answered with, as far as it was."""
    answers: dict[str, str] = {}
    is_over = threading.Event()

    def work(client: int) -> None:
        row = 0
        while not is_over.is_set():
            row += 1
            with suppress(OSError, HTTPException):  # the server is away for a moment, or goes in its answer
                status, text = post(port, f"/row-{client}-{row}")
                assert status == 200, text
                answers[f"row-{client}-{row}"] = text

    with ThreadPoolExecutor(number) as pool:
        working = [pool.submit(work, client) for client in range(number)]
        try:
            yield answers
        finally:
            is_over.set()
        for each in working:
            each.result(DEADLINE_S)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
