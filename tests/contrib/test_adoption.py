"""Sessions of other libraries: units and rules work on them, engines and teardown stay with their owner."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import Session

from flask_uow import current_unit, testing, transactional
from flask_uow.exceptions import ConfigurationError, RuleViolationError, UnitFailedError, UnitOptionsError
from tests.contrib.owners import OWNERS, Owned
from tests.databases import Database
from tests.models import Item, names

DEADLINE_S = 15.0


@pytest.fixture(params=OWNERS)
def make_owned(request: pytest.FixtureRequest, database: Database) -> Callable[..., Owned]:
    """A function that makes an app with configuration keys; the test runs once for each owner and database."""

    def make(**config: Any) -> Owned:
        return OWNERS[request.param](database, **config)

    return make


@pytest.fixture
def owned(make_owned: Callable[..., Owned]) -> Owned:
    """An app with the default configuration."""
    return make_owned()


def test_a_unit_commits_the_owners_session(owned: Owned, database: Database) -> None:
    """App, extension and unit share one session, and its connection goes back where it came from."""
    with owned.app.app_context():
        with transactional() as unit:
            owned.session().add(Item(name="a"))
            assert unit.session is owned.session()
            assert owned.uow.session() is owned.session()
            assert current_unit.label == "test_a_unit_commits_the_owners_session"
        assert names(database) == ["a"]
        assert owned.checked_out() == 0


def test_a_unit_that_fails_is_rolled_back(owned: Owned, database: Database) -> None:
    """With what was flushed and what was not; the session is clean for the next one."""
    with owned.app.app_context():
        with pytest.raises(ValueError, match="no"), transactional():
            owned.session().add(Item(name="flushed"))
            owned.session().flush()
            owned.session().add(Item(name="pending"))
            raise ValueError("no")
        with transactional():
            owned.session().add(Item(name="next"))

    assert names(database) == ["next"]


def test_an_app_that_is_dropped_is_forgotten(make_owned: Callable[..., Owned]) -> None:
    """With its owner's sessions: a test suite makes an app for each of its tests."""

    def use_and_drop() -> weakref.ref[Flask]:
        owned = make_owned()
        with owned.app.app_context(), transactional():
            owned.session().add(Item(name="a"))
        return weakref.ref(owned.app)

    dropped = use_and_drop()
    gc.collect()

    assert dropped() is None


def test_a_unit_that_its_context_has_left_open_is_forgotten(owned: Owned, database: Database) -> None:
    """Its thread goes on to serve others."""
    with owned.app.app_context():
        left_open = weakref.ref(transactional().__enter__())
        owned.session().add(Item(name="lost"))
        owned.session().flush()
    gc.collect()

    assert left_open() is None
    assert names(database) == []


@pytest.mark.parametrize("name", ["commit", "rollback", "close", "begin"])
def test_an_end_by_hand_is_refused_inside_a_unit(owned: Owned, database: Database, name: str) -> None:
    """The owner's own session is under guard: the line is named, and the unit is as it was."""
    with owned.app.app_context(), transactional():
        owned.session().add(Item(name="a"))
        owned.session().flush()
        with pytest.raises(RuleViolationError, match=rf"\[UOW10[12]\] session\.{name}\(\) was called inside") as caught:
            getattr(owned.session(), name)()
        assert names(database) == []

    assert caught.value.where is not None
    assert "test_adoption.py:" in caught.value.where
    assert names(database) == ["a"]


def test_an_end_by_hand_is_the_apps_own_affair_outside_a_unit(owned: Owned, database: Database) -> None:
    """Code that was there before the extension goes on as it did, in the same session."""
    with owned.app.app_context():
        with transactional():
            owned.session().add(Item(name="unit"))
        owned.session().add(Item(name="by hand"))
        owned.session().commit()
        owned.session().add(Item(name="undone"))
        owned.session().rollback()

    assert names(database) == ["by hand", "unit"]


def test_savepoints_hold_whatever_the_engine(owned: Owned, database: Database) -> None:
    """The owner's SQLite engine has no BEGIN of ours, and its transactions get one all the same."""
    with owned.app.app_context():
        with transactional() as unit:
            with transactional():
                owned.session().add(Item(name="inner"))
            unit.set_rollback_only()
        assert names(database) == []
        with transactional():
            owned.session().add(Item(name="outer"))
            with pytest.raises(ValueError, match="no"), transactional():
                owned.session().add(Item(name="inner"))
                raise ValueError("no")

    assert names(database) == ["outer"]


def test_an_independent_unit_is_the_current_session_meanwhile(owned: Owned, database: Database) -> None:
    """``requires_new``: app, extension and unit see the new session, then the old one with what it held."""

    @transactional(propagation="requires_new")
    def audit() -> None:
        inner = owned.session()
        assert inner is not outer
        assert owned.uow.session() is inner
        assert current_unit.session is inner
        assert inner.scalars(sa.select(Item)).all() == []
        inner.add(Item(name="audit"))

    with owned.app.app_context():
        with pytest.raises(ValueError, match="no"), transactional():
            outer = owned.session()
            outer.add(Item(name="outer"))
            audit()
            assert owned.session() is outer
            assert owned.uow.session() is outer
            assert [item.name for item in outer.new] == ["outer"]
            raise ValueError("no")
        assert owned.checked_out() == 0

    assert names(database) == ["audit"]


def test_what_is_suspended_survives_an_independent_unit_that_fails(owned: Owned, database: Database) -> None:
    """The outer unit goes on in its own session."""
    with owned.app.app_context():
        with transactional():
            outer = owned.session()
            with pytest.raises(ValueError, match="no"), transactional(propagation="requires_new"):
                owned.session().add(Item(name="inner"))
                owned.session().flush()
                raise ValueError("no")
            assert owned.session() is outer
            owned.session().add(Item(name="outer"))
        assert owned.checked_out() == 0

    assert names(database) == ["outer"]


def test_writes_that_nobody_commits_are_named_before_the_owner_takes_the_session(
    owned: Owned, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """UOW103, with the line that wrote; once."""
    with testing.record(owned.app) as seen, owned.app.app_context():
        owned.uow.session()
        owned.session().add(Item(name="lost"))
        owned.session().flush()

    assert seen.codes == ["UOW103"]
    assert "in test_writes_that_nobody_commits" in str(seen.violations[0].where)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert names(database) == []
    assert owned.checked_out() == 0


def test_a_unit_that_the_owner_does_not_wait_for_is_named(owned: Owned, database: Database) -> None:
    """What was lost was written in it."""
    context = owned.app.app_context()
    context.push()

    with testing.record(owned.app) as seen, pytest.raises(SystemExit), transactional(label="the unit"):
        owned.session().add(Item(name="lost"))
        context.pop()
        raise SystemExit(0)

    assert seen.codes == ["UOW103"]
    assert seen.violations[0].what.startswith("Unit of work 'the unit' had not ended")
    assert names(database) == []
    assert owned.checked_out() == 0


@pytest.mark.filterwarnings("ignore:.UOW107.")
def test_the_owner_takes_back_what_a_context_leaves(owned: Owned, without_collector: None) -> None:
    """After each request the connection is in the owner's pool, with and without a unit, and after an error."""

    @owned.app.get("/<kind>")
    def view(kind: str) -> str:
        with transactional(read_only=True):
            owned.session().scalars(sa.select(Item)).all()
        owned.session().scalars(sa.select(Item)).all()
        if kind == "error":
            raise ValueError(kind)
        return kind

    client = owned.app.test_client()
    assert client.get("/fine").text == "fine"
    assert owned.checked_out() == 0
    with pytest.raises(ValueError, match="error"):
        client.get("/error")
    assert owned.checked_out() == 0


def test_a_swallowed_error_is_no_silent_loss(owned: Owned, database: Database) -> None:
    """A flush that failed and was caught fails the unit."""
    database.execute("INSERT INTO item (name) VALUES ('taken')")

    with owned.app.app_context():
        with pytest.raises(UnitFailedError, match="was not committed") as caught, transactional():
            owned.session().add(Item(name="taken"))
            with pytest.raises(sa.exc.IntegrityError, match=r"(?i)unique"):
                owned.session().flush()
        assert isinstance(caught.value.__cause__, sa.exc.IntegrityError)
        assert owned.checked_out() == 0


def test_a_session_that_is_adopted_stays_what_it_was(owned: Owned) -> None:
    """Its class, its own methods and what listens to it are its owner's; the guard stands in front."""
    flushed: list[str] = []

    with owned.app.app_context():
        session = owned.session()
        before = type(session)
        event.listen(session, "after_flush", lambda *_: flushed.append("heard"))
        with transactional():
            assert owned.session() is session
            assert isinstance(session, before)
            assert type(session).__name__ == before.__name__
            session.add(Item(name="a"))

    assert flushed == ["heard"]


def test_a_transaction_that_is_open_when_it_is_adopted_is_the_units(owned: Owned, database: Database) -> None:
    """What the owner's session has written before the unit is committed with it."""
    with owned.app.app_context():
        owned.session().add(Item(name="before"))
        owned.session().flush()
        with transactional():
            owned.session().add(Item(name="in the unit"))

    assert names(database) == ["before", "in the unit"]


@pytest.mark.parametrize("option", [{"isolation": "SERIALIZABLE"}, {"read_only": True}], ids=str)
def test_writes_that_came_before_are_not_lost_to_an_option(
    owned: Owned, database: Database, option: dict[str, Any]
) -> None:
    """A unit that needs a transaction of its own refuses to end one that holds writes, whoever has sent them."""
    with owned.app.app_context():
        owned.session().add(Item(name="before"))
        owned.session().flush()
        with pytest.raises(UnitOptionsError, match="Writes came before"), transactional(**option):
            pass
        owned.session().commit()

    assert names(database) == ["before"]


@pytest.mark.parametrize("option", [{}, {"isolation": "SERIALIZABLE"}, {"read_only": True}], ids=str)
def test_a_read_that_came_before_is_in_nobodys_way(owned: Owned, database: Database, option: dict[str, Any]) -> None:
    """A user loaded in ``before_request`` keeps no unit from having what it asks for."""
    database.execute("INSERT INTO item (name) VALUES ('loaded')")

    with owned.app.app_context():
        item = owned.session().scalars(sa.select(Item)).one()
        with transactional(**option):
            assert sa.inspect(item).session is owned.session()
            assert owned.session().scalar(sa.select(sa.func.count()).select_from(Item)) == 1


def test_a_transaction_in_which_nothing_was_sent_is_no_failure(owned: Owned) -> None:
    """An object was added and taken away before the unit, which has nothing to do either."""
    with owned.app.app_context():
        item = Item(name="never sent")
        owned.session().add(item)
        owned.session().expunge(item)
        with transactional() as unit:
            pass

    assert unit.was_committed


def test_what_the_owner_listens_with_may_speak_in_a_unit(owned: Owned, database: Database) -> None:
    """A tenant's id for each transaction say: savepoints hold, and a read-only unit refuses what it writes."""
    heard: list[str] = []

    def speak(session: Session, transaction: object, connection: sa.Connection) -> None:
        heard.append("begin")
        if current_unit.read_only:
            connection.execute(sa.insert(Item).values(name="refused"))
        connection.execute(sa.text("SELECT 1"))

    with owned.app.app_context():
        session_class = type(owned.session())
    event.listen(session_class, "after_begin", speak)
    try:
        with owned.app.app_context():
            with transactional():
                owned.session().add(Item(name="outer"))
                with pytest.raises(ValueError, match="no"), transactional():
                    owned.session().add(Item(name="undone"))
                    raise ValueError("no")
                with transactional():
                    owned.session().add(Item(name="inner"))
            with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
                owned.session().scalars(sa.select(Item.name)).all()
    finally:
        event.remove(session_class, "after_begin", speak)

    assert names(database) == ["inner", "outer"]
    assert len(heard) > 2


def test_threads_have_sessions_apart(owned: Owned, database: Database) -> None:
    """Units in threads, each under a context of its own, do not meet."""
    barrier = threading.Barrier(2)

    def work(name: str) -> Session:
        with owned.app.app_context(), transactional() as unit:
            owned.session().add(Item(name=name))
            barrier.wait(DEADLINE_S)
            return unit.session

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, ["first", "second"], timeout=DEADLINE_S)

    assert first is not second
    assert names(database) == ["first", "second"]
    assert owned.checked_out() == 0


def test_the_engines_are_the_owners(owned: Owned) -> None:
    """The extension makes none, and says whose they are."""
    with owned.app.app_context(), pytest.raises(ConfigurationError, match="they belong to the session's owner"):
        _ = owned.uow.engine


def test_a_third_partys_commit_becomes_a_flush_where_that_is_wanted(
    make_owned: Callable[..., Owned], database: Database
) -> None:
    """``UOW_COMMIT_INSIDE_UNIT`` holds for adopted sessions too."""
    owned = make_owned(UOW_COMMIT_INSIDE_UNIT="flush")

    with owned.app.app_context(), transactional() as unit:
        owned.session().add(Item(name="a"))
        owned.session().commit()
        assert owned.session().scalars(sa.select(Item.name)).all() == ["a"]
        unit.set_rollback_only()

    assert names(database) == []


def test_a_unit_that_a_generator_left_open_ends_with_the_owners_context(owned: Owned, database: Database) -> None:
    """The owner's teardown is no close by hand inside the unit."""

    def rows() -> Generator[None]:
        with transactional():
            owned.session().add(Item(name="left open"))
            owned.session().flush()
            yield

    with owned.app.app_context():
        left = rows()
        next(left)
    left.close()

    assert owned.checked_out() == 0
    assert names(database) == []
