"""Whole requests as units: ``UOW_ATOMIC_REQUESTS``.

The unit lies around Flask's dispatch, from the first ``before_request`` function to the last ``after_request`` one. An
exception that reaches an error handler rolls back what was done before it; the handler, and what comes after it, can
use the database, and nothing of what they write is kept either. A body that is generated comes after the unit.

The exception is met where it leaves the functions and the view, not where Flask looks for its handler: extensions
put themselves there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from flask import Flask, Response
from flask.globals import app_ctx

from ._options import Propagation
from ._retry import is_retryable
from ._state import AppState
from ._transactional import OPTIONS, SITE, Transactional, current_unit, retries_of_request
from ._units import Unit
from ._views import find_request, parts_of_view

T = TypeVar("T")

_OPT_OUT = (Propagation.NOT_SUPPORTED, Propagation.NEVER)


class _AnotherAttempt(BaseException):
    """Carries an error that the unit may be tried again for past Flask's handlers, which take Exceptions alone."""

    def __init__(self, error: Exception) -> None:
        self.error = error


_unit: ContextVar[Unit | None] = ContextVar("unit", default=None)
"""The current request's own unit, whatever was begun inside it."""


def serve_whole_requests(app: Flask, app_state: AppState) -> None:
    """Make each request of ``app`` a unit, as its settings say."""
    requests = AtomicRequests(app, app_state)
    vars(app).update(
        full_dispatch_request=requests.full_dispatch_request,
        preprocess_request=_undone_by_errors(app.preprocess_request, app_state),
        dispatch_request=_undone_by_errors(app.dispatch_request, app_state),
        handle_exception=requests.handle_exception,
    )


class AtomicRequests:
    """What takes the place of Flask's methods; their arguments are passed on, whichever its version gives them."""

    def __init__(self, app: Flask, app_state: AppState) -> None:
        self._app: Any = app
        self._app_state = app_state
        self._dispatch, self._handle = app.full_dispatch_request, app.handle_exception
        self._in_unit = Transactional({}, app_state.sessions)(self._request)
        self._failed_in_unit = Transactional({"retries": 0}, app_state.sessions)(self._failed_request)
        app_state.dispatches = (self._in_unit, self._failed_in_unit)
        for each in (self._in_unit, self._failed_in_unit):
            setattr(each, SITE, None)  # the line of a request is its view's

    def full_dispatch_request(self, *args: Any) -> Response:
        if not _is_atomic(self._app_state):
            return self._dispatch(*args)
        try:
            return self._in_unit(*args)
        except Exception as error:
            if vars(error).pop(_WAS_DISPATCHED, False):
                raise
            return self._failed_in_unit(self._answer_for, error, *args)  # of the commit, or of a hook before it

    def handle_exception(self, *args: Any) -> Response:
        return self._failed_in_unit(self._handle, *args) if _is_atomic(self._app_state) else self._handle(*args)

    def _request(self, *args: Any) -> Response:
        unit: Unit = current_unit._get_current_object()  # type: ignore[attr-defined]
        token = _unit.set(unit)
        try:
            response = self._dispatch(*args)
        except _AnotherAttempt as again:
            raise again.error from None
        except Exception as error:
            vars(error)[_WAS_DISPATCHED] = True
            raise
        finally:
            _unit.reset(token)
        if self._app_state.readers is not None:
            self._app_state.readers.save_late(unit, response)
        return response

    def _failed_request(self, function: Callable[..., Response], *args: Any) -> Response:
        current_unit._get_current_object().start_over()  # type: ignore[attr-defined]
        return function(*args)

    def _answer_for(self, error: Exception, *args: Any) -> Response:
        response: Response = self._app.finalize_request(*args, self._app.handle_user_exception(*args, error))
        return response


_WAS_DISPATCHED = "_uow_was_dispatched"
"""What an exception has that Flask's handlers have seen already."""


def _undone_by_errors(function: Callable[..., T], app_state: AppState) -> Callable[..., T]:
    """Undo what an exception leaves behind, before Flask looks for its handler."""

    def run(*args: Any) -> T:
        try:
            return function(*args)
        except Exception as error:
            unit = _unit.get()
            if unit is not None and unit.is_active:
                if _may_be_tried_again(error, unit, app_state):
                    raise _AnotherAttempt(error) from error
                _start_over(unit, app_state)
            raise

    return run


def _may_be_tried_again(error: Exception, unit: Unit, app_state: AppState) -> bool:
    return unit.is_repeatable and is_retryable(error) and unit.attempt <= retries_of_request(app_state)


def _start_over(unit: Unit, app_state: AppState) -> None:
    """Undo the request's unit, whatever was begun inside it and not ended."""
    context = app_ctx._get_current_object()  # type: ignore[attr-defined]
    while (session := app_state.sessions.current(context)) is not unit.session:
        app_state.sessions.restore(context, unit.session, session)
    unit.start_over()


def _is_atomic(app_state: AppState) -> bool:
    """Whether the current request is to be a unit: its method is one of those, and its view does not opt out."""
    now, methods = find_request(), app_state.settings.atomic_requests
    if now is None or (methods is not True and now.method not in (methods or ())):
        return False
    options = (getattr(part, OPTIONS, None) for part in parts_of_view(app_state, now))
    return not any(option is not None and option.propagation in _OPT_OUT for option in options)
