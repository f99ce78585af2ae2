"""What a test leaves open: connections that are not back in their pools when it has ended.

What a session has that lives in an app context which is still pushed is none of it: that context takes it back.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from flask import Flask
from sqlalchemy import event

from .._callsite import CallSite, application_site
from .._scopes import find_context
from .._state import SessionState, link_of, state_of
from ._tested import engines_of, tested


class Checkouts:
    """The connections that were taken and are not back."""

    def __init__(self) -> None:
        self._taken: dict[Any, tuple[weakref.ref[Any], CallSite | None]] = {}

    def take(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        """A connection leaves its pool."""
        self._taken[record] = (weakref.ref(proxy), application_site())

    def give_back(self, dbapi_connection: Any, record: Any) -> None:
        """It is back, or lost."""
        self._taken.pop(record, None)

    def left(self) -> list[str]:
        """What is not back, and nobody will take back."""
        if self._left():
            gc.collect()  # takes longer than most tests, and is seldom needed
        return self._left()

    def _left(self) -> list[str]:
        kept = _kept_by_context()
        found = []
        for proxy, site in list(self._taken.values()):
            pooled = proxy()
            link = link_of(pooled)
            if pooled is None or (link is not None and link.state in kept):
                continue
            who = "A connection" if link is None else "A session's connection"
            found.append(f"{who} is still out of its pool; it was taken at {site or 'an unknown line'}.")
        return found


@contextmanager
def checkouts(app: Flask) -> Iterator[Checkouts]:
    """Keep an eye on the connections that are taken while a block runs."""
    app, state = tested(app)
    seen = Checkouts()
    with ExitStack() as stack:
        for engine in engines_of(app, state):
            for name, listener in (("checkout", seen.take), ("checkin", seen.give_back)):
                event.listen(engine.pool, name, listener)
                stack.callback(event.remove, engine.pool, name, listener)
        yield seen


def _kept_by_context() -> list[SessionState | None]:
    """The states of the sessions that the current app context takes back."""
    scope = getattr(find_context(), "_uow_scope", None)
    if scope is None:
        return []
    sessions = [session for slot in scope.slots.values() for session in slot]
    sessions += [session for reference in scope.adopted or () if (session := reference()) is not None]
    return [state_of(session) for session in sessions]
