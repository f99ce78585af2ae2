"""A worker with many threads, of whose units one knows what they count: ``python -m tests.concurrency.busy_board``.

Each thread makes its units in turns: one of two statements that is kept, one of one statement that raises, and one with
a savepoint in it. So each record of a label can be checked by itself: whatever a reader meets, its numbers are in these
proportions. With no number of units the threads go on until the standard input ends.
"""

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import sqlalchemy as sa

from flask_uow import UnitOfWork, stats, transactional
from tests import boards

THREADS = 4
ONE = sa.text("SELECT 1")
FASTEST = 1e-9


def keep(uow: UnitOfWork) -> None:
    """Two statements, kept."""
    with transactional(label="kept", read_only=True):
        uow.session.execute(ONE)
        uow.session.execute(ONE)


def refuse(uow: UnitOfWork) -> None:
    """One statement, and an exception."""
    with suppress(ValueError), transactional(label="refused", read_only=True):
        uow.session.execute(ONE)
        raise ValueError("no")


def nest(uow: UnitOfWork) -> None:
    """A savepoint with a statement in it, after one."""
    with transactional(label="outer", read_only=True):
        uow.session.execute(ONE)
        with transactional(label="inner", read_only=True):
            uow.session.execute(ONE)


KINDS: tuple[Callable[[UnitOfWork], None], ...] = (keep, refuse, nest)
STATEMENTS = {"kept": 2, "refused": 1, "outer": 4}
"""Of one unit of each label: SAVEPOINT and RELEASE are two of those of the last."""


def main(folder: str, database: str, threads: str = str(THREADS), units: str = "") -> None:
    """Let threads make units, and say when they have begun and when they are done."""
    logging.getLogger("flask_uow").setLevel(logging.CRITICAL)
    app, uow = boards.make_app(Path(folder), url=database, UOW_RULES="off")
    is_over = threading.Event()

    def work() -> None:
        number = 0
        while not is_over.is_set() and (not units or number < int(units)):
            with app.app_context():
                KINDS[number % len(KINDS)](uow)
            number += 1

    workers = [threading.Thread(target=work) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    if not units:
        sys.stdin.read()
        is_over.set()
    for worker in workers:
        worker.join()
    if units:
        sys.stdout.write("done\n")
        sys.stdout.flush()
        sys.stdin.read()


class Witness:
    """Compares what is read of a worker with what was read before.

    :ivar reads: how often.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._before: dict[tuple[str, ...], tuple[float, ...]] = {}

    def see(self, worker: stats.Worker) -> None:
        """Look at one reading of one worker: nothing negative, nothing torn, nothing that falls."""
        self.reads += 1
        counts, units = worker.counts, worker.counts.units
        assert units.begun >= units.committed + units.rolled_back + units.failed, units
        self._compare("units", astuple(units))
        self._compare("sessions", astuple(counts.sessions))
        self._compare("statements", (counts.statements,))
        self._compare("unit seconds", counts.unit_seconds.counts)
        self._compare("held seconds", counts.held_seconds.counts)
        self._compare("idle seconds", counts.idle_seconds.counts)
        for label in counts.labels:
            self._check_label(label)
        for live in worker.live:
            assert live.label in ("kept", "refused", "outer", "inner")
            assert live.depth == (2 if live.label == "inner" else 1)
            assert live.where
            assert 0 <= live.statements <= 4
            assert live.state_seconds >= 0.0
            assert 0.0 <= live.seconds < 3600.0

    def _check_label(self, label: stats.LabelCounts) -> None:
        values = (label.count, label.errors, label.statements, label.total_seconds, label.worst_seconds)
        self._compare(f"label {label.label}", values)
        assert label.statements == STATEMENTS.get(label.label, label.statements / label.count) * label.count, label
        assert label.errors == (label.count if label.label == "refused" else 0), label
        assert label.worst_seconds <= label.total_seconds + FASTEST, label
        assert label.is_inner == (label.label == "inner")

    def _compare(self, name: str, values: tuple[float, ...]) -> None:
        before = self._before.get((name,), (0,) * len(values))
        assert all(new >= old >= 0 for new, old in zip(values, before, strict=True)), (name, before, values)
        self._before[name,] = values


if __name__ == "__main__":
    main(*sys.argv[1:])
