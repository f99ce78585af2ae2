"""Fills a timeline while its request is served, for an app in which somebody wants to see it.

Whether anybody does is decided at the first request, when ``app.debug`` is known. If not, Flask's methods are put back
as they were; if so, the dialects of the app's engines are watched, for they alone know when something was sent and
when it was answered, and the pools, the units and the templates are listened to. The timeline lies with its request:
whatever works for that, in whichever thread, finds it there.

A connection whose statements ride counts its round trips itself: what a call took is the difference, and what passed
SQLAlchemy by is seen between two calls. Of others the round trips are told by what is known of their drivers, and what
passes SQLAlchemy by is not seen: the fetches of a server-side cursor, what ``UOW_TWO_PHASE`` adds, and the position
that ``UOW_READ_YOUR_WRITES`` asks for after COMMIT.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from flask import Flask, Response, before_render_template, template_rendered
from sqlalchemy import event

from . import signals
from ._commit import COMMIT
from ._drivers import LIBPQ_DRIVERS, TransactionStatus, sqlstate, status_probe
from ._state import STATE_KEY, AppState, link_of, state_of
from ._statements import Kind, kind_of
from ._timeline import Breach, Lane, Rendering, Sent, Span, Timeline, UnitSpan, clock
from ._views import find_request
from .exceptions import RuleViolationError, RuleWarning, UnitOfWorkError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

    from ._units import Unit

OBSERVERS_KEY = "uow_observers"
"""Where ``app.extensions`` has those who may want the timelines of an app."""

TIMELINE_KEY = "flask_uow.timeline"
"""Where a request's WSGI environment has its timeline."""

_WATCHED = "_uow_watched"
"""What a dialect has that is watched for timelines."""

PAST = "past SQLAlchemy"
"""What is said of statements that nobody here has seen."""

_OF_SAVEPOINTS = ("SAVEPOINT ", "RELEASE ", "ROLLBACK TO ")
_IN_TRANSACTION = (TransactionStatus.ACTIVE, TransactionStatus.IN_TRANSACTION, TransactionStatus.IN_ERROR)


class Observer(Protocol):
    """Who wants to see timelines."""

    def is_wanted(self, app: Flask) -> bool:
        """Whether it does; asked once, at the app's first request."""

    def finish(self, timeline: Timeline, response: Response) -> None:
        """Look at the timeline of a request whose response is ready."""


def find_timeline() -> Timeline | None:
    """The timeline of the current request; None where there is none, or its response is ready."""
    request = find_request()
    timeline: Timeline | None = request.environ.get(TIMELINE_KEY) if request is not None else None
    return None if timeline is None or timeline.is_over else timeline


def record_requests(app: Flask, app_state: AppState) -> None:
    """Record the requests of an app, if it turns out that an observer wants them."""
    recorder = Recorder(app, app_state)
    vars(app).update(full_dispatch_request=recorder.full_dispatch_request, handle_exception=recorder.handle_exception)


class Recorder:
    """What lies around all of an app's dispatch, its whole units and its error handlers."""

    def __init__(self, app: Flask, app_state: AppState) -> None:
        self._app = app
        self._app_state = app_state
        self._dispatch, self._handle = app.full_dispatch_request, app.handle_exception
        self._before = {name: vars(app).get(name) for name in ("full_dispatch_request", "handle_exception")}
        self._observers: list[Observer] | None = None
        self._deciding = threading.Lock()

    def full_dispatch_request(self, *args: Any) -> Response:
        """Flask's, with a timeline; its arguments are passed on, whichever its version gives it."""
        if self._observers is None:
            self._decide()
        request = find_request()
        if not self._observers or request is None:
            return self._dispatch(*args)
        request.environ[TIMELINE_KEY] = Timeline(f"{request.method} {request.path}")
        return self._finish(self._dispatch(*args))

    def handle_exception(self, *args: Any) -> Response:
        """Flask's; the timeline goes on."""
        response = self._handle(*args)
        return self._finish(response) if self._observers else response

    def _decide(self) -> None:
        with self._deciding:
            if self._observers is not None:
                return
            every: list[Observer] = self._app.extensions.get(OBSERVERS_KEY, [])
            observers = [observer for observer in every if observer.is_wanted(self._app)]
            if observers:
                _listen(self._app, self._app_state)
            else:
                self._step_aside()
            self._observers = observers

    def _step_aside(self) -> None:
        attributes = vars(self._app)
        for name, before in self._before.items():
            if attributes.get(name) == getattr(self, name):  # else somebody has wrapped it, and it stays
                attributes.pop(name)
                attributes.update({name: before} if before is not None else {})

    def _finish(self, response: Response) -> Response:
        timeline = find_timeline()
        if timeline is None:
            return response
        for lane in timeline.lanes:
            _note_rest(lane)
        timeline.close()
        for observer in self._observers or ():
            try:
                observer.finish(timeline, response)
            except Exception:  # the response stands
                self._app.logger.exception("A timeline could not be shown.")
        return response


# ---- what is listened to


def _listen(app: Flask, app_state: AppState) -> None:
    for bind, engine in app_state.engines.items():
        watch(engine, bind)
    if not app_state.engines:
        from sqlalchemy import orm

        # The engines of another library are met when a session uses them.
        if not event.contains(orm.Session, "after_begin", _meet_engine):
            event.listen(orm.Session, "after_begin", _meet_engine)
    signals.unit_began.connect(_unit_began, app)
    signals.unit_committed.connect(_unit_committed, app)
    signals.unit_rolled_back.connect(_unit_rolled_back, app)
    signals.rule_violated.connect(_rule_violated, app)
    before_render_template.connect(_rendering, app)
    template_rendered.connect(_rendered, app)


def _meet_engine(session: Session, transaction: SessionTransaction, connection: sa.Connection) -> None:
    timeline = find_timeline()
    state = state_of(session)
    if timeline is None or (state is not None and state.app.extensions[STATE_KEY].engines):
        return
    engine = connection.engine
    bind = engine.url.database or engine.name
    watch(engine, bind)
    timeline.lane(connection.connection.dbapi_connection, bind).hold(clock())


def _unit_began(sender: Any, unit: Unit) -> None:
    timeline = find_timeline()
    if timeline is not None:
        span = UnitSpan(unit.label, unit.depth, unit.attempt, unit.read_only, clock(), unit=unit)
        timeline.units.append(span)


def _unit_committed(sender: Any, unit: Unit) -> None:
    _unit_ended(unit, "committed")


def _unit_rolled_back(sender: Any, unit: Unit, exception: BaseException | None) -> None:
    _unit_ended(unit, "rolled back")


def _unit_ended(unit: Unit, outcome: str) -> None:
    timeline = find_timeline()
    for span in reversed(timeline.units if timeline is not None else []):
        if span.unit is unit:
            span.end, span.outcome, span.unit = clock(), outcome, None
            return


def _rule_violated(sender: Any, code: str, violation: RuleViolationError | RuleWarning) -> None:
    timeline = find_timeline()
    if timeline is not None:
        timeline.breaches.append(Breach(code, clock(), violation.what, violation.where, violation.fix))


def _rendering(sender: Any, template: Any, context: Any) -> None:
    timeline = find_timeline()
    if timeline is not None:
        timeline.renderings.append(Rendering(template.name or "a text", clock()))


def _rendered(sender: Any, template: Any, context: Any) -> None:
    timeline, name = find_timeline(), template.name or "a text"
    for rendering in reversed(timeline.renderings if timeline is not None else []):
        if rendering.template == name and rendering.end == float("inf"):
            rendering.end = clock()
            return


# ---- what engines do


def watch(engine: sa.Engine, bind: str) -> None:
    """Let an engine's dialect and pool tell the timeline of the current request; once per dialect."""
    dialect = engine.dialect
    if hasattr(dialect, _WATCHED):
        return
    setattr(dialect, _WATCHED, True)
    watched = _Watched(dialect, bind)
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, watched.execute(getattr(dialect, name), is_many=name == "do_executemany"))
    if hasattr(dialect, COMMIT):  # what the guard sends in the end
        setattr(dialect, COMMIT, watched.end(getattr(dialect, COMMIT), Sent.COMMIT))
    for name, kind in (("do_commit", Sent.COMMIT), ("do_rollback", Sent.ROLLBACK)):
        setattr(dialect, name, watched.end(getattr(dialect, name), kind))
    setattr(dialect, "do_begin", watched.begin(dialect.do_begin))  # noqa: B010  # mypy knows it as a method
    setattr(dialect, "do_ping", watched.ping(dialect.do_ping))  # noqa: B010
    event.listen(engine, "before_execute", watched.about_to_execute)
    event.listen(engine, "do_connect", watched.connecting)
    event.listen(engine, "connect", watched.connected)
    event.listen(engine, "checkout", watched.checked_out)
    event.listen(engine, "checkin", watched.given_back)
    event.listen(engine, "invalidate", watched.given_back)


class _Watched:
    """One engine's side of the timelines.

    :param dialect: the engine's own.
    :param bind: the engine's name.
    """

    def __init__(self, dialect: sa.Dialect, bind: str) -> None:
        self._dialect: Any = dialect
        self._bind = bind
        self.is_libpq = dialect.driver in LIBPQ_DRIVERS
        self._probe = status_probe(dialect.driver)
        self._connecting = threading.local()

    # ---- in the place of the dialect's methods

    def execute(self, execute: Callable[..., None], *, is_many: bool) -> Callable[..., None]:
        def do_execute(cursor: Any, statement: str, *rest: Any, **options: Any) -> None:
            context: Any = options.get("context") or rest[-1]
            connection = None if context is None else context.root_connection
            timeline = find_timeline()
            if timeline is None or connection is None or connection.closed:
                execute(cursor, statement, *rest, **options)
                return
            kind = Sent.SAVEPOINT if statement.startswith(_OF_SAVEPOINTS) else Sent.STATEMENT
            call = _Call(self, timeline, connection.connection, kind, statement)
            call.says_begin = kind_of(statement, context) is Kind.BEGIN
            if is_many:
                call.trips, call.counts_prepared = self._trips_of_many(rest[0]), False
            call.run(lambda: execute(cursor, statement, *rest, **options))

        return do_execute

    def end(self, end: Callable[[Any], None], kind: Sent) -> Callable[[Any], None]:
        def do_end(connection: Any) -> None:
            timeline = find_timeline()
            if timeline is None or connection.dbapi_connection is None:
                end(connection)
                return
            _Call(self, timeline, connection, kind, kind.upper()).run(lambda: end(connection))

        return do_end

    def begin(self, begin: Callable[[Any], None]) -> Callable[[Any], None]:
        def do_begin(connection: Any) -> None:
            timeline = find_timeline()
            if timeline is not None and connection.dbapi_connection is not None:
                timeline.lane(connection.dbapi_connection, self._bind).begun_at = clock()
            begin(connection)

        return do_begin

    def ping(self, ping: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def do_ping(dbapi_connection: Any) -> bool:
            timeline = find_timeline()
            if timeline is None:
                return ping(dbapi_connection)
            lane, start = timeline.lane(dbapi_connection, self._bind), clock()
            lane.count_trips()
            try:
                return ping(dbapi_connection)
            finally:
                trips = lane.count_trips()
                lane.spans.append(Span(Sent.PING, start, clock(), "Is it alive?", trips=1 if trips is None else trips))

        return do_ping

    # ---- what connections and the pool tell

    def about_to_execute(self, connection: sa.Connection, *about: Any) -> None:
        """Note what was sent before SQLAlchemy takes its time to compile the statement."""
        timeline = find_timeline()
        if timeline is not None and not connection.closed and not connection.invalidated:
            _Call(self, timeline, connection.connection, Sent.STATEMENT, "").note_unseen()

    def connecting(self, dialect: Any, record: Any, cargs: Any, cparams: Any) -> None:
        self._connecting.since = clock()

    def connected(self, dbapi_connection: Any, record: Any) -> None:
        timeline, since = find_timeline(), vars(self._connecting).pop("since", None)
        if timeline is not None and since is not None:
            lane = timeline.lane(dbapi_connection, self._bind)
            lane.spans.append(Span(Sent.CONNECT, since, clock(), "connect", trips=0))

    def checked_out(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        timeline = find_timeline()
        if timeline is not None:
            lane = timeline.lane(dbapi_connection, self._bind)
            if lane.seen_trips is None:  # somebody else may have had it since
                lane.count_trips()
            lane.hold(clock())

    def given_back(self, dbapi_connection: Any, record: Any, *exception: Any) -> None:
        timeline = find_timeline()
        if timeline is not None and dbapi_connection is not None:
            lane = timeline.lane(dbapi_connection, self._bind)
            _note_rest(lane)
            lane.give_back(clock())

    # ---- what the driver knows

    def is_in_transaction(self, lane: Lane) -> bool | None:
        """Whether a lane's connection is in a transaction; None where the driver cannot tell."""
        status = self._probe(lane.dbapi_connection)
        return None if status is TransactionStatus.UNKNOWN else status in _IN_TRANSACTION

    def prepared(self, dbapi_connection: Any) -> int:
        """How many statements psycopg 3 has prepared; each takes a request of its own."""
        return len(getattr(getattr(dbapi_connection, "_prepared", None), "_names", ()))

    def was_sent(self, error: BaseException | None) -> bool:
        """Whether a server was asked; of some statements libpq's drivers say themselves that they are wrong."""
        if error is None or not self.is_libpq:
            return True
        return sqlstate(error) is not None or isinstance(error, self._dialect.loaded_dbapi.OperationalError)

    def _trips_of_many(self, parameters: Any) -> int:
        if self._dialect.driver != "psycopg2":
            return 1
        if "BATCH" in str(getattr(self._dialect, "executemany_mode", "")).upper():
            return -(-len(parameters) // (self._dialect.executemany_batch_page_size or 100))
        return len(parameters)


def _note_rest(lane: Lane) -> None:
    """Note what was sent past SQLAlchemy since its last statement, by who counts."""
    trips, now = lane.count_trips(), clock()
    if trips:
        lane.spans.append(Span(Sent.STATEMENT, now, now, PAST, trips=trips, is_in_transaction=lane.is_in_transaction))


class _Call:
    """A call of a dialect's method that sends something.

    :param connection: the pool's, or what SQLAlchemy has in its place.
    :ivar trips: how many round trips it takes, but for what the driver sends ahead of it, where nobody counts.
    :ivar counts_prepared: whether a statement that psycopg 3 prepares takes one more.
    :ivar says_begin: whether the statement itself is a BEGIN.
    """

    def __init__(self, watched: _Watched, timeline: Timeline, connection: Any, kind: Sent, text: str) -> None:
        self._watched = watched
        self._lane = timeline.lane(connection.dbapi_connection, watched._bind)
        self._link = link_of(connection)
        self._kind = kind
        self._text = text
        unit = self._link.state.unit if self._link is not None else None
        self._unit = unit.label if unit is not None else None
        self.trips = 1
        self.counts_prepared = True
        self.says_begin = False

    def run(self, function: Callable[[], None]) -> None:
        """Make the call, and note it."""
        lane, dbapi_connection = self._lane, self._lane.dbapi_connection
        self.note_unseen()
        seen, was_in = len(lane.spans), lane.is_in_transaction
        prepared, start, error = self._watched.prepared(dbapi_connection), clock(), None
        try:
            function()
        except BaseException as raised:
            error = raised
            raise
        finally:
            inner = lane.spans[seen:]  # what had to be sent before: a savepoint, say
            if inner:
                start, was_in = max(start, inner[-1].end), inner[-1].is_in_transaction
            elif self.counts_prepared:
                self.trips += max(0, self._watched.prepared(dbapi_connection) - prepared)
            self._note(start, was_in=was_in, error=error)

    def note_unseen(self) -> None:
        """Note what was sent past SQLAlchemy before: BEGIN on SQLite, a deadline on PostgreSQL, what the app knows."""
        lane, now = self._lane, clock()
        is_in = self._watched.is_in_transaction(lane)
        was_begun = bool(is_in) and not lane.is_in_transaction
        since = now if lane.begun_at is None else lane.begun_at
        counted = lane.count_trips()
        if counted is None:
            self._note_uncounted(since, now, is_in=bool(is_in), was_begun=was_begun)
        elif counted:
            details = {"trips": counted, "begins": was_begun, "is_in_transaction": bool(is_in)}
            self._add(Sent.STATEMENT, since, now, PAST, **details)
        lane.begun_at = None
        lane.is_in_transaction = lane.is_in_transaction if is_in is None else is_in

    def _note_uncounted(self, since: float, now: float, *, is_in: bool, was_begun: bool) -> None:
        told = self._trips_of_limit() if is_in else 0
        if was_begun and not self._watched.is_libpq:
            self._add(Sent.BEGIN, since, now, "BEGIN", is_in_transaction=True)
        elif was_begun or told:
            kind, text = (Sent.DEADLINE, "the unit's deadline") if told else (Sent.STATEMENT, PAST)
            trips = (told or 1) + was_begun
            self._add(kind, since, now, text, trips=trips, begins=was_begun, is_in_transaction=is_in)

    def _trips_of_limit(self) -> int:
        """How many statements it took to tell the server of a unit's deadline, since this was asked last."""
        before, now = self._lane.limit_s, None if self._link is None else self._link.limit_s
        self._lane.limit_s = now
        if before == now:
            return 0
        is_lifted = before is not None and (now is None or now > before)
        return 2 * is_lifted + (now is not None)

    def _note(self, start: float, *, was_in: bool, error: BaseException | None) -> None:
        lane = self._lane
        is_end = self._kind in (Sent.COMMIT, Sent.ROLLBACK)
        is_in = self._watched.is_in_transaction(lane)
        lane.is_in_transaction = is_in = not is_end if is_in is None else is_in
        counted = lane.count_trips()
        if is_end and not was_in and not counted:
            return  # there was nothing to end, or it was noted within
        if isinstance(error, UnitOfWorkError):
            if is_end and not is_in:  # refused, and rolled back in its place
                trips = 1 if counted is None else counted
                self._add(Sent.ROLLBACK, start, clock(), "ROLLBACK", trips=trips, error=type(error).__name__)
            return
        begins = is_in and not was_in and not self.says_begin  # the driver has sent BEGIN ahead of it
        if counted is None:
            counted = begins + (self.trips + self._trips_of_limit() if self._watched.was_sent(error) else 0)
        if not is_in:
            lane.limit_s = None  # it went with the transaction
        self._add(
            self._kind,
            start,
            clock(),
            self._text,
            trips=counted,
            begins=begins,
            is_in_transaction=is_in,
            error=None if error is None else type(error).__name__,
        )

    def _add(self, kind: Sent, start: float, end: float, text: str, **details: Any) -> None:
        self._lane.spans.append(Span(kind, start, end, text, self._unit, **details))
