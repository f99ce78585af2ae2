"""Troubles: what is told of a snapshot, that nothing is told twice, and that each kind is explained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flask_uow import stats
from flask_uow.stats import EXPLANATIONS, State, find_troubles
from tests import snapshots
from tests.snapshots import database, pool, session, snapshot, unit, worker

IDLE: dict[str, Any] = {"state": State.IDLE, "state_seconds": 34.2, "seconds": 34.3}
ABORTED = "idle in transaction (aborted)"
NOTHING = stats.Counts()


def troubles(
    seen: stats.Snapshot, max_idle_seconds: float = 1.0, max_unit_seconds: float = 60.0
) -> list[stats.Trouble]:
    """What is found, with these limits."""
    return list(find_troubles(seen, max_idle_seconds=max_idle_seconds, max_unit_seconds=max_unit_seconds))


def of_units(*live: stats.LiveUnit, sessions: tuple[stats.ServerSession, ...] = (), **limits: float) -> list[str]:
    """The texts of what is found of these live units and sessions."""
    databases = (database(*sessions),) if sessions else ()
    seen = snapshot(worker(4711, *live, counts=NOTHING, pools=()), databases=databases)
    return [f"{trouble.kind}: {trouble.text}" for trouble in troubles(seen, **limits)]


FAILED, OUTLIVED = "sits in a failed transaction", "has left a connection behind"
NAME = "POST /transfers"
PLACE = "bank/counter.py:27 in transfer, worker 4711, backend 5101"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"state": State.IDLE, "state_seconds": 1.0}, None),
        (IDLE, f"idle-in-transaction: {NAME} is idle in its transaction for 34.2 s: {PLACE}"),
        (IDLE | {"server_state": ABORTED}, f"aborted-transaction: {NAME} {FAILED} for 34.2 s: {PLACE}"),
        ({"state": State.IDLE, "state_seconds": 0.05, "server_state": ABORTED}, None),
        ({"waits_for": ("GET /a",), "state_seconds": 3.0}, f"blocked: {NAME} waits for GET /a for 3.0 s: {PLACE}"),
        ({"waits_for": ("GET /a",), "state_seconds": 0.05}, None),
        (
            {"state": State.WAITING, "state_seconds": 2.0, "backend_pids": ()},
            f"waiting-for-connection: {NAME} waits for a connection for 2.0 s: {PLACE.removesuffix(', backend 5101')}",
        ),
        (
            {"state": State.WAITING, "state_seconds": 2.0},
            f"waiting-for-connection: POST /transfers waits for a connection while it holds one for 2.0 s: {PLACE}",
        ),
        ({"state": State.WAITING, "state_seconds": 0.05}, None),
        ({"state": State.LEAKED, "seconds": 7.0}, f"leaked-connection: {NAME} {OUTLIVED} for 7.0 s: {PLACE}"),
        ({"seconds": 60.0}, None),
        ({"seconds": 61.0}, f"long-unit: POST /transfers has not ended (running SQL now) for 1 min 1 s: {PLACE}"),
        ({"seconds": 61.0, "kind": "session", "depth": 0}, None),
    ],
)  # fmt: skip
def test_live_unit(changes: dict[str, Any], text: str | None) -> None:
    """A live unit is told of with the worst that can be said, by name, line, age, worker and backend, or not at all."""
    assert of_units(unit(**changes)) == ([text] if text else [])


def test_limits_that_are_off() -> None:
    """Where a rule is off, nothing is too long."""
    never = float("inf")

    assert of_units(unit(**IDLE), max_idle_seconds=never, max_unit_seconds=never) == []


def test_stack_is_told_once() -> None:
    """Its innermost unit is what is at work; the view is named too."""
    outer = unit(**IDLE)
    inner = unit("record", where="bank/audit.py:9 in record", depth=2, **IDLE)
    seen = snapshot(worker(4711, outer, inner, counts=NOTHING, pools=()))

    (found,) = troubles(seen)
    (aborted,) = of_units(replace(outer, server_state=ABORTED), inner)

    assert aborted.startswith("aborted-transaction: record inside POST /transfers")
    assert found.text.startswith("record inside POST /transfers is idle in its transaction for 34.2 s: bank/audit.py:9")
    assert (found.label, found.where, found.view) == ("record", "bank/audit.py:9 in record", "POST /transfers")
    assert (found.seconds, found.worker_pid, found.backend_pid) == (34.2, 4711, 5101)


def test_stacks() -> None:
    """An inner unit belongs to the outermost one before it, whichever thread it runs in; what is alone is apart."""
    first, inner, innermost = unit("GET /a"), unit("x", thread_id=2, depth=2), unit("y", thread_id=2, depth=3)
    by_hand, second = unit("engine.connect()", kind="connection", depth=0), unit("GET /b", thread_id=2)
    of_nobody = unit("z", depth=3)

    stacks = worker(1, first, inner, innermost, by_hand, second, of_nobody).stacks

    labels = [[each.label for each in stack] for stack in stacks]
    assert labels == [["GET /a", "x", "y"], ["engine.connect()"], ["GET /b"], ["z"]]


def test_unit_and_its_session_are_one() -> None:
    """A server's session whose backend a unit holds is the unit's; who waits for it is counted."""
    holder = unit(**IDLE)
    waiting = unit("GET /a", thread_id=2, state_seconds=3.0, backend_pids=(5102,), waits_for=("POST /transfers",))
    sessions = (
        session(5101, state="idle in transaction", state_age_seconds=34.2),
        session(5102, state="active", state_age_seconds=3.0, blocked_by=(5101,)),
        session(5103, state="active", state_age_seconds=0.01, blocked_by=(5101,)),
    )

    found = of_units(holder, waiting, sessions=sessions)

    assert [text.partition(": bank")[0] for text in found] == [
        "idle-in-transaction: POST /transfers is idle in its transaction for 34.2 s; 2 others wait for its locks",
        "blocked: GET /a waits for POST /transfers for 3.0 s",
    ]


def test_unit_and_its_session_of_another_name_are_one() -> None:
    """An engine that names its connections itself names no worker; the number of the server's process tells."""
    own = session(5101, None, application_name="bank", state="idle in transaction", state_age_seconds=34.2)

    (text,) = of_units(unit(**IDLE), sessions=(replace(own, unit=NAME, view=NAME),))

    assert text == f"idle-in-transaction: {NAME} is idle in its transaction for 34.2 s: {PLACE}"


def test_connection_by_hand_is_judged_by_its_server() -> None:
    """Of a connection that no session of ours has taken, only the server knows that it idles."""
    held = unit("engine.connect()", kind="connection", depth=0, state=State.HELD, state_seconds=50.0, seconds=50.0)

    (text,) = of_units(held, sessions=(session(5101, state="idle in transaction", state_age_seconds=40.0),))
    assert text.startswith("idle-in-transaction: engine.connect() is idle in its transaction for 40.0 s: bank/counter")
    assert of_units(held, sessions=(session(5101),)) == []


def test_backend_of_another_servers_number() -> None:
    """Two servers may have processes of one number; the client's process tells them apart."""
    other = session(5101, 4712, state="idle in transaction", state_age_seconds=9.0)

    (text,) = of_units(unit(), sessions=(other,))

    assert text == "idle-in-transaction: session 5101 (flask_uow:bank:4712) is idle in its transaction for 9.0 s"


def test_unit_that_waits_for_itself() -> None:
    """An independent unit that wants a row which its outer one has locked is told so; another thread's unit is not."""
    outer = unit(**IDLE)
    waiting = unit("record", state_seconds=20.0, backend_pids=(5102,), waits_for=("POST /transfers",))
    sessions = (
        session(5101, state="idle in transaction", state_age_seconds=34.2),
        session(5102, state="active", state_age_seconds=20.0, blocked_by=(5101,)),
    )

    _, text = of_units(outer, waiting, sessions=sessions)
    _, of_other_thread = of_units(outer, replace(waiting, thread_id=2), sessions=sessions)

    assert text.startswith(
        "blocked: record waits for POST /transfers in its own thread, that is for itself, for 20.0 s"
    )
    assert of_other_thread.startswith("blocked: record waits for POST /transfers for 20.0 s")
    # The inner units of an async view are in the thread of its event loop.
    awaited = replace(waiting, label="await", thread_id=7, depth=2)
    _, of_loop = of_units(replace(outer, thread_id=7), replace(waiting, depth=1), awaited, sessions=sessions)
    assert of_loop.startswith("blocked: await inside record waits for POST /transfers in its own thread")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"state": "idle in transaction"}, "idle-in-transaction: {} is idle in its transaction for 12.0 s"),
        (
            {"state": "active", "transaction_age_seconds": 99.0},
            "long-unit: {} has not ended (active now) for 1 min 39 s",
        ),
        ({"state": "active", "blocked_by": (7,), "waits_for": ("GET /a",)}, "blocked: {} waits for GET /a for 12.0 s"),
        ({"state": "hidden", "state_age_seconds": None}, None),
    ],
)
def test_a_unit_that_its_server_alone_tells_of(changes: dict[str, Any], text: str | None) -> None:
    """It is judged as a unit, by its label, and it is said whose word that is and where the connection came from."""
    told = session(unit="POST /x", is_told_by_server=True, client_address="10.0.0.9", **changes)

    found = troubles(snapshot(databases=(database(told),)))

    place = "said by the server, worker 4711, backend 5101, from 10.0.0.9"
    assert [f"{each.kind}: {each.text}" for each in found] == ([f"{text.format('POST /x')}: {place}"] if text else [])
    assert all((each.label, each.view, each.where) == ("POST /x", "POST /x", None) for each in found)


def test_stranger_in_the_way_is_named() -> None:
    """Who is not of the app has a name, a role and a state."""
    blocked = session(1, state="active", state_age_seconds=2.0, blocked_by=(99,))
    stranger = session(99, None, application_name="psql", user="root", state="idle in transaction")

    named = replace(blocked, waits_for=("pid 99",))

    (found,) = troubles(snapshot(databases=(database(blocked, blockers=(stranger,)),)))

    assert [found] == troubles(snapshot(databases=(database(named, blockers=(stranger,)),)))
    assert found.kind == "blocked"
    assert "waits for session 99 (psql, role root), which is not of this app and idle in transaction, for" in found.text


LEAKED = "sessions or connections have outlived their"
SESSION = "session 5101 (flask_uow:bank:4711)"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"is_orphan": True}, f"orphan: {SESSION} is known to no living worker, and idle for 12.0 s"),
        (
            {"is_orphan": True, "state": "idle in transaction"},
            f"orphan: {SESSION} is known to no living worker, and idle in transaction for 12.0 s",
        ),
        (
            {"state": ABORTED, "unit": "GET /a", "where": "a.py:1"},
            "aborted-transaction: GET /a sits in a failed transaction for 12.0 s: a.py:1, worker 4711, backend 5101",
        ),
        ({"state": "hidden", "state_age_seconds": None}, None),
        (
            {"state": "active", "blocked_by": (0,)},
            f"blocked: {SESSION} waits for a prepared transaction for 12.0 s",
        ),
    ],
)  # fmt: skip
def test_session_alone(changes: dict[str, Any], text: str | None) -> None:
    """A session of which no living worker speaks is told of by its pid."""
    found = troubles(snapshot(databases=(database(session(**changes)),)))

    assert [f"{trouble.kind}: {trouble.text}" for trouble in found] == ([text] if text else [])


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"checked_out": 13}, []),
        ({"checked_out": 14}, ["pool-nearly-full"]),
        ({"checked_out": 9, "size": 10, "max_overflow": 0}, ["pool-nearly-full"]),
        ({"checked_out": 15}, ["pool-exhausted"]),
        ({"checked_out": 15, "max_overflow": -1}, []),
        ({"checked_out": 1, "size": 1, "max_overflow": 0}, []),
        ({"checked_out": 1, "size": 1, "max_overflow": 0, "waiting": 1}, ["pool-exhausted"]),
        ({"timeouts": 2}, ["pool-timeouts"]),
        ({"size": None, "checked_out": None, "max_overflow": None, "timeouts": None, "waiting": None}, []),
    ],
)
def test_pool(changes: dict[str, Any], kinds: list[str]) -> None:
    """A pool is told of when nine of ten connections are out; one for a single connection if somebody waits."""
    alone = snapshot(databases=(database(pools=(pool(**changes),)),))
    seen = snapshot(worker(counts=NOTHING, pools=(pool(**changes),)), databases=(database(),))

    assert [trouble.kind for trouble in troubles(seen)] == kinds
    assert [trouble.kind for trouble in troubles(alone)] == kinds
    assert [trouble.worker_pid for trouble in troubles(seen)] == [4711 for _ in kinds], "--worker chooses by it"


def test_a_pool_is_exhausted_since_somebody_waits() -> None:
    """Not for as long as the longest wait was, ever; where two pools are waited for, nobody knows for which."""
    waits = [unit(state=State.WAITING, state_seconds=seconds, thread_id=int(seconds)) for seconds in (2.0, 3.0)]
    full = pool(checked_out=15, waiting=2, longest_wait_seconds=60.0)
    other = pool(bind="archive", waiting=1)
    unasked = replace(full, waiting=0)
    elsewhere = worker(4712, unit(state=State.WAITING, state_seconds=9.0), counts=NOTHING, pools=(other,))

    (alone,) = troubles(snapshot(worker(4711, *waits, counts=NOTHING, pools=(full,))))[:1]
    (of_two,) = troubles(snapshot(worker(4711, *waits, counts=NOTHING, pools=(full, other))))[:1]
    (of_nobody,) = troubles(snapshot(worker(4711, *waits, counts=NOTHING, pools=(unasked, other))))[:1]
    (beside,) = troubles(snapshot(elsewhere, worker(4711, *waits, counts=NOTHING, pools=(full,))))[:1]

    assert (alone.kind, alone.seconds) == ("pool-exhausted", 3.0)
    assert (of_two.kind, of_two.seconds) == ("pool-exhausted", None)
    assert (of_nobody.kind, of_nobody.seconds) == ("pool-exhausted", None)
    assert (beside.kind, beside.seconds) == ("pool-exhausted", 3.0)


def test_what_is_counted() -> None:
    """Leaks that are over, parts that were left prepared, and what found no room."""
    leaked = stats.Counts(sessions=stats.SessionCounts(10, 7, 3))
    parts = [stats.PreparedTransaction("n", "bank", age, "a", "b", "7", "committed") for age in (5.0, 5.1, None)]
    live = unit(state=State.LEAKED, depth=0)
    full = worker(4711, live, counts=leaked, pools=(), untold={"labels": 12, "units": 0})

    found = troubles(snapshot(full, databases=(database(prepared=tuple(parts)),)))

    assert [f"{trouble.kind}: {trouble.text}" for trouble in found[1:]] == [
        "left-prepared: a part of a unit lies prepared in default for 5.1 s: end it with COMMIT PREPARED 'n'",
        "left-prepared: a part of a unit lies prepared in default: end it with COMMIT PREPARED 'n'",
        f"leaked-sessions: 2 {LEAKED} context since the start, beside those that are told of here",
        "untold: worker 4711 has no room on its board for 12 labels: they are not shown",
    ]
    assert [trouble.seconds for trouble in found[1:3]] == [5.1, None]
    assert found[-1].worker_pid == 4711
    over = troubles(snapshot(worker(4711, counts=leaked, pools=())))
    assert [trouble.text for trouble in over] == [f"3 {LEAKED} context since the start"]


def test_worst_comes_first() -> None:
    """What holds others up, then by kind, then the oldest."""
    kinds = [(trouble.kind, trouble.holds_up) for trouble in snapshots.bad_night().troubles]

    assert kinds == [
        ("idle-in-transaction", 1),
        ("leaked-connection", 0),
        ("pool-exhausted", 0),
        ("waiting-for-connection", 0),
        ("blocked", 0),
        ("orphan", 0),
        ("pool-timeouts", 0),
    ]
    long = replace(unit("GET /b", thread_id=7, seconds=99.0), backend_pids=(7,))
    sessions = (session(8, state="active", state_age_seconds=0.01, blocked_by=(7,)),)
    assert [text.split()[0] for text in of_units(unit(**IDLE), long, sessions=sessions)] == [
        "long-unit:",
        "idle-in-transaction:",
    ]
    ages = [unit("GET /a", thread_id=number, **{**IDLE, "state_seconds": age}) for number, age in enumerate((2.0, 9.0))]
    assert ["9.0 s" in text for text in of_units(*ages)] == [True, False]


def test_one_number_of_two_servers_is_two_processes() -> None:
    """Each worker's unit is told of once, and who waits on one server waits for nobody on the other."""
    idle = {"state": State.IDLE, "state_seconds": 9.0, "backend_pids": (7,)}
    workers = (worker(4711, unit("GET /a", **idle)), worker(4712, unit("GET /b", worker_pid=4712, **idle)))
    sat = {"state": "idle in transaction", "state_age_seconds": 9.0}
    waits = session(8, 4713, state="active", state_age_seconds=1.0, blocked_by=(7,))
    databases = database(session(7, 4711, **sat), waits), database(session(7, 4712, **sat), binds=("audit",))

    found = troubles(snapshot(*workers, databases=databases))

    assert [(each.kind, each.label, each.holds_up) for each in found] == [
        ("idle-in-transaction", "GET /a", 1),
        ("idle-in-transaction", "GET /b", 0),
        ("blocked", None, 0),
    ]


def test_every_kind_is_explained() -> None:
    """No kind but those that are explained, each in the bank's words and in plain ones, in whole sentences."""
    source = Path(str(stats.__file__)).with_name("_troubles.py").read_text(encoding="utf-8")

    assert set(re.findall(r'rouble\(\s*"([a-z-]+)"', source)) == set(EXPLANATIONS)
    for explanation in EXPLANATIONS.values():
        assert all(text.endswith((".", "...")) and text[0].isupper() for text in explanation)
        assert len(set(explanation)) == 3


def test_no_trouble_in_a_quiet_night() -> None:
    """A worker at work is none."""
    assert troubles(snapshot(worker(4711, unit()), databases=(database(session()),))) == []
    assert troubles(snapshot(replace(worker(), pools=()))) == []
