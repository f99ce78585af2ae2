"""Cells and lines: what is cut and what is folded where there is no room, and that all text is harmless.

Numbers are never cut. A label loses its middle, and a place in the code goes on in the next line. ``rich`` draws, and
is imported when there is something to draw, so that an app which never runs the command does not pay for it.
"""

from __future__ import annotations

import os
import typing as t
from collections.abc import Iterable, Iterator

from .._hiding import harmless
from ..stats import State

if t.TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

STYLES: t.Final = {
    "idle in transaction (aborted)": "bold red",
    "idle in transaction": "bold yellow",
    "blocked": "bold magenta",
    "active": "green",
    "hidden": "dim",
    State.LEAKED: "bold red",
    State.WAITING: "bold magenta",
    State.RUNNING: "green",
    State.COMMITTING: "green",
    State.NO_TRANSACTION: "dim",
}
_USUAL_SIZE = (80, 25)


def make_console() -> Console:
    """Make a console for the standard output; without colours where NO_COLOR asks for it."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, color_system=None if os.environ.get("NO_COLOR") else "auto")
    if 0 in console.size:  # by COLUMNS or LINES, of whoever does not know
        console.size = (console.width or _USUAL_SIZE[0], console.height or _USUAL_SIZE[1])
    return console


def print_parts(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print the parts of a picture, one below the other."""
    for part in parts:
        console.print(part)


class Line:
    """A line of text that loses its middle where there is no room for it, so that both ends can be read.

    :param text: the text.
    :param style: how to show it.
    :param keeps_end: whether the middle is lost; if not, the end is.
    """

    def __init__(self, text: str, style: str = "", *, keeps_end: bool = True) -> None:
        self.text = harmless(text)
        self.style = style
        self.keeps_end = keeps_end

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        dots = "..." if options.ascii_only else "…"
        shown = shortened(self.text, options.max_width, dots, keeps_end=self.keeps_end)
        yield Text(shown, self.style, no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        return Measurement(min(10, options.max_width), min(cell_len(self.text), options.max_width))


class Label(Line):
    """A label, with its place behind it where there is room for both."""

    def __init__(self, text: str, where: str | None) -> None:
        super().__init__(text)
        self.where = where

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = text_of(self.text).append_text(text_of(f"  {self.where or ''}".rstrip(), "dim"))
        if whole.cell_len <= options.max_width:
            yield whole
            return
        yield from super().__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(min(10, options.max_width), options.max_width)


class Parts:
    """Parts of a line; each that does not fit behind the one before begins a line of its own."""

    def __init__(self, *parts: Text) -> None:
        self.parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        line = Text(overflow="fold")
        for part in self.parts:
            if line and line.cell_len + 2 + part.cell_len > options.max_width:
                yield line
                line = Text(overflow="fold")
            line.append_text(Text(", ") if line else Text()).append_text(part)
        if line:
            yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        longest = sum(part.cell_len + 2 for part in self.parts)
        return Measurement(min(10, options.max_width), min(longest, options.max_width))


def shortened(text: str, width: int, dots: str, *, keeps_end: bool) -> str:
    """Shorten a text in its middle or at its end, whatever width its characters have.

    >>> shortened("POST /transfers", 10, "…", keeps_end=True), shortened("POST /transfers", 10, "…", keeps_end=False)
    ('POST …fers', 'POST /tra…')
    """
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    room = max(0, width - len(dots))
    tail = room // 2 if keeps_end else 0
    head = room - tail
    while head + tail and cell_len(text[:head] + text[len(text) - tail :]) > room:
        head, tail = (head - 1, tail) if head >= tail else (head, tail - 1)
    return text[:head] + dots[:width] + text[len(text) - tail :]


def table(*numbers: str, last: str, min_width: int = 8, gap: int = 2) -> Table:
    """Make a table of narrow columns that are never cut, and a last one that takes what is left.

    :param numbers: the heads of the narrow columns.
    :param last: the head of the last one.
    :param min_width: of the narrow ones.
    :param gap: between two columns.
    """
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for number in numbers:
        made.add_column(number, justify="right", no_wrap=True, min_width=min_width)
    made.add_column(last, overflow="fold")
    return made


def text_of(text: str, style: str = "") -> Text:
    """Make text that is harmless and folded where it does not fit; an empty line may stand before it."""
    from rich.text import Text

    return Text("\n" * text.startswith("\n") + harmless(text.lstrip("\n")), style=style, overflow="fold")


def named_pids(pids: Iterable[int]) -> str:
    """Name the server's processes that somebody waits for."""
    return ", ".join(str(pid) if pid else "a prepared transaction" for pid in pids)


def known(number: int | None) -> str:
    """Give a number, or a dash if nobody knows it."""
    return "-" if number is None else str(number)


def rest(count: int, limit: int) -> Iterator[RenderableType]:
    """Say how many rows are not shown, if any."""
    if limit and count > limit:
        yield text_of(f"... and {count - limit:,} more (--limit 0 lists all)", "dim")
