"""Dollars as people write them, cents as the bank counts them."""

import re

_DOLLARS = re.compile(r"(?P<whole>[0-9]{1,9})(?:[.,](?P<cents>[0-9]{1,2}))?")


def parse_cents(text: str) -> int:
    """Read ``12``, ``12.5`` or ``12,50`` as cents; anything else is a ``ValueError``."""
    match = _DOLLARS.fullmatch(text.strip().removeprefix("$"))
    if match is None:
        raise ValueError(f"{text!r} is not an amount")
    return int(match["whole"]) * 100 + int((match["cents"] or "").ljust(2, "0"))


def format_cents(cents: int, currency: str = "$") -> str:
    """Write cents as dollars: ``-$1,234.50``."""
    dollars, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{currency}{dollars:,}.{rest:02}"
