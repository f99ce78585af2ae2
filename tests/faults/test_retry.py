"""Units that lose against another transaction: which are run again, how, and what is left of the lost attempts."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, g

from flask_uow import Unit, _drivers, _retry, current_unit, signals, transactional
from flask_uow.exceptions import PartialCommitError, UnitOptionsError
from tests.database.conftest import Bench, MakeBench
from tests.databases import Database
from tests.models import Item, create_tables, names
from tests.strikes import struck

DEADLINE_S = 20.0
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

TAKE_PART_IN_WRITE_SKEW = """
    BEGIN ISOLATION LEVEL SERIALIZABLE;
    SELECT count(*) FROM item;
    INSERT INTO item (name) VALUES ('other');
    COMMIT
"""

# At the end of a transaction that has written an item, where a row of the other table says so.
REFUSE_COMMIT = """
    CREATE TABLE refusal ();
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF EXISTS (SELECT FROM refusal) THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()
"""


class AppError(Exception):
    """An error of the application."""


class Attempts:
    """The attempts at a unit, and which of its hooks have run."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.hooks: list[str] = []

    def begin(self) -> int:
        """Note an attempt of the current unit, give it hooks, and return its number."""
        number = current_unit.attempt
        self.numbers.append(number)
        current_unit.after_commit(lambda: self.hooks.append(f"committed {number}"))
        current_unit.after_rollback(lambda: self.hooks.append(f"rolled back {number}"))
        return number


class Retries:
    """What ``unit_retried`` told."""

    def __init__(self, app: Flask) -> None:
        self.told: list[tuple[int, BaseException, float]] = []
        signals.unit_retried.connect(self._receive, app)

    def _receive(self, sender: Flask, unit: Unit, exception: BaseException, delay_s: float) -> None:
        self.told.append((unit.attempt, exception, delay_s))


@pytest.fixture
def attempts() -> Attempts:
    """Nothing attempted yet."""
    return Attempts()


@pytest.fixture
def contested(bench: Bench) -> Bench:
    """A bench with the row that :func:`lose` contests."""
    bench.database.execute("INSERT INTO item (name) VALUES ('contested')")
    return bench


def load(bench: Bench) -> Item:
    """The contested row."""
    return bench.session.scalars(sa.select(Item).where(Item.name.like("contested%"))).one()


def lose(bench: Bench) -> None:
    """Change a row that another transaction has changed since: the flush is refused with 40001."""
    item = load(bench)
    bench.database.execute("UPDATE item SET id = id WHERE name = 'contested'")
    item.name = "contested, and lost"
    bench.session.flush()


def loser(bench: Bench, attempts: Attempts, *, losses: int, **options: Any) -> Callable[[], str]:
    """A unit that loses its first attempts, and then adds a row."""

    @transactional(isolation="REPEATABLE READ", **options)
    def write() -> str:
        if attempts.begin() <= losses:
            bench.add(f"lost {current_unit.attempt}")
            lose(bench)
        bench.add("kept")
        return "value"

    return write


# ---- serialization failures


@on_postgresql
def test_a_lost_update_is_tried_again(contested: Bench, attempts: Attempts) -> None:
    """A conflict in a flush: the unit is run once more, and committed once."""
    with contested.app.app_context():
        assert loser(contested, attempts, losses=1, retries=1)() == "value"
        assert contested.checked_out == 0

    assert contested.committed() == ["contested", "kept"]
    assert attempts.numbers == [1, 2]


@on_postgresql
def test_a_write_skew_at_the_commit_is_tried_again(bench: Bench, attempts: Attempts) -> None:
    """The body has returned, and COMMIT is refused: no statement was, and the unit is run once more all the same."""
    returned: list[int] = []

    @transactional(isolation="SERIALIZABLE", retries=1)
    def write() -> str:
        number = attempts.begin()
        bench.run_sql("SELECT count(*) FROM item")
        bench.add("mine")
        if number == 1:
            bench.database.execute(TAKE_PART_IN_WRITE_SKEW)
        returned.append(number)
        return "value"

    with bench.app.app_context():
        assert write() == "value"

    assert returned == [1, 2]
    assert bench.committed() == ["mine", "other"]
    assert attempts.hooks == ["committed 2"]


@on_postgresql
def test_two_units_in_a_write_skew_are_both_committed(bench: Bench) -> None:
    """Each counts the rows and adds one: one of them is refused and counts again."""
    both_have_counted = threading.Barrier(2)
    attempts: list[int] = []

    @transactional(isolation="SERIALIZABLE", retries=5)
    def write() -> None:
        attempts.append(current_unit.attempt)
        count = bench.session.scalar(sa.text("SELECT count(*) FROM item"))
        if current_unit.attempt == 1:
            both_have_counted.wait(DEADLINE_S)
        bench.add(f"item {count}")

    _run_twice_at_once(bench, lambda number: write())

    assert bench.committed() == ["item 0", "item 1"]
    assert sorted(attempts)[:3] == [1, 1, 2]


# ---- deadlocks


@on_postgresql
def test_two_units_in_a_deadlock_are_both_committed(bench: Bench) -> None:
    """Each holds the row that the other one wants: the server ends one of them, and that one is run again."""
    bench.database.execute("INSERT INTO item (name) VALUES ('first'), ('second')")
    both_hold_one = threading.Barrier(2)
    attempts: list[int] = []

    @transactional(retries=1)
    def write(number: int) -> None:
        attempts.append(current_unit.attempt)
        for item_id in ((1, 2), (2, 1))[number]:
            bench.run_sql(f"UPDATE item SET name = name || '+' WHERE id = {item_id}")
            if current_unit.attempt == 1 and not both_hold_one.broken:
                both_hold_one.wait(DEADLINE_S) if item_id == number + 1 else None

    _run_twice_at_once(bench, write)

    assert bench.committed() == ["first++", "second++"]
    assert sorted(attempts) == [1, 1, 2]


@on_postgresql
def test_a_deadlock_is_raised_where_nothing_is_to_be_tried_again(bench: Bench) -> None:
    """The loser's error reaches its caller unchanged; the winner is committed."""
    bench.database.execute("INSERT INTO item (name) VALUES ('first'), ('second')")
    both_hold_one = threading.Barrier(2)
    errors: list[str | None] = []

    @transactional
    def write(number: int) -> None:
        bench.run_sql(f"UPDATE item SET name = name || '+' WHERE id = {number + 1}")
        both_hold_one.wait(DEADLINE_S)
        bench.run_sql(f"UPDATE item SET name = name || '+' WHERE id = {2 - number}")

    def write_or_fail(number: int) -> None:
        try:
            write(number)
        except sa.exc.OperationalError as error:
            errors.append(_drivers.sqlstate(error))

    _run_twice_at_once(bench, write_or_fail)

    assert errors == ["40P01"]
    assert bench.committed() == ["first+", "second+"]


def _run_twice_at_once(bench: Bench, function: Callable[[int], None]) -> None:
    """Call ``function`` with 0 and 1 in two threads, each under an app context."""

    def work(number: int) -> None:
        with bench.app.app_context():
            function(number)

    with ThreadPoolExecutor(2) as pool:
        for result in [pool.submit(work, number) for number in range(2)]:
            result.result(DEADLINE_S)
    with bench.app.app_context():
        assert bench.checked_out == 0


# ---- what is left of a lost attempt


@on_postgresql
def test_no_hook_of_a_lost_attempt_runs(contested: Bench, attempts: Attempts) -> None:
    """Neither those for a commit nor those for a rollback: the unit has not ended yet."""
    with contested.app.app_context():
        loser(contested, attempts, losses=2, retries=2)()

    assert attempts.hooks == ["committed 3"]


@on_postgresql
def test_only_the_last_attempts_hooks_run_when_all_are_lost(contested: Bench, attempts: Attempts) -> None:
    """The last rollback is the unit's."""
    with contested.app.app_context(), pytest.raises(sa.exc.OperationalError, match="could not serialize access"):
        loser(contested, attempts, losses=9, retries=2)()

    assert attempts.hooks == ["rolled back 3"]


@on_postgresql
def test_hooks_run_where_an_interrupt_comes_before_another_attempt(contested: Bench, attempts: Attempts) -> None:
    """The attempt before it was the last one: a time limit strikes while the next is waited for."""
    with (
        contested.app.app_context(),
        pytest.raises(AppError, match="time is up"),
        struck(AppError("time is up"), lambda _, event, argument: event == "c_call" and argument is time.sleep),
    ):
        loser(contested, attempts, losses=3, retries=3)()

    assert attempts.numbers == [1]
    assert attempts.hooks == ["rolled back 1"]


@on_postgresql
def test_hooks_run_where_a_task_is_cancelled_before_another_attempt(contested: Bench, attempts: Attempts) -> None:
    """As they do where the thread is interrupted."""

    def cancel(sender: Flask, **details: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @transactional(isolation="REPEATABLE READ", retries=3)
    async def write() -> None:
        attempts.begin()
        lose(contested)

    with contested.app.app_context(), signals.unit_retried.connected_to(cancel, contested.app):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(write())

    assert attempts.numbers == [1]
    assert attempts.hooks == ["rolled back 1"]


@on_postgresql
def test_objects_of_a_lost_attempt_are_gone(contested: Bench, attempts: Attempts) -> None:
    """What it added is transient again, what it loaded is detached, and neither is written by the next attempt."""
    contested.database.execute("INSERT INTO item (name) VALUES ('loaded')")
    lost: list[Item] = []

    @transactional(isolation="REPEATABLE READ", retries=1)
    def write() -> None:
        if attempts.begin() == 1:
            added, pending = Item(name="added"), Item(name="pending")
            loaded = contested.session.scalars(sa.select(Item).where(Item.name == "loaded")).one()
            contested.session.add(added)
            contested.session.flush()
            lost.extend((added, pending, loaded))
            with contested.session.no_autoflush:
                contested.session.add(pending)
                loaded.name = "changed"
                lose(contested)
        assert not any(item in contested.session for item in lost)
        assert list(contested.session.identity_map.values()) == []
        assert not contested.session.new
        contested.add("kept")

    with contested.app.app_context():
        write()
        assert [sa.inspect(item).transient for item in lost] == [True, True, False]
        assert sa.inspect(lost[2]).detached

    assert contested.committed() == ["contested", "kept", "loaded"]


@on_postgresql
def test_objects_that_were_loaded_before_the_unit_stay_usable(contested: Bench, attempts: Attempts) -> None:
    """A user of ``before_request``, say: each attempt reads it anew, without what the lost one did to it."""
    contested.database.execute("INSERT INTO item (name) VALUES ('user')")
    seen: list[str] = []

    @contested.app.before_request
    def load_user() -> None:
        g.user = contested.session.scalars(sa.select(Item).where(Item.name == "user")).one()

    @contested.app.post("/")
    @transactional(isolation="REPEATABLE READ", retries=1)
    def view() -> str:
        number = attempts.begin()
        assert g.user in contested.session
        seen.append(g.user.name)
        g.user.name = f"user of attempt {number}"
        if number == 1:
            lose(contested)
        return "ok"

    assert contested.app.test_client().post("/").text == "ok"
    assert seen == ["user", "user"]
    assert contested.committed() == ["contested", "user of attempt 2"]


@on_postgresql
def test_writes_that_came_before_the_unit_are_not_lost(contested: Bench, attempts: Attempts) -> None:
    """The unit adopts them, and a second attempt would be committed without them: their loss has to be heard."""

    @transactional(retries=1)
    def write() -> None:
        if attempts.begin() == 1:
            _raise_deadlock(contested)

    with contested.app.app_context():
        contested.session.add(Item(name="before"))
        contested.session.flush()
        with pytest.raises(sa.exc.OperationalError, match="deadlock detected"):
            write()

    assert attempts.numbers == [1]
    assert contested.committed() == ["contested"]


def _raise_deadlock(bench: Bench) -> None:
    """Let the server end the transaction as it ends one of two that wait for each other, without the second's wait."""
    bench.run_sql("DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$")


@on_postgresql
def test_the_session_is_clean_between_attempts(contested: Bench, attempts: Attempts) -> None:
    """The lost transaction is rolled back and its connection back in the pool before the next attempt."""
    states: list[tuple[bool, int, bool]] = []

    def receive(sender: Flask, **details: object) -> None:
        states.append((contested.session.in_transaction(), contested.checked_out, bool(current_unit)))

    with signals.unit_retried.connected_to(receive, contested.app), contested.app.app_context():
        loser(contested, attempts, losses=2, retries=2)()

    assert states == [(False, 0, False)] * 2


# ---- how often


@on_postgresql
def test_the_last_error_is_raised_unchanged(contested: Bench) -> None:
    """When the attempts run out, the caller gets the very error that the last one met."""
    errors: list[BaseException] = []

    @transactional(isolation="REPEATABLE READ", retries=2)
    def write() -> None:
        try:
            lose(contested)
        except sa.exc.OperationalError as error:
            errors.append(error)
            raise

    with contested.app.app_context():
        with pytest.raises(sa.exc.OperationalError, match="could not serialize access") as caught:
            write()
        assert contested.checked_out == 0

    assert len(errors) == 3
    assert caught.value is errors[-1]
    assert caught.value.__notes__ == [
        "flask_uow: unit of work 'test_the_last_error_is_raised_unchanged.<locals>.write' was tried 3 times."
    ]


@on_postgresql
def test_an_error_of_the_only_attempt_has_no_note(contested: Bench) -> None:
    """There is nothing to say."""

    @transactional(isolation="REPEATABLE READ", retries=0)
    def write() -> None:
        lose(contested)

    with contested.app.app_context(), pytest.raises(sa.exc.OperationalError) as caught:
        write()

    assert not hasattr(caught.value, "__notes__")


@on_postgresql
def test_a_timeout_bounds_all_attempts(contested: Bench, attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted from the first one; no attempt begins that would come after it."""
    monkeypatch.setattr(_retry, "BASE_DELAY_S", 0.9)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    write = loser(contested, attempts, losses=9, retries=9, timeout=1.8)

    with contested.app.app_context(), pytest.raises(sa.exc.OperationalError, match="could not serialize"):
        write()

    assert attempts.numbers == [1, 2]  # after 0.9 s, and the next would begin 1.0 s after that


@on_postgresql
@pytest.mark.parametrize(
    ("configured", "option", "attempted"),
    [(None, None, 1), (2, None, 3), (0, 1, 2), (3, 0, 1), (3, 1, 2)],
    ids=[
        "neither",
        "UOW_RETRIES=2",
        "UOW_RETRIES=0, retries=1",
        "UOW_RETRIES=3, retries=0",
        "UOW_RETRIES=3, retries=1",
    ],
)
def test_how_often(
    make_bench: MakeBench, attempts: Attempts, configured: int | None, option: int | None, attempted: int
) -> None:
    """``UOW_RETRIES`` says how many attempts come after the first, the option wins over it, and the default is none."""
    bench = make_bench(**({} if configured is None else {"UOW_RETRIES": configured}))
    bench.database.execute("INSERT INTO item (name) VALUES ('contested')")
    write = loser(bench, attempts, losses=9, **({} if option is None else {"retries": option}))
    with bench.app.app_context(), pytest.raises(sa.exc.OperationalError, match="could not serialize access"):
        write()

    assert attempts.numbers == list(range(1, attempted + 1))


@on_postgresql
def test_each_call_has_all_of_its_attempts(contested: Bench, attempts: Attempts) -> None:
    """They are counted per call, not per function."""
    write = loser(contested, attempts, losses=1, retries=1)
    with contested.app.app_context():
        write()
        contested.database.execute("DELETE FROM item WHERE name = 'kept'")
        write()

    assert attempts.numbers == [1, 2, 1, 2]


@on_postgresql
def test_a_with_block_ignores_the_configured_retries(make_bench: MakeBench) -> None:
    """It cannot be repeated: ``UOW_RETRIES`` does not count for it, and the option is refused."""
    bench = make_bench(UOW_RETRIES=3)
    bench.database.execute("INSERT INTO item (name) VALUES ('contested')")
    retries = Retries(bench.app)
    with bench.app.app_context():
        with pytest.raises(sa.exc.OperationalError, match="could not serialize access"):
            with transactional(isolation="REPEATABLE READ"):
                lose(bench)
        with pytest.raises(UnitOptionsError, match="retries was given to a with block"), transactional(retries=1):
            pass

    assert retries.told == []


@on_postgresql
def test_each_retry_is_signalled(contested: Bench, attempts: Attempts) -> None:
    """With the unit that was lost, the error that it lost by, and the seconds until the next attempt."""
    retries = Retries(contested.app)
    with contested.app.app_context():
        loser(contested, attempts, losses=2, retries=5)()

    assert [number for number, _, _ in retries.told] == [1, 2]
    assert all(_retry.is_retryable(error) for _, error, _ in retries.told)
    assert all(0 <= delay_s <= 2 * _retry.BASE_DELAY_S for _, _, delay_s in retries.told)


def test_the_wait_doubles_and_is_jittered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: anything from nothing to a limit, which doubles with each attempt up to the longest wait."""
    limits: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        limits.append(high)
        return high / 3

    monkeypatch.setattr(random, "uniform", uniform)
    delays = [_retry.delay_s(attempt) for attempt in (1, 2, 3, 7, 10_000)]

    assert limits == pytest.approx([0.02, 0.04, 0.08, 1.0, 1.0])
    assert delays == pytest.approx([limit / 3 for limit in limits])


@on_postgresql
def test_on_error_is_asked_after_the_last_attempt_only(contested: Bench, attempts: Attempts) -> None:
    """Its value stands for that of the attempts that were all lost."""
    errors: list[Exception] = []

    def answer(error: Exception) -> str:
        assert not current_unit
        errors.append(error)
        return "sorry"

    with contested.app.app_context():
        assert loser(contested, attempts, losses=1, retries=1, on_error=answer)() == "value"
        assert errors == []
        contested.database.execute("DELETE FROM item WHERE name = 'kept'")
        assert loser(contested, attempts, losses=9, retries=1, on_error=answer)() == "sorry"

    assert len(errors) == 1
    assert attempts.numbers == [1, 2, 1, 2]


@on_postgresql
def test_before_commit_hooks_belong_to_their_attempt(contested: Bench, attempts: Attempts) -> None:
    """One that loses costs the unit its attempt, and the next attempt has only its own."""
    ran: list[int] = []

    @transactional(isolation="REPEATABLE READ", retries=1)
    def write() -> None:
        number = attempts.begin()

        @current_unit.before_commit
        def hook() -> None:
            ran.append(number)
            if number == 1:
                lose(contested)

    with contested.app.app_context():
        write()

    assert ran == [1, 2]
    assert attempts.hooks == ["committed 2"]


# ---- units inside units


@on_postgresql
@pytest.mark.parametrize("propagation", ["nested", "required", "mandatory", "supports"])
def test_an_inner_unit_is_not_tried_again_itself(contested: Bench, attempts: Attempts, propagation: str) -> None:
    """Its snapshot is the outer one's, so the whole is lost: the outermost unit alone repeats, by its own option."""
    outer_attempts: list[int] = []
    options: dict[str, Any] = {"propagation": propagation, "retries": 5}

    @transactional(**options)
    def inner() -> None:
        if attempts.begin() and len(attempts.numbers) == 1:
            lose(contested)
        contested.add("kept")

    @transactional(isolation="REPEATABLE READ", retries=1)
    def outer() -> None:
        outer_attempts.append(current_unit.attempt)
        inner()

    with contested.app.app_context():
        outer()

    assert outer_attempts == [1, 2]
    assert attempts.numbers == [1, 1]
    assert attempts.hooks == ["committed 1"]
    assert contested.committed() == ["contested", "kept"]


@on_postgresql
@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_an_inner_unit_that_loses_is_the_outer_ones_error(
    contested: Bench, attempts: Attempts, propagation: str
) -> None:
    """Without attempts of the outermost unit, those of the inner one are none."""
    options: dict[str, Any] = {"propagation": propagation, "retries": 5}

    @transactional(**options)
    def inner() -> None:
        attempts.begin()
        lose(contested)

    @transactional(isolation="REPEATABLE READ")
    def outer() -> None:
        inner()

    with contested.app.app_context(), pytest.raises(sa.exc.OperationalError, match="could not serialize access"):
        outer()

    assert attempts.numbers == [1]


@on_postgresql
def test_an_independent_unit_is_tried_again_itself(contested: Bench, attempts: Attempts) -> None:
    """It has a transaction of its own: it is repeated inside the outer unit, which is not."""
    outer_attempts: list[int] = []
    inner = loser(contested, attempts, losses=1, propagation="requires_new", retries=1)

    @transactional
    def outer() -> None:
        outer_attempts.append(current_unit.attempt)
        contested.add("outer")
        session = contested.session
        inner()
        assert contested.session is session
        assert current_unit.label.endswith("outer")
        assert contested.checked_out == 1

    with contested.app.app_context():
        outer()

    assert outer_attempts == [1]
    assert attempts.numbers == [1, 2]
    assert attempts.hooks == ["committed 2"]
    assert contested.committed() == ["contested", "kept", "outer"]


# ---- async views


@on_postgresql
def test_an_async_view_is_tried_again(contested: Bench, attempts: Attempts) -> None:
    """The wait between the attempts is the event loop's: its other tasks run meanwhile."""
    ran_between: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def other_task() -> None:
        ran_between.append("other task")

    @contested.app.get("/")
    @transactional(isolation="REPEATABLE READ", retries=1)
    async def view() -> str:
        if attempts.begin() == 1:
            tasks.add(asyncio.create_task(other_task()))
            lose(contested)
        assert ran_between == ["other task"]
        contested.add("kept")
        return "ok"

    assert contested.app.test_client().get("/").text == "ok"
    assert attempts.hooks == ["committed 2"]
    assert contested.committed() == ["contested", "kept"]


@on_postgresql
def test_an_async_view_loses_its_last_attempt(contested: Bench, attempts: Attempts) -> None:
    """The error reaches the request, and nothing stays open."""

    @contested.app.get("/")
    @transactional(isolation="REPEATABLE READ", retries=1)
    async def view() -> str:
        attempts.begin()
        await asyncio.sleep(0)
        lose(contested)
        return "ok"

    with pytest.raises(sa.exc.OperationalError, match="could not serialize access"):
        contested.app.test_client().get("/")

    assert attempts.numbers == [1, 2]
    assert attempts.hooks == ["rolled back 2"]


# ---- SQLite


@contextmanager
def _write_lock(bench: Bench) -> Iterator[Callable[[], None]]:
    """Hold SQLite's write lock, until the function that it gives is called."""
    with closing(bench.database.connect()) as connection:
        connection.execute("BEGIN IMMEDIATE")

        def release() -> None:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

        yield release


@pytest.fixture
def impatient_bench(make_bench: MakeBench) -> Bench:
    """A bench on SQLite that waits but a moment for the write lock."""
    return make_bench(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.01}})


@on_sqlite
def test_a_write_lock_that_is_taken_is_tried_again(impatient_bench: Bench, attempts: Attempts) -> None:
    """SQLite refused BEGIN IMMEDIATE, so that nothing was done: the unit is run once more."""

    @transactional(retries=1)
    def write() -> str:
        attempts.begin()
        impatient_bench.add("kept")
        return "value"

    with _write_lock(impatient_bench) as release, impatient_bench.app.app_context():

        def receive(sender: Flask, **details: object) -> None:
            release()

        with signals.unit_retried.connected_to(receive, impatient_bench.app):
            assert write() == "value"

    assert attempts.numbers == [1, 2]
    assert attempts.hooks == ["committed 2"]
    assert impatient_bench.committed() == ["kept"]


@on_sqlite
def test_a_write_lock_that_stays_taken_is_raised(impatient_bench: Bench, attempts: Attempts) -> None:
    """After the last attempt SQLite's own error is the answer."""

    @transactional(retries=2)
    def write() -> None:
        attempts.begin()
        impatient_bench.add("never")

    with _write_lock(impatient_bench), impatient_bench.app.app_context():
        with pytest.raises(sa.exc.OperationalError, match="database is locked"):
            write()
        assert impatient_bench.checked_out == 0

    assert attempts.numbers == [1, 2, 3]


# ---- what is never tried again


def _violate_unique(bench: Bench) -> None:
    bench.add("contested")


def _violate_unique_at_commit(bench: Bench) -> None:
    bench.session.add(Item(name="contested"))


def _violate_unique_in_join(bench: Bench) -> None:
    with transactional(propagation="required"):
        bench.add("contested")


def _violate_unique_in_savepoint(bench: Bench) -> None:
    with transactional():
        bench.add("contested")


def _fail_itself(bench: Bench) -> None:
    raise AppError("duplicate key")


def _run_past_statement_timeout(bench: Bench) -> None:
    bench.run_sql("SET LOCAL statement_timeout = 10")
    bench.run_sql("SELECT pg_sleep(60)")


def _meet_lock_without_waiting(bench: Bench) -> None:
    with closing(bench.database.connect()) as other, closing(other.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT FROM item FOR UPDATE")
        bench.run_sql("SELECT FROM item FOR UPDATE NOWAIT")


def _run_past_lock_timeout(bench: Bench) -> None:
    with closing(bench.database.connect()) as other, closing(other.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT FROM item FOR UPDATE")
        bench.run_sql("SET LOCAL lock_timeout = 10")
        bench.run_sql("UPDATE item SET name = 'never'")


def _be_refused_by_a_check(bench: Bench) -> None:
    bench.run_sql("SELECT 1 / 0")


def _lose_connection(bench: Bench) -> None:
    bench.database.kill(int(bench.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0))
    bench.run_sql("SELECT 1")


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (_violate_unique, sa.exc.IntegrityError, "(?i)unique"),
        (_violate_unique_at_commit, sa.exc.IntegrityError, "(?i)unique"),
        (_violate_unique_in_join, sa.exc.IntegrityError, "(?i)unique"),
        (_violate_unique_in_savepoint, sa.exc.IntegrityError, "(?i)unique"),
        (_fail_itself, AppError, "duplicate key"),
    ],
    ids=["unique", "unique at commit", "unique in join", "unique in savepoint", "application"],
)
def test_what_would_fail_again_is_not_tried_again(
    contested: Bench, attempts: Attempts, fail: Callable[[Bench], None], error: type[Exception], message: str
) -> None:
    """An error that no other transaction's timing has caused is raised at once, on every database."""

    @transactional(retries=3)
    def write() -> None:
        attempts.begin()
        fail(contested)

    with contested.app.app_context(), pytest.raises(error, match=message):
        write()

    assert attempts.numbers == [1]
    assert attempts.hooks == ["rolled back 1"]
    assert contested.committed() == ["contested"]


@on_postgresql
@pytest.mark.parametrize(
    ("fail", "state"),
    [
        (_run_past_statement_timeout, "57014"),
        (_meet_lock_without_waiting, "55P03"),
        (_run_past_lock_timeout, "55P03"),
        (_be_refused_by_a_check, "22012"),
    ],
    ids=["statement_timeout", "NOWAIT", "lock_timeout", "division by zero"],
)
def test_what_the_server_says_of_other_troubles(
    contested: Bench, attempts: Attempts, fail: Callable[[Bench], None], state: str
) -> None:
    """A time-out or a lock that was not waited for has ended no conflict: it is raised at once, unchanged."""

    @transactional(retries=3)
    def write() -> None:
        attempts.begin()
        fail(contested)

    with contested.app.app_context(), pytest.raises(sa.exc.DBAPIError, match=r"timeout|lock|division") as caught:
        write()

    assert _drivers.sqlstate(caught.value) == state
    assert attempts.numbers == [1]
    assert contested.committed() == ["contested"]


@on_postgresql
def test_a_lost_connection_is_not_tried_again(contested: Bench, attempts: Attempts) -> None:
    """Whatever ended it may end the next one too; the caller decides."""

    @transactional(retries=3)
    def write() -> None:
        attempts.begin()
        _lose_connection(contested)

    with contested.app.app_context():
        with pytest.raises(sa.exc.DBAPIError, match=r"terminat|closed"):
            write()
        assert contested.checked_out == 0

    assert attempts.numbers == [1]


@on_postgresql
def test_what_one_of_two_databases_has_committed_is_not_tried_again(
    make_bench: MakeBench, attempts: Attempts, second_database: Database
) -> None:
    """Without two-phase commit one COMMIT comes first: a refusal of the other one must not repeat what it has kept."""
    bench = make_bench(SQLALCHEMY_BINDS={"second": second_database.url})
    create_tables(second_database)
    second_database.execute(REFUSE_COMMIT)
    second_database.execute("INSERT INTO refusal DEFAULT VALUES")

    @transactional(retries=1)
    def write() -> None:
        attempts.begin()
        bench.add("first")
        second_engine = bench.uow.get_engine("second")
        bench.session.execute(sa.insert(Item).values(name="second"), bind_arguments={"bind": second_engine})

    with bench.app.app_context(), pytest.raises(PartialCommitError) as caught:
        write()

    assert "deadlock detected" in str(caught.value.__cause__)
    assert attempts.numbers == [1]
    assert bench.committed() == ["first"]
    assert names(second_database) == []


@on_postgresql
def test_a_deadlock_that_no_rollback_for_names_is_tried_again(contested: Bench, attempts: Attempts) -> None:
    """The transaction is lost whatever the option says, so that nothing can be kept by it."""

    @transactional(retries=1, no_rollback_for=sa.exc.OperationalError)
    def write() -> None:
        if attempts.begin() == 1:
            _raise_deadlock(contested)
        contested.add("kept")

    with contested.app.app_context():
        write()

    assert attempts.numbers == [1, 2]
    assert contested.committed() == ["contested", "kept"]


@on_postgresql
def test_a_write_before_the_unit_that_nobody_saw_is_not_lost_by_a_retry(contested: Bench, attempts: Attempts) -> None:
    """A SELECT that writes, adopted by the unit: another attempt would do without it, and say that all is well."""
    contested.database.execute(
        "CREATE FUNCTION visit() RETURNS int LANGUAGE sql AS "
        "$$ INSERT INTO item (name) VALUES ('visit') RETURNING id $$"
    )

    @transactional(retries=3)
    def write() -> None:
        if attempts.begin() == 1:
            contested.run_sql("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$")

    with contested.app.app_context():
        contested.session.execute(sa.text("SELECT visit()")).all()
        with pytest.raises(sa.exc.DBAPIError, match="conflict"):
            write()
        assert attempts.numbers == [1]
        contested.session.execute(sa.text("SELECT 1")).all()
        write()

    assert attempts.numbers == [1, 1, 2]


@on_postgresql
def test_a_conflict_of_the_drivers_own_cursor_is_tried_again(bench: Bench, attempts: Attempts) -> None:
    """It surfaces without SQLAlchemy's wrapping."""

    @transactional(retries=1)
    def write() -> None:
        if attempts.begin() == 1:
            cursor = bench.session.connection().connection.cursor()
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$")
        bench.add("kept")

    with bench.app.app_context():
        write()

    assert attempts.numbers == [1, 2]
    assert bench.committed() == ["kept"]


@on_postgresql
def test_a_receiver_that_raises_keeps_no_unit_from_being_tried_again(contested: Bench, attempts: Attempts) -> None:
    """Its error is logged."""

    def receive(sender: Flask, **details: object) -> None:
        raise AppError("the receiver's own")

    with signals.unit_retried.connected_to(receive, contested.app), contested.app.app_context():
        loser(contested, attempts, losses=1, retries=1)()

    assert attempts.numbers == [1, 2]
    assert "kept" in contested.committed()
