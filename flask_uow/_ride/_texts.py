"""What may ride in front of a statement, read from its text; how many texts are remembered is bounded.

A SAVEPOINT may ride only in front of a text that has been parsed by the server before, with parameters of the same
shape: a syntax error refuses the whole string, and with a lost savepoint the work before it would be lost.
"""

from __future__ import annotations

import re
from enum import IntEnum

from .._statements import statements
from ._characteristics import resets_all, sets_defaults, sets_reading
from ._shapes import are_odd, shape_of

MOST_REMEMBERED = 8192  # each text and each of its shapes
LONGEST_REMEMBERED = 4096  # characters; of a longer text its hash is remembered


class Carrying(IntEnum):
    """What may ride in front of a text."""

    NOTHING = 1  # an empty one, whose error would not be seen; COPY
    NOTHING_AND_ENDS = 2  # one that may begin or end transactions and savepoints, or set what a ROLLBACK TO sets back
    NO_SAVEPOINT = 3  # one that the server may find no sense in
    ALL = 4  # one that the server has run


_COMMENTS = r"(?:\s|--[^\n]*(?:\n|\Z)|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*+"
_FIRST_WORD = re.compile(rf"{_COMMENTS}(?P<word>[A-Za-z]+|\()", re.DOTALL)
_ENDING = "BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE\\s+TRANSACTION"
_ENDING_AT_FIRST = re.compile(rf"{_COMMENTS}(?:{_ENDING})\b", re.IGNORECASE)
_BEGINNINGS = frozenset(("BEGIN", "START"))

# One that stands as an element of a row may be any literal: what the server reads is then as sound as the last time.
_ELEMENT = r"(?:%s|%\([^()]*\)s|\w+(?:\((?:'[^'%]*')?\))?|'[^'%]*')"
_ROW = rf"\(\s*{_ELEMENT}(?:\s*,\s*{_ELEMENT})*\s*\)"
_ROWS = re.compile(rf"\s*INSERT\b[^%'$]*\bVALUES\s*{_ROW}(?:\s*,\s*{_ROW})*+[^%]*\Z", re.IGNORECASE)
_ANY_SHAPE = "any"

# What is remembered of texts, and by a number what is of the shapes of their parameters.
Texts = dict[str | int, Carrying]


def carrying_of(text: str) -> Carrying:
    """What may ride in front of a text that was not run yet."""
    first = _FIRST_WORD.match(text)
    if first is None:
        return Carrying.NOTHING
    is_script = ";" in text.rstrip().removesuffix(";")
    texts = (" ".join(words[:2]) for words in statements(text)) if is_script else (text,)
    is_ending = any(map(_ENDING_AT_FIRST.match, texts))
    if is_ending or sets_defaults(text) or resets_all(text) or sets_reading(text):
        return Carrying.NOTHING_AND_ENDS
    return Carrying.NOTHING if first["word"].upper() == "COPY" else Carrying.NO_SAVEPOINT


def begins_transaction(text: str) -> bool:
    """Whether one of the statements of a text begins a transaction."""
    return any(not _BEGINNINGS.isdisjoint(words[:1]) for words in statements(text))


def known_carrying(texts: Texts, text: str) -> Carrying | None:
    """What may ride in front of a text that was run before; None if it is not remembered."""
    return texts.get(_key(text))


def is_proven_with(texts: Texts, text: str, parameters: object) -> bool:
    """Whether a text that was run before was so with parameters by which its grammar is the same."""
    if hash((text, _ANY_SHAPE)) in texts:
        return not are_odd(parameters)
    shape = shape_of(parameters)
    return shape is not None and hash((text, shape)) in texts


def remember(texts: Texts, text: str, parameters: object) -> None:
    """Remember that the server has run a text with such parameters; when too much is known, all is forgotten."""
    if len(texts) + 2 > MOST_REMEMBERED:
        texts.clear()
    texts[_key(text)] = Carrying.ALL
    shape = _ANY_SHAPE if _ROWS.match(text) else shape_of(parameters)
    if shape is not None:
        texts[hash((text, shape))] = Carrying.ALL


def _key(text: str) -> str | int:
    return text if len(text) <= LONGEST_REMEMBERED else hash(text)
