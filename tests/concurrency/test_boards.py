"""Boards that many write and read at once: exact in the end, and never torn, negative or falling in between."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork, stats, transactional
from tests import boards
from tests.boards import ROOT, board_files
from tests.concurrency.busy_board import KINDS, STATEMENTS, THREADS, Witness
from tests.databases import Database
from tests.models import create_tables

DEADLINE_S = 60.0
MANY_THREADS = 8
UNITS = 999
READS = 1500
SHORT_THREADS = 500
ONE = sa.text("SELECT 1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the boards of the test's processes lie."""
    return tmp_path / "boards"


@contextlib.contextmanager
def busy(folder: Path, *arguments: object, database: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a worker that makes units, until the block ends.

    :param arguments: how many threads, and how many units each.
    :param database: the file of its database.
    """
    url = f"sqlite:///{database or folder.with_name('busy.sqlite')}"
    command = [sys.executable, "-m", "tests.concurrency.busy_board", str(folder), url, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            expect(process, "begun")
            yield process
        finally:
            process.stdin.close()


def expect(process: subprocess.Popen[str], word: str) -> None:
    """Wait until the worker has said a word."""
    assert process.stdout is not None
    assert process.stdout.readline() == f"{word}\n"


# ---- threads


def test_many_threads_count_exactly(folder: Path) -> None:
    """Not one unit, session or statement of thousands is lost or counted twice, inner ones included."""
    app, _ = boards.make_app(folder)

    with busy(folder, MANY_THREADS, UNITS) as process:
        witness = Witness()
        for _ in range(20):
            for worker in stats.read_boards(app).workers:
                witness.see(worker)
        expect(process, "done")
        (worker,) = stats.read_boards(app).workers

    each = MANY_THREADS * UNITS // len(KINDS)
    counts = worker.counts
    assert counts.units == stats.UnitCounts(begun=3 * each, committed=2 * each, rolled_back=each)
    assert {label.label: label.count for label in counts.labels} == dict.fromkeys(
        ("kept", "refused", "outer", "inner"), each
    )
    assert counts.statements == sum(STATEMENTS.values()) * each
    assert counts.sessions == stats.SessionCounts(opened=3 * each, closed=3 * each)
    for histogram in (counts.unit_seconds, counts.held_seconds, counts.idle_seconds):
        assert histogram.count == 3 * each
    assert not worker.untold
    assert not worker.live
    assert worker.pools[0].checked_out == 0


def test_a_reader_sees_whole_records_that_never_fall(folder: Path) -> None:
    """Another process writes as fast as it can meanwhile; ``tests.benchmarks.hammer_boards`` reads a million times."""
    app, _ = boards.make_app(folder)

    with busy(folder):
        boards.read_until(app, lambda seen: seen.workers)
        witness = Witness()
        while witness.reads < READS:
            seen = stats.read_boards(app)
            assert seen.notes == ()
            (worker,) = seen.workers
            witness.see(worker)

    assert worker.counts.units.begun > 0


def test_threads_that_come_and_go_leave_their_places(folder: Path) -> None:
    """More of them than there are places for threads: every unit is told, and none stays."""
    app, uow = boards.make_app(folder)

    def work() -> None:
        with app.app_context(), transactional(label="short", read_only=True):
            uow.session.execute(ONE)

    for _ in range(SHORT_THREADS // 10):
        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)

    (worker,) = stats.read_boards(app).workers
    assert worker.counts.units == stats.UnitCounts(begun=SHORT_THREADS, committed=SHORT_THREADS)
    assert worker.live == ()
    assert not worker.untold


def test_more_threads_than_places_are_all_counted(folder: Path) -> None:
    """At once: those that find no place of their own take another, and those that find none are counted as untold."""
    app, _ = boards.make_app(folder)
    number = 300
    barrier = threading.Barrier(number + 1)

    def work() -> None:
        with app.app_context(), transactional(label="many"):
            barrier.wait(DEADLINE_S)
            barrier.wait(DEADLINE_S)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    barrier.wait(DEADLINE_S)
    (during,) = stats.read_boards(app).workers
    barrier.wait(DEADLINE_S)
    for thread in threads:
        thread.join(DEADLINE_S)
    (after,) = stats.read_boards(app).workers

    assert len(during.live) + during.untold["units"] == number
    assert len({unit.thread_id for unit in during.live}) == len(during.live)
    assert after.counts.units == stats.UnitCounts(begun=number, committed=number)
    assert after.live == ()
    with app.app_context(), transactional(label="next"):
        (worker,) = stats.read_boards(app).workers
        assert [unit.label for unit in worker.live] == ["next"]


def test_a_thread_is_shown_by_its_own_name(folder: Path) -> None:
    """Also if the system gives it the number of one that has ended, which it does at once."""
    app, _ = boards.make_app(folder)
    seen: list[tuple[str, int]] = []
    real: list[tuple[str, int]] = []

    def work() -> None:
        with app.app_context(), transactional():
            (worker,) = stats.read_boards(app).workers
            seen.extend((unit.thread, unit.thread_id) for unit in worker.live)
            real.append((threading.current_thread().name, threading.get_native_id()))

    for number in range(5):
        thread = threading.Thread(target=work, name=f"clerk {number}")
        thread.start()
        thread.join(DEADLINE_S)

    assert seen == real


def test_a_thread_name_that_is_too_long_is_cut(folder: Path) -> None:
    """In whole characters."""
    app, _ = boards.make_app(folder)
    seen: list[str] = []

    def work() -> None:
        with app.app_context(), transactional():
            (worker,) = stats.read_boards(app).workers
            seen.extend(unit.thread for unit in worker.live)

    thread = threading.Thread(target=work, name="ü" * 100)
    thread.start()
    thread.join(DEADLINE_S)

    (name,) = seen
    assert set(name) == {"ü", "…"}


def test_a_reader_in_the_same_process_sees_whole_records_too(folder: Path) -> None:
    """A metrics endpoint reads the boards while other threads of the worker write theirs."""
    app, uow = boards.make_app(folder, url=f"sqlite:///{folder.with_name('same.sqlite')}", UOW_RULES="off")
    is_over = threading.Event()

    def work() -> int:
        number = 0
        while not is_over.is_set():
            with app.app_context():
                KINDS[number % len(KINDS)](uow)
            number += 1
        return number

    with ThreadPoolExecutor(THREADS) as pool:
        made = [pool.submit(work) for _ in range(THREADS)]
        witness = Witness()
        try:
            while witness.reads < 200:
                for worker in stats.read_boards(app).workers:
                    witness.see(worker)
        finally:
            is_over.set()
    (worker,) = stats.read_boards(app).workers

    assert worker.counts.units.begun == sum(each.result() for each in made)


def test_threads_that_begin_with_one_label_share_its_row(folder: Path, threads_that_alternate: None) -> None:
    """Whoever of them is the first: a label is counted in one place."""
    app, _ = boards.make_app(folder)
    number = 150
    barrier = threading.Barrier(THREADS)

    def work() -> None:
        for each in range(number):
            barrier.wait(DEADLINE_S)
            with app.app_context(), transactional(label=f"unit {each}"):
                pass

    with ThreadPoolExecutor(THREADS) as pool:
        for result in [pool.submit(work) for _ in range(THREADS)]:
            result.result(DEADLINE_S)

    (worker,) = stats.read_boards(app).workers
    assert [(label.label, label.count) for label in worker.counts.labels if label.count != THREADS] == []
    assert len(worker.counts.labels) == number


# ---- forks


@pytest.mark.parametrize("database", ["sqlite", "psycopg2", "psycopg"], indirect=True)
def test_a_forked_child_has_a_board_of_its_own(folder: Path, database: Database) -> None:
    """Whatever it counts is on that, also if it was forked inside a unit; its parent's is not touched."""
    create_tables(database)
    program = [sys.executable, "-m", "tests.concurrency.test_boards", str(folder), database.url]

    subprocess.run(program, cwd=ROOT, check=True, timeout=DEADLINE_S)


def check_forks(folder: str, url: str) -> None:
    """What the program does: fork inside a unit, and look at both boards from both sides."""
    app, uow = boards.make_app(Path(folder), url=url)
    with app.app_context():
        with transactional(label="before", read_only=True):
            uow.session.execute(ONE)
        with transactional(label="parent", read_only=True):
            uow.session.execute(ONE)
            before = of_process(app, os.getpid())
            process = multiprocessing.get_context("fork").Process(target=childs_part, args=(app, uow, os.getpid()))
            process.start()
            process.join(DEADLINE_S)
            assert process.exitcode == 0
            after = of_process(app, os.getpid())
            assert after.counts == before.counts
            assert [unit.label for unit in after.live] == ["parent"]
            assert after.backend_pids == before.backend_pids
        assert of_process(app, os.getpid()).counts.units == stats.UnitCounts(begun=2, committed=2)
        ended = stats.read_boards(app).ended
    # A child that leaves past the finalizers is swept by its reader.
    assert ended is not None
    assert ended.counts.units == stats.UnitCounts(begun=3, committed=2, rolled_back=1)
    assert len(board_files(Path(folder))) == 1


def childs_part(app: Flask, uow: UnitOfWork, parent: int) -> None:
    """What the child does: units of its own, in the context that it has inherited and in a new one."""
    before = of_process(app, parent)
    for _ in range(2):
        with app.app_context(), transactional(label="child", read_only=True):
            uow.session.execute(ONE)
            own = of_process(app, os.getpid())
            assert [unit.label for unit in own.live] == ["child"]
            assert set(own.backend_pids).isdisjoint(before.backend_pids)
    with suppress(ValueError), app.app_context(), transactional(label="child"):
        raise ValueError("no")
    own, parents = of_process(app, os.getpid()), of_process(app, parent)
    assert own.counts.units == stats.UnitCounts(begun=3, committed=2, rolled_back=1)
    assert {label.label for label in own.counts.labels} == {"child"}
    assert parents.counts == before.counts
    assert [unit.label for unit in parents.live] == ["parent"]


def of_process(app: Flask, pid: int) -> stats.Worker:
    """What a process tells."""
    (worker,) = (each for each in stats.read_boards(app).workers if each.pid == pid)
    return worker


def test_a_parent_that_has_no_board_yet_forks_children_that_have(folder: Path) -> None:
    """As gunicorn does with an app that was loaded before: each worker has its own, and the numbers add up."""
    program = [sys.executable, "-c", FORKS, str(folder)]

    done = subprocess.run(program, cwd=ROOT, timeout=DEADLINE_S, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


FORKS = """
import os, sys, time
from pathlib import Path
from flask_uow import stats, transactional
from tests import boards

app, uow = boards.make_app(Path(sys.argv[1]))
read, write = os.pipe()
children = []
for number in range(4):
    pid = os.fork()
    if not pid:
        os.close(write)
        for _ in range(number + 1):
            with app.app_context(), transactional(label="child"):
                pass
        os.read(read, 1)
        os._exit(0)
    children.append(pid)
seen = boards.read_until(app, lambda seen: seen.totals.units.committed == 1 + 2 + 3 + 4)
assert sorted(worker.pid for worker in seen.workers) == sorted(children), seen
os.close(write)
for pid in children:
    os.waitpid(pid, 0)
seen = stats.read_boards(app)
assert not seen.workers
assert seen.ended.workers == 4
assert seen.totals.units.committed == 10
"""


# ---- workers that are killed while they write


def test_the_numbers_of_a_worker_that_is_killed_while_it_writes_are_kept(folder: Path) -> None:
    """Those of the others stay, its file is swept by the first that looks, and no total ever falls."""
    app, _ = boards.make_app(folder)
    least = 0
    with busy(folder), busy(folder) as killed:
        for number in range(40):
            seen = stats.read_boards(app)
            if number == 20:
                killed.kill()
                killed.wait()
            assert seen.totals.units.begun >= least
            least = seen.totals.units.begun
        seen = stats.read_boards(app)

    assert [worker.pid for worker in seen.workers] != []
    assert killed.pid not in {worker.pid for worker in seen.workers}
    assert seen.ended is not None
    assert seen.ended.workers == 1
    labels = {label.label: label for label in seen.ended.counts.labels}
    for name, statements in STATEMENTS.items():
        assert abs(labels[name].statements - statements * labels[name].count) <= statements, "at most one was half-told"
    deadline = time.monotonic() + DEADLINE_S
    while board_files(folder):
        stats.read_boards(app)
        assert time.monotonic() < deadline


if __name__ == "__main__":
    check_forks(*sys.argv[1:])
