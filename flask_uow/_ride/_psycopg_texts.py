"""What psycopg 3 may send of a statement together with others, and what it may do, read from its text.

How many texts are remembered is bounded.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from .._statements import statements
from ._characteristics import resets_all, sets_defaults, sets_reading

# A statement that goes well with others in one pipeline. COPY does not, and what ends a transaction ends the riders'.
CARRIER = re.compile(
    rb"(?i)(?:[\s(]|/\*[^*]*\*/|--[^\n]*\n)*(SELECT|INSERT|UPDATE|DELETE|WITH|VALUES|MERGE"
    rb"|TABLE|EXPLAIN|SHOW|LOCK|TRUNCATE|NOTIFY)\b"
)
CREATING_READ = re.compile(rb"(?i)\bINTO\b")
HARMLESS = re.compile(rb"(?i)\s*(?:SET|LISTEN|UNLISTEN|FETCH|MOVE|CLOSE)\b")
CONTROL = re.compile(rb"(?i)\s*(?:BEGIN|START|COMMIT|END|ABORT|ROLLBACK|SAVEPOINT|RELEASE|PREPARE|CALL|DO)\b")
# psycopg looks at what these have done the first time that they are sent, and no other.
UNPREPARING = re.compile(rb"(?i)\b(?:DISCARD|DEALLOCATE(?:\s+PREPARE)?)\s+ALL\b")
REMEMBERED_TEXTS = 1000
LONGEST_REMEMBERED_TEXT = 4096


class Text(NamedTuple):
    """What is known of a statement by its text.

    :param is_special: whether it may create something, or has to do with transactions and their defaults.
    """

    is_carrier: bool
    has_several: bool
    may_create: bool
    is_control: bool
    sets_defaults: bool
    resets_all: bool
    unprepares: bool
    is_special: bool


NO_TEXT = Text(*[False] * len(Text._fields))


def read_text(query: bytes) -> Text:
    """Return what is known of a statement by its text."""
    try:
        return _remember_text(query) if len(query) <= LONGEST_REMEMBERED_TEXT else _read_text(query)
    except TypeError:
        # It is no text, as psycopg will say.
        return NO_TEXT


def _read_text(query: bytes) -> Text:
    carrier = CARRIER.match(query)
    has_several = b";" in query.rstrip(b" \t\r\n;") and _count(query) > 1
    if carrier is None:
        may_create = HARMLESS.match(query) is None
        is_control = CONTROL.match(query) is not None
    else:
        word = carrier[1].upper()
        # Few texts hold the word, which is known faster than by a pattern.
        may_create = word in (b"SELECT", b"WITH") and b"INTO" in query.upper() and bool(CREATING_READ.search(query))
        may_create = may_create or word == b"EXPLAIN"  # which runs what it is told with ANALYZE
        is_control = False
    text = query.decode("latin-1")
    has_defaults, is_reset = sets_defaults(text), resets_all(text)
    is_control = is_control or is_reset or sets_reading(text)  # of which a ROLLBACK TO is not to wait
    return Text(
        is_carrier=carrier is not None,
        has_several=has_several,
        may_create=may_create or has_several,
        is_control=is_control or has_several,
        sets_defaults=has_defaults,
        resets_all=is_reset,
        unprepares=carrier is None and UNPREPARING.search(query) is not None,
        is_special=may_create or is_control or has_several or has_defaults or is_reset,
    )


def _count(query: bytes) -> int:
    """How many statements there are in a text; what is quoted is in none."""
    return sum(map(bool, statements(query.decode("latin-1"))))


_remember_text = lru_cache(REMEMBERED_TEXTS)(_read_text)
