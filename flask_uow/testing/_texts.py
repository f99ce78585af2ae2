"""What the text of a statement says of transactions, locks and settings, for connections that share a test's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .._harmless import KNOWN_FUNCTIONS

_NAME = r'(?P<name>"[^"]+"|[^\W\d][\w$]*)'
CONTROL = re.compile(
    rf"""
    \s*(?:
        (?P<begin> BEGIN | START\s+TRANSACTION )\b (?P<modes>[^;]*)
      | (?P<prepared> PREPARE\s+TRANSACTION | (?:COMMIT|ROLLBACK)\s+PREPARED )\b .*
      | (?P<commit> COMMIT | END )\b [^;]*
      | (?P<back_to> ROLLBACK (?:\s+(?:WORK|TRANSACTION))? \s+ TO (?:\s+SAVEPOINT)? )\s+ {_NAME}
      | (?P<rollback> ROLLBACK | ABORT )\b [^;]*
      | (?P<savepoint> SAVEPOINT )\s+ {_NAME.replace("name", "made")}
      | (?P<release> RELEASE (?:\s+SAVEPOINT)? )\s+ {_NAME.replace("name", "released")}
      | (?P<transaction> SET \s+ (?:LOCAL\s+|SESSION\s+CHARACTERISTICS\s+AS\s+)? TRANSACTION )\b (?P<options>[^;]*)
      | (?P<query_only> PRAGMA \s+ query_only \s*=\s* ) (?P<is_on>\w+)
    )\s*;?\s*\Z
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
FIRST_WORDS = ("BEG", "STA", "PRE", "COM", "END", "ROL", "ABO", "SAV", "REL", "SET", "PRA")
SETTINGS = re.compile(r"\bSET\s+LOCAL\s+(?P<name>[\w.]+)|\bset_config\s*\(", re.IGNORECASE)
_LITERAL = re.compile(r"'([^\W\d][\w.]*)'")
_CALL = re.compile(r'([^\W\d][\w.]*|")\s*\(')
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|KEY\s+SHARE|SHARE)\b|^\s*LOCK\b", re.IGNORECASE)
_WORDS_BEFORE_A_BRACKET = frozenset(
    """
    all and any array as between bit by case cast char character check coalesce cross cube date decimal distinct else
    end except exists extract filter from full group grouping having ilike in inner intersect interval is join lateral
    left like limit materialized not numeric nullif offset on only or order outer over overlaps partition right rollup
    row select set sets similar some table then time timestamp union using values varchar when where window with within
    now current_setting pg_catalog set_config
    """.split()
)


def is_more_than_read(text: str) -> bool:
    """Whether what looks like a read locks something, or calls a function of which nobody knows what it does."""
    if _LOCKS.search(text):
        return True
    names = (match[1].lower() for match in _CALL.finditer(text))
    return any(
        name not in _WORDS_BEFORE_A_BRACKET and name not in KNOWN_FUNCTIONS and not name.startswith("pg_")
        for name in names
    )


def named_settings(text: str, parameters: object) -> list[str]:
    """What SET LOCAL and ``set_config`` in a text may set: what is not known to the server is none of it."""
    matches = list(SETTINGS.finditer(text))
    names = [match["name"] for match in matches if match["name"]]
    if any(match["name"] is None for match in matches):
        names += _LITERAL.findall(text)
        names += [value for value in _flat(parameters) if isinstance(value, str) and value.isprintable()]
    return [name for name in names if name.lower() != "transaction"]


def _flat(parameters: object) -> Iterator[object]:
    if isinstance(parameters, dict):
        yield from parameters.values()
    elif isinstance(parameters, (list, tuple)):
        for each in parameters:
            yield from _flat(each) if isinstance(each, (list, tuple, dict)) else (each,)
