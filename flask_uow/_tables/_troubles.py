"""What somebody should look at, and, if asked for, what it means and what to do."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator, Sequence

from .. import stats
from ._cells import Parts, rest, table, text_of
from ._listing import Listing

if t.TYPE_CHECKING:
    from rich.console import RenderableType

_GRAVE: t.Final = ("aborted-transaction", "idle-in-transaction", "leaked-connection", "pool-exhausted", "orphan")


def troubles_of(troubles: Sequence[stats.Trouble], listing: Listing) -> Iterator[RenderableType]:
    """Draw the troubles, the worst first."""
    if not troubles:
        return
    rows = table("kind", last="what")
    rows.show_header, rows.columns[0].justify = False, "left"
    for trouble in troubles[: listing.limit or None]:
        style = "bold red" if trouble.kind in _GRAVE else "bold yellow"
        rows.add_row(text_of(trouble.kind, style), _with_own_line(trouble.text, trouble.where))
    yield text_of(f"\ntrouble ({len(troubles)})", "bold red")
    yield rows
    yield from rest(len(troubles), listing.limit)


def _with_own_line(text: str, where: str | None) -> RenderableType:
    """Let the place in the code begin a line, so that neither it nor what follows it is torn apart."""
    from rich.console import Group

    first, place, rest = text.partition(f": {where}")
    if not place:
        return text_of(text)
    return Group(text_of(first), Parts(text_of(f"{where}"), *map(text_of, filter(None, rest.split(", ")))))


def explanations_of(troubles: Sequence[stats.Trouble], listing: Listing) -> Iterator[RenderableType]:
    """Say of each kind of trouble what it means and what to do."""
    from rich.padding import Padding

    kinds = dict.fromkeys(trouble.kind for trouble in troubles)
    none = f"No trouble{' is listed' if listing.choice else ''}: there is nothing to explain."
    yield text_of("\nwhat it means, and what to do" if kinds else f"\n{none}", "bold")
    for kind in kinds:
        explanation = stats.EXPLANATIONS[kind]
        yield text_of(kind, "bold")
        yield Padding(text_of(f"At the bank: {explanation.at_the_bank}", "italic"), (0, 0, 0, 2))
        yield Padding(text_of(explanation.meaning), (0, 0, 0, 2))
        yield Padding(text_of(f"What to do: {explanation.remedy}"), (0, 0, 0, 2))
