"""Whole requests as units: ``UOW_ATOMIC_REQUESTS``.

The unit lies around Flask's dispatch, from the first ``before_request`` function to the last ``after_request`` one. An
exception that reaches an error handler rolls back what was done before it; the handler, and what comes after it, can
use the database, and nothing of what they write is kept either. A body that is generated comes after the unit.
"""

from __future__ import annotations

from typing import Any

from flask import Flask, Response

from ._options import Propagation
from ._state import AppState
from ._transactional import OPTIONS, Transactional, current_unit
from ._views import find_request, parts_of_view

_OPT_OUT = (Propagation.NOT_SUPPORTED, Propagation.NEVER)


def serve_whole_requests(app: Flask, app_state: AppState) -> None:
    """Make each request of ``app`` a unit, as its settings say."""
    dispatch, handle_user_exception, handle_exception = (
        app.full_dispatch_request,
        app.handle_user_exception,
        app.handle_exception,
    )

    def request(*args: Any) -> Response:
        return dispatch(*args)

    def failed_request(*args: Any) -> Response:
        current_unit.set_rollback_only()
        return handle_exception(*args)

    in_unit = Transactional({}, app_state.sessions)(request)
    failed_in_unit = Transactional({"retries": 0}, app_state.sessions)(failed_request)
    app_state.dispatches = (in_unit, failed_in_unit)

    def full_dispatch_request(*args: Any) -> Response:
        return in_unit(*args) if _is_atomic(app_state) else dispatch(*args)

    def handle_user_error(*args: Any) -> Any:
        if _is_atomic(app_state) and current_unit:
            current_unit.start_over()
        return handle_user_exception(*args)

    def handle_error(*args: Any) -> Response:
        return failed_in_unit(*args) if _is_atomic(app_state) else handle_exception(*args)

    vars(app).update(
        full_dispatch_request=full_dispatch_request,
        handle_user_exception=handle_user_error,
        handle_exception=handle_error,
    )


def _is_atomic(app_state: AppState) -> bool:
    """Whether the current request is to be a unit: its method is one of those, and its view does not opt out."""
    now, methods = find_request(), app_state.settings.atomic_requests
    if now is None or (methods is not True and now.method not in (methods or ())):
        return False
    options = (getattr(part, OPTIONS, None) for part in parts_of_view(app_state, now))
    return not any(option is not None and option.propagation in _OPT_OUT for option in options)
