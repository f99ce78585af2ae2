"""Isolation of a test: the pools of an app's engines lend logical connections while it runs, and everything is undone.

Nothing of this package, of SQLAlchemy or of the app is replaced above the pools. Engines of the same database share one
real connection, so that a reader sees what the primary's units have committed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from flask import Flask

from .._checkouts import REAL_POOL
from .._settings import is_in_memory
from .._state import AppState
from ..exceptions import IsolationError
from ._logical import LogicalConnection
from ._logical_drivers import DRIVERS, make_logical
from ._outer import OuterTransaction
from ._tested import engines_of, tested


class Isolation:
    """What isolates a test.

    :ivar errors: what the test asked for and cannot have, in order.
    """

    def __init__(self) -> None:
        self._outers: dict[object, OuterTransaction] = {}
        self._pools: list[tuple[sa.Engine, sa.Pool]] = []

    @property
    def errors(self) -> list[IsolationError]:
        """What was refused, and why."""
        return [error for outer in self._outers.values() for error in outer.errors]

    def add(self, engine: sa.Engine, key: object) -> None:
        """Isolate an engine.

        :param key: engines with the same one share a real connection.
        :raises IsolationError: if its driver is none that can be isolated, or has no connection to lend.
        """
        if engine.dialect.driver not in DRIVERS:
            raise IsolationError(
                f"{engine.url!r} cannot be isolated: its driver is {engine.dialect.driver!r}, and can be one of "
                f"{', '.join(DRIVERS)}.",
                fix="Run this test without isolation.",
            )
        if key not in self._outers:
            self._outers[key] = _begin(engine)
        outer, pool = self._outers[key], engine.pool
        self._pools.append((engine, pool))
        engine.pool = _logical_pool(pool, outer)

    def hold_sequences(self) -> None:
        """Let what is taken from PostgreSQL's sequences be undone as well."""
        for outer in self._outers.values():
            outer.hold_sequences()

    def end(self) -> None:
        """Put the pools back, and undo everything."""
        for engine, pool in self._pools:
            engine.pool.dispose()
            engine.pool = pool
        for outer in self._outers.values():
            outer.end()


@contextmanager
def isolated(app: Flask, *, sequences: bool = False) -> Iterator[Isolation]:
    """Undo, at the end of the block, all that the app has done in its databases.

    .. code-block:: python

        with isolated(app) as isolation:
            client.post("/transfers", json={"amount": 30})

    :param sequences: whether PostgreSQL's sequences are to be as before too. Nobody else can take numbers from them
        meanwhile, so that the tests of several processes on one database come one after the other.
    :raises IsolationError: if its databases cannot be isolated.
    """
    app, state = tested(app)
    isolation, settings = Isolation(), state.settings
    try:
        for engine in engines_of(app, state):
            isolation.add(engine, _key(engine, state))
        if sequences:
            isolation.hold_sequences()
        state.settings = dataclasses.replace(settings, two_phase=False)
        yield isolation
    finally:
        state.settings = settings
        isolation.end()


def _begin(engine: sa.Engine) -> OuterTransaction:
    try:
        return OuterTransaction(engine)
    except sa.exc.TimeoutError as error:
        raise IsolationError(
            f"The pool of {engine.url!r} has no connection for the test's transaction.",
            fix="End the sessions that are open before the test begins; a database in memory has one connection only.",
        ) from error


def _logical_pool(pool: sa.Pool, outer: OuterTransaction) -> sa.Pool:
    """A pool like another one, of logical connections; what listens to it was told of the real one already."""

    def connect(record: Any) -> LogicalConnection:
        outer.check()
        record.info.update(outer.info)
        return make_logical(outer)

    setattr(connect, REAL_POOL, pool)
    logical = pool.recreate()
    logical._creator = connect  # type: ignore[assignment]
    for name in ("connect", "first_connect"):
        getattr(logical.dispatch, name)  # makes what is not there
        delattr(logical.dispatch, name)
    return logical


def _key(engine: sa.Engine, state: AppState) -> object:
    if any(state.engines.get(name) is engine for name in state.settings.readers):
        engine = state.engines["default"]
    return engine if is_in_memory(engine.url) else engine.url
