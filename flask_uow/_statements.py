"""What a statement does to the transaction, read from its text: reads, writes, or takes the transaction over.

Only texts are read closely; what SQLAlchemy compiled says itself what it is. A text that fools this reading (SQL
hidden in a procedure, say) meets the server's own word at the unit's end.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import Any


class Kind(Enum):
    """What a statement does."""

    READ = "read"
    WRITE = "write"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"
    BEGIN = "BEGIN"


_LONGEST_KEPT = 4096  # characters; longer texts are read anew each time, so that the cache stays small
_NOISE = r"(?:\s|;|\(|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*"
_FIRST_WORDS = re.compile(_NOISE + r"([A-Za-z]+)\s*([A-Za-z]*)\s*([A-Za-z]*)", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/", re.DOTALL)
_DATA_CHANGE = re.compile(r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO)\b", re.IGNORECASE)
_WRITING = frozenset(
    "INSERT UPDATE DELETE MERGE REPLACE CREATE ALTER DROP TRUNCATE COPY CALL DO GRANT REVOKE COMMENT "
    "REFRESH REINDEX IMPORT SECURITY".split()
)
_COMPOUND = frozenset(("CREATE", "ALTER", "DO"))  # their bodies hold semicolons, BEGIN and END of their own


def kind_of(statement: str, context: Any) -> Kind:
    """The kind of a statement that is about to be sent.

    :param statement: its text.
    :param context: SQLAlchemy's execution context.
    """
    if context is not None and context.compiled is not None and not context.is_text:
        if context.isinsert or context.isupdate or context.isdelete:
            return Kind.WRITE
        return _kept_kind_of_one(statement) if len(statement) <= _LONGEST_KEPT else _kind_of_one(statement)
    return _kept_kind_of_text(statement) if len(statement) <= _LONGEST_KEPT else _kind_of_text(statement)


def _kind_of_text(text: str) -> Kind:
    """The gravest kind of the statements in ``text``."""
    first = _kind_of_one(text)
    match = _FIRST_WORDS.match(text)
    if ";" not in text or (match and match[1].upper() in _COMPOUND):
        return first
    kinds = {_kind_of_one(part) for part in _QUOTED.sub(" ", text).split(";")} | {first}
    for kind in (Kind.COMMIT, Kind.ROLLBACK, Kind.BEGIN, Kind.WRITE):
        if kind in kinds:
            return kind
    return Kind.READ


def _kind_of_one(statement: str) -> Kind:
    match = _FIRST_WORDS.match(statement)
    if match is None:
        return Kind.READ
    first, second, third = (word.upper() for word in match.groups())
    if first in _WRITING:
        return Kind.WRITE
    if first == "WITH" or (first == "EXPLAIN" and second in ("ANALYZE", "ANALYSE")):
        return Kind.WRITE if _DATA_CHANGE.search(_QUOTED.sub(" ", statement)) else Kind.READ
    if first in ("COMMIT", "END") or (first, second) == ("PREPARE", "TRANSACTION"):
        return Kind.COMMIT
    if first == "ABORT" or (first == "ROLLBACK" and "TO" not in (second, third)):
        return Kind.ROLLBACK
    if first == "BEGIN" or (first, second) == ("START", "TRANSACTION"):
        return Kind.BEGIN
    return Kind.READ


_kept_kind_of_one = lru_cache(maxsize=1024)(_kind_of_one)
_kept_kind_of_text = lru_cache(maxsize=1024)(_kind_of_text)
