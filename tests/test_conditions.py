"""Conditions of ``--fail-on``: when each holds, whom it names, and what it refuses to read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flask_uow import stats
from flask_uow.stats import Condition, State
from tests.snapshots import bad_night, database, pool, session, snapshot, unit, worker

IDLE: dict[str, Any] = {"state": State.IDLE, "state_seconds": 5.0, "seconds": 6.0}
AT_WORK: dict[str, Any] = {"state": "active", "state_age_seconds": 5.0}
PLACE = "bank/counter.py:27 in transfer, worker 4711, backend 5101"


def failures(condition: str, *live: stats.LiveUnit, **parts: Any) -> list[str]:
    """What a condition says of a worker with these live units and of databases with these sessions."""
    sessions, pools, counts = parts.get("sessions", ()), parts.get("pools", ()), parts.get("counts", stats.Counts())
    databases = (database(*sessions, prepared=parts.get("prepared", ())),)
    seen = snapshot(worker(4711, *live, pools=pools, counts=counts), databases=databases)
    return [line.removeprefix(f"{condition}: ") for line in Condition.parse(condition).failures(seen)]


# ---- idle in transaction


@pytest.mark.parametrize(("limit", "is_failure"), [("4.9", True), ("5", False), ("0", True)])
def test_idle_unit_where_no_server_tells(limit: str, is_failure: bool) -> None:
    """On SQLite, or where the role may not see it, the worker's word counts."""
    hidden = session(state="hidden", state_age_seconds=None, query=None)

    for sessions in ((), (hidden,)):
        found = failures(f"idle-in-transaction={limit}", unit(**IDLE), sessions=sessions)
        assert found == ([f"POST /transfers is idle in transaction for 5.0 s: {PLACE}"] if is_failure else [])


def test_idle_session_of_a_unit_is_named_once() -> None:
    """By its pid, with the view and the line."""
    idle = session(state="idle in transaction", state_age_seconds=4.9)

    (found,) = failures("idle-in-transaction=1", unit(**IDLE), sessions=(idle,))

    assert found == f"session 5101 (flask_uow:bank:4711) is idle in transaction for 4.9 s: POST /transfers, {PLACE}"


def test_idle_session_that_nobody_here_knows() -> None:
    """It has a name, and nothing else to be said."""
    (found,) = failures("idle-in-transaction=1", sessions=(session(state="idle in transaction"),))

    assert found == "session 5101 (flask_uow:bank:4711) is idle in transaction for 12.0 s"


def test_idle_session_around_an_independent_unit() -> None:
    """It counts, whatever is at work inside."""
    outer = unit(**IDLE)
    inner = unit("record", depth=2, backend_pids=(5102,))
    sessions = (session(state="idle in transaction", state_age_seconds=5.0), session(5102, state="active"))

    (found,) = failures("idle-in-transaction=1", outer, inner, sessions=sessions)

    assert found.startswith(
        "session 5101 (flask_uow:bank:4711) is idle in transaction for 5.0 s: record inside POST /tr"
    )


def test_unit_at_work_does_not_idle() -> None:
    """Nor does one without a transaction, or one that waits."""
    for state in (State.RUNNING, State.NO_TRANSACTION, State.WAITING, State.COMMITTING):
        assert failures("idle-in-transaction=0", unit(state=state, state_seconds=9.0)) == []


# ---- the others


@pytest.mark.parametrize(("limit", "is_failure"), [("4.9", True), ("5", False)])
def test_blocked(limit: str, is_failure: bool) -> None:
    """Who waits for a lock is named with whom it waits for, whether a worker tells or a server alone."""
    waiting = session(blocked_by=(7,), waits_for=("GET /a",), **AT_WORK)

    alone = failures(f"blocked={limit}", sessions=(waiting,))
    told = failures(f"blocked={limit}", unit(waits_for=("GET /a",), state_seconds=5.0), sessions=(waiting,))

    assert alone == ["session 5101 (flask_uow:bank:4711) waits for GET /a for 5.0 s"] * is_failure
    assert told == [f"POST /transfers waits for GET /a for 5.0 s: {PLACE}"] * is_failure
    assert failures("blocked=0", unit()) == []


def test_blocked_by_a_lock_that_was_met_late() -> None:
    """The wait counts, not the statement that waits."""
    waiting = session(state="active", state_age_seconds=9.0, wait_seconds=1.0, blocked_by=(7,), waits_for=("GET /a",))

    assert failures("blocked=1.5", sessions=(waiting,)) == []
    (line,) = failures("blocked=0.5", sessions=(waiting,))
    assert "waits for GET /a for 1.0 s" in line


@pytest.mark.parametrize(("limit", "is_failure"), [("5.9", True), ("6", False)])
def test_unit(limit: str, is_failure: bool) -> None:
    """An outermost unit is named by its age; a connection outside of units is none."""
    by_hand = unit(kind="connection", depth=0, thread_id=2, seconds=60.0)
    inner = unit("record", depth=2, seconds=60.0)

    found = failures(f"unit={limit}", unit(seconds=6.0), inner, by_hand)

    assert found == [f"record inside POST /transfers has not ended for 6.0 s: {PLACE}"] * is_failure


@pytest.mark.parametrize(("limit", "is_failure"), [("4.9", True), ("5", False)])
def test_prepared(limit: str, is_failure: bool) -> None:
    """A part that lies prepared is named."""
    part = stats.PreparedTransaction("flask_uow:x", "bank", 5.0, "a", "b", "7")

    assert bool(failures(f"prepared={limit}", prepared=(part,))) == is_failure


@pytest.mark.parametrize(
    ("limit", "changes", "is_failure"),
    [
        ("90%", {"checked_out": 9, "size": 10, "max_overflow": 0}, True),
        ("90", {"checked_out": 9, "size": 10, "max_overflow": 0}, True),
        ("29%", {"checked_out": 29, "size": 100, "max_overflow": 0}, True),
        ("90.5 %", {"checked_out": 9, "size": 10, "max_overflow": 0}, False),
        ("1", {"checked_out": 500, "max_overflow": -1}, False),
        ("1", {"checked_out": None, "size": None, "max_overflow": None}, False),
    ],
)
def test_pool_usage(limit: str, changes: dict[str, Any], is_failure: bool) -> None:
    """It holds from the limit on, for each pool of each worker; a pool without a limit is never full."""
    found = failures(f"pool-usage={limit}", pools=(pool(**changes),))

    out_of = f"{changes['checked_out']} of {changes.get('size')} connections in use"
    assert [line.partition(" (")[0] for line in found] == [f"pool default of worker 4711 has {out_of}"] * is_failure


def test_pools_of_this_process_where_nobody_publishes() -> None:
    """They are judged then, and only then."""
    full = (database(pools=(pool(checked_out=15, process_pid=1),)),)
    condition = Condition.parse("pool-usage=100%")

    assert len(condition.failures(snapshot(databases=full))) == 1
    assert condition.failures(snapshot(worker(), databases=full)) == ()


@pytest.mark.parametrize(("number", "is_failure"), [("2", True), ("3", False)])
def test_waiting(number: str, is_failure: bool) -> None:
    """Units that wait for a connection are counted and named; a pool may know of more."""
    waiting = [unit(label, thread_id=each, state=State.WAITING, backend_pids=()) for each, label in enumerate("ab")]

    (*told,) = failures(f"waiting={number}", *waiting)

    assert [line.partition(" (")[0] for line in told] == ["2 threads wait for a connection: a"] * is_failure
    assert failures(f"waiting={number}", pools=(pool(waiting=2),)) == (
        ["2 threads wait for a connection"] if is_failure else []
    )


@pytest.mark.parametrize(("number", "is_failure"), [("3", True), ("4", False)])
def test_timeouts(number: str, is_failure: bool) -> None:
    """Over all pools."""
    pools = (pool(timeouts=1), pool(timeouts=2), pool(timeouts=None))

    assert failures(f"timeouts={number}", pools=pools) == ["a connection was waited for in vain 3 times"] * is_failure


def test_leaked() -> None:
    """What is counted and what still lives are the same leaks, not two."""
    counts = stats.Counts(sessions=stats.SessionCounts(9, 8, 1))
    live = unit(state=State.LEAKED, depth=0)

    assert failures("leaked=1", counts=counts) == ["1 session or connection has outlived its context"]
    assert failures("leaked=1", live, counts=counts) == [
        f"1 session or connection has outlived its context: POST /transfers ({PLACE})"
    ]
    assert failures("leaked=2", live, counts=counts) == []
    assert failures("leaked=1") == []


def test_orphans() -> None:
    """Sessions that no living worker knows."""
    orphan = session(is_orphan=True)

    assert failures("orphans=1", sessions=(orphan, session(5102))) == [
        "1 session is known to no living worker: session 5101 (flask_uow:bank:4711)"
    ]
    assert failures("orphans=2", sessions=(orphan,)) == []


def test_orphans_where_not_all_workers_can_be_read() -> None:
    """What cannot be told does not pass."""
    unsure = session(may_be_orphan=True)

    (line,) = failures("orphans=1", sessions=(unsure, session(5102)))

    assert line.startswith("1 session may be known to no living worker, and not all workers can be read: session 5101")
    assert failures("orphans=2", sessions=(unsure,)) == []


def test_troubles() -> None:
    """Any trouble at all, with the worst of it."""
    (line,) = Condition.parse("troubles=7").failures(bad_night())

    assert line.startswith("troubles=7: 7 troubles, the worst: POST /withdrawals is idle in its transaction")
    assert Condition.parse("troubles=8").failures(bad_night()) == ()


# ---- what cannot be read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leaked", "'leaked' has no limit that can be read: '' is not a whole number from 1 on. Write leaked=NUMBER."),
        ("leaked=0", "'0' is not a whole number from 1 on."),
        ("leaked=1.5", "'1.5' is not a whole number from 1 on."),
        ("waiting=-1", "'-1' is not a whole number from 1 on."),
        ("orphans=²", "'²' is not a whole number from 1 on."),
        ("pool-usage=0", "'0' is not a percentage above 0 and up to 100. Write pool-usage=PERCENT."),
        ("pool-usage=101%", "'101%' is not a percentage above 0 and up to 100."),
        ("pool-usage=nan", "'nan' is not a percentage above 0 and up to 100."),
        ("blocked=5s", "'5s' is not a number of seconds. Write blocked=SECONDS."),
        ("leaks=1", "'leaks=1' is no condition. Write idle-in-transaction=SECONDS, blocked=SECONDS, unit=SECONDS, "),
        ("leaks=1", "orphans=NUMBER or troubles=NUMBER."),
    ],
)
def test_condition_that_cannot_be_read(text: str, message: str) -> None:
    """What was typed is quoted, and what can be written is told."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Condition.parse(text)


@pytest.mark.parametrize("form", stats.condition_forms())
def test_every_condition_can_be_read_and_is_content_with_a_quiet_night(form: str) -> None:
    """None of them fails where nothing is the matter."""
    name, _, limit = form.partition("=")
    text = f"{name}={ {'SECONDS': '5', 'PERCENT': '90%', 'NUMBER': '1'}[limit] }"

    quiet = snapshot(worker(4711, unit(), counts=stats.Counts()), databases=(database(session()),))
    assert Condition.parse(text).failures(quiet) == ()
