"""What Flask knows of the current request: its view, by what label that goes, and the status of what it returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from http import HTTPMethod
from typing import Any

from flask import Request, Response, request
from werkzeug.exceptions import HTTPException

from ._callsite import CallSite, defined_at, is_of_application
from ._state import AppState

_METHODS = frozenset(HTTPMethod)
_requests: ContextVar[Any] = request.__wrapped__  # type: ignore[attr-defined]


def find_request() -> Request | None:
    """The current request, None outside of one."""
    context = _requests.get(None)
    try:
        return None if context is None else context.request
    except RuntimeError:  # of a Flask whose app contexts serve requests as well
        return None


def view_label(app_state: AppState, function: Callable[..., Any], now: Request | None) -> str | None:
    """``POST /accounts/<id>`` if ``function`` is the view of the request, part of it, or its dispatch; else None."""
    if now is None:
        return None
    if now.url_rule is None:
        return f"{_shown_method(now)} without a view" if function in app_state.dispatches else None
    labels = app_state.view_labels.get(function)
    if labels is None:
        labels = app_state.view_labels[function] = {}
    method = _shown_method(now)
    key = (now.url_rule.endpoint, now.url_rule.rule, method)
    if key not in labels:
        parts = (*app_state.dispatches, *parts_of_view(app_state, now))
        innermost = inspect.unwrap(function)  # as a class may have decorated its own method, when that was called
        innermost = getattr(innermost, "__func__", innermost)
        is_part = any(part is function or part is innermost for part in parts)
        labels[key] = f"{method} {now.url_rule.rule}" if is_part else None
    return labels[key]


def _shown_method(now: Request) -> str:
    """The request's method, ``?`` for one that only its client knows: clients are not to fill the board with labels."""
    known = now.url_rule.methods if now.url_rule is not None else None
    return now.method if now.method in _METHODS or now.method in (known or ()) else "?"


def parts_of_view(app_state: AppState, now: Request) -> Iterator[Any]:
    """A request's view function, what it decorates, and its class's methods."""
    if now.url_rule is not None:
        yield from _parts(app_state.app.view_functions.get(now.url_rule.endpoint), now.method)


def site_of_view(app_state: AppState, now: Request | None) -> CallSite | None:
    """Where the application has written the view of a request: Flask writes those of classes. None without a view."""
    sites = map(defined_at, parts_of_view(app_state, now) if now is not None else ())
    return next((site for site in sites if site is not None and is_of_application(site)), None)


def _parts(view: Any, method: str) -> Iterator[Any]:
    while view is not None:
        yield view
        view_class = getattr(view, "view_class", None)
        if view_class is not None:
            names = [method.lower(), "get"] if method == "HEAD" else [method.lower()]
            for name in (*names, "dispatch_request"):
                yield from _parts(getattr(view_class, name, None), method)
        view = _inside(view)


def _inside(view: Any) -> Any:
    """What a part of a view calls: a partial's function, what a decorator was given, an object's ``__call__``."""
    if isinstance(view, partial):
        return view.func
    wrapped = getattr(view, "__wrapped__", None)
    return type(view).__call__ if wrapped is None and not hasattr(view, "__qualname__") else wrapped


def status_of_response(value: object) -> int:
    """The HTTP status of what a view returned, before Flask makes a response of it."""
    if isinstance(value, tuple):
        status = value[1] if len(value) > 1 else None
        if isinstance(status, int):
            return int(status)  # as nearly always, and a response takes long to make
        if isinstance(status, str):
            return Response(status=status).status_code
        value = value[0] if value else None
    if isinstance(value, HTTPException):
        value = value.get_response()
    return int(getattr(value, "status_code", 200))
