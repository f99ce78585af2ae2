"""A COMMIT that loses its connection: what the caller hears, and what became of the work."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import Unit, UnitOfWork, _outcome, current_unit, signals, transactional
from flask_uow.exceptions import CommitOutcomeUnknownError
from tests.database.conftest import Bench, MakeBench
from tests.databases import Database, PostgreSQLDatabase
from tests.faults.interrupts import interrupting_commit
from tests.faults.proxy import LISTEN, Cut, Proxy, run_proxy
from tests.models import Item, make_app, names
from tests.throwaway_server import throwaway_server

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)

DEADLINE_S = 15.0
every_cut = pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
cuts_that_commit = pytest.mark.parametrize("cut", [Cut.AFTER, Cut.REPLY], ids=lambda cut: cut.name.lower())


class Heard:
    """What was heard of the units of an app."""

    def __init__(self) -> None:
        self.signals: list[str] = []
        self.hooks: list[str] = []
        self.attempts: list[int] = []

    def receiver(self, name: str) -> Callable[..., None]:
        """The receiver that notes the signal of this name."""

        def receive(sender: Flask, unit: Unit, **details: object) -> None:
            self.signals.append(f"{name} {unit.attempt}")

        return receive

    def listen(self, bench: Bench) -> None:
        """Note an attempt of the current unit, and give it hooks."""
        attempt = current_unit.attempt
        self.attempts.append(attempt)

        def committed() -> None:
            assert bench.checked_out == 0
            self.hooks.append(f"committed {attempt}")

        current_unit.after_commit(committed)
        current_unit.after_rollback(lambda: self.hooks.append(f"rolled back {attempt}"))


@pytest.fixture
def heard(proxied_bench: Bench) -> Iterator[Heard]:
    """What is heard of the units behind the proxy."""
    heard = Heard()
    with ExitStack() as connected:
        for signal_ in (signals.unit_committed, signals.unit_rolled_back, signals.unit_retried):
            connected.enter_context(signal_.connected_to(heard.receiver(signal_.name), proxied_bench.app))
        yield heard


@pytest.fixture(autouse=True)
def next_unit_is_clean(proxied_bench: Bench, proxy: Proxy) -> Iterator[None]:
    """After each test nothing is checked out, and the thread's next unit is committed as if nothing had happened."""
    yield
    proxy.reset()
    with proxied_bench.app.app_context():
        assert proxied_bench.checked_out == 0
        with transactional() as unit:
            assert (unit.depth, unit.attempt) == (1, 1)
            proxied_bench.add("next")
    assert "next" in proxied_bench.committed()


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked for a moment only."""
    monkeypatch.setattr(_outcome, "DEADLINE_S", 0.1)


def writer(bench: Bench, heard: Heard, **options: Any) -> Callable[[], str]:
    """A unit that writes one row and returns a value."""

    @transactional(**options)
    def write() -> str:
        heard.listen(bench)
        bench.session.add(Item(name="written"))
        return "value"

    return write


# ---- the server is asked


@cuts_that_commit
def test_a_confirmed_commit_goes_on_as_committed(proxied_bench: Bench, proxy: Proxy, heard: Heard, cut: Cut) -> None:
    """The value comes back, the commit hooks run, the row is there once, and nothing is tried again."""
    proxy.cut(cut)
    with proxied_bench.app.app_context():
        assert writer(proxied_bench, heard, confirm_commit=True, retries=3)() == "value"

    assert proxied_bench.committed() == ["written"]
    assert heard.hooks == ["committed 1"]
    assert heard.signals == ["unit-committed 1"]


@cuts_that_commit
def test_objects_of_a_confirmed_commit_are_as_after_any_other(proxied_bench: Bench, proxy: Proxy, cut: Cut) -> None:
    """They stay in the session as they were committed: rendered at no cost, changed by the next unit."""
    proxied_bench.database.execute("INSERT INTO item (name) VALUES ('old'), ('deleted')")
    proxy.cut(cut)
    with proxied_bench.app.app_context():
        with transactional(confirm_commit=True):
            changed = proxied_bench.session.scalars(sa.select(Item).where(Item.name == "old")).one()
            deleted = proxied_bench.session.scalars(sa.select(Item).where(Item.name == "deleted")).one()
            added = Item(name="new")
            changed.name = "changed"
            proxied_bench.session.add(added)
            proxied_bench.session.delete(deleted)
        assert (added.id, added.name, changed.name) == (3, "new", "changed")
        assert not proxied_bench.session.in_transaction()
        assert sa.inspect(added).persistent
        assert sa.inspect(deleted).was_deleted
        with transactional():
            added.name = "renamed"

    assert proxied_bench.committed() == ["changed", "renamed"]


@cuts_that_commit
def test_a_confirmed_block(proxied_bench: Bench, proxy: Proxy, cut: Cut) -> None:
    """A with block is confirmed as a function is."""
    proxy.cut(cut)
    with proxied_bench.app.app_context():
        with transactional(confirm_commit=True) as unit:
            proxied_bench.add("written")
        assert unit.was_committed

    assert proxied_bench.committed() == ["written"]


def test_a_commit_that_is_known_to_be_aborted_raises_its_error(
    proxied_bench: Bench, proxy: Proxy, heard: Heard
) -> None:
    """The driver's error reaches the caller, with a note of what the server said."""
    proxy.cut(Cut.BEFORE)
    with (
        proxied_bench.app.app_context(),
        pytest.raises(sa.exc.OperationalError, match="server closed the connection") as caught,
    ):
        writer(proxied_bench, heard, confirm_commit=True)()

    assert caught.value.connection_invalidated
    assert caught.value.__notes__ == ["flask_uow asked the server: the transaction was aborted."]
    assert proxied_bench.committed() == []
    assert heard.hooks == ["rolled back 1"]
    assert heard.signals == ["unit-rolled-back 1"]


def test_a_commit_that_is_known_to_be_aborted_is_tried_again(proxied_bench: Bench, proxy: Proxy, heard: Heard) -> None:
    """With attempts left the unit is run once more, and committed exactly once."""
    proxy.cut(Cut.BEFORE)
    with proxied_bench.app.app_context():
        assert writer(proxied_bench, heard, confirm_commit=True, retries=1)() == "value"

    assert proxied_bench.committed() == ["written"]
    assert heard.attempts == [1, 2]
    assert heard.hooks == ["committed 2"]
    assert heard.signals == ["unit-rolled-back 1", "unit-retried 1", "unit-committed 2"]


def test_a_retried_commit_that_is_confirmed(proxied_bench: Bench, proxy: Proxy, heard: Heard) -> None:
    """An attempt that was aborted and one that was committed in spite of its lost connection: one row."""
    proxy.cut(Cut.BEFORE)

    def lose_reply(sender: Flask, **details: object) -> None:
        proxy.cut(Cut.REPLY)

    with signals.unit_retried.connected_to(lose_reply, proxied_bench.app), proxied_bench.app.app_context():
        assert writer(proxied_bench, heard, confirm_commit=True, retries=1)() == "value"

    assert proxied_bench.committed() == ["written"]
    assert heard.hooks == ["committed 2"]


def test_attempts_at_a_commit_run_out(proxied_bench: Bench, proxy: Proxy, heard: Heard) -> None:
    """The last error is raised when every attempt was aborted."""
    proxy.cut(Cut.BEFORE, times=3)
    with (
        proxied_bench.app.app_context(),
        pytest.raises(sa.exc.OperationalError, match="server closed the connection"),
    ):
        writer(proxied_bench, heard, confirm_commit=True, retries=2)()

    assert proxied_bench.committed() == []
    assert heard.attempts == [1, 2, 3]
    assert heard.hooks == ["rolled back 3"]


def test_a_dry_pool_does_not_keep_the_server_from_being_asked(make_proxied_bench: MakeBench, proxy: Proxy) -> None:
    """The question goes over a connection of its own, past a pool in which none is left."""
    bench = make_proxied_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.1})
    proxy.cut(Cut.REPLY)
    with bench.app.app_context(), bench.uow.engine.connect():
        with transactional(confirm_commit=True):
            bench.add("written")

    assert bench.committed() == ["written"]


def test_an_independent_unit_is_confirmed(proxied_bench: Bench, proxy: Proxy) -> None:
    """Its COMMIT is its own; the unit around it goes on with its own connection."""
    with proxied_bench.app.app_context(), transactional():
        proxied_bench.add("outer")
        proxy.cut(Cut.REPLY)
        with transactional(propagation="requires_new", confirm_commit=True):
            proxied_bench.add("inner")
        assert proxied_bench.committed() == ["inner"]

    assert proxied_bench.committed() == ["inner", "outer"]


@every_cut
def test_a_unit_that_changed_nothing_has_nothing_to_confirm(
    proxied_bench: Bench, proxy: Proxy, heard: Heard, cut: Cut
) -> None:
    """A write that met no row gave the transaction no id: whichever way it ended, all is as it should be."""

    @transactional(confirm_commit=True)
    def write() -> str:
        heard.listen(proxied_bench)
        proxied_bench.run_sql("UPDATE item SET name = 'x'")
        return "value"

    proxy.cut(cut)
    with proxied_bench.app.app_context():
        assert write() == "value"

    assert heard.hooks == ["committed 1"]


@every_cut
@pytest.mark.parametrize("confirm_commit", [True, False])
def test_a_read_only_unit_has_nothing_to_confirm(
    proxied_bench: Bench, proxy: Proxy, heard: Heard, cut: Cut, confirm_commit: bool
) -> None:
    """What the server was told to be read-only has changed nothing, and its value is as good as ever."""

    @transactional(confirm_commit=confirm_commit, read_only=True, isolation="REPEATABLE READ")
    def read() -> list[Item]:
        heard.listen(proxied_bench)
        return list(proxied_bench.session.scalars(sa.select(Item)))

    proxy.cut(cut)
    with proxied_bench.app.app_context():
        assert read() == []

    assert heard.hooks == ["committed 1"]


@pytest.mark.parametrize("confirm_commit", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_serializable_read_is_believed_when_it_is_committed(
    proxied_bench: Bench, proxy: Proxy, *, read_only: bool, confirm_commit: bool
) -> None:
    """The server may say no at the end, because of what others have written; it cannot be asked later."""
    proxy.cut(Cut.BEFORE)
    with proxied_bench.app.app_context(), pytest.raises(CommitOutcomeUnknownError, match="it may or may not have been"):
        with transactional(read_only=read_only, isolation="SERIALIZABLE", confirm_commit=confirm_commit):
            proxied_bench.session.scalars(sa.select(Item)).all()
            if not read_only:
                proxied_bench.run_sql("UPDATE item SET name = 'x'")


def test_a_function_that_writes_may_be_lost_but_not_in_silence(proxied_bench: Bench, proxy: Proxy) -> None:
    """A SELECT does not show what its function does: the id is not asked for, and the outcome is unknown."""
    proxied_bench.database.execute(
        "CREATE FUNCTION write_item() RETURNS void LANGUAGE sql AS 'INSERT INTO item (name) VALUES (''written'')'"
    )
    proxy.cut(Cut.BEFORE)
    with proxied_bench.app.app_context():
        with pytest.raises(CommitOutcomeUnknownError, match="it may or may not have been"):
            with transactional(confirm_commit=True):
                proxied_bench.run_sql("SELECT write_item()")

    assert proxied_bench.committed() == []


# ---- the server is not asked, or does not answer


@every_cut
def test_without_confirmation_the_outcome_is_unknown(
    proxied_bench: Bench, proxy: Proxy, heard: Heard, cut: Cut
) -> None:
    """The caller hears that nobody knows; it is never tried again, and the rows are as the server decided."""
    proxy.cut(cut)
    with (
        proxied_bench.app.app_context(),
        pytest.raises(CommitOutcomeUnknownError, match=r"'.*write' was being committed; it may or may not") as caught,
    ):
        writer(proxied_bench, heard, retries=3)()

    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)
    assert caught.value.__cause__.connection_invalidated
    assert caught.value.fix is not None
    assert "confirm_commit=True" in caught.value.fix
    assert caught.value.xid is None
    assert heard.attempts == [1]
    assert "committed 1" not in heard.hooks
    written = [] if cut is Cut.BEFORE else ["written"]
    until = time.monotonic() + DEADLINE_S
    while proxied_bench.committed() != written:  # the server may be at it still
        assert time.monotonic() < until, proxied_bench.committed()


@every_cut
def test_a_server_that_is_gone_leaves_the_outcome_unknown(
    proxied_bench: Bench, proxy: Proxy, heard: Heard, soon_given_up: None, cut: Cut
) -> None:
    """It is asked until the deadline; the error then carries the id by which it can be asked later."""
    proxy.cut(cut, refuse=True)
    with (
        proxied_bench.app.app_context(),
        pytest.raises(CommitOutcomeUnknownError, match="it may or may not have been") as caught,
    ):
        writer(proxied_bench, heard, confirm_commit=True, retries=3)()

    [(status,)] = proxied_bench.database.rows(f"SELECT pg_xact_status('{caught.value.xid}')")
    assert status == ("aborted" if cut is Cut.BEFORE else "committed")
    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)
    assert heard.attempts == [1]
    assert "committed 1" not in heard.hooks


def test_a_server_that_comes_back_in_time_is_heard(
    proxied_bench: Bench, proxy: Proxy, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the deadline it is asked again and again."""
    asked: list[str] = []
    ask = _outcome._ask

    def ask_and_come_back(engine: sa.Engine, mark: _outcome.Mark) -> _outcome.Outcome:
        asked.append(mark.xid)
        if len(asked) == 3:
            proxy.reset()
        return ask(engine, mark)

    monkeypatch.setattr(_outcome, "_ask", ask_and_come_back)
    proxy.cut(Cut.REPLY, refuse=True)
    with proxied_bench.app.app_context():
        assert writer(proxied_bench, heard, confirm_commit=True)() == "value"

    assert len(asked) == 3
    assert proxied_bench.committed() == ["written"]


@pytest.mark.usefixtures("soon_given_up")
def test_a_standby_that_was_promoted_since_is_not_believed(database: Database) -> None:
    """It has never heard of the transaction, and has given its id to one of its own, which it committed."""
    with throwaway_server() as primary, throwaway_server(standby_of=primary) as standby, ExitStack() as ending:
        first, second = sa.make_url(primary), sa.make_url(standby)
        proxy = ending.enter_context(run_proxy(str(first.host), int(first.port or 0)))
        hosts = (f"{LISTEN}:{second.port}", f"{LISTEN}:{proxy.port}")  # the first one that takes writes
        url = sa.URL.create(
            f"postgresql+{database.backend}",
            first.username,
            first.password,
            database=first.database,
            query={"host": hosts, "target_session_attrs": "read-write"},
        )
        on_primary = PostgreSQLDatabase(first, database.backend)
        on_standby = PostgreSQLDatabase(second, database.backend)
        bench = Bench(app := make_app(on_primary, uow := UnitOfWork(), SQLALCHEMY_DATABASE_URI=url), uow, on_primary)
        _await(lambda: on_standby.rows("SELECT to_regclass('item') IS NOT NULL") == [(True,)])

        with app.app_context(), pytest.raises(CommitOutcomeUnknownError) as caught, transactional(confirm_commit=True):
            bench.add("written")
            ((xid,),) = bench.session.execute(sa.text("SELECT pg_current_xact_id()::text::bigint")).all()
            on_standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            on_standby.execute("SELECT pg_reload_conf()")
            _await(lambda: not on_standby.rows("SELECT FROM pg_stat_wal_receiver"))
            on_standby.execute("SELECT pg_promote()")
            while on_standby.rows("SELECT pg_current_xact_id()::text::bigint")[0][0] < xid:
                pass
            proxy.cut(Cut.AFTER)

        assert caught.value.xid == str(xid)
        assert bench.committed() == ["written"]
        assert on_standby.rows(f"SELECT pg_xact_status('{xid}')") == [("committed",)]
        assert names(on_standby) == []
        with app.app_context():
            uow.engine.dispose()


def _await(question: Callable[[], bool]) -> None:
    """Ask again and again until the answer is yes."""
    end = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_outcome_that_is_unknown_is_an_error_to_answer(proxied_bench: Bench, proxy: Proxy, heard: Heard) -> None:
    """``on_error`` gets it as it gets any other."""
    errors: list[Exception] = []
    proxy.cut(Cut.AFTER)
    with proxied_bench.app.app_context():
        assert writer(proxied_bench, heard, retries=3, on_error=errors.append)() is None

    assert [type(error) for error in errors] == [CommitOutcomeUnknownError]


# ---- connections that are lost elsewhere


def _kill(bench: Bench) -> None:
    """End the server's side of the session's connection."""
    bench.database.kill(int(bench.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0))


def test_a_connection_that_is_lost_before_the_commit_leaves_no_doubt(proxied_bench: Bench, heard: Heard) -> None:
    """An error of a statement is the statement's, also where the commit sends it: COMMIT was never sent."""

    @transactional(retries=3)
    def write() -> None:
        heard.listen(proxied_bench)
        _kill(proxied_bench)
        proxied_bench.session.add(Item(name="lost"))

    with proxied_bench.app.app_context(), pytest.raises(sa.exc.DBAPIError, match=r"terminat|closed") as caught:
        write()

    assert caught.value.connection_invalidated
    assert heard.attempts == [1]
    assert heard.hooks == ["rolled back 1"]


def test_a_connection_that_is_lost_before_the_question_leaves_no_doubt(proxied_bench: Bench, heard: Heard) -> None:
    """The question for the id meets the dead connection first, and COMMIT is never sent."""

    @transactional(retries=3, confirm_commit=True)
    def write() -> None:
        heard.listen(proxied_bench)
        proxied_bench.add("lost")
        _kill(proxied_bench)

    with proxied_bench.app.app_context(), pytest.raises(sa.exc.DBAPIError, match=r"terminat|closed"):
        write()

    assert heard.attempts == [1]
    assert heard.hooks == ["rolled back 1"]


def test_a_commit_that_the_server_refuses_leaves_no_doubt(proxied_bench: Bench, proxy: Proxy, heard: Heard) -> None:
    """A deferred constraint speaks at COMMIT: its error is raised as it is, and the server is not asked."""
    proxied_bench.database.execute("ALTER TABLE item ADD parent integer REFERENCES item DEFERRABLE INITIALLY DEFERRED")

    @transactional(retries=3, confirm_commit=True)
    def write() -> None:
        heard.listen(proxied_bench)
        proxied_bench.run_sql("INSERT INTO item (name, parent) VALUES ('orphan', 999)")

    with proxied_bench.app.app_context(), pytest.raises(sa.exc.IntegrityError, match="violates foreign key"):
        write()

    assert proxy.words()[-2:] == ["SELECT", "COMMIT"]
    assert heard.attempts == [1]


# ---- interrupts


class TimeLimitExceeded(Exception):
    """What job runners raise in a signal's handler, so that a task can catch it."""


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt, TimeLimitExceeded], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("confirm_commit", [False, True], ids=["unconfirmed", "confirmed"])
def test_an_interrupt_during_the_commit_goes_on(
    proxied_bench: Bench, proxy: Proxy, heard: Heard, interrupt: type[BaseException], confirm_commit: bool
) -> None:
    """A signal handler that raises while the server commits ends the unit; no hook runs: nobody knows the outcome."""
    with (
        interrupting_commit(proxy, interrupt("in the middle of COMMIT")),
        proxied_bench.app.app_context(),
        pytest.raises(interrupt, match="in the middle of COMMIT"),
    ):
        writer(proxied_bench, heard, confirm_commit=confirm_commit, retries=3)()

    assert heard.attempts == [1]
    assert heard.hooks == []
    assert proxied_bench.committed() == ["written"]
