"""OpenTelemetry: whose child a unit's span is, how it ends however the unit ends, and what is exported of a process."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, abort, current_app
from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from flask_uow import UnitOfWork, current_unit, signals, stats, transactional
from flask_uow.contrib import opentelemetry
from flask_uow.contrib._metrics import DISTRIBUTIONS, METRICS
from flask_uow.contrib.opentelemetry import instrument, instrument_name, uninstrument
from flask_uow.exceptions import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    RuleViolationError,
    RuleWarning,
    UnitFailedError,
)
from flask_uow.stats import Worker
from tests.contrib.boards import OWN
from tests.databases import Database
from tests.models import Item, make_app, names

SECRET = "s3cret-4711"
DEADLINE_S = 15.0


class SerializationError(Exception):
    """What a driver raises when another attempt is worth it."""

    sqlstate = "40001"


class Balance(SpanProcessor):
    """Which spans have begun and not ended."""

    def __init__(self) -> None:
        self.open: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.open.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self.open.remove(span.name)


class Traces:
    """The spans of a test.

    :ivar provider: makes them.
    """

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.tracer = self.provider.get_tracer("test")
        self.balance = Balance()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.provider.add_span_processor(self.balance)

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """Those that have ended, in the order in which they did."""
        return self._exporter.get_finished_spans()

    @property
    def units(self) -> list[ReadableSpan]:
        """Those of units among them."""
        return [span for span in self.all if "uow.label" in (span.attributes or {})]

    def one(self, name: str) -> ReadableSpan:
        """The one of this name."""
        (span,) = [span for span in self.all if span.name == name]
        return span

    def children(self, parent: ReadableSpan) -> list[str]:
        """The names of a span's children; of a statement the verb."""
        own = [span for span in self.all if span.parent and span.parent.span_id == parent.context.span_id]
        return [span.name.split()[0] if "db.statement" in (span.attributes or {}) else span.name for span in own]

    def tree(self) -> list[tuple[str, str | None]]:
        """The unit spans as they have ended, each with its parent's name."""
        by_id = {span.context.span_id: span.name for span in self.all}
        return [(span.name, by_id[span.parent.span_id] if span.parent else None) for span in self.units]


@pytest.fixture
def traces() -> Traces:
    """The spans of the test."""
    return Traces()


@pytest.fixture
def app(app: Flask, uow: UnitOfWork, traces: Traces) -> Iterator[Flask]:
    """The app, itself and its engine instrumented."""
    with app.app_context():
        engines = list(uow.engines.values())
    instrumentor = SQLAlchemyInstrumentor()
    # It does not know yet that it works with the newest SQLAlchemy.
    instrumentor.instrument(engines=engines, tracer_provider=traces.provider, skip_dep_check=True)
    instrument(app, tracer_provider=traces.provider)
    yield app
    instrumentor.uninstrument()


@pytest.fixture(autouse=True)
def nothing_is_left(traces: Traces, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After the test no span is open or current, and OpenTelemetry has complained of nothing."""
    caplog.set_level(logging.WARNING, "opentelemetry")
    yield
    assert traces.balance.open == []
    assert not trace.get_current_span().get_span_context().is_valid
    complaints = [record for record in caplog.get_records("call") if record.name.startswith("opentelemetry")]
    assert [record.getMessage() for record in complaints] == []


def traced_requests(app: Flask, traces: Traces) -> None:
    """Put a span around each request, as OpenTelemetry's instrumentation of Flask does."""
    wsgi_app = app.wsgi_app

    def serve(environ: Any, start_response: Any) -> Any:
        with traces.tracer.start_as_current_span("request"):
            return wsgi_app(environ, start_response)

    app.wsgi_app = serve  # type: ignore[method-assign]


def add(uow: UnitOfWork, name: str) -> None:
    """Write a row."""
    uow.session.add(Item(name=name))
    uow.session.flush()


def told(span: ReadableSpan) -> dict[str, Any]:
    """What a span says of its unit's end."""
    attributes = span.attributes or {}
    end = {key: attributes[key] for key in ("uow.outcome", "error.type") if key in attributes}
    return end | {"status": span.status.status_code, "description": span.status.description}


def current_name() -> str | None:
    """The name of the span that is current, None without one."""
    return getattr(trace.get_current_span(), "name", None)


# ---- whose child


def test_a_units_span_lies_between_the_requests_and_its_statements(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """And tells of the unit."""
    traced_requests(app, traces)

    @app.post("/items")
    @transactional
    def add_item() -> str:
        uow.session.add(Item(name="one"))
        return "added"

    assert app.test_client().post("/items").text == "added"

    assert traces.tree() == [("POST /items", "request")]
    unit = traces.one("POST /items")
    assert "INSERT" in traces.children(unit)
    assert unit.attributes == {
        "uow.label": "POST /items",
        "uow.depth": 1,
        "uow.attempt": 1,
        "uow.read_only": False,
        "uow.outcome": "committed",
    }
    assert unit.status.status_code is StatusCode.UNSET
    assert traces.children(traces.one("request")) == ["POST /items"]


def test_a_savepoint_is_a_span_inside_and_a_join_is_none(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """A join's statements are those of the unit that it joined; afterwards the outer unit is current again."""
    with app.app_context():
        with transactional(label="outer", read_only=False):
            with transactional(label="inner"):
                assert current_name() == "inner"
                add(uow, "inner")
            assert current_name() == "outer"
            with transactional(label="join", propagation="required"):
                assert current_name() == "outer"
                add(uow, "joined")
        assert current_name() is None

    assert traces.tree() == [("inner", "outer"), ("outer", None)]
    assert (traces.one("inner").attributes or {})["uow.depth"] == 2
    assert traces.children(traces.one("inner")).count("INSERT") == 1
    assert traces.children(traces.one("outer")).count("INSERT") == 1


def test_an_independent_unit_is_a_span_inside(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """On another connection, but for the sake of the outer one; its commit is its own."""
    with app.app_context():
        with pytest.raises(KeyError, match="lost"):
            with transactional(label="outer"):
                with transactional(label="audit", propagation="requires_new", read_only=True):
                    uow.session.execute(sa.text("SELECT 1"))
                raise KeyError("lost")

    assert traces.tree() == [("audit", "outer"), ("outer", None)]
    assert "SELECT" in traces.children(traces.one("audit"))
    assert told(traces.one("audit"))["uow.outcome"] == "committed"
    assert told(traces.one("outer"))["uow.outcome"] == "rolled_back"


def test_a_span_of_ones_own_lies_inside_the_unit(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """And what a unit inside it begins lies inside that."""
    with app.app_context(), transactional(label="outer"):
        with traces.tracer.start_as_current_span("own"):
            with transactional(label="inner"):
                add(uow, "inner")
            assert current_name() == "own"
        assert current_name() == "outer"

    assert traces.tree() == [("inner", "own"), ("outer", None)]
    assert traces.children(traces.one("outer")).count("own") == 1


# ---- how it ends


def test_an_exception_is_told_by_its_class(app: Flask, traces: Traces) -> None:
    """The text stays out."""
    with app.app_context(), pytest.raises(ValueError, match=SECRET):
        with transactional(label="unit"):
            raise ValueError(SECRET)

    unit = traces.one("unit")
    assert told(unit) == {
        "uow.outcome": "rolled_back",
        "error.type": "ValueError",
        "status": StatusCode.ERROR,
        "description": "ValueError",
    }


def test_no_parameter_and_no_password_is_in_any_unit_span(
    app: Flask, uow: UnitOfWork, traces: Traces, database: Database
) -> None:
    """Nor in an event; the server's code is what can be told of its error."""
    for attempt in range(2):
        with app.app_context(), pytest.raises(sa.exc.IntegrityError, match=SECRET) if attempt else ExitStack():
            with transactional(label="unit"):
                add(uow, SECRET)

    told_of_all = repr([span.to_json() for span in traces.units])
    assert SECRET not in told_of_all
    password = sa.make_url(database.url).password
    assert password is None or password not in told_of_all
    lost = traces.units[-1]
    assert told(lost)["error.type"] == "IntegrityError"
    assert (lost.attributes or {}).get("db.response.status_code") == ("23505" if database.is_postgresql else None)
    assert lost.events == ()


def test_an_answer_to_the_client_is_no_error(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """As OpenTelemetry has it for the server's side of a request; the unit was rolled back all the same."""
    for status in (404, 503):
        app.add_url_rule(f"/{status}", str(status), transactional(lambda status=status: abort(status)))
    client = app.test_client()

    assert [client.get(path).status_code for path in ("/404", "/503")] == [404, 503]

    ends = [told(span) for span in traces.units]
    assert [end["uow.outcome"] for end in ends] == ["rolled_back", "rolled_back"]
    assert [end["status"] for end in ends] == [StatusCode.UNSET, StatusCode.ERROR]
    assert [end["error.type"] for end in ends] == ["NotFound", "ServiceUnavailable"]


def test_a_unit_that_is_set_to_roll_back_is_no_error(app: Flask, traces: Traces) -> None:
    """It has done what it was told."""
    with app.app_context(), transactional(label="unit") as unit:
        unit.set_rollback_only()

    assert told(traces.one("unit")) == {"uow.outcome": "rolled_back", "status": StatusCode.UNSET, "description": None}


def test_an_exception_after_which_the_unit_is_kept_is_no_error(app: Flask, traces: Traces) -> None:
    """It was committed."""
    with app.app_context(), pytest.raises(KeyError, match="kept"):
        with transactional(label="unit", no_rollback_for=KeyError):
            raise KeyError("kept")

    assert told(traces.one("unit")) == {"uow.outcome": "committed", "status": StatusCode.UNSET, "description": None}


def test_each_attempt_is_a_span_that_names_the_one_before(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """And what lies around hears of it."""
    attempts: list[int] = []

    @transactional(retries=2, label="unit")
    def insist() -> None:
        attempts.append(current_unit.attempt)
        add(uow, "one")
        if len(attempts) < 3:
            raise sa.exc.OperationalError("UPDATE", (SECRET,), SerializationError(SECRET))

    with app.app_context(), traces.tracer.start_as_current_span("request"):
        insist()

    assert attempts == [1, 2, 3]
    assert traces.tree() == [("unit", "request")] * 3
    first, second, third = traces.units
    assert [(span.attributes or {})["uow.attempt"] for span in traces.units] == [1, 2, 3]
    assert [link.context for link in second.links] == [first.context]
    assert [link.context for link in third.links] == [second.context]
    assert first.links == ()
    events = traces.one("request").events
    assert [event.name for event in events] == ["uow.retried", "uow.retried"]
    assert {**(events[0].attributes or {}), "uow.delay_seconds": 0.0} == {
        "uow.label": "unit",
        "uow.attempt": 1,
        "uow.delay_seconds": 0.0,
        "error.type": "OperationalError",
        "db.response.status_code": "40001",
    }
    assert SECRET not in repr([span.to_json() for span in (*traces.units, traces.one("request"))])


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_unit_in_doubt_has_an_end(app: Flask, uow: UnitOfWork, traces: Traces, database: Database) -> None:
    """No signal tells of it: the context's next unit, which is not inside it, ends its span, or the context's end."""

    @transactional(label="doubtful")
    def doubtful() -> None:
        add(uow, "one")
        pid = uow.session.scalar(sa.text("SELECT pg_backend_pid()"))
        current_unit.before_commit(lambda: database.kill(pid))

    with app.app_context():
        with pytest.raises(CommitOutcomeUnknownError, match="connection was lost"):
            doubtful()
        with transactional(label="next", read_only=True):
            pass
        with pytest.raises(CommitOutcomeUnknownError, match="connection was lost"):
            doubtful()

    assert traces.tree() == [("doubtful", None), ("next", None), ("doubtful", None)]
    for span in (traces.units[0], traces.units[2]):
        assert told(span)["uow.outcome"] == "unknown"
        assert told(span)["status"] is StatusCode.ERROR


def test_a_violation_is_an_event_of_the_span_in_which_it_occurs(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """With its code and its place, and nothing of the statement."""
    with app.app_context(), transactional(label="outer"):
        add(uow, "one")
        with transactional(label="inner"):
            item = uow.session.scalars(sa.select(Item)).one()
            with pytest.warns(RuleWarning, match="UOW105"):
                uow.session.merge(item)

    (event,) = traces.one("inner").events
    assert event.name == "uow.rule_violated"
    attributes = event.attributes or {}
    assert set(attributes) == {"uow.code", "uow.where"}
    assert attributes["uow.code"] == "UOW105"
    assert "test_opentelemetry.py" in str(attributes["uow.where"])
    assert traces.one("outer").events == ()


def test_a_receiver_that_fails_before_leaves_no_span_open(app: Flask, traces: Traces) -> None:
    """Blinker calls no further receiver; the context's end, or the next unit, ends the span as its unit ended."""

    def fail(sender: Flask, **details: object) -> None:
        raise LookupError("a receiver")

    ours = app.extensions[opentelemetry._EXTENSION]
    with ExitStack() as stack:
        for signal in (signals.unit_committed, signals.unit_rolled_back):
            ours.leave(app)
            stack.enter_context(signal.connected_to(fail, app))
        ours.listen_to(app)
        with app.app_context():
            with transactional(label="kept"):
                pass
            with transactional(label="lost") as unit:
                unit.set_rollback_only()

    assert [(span.name, told(span)["uow.outcome"]) for span in traces.units] == [
        ("kept", "committed"),
        ("lost", "rolled_back"),
    ]
    assert traces.tree() == [("kept", None), ("lost", None)]


# ---- generators, tasks, threads


def held_open(label: str, uow: UnitOfWork) -> Generator[str | None, None, None]:
    """A generator that holds a unit open while others work."""
    with transactional(label=label):
        yield current_name()
        uow.session.execute(sa.text("SELECT 1"))
        yield current_name()


def test_generators_that_end_out_of_order_leave_nothing_current(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """The one that began first ends first: both units fail, and both spans end, the inner one before the outer."""
    with app.app_context():
        first, second = held_open("first", uow), held_open("second", uow)
        assert [next(first), next(second)] == ["first", "second"]
        for held in (first, second):
            with pytest.raises(UnitFailedError, match="had not ended"):
                list(held)
            assert current_name() is None
        with transactional(label="next"):
            pass

    assert traces.tree() == [("second", "first"), ("first", None), ("next", None)]
    for span in traces.units[:2]:
        assert told(span)["uow.outcome"] == "rolled_back"
        assert told(span)["status"] is StatusCode.ERROR


def test_independent_generators_that_end_out_of_order(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """The last one's session is closed with the one before it: its span ends when the next unit begins or ends."""

    def independent(label: str) -> Iterator[None]:
        with transactional(label=label, propagation="requires_new", read_only=True):
            yield

    with app.app_context():
        first, second, third = independent("first"), independent("second"), independent("third")
        for each in (first, second, third):
            next(each)
        list(second)
        list(first)
        assert current_name() is None
        with pytest.raises(UnitFailedError, match="session was closed"):
            list(third)
        with transactional(label="next"):
            assert current_name() == "next"
        assert current_name() is None

    assert traces.tree() == [("second", "first"), ("third", "second"), ("first", None), ("next", None)]


def test_a_generator_that_is_left_ends_with_its_context(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """And its late end is no news."""
    with app.app_context():
        left = held_open("left", uow)
        next(left)
    assert current_name() is None
    assert [span.name for span in traces.units] == ["left"]
    with pytest.raises(RuleViolationError, match="UOW201"):
        list(left)

    assert len(traces.units) == 1
    assert told(traces.one("left"))["uow.outcome"] == "rolled_back"
    with app.app_context(), transactional(label="next"):
        pass
    assert traces.one("next").parent is None


def test_a_unit_that_ends_inside_a_span_begun_later(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """That span stays current; what it brings back when it ends is ended already, and nobody's parent."""
    with app.app_context():
        held = held_open("held", uow)
        next(held)
        with traces.tracer.start_as_current_span("own"):
            list(held)
            assert current_name() == "own"
            with transactional(label="inner"):
                pass
            assert current_name() == "own"
        with transactional(label="next"):
            pass
        assert current_name() is None

    assert traces.tree() == [("held", None), ("inner", "own"), ("next", None)]


def test_a_unit_that_ends_outside_of_any_context(
    app: Flask, uow: UnitOfWork, traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    """A generator may be closed by another thread; the unit's own context ends the span."""
    with app.app_context():
        held = held_open("held", uow)
        next(held)
        thread = threading.Thread(target=held.close)
        thread.start()
        thread.join(timeout=DEADLINE_S)
        assert traces.units == []

    assert told(traces.one("held"))["uow.outcome"] == "rolled_back"
    assert caplog.messages == []


def test_an_async_view_is_a_span(app: Flask, uow: UnitOfWork, traces: Traces, database: Database) -> None:
    """Its event loop runs in a thread and a context of its own; what the view begins lies inside the request."""
    traced_requests(app, traces)

    @app.get("/")
    @transactional
    async def view() -> str:
        add(uow, "one")
        await asyncio.sleep(0)
        with transactional(label="inner"):
            await asyncio.sleep(0)
            add(uow, "two")
        assert current_name() == "GET /"
        return "ok"

    assert app.test_client().get("/").text == "ok"

    assert traces.tree() == [("inner", "GET /"), ("GET /", "request")]
    assert names(database) == ["one", "two"]


def test_an_async_view_inside_an_atomic_request(database: Database, traces: Traces) -> None:
    """The unit begins and ends outside of the event loop, what is inside it within."""
    uow = UnitOfWork()
    app = make_app(database, uow, UOW_ATOMIC_REQUESTS=True)
    instrument(app, tracer_provider=traces.provider)

    @app.get("/")
    async def view() -> str:
        with transactional(label="inner"):
            add(uow, "one")
        return current_name() or ""

    assert app.test_client().get("/").text == "GET /"
    assert traces.tree() == [("inner", "GET /"), ("GET /", None)]


def test_threads_have_spans_of_their_own(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """Units at the same moment in two threads know nothing of each other."""
    barrier = threading.Barrier(2, timeout=DEADLINE_S)
    seen: list[str | None] = []

    def work(label: str) -> None:
        with app.app_context():
            with transactional(label=label, read_only=True):
                barrier.wait()
                seen.append(current_name())
                barrier.wait()
            seen.append(current_name())

    threads = [threading.Thread(target=work, args=(label,)) for label in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=DEADLINE_S)

    assert sorted(seen, key=str) == [None, None, "one", "two"]
    assert sorted(traces.tree()) == [("one", None), ("two", None)]


def test_a_unit_that_ends_in_another_context_ends_its_span(app: Flask, uow: UnitOfWork, traces: Traces) -> None:
    """As a generator that one task begins and another one ends; a token would be refused there."""
    with app.app_context():
        held = held_open("held", uow)
        next(held)
        copy_context().run(list, held)
        assert [span.name for span in traces.units] == ["held"]
        with transactional(label="next"):
            pass

    assert traces.one("next").parent is None


# ---- switching it on and off


def test_nothing_is_kept_of_a_unit_that_has_ended(app: Flask, uow: UnitOfWork) -> None:
    """A context may last as long as the process."""
    with app.app_context():
        with transactional(label="unit", propagation="requires_new") as unit:
            gone = weakref.ref(unit)
        with pytest.raises(KeyError, match="lost"):
            with transactional(label="unit", propagation="requires_new") as unit:
                gone_too = weakref.ref(unit)
                raise KeyError("lost")
        del unit
        gc.collect()

        assert gone() is None
        assert gone_too() is None


def test_a_second_call_is_refused(app: Flask) -> None:
    """It would make each span twice."""
    with pytest.raises(ConfigurationError, match="instrumented with OpenTelemetry already"):
        instrument(app)


def test_a_call_that_comes_too_late_changes_nothing(database: Database) -> None:
    """Flask refuses to set up an app that has served a request."""
    app = make_app(database)
    app.test_client().get("/")

    with pytest.raises(AssertionError, match="teardown_appcontext"):
        instrument(app)

    assert opentelemetry._EXTENSION not in app.extensions
    assert not signals.unit_began.has_receivers_for(app)


def test_it_is_switched_off_and_on_again(app: Flask, traces: Traces) -> None:
    """Also in the middle of a unit; to switch off what is not on does nothing."""
    with app.app_context():
        with transactional(label="first"):
            uninstrument(app)
        uninstrument(current_app)
        with transactional(label="second"):
            pass
        instrument(current_app, tracer_provider=traces.provider)
        with transactional(label="third"):
            pass

    assert [span.name for span in traces.units] == ["first", "third"]
    assert traces.one("third").parent is None


def test_without_a_provider_nothing_happens(database: Database) -> None:
    """The API alone makes spans that say nothing; the units are the same."""
    uow = UnitOfWork()
    app = make_app(database, uow)
    instrument(app)

    with app.app_context(), transactional(label="outer"):
        with transactional(label="inner"):
            add(uow, "one")

    assert names(database) == ["one"]


def test_what_is_not_sampled_stays_quiet(database: Database, traces: Traces) -> None:
    """A span that records nothing is current all the same, and ends."""
    uow = UnitOfWork()
    app = make_app(database, uow)
    instrument(app, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))

    with app.app_context(), pytest.raises(KeyError, match="lost"):
        with transactional(label="outer"):
            with transactional(label="inner"):
                assert not trace.get_current_span().is_recording()
            raise KeyError("lost")


def test_apps_do_not_hear_of_each_other(app: Flask, traces: Traces, make_database: Callable[[str], Database]) -> None:
    """Only the one that is instrumented makes spans."""
    other = make_app(make_database("sqlite"))

    with app.app_context(), transactional(label="ours"):
        with other.app_context(), transactional(label="theirs"):
            assert current_name() == "ours"

    assert [span.name for span in traces.units] == ["ours"]


# ---- metrics


@pytest.fixture
def reader() -> InMemoryMetricReader:
    """What asks for metrics."""
    return InMemoryMetricReader()


@pytest.fixture
def metered(reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """An app whose metrics the reader asks for, on boards made by hand."""
    monkeypatch.setattr(opentelemetry, "read_own", lambda app: OWN)
    app = Flask("bank")
    provider = MeterProvider([reader])
    instrument(app, meter_provider=provider)
    yield app
    provider.shutdown()


def exported(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the metrics by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {metric.name: metric for scope in scopes for metric in scope.metrics}


def points(reader: InMemoryMetricReader, name: str) -> dict[tuple[Any, ...], float]:
    """Return the values of one metric by the values of its attributes."""
    metric = exported(reader)[name]
    return {tuple((point.attributes or {}).values()): point.value for point in metric.data.data_points}


def test_a_process_exports_what_it_has_counted_itself(metered: Flask, reader: InMemoryMetricReader) -> None:
    """Others export theirs, and the backend adds them up."""
    assert points(reader, "flask_uow.units_begun") == {(): 100}
    assert points(reader, "flask_uow.units") == {("committed",): 80, ("rolled_back",): 10, ("failed",): 5}
    assert points(reader, "flask_uow.rule_violations")[("UOW103",)] == 4
    assert points(reader, "flask_uow.label")[("transfer", "outermost")] == 4.0
    assert points(reader, "flask_uow.pool_checked_out") == {("default",): 7}
    assert points(reader, "flask_uow.workers") == {(): 1}
    assert points(reader, "flask_uow.oldest_unit") == {(): 9.0}
    assert "flask_uow.workers_ended" not in exported(reader)


def test_histograms_are_exported_in_parts(metered: Flask, reader: InMemoryMetricReader) -> None:
    """Cumulative buckets, the number and the sum, as Prometheus has them."""
    assert points(reader, "flask_uow.unit.bucket")[("0.005",)] == 12
    assert points(reader, "flask_uow.unit.bucket")[("+Inf",)] == 13
    assert points(reader, "flask_uow.unit.count") == {(): 13}
    assert points(reader, "flask_uow.unit.sum") == {(): 90.5}


def test_instruments_say_what_can_be_done_with_them(metered: Flask, reader: InMemoryMetricReader) -> None:
    """What never falls is monotonic, what can be added up a sum, the rest is a gauge; times are in seconds."""
    metrics = exported(reader)

    counter, amount, extreme = (
        metrics[f"flask_uow.{name}"] for name in ("units", "pool_checked_out", "pool_longest_wait")
    )
    assert isinstance(counter.data, Sum)
    assert counter.data.is_monotonic
    assert isinstance(amount.data, Sum)
    assert not amount.data.is_monotonic
    assert isinstance(extreme.data, Gauge)
    assert [each.unit for each in (counter, amount, extreme)] == ["", "", "s"]
    assert len(metrics) == len(METRICS) - 1 + 3 * len(DISTRIBUTIONS)
    assert all(metric.description for metric in metrics.values())


def test_the_board_is_read_once_for_all_instruments(
    metered: Flask, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And anew each time they are asked."""
    begun = OWN.counts.units.begun
    asked: list[object] = []

    def read(app: Flask) -> Worker:
        asked.append(app)
        units = replace(OWN.counts.units, begun=begun + len(asked))
        return replace(OWN, counts=replace(OWN.counts, units=units))

    monkeypatch.setattr(opentelemetry, "read_own", read)

    assert [points(reader, "flask_uow.units_begun")[()] for _ in range(3)] == [begun + 1, begun + 2, begun + 3]
    assert asked == [metered] * 3


def test_a_process_without_a_board_exports_nothing(
    metered: Flask, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to say; a 0 would be wrong where the board could not be written."""
    monkeypatch.setattr(opentelemetry, "read_own", lambda app: None)

    assert exported(reader) == {}


def test_an_app_that_is_switched_off_exports_nothing(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is switched on again does, although an SDK keeps the instruments that it has."""
    monkeypatch.setattr(opentelemetry, "read_own", lambda app: OWN)
    app, provider = Flask("bank"), MeterProvider([reader])
    instrument(app, meter_provider=provider)

    uninstrument(app)
    assert exported(reader) == {}
    instrument(app, meter_provider=provider)
    assert points(reader, "flask_uow.units_begun") == {(): 100}
    provider.shutdown()


def test_two_apps_export_side_by_side(monkeypatch: pytest.MonkeyPatch, reader: InMemoryMetricReader) -> None:
    """Each under its own scope: an SDK would drop the second instrument of one name."""
    monkeypatch.setattr(opentelemetry, "read_own", lambda app: OWN)
    provider = MeterProvider([reader])
    apps = [Flask("bank"), Flask("shop")]
    for app in apps:
        instrument(app, meter_provider=provider)

    data = reader.get_metrics_data()

    assert data is not None
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    assert [dict(scope.scope.attributes or {}) for scope in scopes] == [{"flask.app": "bank"}, {"flask.app": "shop"}]
    provider.shutdown()


def test_an_app_is_not_kept_by_its_instruments(reader: InMemoryMetricReader) -> None:
    """A provider never forgets a callback; a test suite makes apps by the hundred."""
    provider = MeterProvider([reader])
    app = Flask("bank")
    instrument(app, meter_provider=provider)
    gone = weakref.ref(app)
    del app
    gc.collect()

    assert gone() is None
    assert exported(reader) == {}
    provider.shutdown()


@pytest.mark.parametrize("of", ["a provider", "the global one"])
def test_the_next_app_of_a_name_exports_in_its_place(
    database: Database, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """A factory may be called again: an SDK has the first one's instruments, and takes no others of their names."""
    provider = MeterProvider([reader])
    if of == "the global one":
        for module in (metrics_api, metrics_api._internal):
            monkeypatch.setattr(module, "get_meter_provider", lambda: provider)

    def serve(number: int, units: int) -> Flask:
        app = make_app(database, UnitOfWork())
        instrument(app, meter_provider=provider if of == "a provider" or number else None)
        with app.app_context():
            for unit in range(units):
                with transactional(label="unit"):
                    add(app.extensions["uow"], f"row {number} {unit}")
        return app

    dropped = weakref.ref(serve(0, 3))
    gc.collect()
    assert dropped() is None
    app = serve(1, 2)
    assert points(reader, "flask_uow.units_begun") == {(): 2}
    other = serve(2, 5)
    assert points(reader, "flask_uow.units_begun") == {(): 7}
    assert points(reader, "flask_uow.label_units") == {("unit", "outermost"): 7}
    uninstrument(app)
    assert points(reader, "flask_uow.units_begun") == {(): 5}
    uninstrument(other)
    assert exported(reader) == {}
    provider.shutdown()


def test_no_two_instruments_have_one_name() -> None:
    """Without their units the names are still different."""
    every = [instrument_name(metric.name) for metric in (*METRICS, *DISTRIBUTIONS)]

    assert len(set(every)) == len(every)
    assert instrument_name("flask_uow_label_worst_seconds") == "flask_uow.label_worst"


def test_the_units_of_this_process_are_exported(app: Flask, uow: UnitOfWork, reader: InMemoryMetricReader) -> None:
    """From the units to the reader, with nothing made by hand between."""
    uninstrument(app)
    provider = MeterProvider([reader])
    instrument(app, meter_provider=provider)

    with app.app_context(), transactional(label="unit"):
        add(uow, "one")

    assert points(reader, "flask_uow.units")[("committed",)] == 1
    assert points(reader, "flask_uow.label_units") == {("unit", "outermost"): 1}
    assert points(reader, "flask_uow.unit.count") == {(): 1}
    provider.shutdown()


def test_a_namesake_in_one_process_exports_its_own_units(
    database: Database, reader: InMemoryMetricReader, tmp_path: Path
) -> None:
    """As does a worker of another container that has its number: a name and a number are no proof of a board."""
    apps = [make_app(database, UnitOfWork(), UOW_STATS_DIR=str(tmp_path / "boards")) for _ in range(2)]
    provider = MeterProvider([reader])
    instrument(apps[0], meter_provider=provider)

    for number, app in enumerate(apps):
        with app.app_context(), transactional(label="unit"):
            add(app.extensions["uow"], f"row-{number}")

    assert points(reader, "flask_uow.units_begun") == {(): 1}
    assert points(reader, "flask_uow.workers") == {(): 1}
    assert len(stats.read_boards(apps[0]).workers) == 2
    provider.shutdown()
