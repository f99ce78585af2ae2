"""The guard: what ends a transaction by hand inside a unit is refused, or noticed; nothing is committed by halves."""

import warnings
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from flask_uow import current_unit, signals, testing, transactional
from flask_uow.exceptions import RuleViolationError, UnitFailedError, UnitOfWorkError
from tests.database.conftest import Bench, MakeBench
from tests.models import Item


def commit(bench: Bench) -> None:
    bench.session.commit()


def commit_scoped(bench: Bench) -> None:
    bench.uow.session.commit()


def begin(bench: Bench) -> None:
    bench.session.begin()


def with_begin(bench: Bench) -> None:
    with bench.session.begin():
        bench.add("by hand")


def with_scoped_begin(bench: Bench) -> None:
    with bench.uow.session.begin():
        bench.add("by hand")


def commit_transaction(bench: Bench) -> None:
    transaction = bench.session.get_transaction()
    assert transaction is not None
    transaction.commit()


def prepare(bench: Bench) -> None:
    bench.session.prepare()


def text_commit(bench: Bench) -> None:
    bench.session.execute(sa.text("COMMIT"))


def text_end(bench: Bench) -> None:
    bench.session.execute(sa.text(" -- the end\n end;"))


def text_begin(bench: Bench) -> None:
    bench.session.execute(sa.text("BEGIN"))


def driver_sql_commit(bench: Bench) -> None:
    bench.session.connection().exec_driver_sql("/* done */ COMMIT")


def rollback(bench: Bench) -> None:
    bench.session.rollback()


def close(bench: Bench) -> None:
    bench.session.close()


def remove(bench: Bench) -> None:
    bench.uow.session.remove()


def reset(bench: Bench) -> None:
    bench.session.reset()


def invalidate(bench: Bench) -> None:
    bench.session.invalidate()


def with_session(bench: Bench) -> None:
    with bench.session:
        pass


def text_rollback(bench: Bench) -> None:
    bench.session.execute(sa.text("ROLLBACK"))


REFUSED_AT_ONCE: list[tuple[Callable[[Bench], None], str]] = [
    (commit, "UOW101"),
    (commit_scoped, "UOW101"),
    (begin, "UOW101"),
    (with_begin, "UOW101"),
    (with_scoped_begin, "UOW101"),
    (commit_transaction, "UOW101"),
    (prepare, "UOW101"),
    (text_commit, "UOW101"),
    (text_end, "UOW101"),
    (text_begin, "UOW101"),
    (driver_sql_commit, "UOW101"),
    (rollback, "UOW102"),
    (close, "UOW102"),
    (remove, "UOW102"),
    (reset, "UOW102"),
    (invalidate, "UOW102"),
    (with_session, "UOW102"),
    (text_rollback, "UOW102"),
]


def by_name(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("call", "code"), REFUSED_AT_ONCE, ids=by_name)
def test_it_is_refused_and_the_unit_is_as_it_was(bench: Bench, call: Callable[[Bench], None], code: str) -> None:
    """The error names the rule, the line and the mend; caught, the unit goes on and commits all of its work."""
    with bench.app.app_context(), testing.record(bench.app) as seen:
        with transactional():
            bench.add("before")
            with pytest.raises(RuleViolationError) as caught:
                call(bench)
            bench.add("after")
            assert bench.committed() == []

    assert caught.value.code == code
    assert seen.codes == [code]
    assert str(caught.value).startswith(f"[{code}] ")
    assert "test_it_is_refused_and_the_unit_is_as_it_was" in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.startswith("tests/database/test_guard.py:")
    assert caught.value.where.endswith(f" in {call.__name__}")
    assert str(caught.value.fix).startswith("Delete the ")
    assert bench.committed() == ["after", "before"]


@pytest.mark.parametrize(("call", "code"), REFUSED_AT_ONCE, ids=by_name)
def test_it_rolls_the_unit_back_if_nobody_catches_it(bench: Bench, call: Callable[[Bench], None], code: str) -> None:
    """Nothing is half committed."""
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match=code), transactional():
            bench.add("lost")
            call(bench)
        assert bench.checked_out == 0
        with transactional():
            bench.add("next")

    assert bench.committed() == ["next"]


def test_the_text_of_a_violation(bench: Bench) -> None:
    """It is the contract's, to the letter but for the line."""
    with bench.app.app_context(), pytest.raises(RuleViolationError) as caught, transactional(label="POST /transfers"):
        bench.session.commit()

    what, where, fix = str(caught.value).split("\n")
    assert what == "[UOW101] session.commit() was called inside unit of work 'POST /transfers'."
    assert where.startswith("  where: tests/database/test_guard.py:")
    assert fix == (
        "  fix:   Delete the commit: the outermost unit commits. Use session.flush() if you need the primary key now."
    )


def commit_connection(bench: Bench) -> None:
    bench.session.connection().commit()


def rollback_connection(bench: Bench) -> None:
    bench.session.connection().rollback()


def rollback_transaction(bench: Bench) -> None:
    transaction = bench.session.get_transaction()
    assert transaction is not None
    transaction.rollback()


PAST_THE_SESSION: list[tuple[Callable[[Bench], None], str]] = [
    (commit_connection, "UOW101"),
    (rollback_connection, "UOW102"),
    (rollback_transaction, "UOW102"),
]


@pytest.mark.parametrize(("call", "code"), PAST_THE_SESSION, ids=by_name)
@pytest.mark.parametrize("goes_on", [False, True], ids=["last", "goes on"])
def test_what_reaches_past_the_session_fails_the_unit(
    bench: Bench, call: Callable[[Bench], None], code: str, goes_on: bool
) -> None:
    """The unit ends in the violation, with the line that did it, and nothing of it is committed, not even a part."""

    @transactional
    def write() -> None:
        bench.add("before")
        call(bench)
        if goes_on:
            with pytest.raises((RuleViolationError, sa.exc.InvalidRequestError)):
                bench.add("after")

    with bench.app.app_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuleViolationError, match=code) as caught:
            write()
        assert bench.checked_out == 0
        with transactional():
            bench.add("next")

    assert str(caught.value.where).endswith(f" in {call.__name__}")
    name = "commit" if call is commit_connection else "rollback"
    assert caught.value.what.startswith(f"{name}() of a connection or its transaction was called inside unit")
    assert bench.committed() == ["next"]


@pytest.mark.parametrize(("call", "code"), PAST_THE_SESSION, ids=by_name)
def test_what_reaches_past_the_session_in_a_nested_unit_fails_the_whole(
    bench: Bench, call: Callable[[Bench], None], code: str
) -> None:
    """It took the outer transaction with it, so the outer unit cannot commit either."""
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match=code), transactional():
            bench.add("outer")
            with pytest.raises(RuleViolationError, match=code), transactional():
                bench.add("inner")
                call(bench)
        assert bench.checked_out == 0

    assert bench.committed() == []


def test_a_savepoint_of_a_unit_cannot_be_ended_by_hand(bench: Bench) -> None:
    """It is the inner unit's own."""
    with bench.app.app_context(), transactional():
        bench.add("outer")
        with pytest.raises(RuleViolationError, match="UOW101"), transactional():
            bench.add("inner")
            savepoint = bench.session.get_nested_transaction()
            assert savepoint is not None
            savepoint.commit()

    assert bench.committed() == ["outer"]


def test_sql_that_ends_the_transaction_out_of_sight(bench: Bench) -> None:
    """The server's own word at the end: never a commit that pretends."""
    if not bench.database.is_postgresql:
        return  # SQLite runs one statement at a time
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match="UOW101"), transactional():
            bench.run_sql("INSERT INTO item (name) VALUES ('a'); COMMIT")
        with pytest.raises(UnitFailedError, match="ended by hand"), transactional():
            bench.add("lost")
            bench.session.connection().connection.cursor().execute("ROLLBACK")
        assert bench.checked_out == 0

    assert bench.committed() == []


def test_a_unit_with_commit_as_flush(make_bench: MakeBench) -> None:
    """A third party's commit inside a unit becomes a flush, its ``begin`` a savepoint; its rollback stays an error."""
    bench = make_bench(UOW_COMMIT_INSIDE_UNIT="flush")
    with bench.app.app_context():
        with transactional(), testing.record(bench.app) as seen:
            bench.session.add(Item(name="row"))
            bench.session.commit()
            assert bench.session.scalars(sa.select(Item.name)).all() == ["row"]
            assert bench.committed() == []
            with bench.session.begin():
                bench.add("begun")
            with pytest.raises(KeyError), bench.session.begin():
                bench.add("undone")
                raise KeyError
            with pytest.raises(RuleViolationError, match="UOW102"):
                bench.session.rollback()
        assert seen.codes == ["UOW102"]
        bench.add("outside")
        bench.session.commit()

    assert bench.committed() == ["begun", "outside", "row"]


def test_commit_by_hand_outside_a_unit_is_the_users_right(bench: Bench) -> None:
    """Also ``with session.begin()``, and with a unit before and after it."""
    with bench.app.app_context(), testing.record(bench.app) as seen:
        with transactional():
            bench.add("unit")
        bench.add("commit")
        bench.session.commit()
        with bench.session.begin():
            bench.add("begin")
        bench.add("lost")
        bench.session.rollback()
        with transactional():
            bench.add("unit again")

    assert bench.committed() == ["begin", "commit", "unit", "unit again"]
    assert seen.codes == []


# ---- UOW103


@pytest.mark.parametrize("how", ["added", "flushed", "text", "changed", "deleted", "core"])
def test_writes_that_nobody_commits_are_named(bench: Bench, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Unflushed ones too; the line is the one that wrote."""
    with bench.app.app_context(), transactional():
        bench.add("there")

    with pytest.warns(UserWarning, match="UOW103") as warned, testing.record(bench.app) as seen:
        with bench.app.app_context():
            session = bench.session
            if how == "added":
                session.add(Item(name="lost"))
            elif how == "flushed":
                bench.add("lost")
            elif how == "text":
                session.execute(sa.text("UPDATE item SET name = 'lost'"))
            elif how == "core":
                session.execute(sa.delete(Item))
            else:
                item = session.scalars(sa.select(Item)).one()
                if how == "changed":
                    item.name = "lost"
                else:
                    session.delete(item)

    assert len(warned) == 1
    assert seen.codes == ["UOW103"]
    assert "tests/database/" in str(seen.violations[0].where)
    assert "UOW103" in caplog.text
    assert bench.committed() == ["there"]


def test_a_unit_that_its_context_does_not_wait_for_is_named(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """As click's ctx.exit() has it: what was lost was written in a unit, which tells its hooks and signals so."""
    ended = []

    @transactional(label="the unit")
    def write() -> None:
        current_unit.after_rollback(lambda: ended.append("undone"))
        bench.add("lost")
        with transactional():
            current_unit.after_rollback(lambda: ended.append("undone inside"))
            context.pop()
            raise SystemExit(0)

    context = bench.app.app_context()
    context.push()
    with testing.record(bench.app) as seen, pytest.raises(SystemExit):
        write()

    (violation,) = seen.violations
    assert violation.code == "UOW103"
    assert violation.what.startswith("Unit of work 'the unit' had not ended at the end of the context, and its writes")
    assert " in write" in str(violation.where)
    assert len(seen.rolled_back) == 2
    assert "statements=1 outcome=rolled_back" in caplog.text
    assert ended == ["undone", "undone inside"]
    assert bench.committed() == []


def test_no_alarm_where_nothing_was_lost(bench: Bench) -> None:
    """Reads, rolled back writes, an exception that ends the context; what was committed by a text or at once."""
    at_once = {"isolation_level": "AUTOCOMMIT"}
    with testing.record(bench.app) as seen:
        with bench.app.app_context():
            bench.add("committed by a text")
            bench.session.execute(sa.text("COMMIT"))
        with bench.app.app_context():
            bench.session.connection(execution_options=at_once).execute(sa.insert(Item), {"name": "committed at once"})
        with bench.app.app_context():
            bench.session.scalars(sa.select(Item)).all()
        with bench.app.app_context():
            bench.add("rolled back")
            bench.session.rollback()
        with pytest.raises(KeyError), bench.app.app_context():
            bench.add("lost with the exception")
            raise KeyError

    assert seen.violations == []
    assert bench.committed() == ["committed at once", "committed by a text"]


def test_in_mode_error_a_lost_write_is_logged_and_the_response_stands(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing may be raised at teardown."""
    bench = make_bench(UOW_RULES="error")
    violations: list[object] = []

    @bench.app.post("/")
    def view() -> str:
        bench.add("lost")
        return "fine"

    def note(sender: object, violation: object, code: str) -> None:
        violations.append(violation)

    with signals.rule_violated.connected_to(note, bench.app):
        assert bench.app.test_client().post("/").status_code == 200

    assert [type(violation) for violation in violations] == [RuleViolationError]
    assert "UOW103" in caplog.text
    assert "ERROR" in caplog.text


def test_in_mode_off_nothing_is_said(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is counted."""
    bench = make_bench(UOW_RULES={"UOW103": "off"})
    with testing.record(bench.app) as seen, bench.app.app_context():
        bench.add("lost")

    assert seen.violations == []
    assert caplog.text == ""


# ---- UOW201


def test_a_session_outside_an_app_context(bench: Bench) -> None:
    """The error says to push one."""
    with pytest.raises(RuleViolationError, match="UOW201") as caught:
        bench.uow.session.add(Item(name="lost"))

    assert "Push one" in str(caught.value.fix)
    assert str(caught.value.where).endswith(" in test_a_session_outside_an_app_context")


def test_a_unit_outside_an_app_context(bench: Bench) -> None:
    """The same, before the body ran."""

    @transactional
    def write() -> None:
        raise AssertionError("never called")

    with pytest.raises(RuleViolationError, match="UOW201"):
        write()


def test_an_app_without_the_extension(bench: Bench) -> None:
    """One clear error."""
    from flask import Flask

    with Flask("bare").app_context(), pytest.raises(UnitOfWorkError, match="has no UnitOfWork"), transactional():
        pass
