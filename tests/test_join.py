"""What servers and workers say, put together: by hand-made values, and on a real server."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork, stats, transactional
from flask_uow._application_name import application_name, host_mark
from flask_uow.stats import State
from flask_uow.stats._holders import holders
from flask_uow.stats._join import Known, with_servers, with_units
from tests.databases import Database
from tests.models import make_app
from tests.snapshots import database, session, snapshot, unit, worker

DEADLINE_S = 30.0
ELSEWHERE = "0000" if host_mark() != "0000" else "ffff"
"""The mark of another host."""
NOBODY = 2**22 + 17
"""The number of a process that no system gives away."""
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


def joined(
    shown: stats.DatabaseSnapshot,
    *workers: stats.Worker,
    later: tuple[stats.Worker, ...] = (),
    is_complete: bool = True,
) -> stats.DatabaseSnapshot:
    """The database with the units that hold its sessions."""
    return with_units(shown, Known(workers, later or workers, is_complete))


# ---- by hand


def test_a_session_is_shown_with_the_innermost_unit_that_holds_it() -> None:
    """With its label and its line; the unit gets the server's word."""
    outer = unit("GET /outer", backend_pids=(5101,))
    inner = unit("inner", depth=2, backend_pids=(5101,), where="bank/inner.py:3 in inner")
    own = worker(4711, outer, inner, backend_pids=(5101,))

    shown = joined(database(session(5101, state="active")), own)
    (seen,) = with_servers((own,), (shown,))

    assert (shown.sessions[0].unit, shown.sessions[0].where) == ("inner", "bank/inner.py:3 in inner")
    assert shown.sessions[0].view == "GET /outer"
    assert [live.server_state for live in seen.live] == ["active", "active"]
    assert not shown.sessions[0].is_orphan


@pytest.mark.parametrize("state", ["active", "fastpath function call"])
def test_a_unit_is_not_idle_while_its_server_works(state: str) -> None:
    """The worker saw nothing of the statement; the state is as old as the server says."""
    idle = unit("import", backend_pids=(5101,), state=State.IDLE, state_seconds=9.0)
    own = worker(4711, idle, backend_pids=(5101,))

    (seen,) = with_servers((own,), (database(session(5101, state=state, state_age_seconds=2.5)),))

    (live,) = seen.live
    assert (live.state, live.state_seconds, live.server_state) == (State.RUNNING, 2.5, state)


@pytest.mark.parametrize(
    ("server_state", "state", "seconds"),
    [
        ("active", State.RUNNING, 2.5),
        ("idle in transaction", State.IDLE, 2.5),
        (stats.ABORTED, State.IDLE, 2.5),
        ("idle", State.NO_TRANSACTION, 9.0),
    ],
)
def test_a_transaction_that_was_begun_past_sqlalchemy_is_its_servers_word(
    server_state: str, state: str, seconds: float
) -> None:
    """The worker saw no statement yet; what the driver's own cursor has begun, the server tells."""
    begun = unit("import", backend_pids=(5101,), state=State.NO_TRANSACTION, state_seconds=9.0, statements=0)
    own = worker(4711, begun, backend_pids=(5101,))

    (seen,) = with_servers((own,), (database(session(5101, state=server_state, state_age_seconds=2.5)),))

    (live,) = seen.live
    assert (live.state, live.state_seconds, live.server_state) == (state, seconds, server_state)


@pytest.mark.parametrize(("told_s", "seconds"), [(2.5, 2.5), (12.0, 9.0)], ids=["since then", "before"])
def test_a_unit_idles_since_what_went_past_sqlalchemy_has_ended(told_s: float, seconds: float) -> None:
    """The worker saw nothing of that either; the younger of the two words is true."""
    idle = unit("import", backend_pids=(5101,), state=State.IDLE, state_seconds=9.0)
    own = worker(4711, idle, backend_pids=(5101,))
    shown = database(session(5101, state="idle in transaction", state_age_seconds=told_s))

    (seen,) = with_servers((own,), (shown,))

    assert (seen.live[0].state, seen.live[0].state_seconds) == (State.IDLE, seconds)


def test_a_unit_works_if_one_of_its_servers_does() -> None:
    """It has a connection to another database besides, which waits for it."""
    idle = unit("import", backend_pids=(1, 2), state=State.IDLE, state_seconds=9.0)
    own = worker(4711, idle, backend_pids=(1, 2))
    databases = (database(session(1, state="idle in transaction")), database(session(2, state="active")))

    (seen,) = with_servers((own,), databases)

    assert (seen.live[0].state, seen.live[0].server_state) == (State.RUNNING, "active")


def test_of_several_servers_the_word_of_trouble_is_shown() -> None:
    """Whichever of the databases of a unit is asked first."""
    idle = unit("import", backend_pids=(1, 2), state=State.IDLE)
    own = worker(4711, idle, backend_pids=(1, 2))
    databases = (database(session(1, state="idle in transaction")), database(session(2, state=stats.ABORTED)))

    for order in (databases, databases[::-1]):
        (seen,) = with_servers((own,), order)
        assert seen.live[0].server_state == stats.ABORTED


def test_a_chain_of_waiting_units_is_named_link_by_link() -> None:
    """Who waits for one who waits: each names the next, a stranger by its number, a prepared transaction as such."""
    first = worker(4711, unit("first", backend_pids=(1,)), backend_pids=(1,))
    others = worker(
        4712, unit("second", backend_pids=(2,), thread_id=2), unit("third", backend_pids=(3,)), backend_pids=(2, 3)
    )
    sessions = (
        session(1, 4711, blocked_by=(9, 0)),
        session(2, 4712, blocked_by=(1,)),
        session(3, 4712, blocked_by=(2, 1)),
    )

    shown = joined(database(*sessions, blockers=(session(9, None),)), first, others)
    seen = with_servers((first, others), (shown,))

    assert [each.waits_for for each in shown.sessions] == [
        ("pid 9", "a prepared transaction"),
        ("first",),
        ("second", "first"),
    ]
    assert [live.waits_for for each in seen for live in each.live] == [each.waits_for for each in shown.sessions]


def test_one_number_of_two_servers_is_told_apart_by_the_worker() -> None:
    """Two servers give the same number to processes of two workers: each session is its own worker's."""
    one, other = worker(4711, unit("one", backend_pids=(7,))), worker(4712, unit("other", backend_pids=(7,)))
    workers = replace(one, backend_pids=(7,)), replace(other, backend_pids=(7,))

    shown = [joined(database(session(7, pid)), *workers) for pid in (4711, 4712)]

    assert [each.sessions[0].unit for each in shown] == ["one", "other"]


def test_one_number_of_two_servers_is_told_apart_by_the_bind() -> None:
    """One worker has a connection to each of them: a unit is not taken for the one on the other server."""
    units = (
        unit("one", backend_pids=(7,), binds=("default",), state=State.IDLE),
        unit("other", backend_pids=(7,), binds=("audit",), state=State.RUNNING),
    )
    own = worker(4711, *units, backend_pids=(7, 7))
    databases = (
        joined(database(session(7, state="idle in transaction", state_age_seconds=9.0)), own),
        joined(database(session(7, state="active", state_age_seconds=1.0), binds=("audit",)), own),
    )

    (seen,) = with_servers((own,), databases)
    held = holders(snapshot(seen, databases=databases))

    assert [each.sessions[0].unit for each in databases] == ["one", "other"]
    assert [live.server_state for live in seen.live] == ["idle in transaction", "active"]
    assert [[each.state for each in holder.sessions] for holder in held] == [["idle in transaction"], ["active"]]


@pytest.mark.parametrize(
    ("seen", "is_orphan"),
    [
        (session(1, NOBODY), True),
        (session(1, os.getpid()), False),
        (session(1, 10**30), True),
        (session(1, None), False),
        (session(1, NOBODY, state="hidden"), False),
        (session(1, NOBODY, client_address="10.0.0.9"), False),
        (session(1, NOBODY, application_name=application_name("bank", NOBODY)), True),
        (session(1, NOBODY, application_name=application_name("bank", NOBODY, ELSEWHERE)), False),
        (session(1, 4711, application_name=application_name("bank", 4711, ELSEWHERE)), False),
        (session(5101, 4711), False),
    ],
    ids=[
        "process is gone",
        "process runs",
        "no such number",
        "unnamed",
        "hidden",
        "another host",
        "marked as of here",
        "another host behind one address",
        "a number that both hosts have",
        "known",
    ],
)
def test_an_orphan_is_what_came_from_here_and_nobody_knows(seen: stats.ServerSession, is_orphan: bool) -> None:
    """Not what another host, another program, or a process that has not published yet may hold."""
    own = worker(4711, unit(), backend_pids=(5101,))

    assert joined(database(seen, session(5101)), own).sessions[0].is_orphan is is_orphan


def test_there_are_no_orphans_where_not_all_workers_can_be_read() -> None:
    """Somebody else's folder, or ``UOW_STATS = False``: nobody knows whose the session is."""
    shown = joined(database(session(1, NOBODY), session(2, os.getpid())), is_complete=False)

    assert [(each.is_orphan, each.may_be_orphan) for each in shown.sessions] == [(False, True), (False, False)]
    assert shown.notes == ("Whether 1 session is an orphan cannot be told: not all workers of this host can be read.",)


def test_a_living_workers_lost_session_is_an_orphan() -> None:
    """It has others, which the server knows by their numbers, and this one it has forgotten."""
    own = worker(4711, unit(), backend_pids=(5101,))

    shown = joined(database(session(5101), session(5102)), own)

    assert [each.is_orphan for each in shown.sessions] == [False, True]


def test_a_number_of_another_server_hides_no_orphan() -> None:
    """A living worker has it too, on another server: the session's own process is gone."""
    own = worker(4711, unit(), backend_pids=(5101, 5102))

    shown = joined(database(session(5101), session(5102, NOBODY)), own)

    assert [each.is_orphan for each in shown.sessions] == [False, True]


def test_a_connection_that_was_made_while_the_server_was_asked_is_no_orphan() -> None:
    """The boards are read again afterwards."""
    before, after = worker(4711, backend_pids=(5101,)), worker(4711, backend_pids=(5101, 5102))

    shown = joined(database(session(5101), session(5102)), before, later=(after,))

    assert not any(each.is_orphan for each in shown.sessions)


def test_a_pooler_in_between_is_said_and_nothing_is_guessed() -> None:
    """None of the worker's numbers is the server's: sessions are matched by the worker's name alone."""
    pooled = worker(4711, unit("work", backend_pids=(99,)), backend_pids=(99,))

    shown = joined(database(session(1), session(2)), pooled)
    (seen,) = with_servers((pooled,), (shown,))

    (note,) = shown.notes
    assert "connections of worker 4711: a pooler such as PgBouncer lies between" in note
    assert [(each.unit, each.is_orphan) for each in shown.sessions] == [(None, False)] * 2
    assert seen.live[0].server_state is None


def test_connections_to_another_database_are_no_poolers() -> None:
    """What the worker has left in this one is an orphan, if it is told of all its connections."""
    own = worker(4711, unit(), backend_pids=(99,))
    full = dataclasses.replace(own, untold={"pools": 1})
    shown = with_units(database(session(1)), Known((own,), (own,), True, frozenset((1, 99))))
    unsure = joined(database(session(1)), full)

    assert (shown.notes, shown.sessions[0].is_orphan) == ((), True)
    assert (unsure.notes, unsure.sessions[0].is_orphan) == ((), False)


@pytest.mark.parametrize("pid", [4711, NOBODY], ids=["without connections", "gone"])
def test_behind_a_pooler_nothing_is_an_orphan(pid: int) -> None:
    """Whoever has a session's name had it last, and may have none now, or be gone: the pooler keeps it."""
    shown = joined(database(session(1, pid), is_pooled=True), worker(4711))

    (note,) = shown.notes
    assert note.startswith("The server does not know the connection that asked it: a pooler such as PgBouncer lies")
    assert not shown.sessions[0].is_orphan


@pytest.mark.parametrize(("state", "is_orphan"), [("idle", False), ("idle in transaction", True), ("active", True)])
def test_what_a_pooler_keeps_is_no_orphan_for_who_asks_past_it(state: str, is_orphan: bool) -> None:
    """A living worker is behind it, so one that has ended was too: what is at rest waits there for the next one."""
    pooled = worker(4711, backend_pids=(99,))

    shown = joined(database(session(1, NOBODY, state=state)), pooled)
    direct = joined(database(session(1, NOBODY, state=state), session(99)), pooled)

    assert [shown.sessions[0].is_orphan, direct.sessions[0].is_orphan] == [is_orphan, True]


@pytest.mark.parametrize(("untold", "is_orphan"), [("connections", False), ("pools", False), ("labels", True)])
def test_what_found_no_room_on_a_board_is_no_orphan(untold: str, is_orphan: bool) -> None:
    """Its worker has more connections than it tells of."""
    own = worker(4711, unit(), backend_pids=(5101,), untold={untold: 1})

    shown = joined(database(session(5101), session(5102)), own)

    assert [each.is_orphan for each in shown.sessions] == [False, is_orphan]


def test_sessions_of_other_hosts_are_counted() -> None:
    """Their workers are not to be seen from here, which is said."""
    shown = joined(database(session(1, NOBODY, client_address="10.0.0.9"), client_address="10.0.0.1"))

    assert shown.notes == ("1 of the sessions come from other hosts, whose workers are not to be seen from here.",)
    assert not shown.sessions[0].is_orphan


def test_what_another_host_has_is_none_of_this_ones() -> None:
    """Its processes have numbers that others have here; of what the server hides, nobody knows from where it comes."""
    elsewhere = session(1, os.getpid(), client_address="10.0.0.9")
    hidden = session(2, NOBODY, state="hidden")

    shown = joined(database(elsewhere, hidden, client_address="10.0.0.1"))

    first, second = shown.notes
    assert first.startswith("What 1 of the sessions do is hidden")
    assert second.startswith("1 of the sessions come from other hosts")


def test_a_process_of_another_user_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may send it nothing hears so, and its session is no orphan."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)

    assert not joined(database(session(1, NOBODY))).sessions[0].is_orphan


def test_a_session_of_another_bind_may_have_another_address() -> None:
    """The server sees this host under each of the ways that lead to it."""
    gone = session(1, NOBODY, client_address="10.0.0.2")
    shown = database(gone, client_address="10.0.0.1", other_addresses=("10.0.0.2",))

    (seen,) = joined(shown).sessions

    assert seen.is_orphan
    assert not joined(replace(shown, other_addresses=())).sessions[0].is_orphan


def test_hosts_behind_one_address_are_told_apart() -> None:
    """By their marks; a container of whose board this one can read is not taken for one that cannot be seen."""
    names = [application_name("bank", pid, ELSEWHERE) for pid in (4711, 4712)]
    own = worker(4711, unit(), backend_pids=(5101,))

    shown = joined(
        database(
            session(5101, application_name=names[0]),
            session(1, 4712, application_name=names[1], state="hidden"),
        ),
        own,
    )

    hidden, *others = shown.notes
    assert hidden.startswith("What 1 of the sessions do is hidden")
    assert others == ["1 of the sessions come from other hosts, whose workers are not to be seen from here."]
    assert [each.unit for each in shown.sessions] == ["POST /transfers", None]


def test_a_session_that_no_worker_speaks_of_keeps_what_its_server_was_told() -> None:
    """Marked, and named to those who wait for it; a worker's own word is better, and says where."""
    told: dict[str, object] = {"unit": "GET /outer", "is_told_by_server": True, "state": "active"}
    own = worker(4711, unit("inner", backend_pids=(1,), where="bank/inner.py:3 in inner"), backend_pids=(1,))
    sessions = (session(1, 4711, **told), session(2, 4712, **told), session(3, 4711, blocked_by=(1, 2)))

    shown = joined(database(*sessions), own)

    assert [(each.unit, each.where, each.is_told_by_server) for each in shown.sessions[:2]] == [
        ("inner", "bank/inner.py:3 in inner", False),
        ("GET /outer", None, True),
    ]
    assert shown.sessions[2].waits_for == ("inner", "GET /outer")


# ---- on a real server


def snapshot_until(app: object, is_right: Callable[[stats.Snapshot], object]) -> stats.Snapshot:
    """Take snapshots until one is right."""
    end = time.monotonic() + DEADLINE_S
    while True:
        seen = stats.snapshot(app)  # type: ignore[arg-type]
        if is_right(seen):
            return seen
        assert time.monotonic() < end, seen.databases
        time.sleep(0.01)


@on_postgresql
def test_blockers_of_blockers_are_named_by_their_units(database: Database, uow: UnitOfWork, tmp_path: Path) -> None:
    """Three units, of which each waits for the one before; the first is idle and holds both up."""
    app = make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"))
    goes_on = threading.Event()

    def take(label: str, *locks: int) -> None:
        with app.app_context(), transactional(label=label):
            for lock in locks:
                uow.session.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
            if label == "first":
                assert goes_on.wait(DEADLINE_S)

    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        stack.callback(goes_on.set)
        results = []
        wanted: dict[str, tuple[int, ...]] = {"first": (1,), "second": (2, 1), "third": (2,)}
        for number, (label, locks) in enumerate(wanted.items()):
            results.append(threads.submit(take, label, *locks))
            snapshot_until(
                app,
                lambda seen, number=number: (  # type: ignore[misc]
                    sum(live.waits_for != () for each in seen.workers for live in each.live) == number
                    and len(seen.databases[0].sessions) == number + 1
                ),
            )
        seen = stats.snapshot(app)
        goes_on.set()
        for result in results:
            result.result(DEADLINE_S)

    live = {each.label: each for each in seen.workers[0].live}
    assert {label: each.waits_for for label, each in live.items()} == {
        "first": (),
        "second": ("first",),
        "third": ("second",),
    }
    assert live["first"].server_state == "idle in transaction"
    sessions = {each.unit: each for each in seen.databases[0].sessions}
    assert {label: (sessions[label].pid,) for label in live} == {k: each.backend_pids for k, each in live.items()}
    assert sessions["third"].waits_for == ("second",)
    assert not any(each.is_orphan for each in seen.databases[0].sessions)


@on_postgresql
def test_an_independent_unit_that_waits_for_the_one_around_it(
    database: Database, uow: UnitOfWork, tmp_path: Path
) -> None:
    """It is said that nobody else will free it."""
    app = make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"))
    lock = sa.text("SELECT pg_advisory_xact_lock(1)")

    def work() -> None:
        with app.app_context(), transactional(label="outer"):
            uow.session.execute(lock)
            with transactional(label="independent", propagation="requires_new"):
                uow.session.execute(lock)

    with ThreadPoolExecutor(1) as threads, closing(database.connect()) as other:
        result = threads.submit(work)
        seen = snapshot_until(app, lambda seen: any(trouble.kind == "blocked" for trouble in seen.troubles))
        other.cursor().execute(f"SELECT pg_cancel_backend({blocked(seen)[0].pid})")
        with pytest.raises(sa.exc.OperationalError, match="canceling statement"):
            result.result(DEADLINE_S)

    (text,) = (trouble.text for trouble in seen.troubles if trouble.kind == "blocked")
    assert text.startswith("independent waits for outer in its own thread, that is for itself, for ")


@on_postgresql
def test_a_session_under_the_name_of_a_process_that_is_gone_is_an_orphan(
    database: Database, uow: UnitOfWork, tmp_path: Path
) -> None:
    """Whatever number stands in the name; one whose worker lives is its own, and a snapshot is taken in any case."""
    app = make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"))
    numbers = {NOBODY: True, 10**25: True, os.getpid(): False}
    with app.app_context(), transactional(label="work"), ExitStack() as stack:
        uow.session.execute(sa.text("SELECT 1"))
        for number in (NOBODY, 10**25):
            connection = database.connect()
            stack.callback(connection.close)
            name = application_name(app.name, number)
            connection.cursor().execute(f"SET application_name = '{name}'")
        seen = snapshot_until(app, lambda seen: len(seen.databases[0].sessions) == len(numbers))

    assert seen.databases[0].error is None
    assert {each.worker_pid: each.is_orphan for each in seen.databases[0].sessions} == numbers


@on_postgresql
def test_a_unit_of_a_container_behind_the_same_address_is_no_orphan(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has process numbers of its own, and the server sees it where it sees this host: its label is shown."""
    container, uow = make_silent(database)
    app = make_app(database, UOW_STATS_DIR=str(tmp_path / "boards"))
    with container.app_context(), transactional(label="view"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: NOBODY)
            patch.setattr(os, "readlink", lambda path: "pid:[1]")
            uow.session.execute(sa.text("SELECT 1"))
        seen = snapshot_until(app, lambda seen: seen.databases[0].sessions)

    (session,) = seen.databases[0].sessions
    assert (session.worker_pid, session.unit, session.is_told_by_server) == (NOBODY, "view", True)
    assert not session.is_orphan
    assert not seen.troubles
    assert "1 of the sessions come from other hosts" in seen.databases[0].notes[-1]


@on_postgresql
@pytest.mark.parametrize("way", ["driver's cursor", "driver's cursor first", "FETCH"])
def test_what_goes_past_sqlalchemy_is_no_idling(database: Database, uow: UnitOfWork, tmp_path: Path, way: str) -> None:
    """The unit runs SQL, as its server says, and nobody is told that it idles."""
    app = make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"), UOW_MAX_IDLE_SECONDS=0.2)
    # The first two rows come at once, and the next ones when the lock is free.
    rows = "SELECT CASE WHEN i > 2 THEN pg_advisory_xact_lock(1)::text END FROM generate_series(1, 4) AS i"

    def work() -> None:
        with app.app_context(), transactional(label="import"):
            options = {"stream_results": True, "yield_per": 2}
            if way == "FETCH":
                uow.session.execute(sa.text(rows).execution_options(**options)).all()
                return
            if way == "driver's cursor":
                uow.session.execute(sa.text("SELECT 1"))
            with closing(uow.session.connection().connection.cursor()) as cursor:
                cursor.execute(rows)

    with ThreadPoolExecutor(1) as threads, closing(database.connect()) as holder:
        holder.cursor().execute("SELECT pg_advisory_lock(1)")
        result = threads.submit(work)
        seen = snapshot_until(
            app,
            # The boards are read first: on a slow machine, before there is one.
            lambda seen: seen.workers and any((each.state_age_seconds or 0.0) > 0.3 for each in blocked(seen)),
        )
        holder.cursor().execute("SELECT pg_advisory_unlock(1)")
        result.result(DEADLINE_S)

    (live,) = seen.workers[0].live
    assert (live.label, live.state, live.server_state) == ("import", State.RUNNING, "active")
    assert [trouble.kind for trouble in seen.troubles] == ["blocked"]
    assert not stats.Condition.parse("idle-in-transaction=0.1").failures(seen)


@on_postgresql
def test_what_went_past_sqlalchemy_has_ended_an_idling(database: Database, uow: UnitOfWork, tmp_path: Path) -> None:
    """A unit that works on the driver's own cursor, and is met between two statements, has not idled all the time."""
    app = make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"), UOW_RULES="off")
    with app.app_context(), transactional(label="import"):
        uow.session.execute(sa.text("SELECT 1"))
        snapshot_until(app, lambda seen: seen.workers[0].live[0].state_seconds > 0.3)
        with closing(uow.session.connection().connection.cursor()) as cursor:
            cursor.execute("SELECT 1")
        seen = stats.snapshot(app)

    (live,), (own,) = seen.workers[0].live, seen.databases[0].sessions
    assert (live.state, own.state) == (State.IDLE, "idle in transaction")
    assert own.state_age_seconds is not None
    assert live.state_seconds <= own.state_age_seconds


@on_postgresql
def test_a_worker_whose_file_was_removed_is_named(database: Database, uow: UnitOfWork, tmp_path: Path) -> None:
    """Its session is no orphan, for the process runs; nothing else tells that it lives."""
    folder = tmp_path / "boards"
    app = make_app(database, uow, UOW_STATS_DIR=str(folder))
    with app.app_context(), transactional(label="work"):
        uow.session.execute(sa.text("SELECT 1"))
        before = stats.snapshot(app)
        shutil.rmtree(folder)
        after = stats.snapshot(app)

    assert before.databases[0].notes == ()
    assert (after.workers, after.troubles) == ((), ())
    (note,) = after.databases[0].notes
    assert note.startswith(
        f"No board of worker {os.getpid()} is found, and the process lives: its file was removed, or"
    )


def test_a_worker_that_cannot_be_read_is_not_said_to_publish_nothing() -> None:
    """Why not all can be read is said already; and of whom the names behind a pooler are, nobody knows."""
    own = session(1, os.getpid())

    assert joined(database(own), is_complete=False).notes == ()
    assert [note for note in joined(database(own, is_pooled=True)).notes if "No board" in note] == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux lists when its processes were started")
@on_postgresql
@pytest.mark.parametrize("is_later", [False, True], ids=["its own", "another's"])
def test_a_process_with_the_number_of_one_that_is_gone_hides_no_orphan(
    database: Database, uow: UnitOfWork, tmp_path: Path, is_later: bool
) -> None:
    """It was started after the session had connected, which it cannot have done."""
    app = make_app(database, uow, UOW_STATS_DIR=str(tmp_path / "boards"))
    with ExitStack() as stack:
        if not is_later:
            process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        connection = stack.enter_context(closing(database.connect()))
        connection.cursor().execute("SELECT pg_sleep(1)")  # longer than a snapshot takes to look at the process
        if is_later:
            process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(process.kill)
        connection.cursor().execute(f"SET application_name = '{application_name(app.name, process.pid)}'")
        seen = snapshot_until(app, lambda seen: [each.is_orphan for each in seen.databases[0].sessions] == [is_later])

    (session,) = seen.databases[0].sessions
    assert session.connected_seconds is not None
    assert session.connected_seconds >= 1


@on_postgresql
@pytest.mark.parametrize("is_locked", [False, True], ids=["nobody's", "somebody's"])
def test_a_damaged_file_hides_orphans_only_if_its_writer_lives(
    database: Database, uow: UnitOfWork, tmp_path: Path, is_locked: bool
) -> None:
    """A process holds a lock on its file as long as it lives; what nobody locks belongs to none of the sessions."""
    folder = tmp_path / "boards"
    app = make_app(database, uow, UOW_STATS_DIR=str(folder))
    with app.app_context(), transactional(label="work"), ExitStack() as stack:
        uow.session.execute(sa.text("SELECT 1"))
        (real,) = folder.glob("*.board")
        damaged = stack.enter_context((folder / "damaged.board").open("wb"))
        damaged.truncate(real.stat().st_size)
        if is_locked:
            fcntl.flock(damaged, fcntl.LOCK_EX)
        connection = stack.enter_context(closing(database.connect()))
        connection.cursor().execute(f"SET application_name = '{application_name(app.name, NOBODY)}'")
        seen = snapshot_until(app, lambda seen: len(seen.databases[0].sessions) == 2)

    (lost,) = (each for each in seen.databases[0].sessions if each.worker_pid == NOBODY)
    assert (lost.is_orphan, lost.may_be_orphan) == (not is_locked, is_locked)
    assert any("damaged.board cannot be read" in note for note in seen.notes)
    assert any("is an orphan cannot be told" in note for note in seen.databases[0].notes) is is_locked
    assert stats.Condition.parse("orphans=1").failures(seen)


# ---- what the server was told, where no board says it


def make_silent(database: Database, **config: object) -> tuple[Flask, UnitOfWork]:
    """Make an app that publishes nothing, as one whose boards are another host's."""
    uow = UnitOfWork()
    return make_app(database, uow, **({"UOW_RIDE": True, "UOW_STATS": False} | config)), uow


@pytest.fixture
def looker(database: Database, tmp_path: Path) -> Flask:
    """An app of the same name that has boards of its own, and nothing on them."""
    return make_app(database, UOW_STATS_DIR=str(tmp_path / "boards"))


@on_postgresql
def test_a_unit_of_elsewhere_is_shown_by_its_label(database: Database, looker: Flask) -> None:
    """The outermost one's, while its transaction is open and no longer; the line is not known."""
    app, uow = make_silent(database)
    seen = {}
    with app.app_context():
        with transactional(label="POST /transfers/<int:id>"), transactional(label="inner"):
            uow.session.execute(sa.text("SELECT 1"))
            seen["open"] = snapshot_until(looker, is_in("idle in transaction"))
        seen["ended"] = snapshot_until(looker, is_in("idle"))

    (session,) = seen["open"].databases[0].sessions
    assert (session.unit, session.is_told_by_server, session.where) == ("POST /transfers/<int:id>", True, None)
    assert (session.worker_pid, session.is_orphan) == (os.getpid(), False)
    (session,) = seen["ended"].databases[0].sessions
    assert (session.unit, session.is_told_by_server) == (None, False)


@on_postgresql
@pytest.mark.parametrize("is_inner", [False, True], ids=["outermost", "savepoint"])
def test_a_failed_transaction_forgets_its_label(database: Database, looker: Flask, is_inner: bool) -> None:
    """The server undoes what was set in it, but for what was set before a savepoint."""
    app, uow = make_silent(database)
    with app.app_context(), pytest.raises(sa.exc.ProgrammingError, match="nowhere"):
        with transactional(label="POST /transfers"), ExitStack() as stack:
            uow.session.execute(sa.text("SELECT 1"))
            if is_inner:
                stack.enter_context(transactional(label="inner"))
            try:
                uow.session.execute(sa.text("SELECT * FROM nowhere"))
            except sa.exc.ProgrammingError:
                seen = snapshot_until(looker, lambda seen: seen.troubles)
                raise

    (session,), (trouble,) = seen.databases[0].sessions, seen.troubles
    assert trouble.kind == "aborted-transaction"
    assert trouble.backend_pid == session.pid
    assert trouble.label == session.unit == ("POST /transfers" if is_inner else None)


@on_postgresql
def test_who_waits_for_a_unit_of_elsewhere_names_it(database: Database, looker: Flask) -> None:
    """So does the trouble; a unit of another app is named as a stranger, and its label with it."""
    app, uow = make_silent(database)
    other = Flask("other")
    other.config.update(SQLALCHEMY_DATABASE_URI=database.url, UOW_STATS=False)
    others = UnitOfWork(other)
    lock = sa.text("SELECT pg_advisory_xact_lock(:lock)")

    def wait() -> None:
        with app.app_context(), transactional(label="GET /second"):
            uow.session.execute(lock, {"lock": 1})
            uow.session.execute(lock, {"lock": 2})

    with ThreadPoolExecutor(1) as threads:
        with other.app_context(), transactional(label="GET /other"):
            others.session.execute(lock, {"lock": 2})
            with app.app_context(), transactional(label="GET /first"):
                uow.session.execute(lock, {"lock": 1})
                waiting = threads.submit(wait)
                first = snapshot_until(looker, lambda seen: blocked(seen) and seen.troubles)
            second = snapshot_until(looker, lambda seen: seen.troubles and seen.databases[0].blockers)
        waiting.result(DEADLINE_S)

    assert [(each.unit, each.waits_for) for each in blocked(first)] == [("GET /second", ("GET /first",))]
    assert [each.text.partition(" for 0.")[0] for each in first.troubles] == ["GET /second waits for GET /first"]
    (stranger,) = second.databases[0].blockers
    assert (stranger.unit, stranger.is_told_by_server) == (None, False)
    assert blocked(second)[0].waits_for == (f"pid {stranger.pid}",)
    name = f"session {stranger.pid} ({application_name(other.name, os.getpid())}:GET /other, role {stranger.user})"
    assert f"GET /second waits for {name}, which is not of this app and idle in transaction," in second.troubles[0].text


@on_postgresql
def test_a_label_is_seen_where_the_rest_is_hidden(database: Database, looker: Flask) -> None:
    """Every role may read a session's name; that there is a label tells that its transaction is open."""
    role = f"visitor_{os.getpid()}_{threading.get_ident()}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hush'")
    url = sa.make_url(database.url).set(username=role, password="hush").render_as_string(hide_password=False)
    visitor = make_app(database, SQLALCHEMY_DATABASE_URI=url, UOW_STATS_DIR=looker.config["UOW_STATS_DIR"])
    app, uow = make_silent(database)
    try:
        with app.app_context(), transactional(label="POST /" + "long" * 20):
            uow.session.execute(sa.text("SELECT 1"))
            seen = snapshot_until(visitor, is_in("hidden"))
    finally:
        database.execute(f"DROP ROLE {role}")

    (session,) = seen.databases[0].sessions
    assert len(session.application_name) == 63
    assert (session.worker_pid, session.is_told_by_server) == (os.getpid(), True)
    assert session.unit is not None
    assert ("POST /" + "long" * 20).startswith(session.unit)
    assert session.application_name == f"{application_name(app.name, os.getpid())}:{session.unit}"


@on_postgresql
@pytest.mark.parametrize("key", ["UOW_LABEL_SERVER", "UOW_RIDE"])
def test_the_server_is_told_no_label_where_that_is_switched_off(database: Database, looker: Flask, key: str) -> None:
    """The name stays the connection's own."""
    app, uow = make_silent(database, **{key: False})
    with app.app_context(), transactional(label="POST /transfers"):
        uow.session.execute(sa.text("SELECT 1"))
        seen = snapshot_until(looker, is_in("idle in transaction"))

    (session,) = seen.databases[0].sessions
    assert session.application_name == application_name(app.name, os.getpid())
    assert (session.unit, session.is_told_by_server) == (None, False)


@on_postgresql
def test_a_label_outside_of_a_transaction_is_not_believed(database: Database, looker: Flask) -> None:
    """Somebody has called an idle connection so."""
    with closing(database.connect()) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"SET application_name = '{application_name(looker.name, NOBODY)}:POST /x'")
        seen = snapshot_until(looker, is_in("idle"))

    (session,) = seen.databases[0].sessions
    assert (session.unit, session.is_told_by_server) == (None, False)


def is_in(state: str) -> Callable[[stats.Snapshot], bool]:
    """Wait until the server has one session of the app, in this state."""
    return lambda seen: [each.state for each in seen.databases[0].sessions] == [state]


def blocked(seen: stats.Snapshot) -> list[stats.ServerSession]:
    """The sessions that wait for another."""
    return [each for each in seen.databases[0].sessions if each.blocked_by]
