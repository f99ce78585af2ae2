"""Snapshot after snapshot: what has happened between them, as lines that rise and fall, and where they are shown.

On a terminal each picture takes the place of the one before, and the last one stays to be read. Elsewhere they follow
each other. Taking a snapshot, and what is thought of it, are left to the command.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
import typing as t
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from . import stats
from ._tables import make_console, print_parts, text_of

if t.TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

DEFAULT_SECONDS = "2"
MIN_SECONDS = 0.1
MAX_SECONDS = 86_400
KEPT = 60
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.:-=+*#"

Show = Callable[[Callable[["Console"], Iterable["RenderableType"]]], None]
"""What shows the picture that a function draws for a console."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """What happened between two snapshots, per second."""

    units: float
    errors: float
    """Units that were rolled back or failed."""


def rates(before: stats.Snapshot, now: stats.Snapshot) -> Rates | None:
    """Tell what has happened between two snapshots; None if no time has passed.

    Worker by worker: what one had counted that is gone now is not missed, and what one that was not seen before had
    counted is new only if the worker is.

    :param before: the earlier one.
    :param now: the later one.
    """
    seconds = (now.taken_at - before.taken_at).total_seconds()
    if seconds <= 0:
        return None
    known = {(worker.pid, worker.started_at): worker.counts.units for worker in before.workers}
    units = errors = 0
    for worker in now.workers:
        new = stats.UnitCounts() if worker.started_at >= before.taken_at else worker.counts.units
        old = known.get((worker.pid, worker.started_at), new)
        units += max(0, worker.counts.units.begun - old.begun)
        errors += max(0, _undone(worker.counts.units) - _undone(old))
    return Rates(units / seconds, errors / seconds)


def in_use(snapshot: stats.Snapshot) -> int:
    """Count the connections that are checked out; where no worker tells, the sessions that a server sees at work.

    :param snapshot: the snapshot.
    """
    if snapshot.workers:
        return sum(pool.checked_out or 0 for worker in snapshot.workers for pool in worker.pools)
    states = (state for database in snapshot.databases for state in database.summary.states)
    return sum(state.count for state in states if state.state != "idle")


class History:
    """The latest snapshots, as far as they are shown: some numbers of each."""

    def __init__(self) -> None:
        self._last: stats.Snapshot | None = None
        self._rates: deque[Rates | None] = deque(maxlen=KEPT)
        self._in_use: deque[int] = deque(maxlen=KEPT)

    def add(self, snapshot: stats.Snapshot) -> None:
        """Take in the next snapshot.

        :param snapshot: the snapshot, with all that was seen.
        """
        self._rates.append(rates(self._last, snapshot) if self._last else None)
        self._in_use.append(in_use(snapshot))
        self._last = snapshot

    def lines(self, width: int, encoding: str) -> Iterator[str]:
        """Draw what the snapshots have in common, one line for each number.

        :param width: of the terminal.
        :param encoding: of the terminal; without block elements in it, other characters rise and fall.
        """
        bars = _BARS if _can_show(_BARS, encoding) else _ASCII_BARS
        width = max(4, width - 36)
        yield _line("units/s", [each.units if each else None for each in self._rates], "{:,.1f}", bars, width)
        yield _line("undone/s", [each.errors if each else None for each in self._rates], "{:,.1f}", bars, width)
        yield _line("in use", list(self._in_use), "{:,}", bars, width)


def _line(name: str, values: Sequence[float | None], form: str, bars: str, width: int) -> str:
    seen = [value for value in values if value is not None]
    latest = form.format(values[-1]) if values and values[-1] is not None else "-"
    most = f"most {form.format(max(seen))}" if seen else ""
    return f"{name:<9}{latest:>9}  {sparkline(values[-width:], bars)}  {most}".rstrip()


def sparkline(values: Iterable[float | None], bars: str = _BARS) -> str:
    """Draw numbers as bars, the highest of them as the highest bar, and as a blank what is not known.

    >>> sparkline([0, 1, None, 2, 4])
    '▁▃ ▅█'

    :param values: the numbers, none below zero.
    :param bars: the characters, the lowest first.
    """
    values = list(values)
    top = max((value for value in values if value is not None), default=0) or 1
    return "".join(" " if value is None else bars[round(value / top * (len(bars) - 1))] for value in values)


def _undone(units: stats.UnitCounts) -> int:
    return units.rolled_back + units.failed


def _can_show(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


# ---- again and again


def repeat(step: Callable[[], None], seconds: float) -> None:
    """Do something again and again, until somebody ends it: by Ctrl-C, or as a system ends a process.

    :param step: what to do.
    :param seconds: from one beginning to the next; if a step takes longer, there is a pause all the same.
    """
    with suppress(KeyboardInterrupt), _ended_by_sigterm():
        while True:
            begin = time.monotonic()
            step()
            time.sleep(max(MIN_SECONDS, begin + seconds - time.monotonic()))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    try:
        former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


# ---- where it is shown


@contextmanager
def _opened(console: Console) -> Iterator[Show]:
    """Replace each picture by the next one; at the end, leave the last one on the usual screen."""
    from rich.control import Control

    last: list[RenderableType] = []
    try:
        with console.screen(hide_cursor=True) as screen:

            def show(draw: Callable[[Console], Iterable[RenderableType]]) -> None:
                last[:] = draw(console)
                console.control(Control.home())
                screen.update(Cropped(last))

            yield show
    finally:
        print_parts(console, last)


class Cropped:
    """Parts of a picture, as many of their lines as the terminal has; the last line says how many are missing."""

    def __init__(self, parts: Sequence[RenderableType]) -> None:
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.console import Group
        from rich.segment import Segment

        height = console.height
        lines = console.render_lines(Group(*self.parts), options.update(height=None), pad=False)
        missing = len(lines) - height
        for line in lines if missing <= 0 else lines[: height - 1]:
            yield from line
            yield Segment.line()
        if missing > 0:
            yield text_of(f"... {missing + 1} more lines; Ctrl-C prints them all", "dim")


def watched_screen() -> AbstractContextManager[Show] | None:
    """Take the terminal that the output goes to; None if it is none, or one that can only print line after line."""
    console = make_console()
    if sys.stdout is None or not sys.stdout.isatty() or not console.is_terminal or console.is_dumb_terminal:
        return None
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return _opened(console)
