"""A pool that has no connection left: the client is told to come again, and the log who has them all.

SQLAlchemy gives up when ``pool_timeout`` has passed. Nothing is lost by that and nothing has to be mended: the units
that hold the connections end, and the pool is as before. So the answer is 503, with ``Retry-After``, and not an error
of the server's; an app's own handler of :class:`sqlalchemy.exc.TimeoutError` is left to it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from inspect import signature
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response
from werkzeug.exceptions import ServiceUnavailable

from ._scopes import find_context
from ._settings import DEFAULT_BIND
from ._state import AppState
from ._unit_log import write_line

_OF_A_POOL = "3o7r"
"""SQLAlchemy's code for its error."""

_MOST_LINES_S = 1.0
"""A full pool has many who wait for it: one line in so many seconds says what all of theirs would."""

_MOST_HOLDERS = 20


def answer_for_full_pools(app: Flask, app_state: AppState) -> None:
    """Answer requests that have waited in vain, and log who has the connections."""
    full_pools = FullPools(app, app_state)
    app_state.note_full = full_pools.note
    app.error_handler_spec[None][None].setdefault(sa.exc.TimeoutError, full_pools.answer)


class FullPools:
    """What is done about an app's pools when they have no connection left."""

    def __init__(self, app: Flask, app_state: AppState) -> None:
        self._app = app
        self._app_state = app_state
        self._lock = threading.Lock()
        self._said_s: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def answer(self, error: sa.exc.TimeoutError) -> Response:
        """Answer 503, as the app shows that.

        :raises sqlalchemy.exc.TimeoutError: the same again, if it is not about a pool.
        """
        if error.code != _OF_A_POOL:
            raise error
        if not self._app_state.settings.stats:
            self.note(DEFAULT_BIND)  # where nobody watches, nobody knows which
        pools = [engine.pool for engine in self._app_state.engines.values()]
        waits_s = [pool.timeout() for pool in pools if isinstance(pool, sa.QueuePool)]
        refusal = ServiceUnavailable("Too many requests are at work. Please try again.")
        response = self._app.make_response(self._shown(refusal))
        response.headers.setdefault("Retry-After", str(max(1, math.ceil(min(waits_s, default=1)))))
        return response

    def _shown(self, refusal: ServiceUnavailable) -> Any:
        """The refusal as the app shows it, which may have a page for that."""
        handle: Any = self._app.handle_http_exception
        has_context = len(signature(handle).parameters) > 1  # before the error, in Flasks to come
        return handle(find_context(), refusal) if has_context else handle(refusal)

    def note(self, bind: str) -> None:
        """Log who has the connections of a pool, unless that was done just now.

        :param bind: the name of its engine.
        """
        with self._lock:
            refused = self._unsaid[bind] = self._unsaid.get(bind, 0) + 1
            now_s = time.monotonic()
            if now_s - self._said_s.get(bind, -math.inf) < _MOST_LINES_S:
                return
            self._said_s[bind], self._unsaid[bind] = now_s, 0
        values = {"event": "pool_full", "bind": bind, "refused": refused, "held_by": self._holders(bind)}
        write_line(logging.WARNING, "pool full", values)

    def _holders(self, bind: str) -> tuple[str, ...]:
        from .stats._boards import copy_of_own  # here, because it is seldom needed
        from .stats._workers import holders_of

        board = self._app_state.board
        if board is None:
            return ("not known, for UOW_STATS is off",)
        try:
            holders = holders_of(copy_of_own(board), bind)
        except ValueError:  # the pool's own error is not to be lost for the sake of a line about it
            return ("not known, for the board could not be read",)
        shown = [f"{each.label} for {each.seconds:.1f} s, {each.state}, {each.where}" for each in holders]
        more = len(shown) - _MOST_HOLDERS
        return (*shown[:_MOST_HOLDERS], *([f"and {more} more"] if more > 0 else ()))
