"""Cost grows with nothing: what a request does for the thousandth time costs what it did at first.

And what the rules cost: a unit with all of them on beside one with all of them off. The least of several runs is taken
of each figure, in one process, on SQLite in memory.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, current_unit, transactional
from tests.models import Base, Item

TIMES = 1000
AT_EACH_END = 100
RUNS = 15
MAX_GROWTH = 1.2
MAX_RULES_US = 10.0
UNITS = 300

numbers = iter(range(10**9))
Step = Callable[[Session], None]


def make_app(**config: object) -> tuple[Flask, UnitOfWork]:
    app = Flask("growth")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", UOW_MAX_UNIT_SECONDS=600.0, **config)
    uow = UnitOfWork(app)
    with app.app_context():
        Base.metadata.create_all(uow.engine)
    return app, uow


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """The collector strikes where it likes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def savepoint(session: Session) -> None:
    """A nested unit that writes."""
    with transactional():
        session.execute(Item.__table__.insert().values(name=f"item {next(numbers)}"))  # type: ignore[attr-defined]


def undone_savepoint(session: Session) -> None:
    """A nested unit that is rolled back."""
    with transactional() as unit:
        session.execute(Item.__table__.insert().values(name=f"item {next(numbers)}"))  # type: ignore[attr-defined]
        unit.set_rollback_only()


def join(session: Session) -> None:
    """A unit that joins."""
    with transactional(propagation="required"):
        session.execute(Item.__table__.insert().values(name=f"item {next(numbers)}"))  # type: ignore[attr-defined]


def hook(session: Session) -> None:
    """A hook."""
    current_unit.after_commit(int)


INSIDE: tuple[Step, ...] = (savepoint, undone_savepoint, join, hook)


def unit(session: Session) -> None:
    """An outermost unit."""
    with transactional():
        session.execute(Item.__table__.insert().values(name=f"item {next(numbers)}"))  # type: ignore[attr-defined]


def unit_with_objects(session: Session) -> None:
    """An outermost unit that inserts an object, which the request does not keep."""
    with transactional():
        session.add(Item(name=f"item {next(numbers)}"))


BEHIND_EACH_OTHER: tuple[Step, ...] = (unit, unit_with_objects)


def durations(step: Step, session: Session) -> list[float]:
    """Seconds of each of many."""
    took = []
    for _ in range(TIMES):
        before = time.perf_counter()
        step(session)
        took.append(time.perf_counter() - before)
    return took


def growth(runs: list[list[float]]) -> float:
    """The last ones over the first ones, each at its best over all runs; warmed up by the first run."""
    best = [min(each) for each in zip(*runs[1:], strict=True)]
    return float(statistics.median(best[-AT_EACH_END:]) / statistics.median(best[:AT_EACH_END]))


@pytest.mark.parametrize("step", [*INSIDE, *BEHIND_EACH_OTHER], ids=lambda step: step.__name__)
def test_the_thousandth_costs_what_the_first_did(step: Step, say: Callable[[str], object]) -> None:
    """Savepoints, joins and hooks of one unit; units of one request."""
    app, uow = make_app()
    runs = []
    for _ in range(RUNS):
        with app.app_context():
            session = uow.session()
            if step in BEHIND_EACH_OTHER:
                runs.append(durations(step, session))
            else:
                with transactional() as outer:
                    runs.append(durations(step, session))
                    outer.set_rollback_only()
    ratio = growth(runs)
    say(f"{step.__name__}: the last {AT_EACH_END} of {TIMES} cost {ratio:.3f} of the first")

    assert ratio < MAX_GROWTH


def test_the_rules_cost_little(say: Callable[[str], object]) -> None:
    """A request with one unit that reads and writes, with all rules on and with all off."""

    def serve(app: Flask, uow: UnitOfWork) -> float:
        before = time.process_time()
        for _ in range(UNITS):
            with app.app_context(), transactional():
                item = Item(name=f"item {next(numbers)}")
                uow.session.add(item)
                uow.session.flush()
        return (time.process_time() - before) / UNITS

    apps = {mode: make_app(UOW_RULES=mode) for mode in ("off", "error")}
    best = dict.fromkeys(apps, float("inf"))
    for _ in range(2 * RUNS):
        for mode, (app, uow) in apps.items():
            best[mode] = min(best[mode], serve(app, uow))
    cost_us = (best["error"] - best["off"]) * 1e6
    say(f"rules: {best['off'] * 1e6:.1f} us a unit without, {best['error'] * 1e6:.1f} with; {cost_us:.1f} us for them")

    assert cost_us < MAX_RULES_US
