"""After a fork: which sessions and engines were made by the parent.

A child shares its parent's sockets. One ROLLBACK that the child sends, be it from a finaliser, silently undoes the
parent's transaction. So in a child every engine forgets its pool without closing it, and every session of the parent
is kept referenced for ever and never touched.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_owners: weakref.WeakSet[Any] = weakref.WeakSet()
_kept_for_ever: list[object] = []


generation = 0
"""How many forks lie between the first process and this one: what was made under another number is a parent's."""

_is_watched = False


def dispose_in_children(engine: Engine) -> None:
    """Let ``engine`` start with an empty pool in each forked child."""
    _watch()
    _engines.add(engine)


def abandon_in_children(owner: Any) -> None:
    """Call ``owner.abandon()`` in each forked child; what it returns is kept referenced and untouched.

    :param owner: an object, held weakly, whose ``abandon`` hands over the parent's sessions.
    """
    _watch()
    _owners.add(owner)


def _watch() -> None:
    global _is_watched  # noqa: PLW0603  # one hook serves all engines, and is set only where one is made
    if not _is_watched and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)
    _is_watched = True


def _in_child() -> None:
    global generation  # noqa: PLW0603  # a process has one
    generation += 1
    for owner in list(_owners):
        abandon: Callable[[], object] = owner.abandon
        _kept_for_ever.append(abandon())
    for engine in list(_engines):
        _kept_for_ever.append(engine.pool)
        engine.dispose(close=False)
