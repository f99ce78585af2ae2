"""Random programs of units: what is in the database is what a plain model of the contract's tables says."""

import os
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_uow import _retry
from tests.database.conftest import Bench
from tests.database.programs import Machine, Model, Step, steps
from tests.models import checked_out

PROGRAMS = int(os.environ.get("UOW_TEST_PROGRAMS", "100"))


@pytest.fixture
def seeded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose attempts follow each other at once."""
    monkeypatch.setattr(_retry, "BASE_DELAY_S", 0.0)
    return bench


def run_program(bench: Bench, program: tuple[Step, ...]) -> None:
    """Run a program for real and on the model; both have to say the same."""
    bench.database.execute("DELETE FROM item")
    bench.database.execute("INSERT INTO item (id, name) VALUES (0, 'seed')")
    machine = Machine(bench)
    rows, notes, left = machine.run(program)
    rows.remove("seed")

    assert (rows, notes, left) == Model(on_server=bench.database.is_postgresql).run(program), repr(machine.error)
    assert checked_out(bench.app) == 0


@settings(
    max_examples=PROGRAMS,
    deadline=None,
    derandomize="UOW_TEST_PROGRAMS" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_random_programs(seeded: Bench, data: st.DataObject) -> None:
    """As many as ``UOW_TEST_PROGRAMS`` says, other ones each time then; else the same ones each time."""
    program = data.draw(steps(on_server=seeded.database.is_postgresql), "program")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy warns of what is done in a dead transaction, too
        run_program(seeded, program)
