"""Threads: each has its own session, and every one of them comes back."""

import contextlib
import contextvars
import itertools
import logging
import os
import re
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, copy_current_request_context, request
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, _threads, current_unit, signals, stats, transactional
from flask_uow.exceptions import RuleViolationError, RuleWarning, UnitFailedError
from tests.databases import Database
from tests.models import Item, checked_out, make_app, names
from tests.strikes import FOLDER, SQLALCHEMY, STEP, Place, met, struck

DEADLINE_S = 15.0
THREADS = 4
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@pytest.fixture(autouse=True)
def no_collection(without_collector: None) -> None:
    """Nothing here is given back by the garbage collector."""


def run_in_thread(function: Callable[[], Any]) -> Any:
    """Run ``function`` in a thread that ends with it, and return or raise what it does."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(DEADLINE_S)


# ---- contexts of their own


def test_requests_in_threads_have_sessions_apart(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Requests that meet in the middle of their transactions do not see each other's objects."""
    barrier = threading.Barrier(THREADS)
    sessions: list[Session] = []

    @app.get("/<int:number>")
    def view(number: int) -> list[str]:
        sessions.append(uow.session())
        uow.session.add(Item(name=f"pending {number}"))
        with uow.session.no_autoflush:
            uow.session.execute(sa.text("SELECT 1"))
        barrier.wait(DEADLINE_S)
        pending = [item.name for item in uow.session.new]
        uow.session.expunge_all()
        return pending

    def get(number: int) -> Any:
        return app.test_client().get(f"/{number}").json

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(get, range(THREADS), timeout=DEADLINE_S))

    assert answers == [[f"pending {number}"] for number in range(THREADS)]
    assert len(set(map(id, sessions))) == THREADS
    assert checked_out(app) == 0


def test_units_in_threads_are_committed_apart(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """One ``transactional`` object serves them all: half of them fail, the other half is committed."""
    unit = transactional(label="shared by all threads")

    def work(number: int) -> None:
        with app.app_context(), unit:
            uow.session.add(Item(name=f"item {number}"))
            uow.session.flush()
            assert current_unit.depth == 1
            if number % 2:
                raise ValueError(number)

    with ThreadPoolExecutor(THREADS) as pool:
        results = [pool.submit(work, number) for number in range(20)]
        failed = [number for number, result in enumerate(results) if result.exception(DEADLINE_S)]

    assert failed == list(range(1, 20, 2))
    assert names(database) == sorted(f"item {number}" for number in range(0, 20, 2))
    assert checked_out(app) == 0


def test_a_copied_request_context_works_in_a_thread(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """``copy_current_request_context`` has a session of its own, which survives the request and then ends."""
    may_go_on = threading.Event()
    results: list[tuple[str, bool]] = []

    with ThreadPoolExecutor(1) as pool:

        @app.get("/")
        def view() -> str:
            outer = uow.session()
            uow.session.execute(sa.text("SELECT 1"))

            @copy_current_request_context
            def work() -> None:
                assert may_go_on.wait(DEADLINE_S)
                with transactional():
                    uow.session.add(Item(name="from the thread"))
                results.append((request.path, uow.session() is outer))

            pool.submit(work)
            return "ok"

        assert app.test_client().get("/").text == "ok"
        assert checked_out(app) == 0
        may_go_on.set()

    assert results == [("/", False)]
    assert names(database) == ["from the thread"]
    assert checked_out(app) == 0


def test_a_thread_under_a_context_that_it_pushes_itself(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """It is served as a request is, while the main thread has its own."""

    def work() -> Session:
        with app.app_context():
            with transactional():
                uow.session.add(Item(name="from the thread"))
            return uow.session()

    with app.app_context():
        session = run_in_thread(work)
        assert session is not uow.session()
        assert uow.session.scalars(sa.select(Item.name)).all() == ["from the thread"]

    assert checked_out(app) == 0


def test_a_thread_without_a_context_is_refused(app: Flask, uow: UnitOfWork) -> None:
    """The request's context is not the thread's: UOW201, with its line and what to do there."""
    with app.app_context():
        uow.session.execute(sa.text("SELECT 1"))
        with pytest.raises(RuleViolationError, match=r"\[UOW201\].*outside an app context") as caught:
            run_in_thread(lambda: uow.session.execute(sa.text("SELECT 1")))

    assert caught.value.fix is not None
    assert "inside the thread's function" in caught.value.fix
    assert caught.value.where is not None
    assert "test_threads.py:" in caught.value.where


# ---- a context that is not their own


def test_a_thread_under_another_ones_context_has_a_session_of_its_own(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """``copy_context().run`` in a thread: the context is shared, the session and the unit are not."""

    def work() -> tuple[Session, bool]:
        uow.session.execute(sa.text("SELECT 1"))
        return uow.session(), bool(current_unit)

    with app.app_context(), transactional(read_only=True) as unit:
        uow.session.execute(sa.text("SELECT 1"))
        context = contextvars.copy_context()
        session, has_unit = run_in_thread(lambda: context.run(work))
        assert session is not unit.session
        assert not has_unit
        assert session.in_transaction()
        assert checked_out(app) == 2

    assert not session.in_transaction()
    assert checked_out(app) == 0


def test_a_context_forgets_the_threads_that_have_ended_before_it(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """A command's may start one for each of its jobs; only what one has left open is to be taken back."""
    sessions: list[weakref.ref[Session]] = []

    def work(number: int) -> None:
        with transactional():
            uow.session.execute(sa.insert(Item).values(name=f"item {number}"))
        sessions.append(weakref.ref(uow.session()))

    def read() -> Item:
        return uow.session.scalars(sa.select(Item)).one()

    with app.app_context():
        run_in_thread(partial(contextvars.copy_context().run, work, 0))
        left_open = run_in_thread(partial(contextvars.copy_context().run, read))
        for number in range(1, 5):
            run_in_thread(partial(contextvars.copy_context().run, work, number))
        alive = [number for number, session in enumerate(sessions) if session() is not None]
        (worker,) = stats.read_boards(app).workers
        assert alive == [4]
        assert worker.counts.sessions.opened - worker.counts.sessions.closed == 2
        assert sa.inspect(left_open).session is not None
        assert checked_out(app) == 1

    assert checked_out(app) == 0
    assert names(database) == [f"item {number}" for number in range(5)]


def test_a_thread_is_closed_with_the_context_that_it_works_under(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """Between two statements its session is closed with the context: what it goes on to do is refused, not lost."""
    has_written, context_has_ended = threading.Event(), threading.Event()

    def work() -> None:
        with transactional():
            uow.session.add(Item(name="too late"))
            uow.session.flush()
            has_written.set()
            assert context_has_ended.wait(DEADLINE_S)

    with ThreadPoolExecutor(1) as pool:
        with app.app_context():
            result = pool.submit(contextvars.copy_context().run, work)
            assert has_written.wait(DEADLINE_S)
        assert checked_out(app) == 0
        context_has_ended.set()
        with pytest.raises(UnitFailedError, match=r"was not committed: its session was closed before it ended"):
            result.result(DEADLINE_S)

    assert names(database) == []


def test_a_thread_that_comes_after_its_context_has_ended_is_refused(app: Flask, uow: UnitOfWork) -> None:
    """No session is made under a context that will not take it back."""
    with app.app_context():
        uow.session.execute(sa.text("SELECT 1"))
        context = contextvars.copy_context()

    with pytest.raises(RuleViolationError, match=r"\[UOW201\].*outside an app context"):
        run_in_thread(lambda: context.run(uow.session.execute, sa.text("SELECT 1")))

    assert checked_out(app) == 0


def test_a_session_that_a_thread_has_kept_is_named_when_it_begins_again(app: Flask, uow: UnitOfWork) -> None:
    """A session object that outlives its context takes a connection that nobody gives back: UOW202 says where."""
    with app.app_context():
        kept = uow.session()

    with pytest.warns(match=r"\[UOW202\] A session outlived its app context: it took a connection after") as caught:
        kept.execute(sa.text("SELECT 1"))
    kept.close()

    assert caught[0].filename == __file__


def test_a_session_that_was_kept_is_taken_back_by_a_later_context(app: Flask, uow: UnitOfWork) -> None:
    """With the connection that it has taken after its own."""
    with app.app_context():
        kept = uow.session()
    with pytest.warns(match=r"\[UOW202\]"):
        kept.execute(sa.text("SELECT 1"))
    assert kept.in_transaction()

    with app.app_context():
        pass

    assert not kept.in_transaction()
    assert checked_out(app) == 0


def test_what_a_thread_has_written_in_a_context_that_fails_is_no_news(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """It is lost by what has ended the context, and UOW103 does not speak of it."""

    def write() -> None:
        uow.session.add(Item(name="lost"))
        uow.session.flush()

    for error in (None, KeyError("body")):
        with contextlib.suppress(KeyError), ThreadPoolExecutor(1) as pool, app.app_context():
            pool.submit(contextvars.copy_context().run, write).result(DEADLINE_S)
            if error is not None:
                raise error
        assert ("UOW103" in caplog.text) == (error is None)
        assert checked_out(app) == 0
        caplog.clear()


def test_a_thread_that_was_about_to_execute_never_reaches_a_connection_that_was_given_back(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """Its statement would else run in the transaction of whoever has the connection next."""
    is_about_to, context_has_ended = threading.Event(), threading.Event()
    workers: list[int] = []
    with app.app_context():
        engine = uow.engine

    @sa.event.listens_for(engine, "before_cursor_execute")
    def wait(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if threading.get_ident() in workers and statement.startswith("INSERT"):
            is_about_to.set()
            assert context_has_ended.wait(DEADLINE_S)

    def work() -> None:
        workers.append(threading.get_ident())
        connection = uow.session.connection()  # which another thread may close while this one is at work on it
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('of the thread')"))

    with ThreadPoolExecutor(1) as pool:
        with app.app_context():
            result = pool.submit(contextvars.copy_context().run, work)
            assert is_about_to.wait(DEADLINE_S)
        assert checked_out(app) == 0
        context_has_ended.set()
        with pytest.raises((sa.exc.SQLAlchemyError, RuleViolationError), match=r"taken back|closed"):
            result.result(DEADLINE_S)
    with app.app_context(), transactional():
        uow.session.add(Item(name="of the next one"))

    assert names(database) == ["of the next one"]


def _wait_in_a_statement(uow: UnitOfWork) -> None:
    uow.session.execute(sa.text("SELECT pg_advisory_xact_lock(1)"))


def _wait_in_a_statement_by_core(uow: UnitOfWork) -> None:
    uow.session.connection().execute(sa.text("SELECT pg_advisory_xact_lock(1)"))


def _wait_in_a_commit_by_core(uow: UnitOfWork) -> None:
    connection = uow.session.connection()
    connection.execute(
        sa.text(
            "CREATE FUNCTION pg_temp.wait() RETURNS trigger AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END' LANGUAGE plpgsql;"
            "CREATE TEMPORARY TABLE slow (id INTEGER) ON COMMIT DROP;"
            "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()"
        )
    )
    connection.execute(sa.text("INSERT INTO slow VALUES (1)"))
    with contextlib.suppress(sa.exc.SAWarning, sa.exc.ResourceClosedError):  # it is closed as soon as that is done
        connection.commit()


@on_postgresql
@pytest.mark.parametrize("wait", [_wait_in_a_statement, _wait_in_a_statement_by_core, _wait_in_a_commit_by_core])
def test_a_thread_in_a_statement_is_named_and_its_connection_comes_back_later(
    app: Flask,
    uow: UnitOfWork,
    database: Database,
    caplog: pytest.LogCaptureFixture,
    wait: Callable[[UnitOfWork], None],
) -> None:
    """It cannot be closed from another thread then: UOW202 with its line, a signal, and a later context takes it."""
    leaks: list[tuple[Session, str | None]] = []
    violations: list[str] = []
    sessions: list[Session] = []

    def leaked(sender: Flask, session: Session, where: str | None) -> None:
        leaks.append((session, where))

    def violated(sender: Flask, code: str, violation: object) -> None:
        violations.append(code)

    def work() -> None:
        sessions.append(uow.session())
        wait(uow)

    signals.session_leaked.connect(leaked, app)
    signals.rule_violated.connect(violated, app)
    with ThreadPoolExecutor(1) as pool, app.app_context():
        with uow.engine.begin() as blocker:
            blocker.execute(sa.text("SELECT pg_advisory_xact_lock(1)"))
            with app.app_context():
                result = pool.submit(contextvars.copy_context().run, work)
                _wait_until_blocked(database)
            assert violations == ["UOW202"]
            assert [session for session, _ in leaks] == sessions
            assert "[UOW202] A session outlived its app context: its thread was still in a statement" in caplog.text
            where = leaks[0][1]
            assert where is not None
            assert where.endswith(f"in {wait.__name__}")
            assert checked_out(app) == 2
        result.result(DEADLINE_S)
        with app.app_context():
            pass
        assert checked_out(app) == 0

    assert len(leaks) == 1, "It is named once."


def _wait_until_blocked(database: Database) -> None:
    deadline = threading.Event()
    for _ in range(int(DEADLINE_S / 0.01)):
        if any(session.wait_event_type == "Lock" for session in database.sessions()):
            return
        deadline.wait(0.01)
    pytest.fail("No session waits for the lock.")


@on_postgresql
def test_a_unit_that_was_in_a_statement_when_its_context_ended_is_never_told_as_done(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """Its own thread takes it back after the statement, without another context, and its end says so."""
    is_answered, was_looked_at = threading.Event(), threading.Event()

    def work() -> str:
        with transactional():
            uow.session.execute(sa.text("INSERT INTO item (name) VALUES ('lost')"))
            uow.session.execute(sa.text("SELECT pg_advisory_xact_lock(1)"))
            is_answered.set()
            assert was_looked_at.wait(DEADLINE_S)
        return "done"

    with ThreadPoolExecutor(1) as pool:
        with contextlib.closing(database.connect()) as blocker:
            blocker.cursor().execute("SELECT pg_advisory_lock(1)")
            with app.app_context():
                result = pool.submit(contextvars.copy_context().run, work)
                _wait_until_blocked(database)
            blocker.cursor().execute("SELECT pg_advisory_unlock(1)")
            assert is_answered.wait(DEADLINE_S)
        assert not [session for session in database.sessions() if session.state == "idle in transaction"]
        was_looked_at.set()
        with pytest.raises(UnitFailedError, match="its session was closed before it ended"):
            result.result(DEADLINE_S)

    assert names(database) == []


def outlive(app: Flask, work: Callable[[Callable[[], None]], Any]) -> Any:
    """Let a thread work under a context, until ``pause`` is called and beyond its end and that of another one.

    :param work: gets ``pause``.
    :return: what ``work`` returns.
    """
    is_reached, has_ended = threading.Event(), threading.Event()

    def pause() -> None:
        is_reached.set()
        assert has_ended.wait(DEADLINE_S)

    with ThreadPoolExecutor(1) as pool:
        try:
            with app.app_context():
                result = pool.submit(contextvars.copy_context().run, work, pause)
                assert is_reached.wait(DEADLINE_S)
            with app.app_context():
                pass
        finally:
            has_ended.set()
        return result.result(DEADLINE_S)


THE_OTHER_HALF = sa.text("INSERT INTO item (name) VALUES ('the other half')")
was_taken_back = pytest.raises(RuleViolationError, match=r"\[UOW202\].*it was closed with its context")


@pytest.mark.parametrize("call", ["commit", "flush", "expunge_all", "execute"])
def test_what_follows_the_writes_of_a_session_that_was_taken_back_is_refused_once(
    app: Flask, uow: UnitOfWork, database: Database, call: str
) -> None:
    """It would be the other half of them, or the commit of nothing."""

    def work(pause: Callable[[], None]) -> None:
        session = uow.session()
        session.execute(sa.text("INSERT INTO item (name) VALUES ('lost')"))
        pause()
        with was_taken_back:
            getattr(session, call)(*[THE_OTHER_HALF][: call == "execute"])
        session.commit()

    outlive(app, work)

    assert names(database) == []
    assert checked_out(app) == 0


@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_transaction_by_hand_that_was_taken_back_is_not_left_in_silence(
    app: Flask, uow: UnitOfWork, database: Database, is_flushed: bool
) -> None:
    """SQLAlchemy's own block takes a transaction that was closed for one that the program has ended."""

    def work(pause: Callable[[], None]) -> None:
        with was_taken_back, uow.session.begin():
            uow.session.add(Item(name="lost"))
            uow.session.flush() if is_flushed else None
            pause()

    outlive(app, work)

    assert names(database) == []


@pytest.mark.parametrize("is_sent", [False, True])
def test_what_a_unit_goes_on_with_when_its_session_was_taken_back_is_undone_with_it(
    app: Flask, uow: UnitOfWork, database: Database, is_sent: bool
) -> None:
    """Nothing had been written yet, so that nothing is refused before its end."""

    def work(pause: Callable[[], None]) -> Session:
        session = uow.session()
        with pytest.raises(UnitFailedError, match="its session was closed before it ended"), transactional():
            pause()
            session.add(Item(name="too late"))
            if is_sent:
                with contextlib.suppress(RuleWarning):
                    session.flush()
        assert not session.in_transaction()
        return session

    session = outlive(app, work)

    assert names(database) == []
    assert checked_out(app) == 0
    assert not session.new


def test_a_commit_by_hand_in_which_its_context_ends_is_kept(
    app: Flask, uow: UnitOfWork, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It is whole, and nobody is told of a loss."""

    def work(pause: Callable[[], None]) -> None:
        session = uow.session()
        session.add(Item(name="kept"))
        session.flush()
        sa.event.listen(session, "before_commit", lambda _: pause(), once=True)
        transaction = session.get_transaction()
        assert transaction is not None
        transaction.commit()
        session.expunge_all()

    outlive(app, work)

    assert names(database) == ["kept"]
    assert "UOW103" not in caplog.text


def test_what_a_thread_has_lost_is_reported_when_its_session_is_free(app: Flask, uow: UnitOfWork) -> None:
    """A log handler may wait for the thread that uses the session."""
    sessions: list[Session] = []
    were_free: list[bool] = []

    class UsingTheSession(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "UOW103" in record.getMessage():
                user = threading.Thread(target=sessions[0].rollback, daemon=True)
                user.start()
                user.join(DEADLINE_S)
                were_free.append(not user.is_alive())

    def work(pause: Callable[[], None]) -> None:
        sessions.append(uow.session())
        sessions[0].execute(sa.text("INSERT INTO item (name) VALUES ('lost')"))
        pause()

    handler = UsingTheSession()
    app.logger.addHandler(handler)
    try:
        outlive(app, work)
    finally:
        app.logger.removeHandler(handler)

    assert were_free == [True]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(app: Flask) -> None:
    """That was at work in a session when the process was forked, and is not there."""
    work = _threads.Work()
    is_at_work, has_forked = threading.Event(), threading.Event()

    def be_at_work() -> None:
        is_at_work.set()
        assert has_forked.wait(DEADLINE_S)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work.run, be_at_work)
        assert is_at_work.wait(DEADLINE_S)
        pid = os.fork()
        if not pid:
            signal.alarm(int(DEADLINE_S))
            work.run(os._exit, 0)
        _, status = os.waitpid(pid, 0)
        has_forked.set()
        result.result(DEADLINE_S)

    assert status == 0


def test_a_session_that_was_taken_back_is_given_up_in_silence(app: Flask, uow: UnitOfWork) -> None:
    """Who rolls back knows already that nothing is there."""

    def work(pause: Callable[[], None]) -> int:
        session = uow.session()
        session.execute(sa.text("INSERT INTO item (name) VALUES ('lost')"))
        pause()
        session.rollback()
        with pytest.warns(match=r"\[UOW202\].*it took a connection after"):
            count: int = session.execute(sa.text("SELECT count(*) FROM item")).scalar_one()
        session.close()
        return count

    assert outlive(app, work) == 0


def test_a_thread_is_refused_a_session_each_time_after_its_context(app: Flask, uow: UnitOfWork) -> None:
    """None is kept for the second time."""

    def work(pause: Callable[[], None]) -> None:
        pause()
        for _ in range(2):
            with pytest.raises(RuleViolationError, match="UOW201"):
                uow.session.execute(sa.text("SELECT 1"))

    outlive(app, work)

    assert checked_out(app) == 0


def test_a_kept_session_is_not_taken_back_in_the_middle_of_its_first_call(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """Its rows would be sent without their values."""
    with app.app_context():
        kept = uow.session()

    def end_another_context() -> None:
        with app.app_context():
            pass

    @sa.event.listens_for(kept, "after_begin", once=True)
    def begun(*_: object) -> None:
        run_in_thread(end_another_context)

    kept.add(Item(name="kept"))
    with pytest.warns(match=r"\[UOW202\]"):
        kept.commit()

    assert names(database) == ["kept"]


@pytest.mark.parametrize("is_used_at_home", [False, True])
def test_one_context_that_several_threads_push(app: Flask, uow: UnitOfWork, *, is_used_at_home: bool) -> None:
    """Each has a session, and the thread in which it ends takes them back."""
    have_read = threading.Barrier(2)

    def work() -> None:
        with pushed:  # one after the other, as Flask needs it
            with context:
                uow.session.execute(sa.text("SELECT 1"))
        have_read.wait(DEADLINE_S)

    pushed = threading.Lock()
    with ThreadPoolExecutor(2) as pool, app.app_context() as context:
        if is_used_at_home:
            uow.session.execute(sa.text("SELECT 1"))
        for result in [pool.submit(work) for _ in range(2)]:
            result.result(DEADLINE_S)

    assert checked_out(app) == 0


def test_a_time_limit_in_a_thread_keeps_nobody_from_its_session(app: Flask, uow: UnitOfWork) -> None:
    """Wherever it strikes in what makes a call whole, the context's end takes the session back."""
    places = 0

    def work(number: int) -> bool:
        left = itertools.count(-number)

        def is_due(frame: FrameType, event: str, argument: object) -> bool:
            is_place = event in ("call", "c_return") and frame.f_code.co_filename == _threads.__file__
            return is_place and next(left) == 0

        session = uow.session()
        with contextlib.suppress(TimeoutError), struck(TimeoutError(), is_due):
            session.execute(sa.text("SELECT 1"))
        return next(left) > 0

    while True:
        with ThreadPoolExecutor(1) as pool, app.app_context():
            was_struck = pool.submit(contextvars.copy_context().run, work, places).result(DEADLINE_S)
        assert checked_out(app) == 0, places
        if not was_struck:
            break
        places += 1

    assert places > 10


REFUSALS = (RuleViolationError, RuleWarning, UnitFailedError, sa.exc.SQLAlchemyError)
"""What a thread hears whose context was faster."""


@pytest.mark.parametrize("mode", ["off", "warn", "error"])
def test_contexts_end_while_threads_come_and_go_under_them(
    database: Database, uow: UnitOfWork, mode: str, threads_that_alternate: None
) -> None:
    """Whatever the moment, the context ends without an error, and no connection stays out.

    What a thread was told as done is there, and nothing else: no row of a unit that failed, none without its values.
    """
    app = make_app(database, uow, UOW_RULES=mode, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2 * THREADS})
    turns = [_read, _read_past_the_session, _write_by_hand, _write_in_a_unit, _write_in_two_units]
    done: list[str] = []

    def work(number: int) -> None:
        try:
            name = turns[number % len(turns)](uow, f"item {number:04}")
        except sa.exc.IntegrityError:
            raise  # of a row without its name
        except REFUSALS:
            return
        done.extend([name] if name else [])

    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, 40 * THREADS, THREADS):
            with app.app_context():
                copies = [contextvars.copy_context() for _ in range(THREADS)]
                results = [pool.submit(copy.run, work, first + number) for number, copy in enumerate(copies)]
                uow.session.execute(sa.text("SELECT 1"))
            for result in results:
                result.result(DEADLINE_S)
    with app.app_context():
        pass

    assert names(database) == sorted(done)
    assert checked_out(app) == 0


def _read(uow: UnitOfWork, name: str) -> None:
    uow.session.execute(sa.select(Item)).all()


def _read_past_the_session(uow: UnitOfWork, name: str) -> None:
    uow.session.connection().execute(sa.select(Item)).all()


def _write_by_hand(uow: UnitOfWork, name: str) -> str:
    session = uow.session()
    session.add(Item(name=name))
    session.commit()
    return name


def _write_in_a_unit(uow: UnitOfWork, name: str) -> str:
    with transactional():
        uow.session.add(Item(name=name))
    return name


def _write_in_two_units(uow: UnitOfWork, name: str) -> str:
    with transactional():
        uow.session.add(Item(name=name))
        with transactional():
            uow.session.flush()
    return name


def _write_by_core(uow: UnitOfWork, name: str) -> str:
    connection = uow.session.connection()
    connection.execute(sa.insert(Item).values(name=name))
    transaction = connection.get_transaction()
    if transaction is None:
        raise sa.exc.ResourceClosedError  # commit() of a connection that is closed says nothing
    transaction.commit()
    return name


@pytest.mark.parametrize("turn", [_write_by_hand, _write_by_core, _write_in_a_unit, _write_in_two_units])
def test_a_context_ends_wherever_its_thread_is(
    app: Flask, uow: UnitOfWork, database: Database, turn: Callable[[UnitOfWork, str], str]
) -> None:
    """Its thread stops at one place after the other meanwhile, and its work is done, or is not, and is told which.

    By Core, whose connection is closed under it, an error may follow a COMMIT that was sent.
    """
    told: list[str] = []
    for number in itertools.count(1, 4 * STEP):
        place = Place(number, (FOLDER, SQLALCHEMY))
        try:
            told.append(_stopped(app, partial(turn, uow, f"item {number:04}"), place))
        except sa.exc.IntegrityError:
            raise  # of a row without its name
        except (*REFUSALS, sa.exc.SAWarning) as error:
            is_clear = re.search(r"\[UOW20[12]\]|its session was closed before it ended", str(error)) is not None
            assert is_clear or turn is _write_by_core, place.where
        if not place.where:
            break
        rows = names(database)
        assert set(told).issubset(rows) if turn is _write_by_core else told == rows, place.where
        assert checked_out(app) == 0, place.where

    assert number > 200
    assert told


def _stopped(app: Flask, work: Callable[[], str], place: Place) -> str:
    """Let a thread stop at a place, if it comes by it, while the context ends under which it works."""
    is_reached, has_ended = threading.Event(), threading.Event()

    def pause() -> None:
        is_reached.set()
        has_ended.wait(0.1)  # no longer: it may have stopped with a lock of SQLAlchemy's for which the end waits

    def run() -> str:
        try:
            with met(place.is_here, pause):
                return work()
        finally:
            is_reached.set()

    with ThreadPoolExecutor(1) as pool:
        with app.app_context():
            result = pool.submit(contextvars.copy_context().run, run)
            assert is_reached.wait(DEADLINE_S)
        has_ended.set()
        return result.result(DEADLINE_S)


def test_a_block_that_threads_share_ends_for_each_its_own(app: Flask, threads_that_alternate: None) -> None:
    """One object may be entered by several threads at once, wherever the interpreter changes from one to another."""
    shared = transactional(propagation="supports")
    start = threading.Barrier(8)

    def enter() -> None:
        start.wait(DEADLINE_S)
        with app.app_context():
            for _ in range(200):
                with contextlib.ExitStack() as stack:
                    for _ in range(20):
                        stack.enter_context(shared)

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(enter) for _ in range(8)]:
            each.result(DEADLINE_S)
