"""Classes put in front of another library's, or an application's, or behind it: made once, and forgotten with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
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
        cls = _make(base, (front, base), namespace)
        if finish is not None:
            finish(cls)
        made[front] = cls
    return made[front]


def behind(base: type, back: type) -> Any:
    """Make a class of ``base`` whose ``super()`` finds ``back`` first, or return the one that was made.

    :param base: whose name and module the class has; :func:`hides` tells whether it uses ``super()``.
    :param back: what comes between it and what it was derived from.
    """
    made = made_of(base)
    if back not in made:
        made[back] = _make(base, (base, back), {})
    return made[back]


def hides(base: type, back: type, *, but: Collection[str] = ()) -> str | None:
    """The method of a class that would keep calls from one behind it, None if there is none.

    A method that says ``super()`` hands a call on; one that names the class that its own was derived from goes past all
    that is between the two. What a library's own classes say is known to hand on.

    :param base: a class.
    :param back: the one that is to be behind it; both are derived from a class of a library's.
    :param but: names that need not be handed on.
    """
    made = made_of(base)
    key = (hides, back)
    if key not in made:
        made[key] = _find_hiding(base, back, but)
    hiding: str | None = made[key]
    return hiding


def _find_hiding(base: type, back: type, but: Collection[str]) -> str | None:
    common = next(cls for cls in base.__mro__ if cls in back.__mro__)
    names = {name for cls in back.__mro__[: back.__mro__.index(common)] for name in vars(cls)} - {*but}
    for cls in base.__mro__[: base.__mro__.index(common)]:
        if _library(cls) == _library(base.__mro__[-2]):  # the first below object
            continue
        for name, value in vars(cls).items():
            if name in names and not (name.startswith("__annotate") or _hands_on(value)):
                return f"{cls.__qualname__}.{name}"
    return None


def _library(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _hands_on(value: Any) -> bool:
    if isinstance(value, property):
        return all(_hands_on(each) for each in (value.fget, value.fset, value.fdel) if each is not None)
    if isinstance(value, type) or not callable(value):
        return True  # no method
    code = getattr(inspect.unwrap(value), "__code__", None)
    return code is not None and ("__class__" in code.co_freevars or "super" in code.co_names)


def _make(base: type, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
    return type(base.__name__, bases, {"__module__": base.__module__, "__doc__": base.__doc__, **namespace})


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
