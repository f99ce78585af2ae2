"""Scopes: which app context the code runs in, and the sessions of each.

A scope hangs on its context object itself, never on its ``id()``, which is reused; a thread that runs an event loop
works for the thread that pushed the context, and shares its sessions. How sessions are made and taken back is left to
``_sessions``.
"""

from __future__ import annotations

import gc
import threading
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask.ctx import AppContext
from flask.globals import app_ctx

from . import _fork
from ._fronts import in_front_of
from ._rules import violation

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ._checkouts import Taken

    _AppContext = AppContext
else:
    _AppContext = object

contexts: ContextVar[AppContext] = app_ctx.__wrapped__  # type: ignore[attr-defined]


class _Life:
    """Lives as long as a thread."""

    __slots__ = ("__weakref__",)


Token = weakref.ref[_Life]
"""A thread's own mark, which is dead when the thread has ended; its number is reused, this is not."""


class _Thread(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self._life = _Life()
        self.token: Token = weakref.ref(self._life)


thread = _Thread()


class Scope:
    """The sessions of one app context.

    :ivar home: the thread that pushed the context.
    :ivar is_over: whether the context has ended.
    :ivar slots: the sessions of each thread, the current one last; those before it are suspended.
    :ivar adopted: sessions of another library that were seen under this context; None before the first.
    :ivar taken: connections that were taken by hand under this context; None before the first.
    :ivar turn: which reader's turn it is under this context; None before the first.
    :ivar written: what is known of the last write under this context, where no request remembers it.
    """

    is_over = False
    adopted: list[weakref.ref[Session]] | None = None
    taken: list[Taken] | None = None
    turn: int | None = None
    written: float | None = None

    def __init__(self, home: Token) -> None:
        self.home = home
        self.slots: dict[Token, list[Session]] = {}

    def adopt(self, session: Session) -> None:
        """Know a session of another library."""
        self.adopted = [*(self.adopted or ()), weakref.ref(session)]

    def slot(self) -> list[Session]:
        """The calling thread's sessions."""
        key = self.home if _get_running_loop() is not None else thread.token
        slot = self.slots.get(key)
        return self.slots.setdefault(key, []) if slot is None else slot

    def abandon(self) -> object:
        """Hand over what it holds."""
        slots, self.slots = self.slots, {}
        adopted, self.adopted = self.adopted, None
        return slots, adopted


def find_context() -> AppContext | None:
    """The current app context, if there is one."""
    return contexts.get(None)


def current_context(what: str) -> AppContext:
    """The current app context.

    :param what: what needs it, for the message.
    :raises RuleViolationError: UOW201, if there is none.
    """
    context = contexts.get(None)
    if context is None:
        raise violation("UOW201", what=what)
    return context


class NotingContext(_AppContext):
    """Put in front of a context's class: notes the thread that pushes it."""

    _uow_scope: Scope | None = None

    def push(self) -> None:
        scope = self._uow_scope
        if scope is None:
            self._uow_scope = Scope(thread.token)
        elif scope.is_over or not scope.slots:
            scope.home = thread.token
            scope.is_over = False  # a client or a stream pushes a context again
        super().push()


def _noted(make_context: Callable[..., AppContext], *args: Any) -> AppContext:
    """A context as the app makes it, of whatever kind."""
    context = make_context(*args)
    context.__class__ = in_front_of(type(context), NotingContext)
    return context


class Scopes:
    """The scope of every app context that is alive; each hangs on its context, and goes with it."""

    def __init__(self) -> None:
        self.leaked: list[Session] = []
        _fork.abandon_in_children(self)

    def serve(self, app: Flask) -> None:
        """Let each context of ``app`` note which thread pushes it.

        A listener to Flask's ``appcontext_pushed`` would see the same, for five times the price; a class that is put
        in front of an object that exists makes every look at it dearer.
        """
        noting_class = in_front_of(AppContext, NotingContext)
        makers = {"app_context": partial(noting_class, app)}
        if hasattr(AppContext, "from_environ"):  # from Flask 3.2 on, the context of a request is an app context too
            makers["request_context"] = partial(noting_class.from_environ, app)
        for name, make_context in makers.items():
            known = getattr(app, name)
            is_flasks = known == MethodType(getattr(Flask, name), app)
            setattr(app, name, make_context if is_flasks else partial(_noted, known))

    def of(self, context: AppContext) -> Scope:
        """The scope of a context."""
        scope: Scope | None = getattr(context, "_uow_scope", None)
        if scope is None:
            scope = context._uow_scope = Scope(thread.token)  # type: ignore[attr-defined]
        return scope

    def abandon(self) -> object:
        """Hand over a parent process's sessions; they are never to be touched.

        A fork looks for the scopes among all objects, so that no request need enter its own anywhere.
        """
        leaked, self.leaked = self.leaked, []
        return leaked, [scope.abandon() for scope in gc.get_objects() if type(scope) is Scope]
