"""One process under requests of every kind, and what is left of them: ``python -m tests.faults.soak --requests 50000``.

For each driver, threads make requests that end in every way there is (:mod:`tests.faults.soak_app`). After the first
fifth of them, and again after the last, the process is looked at: what it holds then must be what it held before, the
database must have the rows that were acknowledged, and the board must have counted just what was asked for. A table
says so; a difference ends the program with 1. What memory the process has tells nothing before the threads have filled
their parts of it: of a short run only the objects are compared.
"""

import argparse
import dataclasses
import gc
import logging
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm.session import _sessions

from flask_uow import stats
from flask_uow._scopes import Scope
from tests.databases import PostgreSQLDatabase, run_server
from tests.faults import soak_app
from tests.faults.soak_app import KINDS, Kind, uow

DRIVERS = ("psycopg2", "psycopg")
THREADS = 8
WARM_UP = 0.2
"""The part of the requests after which the process is looked at first."""
GROWTH = {"objects": 1.005, "resident_kib": 1.05}
"""How much more there may be at the end: caches find their size, and memory is given out in pieces."""
SHORT = 20_000
"""Fewer requests than these tell nothing of the memory."""
DEADLINE_S = 10.0
PAGE_KIB = os.sysconf("SC_PAGESIZE") // 1024


@dataclass(frozen=True)
class Held:
    """What the process holds while nobody asks for anything."""

    sessions_alive: int
    sessions_in_scopes: int
    units_on_the_board: int
    connections_checked_out: int
    sessions_of_the_server: int
    file_descriptors: int
    threads: int
    objects: int
    resident_kib: int


@dataclass
class Soak:
    """What came of the requests to one app."""

    before: Held
    after: Held
    asked: Counter[str]
    wrong: Counter[str]
    expected: Counter[str]
    counted: Counter[str]
    seconds: float

    def is_clean(self) -> bool:
        """Whether nothing differs."""
        return not self.wrong and self.expected == self.counted and not self.grown()

    def grown(self) -> list[str]:
        """Name what there is more of than before."""
        before, after = dataclasses.asdict(self.before), dataclasses.asdict(self.after)
        if self.asked.total() < SHORT:
            del after["resident_kib"]
        return [name for name, number in after.items() if number > before[name] * GROWTH.get(name, 1)]

    def table(self) -> str:
        """Return what was asked for, what was counted of it, and what was held before and after."""
        total = self.asked.total()
        lines = [f"{total} requests of {len(KINDS)} kinds in {self.seconds:.0f} s"]
        lines += [f"  wrong: {number} x {what}" for what, number in sorted(self.wrong.items())]
        names = sorted(self.expected | self.counted)
        lines += _rows(("counted", "asked for", "found"), ((n, self.expected[n], self.counted[n]) for n in names))
        before, after = dataclasses.asdict(self.before), dataclasses.asdict(self.after)
        lines += _rows(("held", "warm", "at the end"), ((name, before[name], after[name]) for name in before))
        lines += [f"  more than before: {name}" for name in self.grown()]
        lines.append("nothing differs" if self.is_clean() else "THERE ARE DIFFERENCES")
        return "\n".join(lines)


def _rows(head: tuple[str, str, str], rows: Iterable[tuple[str, int, int]]) -> list[str]:
    lines = [f"{head[0]:<26}{head[1]:>12}{head[2]:>12}"]
    return lines + [f"  {name.replace('_', ' '):<24}{left:>12}{right:>12}" for name, left, right in rows]


# ---- asking


class Clients:
    """Threads that ask for what they are told to, and note what was not as it should be.

    :param app: who is asked.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    def ask(self, kinds: Sequence[Kind]) -> None:
        """Make a request of each kind, by all threads together."""
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(self._ask_for, kinds[first::THREADS]) for first in range(THREADS)]:
                done.result()

    def _ask_for(self, kinds: Sequence[Kind]) -> None:
        for kind in kinds:
            status = kind.ask(self._app, kind.name)
            with self._lock:
                self.asked[kind.name] += 1
                if status != kind.answer:
                    self.wrong[f"{kind.name} was answered with {status}"] += 1


def choose(requests: int, seed: int) -> list[Kind]:
    """Choose kinds of requests: each of them comes, in an order that the seed decides."""
    chance = random.Random(seed)
    chosen = [*KINDS, *chance.choices(KINDS, [kind.weight for kind in KINDS], k=max(0, requests - len(KINDS)))]
    chance.shuffle(chosen)
    return chosen


def soak(database: PostgreSQLDatabase, folder: Path, requests: int, seed: int) -> Soak:
    """Make requests to an app on an empty database.

    :param folder: where the app's board lies.
    """
    app = soak_app.make_app(database, folder)
    soak_app.hooks.clear()
    clients, chosen, began = Clients(app), choose(requests, seed), time.monotonic()
    # Each kind before the first look, so that all there is to import and to compile is there.
    warm = [*KINDS, *chosen[: int(requests * WARM_UP)]]
    rest = chosen[int(requests * WARM_UP) :]
    clients.ask(warm)
    before = look(app, database)
    clients.ask(rest)
    after = look(app, database)
    expected: Counter[str] = sum((kind.leaves for kind in [*warm, *rest]), Counter())
    seconds = time.monotonic() - began
    return Soak(before, after, clients.asked, clients.wrong, expected, count(app, database), seconds)


# ---- looking


def look(app: Flask, database: PostgreSQLDatabase) -> Held:
    """Look at what the process holds; what is in the pools is closed first, for it differs with chance."""
    with app.app_context():
        engines = uow.engines.values()
        checked_out = sum(engine.pool.checkedout() for engine in engines if isinstance(engine.pool, sa.QueuePool))
        for engine in engines:
            engine.dispose()
    gc.collect()
    (worker,) = stats.read_boards(app).workers
    objects = gc.get_objects()
    return Held(
        sessions_alive=len(list(_sessions.values())),
        sessions_in_scopes=sum(len(each.slots) + len(each.adopted or ()) for each in objects if type(each) is Scope),
        units_on_the_board=len(worker.live),
        connections_checked_out=checked_out,
        sessions_of_the_server=_count_server_sessions(database),
        file_descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        objects=len(objects),
        resident_kib=int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB,
    )


def _count_server_sessions(database: PostgreSQLDatabase) -> int:
    """Count them when those whose connections were closed have gone, which takes the server a moment."""
    deadline = time.monotonic() + DEADLINE_S
    while database.sessions() and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(database.sessions())


def count(app: Flask, database: PostgreSQLDatabase) -> Counter[str]:
    """Count what the requests have left: rows in the database, hooks that have run, and all that the board says."""
    (worker,) = stats.read_boards(app).workers
    units, sessions = worker.counts.units, worker.counts.sessions
    counted = Counter(committed=units.committed, rolled_back=units.rolled_back, failed=units.failed)
    counted.update(retried=units.retried, leaked=sessions.leaked, hooks=soak_app.hooks.total())
    counted.update({"sessions not closed": sessions.opened - sessions.closed}, **worker.counts.rules)
    counted.update({"units not ended": units.begun - units.committed - units.rolled_back - units.failed})
    counted.update(rows=database.rows("SELECT count(*) FROM item WHERE name <> %s", soak_app.TAKEN)[0][0])
    return +counted


def main() -> int:
    """Soak the drivers one after the other, on a server that lives as long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=DRIVERS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable()  # nine of ten lines would tell of errors that are asked for
    warnings.simplefilter("ignore")
    is_clean = True
    with run_server() as server, tempfile.TemporaryDirectory() as folder:
        for driver in options.drivers:
            done = soak(server.database(driver), Path(folder) / driver, options.requests, options.seed)
            sys.stdout.write(f"{driver}: {done.table()}\n")
            sys.stdout.flush()
            is_clean = is_clean and done.is_clean()
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
