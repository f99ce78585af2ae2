"""How a snapshot is laid out: in which order, how many rows, and what besides."""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Callable, Sequence

from .. import stats

DEFAULT_LIMIT = 20

BY_LABEL: t.Final[dict[str, Callable[[stats.LabelCounts], t.Any]]] = {
    "seconds": lambda each: -each.total_seconds,
    "mean": lambda each: -(each.total_seconds / each.count if each.count else 0.0),
    "worst": lambda each: -each.worst_seconds,
    "count": lambda each: -each.count,
    "errors": lambda each: -each.errors,
    "statements": lambda each: -each.statements,
    "label": lambda each: each.label,
}
BY_UNIT: t.Final[dict[str, Callable[[Sequence[stats.LiveUnit]], t.Any]]] = {
    "statements": lambda stack: -stack[0].statements,
    "label": lambda stack: (stack[0].label, -stack[0].seconds),
}
SORTS: t.Final = tuple(BY_LABEL)


@dataclasses.dataclass(frozen=True)
class Listing:
    """How a snapshot is laid out.

    :param sort: one of :data:`SORTS`, for the labels and, where it applies to them, the live units.
    :param limit: the most rows of a table; 0 for all of them.
    :param explains: whether each kind of trouble is explained.
    :param workers: the workers that were chosen to be listed; empty for all.
    :param choice: what was chosen to be listed, in words, if not everything was.
    """

    sort: str = "seconds"
    limit: int = DEFAULT_LIMIT
    explains: bool = False
    workers: tuple[int, ...] = ()
    choice: str = ""
