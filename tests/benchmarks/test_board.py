"""What the board costs: the same unit of work in an app that publishes it, and in one with ``UOW_STATS=False``.

The two are served in rounds in random order, and the least round of each is compared, in several blocks: a machine
that is busy with something else slows down a block, and not the median of them.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork, transactional
from tests.databases import PostgreSQLDatabase

BLOCKS, ROUNDS, UNITS_PER_ROUND = 9, 40, 100
MOST_US = 3.0
IN_MEMORY = "sqlite://"
ONE = sa.text("SELECT 1")

Run = Callable[[], None]


def units(url: str, *, is_published: bool, has_statement: bool) -> Run:
    """A round of units, all of them in one context."""
    app = Flask("published" if is_published else "unpublished")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, UOW_STATS=is_published)
    uow = UnitOfWork(app)

    @transactional
    def one_statement() -> None:
        uow.session().execute(ONE)

    @transactional
    def nothing() -> None:
        pass

    unit = one_statement if has_statement else nothing

    def run() -> None:
        with app.app_context():
            for _ in range(UNITS_PER_ROUND):
                unit()

    return run


def costs_us(url: str, *, has_statement: bool) -> tuple[float, float, float]:
    """CPU time of a unit without the board, with it, and the median of the differences of the blocks."""
    runs = {each: units(url, is_published=each, has_statement=has_statement) for each in (False, True)}
    for run in runs.values():
        run()  # what is made once is made before
    gc.collect()
    gc.freeze()
    blocks = [least_of_a_block(runs) for _ in range(BLOCKS)]
    gc.unfreeze()
    off, on = (min(block[each] for block in blocks) for each in (False, True))
    return off, on, statistics.median(block[True] - block[False] for block in blocks)


def least_of_a_block(runs: dict[bool, Run]) -> dict[bool, float]:
    """The least CPU time of a unit, in microseconds, over the rounds of a block."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for each in random.sample(list(runs), len(runs)):
            before = time.process_time()
            runs[each]()
            least[each] = min(least[each], (time.process_time() - before) / UNITS_PER_ROUND * 1e6)
    return least


def report(what: str, url: str, say: Callable[[str], object], *, has_statement: bool) -> float:
    """Measure, print and return what the board costs a unit, in microseconds."""
    off, on, more = costs_us(url, has_statement=has_statement)
    say(f"\nCPU of {what}: {off:.1f} us without the board, {on:.1f} us with it, {more:+.1f} us in the median block")
    return more


def test_board_on_sqlite_in_memory(say: Callable[[str], object]) -> None:
    """A unit with one statement pays at most three microseconds for being seen."""
    more = report("a unit with one statement on SQLite in memory", IN_MEMORY, say, has_statement=True)

    assert more <= MOST_US


@pytest.mark.parametrize("has_statement", [False, True], ids=["empty", "one statement"])
def test_board_on_postgresql(postgres: PostgreSQLDatabase, has_statement: bool, say: Callable[[str], object]) -> None:
    """Printed only: what the server takes varies by more than the board does."""
    what = "a unit with one statement on PostgreSQL" if has_statement else "an empty unit on PostgreSQL"

    report(what, postgres.url, say, has_statement=has_statement)


def test_board_of_an_empty_unit(say: Callable[[str], object]) -> None:
    """Printed only, beside the one that counts."""
    report("an empty unit", IN_MEMORY, say, has_statement=False)
