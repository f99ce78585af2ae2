"""Spare sessions: one that nobody holds any more, and that is as it was made, serves another app context.

To make a session, and to find out who listens to it, takes SQLAlchemy a good part of what a short unit takes. A session
that is closed may be used again, says SQLAlchemy; here it is where nobody can tell it from a new one: nothing else
refers to it, no object is in it, and no attribute, option or listener of it is another one than when it was made.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import _fork

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ._state import SessionState

_Dispatch = object  # the class in front of which the note is put
_count_references: Callable[[object], int] = getattr(sys, "getrefcount", lambda _: -1)
_count_weak_references = weakref.getweakrefcount


class NotingDispatch(_Dispatch):
    """Put in front of the class by which a session finds its listeners: notes that it has got one of its own."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        vars(self)["has_changed"] = True
        super().__setattr__(name, value)


_noting_classes: dict[type, type] = {}


def _noting_class(base: type) -> type:
    if base not in _noting_classes:
        _noting_classes[base] = type(base.__name__, (NotingDispatch, base), {"__slots__": ()})
    return _noting_classes[base]


class Make:
    """What a session was when it was made; of SQLAlchemy's own class, which does nothing else then.

    :param options: what it was made with.
    """

    def __init__(self, session: Session, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        # SQLAlchemy puts what has listeners of the session's own in the place of what has its class's alone.
        dispatch: Any = session.dispatch
        for name in dispatch._event_names:
            getattr(dispatch, name)
        dispatch.__class__ = _noting_class(type(dispatch))
        self.attributes = {name: dict(value) if type(value) is dict else value for name, value in vars(session).items()}


class Spares:
    """The spare sessions of an app."""

    def __init__(self) -> None:
        self._spares: list[tuple[Session, Make]] = []
        _fork.abandon_in_children(self)

    def take(self, options: Mapping[str, Any]) -> tuple[Session, Make] | None:
        """Take one that was made with options, None if there is none."""
        try:
            spare = self._spares.pop()
        except IndexError:
            return None
        return spare if spare[1].options == options else None

    def put(self, session: Session, state: SessionState, make: Make) -> None:
        """Keep a session that was closed, if the caller's variable alone refers to it, and it is as it was made.

        :param state: the extension's side of it until now.
        """
        if _count_references(session) != _OF_A_CALLERS or state.generation != _fork.generation:
            return
        attributes = make.attributes
        attributes["_uow"], attributes["identity_map"] = state, session.identity_map  # which are another one each time
        if (
            vars(session) == attributes
            and not vars(session.dispatch)
            and _count_weak_references(session) == 1  # SQLAlchemy's own
        ):
            self._spares.append((session, make))

    def abandon(self) -> object:
        """Hand over a parent process's sessions."""
        spares, self._spares = self._spares, []
        return spares


def _count_of_a_callers(thing: object) -> int:
    return _count_references(thing)


def _count_of_one() -> int:
    thing = object()
    return _count_of_a_callers(thing)


_OF_A_CALLERS = _count_of_one()
"""How many references to a function's argument Python counts in it, if a variable of its caller's is the only other."""
