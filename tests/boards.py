"""Apps that publish boards, other processes that do, and what is to be read there."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flask import Flask

from flask_uow import UnitOfWork, stats

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0

WORKER = """
import sys
import sqlalchemy as sa
from flask import Flask
from flask_uow import UnitOfWork, transactional

app = Flask(sys.argv[1])
app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[3], UOW_STATS_DIR=sys.argv[2])
uow = UnitOfWork(app)
with app.app_context():
    for number in range(int(sys.argv[4])):
        with transactional(label=f"{sys.argv[5]}{number % int(sys.argv[6])}"):
            uow.session.execute(sa.text("SELECT 1"))
print("ready", flush=True)
sys.stdin.read()
"""


def make_app(folder: Path, name: str = "bank", url: str = "sqlite://", **config: Any) -> tuple[Flask, UnitOfWork]:
    """Make an app whose boards lie in a folder."""
    app = Flask(name)
    app.config.update({"SQLALCHEMY_DATABASE_URI": url, "UOW_STATS_DIR": str(folder)} | config)
    return app, UnitOfWork(app)


@contextlib.contextmanager
def worker(
    folder: Path,
    units: int = 1,
    *,
    name: str = "bank",
    url: str = "sqlite://",
    label: str = "unit",
    labels: int = 1,
) -> Iterator[subprocess.Popen[str]]:
    """Run another process of the app, which has worked through some units, and waits until the block ends.

    :param label: what the labels of its units begin with.
    :param labels: how many there are of them.
    """
    command = [sys.executable, "-c", WORKER, name, str(folder), url, str(units), label, str(labels)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def read_until(app: Flask, is_right: Callable[[stats.Boards], object]) -> stats.Boards:
    """Read the boards until they are right."""
    end = time.monotonic() + DEADLINE_S
    while True:
        boards = stats.read_boards(app)
        if is_right(boards):
            return boards
        assert time.monotonic() < end, boards
        time.sleep(0.005)


def live_until(app: Flask, is_right: Callable[[stats.LiveUnit], object]) -> stats.LiveUnit:
    """Read the boards until one of the live units is right."""
    boards = read_until(app, lambda boards: any(is_right(unit) for worker in boards.workers for unit in worker.live))
    return next(unit for worker in boards.workers for unit in worker.live if is_right(unit))


def board_files(folder: Path) -> list[Path]:
    """The files of the living, sorted."""
    return sorted(path for path in folder.glob("*.board") if not path.name.endswith("-ended.board"))
