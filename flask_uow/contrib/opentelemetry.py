"""OpenTelemetry: units of work as spans, and what this process has published as metrics.

A span is made current when its unit begins, and what was current before when it ends, without the API's tokens: a token
must be given back in the context it was taken in and in reverse order, and generators and tasks that interleave units
do neither. What has ended unannounced, a unit whose COMMIT has lost its connection say, is found when the next unit
begins or ends, and when the app context ends.

What is measured stands in ``docs/metrics.rst``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, g, has_app_context
from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.trace import Link, Span, SpanContext, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import Attributes
from werkzeug.local import LocalProxy

from .. import signals
from .._drivers import sqlstate
from .._unit_log import is_client_error
from .._units import Unit
from ..exceptions import ConfigurationError, RuleViolationError, RuleWarning
from ..stats import Boards
from ..stats._boards import read_own
from ._metrics import DISTRIBUTIONS, METRICS, Distribution, Kind, Metric, Reading, buckets

__all__ = ["instrument", "uninstrument"]

_NAME = "flask_uow"
_EXTENSION = "uow_opentelemetry"
_HOLDER = "_uow_unit_spans"
_UNIT_SPAN = context.create_key("flask_uow-unit-span")


def instrument(
    app: Flask, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Make each outermost unit and savepoint of an app a span, and export what this process has counted.

    .. code-block:: python

        FlaskInstrumentor().instrument_app(app)
        SQLAlchemyInstrumentor().instrument(engines=list(uow.engines.values()))  # in an app context
        flask_uow.contrib.opentelemetry.instrument(app)

    A unit's span is the child of the request's, and the statements' spans are its children. It tells of the label and
    the outcome, and of an error its class and SQLSTATE: no text, because that may hold the parameters of a statement.

    Each process exports its own counts, and the backend adds them up: would each export what all have published, as for
    Prometheus, the sums would be as many times too high as there are workers. With a server that forks, see to it that
    the provider's readers run in the workers.

    :param app: the app, before it serves its first request.
    :param tracer_provider: makes the spans; the global one if None.
    :param meter_provider: exports the metrics; the global one if None.
    :raises ConfigurationError: if the app is instrumented already.
    """
    app = _the_app(app)
    if _EXTENSION in app.extensions:
        raise ConfigurationError(
            f"App {app.name!r} is instrumented with OpenTelemetry already.", fix="Call instrument(app) once."
        )
    if _end_all not in app.teardown_appcontext_funcs:
        app.teardown_appcontext(_end_all)
    spans = app.extensions[_EXTENSION] = _UnitSpans(trace.get_tracer(_NAME, tracer_provider=tracer_provider))
    spans.listen_to(app)
    # An SDK keeps the first of two instruments of one name; by the attribute, apps of other names have other meters.
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider, attributes={"flask.app": app.name})
    _create_instruments(meter, _board_of(app, meter_provider))


def uninstrument(app: Flask) -> None:
    """Make no more spans for an app, and export nothing of it; without effect if it was not instrumented."""
    app = _the_app(app)
    spans: _UnitSpans | None = app.extensions.pop(_EXTENSION, None)
    if spans is not None:
        spans.leave(app)


def _the_app(app: Flask) -> Flask:
    return app._get_current_object() if isinstance(app, LocalProxy) else app


# ---- spans


@dataclass(slots=True, eq=False)
class _UnitSpan:
    """The span of a unit.

    :param span: the span.
    :param around: what was current when it began.
    :ivar is_over: whether it has ended.
    """

    span: Span
    around: Context
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Holder:
    """The spans of one app context.

    :ivar open: those that have not ended, by unit, in the order in which they began.
    :ivar lost: those of units that were rolled back and may be tried again.
    :ivar retried: those of attempts that are followed by another one, by its label and number.
    """

    open: dict[Unit, _UnitSpan] = field(default_factory=dict)
    lost: weakref.WeakKeyDictionary[Unit, SpanContext] = field(default_factory=weakref.WeakKeyDictionary)
    retried: dict[tuple[str, int], SpanContext] = field(default_factory=dict)


class _UnitSpans:
    """What listens to the signals of one app.

    :param tracer: makes the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._receivers = (
            (signals.unit_began, self._begin),
            (signals.unit_committed, self._commit),
            (signals.unit_rolled_back, self._roll_back),
            (signals.unit_retried, self._retry),
            (signals.rule_violated, self._violate),
        )

    def listen_to(self, app: Flask) -> None:
        """Hear of the app's units from now on."""
        for signal, receiver in self._receivers:
            signal.connect(receiver, sender=app)

    def leave(self, app: Flask) -> None:
        """Hear no more of them."""
        for signal, receiver in self._receivers:
            signal.disconnect(receiver, sender=app)

    def _begin(self, sender: Any, unit: Unit) -> None:
        holder = _holder()
        _end_inactive(holder)
        around = context.get_current()
        lost = holder.retried.pop((unit.label, unit.attempt), None)
        attributes: Attributes = {
            "uow.label": unit.label,
            "uow.depth": unit.depth,
            "uow.attempt": unit.attempt,
            "uow.read_only": unit.read_only,
        }
        links = [Link(lost, {"uow.retry": True})] if lost else None
        span = self._tracer.start_span(unit.label, around, attributes=attributes, links=links)
        unit_span = holder.open[unit] = _UnitSpan(span, around)
        context.attach(context.set_value(_UNIT_SPAN, unit_span, trace.set_span_in_context(span, around)))

    def _commit(self, sender: Any, unit: Unit) -> None:
        _end_announced(unit, None)

    def _roll_back(self, sender: Any, unit: Unit, exception: BaseException | None) -> None:
        _end_announced(unit, exception)

    def _retry(self, sender: Any, unit: Unit, exception: BaseException, delay_s: float) -> None:
        lost = _holder().lost.pop(unit, None)
        if lost is not None:
            _holder().retried[unit.label, unit.attempt + 1] = lost
        told: dict[str, str | int | float] = {"uow.label": unit.label, "uow.attempt": unit.attempt}
        told |= {"uow.delay_seconds": delay_s, **_told_of(exception)}
        trace.get_current_span().add_event("uow.retried", told)

    def _violate(self, sender: Any, code: str, violation: RuleViolationError | RuleWarning) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event("uow.rule_violated", {"uow.code": code, "uow.where": violation.where or ""})


def _holder() -> _Holder:
    holder: _Holder | None = g.get(_HOLDER)
    if holder is None:
        holder = _Holder()
        setattr(g, _HOLDER, holder)
    return holder


def _end_announced(unit: Unit, exception: BaseException | None) -> None:
    """End the span of a unit that has ended, and before it those that it has left behind."""
    if not has_app_context():
        return  # the context's end has ended it
    holder = _holder()
    unit_span = holder.open.pop(unit, None)
    _end_inactive(holder)
    if unit_span is None:
        return
    _tell_error(unit_span.span, exception)
    _end(unit_span, "committed" if unit.was_committed else "rolled_back")
    if not unit.was_committed:
        holder.lost[unit] = unit_span.span.get_span_context()
    _restore()


def _end_inactive(holder: _Holder) -> None:
    """End the spans of units of which no signal told that they have ended, and heal what is current."""
    for unit, unit_span in reversed(list(holder.open.items())):  # a copy: another thread may work in this context
        if not unit.is_active:
            holder.open.pop(unit, None)
            _end_unannounced(unit, unit_span)
    _restore()


def _end_unannounced(unit: Unit, unit_span: _UnitSpan) -> None:
    if unit.was_committed:
        _end(unit_span, "committed")
        return
    what = "It is not known whether the unit was committed." if unit.outcome == "unknown" else "The unit had not ended."
    unit_span.span.set_status(StatusCode.ERROR, what)
    _end(unit_span, unit.outcome)


def _end_all(exception: BaseException | None) -> None:
    """End what is still open when an app context ends."""
    holder: _Holder | None = g.pop(_HOLDER, None)
    if holder is not None:
        for unit, unit_span in reversed(list(holder.open.items())):
            _end_unannounced(unit, unit_span)
        _restore()


def _end(unit_span: _UnitSpan, outcome: str) -> None:
    unit_span.span.set_attribute("uow.outcome", outcome)
    unit_span.span.end()
    unit_span.is_over = True


def _restore() -> None:
    """If the span that is current here is a unit's that has ended, make current what was so around it."""
    current = found = context.get_current()
    while (unit_span := _current_unit_span(current)) is not None and unit_span.is_over:
        current = unit_span.around
    if current is not found:
        context.attach(current)


def _current_unit_span(current: Context) -> _UnitSpan | None:
    unit_span = context.get_value(_UNIT_SPAN, current)
    if isinstance(unit_span, _UnitSpan) and trace.get_current_span(current) is unit_span.span:
        return unit_span
    return None


def _tell_error(span: Span, exception: BaseException | None) -> None:
    if exception is None:
        return
    span.set_attributes(_told_of(exception))
    if not is_client_error(exception):
        span.set_status(StatusCode.ERROR, type(exception).__name__)


def _told_of(exception: BaseException) -> dict[str, str]:
    """What may be told of an error, under the names of OpenTelemetry's conventions."""
    code = sqlstate(exception)
    told = {"error.type": type(exception).__qualname__}
    return {**told, "db.response.status_code": str(code)} if code else told


# ---- metrics


class _OwnBoard:
    """What this process has published of the apps of one name, read once for all of the instruments asked in a row."""

    def __init__(self) -> None:
        self._apps: list[weakref.ref[Flask]] = []  # an SDK never forgets its callbacks
        self._asked: set[str] = set()
        self._reading: Reading | None = None

    def add(self, app: Flask) -> None:
        """Read of an app as well, as long as it is instrumented."""
        self._apps = [*(each for each in self._apps if each() not in (None, app)), weakref.ref(app)]

    def reading_for(self, instrument: str) -> Reading | None:
        """Give what was read, anew if the instrument has had that already; None if there is nothing to tell."""
        if instrument in self._asked or not self._asked:
            self._asked.clear()
            self._reading = self._read()
        self._asked.add(instrument)
        return self._reading

    def _read(self) -> Reading | None:
        apps = [app for each in self._apps if (app := each()) is not None and _EXTENSION in app.extensions]
        known = map(read_own, apps)
        workers = tuple(own for own in known if own is not None)
        return Reading.of(Boards(workers)) if workers else None


_boards: weakref.WeakKeyDictionary[object, dict[str, _OwnBoard]] = weakref.WeakKeyDictionary()
"""By provider, and by the app's name: what an SDK has once been given goes on for the next app that has the name."""


def _board_of(app: Flask, meter_provider: MeterProvider | None) -> _OwnBoard:
    is_global = meter_provider in (None, metrics.get_meter_provider())
    by_name = _boards.setdefault(metrics if is_global else meter_provider, {})
    board = by_name.setdefault(app.name, _OwnBoard())
    board.add(app)
    return board


def _create_instruments(meter: Meter, board: _OwnBoard) -> None:
    create: dict[Kind, Callable[..., object]] = {
        Kind.COUNTER: meter.create_observable_counter,
        Kind.AMOUNT: meter.create_observable_up_down_counter,
        Kind.EXTREME: meter.create_observable_gauge,
    }
    for metric in METRICS:
        if metric.name in _OF_ALL_WORKERS:
            continue
        name = instrument_name(metric.name)
        create[metric.kind](name, [_values_of(metric, board)], "s" if metric.unit else "", metric.meaning)
    for distribution in DISTRIBUTIONS:
        for part, unit in _PARTS.items():
            name = f"{instrument_name(distribution.name)}.{part}"
            callback = _part_of(distribution, part, board)
            meter.create_observable_counter(name, [callback], unit, distribution.meaning)


_OF_ALL_WORKERS = ("flask_uow_workers_ended",)
"""What no single process knows."""

_PARTS = {"bucket": "", "count": "", "sum": "s"}
"""There is no histogram that can be observed: its parts are counters, as Prometheus has them."""


def instrument_name(name: str) -> str:
    """The name of an instrument: its unit is no part of it here, and dots divide it.

    :param name: of a metric.
    """
    return f"{_NAME}.{name.removeprefix('flask_uow_').removesuffix('_seconds')}"


_Callback = Callable[[CallbackOptions], Iterable[Observation]]


def _values_of(metric: Metric, board: _OwnBoard) -> _Callback:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        reading = board.reading_for(metric.name)
        if reading is not None:
            for labels, value in metric.read(reading).items():
                yield Observation(value, dict(zip(metric.labels, labels, strict=True)))

    return observe


def _part_of(distribution: Distribution, part: str, board: _OwnBoard) -> _Callback:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        reading = board.reading_for(f"{distribution.name}.{part}")
        if reading is None:
            return
        histogram = distribution.read(reading.totals)
        if part == "bucket":
            yield from (Observation(count, {"le": bound}) for bound, count in buckets(histogram))
        else:
            yield Observation(histogram.count if part == "count" else histogram.total_seconds)

    return observe
