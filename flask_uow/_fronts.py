"""Classes that are put in front of another library's, or an application's: made once, and forgotten with those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MADE = "_uow_fronts"


def in_front_of(base: type, front: type, finish: Callable[[type], None] | None = None, **namespace: Any) -> Any:
    """Make a class of ``base`` with ``front`` before it, or return the one that was made.

    :param base: whose name and module the class has.
    :param front: what comes first.
    :param finish: called with the class when it is made.
    :param namespace: attributes of the class.
    """
    made = made_of(base)
    if front not in made:
        cls = type(base.__name__, (front, base), {"__module__": base.__module__, **namespace})
        if finish is not None:
            finish(cls)
        made[front] = cls
    return made[front]


def made_of(base: type) -> dict[object, Any]:
    """What was made of a class.

    It is kept in the class itself. A dictionary with weak keys would keep both for good: a class holds its bases, so
    each value would hold its own key, and with it whatever ``base`` refers to.
    """
    made: dict[object, Any] | None = base.__dict__.get(_MADE) or _made_of_static.get(base)
    if made is None:
        made = {}
        try:
            setattr(base, _MADE, made)
        except TypeError:
            _made_of_static[base] = made
    return made


_made_of_static: dict[type, dict[object, Any]] = {}
"""Of classes that are written in C and take no attributes; those are never forgotten."""
