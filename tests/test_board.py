"""The board: what is written there as units, sessions and connections come and go, and what is read of it."""

from __future__ import annotations

import contextvars
import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool, StaticPool

from flask_uow import Propagation, UnitOfWork, _board, current_unit, stats, transactional
from flask_uow._state import guarded_state
from flask_uow.exceptions import RuleViolationError, UnitFailedError
from flask_uow.stats import State
from flask_uow.stats._boards import copy_of_own
from flask_uow.stats._workers import counts_of
from tests import boards
from tests.boards import live_until, read_until
from tests.contrib.owners import OWNERS
from tests.databases import Database, PostgreSQLDatabase
from tests.models import Item, make_app

DEADLINE_S = 30.0
HELD_UP = 4711
"""The advisory lock for which the tests' statements wait."""
BACKEND = sa.text("SELECT pg_backend_pid()")
ONE = sa.text("SELECT 1")
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
on_psycopg2 = pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
HERE = re.escape("tests/test_board.py")


@pytest.fixture
def make(database: Database, uow: UnitOfWork, tmp_path: Path) -> Callable[..., Flask]:
    """A function that makes an app with configuration keys, whose board lies in a file."""
    return lambda **config: make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"), **config)


@pytest.fixture
def app(make: Callable[..., Flask]) -> Flask:
    """An app with the default configuration."""
    return make()


def totals(app: Flask) -> stats.Counts:
    """What the app's workers have counted."""
    return stats.read_boards(app).totals


def label_counts(app: Flask, label: str) -> stats.LabelCounts:
    """What they have counted of one label."""
    (found,) = (each for each in totals(app).labels if each.label == label)
    return found


def live(app: Flask) -> tuple[stats.LiveUnit, ...]:
    """What the test's process does now."""
    (worker,) = stats.read_boards(app).workers
    return worker.live


def pool(app: Flask, bind: str = "default") -> stats.PoolSnapshot:
    """A pool of it."""
    (worker,) = stats.read_boards(app).workers
    (found,) = (each for each in worker.pools if each.bind == bind)
    return found


@contextmanager
def in_thread(function: Callable[[], Any], name: str = "clerk") -> Iterator[Future[Any]]:
    """Run a function in a thread, and wait for it at the end."""
    with ThreadPoolExecutor(1, thread_name_prefix=name) as threads:
        yield (future := threads.submit(function))
        future.result(DEADLINE_S)


@contextmanager
def holding_up(database: Database) -> Iterator[sa.TextClause]:
    """Give a statement that waits until the block ends."""
    assert database.is_postgresql, "SQLite has no statement that waits"
    connection = database.connect()
    connection.cursor().execute(f"SELECT pg_advisory_lock({HELD_UP})")
    try:
        yield sa.text(f"SELECT 1 FROM pg_advisory_xact_lock({HELD_UP})")
    finally:
        connection.close()


# ---- units


def test_units_are_counted_by_how_they_end(app: Flask, uow: UnitOfWork) -> None:
    """Committed, rolled back by an exception or on demand, failed because an error was swallowed; by label as well."""

    def unit(label: str, end: Callable[[], object]) -> None:
        with suppress(ValueError, UnitFailedError), transactional(label=label):
            uow.session.execute(ONE)
            end()

    def swallow() -> None:
        with suppress(sa.exc.IntegrityError):
            uow.session.execute(sa.insert(Item).values(id=1, name="one"))
            uow.session.execute(sa.insert(Item).values(id=1, name="two"))
        uow.session.add(Item(id=1, name="three"))

    def refuse() -> None:
        raise ValueError("no")

    def set_back() -> None:
        current_unit.set_rollback_only()

    with app.app_context():
        for _ in range(3):
            unit("kept", lambda: None)
        for _ in range(2):
            unit("raises", refuse)
        unit("is set back", set_back)
        with suppress(sa.exc.IntegrityError, UnitFailedError):
            unit("cannot be kept", swallow)

    counts = totals(app)
    assert counts.units == stats.UnitCounts(begun=7, committed=3, rolled_back=3, failed=1)
    assert [(each.label, each.count, each.errors) for each in counts.labels] == [
        ("kept", 3, 0),
        ("raises", 2, 2),
        ("is set back", 1, 0),
        ("cannot be kept", 1, 1),
    ]


@on_postgresql
def test_attempts_are_counted_and_shown(app: Flask, uow: UnitOfWork) -> None:
    """Each attempt is a unit that began and ended; the number of the present one is on the board."""
    seen: list[tuple[int, ...]] = []

    @transactional(retries=3)
    def twice_in_vain() -> None:
        seen.append(tuple(unit.attempt for unit in live(app)))
        uow.session.execute(ONE)
        if len(seen) < 3:
            uow.session.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))

    with app.app_context():
        twice_in_vain()

    assert seen == [(1,), (2,), (3,)]
    assert totals(app).units == stats.UnitCounts(begun=3, committed=1, rolled_back=2, retried=2)
    assert label_counts(app, f"{twice_in_vain.__qualname__}").count == 3


def test_statements_are_counted_in_units_and_outside(app: Flask, uow: UnitOfWork) -> None:
    """A label has those of its units, inner ones included; the worker has all of them, once."""
    with app.app_context():
        with transactional(label="outer"):
            uow.session.execute(ONE)
            with transactional(label="inner"):
                uow.session.execute(ONE)
                uow.session.execute(ONE)
            uow.session.execute(ONE)
        uow.session.execute(ONE)
        uow.session.execute(ONE)

    of_savepoint = 2  # SAVEPOINT and RELEASE
    assert label_counts(app, "outer").statements == 4 + of_savepoint
    assert label_counts(app, "inner").statements in (2, 3, 4)
    assert totals(app).statements == 4 + of_savepoint + 2


def test_what_a_session_has_sent_before_is_none_of_its_statements_now(app: Flask, uow: UnitOfWork) -> None:
    """Outside of units, it is shown since it has taken its connection."""
    with app.app_context():
        with transactional(label="before"):
            uow.session.execute(ONE)
            uow.session.execute(ONE)
        uow.session.execute(ONE)
        first = [unit.statements for unit in live(app)]
        uow.session.rollback()
        uow.session.execute(ONE)
        second = [unit.statements for unit in live(app)]

    assert first == second == [1]
    assert totals(app).statements == 4


def test_a_session_that_has_sent_millions_of_statements_tells_times_all_the_same(app: Flask, uow: UnitOfWork) -> None:
    """A job that works through a queue in one context, unit by unit; and its statements are all counted."""
    millions = 60_000_000
    with app.app_context():
        guarded_state(uow.session()).told += millions * _board.STATEMENT
        with transactional(label="job"):
            uow.session.add(Item(name="job"))
            uow.session.flush()
            (shown,) = live(app)

    assert shown.state == State.IDLE
    assert 0.0 < shown.state_seconds <= shown.seconds
    assert totals(app).statements == millions + 1
    assert label_counts(app, "job").statements == 1


def test_a_unit_without_statements_counts_as_a_unit_alone(app: Flask, uow: UnitOfWork) -> None:
    """It held no connection, and was never idle in a transaction."""
    with app.app_context(), transactional(label="empty"):
        pass

    counts = totals(app)
    assert counts.units == stats.UnitCounts(begun=1, committed=1)
    assert counts.unit_seconds.count == 1
    assert (counts.held_seconds.count, counts.idle_seconds.count, counts.statements) == (0, 0, 0)


def test_times_are_in_their_buckets(app: Flask, uow: UnitOfWork) -> None:
    """How long a unit took, how long it had a connection, how long that was idle: each at least what was slept."""
    with app.app_context():
        for nap_s in (0.03, 0.0):
            with transactional(label="slow"):
                time.sleep(nap_s)
                uow.session.execute(ONE)
                time.sleep(2 * nap_s)
                uow.session.execute(ONE)

    counts = totals(app)
    bounds = (*stats.BUCKET_BOUNDS_SECONDS, float("inf"))
    for histogram, least_s in ((counts.unit_seconds, 0.09), (counts.held_seconds, 0.06), (counts.idle_seconds, 0.06)):
        assert histogram.count == 2
        assert histogram.total_seconds >= least_s
        longest = max(bucket for bucket, number in enumerate(histogram.counts) if number)
        assert bounds[longest] >= least_s
    assert counts.unit_seconds.total_seconds >= counts.held_seconds.total_seconds >= counts.idle_seconds.total_seconds
    slow = label_counts(app, "slow")
    assert slow.total_seconds >= slow.worst_seconds >= 0.09
    assert slow.total_seconds == pytest.approx(counts.unit_seconds.total_seconds, abs=1e-5)


@pytest.mark.parametrize(
    ("took_s", "idle_s", "held_s", "buckets"),
    [
        (0.001, 0.001, 0.001, (0, 0, 0)),
        (0.0005, 0.0, 0.0005, (0, 0, 0)),
        (0.0005, 0.004, 0.004, (0, 2, 2)),
        (0.003, 0.0005, 0.002, (2, 0, 1)),
        (90.0, 61.0, 60.0, (15, 15, 14)),
        (0.0005, 0.0, 0.0, (0, None, None)),
    ],
)
def test_each_time_is_in_the_bucket_of_its_bound(
    took_s: float, idle_s: float, held_s: float, buckets: tuple[int | None, ...]
) -> None:
    """The bounds belong to their buckets; a unit without a connection held none and idled on none."""
    board = _board.Board("bank", "host", 0)
    for is_inner in (False, True):
        row = board.row("unit", None, is_inner=is_inner)
        board.count_unit(row, _board.Outcome.COMMITTED, False, 1.0, took_s, idle_s, held_s)

    counts = counts_of(copy_of_own(board))

    for histogram, bucket in zip((counts.unit_seconds, counts.idle_seconds, counts.held_seconds), buckets, strict=True):
        assert [number for number, count in enumerate(histogram.counts) if count] == (
            [] if bucket is None else [bucket]
        )
        assert histogram.count == (bucket is not None)


def test_violations_are_counted_by_code(app: Flask, uow: UnitOfWork) -> None:
    """Those that raise as well as those that warn."""
    with app.app_context():
        for _ in range(2):
            with pytest.raises(RuleViolationError, match="UOW101"), transactional():
                uow.session.commit()
        with pytest.warns(match="UOW104"):
            uow.session.commit()

    assert totals(app).rules == {"UOW101": 2, "UOW104": 1}


def test_sessions_are_counted(app: Flask, uow: UnitOfWork) -> None:
    """One for each context that uses it, and one for each independent unit; what is open now is the difference."""
    for _ in range(3):
        with app.app_context():
            uow.session.execute(ONE)
    with app.app_context():
        with transactional(propagation=Propagation.REQUIRES_NEW):
            pass
        open_now = totals(app).sessions

    ended = totals(app).sessions
    assert open_now.opened - open_now.closed == 1
    assert ended.opened == ended.closed == open_now.opened
    assert ended.opened in (4, 5)
    assert ended.leaked == 0


# ---- labels


@pytest.mark.parametrize(
    "label",
    ["x" * 1000, "ü" * 1000, "漢" * 500, "🏦" * 300, "a\n\x1b[31m\0b", "(others)", "e\u0301" * 90],
    ids=["long", "umlauts", "kanji", "emoji", "controls", "(others)", "combining"],
)
@on_sqlite
def test_any_label_is_counted_and_shown_as_far_as_there_is_room(app: Flask, uow: UnitOfWork, label: str) -> None:
    """A label that is too long ends with dots, in whole characters; a neighbour has its own."""
    with app.app_context():
        for each in (label, "neighbour", label):
            with transactional(label=each):
                uow.session.execute(ONE)
                (shown,) = live(app)
                assert len(shown.label.encode()) <= _board.TEXT_WORDS * _board.WORD
                stem = shown.label.removesuffix("…")
                assert each.startswith(stem)
                assert len(stem) > 30 or shown.label == each

    counts = totals(app)
    assert sorted(each.count for each in counts.labels) == [1, 2]
    assert counts.units.committed == 3


@on_sqlite
def test_a_session_whose_context_was_dropped_is_closed(app: Flask, uow: UnitOfWork) -> None:
    """A thread may push a context and end without another word; its unit is not at work for ever."""

    def work() -> None:
        app.app_context().push()
        transactional(label="left open", read_only=True).__enter__()
        uow.session.execute(ONE)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE_S)
    gc.collect()

    (worker,) = stats.read_boards(app).workers
    assert worker.live == ()
    assert (worker.counts.sessions.opened, worker.counts.sessions.closed) == (1, 1)
    assert (worker.counts.units.begun, worker.counts.units.rolled_back) == (1, 1)


@on_sqlite
def test_one_label_on_two_lines_is_two(app: Flask, uow: UnitOfWork) -> None:
    """Each is shown with its line, and so is a label that is inside another unit as well as by itself."""
    with app.app_context():
        with transactional(label="same"):
            pass
        with transactional(label="same"):
            pass
        with transactional(label="around"):
            for _ in range(2):
                with transactional(label="inner"):
                    pass
        for _ in range(3):
            with transactional(label="inner"):
                pass

    found = [(each.label, each.is_inner, each.count) for each in totals(app).labels]
    assert sorted(found) == [
        ("around", False, 1),
        ("inner", False, 3),
        ("inner", True, 2),
        ("same", False, 1),
        ("same", False, 1),
    ]
    lines = {each.where for each in totals(app).labels}
    assert len(lines) == 5
    assert all(re.fullmatch(rf"{HERE}:\d+ in \w+", str(line)) for line in lines)


@on_sqlite
def test_a_function_that_is_defined_inside_another_goes_with_what_it_refers_to(app: Flask, uow: UnitOfWork) -> None:
    """A label stays for as long as the process, and what a view has read for one request does not."""

    class Upload: ...

    def serve() -> weakref.ref[Upload]:
        upload = Upload()

        @transactional(label="save")
        def save() -> Upload:
            return upload

        save()
        return weakref.ref(upload)

    with app.app_context():
        uploads = [serve() for _ in range(2)]
    gc.collect()

    assert [upload() for upload in uploads] == [None, None]
    assert label_counts(app, "save").count == 2


def test_labels_without_room_are_counted_as_others(app: Flask, uow: UnitOfWork) -> None:
    """How many found no row is told, and their units are in the sums, inner ones apart."""
    room = _board.MAX_LABELS - 2
    with app.app_context():
        for number in range(room + 10):
            with transactional(label=f"unit {number}"):
                pass
        with transactional(label="unit 0"), transactional(label="inner, too late"):
            (shown, inner) = live(app)

    (worker,) = stats.read_boards(app).workers
    assert worker.untold["labels"] >= 11
    assert set(worker.untold) == {"labels"}
    assert worker.counts.units.committed == room + 11
    assert {(each.label, each.is_inner): each.count for each in worker.counts.labels[-2:]} == {
        ("(others)", False): 11,
        ("(others)", True): 1,
    }
    assert sum(each.count for each in worker.counts.labels if not each.is_inner) == room + 11
    assert (shown.label, inner.label) == ("(others)", "(others)"), "the first is on another line than those before"


# ---- live units: what they do


def test_a_live_unit_is_shown_with_all_that_is_known_of_it(app: Flask, uow: UnitOfWork) -> None:
    """Label, line, thread, depth, attempt, state, ages, statements, and the server's process."""
    began_s = time.monotonic()
    with app.app_context(), transactional(label="work") as unit:
        (begun,) = live(app)
        uow.session.execute(ONE)
        uow.session.execute(ONE)
        pid = uow.session.scalar(BACKEND) if unit.session.get_bind().dialect.name == "postgresql" else None
        (shown,) = live(app)
        most_s = time.monotonic() - began_s
    assert live(app) == ()

    assert (begun.state, begun.statements, begun.backend_pids) == (State.NO_TRANSACTION, 0, ())
    assert begun.state_seconds == begun.seconds
    assert (shown.kind, shown.label, shown.depth, shown.attempt) == ("unit", "work", 1, 1)
    assert re.fullmatch(rf"{HERE}:\d+ in test_a_live_unit_is_shown_with_all_that_is_known_of_it", str(shown.where))
    assert (shown.thread, shown.thread_id) == (threading.current_thread().name, threading.get_native_id())
    assert shown.state == State.IDLE
    assert 0 < shown.state_seconds <= shown.seconds <= most_s
    assert shown.statements == (2 if pid is None else 3)
    assert shown.backend_pids == (() if pid is None else (pid,))


@on_postgresql
def test_a_statement_that_waits_is_seen_from_outside(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Running SQL, for as long as it does; then idle, from then on."""
    goes_on = threading.Event()

    def work() -> None:
        with app.app_context(), transactional(label="work"):
            uow.session.execute(ONE)
            uow.session.execute(waits)
            assert goes_on.wait(DEADLINE_S)

    with holding_up(database) as waits, in_thread(work):
        first = live_until(app, lambda unit: unit.state == State.RUNNING and unit.statements == 2)
        later = live_until(app, lambda unit: unit.state_seconds > 0.05)
        database_unlock(database)
        idle = live_until(app, lambda unit: unit.state == State.IDLE)
        goes_on.set()

    assert first.thread.startswith("clerk")
    assert later.state == State.RUNNING
    assert later.seconds >= later.state_seconds >= 0.05
    assert idle.statements == 2


@on_postgresql
def test_a_commit_that_waits_is_committing(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Deferred constraints are checked by COMMIT, which may take long."""
    database.execute(
        f"""CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN PERFORM pg_advisory_xact_lock({HELD_UP}); RETURN NULL; END'"""
    )
    database.execute(
        """CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION wait()"""
    )

    def work() -> None:
        with app.app_context(), transactional(label="outer"):
            uow.session.execute(ONE)
            with transactional(label="inner"):
                uow.session.add(Item(name="checked late"))

    with holding_up(database), in_thread(work) as result:
        shown = live_until(app, lambda unit: unit.state == State.COMMITTING)
        assert not result.done()
        assert totals(app).units == stats.UnitCounts(begun=1)
        database_unlock(database)

    assert shown.label == "outer"
    assert shown.backend_pids
    assert totals(app).units == stats.UnitCounts(begun=1, committed=1)


def database_unlock(database: Database) -> None:
    """End whoever holds everybody up."""
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks"
        f" WHERE locktype = 'advisory' AND objid = {HELD_UP} AND granted AND pid <> pg_backend_pid()"
    )


def test_a_unit_that_waits_for_a_connection_says_so(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """The pool counts who waits; and who has waited in vain, and how long the longest wait was."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": DEADLINE_S})

    def work() -> None:
        with app.app_context(), transactional(label="second", read_only=True):
            uow.session.execute(ONE)

    with app.app_context(), ThreadPoolExecutor(1) as threads:
        with transactional(label="first", read_only=True):
            uow.session.execute(ONE)
            result = threads.submit(work)
            shown = live_until(app, lambda unit: unit.state == State.WAITING and unit.state_seconds > 0.02)
            busy = pool(app)
        result.result(DEADLINE_S)

    assert (shown.label, shown.backend_pids, shown.statements) == ("second", (), 0)
    assert (busy.size, busy.checked_out, busy.checked_in, busy.overflow, busy.max_overflow) == (1, 1, 0, 0, 0)
    assert (busy.waiting, busy.timeouts, busy.timeout_seconds) == (1, 0, DEADLINE_S)
    assert busy.longest_wait_seconds is not None
    assert busy.longest_wait_seconds > 0.02, "it goes on"
    idle = pool(app)
    assert (idle.checked_out, idle.checked_in, idle.waiting) == (0, 1, 0)
    assert idle.longest_wait_seconds is not None
    assert idle.longest_wait_seconds >= 0.02


def test_a_unit_that_has_waited_in_vain_waits_no_more(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """It has swallowed the pool's error, and does something else."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.02})
    with app.app_context(), uow.engine.connect(), transactional(label="goes on"):
        with pytest.raises(sa.exc.TimeoutError):
            uow.session.execute(ONE)
        (shown,) = (unit for unit in live(app) if unit.kind == "unit")
        assert shown.state == State.NO_TRANSACTION
        assert pool(app).waiting == 0


def test_waits_in_vain_are_counted(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """``TimeoutError`` of the pool, whoever gets it: a unit, a session outside, or a connection by hand."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.02})

    def unit() -> None:
        with app.app_context(), transactional():
            uow.session.execute(ONE)

    def session() -> None:
        with app.app_context():
            uow.session.execute(ONE)

    def by_hand() -> None:
        with app.app_context(), uow.engine.connect():
            pass

    with app.app_context(), transactional(read_only=True):
        uow.session.execute(ONE)
        for number, work in enumerate((unit, session, by_hand), 1):
            with ThreadPoolExecutor(1) as threads, pytest.raises(sa.exc.TimeoutError, match="QueuePool limit"):
                threads.submit(work).result(DEADLINE_S)
            assert pool(app).timeouts == number
            assert len(live(app)) == 1, "nobody waits any more"

    assert pool(app).checked_out == 0
    assert totals(app).units.rolled_back == 1


def test_connections_beyond_the_pool_are_its_overflow(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """As SQLAlchemy counts them."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 2})
    with app.app_context(), ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(uow.engine.connect())
        full, real = pool(app), uow.engine.pool
        assert isinstance(real, sa.QueuePool)
        assert full.class_name == "QueuePool"
        assert (full.checked_out, full.overflow) == (real.checkedout(), real.overflow()) == (3, 2)
        assert full.usage == 1.0
        connection.close()
        kept = pool(app)
        assert (kept.checked_out, kept.overflow) == (real.checkedout(), real.overflow()) == (2, 2)
    empty = pool(app)

    assert (empty.checked_out, empty.checked_in, empty.overflow) == (0, 1, 0)


@on_postgresql
@pytest.mark.filterwarnings("ignore:.UOW110")
def test_a_connection_that_the_pool_has_no_room_for_is_gone_at_once(
    make: Callable[..., Flask], uow: UnitOfWork, without_collector: None
) -> None:
    """Also where an error that it has met keeps it in memory."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 1})
    with app.app_context(), suppress(sa.exc.DBAPIError), transactional():
        uow.session.execute(ONE)
        uow.engine.connect().close()
        uow.session.execute(sa.text("SELECT 1 / 0"))

    open_ones = pool(app)
    assert (open_ones.checked_out, open_ones.checked_in, open_ones.overflow) == (0, 1, 0)
    assert len(stats.read_boards(app).workers[0].backend_pids) == 1


@pytest.mark.parametrize("pool_class", [NullPool, StaticPool])
def test_pools_of_other_kinds_are_shown(make: Callable[..., Flask], uow: UnitOfWork, pool_class: Any) -> None:
    """They have no size; what is in use is known all the same, and so is who has it."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"poolclass": pool_class})
    with app.app_context(), transactional(label="work"):
        uow.session.execute(ONE)
        busy, (shown,) = pool(app), live(app)
    idle = pool(app)

    assert (busy.class_name, busy.size, busy.overflow, busy.limit) == (pool_class.__name__, None, None, None)
    assert (busy.checked_out, idle.checked_out) == (1, 0)
    assert (shown.label, shown.state) == ("work", State.IDLE)
    assert totals(app).held_seconds.count == 1
    uow_dispose(app, uow)


def uow_dispose(app: Flask, uow: UnitOfWork) -> None:
    """Close what a pool holds that the tests' own look does not know."""
    with app.app_context():
        uow.engine.dispose()


class Base(DeclarativeBase):
    """Of the models of the second bind."""


class Remote(Base):
    """A row in another database."""

    __tablename__ = "remote"
    __bind_key__ = "remote"
    id: Mapped[int] = mapped_column(primary_key=True)


@on_postgresql
def test_a_second_bind_has_a_pool_of_its_own(
    make: Callable[..., Flask], uow: UnitOfWork, second_database: Database
) -> None:
    """A unit that speaks to both databases holds a connection of each, and both servers' processes are told."""
    app = make(SQLALCHEMY_BINDS={"remote": second_database.url})
    second_database.execute("CREATE TABLE remote (id INTEGER)")
    with app.app_context(), transactional(label="both"):
        pids = [uow.session.scalar(BACKEND)]
        uow.session.scalars(sa.select(Remote)).all()
        pids.append(uow.session.scalar(BACKEND, bind_arguments={"bind": uow.engines["remote"]}))
        (shown,) = live(app)
        busy = pool(app), pool(app, "remote")

    assert dict(zip(shown.binds, shown.backend_pids, strict=True)) == dict(
        zip(("default", "remote"), pids, strict=True)
    )
    assert len(set(pids)) == 2
    assert [each.checked_out for each in busy] == [1, 1]
    assert [pool(app, bind).checked_out for bind in ("default", "remote")] == [0, 0]
    (worker,) = stats.read_boards(app).workers
    assert sorted(worker.backend_pids) == sorted(pids), "those in the pools are still the worker's"


# ---- live units: inside each other


def test_inner_units_stand_below_the_outer_one(app: Flask, uow: UnitOfWork) -> None:
    """The outermost first, with depths; what the innermost does is what all of them do."""
    with app.app_context():
        with transactional(label="one"):
            uow.session.execute(ONE)
            with transactional(label="two"), transactional(label="three", propagation="required"):
                uow.session.execute(ONE)
                inside = live(app)
            between = live(app)
        assert live(app) == ()

    assert [(unit.label, unit.depth, unit.state) for unit in inside] == [
        ("one", 1, State.IDLE),
        ("two", 2, State.IDLE),
        ("three", 3, State.IDLE),
    ]
    assert inside[0].statements > inside[1].statements >= inside[2].statements >= 1
    assert len({unit.state_seconds for unit in inside}) == 1
    assert inside[0].seconds >= inside[1].seconds >= inside[2].seconds
    assert [unit.label for unit in between] == ["one"]


def test_a_unit_goes_on_from_where_the_one_inside_it_was(app: Flask, uow: UnitOfWork) -> None:
    """It has sent the inner one's statements, and has been idle since the last of them, not since its own last one."""
    with app.app_context(), transactional(label="outer"):
        uow.session.execute(ONE)
        time.sleep(0.05)
        before_s = time.monotonic()
        with transactional(label="inner"):
            uow.session.execute(ONE)
            (_, inner) = live(app)
        (outer,) = live(app)
        idle_s = time.monotonic() - before_s

    assert outer.statements > inner.statements
    assert (outer.state, outer.label) == (State.IDLE, "outer")
    assert outer.state_seconds <= idle_s


def test_a_unit_is_idle_since_the_last_statement_whoever_sent_it(app: Flask, uow: UnitOfWork) -> None:
    """A unit that begins inside another one, and sends nothing, does not hide how long the server has waited."""
    with app.app_context(), transactional(label="outer"):
        uow.session.execute(ONE)
        time.sleep(0.05)
        with transactional(label="joins", propagation="required"):
            (outer, inner) = live(app)

    assert outer.state == inner.state == State.IDLE
    assert outer.state_seconds == inner.state_seconds >= 0.05


@on_postgresql
def test_an_independent_unit_is_one_of_its_own(app: Flask, uow: UnitOfWork) -> None:
    """It has another connection; the one around it goes on being idle meanwhile."""
    with app.app_context(), transactional(label="around"):
        pid = uow.session.scalar(BACKEND)
        with transactional(label="independent", propagation="requires_new"):
            own_pid = uow.session.scalar(BACKEND)
            shown = {unit.label: unit for unit in live(app)}
            busy = pool(app)

    assert (shown["around"].depth, shown["independent"].depth) == (1, 1)
    assert shown["around"].backend_pids == (pid,)
    assert shown["independent"].backend_pids == (own_pid,)
    assert shown["around"].state_seconds > shown["independent"].state_seconds
    assert busy.checked_out == 2
    assert totals(app).units == stats.UnitCounts(begun=2, committed=2)


def test_a_unit_that_a_generator_holds_open_is_shown_until_it_ends(app: Flask, uow: UnitOfWork) -> None:
    """Whoever left it there: it still has its connection."""

    def numbers() -> Generator[int, None, None]:
        with transactional(label="generator", read_only=True):
            yield int(uow.session.scalar(ONE) or 0)

    with app.app_context():
        generator = numbers()
        assert next(generator) == 1
        (held,) = live(app)
        assert next(generator, None) is None
        assert live(app) == ()

    assert (held.label, held.state) == ("generator", State.IDLE)
    assert totals(app).units == stats.UnitCounts(begun=1, committed=1)


@on_sqlite
def test_a_unit_that_outlives_its_thread_keeps_its_place(app: Flask, uow: UnitOfWork) -> None:
    """A generator that another thread reads to its end: the next thread's unit does not speak in its place."""
    ending = ExitStack()

    def leave() -> contextvars.Context:
        app.app_context().push()
        ending.enter_context(transactional(label="left"))
        return contextvars.copy_context()

    with in_thread(leave, "first") as left:
        pass
    gc.collect()

    def show() -> tuple[stats.LiveUnit, ...]:
        with app.app_context(), transactional(label="next"):
            return live(app)

    with in_thread(show, "second") as shown:
        pass
    left.result().run(ending.close)

    assert [(unit.label, unit.thread) for unit in shown.result()] == [("left", "first_0"), ("next", "second_0")]
    assert live(app) == ()
    assert totals(app).units == stats.UnitCounts(begun=2, committed=2)


@pytest.mark.filterwarnings("ignore:.UOW")
def test_a_unit_that_is_left_open_ends_with_its_context(app: Flask, uow: UnitOfWork) -> None:
    """Nothing stays on the board; it was rolled back."""

    def numbers() -> Generator[int, None, None]:
        with transactional(label="left"):
            yield int(uow.session.scalar(ONE) or 0)

    with app.app_context():
        generator = numbers()
        next(generator)
        assert [unit.label for unit in live(app)] == ["left"]

    assert live(app) == ()
    assert totals(app).units == stats.UnitCounts(begun=1, rolled_back=1)
    assert totals(app).statements == totals(app).labels[0].statements == 1
    assert pool(app).checked_out == 0
    with suppress(UnitFailedError):
        generator.close()
    assert totals(app).units == stats.UnitCounts(begun=1, rolled_back=1), "once"
    assert totals(app).statements == 1


# ---- outside of units


def test_a_session_outside_of_units_is_shown_while_it_has_a_connection(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """With the view, or the function, that has begun its transaction."""

    @app.get("/read/<int:number>")
    def read(number: int) -> str:
        uow.session.execute(ONE)
        seen.extend(live(app))
        return "read"

    seen: list[stats.LiveUnit] = []
    assert app.test_client().get("/read/1").text == "read"
    with app.app_context():
        uow.session.execute(ONE)
        seen.extend(live(app))
    assert live(app) == ()

    by_view, by_function = seen
    assert (by_view.kind, by_view.label, by_view.depth) == ("session", "GET /read/<int:number>", 0)
    assert re.match(rf"{HERE}:\d+ in .*read$", str(by_view.where))
    begun = State.IDLE if database.is_postgresql else State.NO_TRANSACTION
    assert by_view.state == by_function.state == begun, "SQLite begins none to read"
    assert by_function.label == "test_a_session_outside_of_units_is_shown_while_it_has_a_connection"
    assert totals(app).held_seconds.count == 2
    assert totals(app).units == stats.UnitCounts()


def test_a_connection_by_hand_is_shown_while_it_is_out(app: Flask, uow: UnitOfWork) -> None:
    """With the line that took it: inside a unit that has one itself, and outside of units."""
    with app.app_context():
        with uow.engine.connect() as connection:
            connection.execute(ONE)
            (alone,) = live(app)
            busy = pool(app)
        with transactional(label="work", read_only=True):
            uow.session.execute(ONE)
            with uow.engine.connect():
                inside = {unit.kind: unit for unit in live(app)}
    assert live(app) == ()

    assert (alone.kind, alone.state, alone.depth) == ("connection", State.HELD, 0)
    assert re.match(rf"{HERE}:\d+ in test_a_connection_by_hand", str(alone.where))
    assert busy.checked_out == 1
    assert set(inside) == {"unit", "connection"}
    assert totals(app).held_seconds.count == 3


def test_a_connection_by_hand_before_the_units_own_is_shown_too(app: Flask, uow: UnitOfWork) -> None:
    """Also if the pool has one at hand: the unit has none yet, and this one is not its session's."""
    with app.app_context():
        with uow.engine.connect():
            pass
        with transactional(label="work"):
            with uow.engine.connect():
                shown = {unit.kind: unit for unit in live(app)}
                busy = pool(app)

    assert busy.checked_out == 1
    assert shown["unit"].state == State.NO_TRANSACTION
    assert shown["connection"].state == State.HELD


@pytest.mark.leaves_open("it is what is tested")
def test_a_connection_that_outlives_its_context_has_leaked(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays on the board with its line until it is given back, and is counted once."""
    with app.app_context():
        connection = uow.engine.connect()

    (shown,) = live(app)
    counts = totals(app)
    assert (shown.kind, shown.state) == ("connection", State.LEAKED)
    assert re.match(rf"{HERE}:\d+ in test_a_connection_that_outlives", str(shown.where))
    assert counts.sessions.leaked == 1
    assert counts.rules == {"UOW202": 1}
    assert pool(app).checked_out == 1
    connection.close()
    assert live(app) == ()
    assert pool(app).checked_out == 0
    assert totals(app).sessions.leaked == 1


@pytest.mark.leaves_open("it is what is tested")
def test_a_connection_that_was_taken_first_in_a_unit_leaks_too(app: Flask, uow: UnitOfWork) -> None:
    """Whether or not the pool had one at hand."""
    with app.app_context():
        with uow.engine.connect():
            pass
        with transactional(label="work"):
            connection = uow.engine.connect()

    shown = [unit.state for unit in live(app)]
    leaked = totals(app).sessions.leaked
    connection.close()
    assert shown == [State.LEAKED]
    assert leaked == 1


@pytest.mark.leaves_open("it is what is tested")
def test_a_session_that_outlives_its_context_has_leaked(app: Flask, uow: UnitOfWork) -> None:
    """It takes a connection after its context has ended; the board says who has it until it is closed."""
    with app.app_context():
        kept = uow.session()
    with pytest.warns(match=r"\[UOW202\]"):
        kept.execute(ONE)

    assert totals(app).sessions.leaked == 1
    assert totals(app).rules == {"UOW202": 1}
    assert pool(app).checked_out == 1
    assert [unit.kind for unit in live(app)] == ["session"]
    kept.close()
    assert live(app) == ()
    assert pool(app).checked_out == 0


@on_postgresql
def test_a_connection_that_is_lost_is_nobodys(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """The server's process has ended: the board forgets it, and knows the one that takes its place."""
    with app.app_context():
        with suppress(sa.exc.DBAPIError), transactional():
            lost = uow.session.scalar(BACKEND)
            database.kill(lost)
            uow.session.execute(ONE)
        with transactional(label="next"):
            pid = uow.session.scalar(BACKEND)
            (shown,) = live(app)
            (worker,) = stats.read_boards(app).workers

    assert shown.backend_pids == (pid,)
    assert lost not in worker.backend_pids
    assert pool(app).checked_out == 0


@on_postgresql
def test_a_unit_that_has_lost_its_connection_is_in_no_transaction(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """The server has no session of it any more, and nothing is idle there, however long the view goes on."""
    seen: list[stats.LiveUnit] = []
    with app.app_context(), pytest.raises(UnitFailedError), transactional(label="outer"):
        with suppress(sa.exc.SQLAlchemyError), transactional(label="inner"):
            database.kill(uow.session.scalar(BACKEND))
            with suppress(sa.exc.DBAPIError):
                uow.session.execute(ONE)
            seen += live(app)
            uow.session.execute(ONE)
        seen += live(app)

    assert [(unit.label, unit.state) for unit in seen] == [
        (label, State.NO_TRANSACTION) for label in ("outer", "inner", "outer")
    ]


@on_postgresql
def test_a_unit_that_has_lost_one_of_its_connections_is_idle_on_the_other(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """Locks are held there all the same."""
    other = sa.create_engine(database.url)
    with app.app_context(), suppress(UnitFailedError), transactional():
        uow.session.execute(ONE, bind_arguments={"bind": other})
        database.kill(uow.session.scalar(BACKEND))
        with suppress(sa.exc.DBAPIError):
            uow.session.execute(ONE)
        (shown,) = live(app)
    other.dispose()

    assert shown.state == State.IDLE


@on_postgresql
@pytest.mark.parametrize("rides", [True, False])
def test_a_unit_whose_server_is_told_of_its_end_says_what_its_transaction_does(
    make: Callable[..., Flask], uow: UnitOfWork, database: Database, rides: bool
) -> None:
    """Where that does not ride, it begins the transaction before the first statement does."""
    app = make(UOW_RIDE=rides)
    with app.app_context(), transactional(read_only=True, timeout=DEADLINE_S):
        uow.session.connection()
        (shown,) = live(app)
        is_begun = [each for each in database.sessions() if each.state == "idle in transaction"]

    assert len(is_begun) == (not rides)
    assert shown.state == (State.NO_TRANSACTION if rides else State.IDLE)


@on_postgresql
@pytest.mark.filterwarnings("ignore:.UOW109")
def test_a_unit_that_was_noticed_to_idle_is_idle_all_the_same(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """That it is noticed once is no word on its transaction."""
    app = make(UOW_MAX_IDLE_SECONDS=0.001)
    with app.app_context(), transactional():
        uow.session.execute(ONE)
        live_until(app, lambda unit: unit.state_seconds > 0.01)
        with transactional():
            pass
        with suppress(ValueError), transactional():
            raise ValueError
        (shown,) = live(app)

    assert shown.state == State.IDLE


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_unit_goes_on_when_one_inside_it_had_nothing_to_undo(app: Flask, uow: UnitOfWork, has_begun: bool) -> None:
    """It rolls nothing back any more; it is idle since its own last statement, if there was one."""
    with app.app_context(), transactional():
        if has_begun:
            uow.session.execute(ONE)
        (before,) = live(app)
        with suppress(ValueError), transactional():
            raise ValueError
        (after,) = live(app)

    assert after.state == before.state == (State.IDLE if has_begun else State.NO_TRANSACTION)
    assert after.state_seconds >= before.state_seconds


# ---- what finds no room


@on_sqlite
def test_more_units_than_slots_are_counted(app: Flask, uow: UnitOfWork) -> None:
    """What is told of them is that there are more; their numbers are right."""
    depth = _board.MAX_LIVE - _board.MAX_HOMES + 20
    with app.app_context(), ExitStack() as stack:
        for _ in range(depth):
            stack.enter_context(transactional(label="deep", propagation="required"))
        uow.session.execute(ONE)
        (worker,) = stats.read_boards(app).workers

    assert len(worker.live) == _board.MAX_LIVE - _board.MAX_HOMES
    assert {(unit.state, unit.statements) for unit in worker.live} == {(State.IDLE, 1)}, "what is shown is right"
    assert dict(worker.untold) == {"units": 20}
    counts = totals(app)
    assert counts.units == stats.UnitCounts(begun=1, committed=1)
    assert sum(each.count for each in counts.labels) == depth
    assert counts.statements == 1
    with app.app_context(), transactional(label="next"):
        assert [unit.label for unit in live(app)] == ["next"]
    with app.app_context(), ExitStack() as stack:
        for _ in range(depth):
            stack.enter_context(transactional(label="deep", propagation="required"))
        (again,) = stats.read_boards(app).workers
    assert (len(again.live), dict(again.untold)) == (len(worker.live), {"units": 40})


@on_sqlite
def test_more_connections_than_rows_are_counted(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """A pool without a limit may open more than a board has room for; they work."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": -1})
    number = _board.MAX_CONNECTIONS + 5
    with app.app_context(), ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(uow.engine.connect())
        (worker,) = stats.read_boards(app).workers
    after = pool(app)

    assert worker.untold["connections"] == 5
    assert worker.untold["units"] > 0
    assert worker.pools[0].checked_out is not None
    assert after.checked_out == 0
    assert totals(app).held_seconds.count == number
    assert live(app) == ()


@on_sqlite
def test_more_pools_than_rows_are_counted(make: Callable[..., Flask], uow: UnitOfWork) -> None:
    """Their connections are nobody's pool's on the board, and units on them are units."""
    binds = {f"bind{number}": "sqlite://" for number in range(_board.MAX_POOLS + 3)}
    app = make(SQLALCHEMY_BINDS=binds)
    with app.app_context():
        for engine in uow.engines.values():
            with engine.connect():
                pass

    (worker,) = stats.read_boards(app).workers
    assert len(worker.pools) == _board.MAX_POOLS
    assert worker.untold["pools"] >= 4
    uow_dispose(app, uow)


# ---- sessions of other libraries


@pytest.mark.parametrize("owner", OWNERS)
def test_units_on_adopted_sessions_are_published(database: Database, tmp_path: Path, owner: str) -> None:
    """Flask-SQLAlchemy, its Lite, a ``scoped_session``: with their connections and what is idle."""
    owned = OWNERS[owner](database, UOW_STATS_DIR=str(tmp_path / "boards"))
    with owned.app.app_context():
        with transactional(label="theirs"):
            owned.session().execute(ONE)
            pids = [owned.session().scalar(BACKEND)] if database.is_postgresql else []
            (shown,) = live(owned.app)
            (worker,) = stats.read_boards(owned.app).workers
        owned.session().execute(ONE)
        outside = live(owned.app)

    assert (shown.kind, shown.label, shown.state) == ("unit", "theirs", State.IDLE)
    assert list(shown.backend_pids) == pids
    assert [each.checked_out for each in worker.pools] == [1]
    counts = totals(owned.app)
    assert counts.units == stats.UnitCounts(begun=1, committed=1)
    assert counts.statements == 2 + len(pids)
    assert (counts.held_seconds.count, counts.idle_seconds.count) in ((2, 1), (1, 1))
    assert [unit.kind for unit in outside] in (["session"], [])
    assert counts.sessions.opened == counts.sessions.closed
    assert live(owned.app) == ()


@on_psycopg2
def test_two_apps_on_one_engine_have_their_own_boards(database: PostgreSQLDatabase, tmp_path: Path) -> None:
    """A registry that two apps share is the worker's of whichever app is at work."""
    engine = sa.create_engine(database.url)
    scoped = sa.orm.scoped_session(sa.orm.sessionmaker(engine))
    apps = []
    for name in ("one", "other"):
        app = Flask(name)
        app.config["UOW_STATS_DIR"] = str(tmp_path / "boards")
        UnitOfWork(app, session=scoped)
        app.teardown_appcontext(lambda exception: scoped.remove())
        apps.append(app)
    for app in apps:
        with app.app_context(), transactional(label=app.name):
            pid = scoped.scalar(BACKEND)
            (shown,) = live(app)
            assert (shown.label, shown.state) == (app.name, State.IDLE)
            assert shown.backend_pids in ((pid,), ()), "never somebody else's"
        counts = totals(app)
        assert counts.units == stats.UnitCounts(begun=1, committed=1)
        assert min(counts.idle_seconds.counts) >= 0
        assert live(app) == ()


def test_a_reader_in_a_context_reads_without_disturbing_it(app: Flask, uow: UnitOfWork) -> None:
    """Inside a unit of the app that is read: nothing of it is counted or changed."""
    with app.app_context(), transactional(label="work"):
        uow.session.execute(ONE)
        before = totals(app)
        for _ in range(3):
            stats.read_boards()
        assert totals(app) == before
    assert boards.board_files(Path(app.config["UOW_STATS_DIR"]))
    read_until(app, lambda seen: seen.totals.units.committed == 1)


# ---- what has once been told wrongly


@pytest.mark.parametrize("ends_well", [True, False], ids=["commit", "rollback"])
def test_a_unit_that_idles_before_its_end_idles_once(app: Flask, uow: UnitOfWork, ends_well: bool) -> None:
    """The commit, or the rollback, ends the wait; what the pool does after it is no second one."""
    with app.app_context(), suppress(LookupError), transactional(label="work"):
        uow.session.execute(ONE)
        time.sleep(0.05)
        if not ends_well:
            raise LookupError

    seen = totals(app)
    assert 0.05 <= seen.idle_seconds.total_seconds <= seen.unit_seconds.total_seconds


def test_an_empty_unit_that_adopts_an_idle_transaction_is_in_its_bucket(app: Flask, uow: UnitOfWork) -> None:
    """The transaction was idle for longer than the unit took."""
    with app.app_context():
        uow.session.execute(sa.insert(Item).values(name="before"))
        time.sleep(0.05)
        with transactional(label="work"):
            pass

    idle = totals(app).idle_seconds
    assert idle.total_seconds >= 0.05
    assert (idle.counts[0], idle.count) == (0, 1)


def test_a_session_that_is_removed_by_hand_is_closed(app: Flask, uow: UnitOfWork) -> None:
    """And its statements are counted."""
    with app.app_context():
        for _ in range(3):
            uow.session.execute(ONE)
            uow.session.remove()

    seen = totals(app)
    assert (seen.sessions.opened, seen.sessions.closed, seen.statements) == (3, 3, 3)


@on_sqlite
def test_a_pool_that_lends_one_connection_twice_leaves_no_place_taken(
    make: Callable[..., Flask], uow: UnitOfWork
) -> None:
    """As SQLAlchemy's StaticPool does."""
    app = make(SQLALCHEMY_ENGINE_OPTIONS={"poolclass": StaticPool, "connect_args": {"check_same_thread": False}})

    with app.app_context():
        for _ in range(_board.MAX_LIVE):
            with uow.engine.connect(), uow.engine.connect():
                pass

    (worker,) = stats.read_boards(app).workers
    assert worker.live == ()
    assert not worker.untold


def test_another_session_inside_a_unit_has_a_place_of_its_own(app: Flask, uow: UnitOfWork) -> None:
    """The unit's one holds nothing of it."""
    with app.app_context(), transactional(label="work"):
        with transactional(propagation="not_supported"):
            uow.session.execute(ONE)
            shown = {unit.kind: unit.state for unit in live(app)}
            busy = pool(app)

    assert shown.keys() == {"unit", "session"}
    assert shown["unit"] == State.NO_TRANSACTION
    assert busy.checked_out == 1


def test_a_label_without_room_is_counted_once(app: Flask, uow: UnitOfWork) -> None:
    """However often it comes."""
    with app.app_context():
        for number in range(_board.MAX_LABELS):
            for _ in range(2):
                with transactional(label=f"label {number}"):
                    pass

    (worker,) = stats.read_boards(app).workers
    assert worker.untold == {"labels": 2}


def test_nobody_has_waited_where_the_pool_had_room(app: Flask, uow: UnitOfWork) -> None:
    """The time that a connection takes to be made is no wait for the pool."""
    with app.app_context(), uow.engine.connect():
        pass

    assert pool(app).longest_wait_seconds == 0.0


def test_a_detached_connection_has_not_leaked(app: Flask, uow: UnitOfWork) -> None:
    """It is no pool's any more; a session may work on it."""
    with app.app_context(), uow.engine.connect() as connection:
        connection.execute(ONE)
        connection.rollback()
        connection.detach()
        uow.session(bind=connection)
        before = totals(app)
        with transactional(label="work"):
            uow.session.execute(ONE)
            time.sleep(0.005)
        uow.session.remove()
    after = totals(app)

    assert after.sessions.leaked == 0
    assert label_counts(app, "work").statements == 1
    assert sum(after.idle_seconds.counts[1:]) - sum(before.idle_seconds.counts[1:]) == 1
    assert sum(after.held_seconds.counts[1:]) - sum(before.held_seconds.counts[1:]) == 1
    assert pool(app).checked_out == 0


@on_sqlite
def test_what_the_collector_finds_while_a_label_is_written_is_no_deadlock(app: Flask, uow: UnitOfWork) -> None:
    """The connection of a cycle that nobody holds comes back in the middle of whatever its thread does."""
    site = WritesAndCollects()
    with app.app_context():
        holder: list[Any] = [uow.engine.connect()]
        holder.append(holder)
        del holder
        board = app.extensions["uow_state"].board
        thread = threading.Thread(target=board.row, args=("new", site), kwargs={"is_inner": False}, daemon=True)
        thread.start()
        thread.join(5.0)

    assert not thread.is_alive()


class WritesAndCollects(tuple[Any, Any]):
    """A line that lets the collector run when it is written down."""

    def __new__(cls) -> WritesAndCollects:
        return super().__new__(cls, (test_units_are_counted_by_how_they_end.__code__, 1))

    def __str__(self) -> str:
        gc.collect()
        return "somewhere"


def test_to_look_is_no_session(database: Database, tmp_path: Path) -> None:
    """A snapshot finds the engine of sessions that it does not own, and neither opens one nor publishes itself."""
    engine = sa.create_engine(database.url)
    app = Flask("bank")
    app.config["UOW_STATS_DIR"] = str(tmp_path / "boards")
    UnitOfWork(app, sessionmaker=sessionmaker(engine))
    engine.connect().close()  # SQLite's file is there

    seen = stats.snapshot(app)

    assert seen.databases[0].error is None
    assert seen.workers == ()
    assert not list(tmp_path.glob("boards/*.board"))
    engine.dispose()


def test_engines_of_another_owner_have_pools_of_their_own(
    database: Database, second_database: Database, tmp_path: Path
) -> None:
    """The first is the default one; a small one that is full does not hide behind a large one."""
    sizes = {2: database, 7: second_database, 9: second_database}
    engines = [sa.create_engine(each.url, pool_size=size) for size, each in sizes.items()]
    app = Flask("bank")
    app.config["UOW_STATS_DIR"] = str(tmp_path / "boards")
    uow = UnitOfWork(app, sessionmaker=sessionmaker())
    with app.app_context():
        for engine in engines:
            uow.session.connection(bind_arguments={"bind": engine})

    (worker,) = stats.read_boards(app).workers
    assert [each.size for each in worker.pools] == [2, 7, 9]
    assert len({each.bind for each in worker.pools}) == 3
    assert worker.pools[0].bind == "default"
    for engine in engines:
        engine.dispose()


# ---- what a unit may not cost


@on_sqlite
def test_units_start_no_thread_and_write_nothing_but_memory(app: Flask, uow: UnitOfWork) -> None:
    """What is told of a thousand units takes no call of the system that reads or writes."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("this system does not count the calls of a process")

    def calls() -> int:
        return sum(int(line.split()[1]) for line in counters.read_text().splitlines() if line.startswith("sysc"))

    def work() -> None:
        for _ in range(1000):
            with transactional(label="work"):
                pass

    with app.app_context():
        work()
        threads = threading.active_count()
        for_looking = -calls() + calls()
        before = calls()
        work()
        for_units = calls() - before

    assert for_units == for_looking
    assert threading.active_count() == threads
    assert totals(app).units.committed == 2000
