"""The watch: what happens between two snapshots, and a real terminal with a real process in it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from flask_uow import stats
from flask_uow._watch import KEPT, History, in_use, rates, sparkline
from tests import snapshots

DEADLINE_S = 30.0
# As in a terminal's foreground: what runs in the background has inherited that Ctrl-C is ignored.
FLASK = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("flask", run_name="__main__", alter_sys=True)
"""
COMMAND = [sys.executable, "-c", FLASK, "--app", "night", "db-session-stats"]
ENTER, LEAVE, HIDE, SHOW = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25l", "\x1b[?25h"

# A bad night that goes on: each time somebody looks, 50 more units have ended and another connection is in use.
NIGHT = """
from dataclasses import replace
from datetime import timedelta
from itertools import count
from flask import Flask
from flask_uow import UnitOfWork, stats
from tests import snapshots

app = Flask("bank")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
UnitOfWork(app)
looks = count()

def look():
    number, night = next(looks), snapshots.bad_night()
    first, *others = night.workers
    units = replace(first.counts.units, begun=1320 + 50 * number)
    pool = replace(first.pools[0], checked_out=min(15, number))
    first = replace(first, counts=replace(first.counts, units=units), pools=(pool,))
    return replace(night, workers=(first, *others), taken_at=night.taken_at + timedelta(seconds=2 * number))

stats.snapshot = look
"""


# ---- rates


def at(seconds: float, *workers: stats.Worker) -> stats.Snapshot:
    """A snapshot taken so many seconds after the first."""
    return replace(snapshots.snapshot(*workers), taken_at=snapshots.NOW + timedelta(seconds=seconds))


def worker(pid: int, begun: int, undone: int = 0, age_seconds: float = 60.0) -> stats.Worker:
    """A worker that was started so long before the first snapshot."""
    counts = stats.Counts(units=stats.UnitCounts(begun, 0, undone, 0, 0))
    return snapshots.worker(pid, counts=counts, started_at=snapshots.NOW - timedelta(seconds=age_seconds))


@pytest.mark.parametrize(
    ("before", "now", "units", "errors"),
    [
        ([worker(1, 100, 4)], [worker(1, 150, 5)], 25.0, 0.5),
        ([worker(1, 100), worker(2, 70)], [worker(1, 150), worker(2, 80)], 30.0, 0.0),
        ([worker(1, 100), worker(2, 9000, 50)], [worker(1, 150)], 25.0, 0.0),
        ([worker(1, 100)], [worker(1, 150), worker(2, 20, 2, age_seconds=-1.0)], 35.0, 1.0),
        ([worker(1, 100)], [worker(1, 150), worker(2, 9000, 70)], 25.0, 0.0),
        ([worker(1, 9000, 50)], [worker(1, 20, 2, age_seconds=-1.0)], 10.0, 1.0),
        ([worker(1, 100, 5)], [worker(1, 90, 4)], 0.0, 0.0),
        ([worker(1, 100)], [], 0.0, 0.0),
    ],
    ids="one two vanished new was-not-seen same-pid-again falls none".split(),
)
def test_rates(before: list[stats.Worker], now: list[stats.Worker], units: float, errors: float) -> None:
    """They come from the workers that live, and are never negative."""
    found = rates(at(0, *before), at(2, *now))

    assert found is not None
    assert (found.units, found.errors) == (units, errors)


def test_rate_without_time() -> None:
    """Two snapshots of one moment have no rate."""
    assert rates(at(1, worker(1, 1)), at(1, worker(1, 2))) is None


def test_connections_in_use() -> None:
    """As the workers' pools count them; where nobody publishes, the sessions that do not idle."""
    sessions = [snapshots.session(1), snapshots.session(2, state="active"), snapshots.session(3, state="hidden")]

    assert in_use(snapshots.bad_night()) == 19
    assert in_use(snapshots.snapshot(databases=(snapshots.database(*sessions),))) == 2


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0, 0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([0.001], "█"),
        ([None, 5, 10], " ▅█"),
    ],
)
def test_sparkline(values: list[float | None], line: str) -> None:
    """The highest number is the highest bar; what is not known is a blank."""
    assert sparkline(values) == line


@pytest.mark.parametrize(("encoding", "bars"), [("utf-8", "▃▆█"), ("ascii", ":+#"), ("latin-1", ":+#"), ("?", ":+#")])
def test_history(encoding: str, bars: str) -> None:
    """One line for each number with its latest and highest value, in what the terminal can show."""
    history = History()
    for second, begun in enumerate((100, 103, 109, 118)):
        history.add(at(second, worker(1, begun)))

    lines = list(history.lines(80, encoding))

    assert lines[0] == f"units/s        9.0   {bars}  most 9.0"
    assert lines[1].startswith("undone/s       0.0")
    assert lines[2].startswith("in use           4")
    assert max(map(len, lines)) <= 80


def test_history_forgets() -> None:
    """However long somebody watches, the lines stay as long."""
    history = History()
    for second in range(3 * KEPT):
        history.add(at(second, worker(1, second * second)))

    assert all(len(line) <= 80 for line in history.lines(80, "utf-8"))
    assert all(len(line) <= 40 for line in history.lines(40, "utf-8"))
    assert next(History().lines(80, "utf-8")) == "units/s          -"


# ---- a real process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the app."""
    (tmp_path / "night.py").write_text(NIGHT, encoding="utf-8")
    return tmp_path


def environment(**changes: str) -> dict[str, str]:
    """An environment in which nothing speaks for or against colours, nor measures coverage.

    An interrupt that meets coverage where it holds its lock leaves it locked, and the process waits for it without end.
    """
    other = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    kept = {key: value for key, value in os.environ.items() if key not in other and not key.startswith("COVERAGE_")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm-256color", **changes}


@dataclass
class Terminal:
    """A terminal of 80 columns with the command in it."""

    process: subprocess.Popen[bytes]
    end: int
    seen: str = ""
    raw: bytes = field(default=b"", repr=False)

    def wait_for(self, pattern: str) -> None:
        """Read until a pattern has been printed."""
        deadline = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.seen, re.DOTALL):
            assert time.monotonic() < deadline, self.seen[-2000:]
            assert self.read(), self.seen[-2000:]

    def wait(self) -> int:
        """Read all that is left, and give the exit status."""
        deadline = time.monotonic() + DEADLINE_S
        while self.read():
            assert time.monotonic() < deadline, self.seen[-2000:]
        return self.process.wait(DEADLINE_S)

    def read(self) -> bool:
        """Take what is there; false at the end."""
        if not select.select([self.end], [], [], DEADLINE_S)[0]:
            return False
        try:
            data = os.read(self.end, 65536)
        except OSError:  # the other end is closed
            return False
        self.raw += data
        self.seen = self.raw.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(folder: Path, *arguments: str, rows: int = 200, **env: str) -> Iterator[Terminal]:
    """Type the command in a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment(**env), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_on_a_terminal(folder: Path, number: int) -> None:
    """It draws in place, on a screen of its own; at the end that is left and the last picture stays."""
    with terminal(folder, "--watch", "0.1") as seen:
        seen.wait_for(r"units/s +25\.0 .*units/s +25\.0 ")
        seen.process.send_signal(number)
        status = seen.wait()

    before, _, after = seen.seen.rpartition(LEAVE)
    assert status == 0
    assert seen.seen.count(ENTER) == seen.seen.count(LEAVE) == 1
    assert seen.seen.rindex(SHOW) > seen.seen.rindex(HIDE)
    pictures = before.count("bank on teller-1")
    assert pictures >= 3
    # The signal may cut one off, which is then written once more before the screen is left.
    assert len(re.findall(r"\x1b\[H\S*2026-03-01", before)) >= pictures - 1
    assert after.count("bank on teller-1") == 1
    assert "in use" in after
    assert "rules broken" in after
    assert "Traceback" not in seen.seen


def test_watch_on_a_small_terminal(folder: Path) -> None:
    """What has no room is counted; trouble has it."""
    with terminal(folder, "--watch", "0.1", rows=14) as seen:
        seen.wait_for(r"\.\.\. \d+ more lines; Ctrl-C prints them all")
        seen.process.send_signal(signal.SIGINT)
        assert seen.wait() == 0

    screen, _, after = seen.seen.rpartition(LEAVE)
    assert "idle-in-transaction" in screen
    assert "rules broken" not in screen
    assert set(re.findall(r"\.\.\. (\d+) more lines", screen)) == {str(after.count("\n") - 13)}
    assert "rules broken" in seen.seen


def test_watch_without_colours_and_unicode(folder: Path) -> None:
    """NO_COLOR is respected, and a terminal that knows only ASCII gets lines of it."""
    with terminal(folder, "--watch", "0.1", NO_COLOR="1", PYTHONIOENCODING="ascii") as seen:
        seen.wait_for(r"units/s +25\.0 +#")
        seen.process.send_signal(signal.SIGINT)
        assert seen.wait() == 0

    assert not re.search(r"\x1b\[[\d;]*m", seen.seen.replace("\x1b[0m", ""))
    assert seen.seen.isascii()


def test_watch_on_a_terminal_that_cannot_go_back(folder: Path) -> None:
    """One picture follows the other."""
    with terminal(folder, "--watch", "0.1", TERM="dumb") as seen:
        seen.wait_for(r"bank on.*bank on.*bank on")
        seen.process.send_signal(signal.SIGINT)
        assert seen.wait() == 0

    assert "\x1b" not in seen.seen


def test_failure_of_a_watch(folder: Path) -> None:
    """It goes on, says so on the screen, and the status at the end tells that there was one."""
    with terminal(folder, "--watch", "0.1", "--fail-on", "idle-in-transaction=1") as seen:
        seen.wait_for(r"fails: idle-in-transaction=1: session 4999.*fails: idle-in-transaction=1: session 4999")
        seen.process.send_signal(signal.SIGINT)
        assert seen.wait() == 1


def piped(folder: Path, *arguments: str, until: str, times: int = 2) -> tuple[str, str, int]:
    """What the command prints into a pipe until a line has come so often, what it says besides, and its status."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None
        with closing(process.stdout) as stdout:
            lines: list[str] = []
            while sum(until in line for line in lines) < times:
                lines.append(stdout.readline())
                assert lines[-1]
            process.send_signal(signal.SIGINT)
            for number, line in enumerate(stdout, 1):
                lines.append(line)
                if number % 20 == 0:  # one that Python meets in a callback of the collector's is lost
                    process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            errors = process.stderr.read()
    return "".join(lines), errors, process.returncode


def test_watch_as_json(folder: Path) -> None:
    """One document in each line, and the option before it does not swallow the next one."""
    output, errors, status = piped(folder, "--watch", "--json", until='"version"', times=1)

    documents = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert errors == ""
    assert [document["workers"][0]["pid"] for document in documents] == [4711] * len(documents)


def test_watch_as_json_takes_an_interval_and_filters(folder: Path) -> None:
    """Each document is filtered, and each failure is a line on standard error."""
    output, errors, status = piped(
        folder, "--json", "--watch=0.1", "--worker", "4712", "--fail-on", "leaked=1", until='"version"', times=3
    )

    documents = [json.loads(line) for line in output.splitlines()]
    assert status == 1
    assert {worker["pid"] for document in documents for worker in document["workers"]} == {4712}
    assert errors.count("leaked=1: 1 session or connection") >= 2


def test_watch_into_a_pipe(folder: Path) -> None:
    """Without a terminal, plain pictures follow each other, each with its time and its rates."""
    output, errors, status = piped(folder, "--watch", "0.1", until="rules broken")

    assert status == 0
    assert errors == ""
    assert "\x1b" not in output
    assert output.startswith("2026-03-01 03:12:45 UTC\nunits/s          -\n")
    assert re.search(r"\n\n2026-03-01 03:12:47 UTC\nunits/s       25\.0 ", output)
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="The system has no file that is always full.")
@pytest.mark.parametrize("arguments", [[], ["--json"], ["--watch", "0.1"]])
def test_output_on_a_full_disk(folder: Path, arguments: list[str]) -> None:
    """It is one line and a status that no condition has."""
    with Path("/dev/full").open("w") as full:
        command, pipe = [*COMMAND, *arguments], subprocess.PIPE
        done = subprocess.run(
            command, cwd=folder, env=environment(), stdout=full, stderr=pipe, text=True, check=False, timeout=60
        )

    assert (done.returncode, done.stderr) == (2, "The output cannot be written: No space left on device.\n")
