"""The options of one unit of work, checked once when the decorator is applied.

``Propagation`` says what a unit does where another one is active; :func:`relation` is its table
(contract of nesting: Spring's propagation names, Django's savepoint semantics).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from ._hiding import shown_value
from .exceptions import NoActiveUnitError, UnitActiveError, UnitOptionsError


class Propagation(Enum):
    """What a unit does where another unit is active already."""

    NESTED = "nested"
    REQUIRED = "required"
    REQUIRES_NEW = "requires_new"
    MANDATORY = "mandatory"
    SUPPORTS = "supports"
    NOT_SUPPORTED = "not_supported"
    NEVER = "never"


class Relation(Enum):
    """How a unit stands to the one that is active: what :func:`relation` answers."""

    BEGIN = "begins a transaction of its own"
    SAVEPOINT = "is a savepoint of the active unit"
    JOIN = "is a part of the active unit"
    INDEPENDENT = "begins on a session and connection of its own"
    WITHOUT = "runs without a unit"
    SUSPEND = "runs without a unit, on a session of its own that is rolled back"


_OUTSIDE = {
    Propagation.NESTED: Relation.BEGIN,
    Propagation.REQUIRED: Relation.BEGIN,
    Propagation.REQUIRES_NEW: Relation.BEGIN,
    Propagation.SUPPORTS: Relation.WITHOUT,
    Propagation.NOT_SUPPORTED: Relation.WITHOUT,
    Propagation.NEVER: Relation.WITHOUT,
}
_INSIDE = {
    Propagation.NESTED: Relation.SAVEPOINT,
    Propagation.REQUIRED: Relation.JOIN,
    Propagation.REQUIRES_NEW: Relation.INDEPENDENT,
    Propagation.MANDATORY: Relation.JOIN,
    Propagation.SUPPORTS: Relation.JOIN,
    Propagation.NOT_SUPPORTED: Relation.SUSPEND,
}

ISOLATION_LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """The keyword arguments of ``transactional``, checked.

    :param propagation: what to do inside another unit; a :class:`Propagation` or its name in lower case.
    :param read_only: the unit writes nothing; the server refuses a write.
    :param isolation: one of :data:`ISOLATION_LEVELS`, in any case, ``_`` or blank between the words.
    :param deferrable: with ``SERIALIZABLE`` and ``read_only``: wait for a safe snapshot instead of failing.
    :param timeout: seconds that the unit may last.
    :param retries: attempts after the first on a serialization failure or a deadlock.
    :param durable: begin a unit and refuse to be an inner one.
    :param rollback_for: exception classes that roll back although ``no_rollback_for`` names a base of theirs.
    :param no_rollback_for: exception classes that commit and go on.
    :param rollback_on_status: roll back a returned response of this status or above; or a predicate of the status.
    :param on_error: gets the ``Exception`` after the rollback; its value is returned instead.
    :param confirm_commit: learn the outcome of a COMMIT that lost its connection from the server.
    :param label: the unit's name in messages and statistics.
    :ivar outside: what the propagation means where no unit is active; None if it needs one.
    :ivar needs_connection: whether the server must hear of the options when the transaction begins.
    :raises UnitOptionsError: if a value is not usable or two of them contradict each other.
    """

    propagation: Propagation = Propagation.NESTED
    read_only: bool = False
    isolation: str | None = None
    deferrable: bool = False
    timeout: float | None = None
    retries: int | None = None
    durable: bool = False
    rollback_for: tuple[type[BaseException], ...] = ()
    no_rollback_for: tuple[type[BaseException], ...] = ()
    rollback_on_status: int | Callable[[int], bool] | None = None
    on_error: Callable[[Exception], Any] | None = None
    confirm_commit: bool = False
    label: str | None = None
    outside: Relation | None = field(init=False)
    needs_connection: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outside", _OUTSIDE.get(self.propagation))
        object.__setattr__(self, "needs_connection", self.read_only or self.isolation is not None or self.deferrable)

    @classmethod
    def checked(cls, options: dict[str, Any]) -> UnitOptions:
        """Options from what the user typed.

        :raises UnitOptionsError: if a value is not usable or two of them contradict each other.
        :raises TypeError: for an option that does not exist.
        """
        for name in options:
            if name not in _CHECKS:
                raise TypeError(f"transactional() has no option {name!r}; its options are: {', '.join(_CHECKS)}.")
        values = {name: _CHECKS[name](name, value) for name, value in options.items()}
        result = cls(**values)
        _check_together(result)
        return result

    def rolls_back_for(self, exception: BaseException) -> bool:
        """Whether ``exception`` undoes the unit: the most specific class of the two lists decides, else it does."""
        for cls in type(exception).__mro__:
            if cls in self.rollback_for:
                return True
            if cls in self.no_rollback_for:
                return False
        return True


def is_coroutine_function(value: Any) -> bool:
    """Whether what ``value`` returns has to be awaited; an object may be called as such a function too."""
    while isinstance(value, partial):
        value = value.func
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None))  # noqa: B004


def is_seconds(value: object, *, least: float = 0.0, most: float = sys.float_info.max) -> bool:
    """Whether ``value`` is a number of seconds.

    :param least: the smallest that may be.
    :param most: the largest.
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def is_vetoed(rule: int | Callable[[int], bool] | None, status: int) -> bool:
    """Whether ``rule``, the value of ``rollback_on_status``, undoes a unit whose view returned ``status``."""
    if rule is None:
        return False
    if callable(rule):
        return bool(rule(status))
    return status >= rule


def relation(options: UnitOptions, active_label: str | None) -> Relation:
    """How a unit with these options stands to the active one.

    :param active_label: the label of the active unit, None if there is none.
    :raises NoActiveUnitError: for ``MANDATORY`` outside a unit.
    :raises UnitActiveError: for ``NEVER`` and ``durable`` inside one.
    """
    if active_label is None:
        if options.outside is None:
            raise NoActiveUnitError(
                "propagation='mandatory' needs a unit of work to be active, and none is.",
                fix="Call this function from inside a @transactional view, command or function.",
            )
        return options.outside
    if options.durable:
        raise UnitActiveError(
            f"A durable unit cannot run inside unit of work {active_label!r}: its commit would not be the last word.",
            fix="Call it after that unit has ended, or drop durable=True.",
        )
    if options.propagation is Propagation.NEVER:
        raise UnitActiveError(
            f"propagation='never' allows no active unit of work, and {active_label!r} is active.",
            fix="Call this function outside of any unit.",
        )
    return _INSIDE[options.propagation]


def _wrong(name: str, value: object, wanted: str) -> UnitOptionsError:
    return UnitOptionsError(
        f"transactional({name}={shown_value(value)}): {wanted}.", fix=f"Pass {name} as described, or leave it out."
    )


def _propagation(name: str, value: Any) -> Propagation:
    if isinstance(value, Propagation):
        return value
    names = [member.value for member in Propagation]
    if not isinstance(value, str) or value not in names:
        raise _wrong(name, value, f"expected a Propagation or one of {', '.join(map(repr, names))}")
    return Propagation(value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "expected True or False")
    return value


def _isolation(name: str, value: Any) -> str | None:
    if value is None:
        return None
    level = value.replace("_", " ").upper() if isinstance(value, str) else value
    if level not in ISOLATION_LEVELS:
        raise _wrong(name, value, "expected one of " + ", ".join(repr(known) for known in ISOLATION_LEVELS))
    return str(level)


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not is_seconds(value) or value == 0:
        raise _wrong(name, value, "expected a number of seconds above 0")
    return float(value)


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(name, value, "expected a whole number, 0 or above")
    return value


def _exceptions(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    if not all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
        raise _wrong(name, value, "expected an exception class or several")
    return classes


def _status(name: str, value: Any) -> int | Callable[[int], bool] | None:
    if value is None or (callable(value) and not isinstance(value, type) and not is_coroutine_function(value)):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 100 <= value <= 599:
        raise _wrong(name, value, "expected an HTTP status from 100 to 599, or a function of the status")
    return value


def _function(name: str, value: Any) -> Callable[[Exception], Any] | None:
    if value is None:
        return None
    if not callable(value) or is_coroutine_function(value):
        raise _wrong(name, value, "expected a plain function of the exception")
    return value  # type: ignore[no-any-return]


def _label(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise _wrong(name, value, "expected a text that is not empty")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "propagation": _propagation,
    "read_only": _boolean,
    "isolation": _isolation,
    "deferrable": _boolean,
    "timeout": _seconds,
    "retries": _count,
    "durable": _boolean,
    "rollback_for": _exceptions,
    "no_rollback_for": _exceptions,
    "rollback_on_status": _status,
    "on_error": _function,
    "confirm_commit": _boolean,
    "label": _label,
}


def _check_together(options: UnitOptions) -> None:
    both = set(options.rollback_for) & set(options.no_rollback_for)
    if both:
        names = ", ".join(sorted(cls.__name__ for cls in both))
        raise UnitOptionsError(
            f"rollback_for and no_rollback_for both name {names}.", fix="Name each class in one of the two."
        )
    if options.durable and _OUTSIDE.get(options.propagation) is not Relation.BEGIN:
        raise UnitOptionsError(
            f"durable=True and propagation={options.propagation.value!r} contradict each other: "
            "a durable unit always begins a transaction of its own.",
            fix="Leave one of the two out.",
        )
    if options.deferrable and not (options.read_only and options.isolation == "SERIALIZABLE"):
        raise UnitOptionsError(
            "deferrable=True has no effect unless read_only=True and isolation='SERIALIZABLE' are given too.",
            fix="Add both, or drop deferrable.",
        )
