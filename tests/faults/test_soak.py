"""A short soak, in a process of its own; ``make soak`` is the long one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import SERVER_VARIABLE, PostgreSQLDatabase, Server
from tests.faults import soak_app
from tests.faults.soak import Soak, soak
from tests.faults.soak_app import Kind, uow

ROOT = Path(__file__).parents[2]
DEADLINE_S = 110.0


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_requests_of_every_kind_leave_nothing(postgresql_server: Server, driver: str) -> None:
    """Nothing is held that was not held before, and rows, hooks and the board's counts are those of the requests."""
    program = [sys.executable, "-m", "tests.faults.soak", "--requests=1000", f"--drivers={driver}"]
    server = postgresql_server.url.render_as_string(hide_password=False)
    # Whoever notes which lines were run has more objects with each new one.
    unwatched = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}

    done = subprocess.run(
        program,
        cwd=ROOT,
        env={**unwatched, SERVER_VARIABLE: server},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"committed +(\d+) +\1\n", done.stdout)
    assert done.stdout.endswith("nothing differs\n")


def test_a_soak_finds_what_is_left(
    postgres: PostgreSQLDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that keeps its session, and so is not as it says, is told by each of the comparisons."""
    kept = []

    def keep_session() -> str:
        kept.append(uow.session())
        soak_app.hooks.update(["hook"])
        return "kept"

    monkeypatch.setattr("tests.faults.soak.KINDS", (Kind(keep_session, 500),))
    monkeypatch.setattr(soak_app, "KINDS", (Kind(keep_session, 500),))

    found: Soak = soak(postgres, tmp_path / "boards", requests=40, seed=1)

    assert not found.is_clean()
    assert found.wrong == {"keep_session was answered with 200": 41}
    assert found.counted - found.expected == {"hooks": 41}
    assert "sessions_alive" in found.grown()  # with what each of them holds, where few other objects are counted
    assert "THERE ARE DIFFERENCES" in found.table()
