"""Spare sessions: one that nobody holds any more, and that is as it was made, serves another app context.

To make a session, and to find out who listens to it, takes SQLAlchemy a good part of what a short unit takes. A session
that is closed may be used again, says SQLAlchemy; here it is where nobody can tell it from a new one: nothing else
refers to it, no object is in it, and no attribute, option or listener of it is another one than when it was made.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from . import _fork

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ._state import SessionState

_count_references: Callable[[object], int] = getattr(sys, "getrefcount", lambda _: -1)
_count_weak_references = weakref.getweakrefcount


class Make:
    """What a session was when it was made; of SQLAlchemy's own class, which does nothing else then.

    :param options: what it was made with.
    """

    def __init__(self, session: Session, options: Mapping[str, Any]) -> None:
        from sqlalchemy.orm.events import SessionEvents  # here, because it takes long to import

        events = [name for name, event in vars(SessionEvents).items() if callable(event) and not name.startswith("_")]
        self.options = dict(options)
        self._listeners_of = attrgetter(*events)
        self._listeners = self._listeners_of(session.dispatch)
        self._attributes = {
            name: dict(value) if type(value) is dict else value for name, value in vars(session).items()
        }

    def lend(self, session: Session, state: SessionState) -> None:
        """Let a context have the session.

        :param state: the extension's side of it there.
        """
        state.make = self
        self._attributes["_uow"] = session._uow = state  # type: ignore[attr-defined]

    def is_empty(self, session: Session) -> bool:
        """Whether there is nothing in a session to close."""
        return session._transaction is None and not (session._new or session._deleted or session.identity_map)

    def is_of(self, session: Session) -> bool:
        """Whether an empty session is as it was made."""
        self._attributes["identity_map"] = session.identity_map  # closed, it has another one
        return vars(session) == self._attributes and self._listeners_of(session.dispatch) == self._listeners


class Spares:
    """The spare sessions of an app."""

    def __init__(self) -> None:
        self._spares: list[tuple[Session, Make]] = []
        _fork.abandon_in_children(self)

    def take(self, options: Mapping[str, Any]) -> tuple[Session, Make] | None:
        """Take one that was made with options."""
        while self._spares:
            try:
                spare = self._spares.pop()
            except IndexError:  # another thread was faster
                break
            if spare[1].options == options:
                return spare
        return None

    def put(self, session: Session, state: SessionState) -> None:
        """Keep a session that was closed, if the caller's variable alone refers to it, and it is as it was made."""
        make = state.make
        if (
            _count_references(session) == _OF_A_CALLERS
            and _count_weak_references(session) == 1  # SQLAlchemy's own
            and make is not None
            and make.is_of(session)
            and state.generation == _fork.generation
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
