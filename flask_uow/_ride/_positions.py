"""An error as if nothing had ridden in front of its statement: the position, and the line of the text that it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import Diagnostics

_SHOWN_LINE = re.compile(r"^LINE (?P<number>\d+)(?P<text>: .*\n)(?P<indent> *)\^", re.MULTILINE)
# One for each class of errors that a position was shifted in.
_CLASSES: dict[type[Any], type[psycopg2.Error]] = {}


class _Diagnostics:
    """The server's details of an error, without the riders' share of the position."""

    def __init__(self, details: Diagnostics, shift: int) -> None:
        self._details = details
        self._shift = shift

    @property
    def statement_position(self) -> str | None:
        position = self._details.statement_position
        return None if position is None else str(int(position) - self._shift)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._details, name)


def shift_back(error: psycopg2.Error, prefix: str) -> None:
    """Make an error speak of the statement alone.

    :param prefix: what rode in front of it, one line with its end.
    """
    position = error.diag.statement_position
    if position is None or int(position) <= len(prefix):
        return
    error.args = (_lift(str(error.args[0])), *error.args[1:])
    set_state: Callable[[dict[str, Any]], None] = error.__setstate__
    details, cursor = error.diag, error.cursor
    set_state({"pgcode": error.pgcode, "pgerror": _lift(error.pgerror or "")})  # it forgets the cursor
    error.__class__ = _shifted_class(type(error))
    error.__dict__.update(_shifted=_Diagnostics(details, len(prefix)), _cursor=cursor)


def _lift(message: str) -> str:
    """The message with the line that it shows numbered without the riders' own line."""
    return _SHOWN_LINE.sub(_lift_line, message, count=1)


def _lift_line(shown: re.Match[str]) -> str:
    number = str(int(shown["number"]) - 1)
    indent = shown["indent"][len(shown["number"]) - len(number) :]
    return f"LINE {number}{shown['text']}{indent}^"


def _shifted_class(base: type[Any]) -> type[psycopg2.Error]:
    """A class like an error's own whose details are shifted; pickled, it is the error's own."""
    if base in _CLASSES:
        return _CLASSES[base]

    def reduce(error: psycopg2.Error) -> tuple[Any, ...]:
        own = {name: value for name, value in error.__dict__.items() if name not in ("_shifted", "_cursor")}
        return base, error.args, own | {"pgcode": error.pgcode, "pgerror": error.pgerror}

    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce__": reduce,
        "diag": property(lambda error: error.__dict__["_shifted"]),
        "cursor": property(lambda error: error.__dict__["_cursor"]),
    }
    _CLASSES[base] = type(base.__name__, (base,), namespace)
    return _CLASSES[base]
