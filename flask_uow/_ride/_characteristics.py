"""What a BEGIN says, and what a session is told instead where there is none: isolation, access mode, deferrable."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

READ_ONLY = "default_transaction_read_only"
ISOLATION = "default_transaction_isolation"
_ASKED = f"SELECT pg_backend_pid(), current_setting('{READ_ONLY}'), pg_is_in_recovery()"
# The last: whether the role or the database is to be read-only, the more special of its settings first.
QUESTION = f"""
    {_ASKED}, coalesce((
        SELECT CAST(split_part(setting, '=', 2) AS boolean)
        FROM pg_db_role_setting, unnest(setconfig) AS setting
        WHERE setting LIKE '{READ_ONLY}=%' AND setrole IN (0, to_regrole(quote_ident(session_user)))
            AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
        ORDER BY setrole = 0, setdatabase = 0 LIMIT 1
    ), false)
"""
# The same where that may not be read.
QUESTION_WITHOUT_WISH = f"{_ASKED}, false"
# Whether the start option is what holds, and whether a transaction is a snapshot unless it says otherwise.
QUESTION_AGAIN = f"""
    SELECT source = 'client', current_setting('{ISOLATION}') IN ('repeatable read', 'serializable')
    FROM pg_settings WHERE name = '{READ_ONLY}'
"""
OPTION_OFF = f"SET {READ_ONLY} TO off"
LEVELS = (None, "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "READ UNCOMMITTED")  # by psycopg2's numbers

# psycopg2's number of the level, whether it is read-only, whether it is deferrable; None leaves it to the server.
Characteristics = tuple[int | None, bool | None, bool | None]
AS_THE_SERVER: Characteristics = (None, None, None)

_MOST_READ = 4096  # characters of a text
_DEFAULTS = rf"(?:{READ_ONLY}|{ISOLATION})"
_SETTING_DEFAULTS = re.compile(
    rf"""
    \b(?:re)?set\s+(?:session\s+)?"?{_DEFAULTS}\b | \bset\s+session\s+characteristics\b
    | \bset_config\s*\(\s*'{_DEFAULTS}'
    """,
    re.VERBOSE,
)
_SETTING_READING = re.compile(
    r"\b(?:client_encoding|standard_conforming_strings|backslash_quote|set\s+(?:session\s+|local\s+)?names)\b"
)
_RESETTING_ALL = re.compile(r"\b(?:reset|discard)\s+all\b")


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
    names = (ISOLATION, READ_ONLY, "default_transaction_deferrable")
    return [
        f"SET {name} TO {'DEFAULT' if value is None else repr(value.lower())}"
        for name, value, before, after in zip(names, values, old, new, strict=True)
        if before != after
    ]


def sets_defaults(text: str) -> bool:
    """Whether a text may set what transactions are that do not say it themselves: isolation, access mode."""
    beginning = text[:_MOST_READ].lower()
    # Most texts hold none of these words, which is known faster than by a pattern.
    has_word = "default_transaction_" in beginning or "characteristics" in beginning
    return has_word and _SETTING_DEFAULTS.search(beginning) is not None


def sets_reading(text: str) -> bool:
    """Whether a text may set how texts are read, or in which encoding: the client has to know at once when it ends."""
    beginning = text[:_MOST_READ].lower()
    # As above.
    has_word = "_encoding" in beginning or "names" in beginning or "backslash_" in beginning or "_strings" in beginning
    return has_word and _SETTING_READING.search(beginning) is not None


def resets_all(text: str) -> bool:
    """Whether a text may set all of a session's settings back."""
    beginning = text[:_MOST_READ].lower()
    return ("reset" in beginning or "discard" in beginning) and _RESETTING_ALL.search(beginning) is not None


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
