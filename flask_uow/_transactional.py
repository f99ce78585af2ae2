"""``transactional``: the decorator and context manager, and ``current_unit``.

It resolves the current app when it is called, opens the unit that the options ask for, and ends it as the body ended.
What a unit is and what its ending means is said in ``_units``; here is what surrounds one: labels, the status veto,
attempts, and sessions of one's own for independent units.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast, overload

from werkzeug.local import LocalProxy

from . import signals
from ._board import RETRIED
from ._body import Body
from ._callsite import CallSite, application_site, defined_at
from ._drivers import TransactionStatus
from ._hiding import shown_value
from ._notices import has_written_unseen
from ._options import Propagation, Relation, UnitOptions, is_coroutine_function, is_vetoed, relation
from ._retry import delay_s, has_lost_connection, is_retryable
from ._scopes import current_context, find_context
from ._sessions import Sessions, report_lost_writes
from ._state import STATE_KEY, AppState, SessionState, bind_of, guarded_state, state_of, state_of_app
from ._units import LET_IT_WRITE_FIRST, SQLITE_HAS_ONE_WRITER, Unit, connections_held, is_used_up
from ._views import find_request, parts_of_view, status_of_response, view_label
from .exceptions import NoActiveUnitError, UnitOfWorkError, UnitOptionsError

if TYPE_CHECKING:
    from flask import Request
    from sqlalchemy.orm import Session

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """The keyword arguments of ``transactional``; see :class:`~flask_uow._options.UnitOptions`."""

    propagation: (
        Propagation | Literal["nested", "required", "requires_new", "mandatory", "supports", "not_supported", "never"]
    )
    read_only: bool
    isolation: str | None
    deferrable: bool
    timeout: float | None
    retries: int | None
    durable: bool
    rollback_for: type[BaseException] | tuple[type[BaseException], ...]
    no_rollback_for: type[BaseException] | tuple[type[BaseException], ...]
    rollback_on_status: int | Callable[[int], bool] | None
    on_error: Callable[[Exception], Any] | None
    confirm_commit: bool
    label: str | None


_BEGIN = Relation.BEGIN
_ENTER_CONTEXT = ExitStack.enter_context.__code__

OPTIONS = "_uow_options"
"""Where a decorated function has its options."""


SITE = "_uow_site"
"""Where a decorated function has the line at which it is defined."""


class Transactional:
    """What ``transactional(...)`` returns: a decorator, and a context manager that gives the :class:`Unit`.

    :param options: the keyword arguments, checked here.
    :param sessions: those of the extension to use; the current app's if None.
    """

    def __init__(self, options: dict[str, Any], sessions: Sessions | None = None) -> None:
        try:
            self._options = UnitOptions.checked(options)
        except UnitOptionsError as error:
            error.locate(application_site())
            raise
        self._bound_to = sessions
        self._entered: dict[tuple[str, int], list[Boundary]] = {}

    def __call__(self, function: F) -> F:
        """Make each call of ``function`` one unit of work.

        :raises TypeError: for a generator function, whose body would run after the unit has ended.
        """
        if isinstance(function, (staticmethod, classmethod)):
            return cast(F, type(function)(self(function.__func__)))
        body = _body_of(function)
        _check_function(body)
        decorate = self._decorate_async if is_coroutine_function(body) else self._decorate
        decorated = decorate(function)
        if body is not function:
            decorated.__name__, decorated.__qualname__ = body.__name__, body.__qualname__
        setattr(decorated, OPTIONS, self._options)
        setattr(decorated, SITE, defined_at(body))
        return cast(F, decorated)

    def _decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        options, sessions = self._options, self._bound_to

        @wraps(function)
        def unit_of_work(*args: Any, **kwargs: Any) -> Any:
            boundary = Boundary(options, sessions, unit_of_work)
            while True:
                value = None
                boundary.enter()
                try:
                    try:
                        value = function(*args, **kwargs)
                        if boundary.is_judge:
                            boundary.look_at(value)
                    except BaseException as error:  # noqa: BLE001  # raised again by answer()
                        boundary.leave(error)
                    else:
                        boundary.leave(None)
                    if boundary.wait_s is not None:
                        time.sleep(boundary.wait_s)
                        continue
                except BaseException as interrupt:
                    boundary.leave_late(interrupt)
                    raise
                return value if boundary.error is None else boundary.answer()

        return unit_of_work

    def _decorate_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def unit_of_work(*args: Any, **kwargs: Any) -> Any:
            boundary = Boundary(self._options, self._bound_to, unit_of_work)
            while True:
                value = None
                boundary.enter()
                try:
                    try:
                        value = await function(*args, **kwargs)
                        if boundary.is_judge:
                            boundary.look_at(value)
                    except BaseException as error:  # noqa: BLE001  # raised again by answer()
                        boundary.leave(error)
                    else:
                        boundary.leave(None)
                    if boundary.wait_s is not None:
                        await asyncio.sleep(boundary.wait_s)
                        continue
                except BaseException as interrupt:
                    boundary.leave_late(interrupt)
                    raise
                return value if boundary.error is None else boundary.answer()

        return unit_of_work

    def __enter__(self) -> Unit:
        """Begin a unit.

        :return: the unit; ``current_unit``, which is false, where the propagation makes none.
        :raises UnitOptionsError: for an option that needs a function to repeat, or a value to look at.
        """
        frame = sys._getframe(1)
        site = CallSite(frame.f_code, frame.f_lineno)
        if frame.f_code is _ENTER_CONTEXT:
            site = application_site() or site
        self._check_block(site)
        boundary = Boundary(self._options, self._bound_to, site)
        boundary.enter()
        try:
            self._entered.setdefault(_owner_of_block(frame), []).append(boundary)
        except BaseException as interrupt:
            boundary.leave_late(interrupt)
            raise
        return boundary.unit or current_unit

    def __exit__(
        self, exc_type: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        boundary = self._leave_last(sys._getframe(1))
        try:
            boundary.leave(exception)
        except BaseException as interrupt:
            boundary.leave_late(interrupt)
            raise
        if boundary.error is not exception:
            boundary.answer()

    def _check_block(self, site: CallSite) -> None:
        for name in ("retries", "on_error", "rollback_on_status"):
            if getattr(self._options, name):
                raise UnitOptionsError(
                    f"{name} was given to a with block, which cannot be repeated and returns nothing.",
                    str(site),
                    f"Drop {name}, or put the block into a function and decorate that.",
                )

    def _leave_last(self, frame: FrameType) -> Boundary:
        """The block that was entered last by this generator or thread: one object may serve several, at once."""
        owner = _owner_of_block(frame)
        if owner not in self._entered:
            owner = list(self._entered)[-1]  # entered elsewhere, and handed over in an ExitStack
        blocks = self._entered[owner]
        boundary = blocks.pop()
        if not blocks:
            del self._entered[owner]
        return boundary


def _owner_of_block(frame: FrameType) -> tuple[str, int]:
    """Who is inside a block: a generator or coroutine, which others may interleave with, or else the thread."""
    if frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return "frame", id(frame)  # which lives as long as the block
    return "thread", threading.get_ident()


class Boundary:
    """One call of a decorated function, or one block: what lies around its unit, over all attempts.

    :param options: of the unit.
    :param sessions: those of the extension to use; the current app's if None.
    :param place: the decorated function, or the line of a block.
    :ivar unit: the unit inside, None where it runs without.
    :ivar is_judge: whether a returned status may veto the commit.
    :ivar error: what leaves, after :meth:`leave`.
    :ivar wait_s: seconds to wait before another attempt, None if there is none.
    """

    unit: Unit | None = None
    error: BaseException | None = None
    wait_s: float | None = None
    _body: Body | None = None
    _is_past_mending = False
    _known: list[object] | None = None

    def __init__(self, options: UnitOptions, sessions: Sessions | None, place: Callable[..., Any] | CallSite) -> None:
        self._options = options
        self._bound_to = sessions
        self._place = place
        self._attempt = 0
        self._inner: Session | None = None
        self._deadline = None if options.timeout is None else time.monotonic() + options.timeout

    def enter(self) -> None:
        """Begin an attempt."""
        if self._attempt:
            self._forget_attempt()
        self._attempt += 1
        context = self._context = current_context("@transactional")
        app_state = self._app_state = state_of_app(context.app, self._bound_to)
        options = self._options
        self.is_judge = options.rollback_on_status is not None or app_state.settings.rollback_on_status is not None
        session = self._outer = app_state.sessions.current(context)
        state: SessionState = session._uow  # type: ignore[attr-defined]
        try:
            if state.unit is None and options.outside is _BEGIN:
                self._begin(_BEGIN, session, state, None)
            else:
                self._enter_around(session, state)
        except BaseException as error:
            self._put_back()
            if isinstance(error, UnitOfWorkError):
                error.locate(application_site())
            raise

    def _put_back(self) -> None:
        """Make the session around the current one again: an interrupt may strike when another has taken its place."""
        session = self._sessions.peek(self._context)
        if session is not None and session is not self._outer:
            self._sessions.restore(self._context, self._outer, session)
        self._inner = None

    def _forget_attempt(self) -> None:
        self.unit = self.error = self.wait_s = self._inner = None
        self._is_past_mending = False

    def _enter_around(self, session: Session, state: SessionState) -> None:
        """Begin an attempt where another unit is active, or as the propagation says where none is."""
        active = state.unit
        if active is not None and active.ended_around is not None:
            session = self._outer = self._without_strays(session)
            state = guarded_state(session)
            active = state.unit
        if active is not None and not active.is_seen_by_task and asyncio._get_running_loop() is not None:
            raise state.refusal(
                "UOW203", what=f"a task began a unit beside unit of work {active.label!r}, which is another task's"
            )
        how = relation(self._options, active.label if active else None)
        if how is Relation.INDEPENDENT or how is Relation.SUSPEND:
            _check_writer(state)
            _check_pool(session, state, may_read_elsewhere=how is Relation.INDEPENDENT and self._options.read_only)
            session = self._inner = self._sessions.replace(self._context, session)
            state = guarded_state(session)
            active = None
        if how is not Relation.WITHOUT and how is not Relation.SUSPEND:
            self._begin(how, session, state, active)

    @property
    def _sessions(self) -> Sessions:
        return self._app_state.sessions

    def _begin(self, how: Relation, session: Session, state: SessionState, around: Unit | None) -> None:
        if state.work is None:
            self._begin_now(how, session, state)
        else:
            state.work.run(self._begin_whole, how, session, state, around)

    def _begin_whole(self, how: Relation, session: Session, state: SessionState, around: Unit | None) -> None:
        """Begin while nobody takes the session back.

        :raises RuleViolationError: UOW202, if that has been done since it was looked at.
        """
        if state.unit is not around:
            raise state.use_after_end()
        self._begin_now(how, session, state)

    def _begin_now(self, how: Relation, session: Session, state: SessionState) -> None:
        place, options, request = self._place, self._options, find_request()
        of_view = None
        if isinstance(place, CallSite):
            label = options.label or place.code.co_qualname
        else:
            of_view = view_label(self._app_state, place, request)
            label = options.label or of_view or place.__qualname__
        unit = Unit(session, state, options, label, place, self._attempt, self._deadline)
        if of_view is not None:
            unit.is_view = True
        unit.request = request
        is_repeatable = True
        if (options.retries or self._app_state.settings.retries) and state.unit is None and self._retries:
            is_repeatable = self._is_repeatable(session, state)
        try:
            if unit.parent is None:
                unit.begin_outermost()
            else:
                unit.begin_inside(unit.parent, how)
        except BaseException as error:
            unit.end(error)
            raise
        if not is_repeatable:
            unit.is_repeatable = False
        self.unit = unit

    def _is_repeatable(self, session: Session, state: SessionState) -> bool:
        """Whether another attempt could follow, as far as what came before the unit goes; prepare for that one."""
        self._forget_lost_attempt(session)
        return not any(map(has_written_unseen, state.links))

    def _forget_lost_attempt(self, session: Session) -> None:
        """Later attempts start with the objects that the first one met, and no others."""
        if self._known is None:
            self._known = list(session.identity_map.values())
            self._body = Body(find_request())
            return
        known = {id(entity) for entity in self._known}  # alive in the list, so that no id is reused
        for entity in list(session.identity_map.values()):
            if id(entity) not in known:
                session.expunge(entity)

    @property
    def _retries(self) -> int:
        retries = self._options.retries
        if retries is None:
            retries = self._app_state.settings.retries
            if retries and self._place in self._app_state.dispatches:
                retries = retries_of_request(self._app_state)
        return 0 if retries and isinstance(self._place, CallSite) else retries

    def look_at(self, value: object) -> None:
        """Let the status veto judge what a function returned."""
        rule = self._options.rollback_on_status
        if rule is None:
            rule = self._app_state.settings.rollback_on_status
            if rule is None or self.unit is None or not self.unit.is_view:
                return
            if self._place in self._app_state.dispatches:
                own = _said_by_view("rollback_on_status", self._app_state, self.unit.request)
                rule = rule if own is None else own
        if self.unit is not None and is_vetoed(rule, status_of_response(value)):
            self.unit.set_rollback_only()

    def leave(self, exception: BaseException | None) -> None:
        """End the attempt; :attr:`error` and :attr:`wait_s` say what comes next."""
        self.error = exception
        unit = self.unit
        if unit is None:
            self._resume()
            return
        try:
            self.error = error = unit.end(exception)
        finally:
            if self._inner is not None:
                self._resume()
        if unit.parent is None and (
            error is not None or unit.hooks is not None or unit.took_s > self._app_state.settings.slow_unit_s
        ):
            self._follow_up(unit, error)

    def leave_late(self, interrupt: BaseException) -> None:
        """Do what a signal's handler has kept :meth:`leave` from; one that ends the wait makes the attempt the last."""
        unit = self.unit
        if unit is not None and unit.is_active:
            self.leave(interrupt)
        elif unit is not None and self.wait_s is not None:
            unit.run_after_hooks()
        if self._inner is not None:
            self._put_back()

    def _follow_up(self, unit: Unit, error: BaseException | None) -> None:
        """Do what comes after an outermost unit: plan another attempt, log it, run its hooks."""
        if error is not None and self._may_retry(error):
            self._plan_retry(unit, error)
        is_slow = unit.took_s > self._app_state.settings.slow_unit_s
        if self.error is not None or is_slow:
            unit.log(self.error, is_slow=is_slow, is_retried=self.wait_s is not None)
        if self.wait_s is None and (self.error is not None or unit.hooks is not None):
            self._finish(unit)

    def _without_strays(self, session: Session) -> Session:
        """The session, or the one around it if a generator holds it open past the outermost unit there."""
        while (unit := guarded_state(session).unit) is not None and (ended := unit.ended_around) is not None:
            if ended.session is session:
                break
            self._sessions.restore(self._context, ended.session, session)
            session = self._sessions.current(self._context)
        return session

    def _resume(self) -> None:
        if self._inner is not None:
            if self.unit is None and self.error is None:
                report_lost_writes(self._sessions.peek(self._context) or self._inner)
            self._sessions.restore(self._context, self._outer, self._inner)
            self._inner = None

    def _may_retry(self, error: BaseException) -> bool:
        unit = self.unit
        return (
            unit is not None
            and not unit.was_committed
            and unit.is_repeatable
            and self._attempt <= self._retries
            and (is_retryable(error) or unit.is_known_aborted or (unit.was_on_reader and has_lost_connection(error)))
        )

    def _plan_retry(self, unit: Unit, error: BaseException) -> None:
        """Set :attr:`wait_s`, unless the wait would outlast the timeout, or the body cannot be read again."""
        wait_s = delay_s(self._attempt)
        if self._deadline is not None and time.monotonic() + wait_s >= self._deadline:
            return
        if self._body is not None and not self._body.rewind():
            self.error = UnitOptionsError(
                f"Unit of work {unit.label!r} cannot be tried again: it has read request.stream, or closed an uploaded "
                "file, and cannot read it twice.",
                unit.where,
                "Read the body by request.get_data(), get_json() or form, which keep it, or drop retries.",
            )
            self.error.__cause__ = error
            return
        self.wait_s = wait_s
        if self._app_state.board is not None:
            self._app_state.board.count(RETRIED)
        signals.tell(signals.unit_retried, self._app_state.app, unit=unit, exception=error, delay_s=wait_s)

    def _finish(self, unit: Unit) -> None:
        if self.error is not None and self._attempt > 1:
            self.error.add_note(f"flask_uow: unit of work {unit.label!r} was tried {self._attempt} times.")
        errors = unit.run_after_hooks()
        if errors and self.error is None and self._app_state.app.testing:
            self.error = errors[0] if len(errors) == 1 else ExceptionGroup(f"hooks of {unit.label!r}", errors)
            self._is_past_mending = True

    def answer(self) -> Any:
        """What the caller gets for :attr:`error`: the value of ``on_error``, or the error itself, raised."""
        error, self.error = self.error, None
        assert error is not None
        is_kept = self._is_past_mending or (self.unit is not None and self.unit.was_committed)
        try:
            if self._options.on_error is None or is_kept or not isinstance(error, Exception):
                raise error
            try:
                raise error  # so that it can be logged, raised again, and is the context of what follows from it
            except Exception:  # noqa: BLE001
                return self._options.on_error(error)
        finally:
            del error  # its traceback holds this frame


@overload
def transactional(function: F, /) -> F: ...
@overload
def transactional(**options: Unpack[Options]) -> Transactional: ...
def transactional(function: Any = None, /, **options: Any) -> Any:
    """Make a function, or a ``with`` block, one atomic unit of work of the current app.

    .. code-block:: python

        @app.post("/transfers")
        @transactional
        def transfer():
            ...

        with transactional(propagation="requires_new") as unit:
            ...

    The options are those of :class:`~flask_uow._options.UnitOptions`, all keyword-only.

    :raises TypeError: when it decorates a generator function.
    :raises UnitOptionsError: if an option is not usable.
    """
    return decorate(function, options)


def decorate(function: Any, options: dict[str, Any], sessions: Sessions | None = None) -> Any:
    """``transactional`` with and without parentheses, for the current app's extension or a given one."""
    unit = Transactional(options, sessions)
    return unit if function is None else unit(function)


# ---- the active unit


def _active_unit() -> Unit:
    context = find_context()
    app_state: AppState | None = context.app.extensions.get(STATE_KEY) if context else None
    session = app_state.sessions.peek(context) if app_state and context else None
    state = state_of(session) if session is not None else None
    if state is None or state.unit is None:
        raise NoActiveUnitError(
            "No unit of work is active.", fix="Put @transactional on the view, command or function that calls this."
        )
    return state.unit


current_unit: Unit = LocalProxy(_active_unit)  # type: ignore[assignment]


def _check_writer(outer: SessionState) -> None:
    """SQLite has one writer, and the outer unit may be it.

    :raises UnitOptionsError: at once, instead of a wait that only its end could end.
    """
    begun = TransactionStatus.IN_TRANSACTION  # unlike a read that came before the outer unit, or what it has committed
    if any(link.connection.dialect.name == "sqlite" and link.status() is begun for link in outer.links):
        raise UnitOptionsError(SQLITE_HAS_ONE_WRITER, fix=LET_IT_WRITE_FIRST)


def _check_pool(session: Session, state: SessionState, *, may_read_elsewhere: bool) -> None:
    """A pool may have no connection for another unit before the units around it give theirs back.

    :param may_read_elsewhere: whether a reader's pool will do.
    :raises UnitOptionsError: at once, instead of a wait that only their end could end.
    """
    readers = state.readers
    if readers is not None and may_read_elsewhere and not all(is_used_up(engine.pool) for engine in readers.engines):
        return
    bind = bind_of(session) if readers is None else readers.primary
    if bind is None:
        return  # nobody knows which pool before a statement says it
    pool = bind.engine.pool
    if is_used_up(pool):
        raise UnitOptionsError(
            f"The units of work around this one hold all {connections_held(pool)} connections that the pool may have, "
            "so that one on a connection of its own would wait for itself.",
            fix="Nest fewer of them, or raise pool_size or max_overflow in SQLALCHEMY_ENGINE_OPTIONS.",
        )


def retries_of_request(app_state: AppState) -> int:
    """How often the unit of a whole request may be tried again: as configured, or as the view says itself."""
    configured = app_state.settings.retries
    own = _said_by_view("retries", app_state, find_request()) if configured else None
    return configured if own is None else int(own)


def _said_by_view(option: str, app_state: AppState, request: Request | None) -> Any:
    """What a request's view says itself, in place of the configuration; None if nothing."""
    parts = parts_of_view(app_state, request) if request is not None else ()
    said = (getattr(getattr(part, OPTIONS, None), option, None) for part in parts)
    return next((value for value in said if value is not None), None)


def _body_of(function: Any) -> Any:
    """What has the name and the lines of what is decorated: a partial's function, an object's ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    has_name = hasattr(function, "__qualname__") or not callable(function)
    return function if has_name else type(function).__call__


def _check_function(function: object) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"@transactional cannot decorate the generator function {function.__qualname__!r}: "
            "its body runs when the generator is read, after the unit has ended. "
            "Decorate the function that reads it, or use `with transactional():` inside."
        )
    if isinstance(function, type) or not callable(function):
        raise TypeError(
            f"@transactional decorates functions and methods, not {shown_value(function)}. Options are keywords: "
            "transactional(read_only=True)."
        )
