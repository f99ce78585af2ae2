"""Spare dispatches: what finds a session's listeners serves another session, when its own is gone.

SQLAlchemy gives each session an object that looks for an event's listeners at the event's first time, which takes it
longer than most of what a unit does. Such an object knows the session's class, and nothing of the session. One that has
found all there is, has got no listener of the session's own, and is nobody's any more, is kept for the next session of
its class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_Dispatch = object  # the class in front of which the note is put


class NotingDispatch(_Dispatch):
    """Put in front of the class of a dispatch: notes that it has got a listener of its session's own."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        vars(self)["has_changed"] = True
        super().__setattr__(name, value)


_noting_classes: dict[type, type] = {}


def _noting_class(base: type) -> type:
    if base not in _noting_classes:
        _noting_classes[base] = type(base.__name__, (NotingDispatch, base), {"__slots__": ()})
    return _noting_classes[base]


class Spares:
    """The spare dispatches of an app, by the class of their sessions."""

    def __init__(self) -> None:
        self._spares: dict[type[Session], list[Any]] = {}

    def give(self, session: Session) -> None:
        """Give a dispatch to a new session that has none yet."""
        try:
            vars(session)["dispatch"] = self._spares[type(session)].pop()
        except LookupError:
            dispatch: Any = session.dispatch
            for name in dispatch._event_names:
                getattr(dispatch, name)  # which finds what listens to the class
            dispatch.__class__ = _noting_class(type(dispatch))

    def keep(self, dispatch: Any) -> None:
        """Keep a dispatch that is nobody's, unless it knows what listened to its session."""
        if isinstance(dispatch, NotingDispatch) and not vars(dispatch):
            self._spares.setdefault(dispatch._instance_cls, []).append(dispatch)  # type: ignore[attr-defined]
