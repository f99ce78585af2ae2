"""What importing the package adds to an app that has imported Flask and SQLAlchemy anyway."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = 9
MOST = 0.1
SLOWING = ("COVERAGE_", "PYTHONDONTWRITEBYTECODE")
"""What would be timed as well: measuring coverage, and compiling anew each time."""

TIMES = """
import time
begun = time.process_time()
import flask, flask.cli, sqlalchemy, sqlalchemy.orm
between = time.process_time()
import flask_uow
print(between - begun, time.process_time() - between)
"""


def test_import(say: Callable[[str], object]) -> None:
    """At most a tenth of what the frameworks take; the least of several runs of each."""
    runs = [times() for _ in range(RUNS)]
    frameworks_s, own_s = (min(each) for each in zip(*runs, strict=True))

    say(f"\nimport: {frameworks_s * 1e3:.0f} ms of Flask and SQLAlchemy, {own_s * 1e3:.0f} ms of flask_uow on top")
    assert own_s <= MOST * frameworks_s


def times() -> tuple[float, float]:
    """CPU time of the frameworks' import, and of the package's, in seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SLOWING)}
    command = [sys.executable, "-c", TIMES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    frameworks_s, own_s = map(float, done.stdout.split())
    return frameworks_s, own_s
