"""Hooks: in order, with their savepoint, after the connection is back."""

import logging

import pytest

from flask_uow import current_unit, transactional
from tests.database.conftest import Bench, MakeBench


def test_hooks_run_in_order_when_the_connection_is_back(bench: Bench) -> None:
    """First in, first out, also over savepoints; the rows are committed by then."""
    seen: list[object] = []
    with bench.app.app_context(), transactional() as outer:
        bench.add("row")
        outer.after_commit(lambda: seen.append(("first", bench.committed(), bench.checked_out, bool(current_unit))))
        with transactional() as inner:
            inner.after_commit(lambda: seen.append("second"))
        with transactional(propagation="required") as join:
            join.after_commit(lambda: seen.append("third"))
        outer.after_commit(lambda: seen.append("fourth"))
        assert seen == []

    assert seen == [("first", ["row"], 0, False), "second", "third", "fourth"]


def test_before_commit_hooks_may_write_and_add_hooks(bench: Bench) -> None:
    """They run inside the unit, just before its COMMIT."""
    seen: list[str] = []

    def first() -> None:
        bench.add("by hook")
        current_unit.before_commit(lambda: seen.append("added"))
        current_unit.after_commit(lambda: seen.append("after"))

    with bench.app.app_context(), transactional() as unit:
        unit.before_commit(first)

    assert bench.committed() == ["by hook"]
    assert seen == ["added", "after"]


def test_a_before_commit_hook_that_fails_rolls_back(bench: Bench) -> None:
    """Its error is the unit's."""
    seen: list[str] = []

    def refuse() -> None:
        raise ValueError("refused")

    with bench.app.app_context(), pytest.raises(ValueError, match="refused"), transactional() as unit:
        bench.add("lost")
        unit.before_commit(refuse)
        unit.after_commit(lambda: seen.append("committed"))
        unit.after_rollback(lambda: seen.append("rolled back"))

    assert bench.committed() == []
    assert seen == ["rolled back"]


def test_a_before_commit_hook_may_veto(bench: Bench) -> None:
    """By ``set_rollback_only``."""
    with bench.app.app_context(), transactional() as unit:
        bench.add("lost")
        unit.before_commit(unit.set_rollback_only)

    assert bench.committed() == []


def test_hooks_of_a_savepoint_fall_with_it(bench: Bench) -> None:
    """Its commit hooks are dropped, its rollback hooks wait for the outermost unit's end, which commits."""
    seen: list[str] = []
    with bench.app.app_context(), transactional() as outer:
        outer.after_rollback(lambda: seen.append("never"))
        with pytest.raises(KeyError), transactional() as inner:
            inner.before_commit(lambda: seen.append("never"))
            inner.after_commit(lambda: seen.append("never"))
            inner.after_rollback(lambda: seen.append("inner undone"))
            raise KeyError
        assert seen == []
        outer.after_commit(lambda: seen.append("committed"))

    assert seen == ["inner undone", "committed"]


def test_hooks_of_a_released_savepoint_fall_with_the_one_around(bench: Bench) -> None:
    """They belong to it from then on."""
    seen: list[str] = []
    with bench.app.app_context(), transactional():
        with pytest.raises(KeyError), transactional():
            with transactional() as innermost:
                innermost.after_commit(lambda: seen.append("never"))
                innermost.after_rollback(lambda: seen.append("undone"))
            raise KeyError

    assert seen == ["undone"]


def test_rollback_hooks_run_when_all_is_undone(bench: Bench) -> None:
    """In order, those of the inner units too, each once."""
    seen: list[str] = []
    with bench.app.app_context(), pytest.raises(KeyError), transactional() as outer:
        outer.after_rollback(lambda: seen.append("outer"))
        with transactional() as inner:
            inner.after_rollback(lambda: seen.append("inner"))
        outer.after_commit(lambda: seen.append("never"))
        raise KeyError

    assert seen == ["outer", "inner"]


def test_a_hook_may_open_a_unit_and_add_hooks(bench: Bench) -> None:
    """The unit of the hook is outermost, and what is added runs as well."""
    seen: list[object] = []
    with bench.app.app_context(), transactional() as unit:

        def write() -> None:
            with transactional() as later:
                seen.append(later.depth)
                bench.add("by hook")
            unit.after_commit(lambda: seen.append("added"))

        unit.after_commit(write)

    assert bench.committed() == ["by hook"]
    assert seen == [1, "added"]


def test_hooks_of_an_independent_unit_are_its_own(bench: Bench) -> None:
    """They run at its end, whatever becomes of the outer one."""
    seen: list[object] = []
    with bench.app.app_context(), pytest.raises(KeyError), transactional() as outer:
        with transactional(propagation="requires_new") as inner:
            inner.after_commit(lambda: seen.append(("inner", bench.checked_out, current_unit == outer)))
        assert seen == [("inner", 0, True)]
        raise KeyError


def test_an_error_in_a_hook_is_logged_and_changes_nothing(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    """The value stands, the other hooks run."""
    bench = make_bench(TESTING=False)
    seen: list[str] = []

    def fail() -> None:
        raise ValueError("hook")

    @transactional
    def write() -> str:
        bench.add("row")
        current_unit.after_commit(fail)
        current_unit.after_commit(lambda: seen.append("second"))
        return "value"

    with bench.app.app_context(), caplog.at_level(logging.ERROR):
        assert write() == "value"

    assert seen == ["second"]
    assert bench.committed() == ["row"]
    assert "after_commit hook" in caplog.text
    assert "ValueError: hook" in caplog.text


def test_with_testing_the_error_of_a_hook_is_raised_after_all_have_run(bench: Bench) -> None:
    """One as itself, several as a group."""
    seen: list[str] = []

    def fail() -> None:
        raise ValueError("hook")

    with bench.app.app_context():
        with pytest.raises(ValueError, match="hook"), transactional() as unit:
            bench.add("row")
            unit.after_commit(fail)
            unit.after_commit(lambda: seen.append("second"))
        with pytest.raises(ExceptionGroup, match="hooks"), transactional() as unit:
            unit.after_commit(fail)
            unit.after_commit(fail)

    assert seen == ["second"]
    assert bench.committed() == ["row"]


def test_the_error_of_a_hook_never_replaces_the_units(bench: Bench) -> None:
    """What ended the unit goes on."""

    def fail() -> None:
        raise ValueError("hook")

    with bench.app.app_context(), pytest.raises(KeyError, match="body"), transactional() as unit:
        unit.after_rollback(fail)
        raise KeyError("body")


def test_the_error_of_a_hook_is_nothing_to_answer(bench: Bench) -> None:
    """``on_error`` is for what has ended the unit; after its end, in a test, the hook's error goes up."""

    def fail() -> None:
        raise ValueError("hook")

    @transactional(on_error=lambda error: "answered")
    def give_up() -> str:
        current_unit.after_rollback(fail)
        current_unit.set_rollback_only()
        return "given up"

    with bench.app.app_context(), pytest.raises(ValueError, match="hook"):
        give_up()


def test_a_rollback_hook_of_an_inner_unit_waits_whatever_the_units_around_it_do(bench: Bench) -> None:
    """It runs once, when the outermost has ended, also where each of the savepoints was rolled back."""
    seen: list[str] = []
    with bench.app.app_context():
        with transactional():
            with transactional() as middle:
                with transactional() as inner:
                    inner.after_rollback(lambda: seen.append("undone"))
                    inner.after_commit(lambda: seen.append("committed"))
                    inner.set_rollback_only()
                middle.set_rollback_only()
            bench.add("kept")
            assert seen == []
        assert seen == ["undone"]


class Later:
    """An object that is called as a coroutine function."""

    async def __call__(self) -> None:
        """Do nothing."""


def test_what_is_no_plain_function_is_refused(bench: Bench) -> None:
    """A coroutine function would never be awaited."""

    async def later() -> None: ...

    with bench.app.app_context(), transactional() as unit:
        with pytest.raises(TypeError, match="plain function"):
            unit.after_commit(later)
        with pytest.raises(TypeError, match="plain function"):
            unit.before_commit("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="plain function"):
            unit.after_rollback(Later())


def test_a_hook_may_be_a_decorated_function(bench: Bench) -> None:
    """The methods return what they were given."""
    seen: list[str] = []
    with bench.app.app_context(), transactional() as unit:

        @unit.after_commit
        def done() -> None:
            seen.append("done")

    assert seen == ["done"]
