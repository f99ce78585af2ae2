"""Names that do not fit where they are shown, and are told from each other all the same.

Apps, hosts and binds are called as somebody likes; a server, a file and a board have room for so many bytes, and not
for every character. What is left of a name then ends with a mark of the whole.
"""

from __future__ import annotations

import hashlib

_MARK_DIGITS = 6


def distinct(name: str, shown: str, size: int) -> str:
    """Give what is shown of a name, in so many bytes, and unlike what is shown of another.

    >>> distinct("bank", "bank", 10), distinct("bank:eu", "bank?eu", 20)
    ('bank', 'bank?eu~55d6b6')

    :param name: the whole name.
    :param shown: the same without what cannot be shown.
    :param size: how many bytes there are for it.
    """
    data = shown.encode("utf-8", "replace")
    if shown == name and len(data) <= size:
        return shown
    mark = f"~{digest(name, _MARK_DIGITS)}"
    return data[: size - len(mark)].decode("utf-8", "ignore") + mark


def digest(text: str, digits: int) -> str:
    """Give some hexadecimal digits that differ from those of another text.

    :param text: any text, also of file names, which may be no Unicode.
    :param digits: how many.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
