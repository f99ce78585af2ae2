"""Draw the README's pictures of ``flask db-session-stats``, from nights made by hand: the same wherever drawn.

Run it from the top of the source tree: ``python -m tests.pictures.db_session_stats docs``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

from flask_uow._tables import Listing, picture, text_of
from flask_uow._watch import KEPT, Cropped, History
from tests import snapshots

WIDTH = 96
ROWS = 22
COMMAND = "db-session-stats"


def main(folder: str) -> None:
    """Draw both pictures.

    :param folder: where to.
    """
    for name, svg in pictures().items():
        Path(folder, f"{name}.svg").write_text(svg, encoding="utf-8")


def pictures() -> dict[str, str]:
    """Give each picture as SVG, by its name."""
    night = picture(snapshots.short_night(), Listing())
    return {
        COMMAND: _svg(night, f"flask {COMMAND}", COMMAND),
        f"{COMMAND}-watch": _svg([Cropped(list(_watch()))], f"flask {COMMAND} --watch", f"{COMMAND}-watch"),
    }


def _watch() -> Iterable[RenderableType]:
    history = History()
    for number in range(KEPT):
        history.add(seen := snapshots.evening(number))
    yield text_of(f"{seen.taken_at:%Y-%m-%d %H:%M:%S %Z}", "dim")
    yield from (text_of(line, "cyan") for line in history.lines(WIDTH, "utf-8"))
    yield ""
    yield from picture(seen, Listing())


def _svg(parts: Iterable[RenderableType], title: str, unique_id: str) -> str:
    """Draw as a terminal of these rows would show it."""
    console = Console(
        file=StringIO(), record=True, width=WIDTH, height=ROWS, force_terminal=True, highlight=False, markup=False
    )
    for part in parts:
        console.print(part)
    svg = console.export_svg(title=title, unique_id=unique_id)
    # The picture must not fetch its font from somewhere.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main(*sys.argv[1:])
