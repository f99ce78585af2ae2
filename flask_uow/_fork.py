"""After a fork: which sessions and engines were made by the parent.

A child shares its parent's sockets. One ROLLBACK that the child sends, be it from a finaliser, silently undoes the
parent's transaction. So in a child every engine forgets its pool without closing it, every connection that is checked
out loses its socket, which is kept referenced for ever, and so are the parent's sessions.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.pool import ConnectionPoolEntry

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_entries: weakref.WeakSet[ConnectionPoolEntry] = weakref.WeakSet()
_owners: weakref.WeakSet[Any] = weakref.WeakSet()
_kept_for_ever: list[object] = []


generation = 0
"""How many forks lie between the first process and this one: what was made under another number is a parent's."""

_is_watched = False
_pid = 0


def dispose_in_children(engine: Engine) -> None:
    """Let ``engine`` start with an empty pool in each forked child."""
    _watch()
    _engines.add(engine)


def detach_in_children(entry: ConnectionPoolEntry) -> None:
    """Take the socket from a pool's entry, and from whoever has checked it out, in each forked child."""
    _entries.add(entry)


def abandon_in_children(owner: Any) -> None:
    """Call ``owner.abandon()`` in each forked child; what it returns is kept referenced and untouched.

    :param owner: an object, held weakly, whose ``abandon`` hands over the parent's sessions.
    """
    _watch()
    _owners.add(owner)


def _watch() -> None:
    global _is_watched, _pid  # noqa: PLW0603  # one hook serves all engines, and is set only where one is made
    if not _is_watched and hasattr(os, "register_at_fork"):
        _pid = os.getpid()
        os.register_at_fork(after_in_child=_in_child)
        if "uwsgi" in sys.modules:  # inside uWSGI alone
            _watch_uwsgi(sys.modules["uwsgi"])
    _is_watched = True


def _watch_uwsgi(uwsgi: Any) -> None:
    """Put our part in front of uWSGI's one hook."""
    with suppress(Exception):  # not installed, or refuses a server without a master: then nobody can use it
        import_module("uwsgidecorators")  # which would replace the hook if the app imported it later
    others: Callable[[], object] | None = getattr(uwsgi, "post_fork_hook", None)

    def hook() -> None:
        if _pid != os.getpid():  # which --py-call-osafterfork has told already
            _in_child()
        if others is not None:
            others()

    uwsgi.post_fork_hook = hook


def _in_child() -> None:
    global generation, _pid  # a process has one of each
    generation, _pid = generation + 1, os.getpid()
    for owner in list(_owners):
        abandon: Callable[[], object] = owner.abandon
        _kept_for_ever.append(abandon())
    for entry in list(_entries):
        _detach(entry)
    for engine in list(_engines):
        _kept_for_ever.append(engine.pool)
        engine.dispose(close=False)


def _detach(entry: Any) -> None:
    """What has no socket rolls back, closes and is collected without a word to the server."""
    _kept_for_ever.append(entry.dbapi_connection)
    user = entry.fairy_ref() if entry.fairy_ref else None
    if user is not None:
        user.dbapi_connection = None
    entry.dbapi_connection = None
