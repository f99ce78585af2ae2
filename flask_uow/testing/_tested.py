"""The app under test: what the extension keeps for it, and its engines, whoever owns them."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Flask

from .._checkouts import watch_pool
from .._guard import watch_engine
from .._state import STATE_KEY, AppState
from ..exceptions import IsolationError
from . import real_app


def tested(app: Flask) -> tuple[Flask, AppState]:
    """An app, and what the extension keeps for it.

    :raises IsolationError: if it has no ``UnitOfWork``.
    """
    app = real_app(app)
    state: AppState | None = app.extensions.get(STATE_KEY)
    if state is None:
        raise IsolationError(f"App {app.name!r} has no UnitOfWork.", fix="Call UnitOfWork(app), or init_app(app).")
    return app, state


def engines_of(app: Flask, state: AppState) -> list[sa.Engine]:
    """An app's engines, ours or another library's, each once and watched as after its first statement.

    :raises IsolationError: if none is known yet.
    """
    found = list(state.engines.values())
    if not found:
        with app.app_context():
            found = [*state.named_engines().values(), *map(_engine_of, state.sessions.binds())]
    if not found:
        raise IsolationError(
            "No engine was found: the sessions have none yet.", fix="Bind the sessions before the test begins."
        )
    for engine in found:
        watch_engine(engine)
        watch_pool(engine, app)
    return list(dict.fromkeys(found))


def _engine_of(bind: sa.Engine | sa.Connection) -> sa.Engine:
    if isinstance(bind, sa.Connection):
        raise IsolationError(
            "The sessions are bound to a connection, and not to an engine.", fix="Bind them to an engine."
        )
    return bind
