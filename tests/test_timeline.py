"""A request's timeline: what is in it, what follows from it, and whose it is."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, copy_current_request_context, render_template_string
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles

from flask_uow import UnitOfWork, transactional
from flask_uow._timeline import Lane, Sent, Span, Timeline, UnitSpan, covered
from flask_uow.exceptions import RuleViolationError
from tests.contrib.owners import OWNERS, Owned
from tests.databases import Database, SQLiteDatabase
from tests.models import Item, make_app
from tests.timelines import keep_timelines, sent, timeline_of

DEADLINE_S = 15.0
PAUSE_S = 0.05


# ---- what follows


@pytest.mark.parametrize(
    ("stretches", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 2.0), (4.0, 6.0)], 3.0),
        ([(1.0, 5.0), (2.0, 3.0)], 4.0),
        ([(2.0, 4.0), (1.0, 3.0)], 3.0),
    ],
    ids=["none", "apart", "inside", "overlapping"],
)
def test_what_happens_at_once_counts_once(stretches: list[tuple[float, float]], seconds: float) -> None:
    """A duration is time on the clock."""
    assert covered(stretches) == seconds


def test_the_figures_of_two_connections() -> None:
    """Trips add up, times do not; idle is what a connection waits between BEGIN and its end."""
    first = Lane("default", spans=[_span(1, 2, in_transaction=True, trips=2), _span(5, 6, in_transaction=False)])
    second = Lane("default", spans=[_span(3, 4, in_transaction=True), _span(4.5, 7, in_transaction=False)])
    units = [UnitSpan("outer", 1, 1, False, 0.5, 6.5), UnitSpan("inner", 1, 1, False, 2.5, 7.5)]
    timeline = Timeline("GET /", start=0.0, end=8.0, lanes=[first, second], units=units)

    assert timeline.trips == 5
    assert timeline.sql_s == 1 + 1 + 2.5
    assert timeline.idle_s == 3
    assert timeline.unit_s == 7
    assert list(first.transactions(8.0)) == [(1, 6)]


def test_a_transaction_that_nobody_ends_idles_until_its_connection_is_given_back() -> None:
    """Or until the response is ready, if it is not."""
    lane = Lane("default", spans=[_span(1, 2, in_transaction=True)])

    assert list(lane.idle(9.0)) == [(2, 9.0)]
    lane.holds.append((0.5, 4.0))
    assert list(lane.idle(9.0)) == [(2, 4.0)]
    assert list(lane.transactions(9.0)) == [(1, 4.0)]


# ---- what is recorded


def test_a_unit(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """BEGIN, the statement and COMMIT, in the transaction and in the unit, while the connection is held."""

    @transactional(label="the unit")
    def view() -> None:
        uow.session.add(Item(name="item"))

    timeline = timeline_of(app, view)

    (lane,) = timeline.lanes
    spans = [span for span in lane.spans if span.kind is not Sent.CONNECT]
    if database.is_postgresql:
        assert [(span.kind, span.begins) for span in spans[-2:]] == [(Sent.STATEMENT, True), (Sent.COMMIT, False)]
    else:
        assert [span.kind for span in spans] == [Sent.BEGIN, Sent.STATEMENT, Sent.COMMIT]
    assert [span.is_in_transaction for span in spans[-2:]] == [True, False]
    assert {span.unit for span in spans[-2:]} == {"the unit"}
    (unit,) = timeline.units
    assert (unit.label, unit.depth, unit.outcome) == ("the unit", 1, "committed")
    moments = [moment for span in spans[-2:] for moment in (span.start, span.end)]
    assert [timeline.start, unit.start, *moments, unit.end, timeline.end] == sorted(
        [timeline.start, unit.start, *moments, unit.end, timeline.end]
    )
    (held,) = [hold for hold in lane.holds if hold[1] >= spans[-1].end]
    assert held[0] <= spans[-2].start
    assert held[1] < timeline.end
    assert lane.bind == "default"


def test_the_first_connection_of_all(app: Flask, uow: UnitOfWork) -> None:
    """What it takes to open it is seen, before it is held."""

    def view() -> None:
        uow.session.execute(sa.text("SELECT 1"))

    (lane,) = timeline_of(app, view).lanes

    connect = next(span for span in lane.spans if span.kind is Sent.CONNECT)
    assert connect.start <= connect.end <= lane.holds[0][0]
    assert connect.trips == 0


def test_values_are_not_kept(app: Flask, uow: UnitOfWork) -> None:
    """A statement is its text, without its parameters."""

    @transactional
    def view() -> None:
        uow.session.add(Item(name="a secret"))

    assert "a secret" not in repr(timeline_of(app, view))


def test_savepoints(app: Flask, uow: UnitOfWork) -> None:
    """Each has its statements, its unit and its end."""

    @transactional
    def view() -> None:
        add(uow, "outer")
        with transactional(label="kept"):
            add(uow, "kept")
        with pytest.raises(ValueError, match="no"), transactional(label="undone"):
            add(uow, "undone")
            raise ValueError("no")

    timeline = timeline_of(app, view)

    spans = [span for span in timeline.lanes[0].spans if span.kind is Sent.SAVEPOINT]
    assert [span.text.split()[0] for span in spans] == ["SAVEPOINT", "RELEASE", "SAVEPOINT", "ROLLBACK"]
    assert [spans[1].unit, spans[3].unit] == ["kept", "undone"]
    outcomes = [(unit.label, unit.depth, unit.outcome) for unit in timeline.units[1:]]
    assert outcomes == [("kept", 2, "committed"), ("undone", 2, "rolled back")]


def test_a_unit_that_waits_in_its_transaction(app: Flask, uow: UnitOfWork) -> None:
    """That is idle, and no SQL; what comes before it is neither."""

    @transactional
    def view() -> None:
        time.sleep(PAUSE_S)
        add(uow, "item")
        time.sleep(PAUSE_S)

    timeline = timeline_of(app, view)

    assert PAUSE_S <= timeline.idle_s < timeline.unit_s - PAUSE_S
    assert timeline.sql_s + timeline.idle_s <= timeline.unit_s


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_slow_statement(app: Flask, uow: UnitOfWork) -> None:
    """That is SQL, and not idle."""

    @transactional
    def view() -> None:
        uow.session.execute(sa.text(f"SELECT pg_sleep({PAUSE_S})"))

    timeline = timeline_of(app, view)

    assert timeline.sql_s >= PAUSE_S
    (slow,) = [span for span in timeline.lanes[0].spans if "pg_sleep" in span.text]
    assert slow.end - slow.start >= PAUSE_S


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_begin_that_waits_for_another_writer(database: SQLiteDatabase, uow: UnitOfWork) -> None:
    """SQLite's BEGIN IMMEDIATE is where a unit waits; that is seen as BEGIN."""
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": PAUSE_S}})
    writer = database.connect()

    def view() -> None:
        with pytest.raises(OperationalError, match="locked"), transactional():
            uow.session.execute(sa.text("SELECT 1"))

    writer.execute("BEGIN IMMEDIATE")
    timeline = timeline_of(app, view)
    writer.close()

    begin = next(span for span in timeline.lanes[0].spans if span.kind is Sent.BEGIN)
    assert begin.end - begin.start >= PAUSE_S * 0.8


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_sqlalchemy_takes_to_compile_is_no_begin(app: Flask, uow: UnitOfWork) -> None:
    """It is idle, in the transaction that has begun."""

    @transactional
    def view() -> None:
        uow.session.execute(sa.select(slow_to_compile()))

    timeline = timeline_of(app, view)

    assert any(end - start >= PAUSE_S for start, end in timeline.lanes[0].idle(timeline.end))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_error_of_sqlite_was_a_round_trip(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """SQLite has no code for it, and was asked all the same."""
    database.execute("INSERT INTO item (name) VALUES ('item')")

    def view() -> None:
        with pytest.raises(DBAPIError, match="UNIQUE"), transactional():
            add(uow, "item")

    timeline = timeline_of(app, view)

    assert [span.trips for span in timeline.lanes[0].spans if span.error is not None] == [1]


def test_an_independent_unit_has_a_connection_of_its_own(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Two lanes, and the outer one idles meanwhile; on SQLite the inner one comes first."""

    @transactional
    def view() -> None:
        if database.is_postgresql:
            add(uow, "outer")
        with transactional(propagation="requires_new"):
            add(uow, "inner")

    timeline = timeline_of(app, view)

    assert len(timeline.lanes) == (2 if database.is_postgresql else 1)
    assert [lane.spans[-1].kind for lane in timeline.lanes] == [Sent.COMMIT] * len(timeline.lanes)
    if database.is_postgresql:
        outer, inner = timeline.lanes
        assert any(start <= inner.spans[-2].start < end for start, end in outer.idle(timeline.end))


def test_several_databases(database: Database, second_database: Database, uow: UnitOfWork) -> None:
    """Each is named as in the configuration, and commits for itself."""
    app = make_app(database, uow, SQLALCHEMY_BINDS={"archive": second_database.url})

    @transactional
    def view() -> None:
        for bind in ("default", "archive"):
            connection = uow.session.connection(bind_arguments={"bind": uow.get_engine(bind)})
            connection.exec_driver_sql("CREATE TABLE note (id int)")

    lanes = timeline_of(app, view).lanes

    assert [lane.bind for lane in lanes] == ["default", "archive"]
    assert [sent(lane)[-2:] for lane in lanes] == [["CREATE", "COMMIT"]] * 2
    assert lanes[0].spans[-1].end <= lanes[1].spans[-1].start


def test_an_error_of_the_server(app: Flask, uow: UnitOfWork) -> None:
    """It is named by its class, for its text may hold values."""

    def view() -> None:
        with pytest.raises(DBAPIError, match="nowhere"), transactional():
            uow.session.execute(sa.text("SELECT 'a secret' AS x FROM nowhere"))

    timeline = timeline_of(app, view)

    failed = [span for span in timeline.lanes[0].spans if span.error is not None]
    assert [span.error in ("UndefinedTable", "OperationalError") for span in failed] == [True]
    assert sent(timeline.lanes[0])[-1] == "ROLLBACK"
    assert timeline.units[0].outcome == "rolled back"


def test_a_refused_statement_was_not_sent(app: Flask, uow: UnitOfWork) -> None:
    """The violation is where it happened, with what mends it."""

    def view() -> None:
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            uow.session.execute(sa.text("SELECT 1"))
            uow.session.execute(sa.text("DELETE FROM item"))

    timeline = timeline_of(app, view)

    assert "DELETE" not in sent(timeline.lanes[0])
    (breach,) = timeline.breaches
    assert breach.code == "UOW111"
    assert "test_timeline.py" in (breach.where or "")
    assert timeline.units[0].start < breach.at < timeline.units[0].end


def test_templates(app: Flask) -> None:
    """Each by its name, from its context to its text."""

    def view() -> str:
        text = render_template_string("{{ pause() }}", pause=lambda: time.sleep(PAUSE_S))
        time.sleep(PAUSE_S)
        return text

    timeline = timeline_of(app, view)

    (rendering,) = timeline.renderings
    assert rendering.template == "a text"
    assert rendering.end - rendering.start >= PAUSE_S
    assert timeline.end - rendering.end >= PAUSE_S


def test_a_template_that_fails(app: Flask) -> None:
    """Nobody says when; it goes on until the response is ready."""

    def view() -> None:
        with pytest.raises(ZeroDivisionError):
            render_template_string("{{ 1 / 0 }}")

    timeline = timeline_of(app, view)

    assert [rendering.end for rendering in timeline.renderings] == [timeline.end]


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg"])
def test_a_connection_that_is_lost(backend: str, make_database: Callable[[str], Any], uow: UnitOfWork) -> None:
    """Its lane ends there, and the request goes on."""
    database = make_database(backend)
    app = make_app(database, uow)

    def view() -> None:
        with pytest.raises(DBAPIError), transactional():  # each driver has its own text
            pid = uow.session.scalar(sa.text("SELECT pg_backend_pid()"))
            database.kill(pid)
            add(uow, "lost")

    timeline = timeline_of(app, view)

    assert timeline.lanes[0].spans[-1].error is not None
    assert timeline.lanes[0].holds[-1][1] < timeline.end


# ---- whose it is


@pytest.mark.parametrize("owner", OWNERS)
def test_the_engines_of_another_library(database: Database, owner: str) -> None:
    """Its first request already has what was sent."""
    owned: Owned = OWNERS[owner](database)

    @transactional
    def view() -> None:
        owned.session().add(Item(name="item"))

    (lane,) = timeline_of(owned.app, view).lanes

    assert sent(lane)[-2:] == ["INSERT", "COMMIT"]
    assert lane.holds


def test_nobody_wants_it(app: Flask, uow: UnitOfWork) -> None:
    """Then nothing is watched."""
    app.test_client().get("/")

    with app.app_context():
        assert not hasattr(uow.engine.dialect, "_uow_watched")
    assert "full_dispatch_request" not in vars(app)


def test_requests_at_once(app: Flask, uow: UnitOfWork) -> None:
    """Each has its own statements and no other's."""
    timelines = keep_timelines(app)
    both = threading.Barrier(2, timeout=DEADLINE_S)

    @app.get("/<name>")
    def view(name: str) -> str:
        both.wait()
        with transactional(label=name, read_only=True):
            uow.session.execute(sa.text(f"SELECT 1 AS {name}"))
            both.wait()
        return name

    threads = [threading.Thread(target=app.test_client().get, args=(f"/{name}",)) for name in ("ada", "alan")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert len(timelines) == 2
    for timeline in timelines:
        name = timeline.request.removeprefix("GET /")
        assert [unit.label for unit in timeline.units] == [name]
        (lane,) = [lane for lane in timeline.lanes if any(span.kind is Sent.COMMIT for span in lane.spans)]
        assert [span.text for span in lane.spans if " AS " in span.text and "AS anon" not in span.text] == [
            f"SELECT 1 AS {name}"
        ]


def test_a_request_inside_another(app: Flask, uow: UnitOfWork) -> None:
    """It has a timeline of its own, and the outer one goes on after it."""
    timelines = keep_timelines(app)

    @app.get("/inner")
    @transactional(read_only=True)
    def inner() -> str:
        uow.session.execute(sa.text("SELECT 'inner'"))
        return "ok"

    @app.get("/outer")
    def outer() -> str:
        app.test_client().get("/inner")
        uow.session.execute(sa.text("SELECT 'outer'"))
        return "ok"

    app.test_client().get("/outer")

    texts = [[span.text for lane in timeline.lanes for span in lane.spans] for timeline in timelines]
    assert [timeline.request for timeline in timelines] == ["GET /inner", "GET /outer"]
    assert ["SELECT 'inner'" in each for each in texts] == [True, False]
    assert ["SELECT 'outer'" in each for each in texts] == [False, True]


@pytest.mark.parametrize("kind", ["copied context", "copied request"])
def test_a_thread_that_works_for_the_request(app: Flask, uow: UnitOfWork, kind: str) -> None:
    """What it sends is the request's."""

    def work() -> None:
        with transactional(read_only=True):
            uow.session.execute(sa.text("SELECT 'thread'"))

    def view() -> None:
        context = contextvars.copy_context()
        run = (lambda: context.run(work)) if kind == "copied context" else copy_current_request_context(work)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE_S)

    timeline = timeline_of(app, view)

    assert "SELECT 'thread'" in [span.text for lane in timeline.lanes for span in lane.spans]


def test_a_thread_with_a_context_of_its_own(app: Flask, uow: UnitOfWork) -> None:
    """It is no part of the request."""

    def work() -> None:
        with app.app_context(), transactional(read_only=True):
            uow.session.execute(sa.text("SELECT 'thread'"))

    def view() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(DEADLINE_S)

    timeline = timeline_of(app, view)

    assert timeline.is_empty


def test_an_async_view(app: Flask, uow: UnitOfWork) -> None:
    """Its event loop runs in another thread."""
    timelines = keep_timelines(app)

    @app.get("/")
    @transactional
    async def view() -> str:
        await asyncio.sleep(0)
        add(uow, "item")
        return "ok"

    app.test_client().get("/")

    (timeline,) = timelines
    assert sent(timeline.lanes[0])[-2:] == ["INSERT", "COMMIT"]
    assert [unit.outcome for unit in timeline.units] == ["committed"]


def test_a_retried_unit(app: Flask, uow: UnitOfWork) -> None:
    """Each attempt is seen, and how it ended."""

    class Deadlock(Exception):
        sqlstate = "40P01"

    @transactional(retries=1, label="again")
    def unit(attempts: list[int]) -> None:
        attempts.append(1)
        add(uow, f"item {len(attempts)}")
        if len(attempts) == 1:
            raise OperationalError("SELECT 1", None, Deadlock())

    timeline = timeline_of(app, lambda: unit([]))

    assert [(each.attempt, each.outcome) for each in timeline.units] == [(1, "rolled back"), (2, "committed")]


class slow_to_compile(sa.sql.functions.FunctionElement[int]):  # noqa: N801  # as SQLAlchemy names its functions
    """A function that takes SQLAlchemy some time to put into SQL."""

    inherit_cache = False
    type = sa.Integer()


@compiles(slow_to_compile)
def _compile_slowly(element: object, compiler: object, **options: object) -> str:
    time.sleep(PAUSE_S)
    return "abs(1)"


def add(uow: UnitOfWork, name: str) -> None:
    uow.session.add(Item(name=name))
    uow.session.flush()


def _span(start: float, end: float, *, in_transaction: bool, trips: int = 1) -> Span:
    return Span(Sent.STATEMENT, start, end, "SELECT 1", trips=trips, is_in_transaction=in_transaction)
