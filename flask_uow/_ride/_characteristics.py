"""What a BEGIN says, and what a session is told instead where there is none: isolation, access mode, deferrable."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

READ_ONLY = "default_transaction_read_only"
QUESTION = f"SELECT pg_backend_pid(), current_setting('{READ_ONLY}'), pg_is_in_recovery()"
LEVELS = (None, "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "READ UNCOMMITTED")  # by psycopg2's numbers

# psycopg2's number of the level, whether it is read-only, whether it is deferrable; None leaves it to the server.
Characteristics = tuple[int | None, bool | None, bool | None]
AS_THE_SERVER: Characteristics = (None, None, None)


@lru_cache(maxsize=64)
def begin_text(level: int | None, is_read_only: bool | None, is_deferrable: bool | None) -> str:
    """The BEGIN of a transaction with these characteristics."""
    words = ["BEGIN"]
    if level is not None:
        words.append(f"ISOLATION LEVEL {LEVELS[level]}")
    if is_read_only is not None:
        words.append("READ ONLY" if is_read_only else "READ WRITE")
    if is_deferrable is not None:
        words.append("DEFERRABLE" if is_deferrable else "NOT DEFERRABLE")
    return " ".join(words)


def session_texts(old: Characteristics, new: Characteristics) -> list[str]:
    """What tells a session that was told ``old`` to be ``new`` for statements without a BEGIN."""
    level, is_read_only, is_deferrable = new
    values = (LEVELS[level] if level else None, _guc(is_read_only), _guc(is_deferrable))
    names = ("default_transaction_isolation", READ_ONLY, "default_transaction_deferrable")
    return [
        f"SET {name} TO {'DEFAULT' if value is None else repr(value.lower())}"
        for name, value, before, after in zip(names, values, old, new, strict=True)
        if before != after
    ]


def level_of(value: Any) -> int | None:
    """psycopg2's number of an isolation level that is given as psycopg2 takes it.

    :raises ValueError: if there is no such level.
    """
    if value is None:
        return None
    if isinstance(value, int):
        if not 1 <= value < len(LEVELS):
            raise ValueError(f"isolation_level must be between 1 and {len(LEVELS) - 1}")
        return value
    name = value.decode() if isinstance(value, bytes) else value
    if not isinstance(name, str):
        raise TypeError(f"argument 1 must be a string or unicode object: got {type(value).__name__} instead")
    if name.upper() == "DEFAULT":
        return None
    if name.upper() not in LEVELS:
        raise ValueError(f"bad value for isolation_level: '{name}'")
    return LEVELS.index(name.upper())


def on_or_off(value: Any) -> bool | None:
    """A setting that is given as psycopg2 takes it.

    :raises ValueError: for a string that is not "default".
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        name = value.decode() if isinstance(value, bytes) else value
        if name.lower() == "default":
            return None
        raise ValueError(f"the only string accepted is 'default'; got {name}")
    return bool(value)


def _guc(value: bool | None) -> str | None:
    if value is None:
        return None
    return "on" if value else "off"
