"""Filters: what is listed of a snapshot, and what is counted all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flask_uow import stats
from flask_uow.stats import Filter, State
from tests import snapshots
from tests.snapshots import session, unit


@pytest.mark.parametrize(
    ("text", "label", "is_kept"),
    [
        ("", None, True),
        ("transfers", None, False),
        ("transfers", "POST /transfers", True),
        ("post /", "POST /transfers", True),
        ("/TRANSFERS", "POST /transfers", True),
        ("deposits", "POST /transfers", False),
        ("POST /*", "POST /transfers", True),
        ("post /trans????", "POST /transfers", True),
        ("POST /trans?", "POST /transfers", False),
        ("*/trans*", "POST /transfers", True),
        ("/trans*", "POST /transfers", False),
        ("<int:id>", "GET /accounts/<int:id>", True),
        ("[a-z]*", "GET /accounts", False),
        ("*.csv", "GET /x_csv", False),
    ],
)
def test_label(text: str, label: str | None, is_kept: bool) -> None:
    """A text is a part of the label, a pattern the whole of it, and neither asks for upper or lower case."""
    assert Filter(label=text).keeps_label(label) == is_kept


@pytest.mark.parametrize(
    ("criteria", "is_kept"),
    [
        ({}, True),
        ({"label": "POST /transfers"}, True),
        ({"label": "record"}, True),
        ({"label": "other"}, False),
        ({"states": (State.RUNNING,)}, True),
        ({"states": (State.IDLE,)}, False),
        ({"states": (State.IDLE, State.RUNNING)}, True),
        ({"states": ("active",)}, True),
        ({"states": ("idle in transaction",)}, False),
        ({"min_age_seconds": 5.0}, True),
        ({"min_age_seconds": 5.1}, False),
    ],
)
def test_stack(criteria: dict[str, object], is_kept: bool) -> None:
    """Any of its labels, the state of its innermost unit in either's words, and the age of its outermost one count."""
    outer = unit(state=State.IDLE, seconds=5.0)
    inner = unit("record", depth=2, seconds=1.0, state=State.RUNNING, server_state="active")

    told_of_outer = (replace(outer, server_state="active"), replace(inner, server_state=None))
    assert Filter(**criteria).keeps_stack((outer, inner)) == is_kept  # type: ignore[arg-type]
    assert Filter(**criteria).keeps_stack(told_of_outer) == is_kept  # type: ignore[arg-type]


def test_stack_that_is_held_up() -> None:
    """It is listed where its session is."""
    waiting = unit(server_state="active", waits_for=("GET /report",))
    inner = unit("record", depth=2)

    assert Filter(states=("blocked",)).keeps_stack((waiting,))
    assert Filter(states=("blocked",)).keeps_stack((waiting, inner))
    assert Filter(states=("active",)).keeps_stack((waiting,))
    assert not Filter(states=("blocked",)).keeps_stack((inner,))


def test_session_of_another_worker_or_label() -> None:
    """A session belongs to its client's process and to what holds it."""
    held = session(unit="POST /transfers", state_age_seconds=5.0)

    assert Filter(workers=(4711,), label="transfers", min_age_seconds=5.0, states=("idle",)).keeps_session(held)
    assert not Filter(workers=(4712,)).keeps_session(held)
    assert not Filter(label="deposits").keeps_session(held)
    assert not Filter(label="transfers").keeps_session(session())
    assert Filter(label="transfers").keeps_session(session(unit="record", view="POST /transfers"))
    assert not Filter(workers=(4711,)).keeps_session(session(worker_pid=None))


def test_trouble_is_kept_by_its_view_too() -> None:
    """Who asks for a view hears of what goes on inside it."""
    trouble = stats.Trouble("blocked", "...", label="record", view="POST /transfers", worker_pid=4711)

    assert Filter(label="transfers").keeps_trouble(trouble)
    assert Filter(label="record").keeps_trouble(trouble)
    assert not Filter(label="deposits").keeps_trouble(trouble)
    assert not Filter(label="deposits").keeps_trouble(replace(trouble, label=None, view=None))
    assert not Filter(workers=(4712,)).keeps_trouble(trouble)


def test_what_is_counted_stays() -> None:
    """But for that of workers that were not chosen."""
    night = snapshots.bad_night()

    by_label = night.only(label="nothing of this")
    by_worker = night.only(workers=(4712,))

    assert by_label.totals.units == night.totals.units
    assert by_label.ended == night.ended
    assert by_label.totals.labels == ()
    assert by_label.databases[0].summary == night.databases[0].summary
    assert by_worker.totals.units == night.workers[1].counts.units
    assert by_worker.ended is None
    assert night.only() == night


def test_a_pattern_takes_no_longer_than_its_label() -> None:
    """Forty stars would take years if each were tried at each place for each other one."""
    assert not Filter(label="*a" * 40 + "b").keeps_label("a" * 160)
    assert Filter(label="*a" * 40 + "*").keeps_label("a" * 160)


@pytest.mark.parametrize(
    ("pattern", "label"),
    [("*[1]", "a [1]"), ("?[!a]", "x[!a]"), ("*\n?", "a\nb"), ("[a]*", "[A]b"), ("STRA*SSE", "straße")],
)
def test_brackets_are_no_pattern(pattern: str, label: str) -> None:
    """Nor is anything else but a star and a question mark."""
    assert Filter(label=pattern).keeps_label(label)
    assert not Filter(label=pattern).keeps_label("1")
