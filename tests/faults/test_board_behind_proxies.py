"""What a board says while an answer of the server is on its way, and what can be said through a pooler."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from flask_uow import stats, transactional
from flask_uow.stats import State
from tests.boards import live_until
from tests.database.conftest import MakeBench
from tests.databases import Database
from tests.faults.proxy import Proxy
from tests.models import RIDES
from tests.pgbouncer import run_pgbouncer

DEADLINE_S = 30.0
on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
pytestmark = on_postgresql


@pytest.mark.parametrize(
    ("statement", "state", "ends"),
    [
        (r"(?:^|;)\s*COMMIT\s*;?\s*$", State.COMMITTING, lambda unit: None),
        (r"(?:^|;)\s*ROLLBACK\s*;?\s*$", State.ROLLING_BACK, lambda unit: unit.set_rollback_only()),
    ],
    ids=["commit", "rollback"],
)
def test_the_end_of_a_unit_takes_as_long_as_its_answer(
    make_proxied_bench: MakeBench,
    proxy: Proxy,
    tmp_path: Path,
    statement: str,
    state: str,
    ends: Callable[[object], None],
) -> None:
    """Committing, and rolling back, until the server has said so; it is counted when it has."""
    bench = make_proxied_bench(UOW_STATS_DIR=str(tmp_path / "boards"))
    app = bench.app
    proxy.hold(statement=statement)

    def work() -> None:
        with app.app_context(), transactional(label="work") as unit:
            bench.add("row")
            ends(unit)

    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(work)
        try:
            shown = live_until(app, lambda unit: unit.state == state and unit.state_seconds > 0.02)
            during = stats.read_boards(app).totals.units
        finally:
            proxy.release()
        result.result(DEADLINE_S)

    assert shown.label == "work"
    assert during == stats.UnitCounts(begun=1)
    after = stats.read_boards(app).totals.units
    assert after == stats.UnitCounts(begun=1, **{"committed" if state == State.COMMITTING else "rolled_back": 1})


def test_numbers_that_a_pooler_has_made_up_make_no_orphans(
    make_proxied_bench: MakeBench, proxy: Proxy, tmp_path: Path
) -> None:
    """The server does not know the process that the driver was told of: a note says so, and nothing is guessed."""
    proxy.disguise()
    bench = make_proxied_bench(UOW_STATS_DIR=str(tmp_path / "boards"), SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2})
    with bench.app.app_context(), transactional(label="work") as unit:
        bench.run_sql("SELECT 1")
        real_pid = unit.session.scalar(sa.text("SELECT pg_backend_pid()"))
        snapshot = stats.snapshot(bench.app)

    (database,) = snapshot.databases
    assert database.error is None
    assert real_pid not in snapshot.workers[0].backend_pids, "it is disguised"
    (note,) = (note for note in database.notes if "pooler" in note)
    assert str(os.getpid()) in note
    (session,) = (session for session in database.sessions if session.pid == real_pid)
    assert (session.is_orphan, session.worker_pid) == (False, os.getpid())
    assert (session.unit, session.where) == ("work" if RIDES else None, None), "the server was told the label"
    (live,) = snapshot.workers[0].live
    assert (live.label, live.state, live.server_state) == ("work", State.IDLE, None)
    assert not [trouble for trouble in snapshot.troubles if trouble.kind == "orphan"]


def test_through_a_real_pooler_no_more_is_said_than_is_known(
    make_bench: MakeBench, database: Database, tmp_path: Path
) -> None:
    """PgBouncer in transaction mode: units, states and statements as ever; sessions by worker, and none an orphan."""
    with run_pgbouncer(database.url, tmp_path) as served:
        url = served.render_as_string(hide_password=False)
        bench = make_bench(SQLALCHEMY_DATABASE_URI=url, UOW_STATS_DIR=str(tmp_path / "boards"))
        with bench.app.app_context():
            with transactional(label="before"):
                bench.add("before")
            with transactional(label="work") as unit:
                bench.add("row")
                real_pid = unit.session.scalar(sa.text("SELECT pg_backend_pid()"))
                snapshot = stats.snapshot(bench.app)

    (shown,) = snapshot.databases
    assert shown.error is None
    (live,) = snapshot.workers[0].live
    assert (live.label, live.state) == ("work", State.IDLE)
    assert not any(session.is_orphan for session in shown.sessions)
    assert not [trouble for trouble in snapshot.troubles if trouble.kind == "orphan"]
    session = next(session for session in shown.sessions if session.pid == real_pid)
    assert session.worker_pid == os.getpid()
    assert (session.unit, session.where) == ("work" if RIDES else None, None), "the server was told the label"
    assert any("pooler such as PgBouncer" in note for note in shown.notes)
    assert snapshot.totals.units == stats.UnitCounts(begun=2, committed=1)
    assert bench.committed() == ["before", "row"]


def test_what_a_real_pooler_keeps_is_no_orphan(make_bench: MakeBench, database: Database, tmp_path: Path) -> None:
    """The worker lives and has no connection; what it had is called after it, or after what asked last."""
    with run_pgbouncer(database.url, tmp_path) as served:
        bench = make_bench(
            SQLALCHEMY_DATABASE_URI=served.render_as_string(hide_password=False),
            SQLALCHEMY_ENGINE_OPTIONS={"poolclass": sa.NullPool},
            UOW_STATS_DIR=str(tmp_path / "boards"),
        )
        with bench.app.app_context(), transactional(label="work"):
            bench.add("row")
            with transactional(label="beside", propagation="requires_new"):
                bench.add("another")  # so that the pooler has two connections, of which the snapshot uses one
        snapshot = stats.snapshot(bench.app)

    (shown,) = snapshot.databases
    assert shown.is_pooled
    assert {session.worker_pid for session in shown.sessions} == {os.getpid()}
    assert not any(session.is_orphan for session in shown.sessions)
    assert any("a pooler such as PgBouncer lies between" in note for note in shown.notes)
