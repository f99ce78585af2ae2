"""The recorder and the tracer for tests of applications."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.globals import app_ctx

from flask_uow import UnitOfWork, signals, testing, transactional
from flask_uow.exceptions import RuleViolationError, RuleWarning
from flask_uow.testing import Event, Record, collected, record, traced
from tests.databases import Database


@pytest.fixture
def uow() -> UnitOfWork:
    """An extension that serves no app yet."""
    return UnitOfWork()


@pytest.fixture
def app(uow: UnitOfWork) -> Flask:
    """An app on a database in memory."""
    return make_app("bank", uow)


def make_app(name: str, uow: UnitOfWork) -> Flask:
    app = Flask(name)
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    uow.init_app(app)
    return app


def test_record_keeps_order_and_endings(app: Flask) -> None:
    """Outermost units and savepoints are recorded as they begin and as they end."""

    @transactional(label="pay")
    def pay(*, fails: bool) -> None:
        with transactional(label="audit"):
            pass
        if fails:
            raise LookupError("no such account")

    with app.app_context(), record(app) as seen:
        pay(fails=False)
        with pytest.raises(LookupError, match="no such account"):
            pay(fails=True)

    assert seen == Record(
        began=["pay", "audit", "pay", "audit"], committed=["audit", "pay", "audit"], rolled_back=["pay"], violations=[]
    )


def test_record_of_a_request_shows_its_unit(app: Flask) -> None:
    """The example of the documentation: one request, one unit, no violation."""

    @app.post("/transfers")
    @transactional
    def transfer() -> str:
        return "done"

    with testing.record(app) as seen:
        app.test_client().post("/transfers")

    assert seen.committed == ["POST /transfers"]
    assert seen.codes == []


def test_joined_unit_is_no_unit_of_its_own(app: Flask) -> None:
    """What only joins neither begins nor ends anything."""

    @transactional(label="join", propagation="required")
    def join() -> None:
        pass

    with app.app_context(), record(app) as seen, transactional(label="outer"):
        join()

    assert (seen.began, seen.committed) == (["outer"], ["outer"])


def test_record_keeps_violations(app: Flask, uow: UnitOfWork) -> None:
    """Errors and warnings of rules are kept as they are, and their codes at hand."""

    @transactional(label="pay")
    def pay() -> None:
        uow.session.commit()

    with record(app) as seen:
        with app.app_context():
            uow.session.execute(sa.text("CREATE TABLE t (x int)"))
        with app.app_context(), pytest.raises(RuleViolationError, match=r"^\[UOW101\]"):
            pay()

    assert seen.codes == ["UOW103", "UOW101"]
    assert [type(violation) for violation in seen.violations] == [RuleWarning, RuleViolationError]
    assert seen.rolled_back == ["pay"]


def test_record_begins_empty() -> None:
    """Each has lists of its own."""
    assert Record() == Record([], [], [], [])
    assert Record().began is not Record().began


def test_record_is_over_at_the_end_of_the_block(app: Flask) -> None:
    """What comes before or after is not seen, nor does anything stay connected, also after an error."""
    every = (signals.unit_began, signals.unit_committed, signals.unit_rolled_back, signals.rule_violated)
    of_others = [set(signal.receivers) for signal in every]
    with app.app_context():
        with transactional(label="before"):
            pass
        with pytest.raises(LookupError, match="in the test"), record(app) as seen:
            raise LookupError("in the test")
        with transactional(label="after"):
            pass

    assert seen == Record()
    for signal, connected in zip(every, of_others, strict=True):
        assert set(signal.receivers) <= connected


def test_record_is_of_one_app(app: Flask, uow: UnitOfWork) -> None:
    """Another app's units are another record's."""
    other = make_app("other", uow)

    with record(app) as seen, record(other) as seen_in_other, app.app_context():
        with transactional(label="kept"):
            pass
        with transactional(label="undone") as unit:
            unit.set_rollback_only()
        with pytest.raises(RuleViolationError, match=r"^\[UOW102\]"), transactional(label="broken"):
            uow.session.rollback()

    assert seen.began == ["kept", "undone", "broken"]
    assert (seen.committed, seen.rolled_back, seen.codes) == (["kept"], ["undone", "broken"], ["UOW102"])
    assert seen_in_other == Record()


def test_records_may_overlap(app: Flask) -> None:
    """Each sees what happens while it runs."""
    with app.app_context(), record(app) as outer:
        with transactional(label="first"):
            pass
        with record(app) as inner, transactional(label="second"):
            pass

    assert outer.committed == ["first", "second"]
    assert inner.committed == ["second"]


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg"])
def test_a_trace_counts_on_when_a_connection_is_lost(
    make_database: Callable[[str], Database], uow: UnitOfWork, backend: str
) -> None:
    """The round trips of those that are back already stay known."""
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI=make_database(backend).url, TESTING=True)
    uow.init_app(app)

    with app.app_context(), traced(app) as trace:
        with transactional():
            uow.session.execute(sa.text("SELECT 1"))
        before = trace.round_trips
        with uow.engine.connect() as connection:
            connection.invalidate()

    assert before == 2
    assert trace.round_trips == before


@pytest.mark.parametrize(
    ("text", "shown"), [("x" * 100, "x" * 100), ("x" * 101, "x" * 97 + "..."), ("SELECT\n  1", "SELECT 1")]
)
def test_what_a_trace_shows_of_a_text(text: str, shown: str) -> None:
    """It is on one line, and cut where it is longer than that."""
    assert str(Event("statement", text, None, None)).endswith(f"  {shown}")


def test_collected_hooks_may_add_others(app: Flask) -> None:
    """They wait behind those that were there, whether a hook of the commit or of an undone savepoint has added them."""
    ran: list[str] = []

    def work() -> None:
        with transactional(label="work") as unit:
            with suppress(LookupError), transactional() as inner:
                inner.after_rollback(lambda: unit.after_commit(lambda: ran.append("of the savepoint")))
                raise LookupError
            unit.after_commit(lambda: unit.after_commit(lambda: ran.append("of the hook")))
            unit.after_commit(lambda: ran.append("own"))

    with app.app_context():
        work()
        in_life, ran = ran, []
        with collected(app) as hooks:
            work()
            labels = hooks.labels
            hooks.run()

    assert labels == ["work"] * 3
    assert len(hooks) == 0
    assert ran == in_life == ["own", "of the savepoint", "of the hook"]


def test_errors_of_collected_hooks(app: Flask) -> None:
    """The first is raised when all have run, in the context that is there."""
    seen: list[object] = []

    def fail(error: Exception) -> None:
        seen.append(app_ctx._get_current_object())  # type: ignore[attr-defined]
        raise error

    with app.app_context() as context, collected(app) as hooks:
        with transactional() as unit:
            unit.after_commit(lambda: fail(LookupError("first")))
            unit.after_commit(lambda: fail(ValueError("second")))
        with pytest.raises(LookupError, match="first"):
            hooks.run()

    assert seen == [context, context]


def test_hooks_of_another_app_are_not_collected(app: Flask, uow: UnitOfWork) -> None:
    """They run as in life."""
    other = make_app("other", uow)
    ran: list[str] = []

    with collected(app) as hooks:
        for each in (app, other):
            with each.app_context(), transactional() as unit:
                unit.after_commit(lambda each=each: ran.append(each.name))  # type: ignore[misc]

    assert (ran, len(hooks)) == (["other"], 1)
