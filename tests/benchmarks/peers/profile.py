"""Where the CPU time of a request goes, with ours and by hand: by package, and by function.

``python -m tests.benchmarks.peers.profile --view write`` looks at a view on SQLite in memory and on PostgreSQL. The
times are samples of what runs, taken each few milliseconds of CPU time, which slows nothing; how often a function is
called is counted in another run. What SQLAlchemy does only because of us stands with the functions elsewhere.
"""

import argparse
import cProfile
import random
import signal
import sys
import sysconfig
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

import flask_uow
from tests.benchmarks.peers import views
from tests.benchmarks.peers.client import Client
from tests.benchmarks.peers.stacks import HAND, HAND_3, IN_MEMORY, OURS, OURS_3, Stack, make_stacks, served
from tests.databases import run_server

INTERVAL_S = 0.001
REQUESTS_PER_ROUND = 200
COUNTED = 200
WARM_UP = 50
SHOWN = 30
OURSELVES = "flask_uow"
OWN_FOLDER = Path(flask_uow.__file__).parent
LIBRARIES = [Path(sysconfig.get_path("purelib")), *(Path(path) for path in sys.path if path.endswith("site-packages"))]


@dataclass
class Samples:
    """What ran in the samples.

    :param own: in which function a sample was.
    :param below: which functions stood above that, up to the view's body.
    """

    own: Counter[CodeType] = field(default_factory=Counter)
    below: Counter[CodeType] = field(default_factory=Counter)
    requests: int = 0
    cpu_s: float = 0.0

    def take(self, _: int, frame: FrameType | None) -> None:
        """Take one; a signal calls it."""
        if frame is None:
            return
        self.own[frame.f_code] += 1
        seen = set()
        while frame is not None and frame.f_code.co_filename != views.__file__:
            seen.add(frame.f_code)
            frame = frame.f_back
        self.below.update(seen)

    @property
    def request_us(self) -> float:
        """CPU time of a request, in microseconds."""
        return self.cpu_s / self.requests * 1e6

    def us(self, samples: float) -> float:
        """Return how long so many samples stand for in a request, in microseconds."""
        return samples / max(self.own.total(), 1) * self.request_us


def main() -> None:
    """Profile a view on both databases."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers.profile", description=__doc__)
    parser.add_argument("--view", choices=list(views.VIEWS), action="append", help="of which path; may be repeated")
    parser.add_argument("--seconds", type=float, default=30.0, help="how much CPU time each stack gets")
    parser.add_argument("--psycopg", action="store_true", help="take psycopg 3, not psycopg2")
    options = parser.parse_args()
    names = (HAND_3, OURS_3) if options.psycopg else (HAND, OURS)
    hand, ours = (next(stack for stack in make_stacks()[0] if stack.name == name) for name in names)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for view in options.view or ["write", "read"]:
        _profile(hand, ours, IN_MEMORY, view, options.seconds, console)
        with run_server() as server:
            url = sa.make_url(server.database("psycopg2").driverless_url)
            _profile(hand, ours, url.render_as_string(hide_password=False), view, options.seconds, console)


def _profile(hand: Stack, ours: Stack, url: str, view: str, seconds: float, console: Console) -> None:
    with ExitStack() as apps:
        clients = [Client(apps.enter_context(served(stack, url))) for stack in (hand, ours)]
        of_hand, of_ours = _sample(clients, view, seconds)
        calls = _count_calls(clients[1], view)
    database = "SQLite in memory" if url == IN_MEMORY else "PostgreSQL"
    ratio = of_ours.request_us / of_hand.request_us
    console.print(
        f"[bold]{view} on {database}: by hand {of_hand.request_us:.0f} us, ours {of_ours.request_us:.0f} us "
        f"({ratio:.3f}); {of_hand.own.total()} and {of_ours.own.total()} samples"
    )
    console.print(_packages(of_hand, of_ours))
    console.print(_our_functions(of_ours, calls))
    console.print(_other_functions(of_hand, of_ours))


def _sample(clients: list[Client], view: str, seconds: float) -> list[Samples]:
    samples = [Samples() for _ in clients]
    for client in clients:
        _repeat(client, view, WARM_UP)
    while samples[0].cpu_s < seconds:
        for client, taken in random.sample(list(zip(clients, samples, strict=True)), len(clients)):
            previous = signal.signal(signal.SIGPROF, taken.take)
            signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
            begun = time.process_time()
            _repeat(client, view, REQUESTS_PER_ROUND)
            taken.cpu_s += time.process_time() - begun
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
            taken.requests += REQUESTS_PER_ROUND
    return samples


def _count_calls(client: Client, view: str) -> dict[CodeType, float]:
    profile = cProfile.Profile()
    profile.enable()
    _repeat(client, view, COUNTED)
    profile.disable()
    entries = ((entry.code, entry.callcount) for entry in profile.getstats())
    return {code: count / COUNTED for code, count in entries if isinstance(code, CodeType)}


def _repeat(client: Client, view: str, requests: int) -> None:
    for _ in range(requests):
        client.get(view)


def _packages(hand: Samples, ours: Samples) -> Table:
    table = _table("by package", "by hand, us", "ours, us", "difference")
    sums = [Counter[str](), Counter[str]()]
    for total, samples in zip(sums, (hand, ours), strict=True):
        for code, count in samples.own.items():
            total[_package(code)] += count
    rows = [(name, hand.us(sums[0][name]), ours.us(sums[1][name])) for name in sums[0] | sums[1]]
    for name, hand_us, ours_us in sorted(rows, key=lambda row: row[1] - row[2]):
        table.add_row(name, f"{hand_us:.1f}", f"{ours_us:.1f}", f"{ours_us - hand_us:+.1f}")
    return table


def _our_functions(ours: Samples, calls: dict[CodeType, float]) -> Table:
    table = _table("functions of flask_uow", "itself, us", "and below, us", "calls")
    mine = [code for code in ours.below | ours.own if _package(code) == OURSELVES]
    for code in sorted(mine, key=lambda code: -ours.own[code])[:SHOWN]:
        own_us, below_us = ours.us(ours.own[code]), ours.us(ours.below[code])
        table.add_row(_name(code), f"{own_us:.1f}", f"{below_us:.1f}", f"{calls.get(code, 0):.1f}")
    return table


def _other_functions(hand: Samples, ours: Samples) -> Table:
    table = _table("functions elsewhere that take longer with ours", "by hand, us", "ours, us", "difference")
    rows = [
        (code, hand.us(hand.own[code]), ours.us(ours.own[code])) for code in ours.own if _package(code) != OURSELVES
    ]
    for code, hand_us, ours_us in sorted(rows, key=lambda row: row[1] - row[2])[: SHOWN // 2]:
        table.add_row(_name(code), f"{hand_us:.1f}", f"{ours_us:.1f}", f"{ours_us - hand_us:+.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table("", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _name(code: CodeType) -> str:
    file = Path(code.co_filename)
    return f"{file.parent.name}/{file.name}:{code.co_firstlineno} {code.co_qualname}"


def _package(code: CodeType) -> str:
    file = Path(code.co_filename)
    if file.is_relative_to(OWN_FOLDER):
        return OURSELVES
    for folder in LIBRARIES:
        if file.is_relative_to(folder):
            return file.relative_to(folder).parts[0]
    return "the views" if file.is_relative_to(Path(views.__file__).parent) else "Python"


if __name__ == "__main__":
    main()
