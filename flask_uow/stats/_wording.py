"""Durations and counts, as a person reads them."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Give a duration in its two largest units, below a minute to a tenth of a second.

    >>> duration(0.25), duration(34.68), duration(125), duration(7325), duration(200000)
    ('0.2 s', '34.6 s', '2 min 5 s', '2 h 2 min', '2 d 7 h')

    :param seconds: the duration; None if it is not known.
    """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{int(seconds * 10 + 1e-6) / 10:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest, parts = int(seconds), []
    for name, size in units:
        count, rest = divmod(rest, size)
        parts.append((count, name))
    while not parts[0][0]:
        del parts[0]
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Put a number before what it counts.

    >>> counted(1, "worker"), counted(1200, "worker"), counted(2, "process", "processes")
    ('1 worker', '1,200 workers', '2 processes')

    :param count: how many.
    :param noun: one of them.
    :param plural: several of them, where an "s" does not do.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
