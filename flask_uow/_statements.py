"""What a statement does to the transaction, read from its text: reads, writes, or takes the transaction over.

Only texts are read closely; what SQLAlchemy compiled says itself what it is. A text that fools this reading (SQL
hidden in a procedure, say) meets the server's own word at the unit's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import Any


class Kind(Enum):
    """What a statement does."""

    READ = "read"
    WRITE = "write"
    LEAVE_TO_WRITE = "READ WRITE"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
    BEGIN = "BEGIN"


_WRITE = Kind.WRITE
_GRAVEST_FIRST = (Kind.COMMIT, Kind.ROLLBACK, Kind.BEGIN, Kind.WRITE, Kind.LEAVE_TO_WRITE)
_LONGEST_KEPT = 4096  # characters; longer texts are read anew each time, so that the cache stays small

# Nothing here is ever tried a second way: what lacks its end lasts until the end of the text. So the time grows with
# the length of the text, whatever it holds.
_TOKEN = re.compile(
    r"""
      --[^\n]* | /\*.*?(?:\*/|\Z)
    | [eE]'(?:[^'\\]+|\\.|'')*+(?:'|\Z) | '(?:[^']+|'')*+(?:'|\Z) | "[^"]*(?:"|\Z)
    | \$(?P<tag>\w*)\$ .*? (?:\$(?P=tag)\$|\Z)
    | (?P<word>[^\W\d][\w$]*) | (?P<end>;)
    """,
    re.DOTALL | re.VERBOSE,
)
_WRITING = frozenset(
    "INSERT UPDATE DELETE MERGE REPLACE CREATE ALTER DROP TRUNCATE COPY CALL DO GRANT REVOKE COMMENT "
    "REFRESH REINDEX IMPORT SECURITY NOTIFY".split()
)
_ROUTINES = frozenset(("TRIGGER", "FUNCTION", "PROCEDURE"))  # their bodies may hold semicolons, BEGIN and END
_BEFORE_WHAT_IS_MADE = frozenset(("OR", "REPLACE", "TEMP", "TEMPORARY", "CONSTRAINT"))
_SCOPES_OF_SET = frozenset(("LOCAL", "SESSION"))
_ON = frozenset(("ON", "TRUE", "YES"))
_CHANGES = frozenset((("INSERT", "INTO"), ("INSERT", "OR"), ("REPLACE", "INTO"), ("MERGE", "INTO"), ("DELETE", "FROM")))


def kind_of(statement: str, context: Any) -> Kind:
    """The kind of a statement that is about to be sent.

    :param statement: its text.
    :param context: SQLAlchemy's execution context.
    """
    if context is not None and context.compiled is not None and not context.is_text:
        if context.isinsert or context.isupdate or context.isdelete:
            return _WRITE
        if not context.isddl:  # which holds texts
            return _kept_kind_of_one(statement) if len(statement) <= _LONGEST_KEPT else _kind_of_one(statement)
    return _kept_kind_of_text(statement) if len(statement) <= _LONGEST_KEPT else _kind_of_text(statement)


def is_select(statement: str) -> bool:
    """Whether a statement of SQLite's, which takes one at a time, begins with the word by which it cannot write."""
    return statement.lstrip()[:6].upper() == "SELECT"


def statements(text: str) -> Iterator[list[str]]:
    """The words of each statement in upper case, without what is quoted or commented out.

    The statements in a routine's body are part of the routine.
    """
    words: list[str] = []
    open_blocks = 0
    for token in _tokens(text):
        if token == ";" and not open_blocks:
            yield words
            words = []
            continue
        words.append(token)
        if token in ("BEGIN", "CASE", "END") and _is_routine(words):
            open_blocks = max(0, open_blocks + (-1 if token == "END" else 1))
    yield words


def _kind_of_text(text: str) -> Kind:
    """The gravest kind of the statements in ``text``."""
    if ";" not in text:
        return _kind_of_one(text)
    kinds = {_kind_of_words(iter(words)) for words in statements(text)}
    return next((kind for kind in _GRAVEST_FIRST if kind in kinds), Kind.READ)


def _kind_of_one(statement: str) -> Kind:
    return _kind_of_words(word for word in _tokens(statement) if word != ";")


def _tokens(text: str) -> Iterator[str]:
    """The words of ``text`` in upper case, and its semicolons; what is quoted or commented out is left out."""
    return (match[0].upper() for match in _TOKEN.finditer(text) if match.lastgroup in ("word", "end"))


def _is_routine(words: list[str]) -> bool:
    """Whether a statement makes something that has a body; a table's column may be called ``function``."""
    made = (word for word in words[1:6] if word not in _BEFORE_WHAT_IS_MADE)
    return words[0] == "CREATE" and next(made, "") in _ROUTINES


def _kind_of_words(words: Iterator[str]) -> Kind:
    """The kind of one statement; no more of its words are read than it takes to tell."""
    first, second = next(words, ""), next(words, "")
    if first in _WRITING:
        return Kind.WRITE
    if first == "SELECT":
        return Kind.WRITE if second == "INTO" or "INTO" in words else Kind.READ
    if first in ("WITH", "EXPLAIN"):
        return _kind_of_inner(first, [second, *words])
    if first in ("COMMIT", "END") or (first, second) == ("PREPARE", "TRANSACTION"):
        return Kind.COMMIT
    if first == "ABORT" or (first == "ROLLBACK" and "TO" not in (second, next(words, ""))):
        return Kind.ROLLBACK
    if first == "BEGIN" or (first, second) == ("START", "TRANSACTION"):
        return Kind.BEGIN
    if first in ("SET", "RESET") and _gives_leave_to_write([second, *words]):
        return Kind.LEAVE_TO_WRITE
    return Kind.READ


def _gives_leave_to_write(words: list[str]) -> bool:
    """Whether what follows SET lets the present transaction write; what its server lets it is not known here."""
    what, *rest = words[1:] if words[0] in _SCOPES_OF_SET and len(words) > 1 else words
    if what == "TRANSACTION":
        return ("READ", "WRITE") in pairwise(rest)
    return what == "TRANSACTION_READ_ONLY" and _ON.isdisjoint(rest)


def _kind_of_inner(first: str, words: list[str]) -> Kind:
    """The kind of a statement whose deed comes later in it: ``WITH ... DELETE``, ``EXPLAIN ANALYZE DELETE``."""
    if first == "EXPLAIN" and "ANALYZE" not in words and "ANALYSE" not in words:
        return Kind.READ  # it is planned, not run
    has_change = any(
        pair in _CHANGES or (pair[1] == "UPDATE" and pair[0] not in ("FOR", "KEY")) for pair in pairwise(words)
    )
    return Kind.WRITE if has_change else Kind.READ


_kept_kind_of_one = lru_cache(maxsize=1024)(_kind_of_one)
_kept_kind_of_text = lru_cache(maxsize=1024)(_kind_of_text)
