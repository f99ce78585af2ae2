"""How a timeline's times and statements read: milliseconds, and SQL on one line with no value in it."""

from __future__ import annotations

import re

from .._timeline import Breach
from ..stats._query_line import _LITERAL_OR_NOT

_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE|JOIN|TABLE)\s+(?:ONLY\s+)?([\w.\"]+)", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


def milliseconds(seconds: float) -> str:
    """A duration or a moment, with as many digits as say something."""
    value = seconds * 1000
    if value < 0.005:
        return "0 ms"
    if value >= 100:
        return f"{value:.0f} ms"
    return f"{value:.1f} ms" if value >= 1 else f"{value:.2f} ms"


def statement_line(statement: str) -> str:
    """The whole of a statement on one line, without comments and with ``'?'`` in the place of each literal."""
    masked = _LITERAL_OR_NOT.sub(lambda match: match["kept"] or "'?'", statement)
    return " ".join(_COMMENT.sub(" ", masked).split())


def short_statement(statement: str) -> str:
    """What a statement does, and to which table."""
    line = statement_line(statement)
    verb = line.partition(" ")[0].upper()
    table = _TABLE.search(line)
    return f"{verb} {table[1]}" if table else verb


def shown_breach(breach: Breach) -> str:
    """What a violation says, without the values of a statement that it quotes."""
    head, mark, statement = breach.what.partition("': ")
    return head + mark + statement_line(statement) if breach.code == "UOW111" else breach.what


def plural(count: int, noun: str) -> str:
    """``1 unit``, ``2 units``."""
    return f"{count} {noun}{'s' * (count != 1)}"
