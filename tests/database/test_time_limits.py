"""A signal's handler that raises, as the time limits of job runners do, at the places of this package where one may."""

import itertools
import time
from collections.abc import Callable
from contextlib import closing, suppress
from types import FrameType
from typing import Any

import pytest
import sqlalchemy as sa

from flask_uow import current_unit, stats, transactional
from tests.database.conftest import Bench
from tests.models import Item
from tests.strikes import STEP, Place, struck


class TimeLimitExceeded(Exception):
    """What the handler raises."""


def note_outcome(told: list[str]) -> None:
    """Let the hooks of the current unit tell how it ended."""
    current_unit.after_commit(lambda: told.append("committed"))
    current_unit.after_rollback(lambda: told.append("rolled back"))


def nested(bench: Bench, told: list[str]) -> None:
    """A unit that goes on when the one inside it is struck."""

    @transactional
    def inner() -> None:
        bench.add("inner")

    @transactional
    def outer() -> None:
        note_outcome(told)
        bench.add("outer")
        with suppress(TimeLimitExceeded):
            inner()
        bench.add("after")

    outer()


def independent(bench: Bench, told: list[str]) -> None:
    """A unit around one that commits by itself."""

    @transactional(propagation="requires_new")
    def inner() -> None:
        bench.add("inner")

    @transactional
    def outer() -> None:
        note_outcome(told)
        inner()
        bench.add("outer")
        bench.add("after")

    outer()


def reading(bench: Bench, told: list[str]) -> None:
    """A unit of a read that goes on when that is struck, after one that has written."""

    @transactional
    def write() -> None:
        note_outcome(told)
        bench.add("outer", "after")

    @transactional(read_only=True)
    def read() -> None:
        with suppress(TimeLimitExceeded):
            bench.session.scalars(sa.select(Item.name)).all()

    write()
    read()


def failing(bench: Bench, told: list[str]) -> None:
    """Units that are rolled back, the first one where its read is struck."""

    @transactional(read_only=True)
    def read() -> None:
        bench.session.scalars(sa.select(Item.name)).all()

    @transactional
    def fail() -> None:
        note_outcome(told)
        bench.add("outer")
        raise KeyError

    read()
    fail()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a generator that is collected
@pytest.mark.parametrize("work", [nested, independent, reading, failing])
def test_a_time_limit_leaves_nothing_behind(bench: Bench, work: Callable[[Bench, list[str]], None]) -> None:
    """Wherever it strikes, all or nothing is committed, hooks hear which, and the next unit in the context is right."""
    found = []
    with closing(bench.database.connect()) as second:  # one for all places: to connect takes longer than to look
        for number in itertools.count(1, STEP):
            place = Place(number)
            try:
                faults = run_struck(bench, place, work, second.cursor())
            except Exception as error:
                error.add_note(f"It was struck at {number}: {place.where}.")
                raise
            if not place.where:
                break
            found += [f"{number}: {place.where}: {fault}" for fault in faults]

    assert found == []
    assert number > 200
    assert [unit.label for worker in stats.read_boards(bench.app).workers for unit in worker.live] == []


def run_struck(bench: Bench, place: Place, work: Callable[[Bench, list[str]], None], second: Any) -> list[str]:
    """Let the work be struck, and say what is wrong afterwards.

    :param second: a cursor of another connection, which sees what was committed.
    """
    faults, told, has_raised = [], list[str](), False
    with bench.app.app_context():
        try:
            with struck(TimeLimitExceeded(), place.is_here):
                work(bench, told)
        except Exception:  # noqa: BLE001  # a driver, or the unit around, may have an error of its own to tell
            has_raised = True
        faults += ["a unit is left"] * bool(current_unit)
        if bench.database.is_postgresql and is_idle_in_transaction(second):
            faults.append("a transaction is left on the server")
        with transactional() as unit:
            bench.add("next")
        if unit.depth != 1 or "next" not in committed(second):
            faults.append("the next unit was not committed")
    kept = committed(second) - {"next", "inner"}
    if kept not in (set(), {"outer", "after"}):
        faults.append(f"committed by halves: {kept}")
    if not kept and (not has_raised or "committed" in told):
        faults.append("nothing was committed, and nobody told")
    if kept and "rolled back" in told:
        faults.append("told as rolled back, and committed")
    with bench.app.app_context():
        if bench.checked_out:
            faults.append("a connection is left")
    second.execute("DELETE FROM item")  # which a lock would keep waiting
    return faults


def is_idle_in_transaction(second: Any) -> bool:
    """Whether a connection that nobody works on is in a transaction; the server hears late of one that was closed."""
    for _ in range(100):
        second.execute("SELECT FROM pg_stat_activity WHERE datname = current_database() AND state ~ '^idle in tr'")
        if second.fetchone() is None:
            return False
        time.sleep(0.02)
    return True


def committed(second: Any) -> set[str]:
    """The names that another connection sees."""
    second.execute("SELECT name FROM item")
    return {name for (name,) in second.fetchall()}


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_read_that_is_struck_takes_no_transaction_from_the_next(bench: Bench) -> None:
    """It needs none itself; what comes after it sets a value for its transaction."""

    def is_sent(frame: FrameType, event: str, argument: object) -> bool:
        return (
            frame.f_code is sa.engine.default.DefaultDialect.do_execute.__code__
            and " item" in frame.f_locals["statement"]
        )

    with bench.app.app_context(), transactional(read_only=True):
        with pytest.raises(TimeLimitExceeded), struck(TimeLimitExceeded(), is_sent):
            bench.session.scalars(sa.select(Item.name)).all()
        bench.session.execute(sa.select(sa.func.set_config("bank.tenant", "7", True)))
        assert bench.session.scalar(sa.select(sa.func.current_setting("bank.tenant"))) == "7"
