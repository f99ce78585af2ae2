"""What must not be shown: passwords, wherever they stand, and what a terminal or a log could obey."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

from sqlalchemy.engine import URL

_MASK = "***"
_SECRET_WORD = r"(?:password|passwd|pwd|secret|token)"
_SECRET_KEY = re.compile(_SECRET_WORD, re.IGNORECASE)
_SECRET_PAIR = re.compile(
    rf"({_SECRET_WORD}['\"]?\s*[:=]\s*)(?:b?'(?:\\.|[^'\\])*'|b?\"(?:\\.|[^\"\\])*\"|[^\s&'\"]+)", re.IGNORECASE
)
# A password may hold anything, so it lasts until the line's last "@"; better too much is hidden than too little.
_USER_INFO = re.compile(r"(://[^:/]*+:).*+")
_MOST_SHOWN = 1000
"""Characters of a value that are enough to find it."""
_COMMANDS = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
"""Unicode's categories of what nobody reads and a terminal, a log or an encoder may obey or refuse."""


def without_passwords(text: str) -> str:
    """Mask what looks like a password: in a URL, or behind a key that says so.

    :param text: any text.
    """
    return _SECRET_PAIR.sub(rf"\1{_MASK}", "\n".join(map(_without_user_info, text.split("\n"))))


def _without_user_info(line: str) -> str:
    before, at, host = line.rpartition("@")
    return _USER_INFO.sub(rf"\1{_MASK}", before) + at + host


def shown_value(value: object) -> str:
    """A wrong value as its message quotes it: without passwords, and as long as anybody reads.

    :param value: whatever was given; what cannot say what it is is named by its class.
    """
    try:
        text = repr(value.render_as_string(hide_password=False) if isinstance(value, URL) else value)
    except Exception:  # noqa: BLE001  # a number of 5,000 digits has no text, and a class may have any __repr__
        return f"<{type(value).__qualname__} that cannot be shown>"
    text = without_passwords(text)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text):,} characters)"


def harmless(text: str) -> str:
    """Replace what a terminal could take for a command, or what could turn a line around.

    :param text: any text.
    """
    return "".join("?" if unicodedata.category(char) in _COMMANDS else char for char in text)


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
    return harmless(" ".join(without_passwords(text).split())) or type(error).__name__


def _secrets(url: URL) -> Iterator[str]:
    values = [url.password or ""]
    for key, value in url.query.items():
        if _SECRET_KEY.search(key):
            values += [value] if isinstance(value, str) else value
    for value in filter(None, values):
        yield from (value, quote(value, safe=""), quote_plus(value))
