"""Classes that are put in front of another library's, or an application's: made once, and forgotten with those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MADE = "_uow_fronts"


def in_front_of(base: type, front: type, finish: Callable[[type], None] | None = None, **namespace: Any) -> Any:
    """Make a class of ``base`` with ``front`` before it, or return the one that was made.

    What was made is kept in ``base`` itself. A dictionary with weak keys would keep both for good: a class holds its
    bases, so each value would hold its own key, and with it whatever ``base`` refers to.

    :param base: whose name and module the class has.
    :param front: what comes first.
    :param finish: called with the class when it is made.
    :param namespace: attributes of the class.
    """
    made = base.__dict__.get(_MADE)
    if made is None:
        made = {}
        setattr(base, _MADE, made)
    if front not in made:
        cls = type(base.__name__, (front, base), {"__module__": base.__module__, **namespace})
        if finish is not None:
            finish(cls)
        made[front] = cls
    return made[front]
