"""What psycopg2 makes of parameters, as far as the grammar can tell: two of one shape are read alike in any text.

``DATE %s`` takes a string and no NULL, ``FETCH %s`` a small number and no large one. What is not known here has no
shape, an empty tuple say, of which psycopg2 makes ``IN ()``.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

from psycopg2.extras import DateRange, DateTimeRange, DateTimeTZRange, NumericRange

_NUMBERS = frozenset((int, float, decimal.Decimal))
# Each becomes one literal, or one literal with a cast.
_PLAIN_TYPES = _NUMBERS.union(
    (str, bool, bytes, memoryview, type(None), uuid.UUID),
    (datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
)
_CALLED_RANGES = frozenset((DateRange, DateTimeRange, DateTimeTZRange))  # each by the name of its function
_LARGEST_SMALL = 2**31 - 1
_MOST_SMALL_DIGITS = 10

Shape = tuple[tuple[object, ...], ...]


def are_odd(parameters: object) -> bool:
    """Whether it is not known what psycopg2 makes of a statement's parameters, or what it does to make it."""
    return not _are_plain(parameters) and shape_of(parameters) is None


def shape_of(parameters: Any) -> Shape | None:
    """The shape of a statement's parameters; None if they are odd."""
    if not parameters:
        return ()
    if type(parameters) is dict:
        names, kinds = tuple(parameters), tuple(map(_kind, parameters.values()))
    elif isinstance(parameters, (tuple, list)):
        names, kinds = (), tuple(map(_kind, parameters))
    else:
        return None
    return None if None in kinds else (names, kinds)


def _are_plain(parameters: Any) -> bool:
    if not parameters:
        return True
    if type(parameters) is dict:
        return _PLAIN_TYPES.issuperset(map(type, parameters.values()))
    return isinstance(parameters, (tuple, list)) and _PLAIN_TYPES.issuperset(map(type, parameters))


def _kind(value: Any) -> object:
    """What two values have in common that are read alike; None for an odd one."""
    own = type(value)
    if own in _NUMBERS:
        return _kind_of_number(value)
    if own in _PLAIN_TYPES:
        return own
    if own is list and _are_plain(value):
        return own, value.count(None) == len(value)  # of these psycopg2 makes a string, ``'{}'``
    if own is NumericRange and all(_is_number(bound) for bound in (value.lower, value.upper)):
        return own
    if own in _CALLED_RANGES and _are_plain((value.lower, value.upper)):
        return own, value.isempty
    return None


def _kind_of_number(value: Any) -> object:
    if type(value) is int:
        return value < 0, -_LARGEST_SMALL <= value <= _LARGEST_SMALL
    shown = str(value)
    digits = shown.removeprefix("-")
    if not digits[0].isdigit():
        return "not finite", type(value)  # which becomes a string with a cast
    is_small = digits.isdigit() and len(digits) <= _MOST_SMALL_DIGITS and int(digits) <= _LARGEST_SMALL
    return shown != digits, is_small


def _is_number(bound: Any) -> bool:
    return bound is None or (type(bound) in _NUMBERS and str(bound).removeprefix("-")[0].isdigit())
