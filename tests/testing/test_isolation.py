"""Isolation: the code under test does as in life, and nothing of it is left; what cannot hold says so."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm

from flask_uow import UnitOfWork, current_unit, stats, transactional
from flask_uow._drivers import sqlstate
from flask_uow.exceptions import IsolationError, RuleViolationError, RuleWarning, UnitFailedError, UnitOptionsError
from flask_uow.testing import Isolation, _outer, isolated
from tests.contrib.owners import OWNERS
from tests.databases import Database
from tests.models import Item, checked_out, create_tables, make_app, names

DEADLINE_S = 30.0

on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, make_database: Callable[[str], Database]) -> Database:
    """An empty database; the test runs once for each backend that it names."""
    return make_database(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on every backend what does not choose its own."""
    chosen = [mark for mark in metafunc.definition.iter_markers("parametrize") if "database" in mark.args[0]]
    if "database" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("database", ["sqlite", "psycopg2", "psycopg"], indirect=True)


@pytest.fixture
def isolation(app: Flask, database: Database) -> Iterator[Isolation]:
    """The isolation of the test, after which nothing is there and every connection is back."""
    with isolated(app) as isolation:
        yield isolation
    assert names(database) == []
    assert checked_out(app) == 0


@pytest.fixture
def context(app: Flask, isolation: Isolation) -> Iterator[None]:
    """An app context."""
    with app.app_context():
        yield


def add(uow: UnitOfWork, *added: str, **options: Any) -> None:
    with transactional(**options):
        for name in added:
            uow.session.add(Item(name=name))
            uow.session.flush()


def seen(uow: UnitOfWork) -> list[str]:
    with transactional(read_only=True):
        return sorted(uow.session.scalars(sa.select(Item.name)))


@pytest.mark.usefixtures("context")
def test_units_commit_and_roll_back_as_in_life(uow: UnitOfWork, isolation: Isolation) -> None:
    """Later units see what earlier ones have committed, and nothing of what was undone."""
    add(uow, "kept")
    with pytest.raises(LookupError, match="no such account"), transactional():
        add(uow, "undone")
        raise LookupError("no such account")
    with transactional():
        add(uow, "outer")
        with pytest.raises(LookupError, match="no such check"), transactional():
            add(uow, "inner")
            raise LookupError("no such check")

    assert seen(uow) == ["kept", "outer"]
    assert not isolation.errors


@pytest.mark.usefixtures("context")
def test_an_error_of_the_database_undoes_its_unit_alone(uow: UnitOfWork) -> None:
    """The server aborts a transaction; the test's own goes on."""
    add(uow, "taken")
    with pytest.raises(sa.exc.IntegrityError, match=r"(?i)unique"):
        add(uow, "lost", "taken")

    assert seen(uow) == ["taken"]


@pytest.mark.usefixtures("context")
def test_a_swallowed_error_is_no_silent_loss(uow: UnitOfWork, database: Database) -> None:
    """The unit knows that its transaction was aborted, as in life."""
    add(uow, "taken")

    def swallow() -> None:
        with transactional(label="swallows"):
            with suppress(sa.exc.IntegrityError):
                uow.session.execute(sa.text("INSERT INTO item (name) VALUES ('taken')"))

    if database.is_postgresql:
        with pytest.raises(UnitFailedError, match=r"'swallows' was not committed"):
            swallow()
    else:
        swallow()
    assert seen(uow) == ["taken"]


@pytest.mark.usefixtures("context")
def test_transactions_by_hand_end_as_in_life(uow: UnitOfWork) -> None:
    """Outside of units, a session's and a connection's own commit and rollback, and texts that say so."""
    uow.session.add(Item(name="committed"))
    uow.session.commit()
    uow.session.execute(sa.text("INSERT INTO item (name) VALUES ('rolled back')"))
    uow.session.rollback()
    with uow.engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('by connection')"))
        connection.commit()
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('forgotten')"))
    with uow.engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('by text')"))
        connection.execute(sa.text("COMMIT"))
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('by text, undone')"))
        connection.execute(sa.text("ROLLBACK"))

    assert seen(uow) == ["by connection", "by text", "committed"]


@pytest.mark.usefixtures("context")
def test_savepoints_by_hand_hold(uow: UnitOfWork) -> None:
    """Those of the session, inside each other."""
    with transactional():
        add(uow, "outer")
        savepoint = uow.session.begin_nested()
        uow.session.add(Item(name="inner"))
        uow.session.flush()
        savepoint.rollback()
        with uow.session.begin_nested():
            uow.session.add(Item(name="second"))

    assert seen(uow) == ["outer", "second"]


@pytest.mark.usefixtures("context")
def test_autocommit_commits_each_statement(uow: UnitOfWork) -> None:
    """Also where a transaction that is rolled back is open beside it, if that has not written."""
    with uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('at once')"))
        with pytest.raises(sa.exc.IntegrityError, match=r"(?i)unique"):
            connection.execute(sa.text("INSERT INTO item (name) VALUES ('at once')"))
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('again')"))
        connection.rollback()

    assert seen(uow) == ["again", "at once"]


@pytest.mark.usefixtures("context")
def test_hooks_run_as_in_life(uow: UnitOfWork) -> None:
    """After the commit, when others can see it; after a rollback those for that."""
    told: list[object] = []
    with transactional() as unit:
        add(uow, "kept")
        unit.after_commit(lambda: told.append(seen(uow)))
        unit.after_rollback(lambda: told.append("never"))
    with transactional() as unit:
        unit.after_commit(lambda: told.append("never"))
        unit.after_rollback(lambda: told.append("undone"))
        unit.set_rollback_only()

    assert told == [["kept"], "undone"]


@pytest.mark.usefixtures("context")
def test_rules_hold(uow: UnitOfWork) -> None:
    """A commit by hand is refused before anything is released; one past the session is undone."""
    with pytest.raises(RuleViolationError, match=r"^\[UOW101\]"), transactional():
        add(uow, "undone")
        uow.session.commit()
    with pytest.raises(RuleViolationError, match=r"^\[UOW101\]"), transactional():
        add(uow, "undone")
        uow.session.connection().commit()
    with pytest.raises(RuleViolationError, match=r"^\[UOW111\]"), transactional(read_only=True):
        uow.session.execute(sa.text("DELETE FROM item"))

    assert seen(uow) == []


@pytest.mark.usefixtures("context")
def test_a_read_only_unit_cannot_write_past_sqlalchemy(uow: UnitOfWork, database: Database) -> None:
    """The database itself refuses, and takes writes again afterwards."""
    kind = r"(?i)read-only|readonly"
    with pytest.raises(Exception, match=kind), transactional(read_only=True, isolation="SERIALIZABLE"):
        connection = uow.session.connection()
        connection.execute(sa.text("VALUES (1)"))
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('smuggled')")
    add(uow, "after it")

    assert seen(uow) == ["after it"]


def test_tables_made_in_a_test_are_gone(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """What defines data is undone as well."""
    with isolated(app), app.app_context():
        with transactional():
            uow.session.execute(sa.text("CREATE TABLE made (id int)"))
            uow.session.execute(sa.text("INSERT INTO made VALUES (1)"))
        with transactional():
            assert uow.session.scalar(sa.text("SELECT count(*) FROM made")) == 1

    with pytest.raises(Exception, match=r"(?i)no such table|does not exist"):
        database.rows("SELECT * FROM made")


@pytest.mark.usefixtures("context")
def test_an_invalidated_connection_undoes_its_own_transaction(uow: UnitOfWork) -> None:
    """And the next one sees what was committed before."""
    add(uow, "before")
    with uow.engine.connect() as connection:
        connection.execute(sa.text("INSERT INTO item (name) VALUES ('lost')"))
        connection.invalidate()

    assert seen(uow) == ["before"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_an_independent_unit_survives_an_outer_one_that_has_only_read(uow: UnitOfWork) -> None:
    """Also where the outer one writes afterwards, and is rolled back."""
    with pytest.raises(LookupError, match="no such account"), transactional():
        uow.session.scalars(sa.select(Item.name)).all()
        add(uow, "audit", propagation="requires_new")
        add(uow, "undone")
        raise LookupError("no such account")

    assert seen(uow) == ["audit"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_savepoints_outlive_an_independent_unit(uow: UnitOfWork) -> None:
    """Those of the outer one, which has only read in them, can be rolled back to afterwards."""
    with transactional():
        savepoint = uow.session.begin_nested()
        uow.session.scalars(sa.select(Item.name)).all()
        add(uow, "audit", propagation="requires_new")
        uow.session.execute(sa.text("INSERT INTO item (name) VALUES ('undone')"))
        savepoint.rollback()
        add(uow, "outer")

    assert seen(uow) == ["audit", "outer"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_read_that_fails_undoes_its_unit(uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """Although there is nothing to undo, the transaction was aborted."""
    for _ in range(2):
        with pytest.raises(sa.exc.DataError, match="division by zero"), transactional():
            uow.session.execute(sa.text("SELECT 1 / 0"))

    add(uow, "after it")
    assert seen(uow) == ["after it"]
    assert "discarded" not in caplog.text


@on_postgresql
@pytest.mark.usefixtures("context")
def test_an_independent_unit_after_a_write_is_kept_with_the_outer_one(uow: UnitOfWork, isolation: Isolation) -> None:
    """Both commit; an independent one that fails undoes its own work alone."""
    with transactional():
        add(uow, "outer")
        add(uow, "audit", propagation="requires_new")
        with pytest.raises(sa.exc.IntegrityError, match="unique"):
            add(uow, "audit", propagation="requires_new")
        add(uow, "outer again")

    assert seen(uow) == ["audit", "outer", "outer again"]
    assert not isolation.errors


@on_postgresql
def test_a_commit_does_not_vanish_in_silence(app: Flask, uow: UnitOfWork) -> None:
    """What an outer unit's rollback takes along is an error for whoever looks."""
    with isolated(app) as isolation, app.app_context():
        with pytest.raises(LookupError, match="no such account"), transactional():
            add(uow, "undone")
            add(uow, "audit", propagation="requires_new")
            raise LookupError("no such account")
        assert not isolation.errors
        with pytest.raises(IsolationError, match=r"another one had committed inside[\s\S]*fix: "):
            seen(uow)
        with pytest.raises(IsolationError, match="another one had committed inside"):
            add(uow, "more")

    assert len(isolation.errors) == 1


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_savepoint_that_takes_a_commit_along_is_found_too(uow: UnitOfWork) -> None:
    """The outer unit goes on, but what it rolled back held another's work."""
    with pytest.raises(IsolationError, match="another one had committed inside"), transactional():
        with pytest.raises(LookupError, match="no such check"), transactional():
            add(uow, "undone")
            add(uow, "audit", propagation="requires_new")
            raise LookupError("no such check")
        seen(uow)


@on_postgresql
@pytest.mark.usefixtures("context")
def test_an_independent_unit_reports_what_has_failed(uow: UnitOfWork) -> None:
    """The outer transaction is aborted, and stays so; the inner one is kept if there was nothing to lose."""
    add(uow, "taken")
    with pytest.raises(sa.exc.IntegrityError, match="unique"), transactional():
        try:
            add(uow, "taken", propagation="required")
        except sa.exc.IntegrityError:
            add(uow, "failure", propagation="requires_new")
            raise

    assert seen(uow) == ["failure", "taken"]


@on_postgresql
@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("statement", ["SELECT 1 / 0", "INSERT INTO item (name) VALUES ('taken')"])
def test_a_failed_transaction_that_made_way_is_rolled_back(
    uow: UnitOfWork, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It undoes nothing of the one that it has made way for, nor of the one in which it lay."""

    def fail(report: str) -> None:
        with transactional(propagation="requires_new"):
            try:
                uow.session.execute(sa.text(statement))
            except sa.exc.DBAPIError:
                add(uow, report, propagation="requires_new")
                raise

    add(uow, "taken")
    with pytest.raises(sa.exc.DBAPIError):
        fail("failure 1")
    with transactional():
        add(uow, "outer")
        with pytest.raises(sa.exc.DBAPIError):
            fail("failure 2")
        add(uow, "outer again")

    assert seen(uow) == ["failure 1", "failure 2", "outer", "outer again", "taken"]
    assert "Exception during reset" not in caplog.text


@pytest.fixture
def connections(uow: UnitOfWork) -> Iterator[list[sa.Connection]]:
    """Two, outside of sessions."""
    with uow.engine.connect() as first, uow.engine.connect() as second:
        yield [first, second]


def insert(connection: sa.Connection, name: str) -> None:
    connection.execute(sa.text(f"INSERT INTO item (name) VALUES ('{name}')"))


@on_postgresql
@pytest.mark.usefixtures("context")
def test_savepoints_of_two_connections_are_told_apart(connections: list[sa.Connection], uow: UnitOfWork) -> None:
    """SQLAlchemy calls them alike: each goes back to its own."""
    first, second = connections
    first.execute(sa.text("SELECT 1"))
    savepoint = first.begin_nested()
    insert(first, "undone")
    inner = second.begin_nested()
    insert(second, "undone as well")
    inner.rollback()
    second.rollback()
    savepoint.rollback()
    insert(first, "kept")
    first.commit()

    assert seen(uow) == ["kept"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_savepoint_is_there_again_for_who_made_way(connections: list[sa.Connection], uow: UnitOfWork) -> None:
    """Also where an earlier part of its transaction has written, and is the innermost."""
    first, second = connections
    for name, connection in (("first", first), ("second", second), ("first again", first)):
        insert(connection, name)
    savepoint = second.begin_nested()
    with pytest.raises(sa.exc.DataError, match="division by zero"):
        first.execute(sa.text("SELECT 1 / 0"))
    savepoint.commit()
    second.commit()
    assert seen(uow) == ["first", "second"]

    first.rollback()
    with pytest.raises(IsolationError, match="another one had committed inside"):
        seen(uow)


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_failed_transaction_that_made_way_undoes_all_of_its_own(
    connections: list[sa.Connection], uow: UnitOfWork
) -> None:
    """What it had written before another one began, too."""
    first, second = connections
    insert(first, "undone")
    insert(second, "of another")
    with pytest.raises(sa.exc.DataError, match="division by zero"):
        first.execute(sa.text("SELECT 1 / 0"))
    insert(second, "of another again")
    second.rollback()
    first.rollback()

    assert seen(uow) == []


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_savepoint_below_another_transaction_stays(connections: list[sa.Connection]) -> None:
    """It cannot be rolled back: what lies upon it would be lost in silence."""
    first, second = connections
    savepoint = first.begin_nested()
    insert(first, "first")
    insert(second, "second")
    with pytest.raises(IsolationError, match="A savepoint was rolled back while a transaction upon it was open"):
        savepoint.rollback()
        insert(second, "lost")


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_savepoint_below_another_transaction_is_released(connections: list[sa.Connection], uow: UnitOfWork) -> None:
    """Nothing of what lies upon it is ended by that."""
    first, second = connections
    savepoint = first.begin_nested()
    insert(first, "first")
    insert(second, "second")
    savepoint.commit()
    insert(second, "second again")
    second.commit()
    first.commit()

    assert seen(uow) == ["first", "second", "second again"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_writer_may_run_inside_a_read_only_unit(uow: UnitOfWork) -> None:
    """On a connection of its own; the outer one refuses writes again."""
    with pytest.raises(sa.exc.InternalError, match="read-only"), transactional(read_only=True):
        uow.session.scalars(sa.select(Item.name)).all()
        add(uow, "inner", propagation="requires_new")
        with closing(uow.session.connection().connection.cursor()) as cursor:
            cursor.execute("SELECT 1")
        uow.session.execute(sa.text("SELECT nextval('item_id_seq')"))

    assert seen(uow) == ["inner"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_local_settings_end_with_their_transaction(uow: UnitOfWork) -> None:
    """Those of SET LOCAL, of set_config and of a unit's time limit."""
    shown = sa.text("SELECT current_setting('statement_timeout'), current_setting('bank.tenant', true)")
    with transactional(timeout=20):
        uow.session.execute(sa.text("SELECT set_config(:name, 'ada', true)"), {"name": "bank.tenant"})
        uow.session.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
        limit, tenant = uow.session.execute(shown).one()
        assert (tenant, uow.session.scalar(sa.text("SHOW lock_timeout"))) == ("ada", "3s")
        assert limit != "0"
    with transactional():
        limit, tenant = uow.session.execute(shown).one()
        assert (limit, tenant or "", uow.session.scalar(sa.text("SHOW lock_timeout"))) == ("0", "", "0")


@on_postgresql
@pytest.mark.usefixtures("context")
def test_local_settings_outlive_an_independent_unit(uow: UnitOfWork) -> None:
    """The inner one has its own, and the outer one goes on with what it has set."""
    with transactional():
        uow.session.execute(sa.text("SET LOCAL lock_timeout = '3s'"))
        with transactional(propagation="requires_new"):
            assert uow.session.scalar(sa.text("SHOW lock_timeout")) == "0"
        assert uow.session.scalar(sa.text("SHOW lock_timeout")) == "3s"


@on_postgresql
@pytest.mark.usefixtures("context")
def test_deferred_constraints_are_checked_at_the_commit(uow: UnitOfWork) -> None:
    """Each transaction's own, and they stay deferred for the next one."""
    with transactional():
        uow.session.execute(sa.text("CREATE TABLE child (item int REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)"))
    with pytest.raises(sa.exc.IntegrityError, match="foreign key"), transactional():
        uow.session.execute(sa.text("INSERT INTO child VALUES (4711)"))
    with transactional():
        uow.session.execute(sa.text("INSERT INTO child VALUES (4711)"))
        uow.session.execute(sa.text("INSERT INTO item (id, name) VALUES (4711, 'parent')"))

    assert seen(uow) == ["parent"]


@pytest.mark.usefixtures("context")
def test_a_commit_of_nothing_is_noticed(uow: UnitOfWork) -> None:
    """Although the test's own transaction has written before."""
    add(uow, "before")
    uow.session.execute(sa.text("SELECT 1"))

    with pytest.warns(RuleWarning, match=r"^\[UOW104\]"):
        uow.session.commit()


@on_postgresql
def test_sequences_may_be_held(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """They then go on where they stood; else a test that is undone leaves a gap."""
    database.execute("INSERT INTO item (name) VALUES ('real')")
    numbers = []
    for sequences in (True, True, False, True):
        with isolated(app, sequences=sequences), app.app_context():
            add(uow, "numbered")
            with transactional():
                numbers.append(uow.session.scalar(sa.select(sa.func.max(Item.id))))

    assert numbers == [2, 2, 2, 3]


@pytest.mark.parametrize("database", ["sqlite", "psycopg"], indirect=True)
@pytest.mark.parametrize("owner", OWNERS)
def test_engines_of_other_libraries_are_isolated(owner: str, database: Database) -> None:
    """Those of Flask-SQLAlchemy and of your own sessions, which a unit has adopted or is about to."""
    owned = OWNERS[owner](database)
    for _ in range(2):
        with isolated(owned.app):
            with owned.app.app_context(), transactional():
                assert owned.session().scalars(sa.select(Item.name)).all() == []
                owned.session().add(Item(name="undone"))
            with owned.app.app_context(), transactional(read_only=True):
                assert owned.session().scalars(sa.select(Item.name)).all() == ["undone"]

    assert (names(database), owned.checked_out()) == ([], 0)


def test_engines_of_a_sessionmaker_are_isolated(database: Database) -> None:
    """Your own, also where it chooses by class."""
    factory = orm.sessionmaker(binds={Item: sa.create_engine(database.url)})
    uow = UnitOfWork(sessionmaker=factory)
    create_tables(database)
    app = Flask("bank")
    app.config.update(TESTING=True)
    uow.init_app(app)

    with isolated(app), app.app_context():
        add(uow, "undone")
        assert seen(uow) == ["undone"]

    assert names(database) == []


def test_sessions_on_a_connection_are_refused(database: Database) -> None:
    """They have no pool whose connections could be others."""
    with sa.create_engine(database.url).connect() as connection:
        app = Flask("bank")
        app.config.update(TESTING=True)
        UnitOfWork(app, sessionmaker=orm.sessionmaker(connection))
        with pytest.raises(IsolationError, match="bound to a connection, and not to an engine"), isolated(app):
            pass


@on_postgresql
@pytest.mark.usefixtures("context")
def test_the_outcome_of_a_commit_can_be_asked_for(uow: UnitOfWork) -> None:
    """It costs a question, and is known."""
    add(uow, "kept", confirm_commit=True)

    assert seen(uow) == ["kept"]


@on_postgresql
def test_transactions_of_threads_come_one_after_the_other(app: Flask, uow: UnitOfWork) -> None:
    """One that has written keeps the others waiting until it ends."""
    has_written, errors = threading.Event(), list[BaseException]()

    def write(name: str, wait_for: threading.Event | None) -> None:
        try:
            with app.app_context(), transactional():
                assert wait_for is None or wait_for.wait(DEADLINE_S)
                add(uow, name)
                has_written.set()
                add(uow, f"{name} again")
                if name == "first":
                    current_unit.set_rollback_only()
        except BaseException as error:  # noqa: BLE001  # looked at by the test
            errors.append(error)

    with isolated(app) as isolation:
        threads = [threading.Thread(target=write, args=("first", None))]
        threads += [threading.Thread(target=write, args=(name, has_written)) for name in ("second", "third")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert (errors, isolation.errors) == ([], [])
        with app.app_context():
            assert seen(uow) == ["second", "second again", "third", "third again"]


def test_locks_of_threads_hold(app: Flask, uow: UnitOfWork) -> None:
    """Each reads a row that it has locked, and writes what it makes of it: nothing is lost in between."""
    errors: list[BaseException] = []

    def append(number: int) -> None:
        try:
            with app.app_context():
                for _ in range(5):
                    with transactional():
                        item = uow.session.scalars(sa.select(Item).with_for_update()).one()
                        item.name += str(number)
        except BaseException as error:  # noqa: BLE001  # looked at by the test
            errors.append(error)

    with isolated(app) as isolation, app.app_context():
        add(uow, ":")
        threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert (errors, isolation.errors) == ([], [])
        assert sorted(seen(uow)[0]) == sorted(":" + "0123" * 5)


@on_postgresql
def test_a_thread_that_waits_in_vain_is_told_why(app: Flask, uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has written, and waits for a thread that waits for it."""
    monkeypatch.setattr(_outer, "WAIT_S", 0.2)
    errors: list[BaseException] = []

    def write() -> None:
        try:
            with app.app_context():
                add(uow, "never")
        except IsolationError as error:
            errors.append(error)

    with isolated(app) as isolation, app.app_context():
        with transactional():
            add(uow, "written")
            thread = threading.Thread(target=write)
            thread.start()
            thread.join(DEADLINE_S)
        assert seen(uow) == ["written"]

    assert [str(error).partition(":")[0] for error in errors] == [
        "Another thread's transaction has written and goes on, and a test's transactions share one connection"
    ]
    assert isolation.errors == errors


def test_a_session_that_read_before_does_not_keep_a_thread_waiting(app: Flask, uow: UnitOfWork) -> None:
    """A test often has a session open while its client's requests run elsewhere."""
    with isolated(app), app.app_context():
        assert uow.session.scalars(sa.select(Item.name)).all() == []

        def write() -> None:
            with app.app_context():
                add(uow, "by thread")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join(DEADLINE_S)
        assert uow.session.scalars(sa.select(Item.name)).all() == ["by thread"]


def test_several_databases_are_isolated_together(database: Database, second_database: Database) -> None:
    """Each bind has a transaction of its own, and two phases become one."""
    uow = UnitOfWork()
    two_phase = database.is_postgresql
    app = make_app(database, uow, SQLALCHEMY_BINDS={"other": second_database.url}, UOW_TWO_PHASE=two_phase)
    second_database.execute("CREATE TABLE note (id int)")
    note = sa.Table("note", sa.MetaData(info={"bind_key": "other"}), sa.Column("id", sa.Integer))

    with isolated(app), app.app_context():
        with transactional():
            uow.session.execute(sa.insert(note).values(id=1))
            add(uow, "kept")
        with pytest.raises(LookupError, match="no such account"), transactional():
            uow.session.execute(sa.insert(note).values(id=2))
            raise LookupError("no such account")
        with transactional():
            assert uow.session.scalars(sa.select(note.c.id)).all() == [1]
            assert uow.session.scalars(sa.select(Item.name)).all() == ["kept"]

    assert (names(database), second_database.rows("SELECT id FROM note")) == ([], [])


@on_postgresql
def test_a_reader_sees_what_the_primary_has_committed(database: Database, uow: UnitOfWork) -> None:
    """Read-only units run on its engine, in the same transaction of the test."""
    reader = sa.make_url(database.url).update_query_dict({"connect_timeout": "4"})
    app = make_app(database, uow, UOW_READER_URI=reader.render_as_string(hide_password=False))

    with isolated(app), app.app_context():
        add(uow, "kept")
        with transactional(read_only=True) as unit:
            assert uow.session.scalars(sa.select(Item.name)).all() == ["kept"]
            assert unit.was_on_reader
        with pytest.raises(sa.exc.InternalError, match="read-only"), transactional(read_only=True):
            uow.session.execute(sa.text("SELECT nextval('item_id_seq')"))

    assert names(database) == []


def test_a_database_in_memory_keeps_its_tables(uow: UnitOfWork) -> None:
    """The one connection that holds it is the test's."""
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    uow.init_app(app)
    with app.app_context(), transactional():
        Item.metadata.create_all(uow.session.connection())

    for _ in range(2):
        with isolated(app), app.app_context():
            assert seen(uow) == []
            add(uow, "kept")
            assert seen(uow) == ["kept"]


def test_a_database_in_memory_that_is_in_use_is_refused(uow: UnitOfWork) -> None:
    """At once but for the pool's own time, and with what is to be done."""
    app = Flask("bank")
    app.config.update(
        SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True, SQLALCHEMY_ENGINE_OPTIONS={"pool_timeout": 0.01}
    )
    uow.init_app(app)
    with app.app_context(), uow.engine.connect():
        with pytest.raises(IsolationError, match=r"no connection for the test's[\s\S]*End the sessions"), isolated(app):
            pass


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("context")
def test_sqlite_has_one_writer(uow: UnitOfWork) -> None:
    """As in life."""
    with pytest.raises(UnitOptionsError, match="SQLite has one writer"), transactional():
        add(uow, "outer")
        add(uow, "inner", propagation="requires_new")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_rollback_by_sqlite_itself_is_named(app: Flask, uow: UnitOfWork) -> None:
    """It takes the test's transaction along."""
    with isolated(app), app.app_context():
        add(uow, "taken")
        with pytest.raises(sa.exc.IntegrityError, match="UNIQUE"), transactional():
            uow.session.execute(sa.text("INSERT OR ROLLBACK INTO item (name) VALUES ('taken')"))
        with pytest.raises(IsolationError, match="SQLite has rolled back the test's whole transaction"):
            seen(uow)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_script_is_refused(app: Flask, uow: UnitOfWork) -> None:
    """It would commit what came before it, the test's transaction too."""
    with isolated(app), app.app_context(), uow.engine.connect() as connection:
        with pytest.raises(IsolationError, match=r"executescript\(\) commits"):
            connection.connection.cursor().executescript("SELECT 1")


@pytest.mark.usefixtures("context")
def test_a_drivers_connection_is_a_block_as_in_life(uow: UnitOfWork, database: Database) -> None:
    """It commits, or rolls back what has raised; psycopg's is closed by it."""
    pooled: Any
    with closing(uow.engine.raw_connection()) as pooled, pooled.driver_connection as connection:
        connection.cursor().execute("INSERT INTO item (name) VALUES ('kept')")
    with closing(uow.engine.raw_connection()) as pooled:
        with pytest.raises(LookupError, match="no such account"), pooled.driver_connection as connection:
            connection.cursor().execute("INSERT INTO item (name) VALUES ('undone')")
            raise LookupError("no such account")
        assert bool(getattr(connection, "closed", False)) == (database.backend == "psycopg")
        if database.backend == "psycopg":
            pooled.invalidate()

    assert seen(uow) == ["kept"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_what_a_driver_copies_or_streams_is_undone(uow: UnitOfWork, database: Database) -> None:
    """What no statement of SQLAlchemy's writes is in its connection's transaction all the same."""

    def write(number: int) -> None:
        cursor: Any = connection.cursor()
        if database.backend == "psycopg2":
            cursor.copy_from(io.StringIO(f"{number}\titem {number}\n"), "item")
        else:
            list(cursor.stream(f"INSERT INTO item VALUES ({number}, 'item {number}') RETURNING id"))

    with closing(uow.engine.raw_connection()) as connection:
        write(1)
        connection.rollback()
        write(2)
        connection.commit()

    assert seen(uow) == ["item 2"]


@pytest.mark.parametrize("goes_on", [True, False], ids=["which goes on", "at its end"])
@pytest.mark.usefixtures("context")
def test_a_unit_whose_connection_is_closed_is_lost(uow: UnitOfWork, database: Database, *, goes_on: bool) -> None:
    """It fails by the error that it has in life; the pool lends another connection."""
    error: type[Exception] = UnitFailedError
    reason = "was not committed"
    if goes_on or not database.is_postgresql:
        driver = uow.engine.dialect.loaded_dbapi
        error, reason = (sa.exc.DBAPIError if goes_on else driver.Error), "(?i)closed"
    with pytest.raises(error, match=reason), transactional():
        add(uow, "lost")
        pooled: Any = uow.session.connection().connection
        pooled.driver_connection.close()
        if goes_on:
            uow.session.execute(sa.text("INSERT INTO item (name) VALUES ('half')"))
    uow.session.remove()

    add(uow, "next")
    assert seen(uow) == ["next"]


@on_postgresql
@pytest.mark.usefixtures("context")
def test_a_failed_transaction_has_the_servers_code(uow: UnitOfWork) -> None:
    """Also where the server was healed of it for another one."""
    driver: Any = uow.engine.dialect.loaded_dbapi
    with closing(uow.engine.raw_connection()) as connection:
        cursor = connection.cursor()
        with pytest.raises(driver.ProgrammingError, match="no_such_column"):
            cursor.execute("SELECT no_such_column")
        assert seen(uow) == []  # for which the failed one makes way
        with pytest.raises(driver.errors.InFailedSqlTransaction, match="transaction is aborted") as caught:
            cursor.execute("SELECT 1")
        connection.rollback()

    assert sqlstate(caught.value) == "25P02"


@pytest.mark.parametrize("database", ["psycopg2"], indirect=True)
@pytest.mark.usefixtures("context")
def test_a_sessions_characteristics_are_read_as_they_are_set(uow: UnitOfWork) -> None:
    """psycopg2 takes a name, and answers by a number; read-only is kept."""
    with closing(uow.engine.raw_connection()) as pooled:
        connection: Any = pooled.driver_connection
        connection.set_session(isolation_level="serializable", readonly=True, deferrable=True)
        given = connection.isolation_level, connection.readonly, connection.deferrable
        with pytest.raises(connection.InternalError, match="read-only transaction"):
            connection.cursor().execute("INSERT INTO item (name) VALUES ('refused')")
        connection.rollback()
        connection.set_session(isolation_level="default", readonly="default", deferrable="default", autocommit=True)
        back = connection.isolation_level, connection.readonly, connection.deferrable
        connection.cursor().execute("INSERT INTO item (name) VALUES ('at once')")
        connection.rollback()
        connection.autocommit = False

    assert (given, back) == ((3, True, True), (None, None, None))
    assert seen(uow) == ["at once"]


@on_postgresql
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("PREPARE TRANSACTION 'order'", "Two-phase transactions cannot be had"),
        ("INSERT INTO item (name) VALUES ('x'); COMMIT", "COMMIT in the middle of a text"),
    ],
)
def test_what_cannot_be_had_is_refused(app: Flask, uow: UnitOfWork, text: str, reason: str) -> None:
    """With one error that says why, before anything is sent."""
    with isolated(app) as isolation, app.app_context(), uow.engine.connect() as connection:
        with pytest.raises(IsolationError, match=reason):
            connection.exec_driver_sql(text)

    assert len(isolation.errors) == 1


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
@pytest.mark.parametrize("method", ["transaction", "pipeline"])
def test_what_psycopg_would_drive_by_itself_is_refused(app: Flask, uow: UnitOfWork, method: str) -> None:
    """A block of the driver's own would begin and end what the test's transaction has to keep."""
    with isolated(app) as isolation, app.app_context(), uow.engine.connect() as connection:
        with pytest.raises(IsolationError, match=rf"psycopg's {method}\(\) cannot be had"):
            getattr(connection.connection.driver_connection, method)()

    assert len(isolation.errors) == 1


@on_postgresql
def test_a_lost_connection_is_named(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """With it went everything; the engine works again after the test."""
    with isolated(app), app.app_context():
        add(uow, "lost")
        with uow.engine.connect() as connection:
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        assert pid is not None
        database.kill(pid)
        with pytest.raises(IsolationError, match="The test's connection was lost"):
            seen(uow)

    with app.app_context():
        assert seen(uow) == []


def test_what_goes_on_after_the_test_is_refused(app: Flask, uow: UnitOfWork) -> None:
    """A session that outlives the isolation says so, and can be closed."""
    with app.app_context():
        with isolated(app):
            uow.session.scalars(sa.select(Item.name)).all()
        with pytest.raises(IsolationError, match="The test has ended"):
            uow.session.scalars(sa.select(Item.name)).all()
        uow.session.rollback()
        assert seen(uow) == []


@on_postgresql
def test_the_command_asks_the_server_itself(app: Flask, isolation: Isolation) -> None:
    """On a connection of its own, which is no logical one, also after an engine was disposed of."""
    with app.app_context():
        for _ in range(2):
            (asked,) = stats.snapshot().databases
            assert asked.error is None
            assert [session.state for session in asked.sessions] == ["idle in transaction"]
            app.extensions["uow"].engine.dispose()


def test_the_pools_are_put_back(app: Flask, uow: UnitOfWork) -> None:
    """Also after an error, and where the engine was disposed of meanwhile."""
    with app.app_context():
        pool = uow.engine.pool
        with pytest.raises(LookupError, match="in the test"), isolated(app):
            add(uow, "undone")
            uow.engine.dispose()
            assert seen(uow) == ["undone"]
            raise LookupError("in the test")

        assert uow.engine.pool is pool
        assert seen(uow) == []


def test_an_app_without_the_extension_is_refused() -> None:
    """There is nothing to isolate."""
    with pytest.raises(IsolationError, match="App 'bare' has no UnitOfWork"), isolated(Flask("bare")):
        pass
