"""A statement as it is shown: its first line, without the values in it, and without what rides in front of it."""

from __future__ import annotations

import re

# Comments and quoted names are matched to step over them: an apostrophe in one begins no literal. The server cuts long
# statements, so a literal may lack its end.
_LITERAL_OR_NOT = re.compile(
    r"""
      (?P<kept> --[^\n]* | /\*.*?(?:\*/|\Z) | "[^"]*(?:"|\Z) )
    | (?<![\w$]) (?P<dollar>\$(?:[^\W\d]\w*)?\$) .*? (?:(?P=dollar)|\Z)
    | (?<!\w) [eE] '(?:\\.|''|[^'\\])*(?:'|\\?\Z)
    | '(?:''|[^'])*(?:'|\Z)
    | (?P<number> (?<![\w$.]) (?: 0[xXoObB][\da-fA-F_]+ | (?:\d[\d_]*\.?\d*|\.\d+) (?:[eE][+-]?\d+)? ) (?!\w) )
    """,
    re.VERBOSE | re.DOTALL,
)

# psycopg2 sends them as a line of its own in front of the statement.
_RIDERS = re.compile(r"\A(?:BEGIN|SAVEPOINT|RELEASE|ROLLBACK TO|SET LOCAL)\b[^\n]*;\n(?=.*\S)", re.DOTALL)


def query_line(query: str) -> str:
    """Give a statement's first line that is not blank, with ``'?'`` or ``?`` in the place of each literal.

    :param query: the statement, maybe cut by the server.
    """
    masked = _RIDERS.sub("", _LITERAL_OR_NOT.sub(_shown, query))
    return next((line.strip() for line in masked.splitlines() if line.strip()), "")


def _shown(match: re.Match[str]) -> str:
    return match["kept"] or ("?" if match["number"] else "'?'")
