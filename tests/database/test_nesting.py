"""Units inside units: Django's semantics for savepoints, Spring's names for the rest."""

import asyncio
import gc
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from flask_uow import Propagation, Unit, UnitOfWork, current_unit, transactional
from flask_uow.exceptions import (
    NoActiveUnitError,
    RuleViolationError,
    UnitActiveError,
    UnitFailedError,
    UnitOptionsError,
    UnitTimeoutError,
)
from flask_uow.testing import record
from tests.database.conftest import Bench, MakeBench
from tests.models import Item


def test_an_inner_failure_undoes_the_inner_part_only(bench: Bench) -> None:
    """The outer unit goes on and commits."""
    with bench.app.app_context(), transactional():
        bench.add("before")
        with pytest.raises(KeyError), transactional():
            bench.add("inner")
            raise KeyError
        bench.add("after")

    assert bench.committed() == ["after", "before"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_setting_that_fails_fails_its_own_unit(bench: Bench, is_first: bool) -> None:
    """Also where nothing comes behind it: the outer unit goes on and commits, and settings that are right stay."""
    with bench.app.app_context(), transactional():
        if not is_first:
            bench.add("before")
        with pytest.raises(sa.exc.DBAPIError, match="work_mem"), transactional():
            with transactional():
                bench.run_sql("SET LOCAL my.setting = 'inner'")
            bench.run_sql("SET LOCAL work_mem = '1kB'")
        with transactional():
            bench.run_sql("SET LOCAL my.setting = 'right'")
        bench.add("after")
        assert bench.session.scalar(sa.text("SHOW my.setting")) == "right"

    assert bench.committed() == (["after"] if is_first else ["after", "before"])


def test_an_inner_unit_whose_release_is_not_sent_fails_the_outer_one(bench: Bench) -> None:
    """A listener that counts statements, say: nothing undoes the savepoint alone, so the one around it does."""

    def refuse(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("RELEASE"):
            raise ValueError("too many statements")

    with bench.app.app_context():
        engine = bench.uow.engine
        with transactional():
            bench.add("outermost")
            with pytest.raises(UnitFailedError, match="swallowed") as caught, transactional():
                bench.add("around")
                sa.event.listen(engine, "before_cursor_execute", refuse)
                with pytest.raises(ValueError, match="too many"), transactional():
                    bench.add("inner")
                sa.event.remove(engine, "before_cursor_execute", refuse)
                bench.add("after")
    assert isinstance(caught.value.__cause__, ValueError)

    assert bench.committed() == ["outermost"]


def test_an_outer_failure_undoes_all(bench: Bench) -> None:
    """What an inner unit kept was kept for the outer one."""
    with bench.app.app_context(), pytest.raises(KeyError), transactional():
        with transactional():
            bench.add("inner")
        raise KeyError

    assert bench.committed() == []


def test_three_deep(bench: Bench) -> None:
    """Each savepoint undoes what is its own, also when it is the first thing in the transaction."""
    with bench.app.app_context(), transactional() as first:
        with transactional() as second:
            with pytest.raises(KeyError), transactional() as third:
                assert [unit.depth for unit in (first, second, third)] == [1, 2, 3]
                assert third.parent is second
                assert second.parent is first
                bench.add("third")
                raise KeyError
            bench.add("second")
        with pytest.raises(KeyError), transactional():
            with transactional():
                bench.add("kept by the inner, undone by the middle")
            raise KeyError
        bench.add("first")

    assert bench.committed() == ["first", "second"]


def test_a_duplicate_key_inside_leaves_the_outer_healthy(bench: Bench) -> None:
    """The error leaves the inner unit unchanged, at its flush or at its end."""
    with bench.app.app_context(), transactional():
        bench.add("there")
        with pytest.raises(sa.exc.IntegrityError), transactional():
            bench.add("there")
        with pytest.raises(sa.exc.IntegrityError), transactional():
            bench.session.add(Item(name="there"))
        bench.add("after")

    assert bench.committed() == ["after", "there"]


def test_objects_pending_in_the_outer_unit_survive_the_inner_rollback(bench: Bench) -> None:
    """They are flushed before the savepoint."""
    with bench.app.app_context(), transactional():
        bench.session.add(Item(name="pending"))
        with pytest.raises(KeyError), transactional():
            bench.add("inner")
            raise KeyError

    assert bench.committed() == ["pending"]


def test_set_rollback_only_of_an_inner_unit_is_its_own(bench: Bench) -> None:
    """A savepoint is undone without an exception."""
    with bench.app.app_context(), transactional():
        with transactional() as inner:
            bench.add("inner")
            inner.set_rollback_only()
        bench.add("outer")

    assert bench.committed() == ["outer"]


def test_a_savepoint_by_hand_is_allowed(bench: Bench) -> None:
    """``begin_nested`` commits and rolls back as ever."""
    with bench.app.app_context(), transactional():
        with bench.session.begin_nested():
            bench.add("kept")
        with pytest.raises(KeyError), bench.session.begin_nested():
            bench.add("undone")
            raise KeyError
        bench.session.begin_nested()
        bench.add("left open")

    assert bench.committed() == ["kept", "left open"]


# ---- REQUIRED


def test_a_join_is_a_part_of_the_unit_that_it_joins(bench: Bench) -> None:
    """It is a unit of its own with a parent, and commits nothing."""
    with bench.app.app_context(), transactional() as outer, transactional(propagation="required") as join:
        assert isinstance(join, Unit)
        assert join.parent is outer
        assert join.depth == 2
        assert join.session is outer.session
        bench.add("row")
        assert bench.committed() == []

    assert bench.committed() == ["row"]


def test_a_join_that_fails_fails_the_whole_also_if_swallowed(bench: Bench) -> None:
    """The outer unit ends in ``UnitFailedError`` from the swallowed error."""
    with bench.app.app_context():
        with pytest.raises(UnitFailedError, match="was not committed") as caught, transactional():
            bench.add("outer")
            with pytest.raises(KeyError), transactional(propagation="required"):
                raise KeyError("inner")

    assert isinstance(caught.value.__cause__, KeyError)
    assert bench.committed() == []


def test_a_join_fails_up_to_the_nearest_savepoint(bench: Bench) -> None:
    """What lies around that savepoint goes on."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        with pytest.raises(UnitFailedError, match="was not committed"), transactional():
            bench.add("savepoint")
            with pytest.raises(KeyError), transactional(propagation=Propagation.REQUIRED):
                raise KeyError

    assert bench.committed() == ["outer"]


def test_a_kept_exception_does_not_fail_what_was_joined(bench: Bench) -> None:
    """``no_rollback_for`` holds in a join too."""
    with bench.app.app_context(), transactional():
        with pytest.raises(KeyError), transactional(propagation="required", no_rollback_for=KeyError):
            bench.add("row")
            raise KeyError

    assert bench.committed() == ["row"]


def test_a_join_in_a_join_fails_the_whole_unit(bench: Bench) -> None:
    """Both have joined the same unit."""
    with bench.app.app_context(), pytest.raises(UnitFailedError, match="was not committed"), transactional():
        bench.add("outer")
        with transactional(propagation="required"):
            with suppress(KeyError), transactional(propagation="required"):
                bench.add("inner")
                raise KeyError

    assert bench.committed() == []


@pytest.mark.parametrize("is_undone", [True, False], ids=["undone", "kept"])
def test_a_savepoint_by_hand_that_was_left_open_ends_with_its_unit(bench: Bench, is_undone: bool) -> None:
    """What was done in it has the fate of the unit inside which it was made, and the outer one goes on."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        with transactional() as unit:
            bench.add("inner")
            bench.session.begin_nested()
            bench.add("by hand")
            if is_undone:
                unit.set_rollback_only()
        bench.add("outer again")

    of_inner = [] if is_undone else ["by hand", "inner"]
    assert bench.committed() == [*of_inner, "outer", "outer again"]


def test_set_rollback_only_in_a_join_is_the_whole_units(bench: Bench) -> None:
    """No exception, nothing kept."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        with transactional(propagation="required") as join:
            join.set_rollback_only()

    assert bench.committed() == []


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("propagation", [Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED])
@pytest.mark.parametrize(("size", "overflow", "deep"), [(1, 0, 1), (1, 1, 2), (3, 0, 3)])
def test_units_that_hold_the_whole_pool_are_told_at_once(
    make_bench: MakeBench, propagation: Propagation, size: int, overflow: int, deep: int
) -> None:
    """One more connection is what they would wait for themselves; less deep, or with more room, there is one."""
    options = {"pool_size": size, "max_overflow": overflow, "pool_timeout": 60}
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS=options)

    def go_deeper(depth: int) -> None:
        with transactional(propagation="requires_new"):
            bench.add(f"{depth}")
            if depth < deep:
                go_deeper(depth + 1)
            else:
                with (
                    pytest.raises(UnitOptionsError, match=f"hold all {deep} connections"),
                    transactional(propagation=propagation),
                ):
                    bench.add("never")
                bench.add("goes on")

    with bench.app.app_context():
        go_deeper(1)
        assert bench.checked_out == 0

    assert bench.committed() == sorted([*map(str, range(1, deep + 1)), "goes on"])


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize(("size", "overflow"), [(2, 0), (1, -1)], ids=["room for two", "no limit"])
def test_a_pool_with_a_connection_left_is_not_full(make_bench: MakeBench, size: int, overflow: int) -> None:
    """Units inside each other on one session hold one connection, and some pools have always one more."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": size, "max_overflow": overflow})

    with bench.app.app_context(), transactional():
        bench.add("outer")
        with transactional(), transactional(propagation="required"), transactional(propagation="requires_new"):
            bench.add("inner")

    assert bench.committed() == ["inner", "outer"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_pool_that_others_hold_is_waited_for(make_bench: MakeBench) -> None:
    """Another thread gives its connection back some time; and an outer unit that has sent nothing holds none."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})

    with bench.app.app_context():
        theirs = bench.uow.engine.connect()
        threading.Timer(0.1, theirs.close).start()
        with transactional(), transactional(propagation="requires_new"):
            bench.add("kept")

    assert bench.committed() == ["kept"]


@pytest.mark.parametrize("propagation", ["nested", "required", "requires_new"])
def test_without_a_unit_each_of_these_begins_one(bench: Bench, propagation: str) -> None:
    """Code need not know its own depth."""
    with bench.app.app_context(), transactional(propagation=propagation) as unit:  # type: ignore[call-overload]
        assert unit.depth == 1
        assert unit.parent is None
        bench.add("row")

    assert bench.committed() == ["row"]


# ---- REQUIRES_NEW


def test_an_independent_unit_survives_the_rollback_around_it(bench: Bench) -> None:
    """It has a session, a connection and a commit of its own, and ``uow.session`` is it meanwhile."""
    with bench.app.app_context():
        outer_session = bench.session
        with pytest.raises(KeyError), transactional() as outer:
            with transactional(propagation="requires_new") as inner:
                assert current_unit == inner
                assert bench.session is inner.session
                assert inner.session is not outer_session
                assert inner.depth == 1
                assert inner.parent is None
                bench.add("audit")
            assert bench.committed() == ["audit"]
            assert bench.session is outer_session
            assert current_unit == outer
            bench.add("outer")
            raise KeyError
        assert bench.checked_out == 0

    assert bench.committed() == ["audit"]


def test_an_independent_unit_that_fails_leaves_the_outer_one_alone(bench: Bench) -> None:
    """Also three deep, suspended and resumed."""
    with bench.app.app_context(), transactional() as first:
        with pytest.raises(KeyError), transactional(propagation="requires_new") as second:
            with transactional(propagation="requires_new") as third:
                bench.add("third")
            assert current_unit == second
            bench.add("second")
            raise KeyError
        assert current_unit == first
        assert third.was_committed
        bench.add("first")

    assert bench.committed() == ["first", "third"]


def test_an_independent_unit_beside_an_open_transaction(bench: Bench) -> None:
    """PostgreSQL runs both; SQLite has one writer, and says so at once instead of waiting for itself."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        if bench.database.is_postgresql:
            with transactional(propagation="requires_new"):
                bench.add("inner")
                assert bench.checked_out == 2
        else:
            with (
                pytest.raises(UnitOptionsError, match="SQLite has one writer"),
                transactional(propagation="requires_new"),
            ):
                pass
            assert current_unit.depth == 1

    assert bench.committed() == (["inner", "outer"] if bench.database.is_postgresql else ["outer"])


def test_an_independent_unit_after_a_read_that_came_before_the_unit(bench: Bench) -> None:
    """A user loaded before the request say: the unit has sent nothing yet, and SQLite's lock is nobody's."""
    with bench.app.app_context():
        bench.session.scalars(sa.select(Item)).all()
        with transactional():
            with transactional(propagation="requires_new"):
                bench.add("inner")
            with transactional(propagation="not_supported"):
                assert bench.session.scalars(sa.select(Item.name)).all() == ["inner"]
            assert bench.session.scalars(sa.select(Item.name)).all() == ["inner"]
            bench.add("outer")

    assert bench.committed() == ["inner", "outer"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_unit_in_a_context_of_its_own_does_not_wait_for_the_one_around_it(bench: Bench) -> None:
    """A task that is run at once say: SQLite's lock is the outer unit's, which goes on and may read there."""

    def add_later() -> None:
        with bench.app.app_context(), transactional():
            bench.add("later")

    with bench.app.app_context(), transactional():
        bench.add("outer")
        with pytest.raises(UnitOptionsError, match="SQLite has one writer"), bench.app.app_context(), transactional():
            bench.add("inner")
        with bench.app.app_context(), transactional(read_only=True):
            assert bench.session.scalars(sa.select(Item.name)).all() == []
        current_unit.after_commit(add_later)

    assert bench.committed() == ["later", "outer"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_writer_in_a_context_of_its_own_does_not_wait_for_a_reader_around_it(bench: Bench) -> None:
    """What has read in its transaction keeps SQLite's other writers from their COMMIT, until it ends."""
    with bench.app.app_context(), transactional(read_only=True):
        with bench.app.app_context(), transactional():
            bench.add("before its first statement")
        assert bench.session.scalars(sa.select(Item.name)).all() == ["before its first statement"]
        with pytest.raises(UnitOptionsError, match="SQLite has one writer"), bench.app.app_context(), transactional():
            bench.add("behind it")

    assert bench.committed() == ["before its first statement"]


def test_a_database_in_memory_does_not_make_a_unit_wait_for_the_one_around_it() -> None:
    """It has one connection, which a unit in a context of its own cannot have, not even to read."""
    app, uow = Flask(__name__), UnitOfWork()
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", SQLALCHEMY_ENGINE_OPTIONS={"pool_timeout": 0.05})
    uow.init_app(app)

    with app.app_context():
        with transactional():
            with app.app_context(), transactional():
                uow.session.execute(sa.text("CREATE TABLE first (name TEXT)"))
            uow.session.execute(sa.text("CREATE TABLE second (name TEXT)"))
            for read_only in (False, True):
                with (
                    pytest.raises(UnitOptionsError, match="SQLite has one writer"),
                    app.app_context(),
                    transactional(read_only=read_only),
                ):
                    uow.session.execute(sa.text("SELECT 1"))
        assert sa.inspect(uow.engine).get_table_names() == ["first", "second"]


def test_a_unit_of_another_app_has_another_database_in_memory() -> None:
    """Two databases in memory have the same URL, and a lock each."""
    apps, uow = [Flask(name) for name in ("outer", "inner")], UnitOfWork()
    for app in apps:
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        uow.init_app(app)

    with apps[0].app_context(), transactional():
        uow.session.execute(sa.text("CREATE TABLE outer_table (name TEXT)"))
        with apps[1].app_context(), transactional():
            uow.session.execute(sa.text("CREATE TABLE inner_table (name TEXT)"))

    with apps[1].app_context():
        assert sa.inspect(uow.engine).get_table_names() == ["inner_table"]


# ---- the other propagations, and durable


def test_mandatory_needs_a_unit(bench: Bench) -> None:
    """And joins it."""
    with bench.app.app_context():
        with pytest.raises(NoActiveUnitError, match="mandatory"), transactional(propagation="mandatory"):
            pass
        with transactional(), transactional(propagation="mandatory"):
            bench.add("row")

    assert bench.committed() == ["row"]


def test_never_refuses_one(bench: Bench) -> None:
    """And runs without."""
    with bench.app.app_context():
        with transactional(propagation="never"):
            assert not current_unit
        with transactional(), pytest.raises(UnitActiveError, match="never"), transactional(propagation="never"):
            pass


def test_supports_joins_or_runs_without(bench: Bench) -> None:
    """What it writes without a unit, nobody commits."""
    with bench.app.app_context():
        with transactional(propagation="supports") as unit:
            assert not unit
        with transactional(), transactional(propagation="supports"):
            bench.add("row")

    assert bench.committed() == ["row"]


def test_not_supported_suspends_the_unit(bench: Bench) -> None:
    """Its session is a separate one that is rolled back."""
    with bench.app.app_context(), transactional() as outer:
        with transactional(propagation="not_supported"):
            assert not current_unit
            assert bench.session is not outer.session
            bench.add("lost")
        assert current_unit == outer
        bench.add("kept")

    assert bench.committed() == ["kept"]


def test_durable_refuses_to_be_an_inner_unit(bench: Bench) -> None:
    """Its commit is the last word, or it does not run."""
    with bench.app.app_context():
        with transactional(durable=True):
            bench.add("row")
        with pytest.raises(UnitActiveError, match="durable"), transactional(), transactional(durable=True):
            pass

    assert bench.committed() == ["row"]


# ---- options that cannot hold inside


def test_a_stronger_isolation_inside_is_an_error(bench: Bench) -> None:
    """SQLite's transactions are serializable anyway."""
    for propagation in ("nested", "required"):
        with bench.app.app_context(), transactional():
            unit = transactional(propagation=propagation, isolation="serializable")
            if bench.database.is_postgresql:
                with pytest.raises(UnitOptionsError, match="SERIALIZABLE"), unit:
                    pass
            else:
                with unit:
                    pass


def test_a_weaker_isolation_inside_holds(bench: Bench) -> None:
    """The outer's is more than was asked for."""
    with bench.app.app_context(), transactional(isolation="serializable"), transactional(isolation="read_committed"):
        bench.add("row")

    assert bench.committed() == ["row"]


@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_a_writing_unit_inside_a_read_only_one_is_an_error(bench: Bench, propagation: str) -> None:
    """Before it wrote."""
    with bench.app.app_context(), transactional(read_only=True):
        with pytest.raises(UnitOptionsError, match="read-only"), transactional(propagation=propagation):  # type: ignore[call-overload]
            pass


@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_a_read_only_stretch_inside_a_writing_unit(bench: Bench, propagation: str) -> None:
    """It flushes what waits, then refuses writes, and the outer unit writes again."""
    from flask_uow.exceptions import RuleViolationError

    with bench.app.app_context(), transactional():
        bench.session.add(Item(name="before"))
        with transactional(read_only=True, propagation=propagation):  # type: ignore[call-overload]
            assert bench.session.scalars(sa.select(Item.name)).all() == ["before"]
        with (
            pytest.raises(RuleViolationError, match="UOW111"),
            transactional(read_only=True),
        ):
            bench.run_sql("INSERT INTO item (name) VALUES ('refused')")
        bench.add("after")

    assert bench.committed() == ["after", "before"]


@pytest.mark.parametrize("options", [{"retries": 1}, {"on_error": repr}, {"rollback_on_status": 400}], ids=str)
def test_a_block_takes_no_option_that_needs_a_function(bench: Bench, options: dict[str, object]) -> None:
    """It cannot be repeated, and returns nothing."""
    with bench.app.app_context(), pytest.raises(UnitOptionsError, match="with block"):
        transactional(**options).__enter__()  # type: ignore[call-overload]


def test_one_object_serves_nested_blocks(bench: Bench) -> None:
    """A block may be entered again while it runs."""
    unit = transactional()
    with bench.app.app_context(), unit as outer, unit as inner:
        assert (outer.depth, inner.depth) == (1, 2)
        bench.add("row")

    assert bench.committed() == ["row"]


def test_a_unit_that_was_never_ended_fails_the_one_around_it(bench: Bench) -> None:
    """What came after it began is undone with it, and may have been the outer unit's: that is said."""
    with (
        bench.app.app_context(),
        pytest.raises(UnitFailedError, match="inside it had not ended"),
        transactional(),
    ):
        bench.add("outer")
        transactional().__enter__()
        bench.add("outer or inner")

    assert bench.committed() == []


def test_a_unit_that_was_never_ended_and_held_nothing_is_forgotten(bench: Bench) -> None:
    """There is nothing to lose with it."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        transactional().__enter__()

    assert bench.committed() == ["outer"]


# ---- at the edges


def test_a_deadline_inside_does_not_keep_its_part_from_being_undone(bench: Bench) -> None:
    """What the inner unit wrote before it ran late is gone, and the outer one goes on."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        with pytest.raises(UnitTimeoutError), transactional(timeout=0.05):
            bench.add("inner")
            time.sleep(0.1)
            bench.add("late")
        bench.add("outer again")

    assert bench.committed() == ["outer", "outer again"]


@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_a_unit_inside_that_ends_after_its_deadline_is_not_kept(bench: Bench, propagation: Any) -> None:
    """Although it has sent nothing since: its part is undone, or fails the unit that it joined."""
    is_join = propagation == "required"
    with bench.app.app_context(), pytest.raises(UnitFailedError) if is_join else nullcontext(), transactional():
        bench.add("outer")
        with pytest.raises(UnitTimeoutError), transactional(propagation=propagation, timeout=0.05):
            bench.add("inner")
            time.sleep(0.1)

    assert bench.committed() == ([] if is_join else ["outer"])


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_a_deadline_of_which_a_lost_server_is_told(make_bench: MakeBench, propagation: Any) -> None:
    """Where nothing rides it is a statement like any other, and its error SQLAlchemy's."""
    bench = make_bench(UOW_RIDE=False)
    with bench.app.app_context():
        with pytest.raises(OperationalError, match="terminat") as raised, transactional():
            bench.add("lost")
            bench.database.kill(bench.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0)
            with transactional(propagation=propagation, timeout=60):
                pass

        assert raised.value.connection_invalidated
        assert bench.checked_out == 0


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_the_end_of_a_deadline_replaces_no_error(make_bench: MakeBench) -> None:
    """What the body has raised goes on, though the server cannot be told that the time is the outer unit's again."""
    bench = make_bench(UOW_RIDE=False)
    with bench.app.app_context(), pytest.raises(KeyError, match="inside"), transactional():
        bench.add("lost")
        pid = bench.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0
        with transactional(timeout=60):
            bench.database.kill(pid)
            raise KeyError("inside")

    assert bench.committed() == []


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_deadline_inside_ends_its_own_statements_alone(bench: Bench) -> None:
    """The outer one has no limit before it and none after it, and its session outlives the inner deadline."""
    limits = []

    def limit() -> None:
        limits.append(bench.session.scalar(sa.text("SHOW statement_timeout")))

    with bench.app.app_context(), transactional():
        limit()
        with transactional(timeout=60):
            limit()
        limit()
        with pytest.raises(UnitTimeoutError), transactional(propagation="nested", timeout=0.2):
            bench.run_sql("SELECT pg_sleep(20)")
        time.sleep(0.3)
        limit()

    outer, inner, *later = limits
    assert (outer, later) == ("0", ["0", "0"])
    assert re.fullmatch(r"1min|59\d\d\dms", inner)  # what is left of it


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("rides", [True, False])
def test_a_deadline_inside_ends_no_session_that_is_idle(make_bench: MakeBench, *, rides: bool) -> None:
    """Also where its own statement is the transaction's first: the outer unit may go on."""
    bench = make_bench(UOW_RIDE=rides)
    idle = sa.text("SHOW idle_in_transaction_session_timeout")
    with bench.app.app_context(), transactional(), transactional(timeout=60):
        assert bench.session.scalar(idle) == "0"
        assert bench.session.scalar(sa.text("SHOW statement_timeout")) != "0"


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("rides", [True, False])
@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_a_deadline_inside_a_later_one_gives_the_time_back(
    make_bench: MakeBench, propagation: Any, *, rides: bool
) -> None:
    """The server takes the lower of two limits, and has to forget the inner one."""
    bench = make_bench(UOW_RIDE=rides)
    limit_ms = sa.text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    with bench.app.app_context(), transactional(timeout=6000):
        with transactional(propagation=propagation, timeout=60):
            inner_ms = bench.session.scalar(limit_ms)
        outer_ms = bench.session.scalar(limit_ms)

    assert inner_ms is not None
    assert outer_ms is not None
    assert 0 < inner_ms <= 60_000 < outer_ms <= 6_000_000


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_the_first_statement_may_come_in_an_inner_unit(bench: Bench) -> None:
    """What a unit, or a listener, says when the transaction begins is said once, before the savepoint's statements."""

    def listener(session: Session, transaction: object, connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL application_name = 'listener'")

    with bench.app.app_context():
        sa.event.listen(bench.session, "after_begin", listener)
        with transactional(timeout=60), transactional(timeout=30):
            bench.add("first")
            assert bench.session.scalar(sa.text("SHOW application_name")) == "listener"

    assert bench.committed() == ["first"]


@pytest.mark.parametrize("propagation", ["required", "mandatory", "supports", "nested"])
def test_what_is_added_in_a_read_only_part_is_refused_in_it(bench: Bench, propagation: Any) -> None:
    """Although no statement has sent it."""
    with bench.app.app_context():
        with (
            pytest.raises(RuleViolationError, match="UOW111"),
            transactional(),
            transactional(propagation=propagation, read_only=True),
        ):
            bench.session.add(Item(name="not sent"))

    assert bench.committed() == []


def test_a_join_that_fails_in_a_savepoint_made_by_hand_is_undone_with_it(bench: Bench) -> None:
    """It fails the unit up to the nearest savepoint, whoever has made that."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        with pytest.raises(KeyError), bench.session.begin_nested(), transactional(propagation="required"):
            bench.add("inner")
            raise KeyError

    assert bench.committed() == ["outer"]


def test_a_session_that_is_removed_in_not_supported_is_not_the_outer_one(bench: Bench) -> None:
    """What follows is still outside of any unit, and what it writes is lost aloud."""
    with (
        record(bench.app) as recorded,
        bench.app.app_context(),
        transactional(),
        transactional(propagation="not_supported"),
    ):
        outer = bench.session
        bench.uow.session.remove()
        assert bench.session is not outer
        assert not current_unit
        bench.add("lost")

    assert [violation.code for violation in recorded.violations] == ["UOW103"]
    assert bench.committed() == []


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_an_independent_unit_that_a_generator_holds_is_closed_with_the_outer_one(bench: Bench) -> None:
    """The next unit is an outermost one, and the generator hears at its end that its work was lost."""

    def rows() -> Iterator[None]:
        with transactional(propagation="requires_new"):
            bench.add("held")
            yield

    with bench.app.app_context():
        with transactional():
            held = rows()
            next(held)
        with transactional() as unit:
            assert unit.depth == 1
            bench.add("next")
        with pytest.raises(UnitFailedError, match="session was closed before it ended"):
            next(held, None)

    assert bench.committed() == ["next"]


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_a_unit_that_a_generator_holds_past_the_outer_one_is_around_no_other(bench: Bench) -> None:
    """Who asks then whether a unit is active hears that there is none."""

    def rows() -> Iterator[None]:
        with transactional(propagation="requires_new"):
            yield

    for propagation in ("mandatory", "never", "supports"):
        with bench.app.app_context():
            with transactional():
                held = rows()
                next(held)
            says_so = pytest.raises(NoActiveUnitError) if propagation == "mandatory" else nullcontext()
            with says_so, transactional(propagation=propagation) as unit:
                assert not unit
            assert bench.checked_out == 0


@pytest.mark.parametrize("propagation", ["nested", "required"])
def test_a_unit_that_its_context_has_left_open_is_around_no_other(bench: Bench, propagation: str) -> None:
    """The thread goes on to serve others, and keeps none of those units, nor what their hooks refer to."""
    left_open: list[weakref.ref[Unit]] = []
    for number in range(3):
        with bench.app.app_context():
            units = [transactional().__enter__()]
            units.append(transactional(propagation=propagation).__enter__())  # type: ignore[call-overload]
            bench.add(f"lost {number}")
            left_open += map(weakref.ref, units)
            del units
    gc.collect()

    assert [unit() for unit in left_open] == [None] * 6
    with bench.app.app_context(), transactional() as unit:
        assert not unit.has_unit_around
    assert bench.committed() == []


@pytest.mark.parametrize("is_swallowed", [False, True])
def test_what_has_failed_a_joined_unit_is_kept_by_no_cycle(
    bench: Bench, without_collector: None, is_swallowed: bool
) -> None:
    """What the function that failed has read, and the frames around it, need not wait for the collector."""

    class Upload: ...

    uploads: list[weakref.ref[Upload]] = []

    @transactional(propagation="required")
    def join() -> None:
        raise KeyError

    @transactional
    def view() -> None:
        upload = Upload()
        uploads.append(weakref.ref(upload))
        bench.run_sql("SELECT 1")
        try:
            join()
        except KeyError:
            if not is_swallowed:
                raise

    with bench.app.app_context(), pytest.raises(UnitFailedError if is_swallowed else KeyError) as caught:
        view()
    del caught

    assert uploads[0]() is None


def test_a_savepoint_that_was_left_open_is_forgotten_with_the_unit_around_it(bench: Bench) -> None:
    """The thread need not begin another unit for that."""
    with bench.app.app_context():
        with transactional():
            left_open = weakref.ref(transactional().__enter__())
        gc.collect()
        assert left_open() is None


def test_one_object_serves_generators_that_interleave(bench: Bench) -> None:
    """Each leaves its own block, whichever ends first."""
    block = transactional()
    ended = []

    def part(name: str) -> Iterator[None]:
        with block as unit:
            bench.add(name)
            yield
        ended.append((name, unit.was_committed))

    with bench.app.app_context():
        outer, inner = part("outer"), part("inner")
        next(outer)
        next(inner)
        next(inner, None)
        next(outer, None)

    assert ended == [("inner", True), ("outer", True)]
    assert bench.committed() == ["inner", "outer"]


@pytest.mark.parametrize("is_async", [False, True])
def test_one_object_serves_generators_of_which_the_outer_ends_first(bench: Bench, *, is_async: bool) -> None:
    """It leaves its own block, and is told that the inner one had not ended, as with an object for each."""
    block = transactional()

    def part(name: str) -> Iterator[None]:
        with block:
            bench.add(name)
            yield

    async def async_part(name: str) -> AsyncIterator[None]:
        with block:
            bench.add(name)
            yield

    async def serve() -> None:
        outer, inner = async_part("outer"), async_part("inner")
        await anext(outer)
        await anext(inner)
        for each in (outer, inner):
            with pytest.raises(UnitFailedError, match="had not ended"):
                await anext(each)

    with bench.app.app_context():
        if is_async:
            asyncio.run(serve())
        else:
            outer, inner = part("outer"), part("inner")
            next(outer)
            next(inner)
            for each in (outer, inner):
                with pytest.raises(UnitFailedError, match="had not ended"):
                    next(each)

    assert bench.committed() == []


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
def test_an_isolation_that_the_engine_has_already_is_no_stronger_one(make_bench: MakeBench) -> None:
    """And what a join cannot defer is refused."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "SERIALIZABLE"})
    with bench.app.app_context(), transactional():
        with transactional(isolation="SERIALIZABLE"):
            bench.add("a")
        with (
            pytest.raises(UnitOptionsError, match="deferrable"),
            transactional(isolation="SERIALIZABLE", read_only=True, deferrable=True),
        ):
            pass

    assert bench.committed() == ["a"]


def test_a_pending_object_before_a_read_only_unit_refuses_it(bench: Bench) -> None:
    """It could not be sent in it, and is not thrown away."""
    with bench.app.app_context():
        bench.session.add(Item(name="pending"))
        with pytest.raises(UnitOptionsError, match="Writes came before"), transactional(read_only=True):
            pass
        bench.session.commit()

    assert bench.committed() == ["pending"]
