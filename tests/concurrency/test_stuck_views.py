"""What the command says, from another process, of views that are stuck in gunicorn's workers; and of a killed one."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flask_uow import stats
from sample.bank import create_app as create_bank
from tests.boards import ROOT, board_files
from tests.concurrency.stuck import create_app
from tests.concurrency.workers import wait_until_open
from tests.databases import Database
from tests.throwaway_server import find_free_port

DEADLINE_S = 60.0
TOLERANCE_S = 0.3
TRIES = 10
FLASK = [sys.executable, "-m", "flask", "--app", "tests.concurrency.stuck"]
ADAS, ALANS = 1001, 1003
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


class Workers:
    """Gunicorn with two workers of four threads each, and what one asks of it."""

    def __init__(self, port: int, environment: dict[str, str]) -> None:
        self.port = port
        self.environment = environment
        self._folder = Path(environment["STUCK_NOTES"])
        self._clients: list[threading.Thread] = []

    def ask(self, path: str, name: str) -> dict[str, Any]:
        """Let a view get stuck, and give what it has noted: the time and its process."""
        client = threading.Thread(target=self._post, args=(path,), daemon=True)
        client.start()
        self._clients.append(client)
        until((self._folder / name).exists)
        noted: dict[str, Any] = json.loads((self._folder / name).read_text())
        return noted

    def join(self) -> None:
        """Wait for the clients, whose connections have been closed."""
        for client in self._clients:
            client.join(DEADLINE_S)

    def _post(self, path: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.send("POST", path)

    def send(self, method: str, path: str, body: object = None) -> int:
        """Send a request, and give the status of its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            response.read()
            return response.status

    def command(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own."""
        program = [*FLASK, "db-session-stats", *options]
        environment = {**self.environment, "COLUMNS": "200"}
        return subprocess.run(
            program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )


def until(is_so: Callable[[], object]) -> None:
    """Poll with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def workers(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """The bank, open."""
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("STUCK_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("BANK_OUTBOX", str(tmp_path / "outbox.jsonl"))
    environment = dict(os.environ)
    runner = create_bank({"TESTING": True}).test_cli_runner()
    for arguments in (["bank", "init"], ["bank", "seed", "--customers", "3"]):
        assert runner.invoke(args=arguments).exit_code == 0
    port = find_free_port()
    size = ["--workers=2", "--threads=4", "--worker-class=gthread", "--graceful-timeout=1", "--no-control-socket"]
    command = [sys.executable, "-m", "gunicorn", *size, "--log-level=critical", f"--bind=127.0.0.1:{port}"]
    program = [*command, "tests.concurrency.stuck:create_app()"]
    with subprocess.Popen(program, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as gunicorn:
        workers = Workers(port, environment)
        try:
            wait_until_open(port)
            yield workers
        finally:
            gunicorn.terminate()
            gunicorn.wait(DEADLINE_S)
            workers.join()


@on_postgresql
def test_views_that_are_stuck_are_named(workers: Workers, database: Database) -> None:
    """Each with its view, file and line, state and age; the second waits for the first; and the command fails."""
    noted = {
        "nap": workers.ask(f"/naps/{ADAS}", "nap"),
        "wait": workers.ask(f"/waits/{ADAS}", "wait"),
        "leak": workers.ask("/leaks", "leak"),
    }
    until(lambda: time.time() - noted["leak"]["at"] > 1.1)

    result = workers.command("--json", "--fail-on", "idle-in-transaction=1")

    assert result.returncode == 1, result.stderr
    assert "POST /naps/<int:account>" in result.stderr
    document = json.loads(result.stdout)
    live = {unit["label"]: unit for worker in document["workers"] for unit in worker["live"]}
    for name, label, state in (
        ("nap", "POST /naps/<int:account>", stats.State.IDLE),
        ("wait", "POST /waits/<int:account>", stats.State.RUNNING),
        ("leak", "POST /leaks", stats.State.LEAKED),
    ):
        unit = live[label]
        assert unit["state"] == state
        assert re.match(rf"tests/concurrency/stuck\.py:\d+ in {name}$", unit["where"]), unit["where"]
        assert unit["worker_pid"] == noted[name]["pid"]
        since = sorted((noted[name]["at"], state_changed_at(database, *unit["backend_pids"])))
        differences = [age_difference(workers, label, *since)]
        while differences[-1] > TOLERANCE_S and len(differences) < TRIES:  # the machine may have stalled
            differences.append(age_difference(workers, label, *since))
        assert differences[-1] <= TOLERANCE_S, differences
    assert live["POST /waits/<int:account>"]["waits_for"] == ["POST /naps/<int:account>"]
    sessions = {session["unit"]: session for session in document["databases"][0]["sessions"] if session["unit"]}
    for label, unit in live.items():
        assert [sessions[label]["pid"]] == unit["backend_pids"]
    waiting = sessions["POST /waits/<int:account>"]
    assert waiting["waits_for"] == ["POST /naps/<int:account>"]
    assert waiting["blocked_by"] == [sessions["POST /naps/<int:account>"]["pid"]]
    assert not any(session["is_orphan"] for session in document["databases"][0]["sessions"])

    text = workers.command("--explain")
    assert text.returncode == 0, text.stderr
    for word in ("/naps/<int:account>", "/waits/<int:account>", "/leaks", *map(stuck_line, ("nap", "wait", "leak"))):
        assert word in text.stdout, text.stdout


def state_changed_at(database: Database, pid: int) -> float:
    """When a server session came into its state, which its view came to at some time between this and what it noted."""
    query = "SELECT extract(epoch FROM state_change)::float8 FROM pg_stat_activity WHERE pid = %s"
    ((changed_at,),) = database.rows(query, pid)
    return float(changed_at)


def age_difference(workers: Workers, label: str, earliest: float, latest: float) -> float:
    """By how many seconds an age is off that the command shows; it was read at some time before the document's."""
    before = time.time()
    document = json.loads(workers.command("--json").stdout)
    taken_at = datetime.fromisoformat(document["taken_at"]).timestamp()
    (unit,) = (unit for worker in document["workers"] for unit in worker["live"] if unit["label"] == label)
    assert unit["state_seconds"] >= before - latest - TOLERANCE_S
    since = taken_at - float(unit["state_seconds"])
    return max(earliest - since, since - latest, 0.0)


def stuck_line(name: str) -> str:
    """The line where a view is defined, as it is shown."""
    lines = (Path(__file__).parent / "stuck.py").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.startswith(f"def {name}("))
    if name == "leak":
        return f"tests/concurrency/stuck.py:{number + 2}"  # where the connection was taken
    return f"tests/concurrency/stuck.py:{number - 1 if lines[number - 2].startswith('@') else number}"


@on_postgresql
def test_a_worker_that_is_killed_leaves_an_orphan_and_its_numbers(
    workers: Workers, temporary_folder: Path, database: Database
) -> None:
    """Its file is swept, the others' numbers stay, and what its server has not noticed yet is called an orphan."""
    app = create_app()
    until(lambda: workers.send("GET", "/") == 200 and len(published(temporary_folder)) == 2)  # both have answered
    for number in range(60):
        amount = 1 if number % 3 else 9_999_999
        body = {"from": ADAS, "to": ALANS, "amount_cents": amount}
        assert workers.send("POST", "/transfers", body) == (201 if number % 3 else 422)
    victim = workers.ask("/statements", "statement")["pid"]
    before = stats.snapshot(app)
    assert len(published(temporary_folder)) == 2
    assert counted(before.totals) == (60, 20)
    held = next(each for each in before.databases[0].sessions if each.unit == "POST /statements")

    os.kill(victim, signal.SIGKILL)
    until(lambda: not is_running(victim))
    after = stats.snapshot(app)

    assert victim not in {worker.pid for worker in after.workers}
    assert counted(after.totals) == (60, 20)
    assert after.ended is not None
    assert after.ended.workers == 1
    kept = {worker.pid: worker.counts for worker in after.workers}
    assert all(kept[worker.pid] == worker.counts for worker in before.workers if worker.pid != victim)
    assert not list(temporary_folder.glob(f"flask_uow-*/*-{victim}-*"))
    (orphan,) = (session for session in after.databases[0].sessions if session.pid == held.pid)
    assert orphan.is_orphan
    assert (orphan.unit, orphan.where, orphan.is_told_by_server) == ("POST /statements", None, True)
    assert orphan.worker_pid == victim
    assert not any(session.is_orphan for session in after.databases[0].sessions if session.worker_pid != victim)
    database.kill(held.pid)
    until(lambda: not any(session.is_orphan for session in stats.snapshot(app).databases[0].sessions))
    assert counted(stats.read_boards(app).totals) == (60, 20)


def published(folder: Path) -> list[Path]:
    """The boards in the folders of all apps whose temporary folder this is."""
    return [path for each in folder.glob("flask_uow-*") for path in board_files(each)]


def is_running(pid: int) -> bool:
    """Whether a process is there, reaped by its parent or not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def counted(counts: stats.Counts) -> tuple[int, int]:
    """How many transfers there were, and how many of them were refused."""
    label = next(each for each in counts.labels if each.label == "POST /transfers")
    return label.count, label.errors
