"""A signal's handler that raises, as the time limits of job runners do, at each place of this package where one may."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import pytest
import sqlalchemy as sa

import flask_uow
from flask_uow import current_unit, stats, transactional
from tests.database.conftest import Bench
from tests.models import Item

PACKAGE = os.path.dirname(flask_uow.__file__) + os.sep
POOL = PACKAGE + "_pool.py"
"""An interrupt in a pool's queue may cost it a place, in SQLAlchemy's own queue as in ours."""


class TimeLimitExceeded(Exception):
    """What the handler raises."""


class Strike:
    """Raises where Python runs the handlers of signals: where a function begins, and where a built-in one returns.

    :param place: the first, the second, and so on, of those in this package.
    :ivar where: which that was, empty before.
    """

    def __init__(self, place: int) -> None:
        self._places_left = place
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or not file.startswith(PACKAGE) or file == POOL:
            return
        if frame.f_code.co_name == "__del__":
            return  # of which Python lets nothing out
        self._places_left -= 1
        if not self._places_left:
            sys.setprofile(None)
            self.where = f"{file[len(PACKAGE) :]}:{frame.f_lineno} {frame.f_code.co_qualname} ({event})"
            raise TimeLimitExceeded


def nested(bench: Bench, told: list[str]) -> None:
    """A unit that goes on when the one inside it is struck."""

    @transactional
    def inner() -> None:
        bench.add("inner")

    @transactional
    def outer() -> None:
        current_unit.after_commit(lambda: told.append("committed"))
        current_unit.after_rollback(lambda: told.append("rolled back"))
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
        current_unit.after_commit(lambda: told.append("committed"))
        current_unit.after_rollback(lambda: told.append("rolled back"))
        inner()
        bench.add("outer")
        bench.add("after")

    outer()


def failing(bench: Bench, told: list[str]) -> None:
    """A read, and a unit that fails."""

    @transactional(read_only=True)
    def read() -> None:
        bench.session.scalars(sa.select(Item.name)).all()

    @transactional
    def fail() -> None:
        current_unit.after_rollback(lambda: told.append("rolled back"))
        bench.add("outer")
        raise KeyError

    read()
    fail()


@pytest.mark.parametrize("work", [nested, independent, failing])
def test_a_time_limit_leaves_nothing_behind(bench: Bench, work: Callable[[Bench, list[str]], None]) -> None:
    """Wherever it strikes, all or nothing is committed, hooks hear which, and the next unit in the context is right."""
    found = []
    place = 0
    while True:
        place += 1
        strike = Strike(place)
        faults = run_struck(bench, strike, work)
        if not strike.where:
            break
        found += [f"{place}: {strike.where}: {fault}" for fault in faults]

    assert found == []
    assert place > 200
    assert [unit.label for worker in stats.read_boards(bench.app).workers for unit in worker.live] == []


def run_struck(bench: Bench, strike: Strike, work: Callable[[Bench, list[str]], None]) -> list[str]:
    """Let the work be struck, and say what is wrong afterwards."""
    faults, told, has_raised = [], list[str](), False
    with bench.app.app_context():
        sys.setprofile(strike)
        try:
            work(bench, told)
        except Exception:  # noqa: BLE001  # a driver, or the unit around, may have an error of its own to tell
            has_raised = True
        finally:
            sys.setprofile(None)
        if current_unit:
            faults.append("a unit is left")
        with transactional() as unit:
            bench.add("next")
        if unit.depth != 1 or "next" not in bench.committed():
            faults.append("the next unit was not committed")
    kept = {name for name in bench.committed() if name not in ("next", "inner")}
    if kept not in (set(), {"outer", "after"}):
        faults.append(f"committed by halves: {kept}")
    if not kept and (not has_raised or "committed" in told):
        faults.append("nothing was committed, and nobody told")
    if kept and "rolled back" in told:
        faults.append("told as rolled back, and committed")
    with bench.app.app_context():
        if bench.checked_out:
            faults.append("a connection is left")
    bench.database.execute("DELETE FROM item")  # which a lock would keep waiting
    return faults
