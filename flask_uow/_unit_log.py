"""Lines on logger ``flask_uow``: one for each outermost unit that has failed, was slow, or is tried again.

The line is written as ``name=value`` pairs in an order that stays; the same values are attributes of the record, for
formatters that write JSON. No error's text is among them, because it may hold the parameters of a statement, and no
value can forge a line of its own.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any, Literal

from werkzeug.exceptions import HTTPException

from ._drivers import sqlstate

UnitOutcome = Literal["committed", "rolled_back", "failed", "unknown"]
"""How a unit ended; ``failed`` was to be committed and could not, of ``unknown`` nobody knows what its COMMIT did."""

_logger = logging.getLogger("flask_uow")
_PLAIN = re.compile(r"[\w.<>:-]+", re.ASCII)


def log_unit(
    *,
    label: str,
    where: str | None,
    attempt: int,
    seconds: float,
    statements: int,
    outcome: UnitOutcome,
    error: BaseException | None = None,
    is_slow: bool = False,
    is_retried: bool = False,
) -> None:
    """Log an attempt of an outermost unit that has ended, if there is anything to say about it.

    :param label: the unit's.
    :param where: the line of the unit, as ``file:line in function``.
    :param attempt: 1 for the first.
    :param seconds: how long the attempt took.
    :param statements: how many it has sent.
    :param outcome: how it ended.
    :param error: what left the unit, None if nothing did; its text is not shown.
    :param is_slow: whether it took longer than ``UOW_MAX_UNIT_SECONDS``.
    :param is_retried: whether another attempt follows.
    """
    event = _event(outcome, error, is_slow=is_slow, is_retried=is_retried)
    is_nobodys_fault = is_client_error(error) or isinstance(error, GeneratorExit)  # or a reader has gone away
    is_answer = event == "failed" and outcome == "rolled_back" and not is_slow and is_nobodys_fault
    level = logging.ERROR if outcome == "unknown" else logging.INFO if is_answer else logging.WARNING
    if event is None or not _logger.isEnabledFor(level):
        return
    values = {
        "label": label,
        "attempt": attempt,
        "seconds": round(seconds, 3),
        "statements": statements,
        "outcome": outcome,
        "error": type(error).__name__ if error is not None else None,
        "sqlstate": _code(error),
        "where": where,
    }
    write_line(level, f"unit {event}", {"event": event, **values})


def write_line(level: int, title: str, values: dict[str, Any]) -> None:
    """Write a line on logger ``flask_uow``.

    :param title: what it is about; constant, for formatters that group by the message.
    :param values: those but ``event``, which the title tells, follow as pairs; all are attributes of the record.
    """
    told = {name: _shown(name, value) for name, value in values.items() if value is not None and name != "event"}
    pairs = " ".join(f"{name}=%s" for name in told)
    _logger.log(level, f"{title} {pairs}", *told.values(), extra={f"uow_{name}": each for name, each in values.items()})


def is_client_error(error: BaseException | None) -> bool:
    """Whether it answers the client, ``abort(404)`` say, and tells of no trouble with the unit.

    :param error: what left a unit.
    """
    if not isinstance(error, HTTPException):
        return False
    status = error.code or getattr(error.response, "status_code", None) or 500
    return status < 500


def _event(outcome: UnitOutcome, error: BaseException | None, *, is_slow: bool, is_retried: bool) -> str | None:
    """Name what is worth a line: of several, what says most."""
    if is_retried:
        return "retried"
    if outcome in ("failed", "unknown") or (outcome == "rolled_back" and error is not None):
        return "failed"
    return "slow" if is_slow else None


def _code(error: BaseException | None) -> str | None:
    """Find the server's code, of the error itself or of what has caused it."""
    if error is None:
        return None
    return sqlstate(error) or (sqlstate(error.__cause__) if error.__cause__ is not None else None)


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = "; ".join(value) if isinstance(value, tuple) else str(value)
    return text if name not in ("label", "where") and _PLAIN.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    """Put a text between quotes, as a JSON parser reads it: what ends a line, or cannot be seen, is escaped."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    is_safe = character.isprintable() and character not in '"\\'
    return character if is_safe else json.dumps(character)[1:-1]
