"""What may ride in front of a statement, read from its text; how many texts are remembered is bounded.

A SAVEPOINT may ride only in front of a text that has been parsed by the server before: a syntax error refuses the
whole string, and with a lost savepoint the work before it would be lost.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from enum import IntEnum

from ._characteristics import resets_all, sets_defaults

MOST_REMEMBERED = 4096
LONGEST_REMEMBERED = 4096  # characters


class Carrying(IntEnum):
    """What may ride in front of a text."""

    NOTHING = 1  # an empty one, whose error would not be seen; COPY
    NOTHING_AND_ENDS = 2  # one that may begin or end transactions and savepoints, or set what they are by default
    NO_SAVEPOINT = 3  # one that the server may find no sense in
    ALL = 4  # one that the server has run


_COMMENTS = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*+"
_FIRST_WORD = re.compile(rf"{_COMMENTS}(?P<word>[A-Za-z]+|\()", re.DOTALL)
_ENDING = "BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\\s+TRANSACTION"
_ENDING_AT_FIRST = re.compile(rf"{_COMMENTS}(?:{_ENDING})\b", re.IGNORECASE)
_ENDING_ANYWHERE = re.compile(rf"\b(?:{_ENDING})\b", re.IGNORECASE)

# What the server reads is then as sound as it was the last time: an empty tuple, say, would become ``IN ()``.
_PLAIN_TYPES = frozenset(
    (
        *(str, int, float, bool, bytes, memoryview, type(None), decimal.Decimal, uuid.UUID),
        *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
    )
)


def carrying_of(text: str) -> Carrying:
    """What may ride in front of a text that was not run yet."""
    first = _FIRST_WORD.match(text)
    if first is None:
        return Carrying.NOTHING
    is_script = ";" in text.rstrip().removesuffix(";")
    ending = _ENDING_ANYWHERE.search(text) if is_script else _ENDING_AT_FIRST.match(text)
    if ending is not None or sets_defaults(text) or resets_all(text):
        return Carrying.NOTHING_AND_ENDS
    return Carrying.NOTHING if first["word"].upper() == "COPY" else Carrying.NO_SAVEPOINT


def are_plain(parameters: object) -> bool:
    """Whether a statement's parameters cannot change how its text is parsed."""
    if not parameters:
        return True
    if isinstance(parameters, dict):
        return _PLAIN_TYPES.issuperset(map(type, parameters.values()))
    return isinstance(parameters, (tuple, list)) and _PLAIN_TYPES.issuperset(map(type, parameters))


def remember(texts: dict[str, Carrying], text: str, carrying: Carrying) -> None:
    """Remember what may ride in front of a text; when too many are known, all are forgotten."""
    if len(text) > LONGEST_REMEMBERED:
        return
    if len(texts) >= MOST_REMEMBERED:
        texts.clear()
    texts[text] = carrying
