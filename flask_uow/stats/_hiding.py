"""What must not be shown: passwords in URLs and messages, values in statements.

Used on everything that a snapshot takes over from a URL, from a driver's message or from the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from sqlalchemy.engine import URL

_MASK = "***"
_SECRET_WORD = r"(?:password|passwd|pwd|secret|token)"
_SECRET_KEY = re.compile(_SECRET_WORD, re.IGNORECASE)
_SECRET_PAIR = re.compile(rf"({_SECRET_WORD}['\"]?\s*[=:]\s*)('(?:\\.|[^'])*'|\"[^\"]*\"|[^\s,&)]+)", re.IGNORECASE)
_USER_INFO = re.compile(r"(://[^:/?#@\s]*:)\S*@")

# Comments and quoted names are matched to step over them: an apostrophe in one begins no literal. The server cuts long
# statements, so a literal may lack its end.
_LITERAL_OR_NOT = re.compile(
    r"""
      (?P<kept> --[^\n]* | /\*.*?(?:\*/|\Z) | "[^"]*(?:"|\Z) )
    | (?<![\w$]) (?P<dollar>\$(?:[^\W\d]\w*)?\$) .*? (?:(?P=dollar)|\Z)
    | (?<!\w) [eE] '(?:\\.|''|[^'\\])*(?:'|\\?\Z)
    | '(?:''|[^'])*(?:'|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)


def shown_url(url: URL) -> str:
    """Render a URL without its password, wherever in the URL it is.

    :param url: an engine's URL.
    """
    secret = {key: _MASK for key in url.query if _SECRET_KEY.search(key)}
    shown = url.update_query_dict(secret).render_as_string(hide_password=True)
    return shown.replace(quote_plus(_MASK), _MASK)


def error_line(error: BaseException, url: URL) -> str:
    """Say in one line what a driver said, without any password.

    :param error: what was raised; of an error of SQLAlchemy, the driver's own is taken.
    :param url: the URL that was connected to, for its secrets.
    """
    text = str(getattr(error, "orig", None) or error)
    for secret in _secrets(url):
        text = text.replace(secret, _MASK)
    text = _SECRET_PAIR.sub(rf"\1{_MASK}", _USER_INFO.sub(rf"\1{_MASK}@", text))
    return " ".join(text.split()) or type(error).__name__


def query_line(query: str) -> str:
    """Give a statement's first line that is not blank, with ``'?'`` in the place of each string literal.

    :param query: the statement, maybe cut by the server.
    """
    masked = _LITERAL_OR_NOT.sub(lambda match: match["kept"] or "'?'", query)
    return next((line.strip() for line in masked.splitlines() if line.strip()), "")


def _secrets(url: URL) -> Iterator[str]:
    values = [url.password or ""]
    for key, value in url.query.items():
        if _SECRET_KEY.search(key):
            values += [value] if isinstance(value, str) else value
    for value in filter(None, values):
        yield from (value, quote(value, safe=""), quote_plus(value))
