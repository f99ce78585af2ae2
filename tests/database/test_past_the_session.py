"""What reaches past the session, the guard or the unit: nothing is lost by it in silence, and nothing kept by it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import psycopg2.errors
import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, current_unit, ride, signals, transactional
from flask_uow.exceptions import RuleViolationError, UnitFailedError, UnitOfWorkError, UnitOptionsError
from flask_uow.testing import record
from tests.database.conftest import Bench, MakeBench
from tests.databases import Database
from tests.models import Item, checked_out, create_tables, make_app, names


def raw_cursor(bench: Bench) -> Any:
    """The driver's own cursor on the session's connection."""
    return bench.session.connection().connection.cursor()


def driver(bench: Bench) -> Any:
    """The driver's own connection."""
    return bench.session.connection().connection.dbapi_connection


on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


# ---- by the driver


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("before", ["", "SELECT 1", "EXPLAIN SELECT 1"])
def test_a_read_only_unit_on_sqlite_refuses_what_the_driver_writes(bench: Bench, before: str) -> None:
    """By SQLite itself, once it was told so; by the rows that its driver has counted else."""
    with bench.app.app_context():
        with pytest.raises(Exception, match=r"UOW111|readonly"), transactional(read_only=True):
            if before:
                bench.session.execute(sa.text(before))
            raw_cursor(bench).execute("INSERT INTO item (name) VALUES ('lost')")
        with transactional():
            bench.add("kept")

    assert bench.committed() == ["kept"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_is_told_to_refuse_writes_before_what_is_no_select(bench: Bench) -> None:
    """Each time that it is told, it prepares its statements anew."""
    told: list[str] = []
    with bench.app.app_context():
        for statement in ("SELECT 1", " select 2", "VALUES (3)"):
            with transactional(read_only=True):
                driver(bench).set_trace_callback(told.append)
                bench.session.execute(sa.text(statement))

    pragmas = ["PRAGMA query_only = 1", "VALUES (3)", "PRAGMA query_only = 0"]
    ends = ["COMMIT", "BEGIN"]
    assert [text.strip() for text in told] == ["SELECT 1", *ends, "select 2", *ends, *pragmas, "COMMIT"]


@on_postgresql
def test_a_rollback_by_the_driver_is_noticed_by_the_next_statement(bench: Bench) -> None:
    """What was written before it is lost, so what comes after it is refused."""
    with bench.app.app_context():
        with pytest.raises(UnitFailedError, match="transaction has ended"), transactional():
            bench.add("before")
            driver(bench).rollback()
            bench.add("after")
        with transactional():
            bench.add("next")

    assert bench.committed() == ["next"]


def test_a_rollback_by_the_driver_at_the_end_is_noticed(bench: Bench) -> None:
    """There is no statement after it, and nothing to commit."""
    with bench.app.app_context(), pytest.raises(UnitFailedError), transactional():
        bench.add("before")
        driver(bench).rollback()

    assert bench.committed() == []


@on_postgresql
def test_a_connection_that_dies_under_a_raw_cursor_fails_the_unit(bench: Bench) -> None:
    """The driver knows that it is lost: COMMIT was never sent, and nothing of its outcome is in doubt."""
    with bench.app.app_context(), pytest.raises(UnitFailedError), transactional():
        bench.add("a")
        bench.database.kill(bench.session.scalar(sa.text("SELECT pg_backend_pid()")) or 0)
        with pytest.raises(Exception, match=r"terminat|closed|lost"):
            raw_cursor(bench).execute("SELECT 1")

    assert bench.committed() == []


def test_a_raw_write_before_a_unit_is_adopted(bench: Bench) -> None:
    """Although no statement of SQLAlchemy's tells of it."""
    with bench.app.app_context():
        raw_cursor(bench).execute("INSERT INTO item (name) VALUES ('raw')")
        with transactional():
            bench.add("unit")

    assert bench.committed() == ["raw", "unit"]


@on_postgresql
def test_a_raw_write_before_a_unit_of_another_isolation_refuses_it(bench: Bench) -> None:
    """It cannot be in the unit's transaction, and is not thrown away."""
    with bench.app.app_context():
        raw_cursor(bench).execute("INSERT INTO item (name) VALUES ('raw')")
        with pytest.raises(UnitOptionsError, match="Writes came before"), transactional(isolation="SERIALIZABLE"):
            pass
        bench.session.commit()

    assert bench.committed() == ["raw"]


@on_postgresql
def test_a_statement_that_never_left_the_client_ends_nothing(bench: Bench) -> None:
    """Its parameters could not be sent, so the server never began a transaction that might have been lost."""
    with bench.app.app_context(), transactional():
        with pytest.raises(sa.exc.ProgrammingError):
            bench.session.execute(sa.text("INSERT INTO item (name) VALUES (:name)"), {"name": object()})
        bench.add("a")

    assert bench.committed() == ["a"]


# ---- by a connection that was taken before


def test_a_savepoint_holds_what_an_older_connection_object_writes(bench: Bench) -> None:
    """The connection was taken in the outer unit; its statements in the inner one are the inner one's."""
    with bench.app.app_context(), transactional():
        connection = bench.session.connection()
        connection.execute(sa.insert(Item).values(name="outer"))
        with pytest.raises(ValueError, match="no"), transactional():
            connection.execute(sa.insert(Item).values(name="inner"))
            raise ValueError("no")
        with transactional():
            connection.execute(sa.insert(Item).values(name="second inner"))

    assert bench.committed() == ["outer", "second inner"]


def test_a_savepoint_that_was_ended_by_hand_fails_the_unit_around(bench: Bench) -> None:
    """What came after its end cannot be undone alone, so nothing is committed."""
    with bench.app.app_context(), pytest.raises(UnitFailedError), transactional():
        bench.add("outer")
        with pytest.raises(UnitFailedError, match="ended by hand"), transactional():
            bench.add("inner")
            savepoint = bench.session.get_nested_transaction()
            assert savepoint is not None
            savepoint.rollback()
            bench.add("after")

    assert bench.committed() == []


def test_a_connection_used_as_a_block_leaves_no_read_only_mode_behind(bench: Bench) -> None:
    """``with session.connection():`` closes it, which a unit refuses; the next unit may write on it."""
    with (
        bench.app.app_context(),
        pytest.raises(RuleViolationError, match="UOW102"),
        transactional(read_only=True),
        bench.session.connection() as connection,
    ):
        connection.execute(sa.select(Item))
    with bench.app.app_context(), transactional():
        bench.add("a")

    assert bench.committed() == ["a"]


def test_a_transaction_that_is_closed_past_the_session_gives_its_connection_back(bench: Bench) -> None:
    """The session loses sight of it, and the pool would lose a place."""
    with bench.app.app_context(), pytest.raises(UnitOfWorkError), transactional():
        bench.add("a")
        transaction = bench.session.get_transaction()
        assert transaction is not None
        with pytest.raises(RuleViolationError):
            transaction.close()

    assert checked_out(bench.app) == 0
    assert bench.committed() == []


def test_a_connection_that_commits_by_itself_is_refused(bench: Bench) -> None:
    """A unit could not undo what it writes."""
    options = {"isolation_level": "AUTOCOMMIT"}
    with bench.app.app_context():
        with pytest.raises(UnitOptionsError, match="AUTOCOMMIT"), transactional():
            bench.session.connection(execution_options=options)
        with bench.uow.engine.connect().execution_options(**options) as connection:
            connection.execute(sa.insert(Item).values(name="outside"))

    assert bench.committed() == ["outside"]


@on_postgresql
def test_an_engine_that_commits_by_itself_is_refused(bench: Bench) -> None:
    """Whoever has left its connections so: the unit has no part of it, and writes nothing."""
    with bench.app.app_context():
        engine = bench.uow.engine

    @sa.event.listens_for(engine, "connect")
    def leave_it_so(connection: Any, record: object) -> None:
        connection.autocommit = True

    with bench.app.app_context():
        with pytest.raises(UnitOptionsError, match="met a connection in AUTOCOMMIT"), transactional():
            bench.add("a")
            bench.session.flush()

    assert bench.committed() == []


@on_postgresql
def test_what_listens_to_the_beginning_may_speak(bench: Bench) -> None:
    """A tenant's id for the transaction say: the unit has its isolation all the same."""
    with bench.app.app_context():
        engine = bench.uow.engine

    @sa.event.listens_for(engine, "begin")
    def speak(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SELECT set_config('app.tenant', 'a', true)")

    shown = sa.text("SELECT current_setting('transaction_isolation'), current_setting('app.tenant')")
    with bench.app.app_context():
        with transactional(isolation="SERIALIZABLE"):
            assert tuple(bench.session.execute(shown).one()) == ("serializable", "a")
        with transactional():
            assert tuple(bench.session.execute(shown).one()) == ("read committed", "a")


@on_postgresql
def test_what_listens_to_sessions_may_speak_first(database: Database) -> None:
    """A listener that was there before the extension comes after it: the unit has its isolation."""

    class Speaking(Session):
        pass

    @sa.event.listens_for(Speaking, "after_begin")
    def speak(session: Session, transaction: object, connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT set_config('app.tenant', 'a', true)"))

    uow = UnitOfWork(session_options={"class_": Speaking})
    app = make_app(database, uow)
    shown = sa.text("SELECT current_setting('transaction_isolation'), current_setting('app.tenant')")
    with app.app_context(), transactional(isolation="SERIALIZABLE"):
        assert tuple(uow.session.execute(shown).one()) == ("serializable", "a")


def test_a_lent_connection_stays_in_its_lenders_transaction(bench: Bench) -> None:
    """A test's fixture has begun on it: the unit is a part of that, and the lender's rollback undoes both."""
    engine = sa.create_engine(bench.database.url)
    factory = orm.sessionmaker(binds={}, join_transaction_mode="create_savepoint")
    with engine.connect() as connection:
        connection.begin()
        connection.execute(sa.insert(Item).values(name="fixture"))
        factory.configure(binds={Item: connection})
        app = Flask("lent")
        uow = UnitOfWork(app, sessionmaker=factory)
        with app.app_context(), transactional():
            uow.session.add(Item(name="unit"))
        seen = sorted(connection.scalars(sa.select(Item.name)))
        connection.rollback()
    engine.dispose()

    assert seen == ["fixture", "unit"]
    assert bench.committed() == []


@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint"])
@pytest.mark.parametrize("rides", [True, False], ids=["riding", "plain"])
def test_a_read_only_unit_leaves_its_lenders_transaction_as_it_was(bench: Bench, mode: Any, rides: bool) -> None:
    """It refuses writes itself: a transaction that PostgreSQL was told is read-only cannot write any more."""
    engine = sa.create_engine(bench.database.url)
    if rides:
        ride(engine)
    app = Flask("lent")
    with engine.connect() as connection:
        connection.begin()
        connection.execute(sa.insert(Item).values(name="fixture"))
        uow = UnitOfWork(app, sessionmaker=orm.sessionmaker(connection, join_transaction_mode=mode))
        with app.app_context():
            with transactional(read_only=True):
                assert uow.session.scalars(sa.select(Item.name)).all() == ["fixture"]
                with pytest.raises(RuleViolationError, match="UOW111"):
                    uow.session.execute(sa.insert(Item).values(name="refused"))
            with transactional():
                uow.session.add(Item(name="unit"))
        seen = sorted(connection.scalars(sa.select(Item.name)))
        connection.rollback()
    engine.dispose()

    assert seen == ["fixture", "unit"]
    assert bench.committed() == []


def test_a_lent_connection_is_no_leak_of_its_guests(bench: Bench) -> None:
    """Its lender speaks on it under a context that has not taken it, and takes it back later."""
    with bench.app.app_context(), bench.uow.engine.connect() as connection, record(bench.app) as seen:
        connection.begin()
        connection.execute(sa.insert(Item).values(name="fixture"))
        bench.uow.session.configure(bind=connection, join_transaction_mode="create_savepoint")
        with bench.app.app_context():
            with transactional():
                bench.add("unit")
            assert len(connection.scalars(sa.select(Item.name)).all()) == 2

    assert seen.codes == []


# ---- by the session's older ways


@pytest.mark.parametrize("way", ["insert", "save", "update"])
def test_a_bulk_method_that_fails_says_why(bench: Bench, way: str) -> None:
    """SQLAlchemy rolls back by itself in it; the error is the database's, and the unit has failed by it."""
    with bench.app.app_context():
        with pytest.raises(sa.exc.IntegrityError), transactional():
            bench.add("a", "b")
            first = bench.session.scalars(sa.select(Item.id).order_by(Item.id)).first()
            if way == "insert":
                bench.session.bulk_insert_mappings(Item, [{"name": "a"}])
            elif way == "save":
                bench.session.bulk_save_objects([Item(name="a")])
            else:
                bench.session.bulk_update_mappings(Item, [{"id": first, "name": "b"}])
        with transactional():
            bench.session.bulk_insert_mappings(Item, [{"name": "next"}])

    assert bench.committed() == ["next"]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_transaction_that_a_flush_has_undone_may_be_rolled_back_once_more(
    bench: Bench, caplog: pytest.LogCaptureFixture, *, goes_on: bool
) -> None:
    """Its connection is as good as ever; the unit has failed by the flush, also if it goes on in a new transaction."""
    bench.database.execute("INSERT INTO item (name) VALUES ('there')")
    with bench.app.app_context():
        with pytest.raises(UnitFailedError) as caught, transactional():
            bench.add("first")
            with pytest.raises(sa.exc.IntegrityError) as swallowed:
                bench.add("there")
            transaction = bench.session.get_transaction()
            assert transaction is not None
            transaction.rollback()
            if goes_on:
                bench.add("later")
        assert bench.checked_out == 0

    assert caught.value.__cause__ is swallowed.value
    assert bench.committed() == ["there"]
    assert "reset" not in caplog.text


def test_a_bulk_method_that_fails_and_is_swallowed_fails_the_unit(bench: Bench) -> None:
    """Its error is the cause, also on SQLite, where nothing else tells that the transaction is gone."""
    with bench.app.app_context():
        bench.database.execute("INSERT INTO item (name) VALUES ('there')")
        with pytest.raises(UnitFailedError, match="an error inside it was swallowed") as caught, transactional():
            bench.add("first")
            with pytest.raises(sa.exc.IntegrityError) as swallowed:
                bench.session.bulk_insert_mappings(Item, [{"name": "there"}])

    assert caught.value.__cause__ is swallowed.value
    assert bench.committed() == ["there"]


def test_a_bulk_method_in_a_flush_is_a_part_of_it(bench: Bench) -> None:
    """What SQLAlchemy rolls back when the flush fails later is no rollback by hand."""

    def write_more(*args: object) -> None:
        bench.session.bulk_insert_mappings(Item, [{"name": "more"}])

    bench.database.execute("INSERT INTO item (name) VALUES ('there')")
    with bench.app.app_context():
        sa.event.listen(bench.session, "before_flush", write_more)
        with pytest.raises(sa.exc.IntegrityError), transactional():
            bench.add("there")

    assert bench.committed() == ["there"]


def test_writes_in_a_savepoint_that_was_undone_are_no_lost_writes(bench: Bench) -> None:
    """Nobody wanted them, so UOW103 does not speak of them."""
    with record(bench.app) as seen, bench.app.app_context():
        savepoint = bench.session.begin_nested()
        bench.add("undone")
        savepoint.rollback()

    assert seen.codes == []


# ---- by generators


def blocks(bench: Bench, name: str) -> Iterator[None]:
    """A generator that holds a unit open across its ``yield``."""
    with transactional():
        bench.add(f"{name} first")
        yield
        bench.add(f"{name} second")


def test_generators_that_interleave_their_units_lose_nothing_in_silence(bench: Bench) -> None:
    """The one that began first ends first, and takes the other's savepoint with it: both are told."""
    with bench.app.app_context():
        first, second = blocks(bench, "a"), blocks(bench, "b")
        next(first)
        next(second)
        with pytest.raises(UnitFailedError, match="inside it had not ended"):
            next(first, None)
        with pytest.raises(UnitOfWorkError):
            next(second, None)

    assert bench.committed() == []


# ---- by those who listen


def boom(*args: object, **details: object) -> None:
    raise LookupError("the receiver's own")


def test_a_receiver_that_raises_changes_no_beginning(bench: Bench) -> None:
    """It is logged; the unit goes on, and the next one is the outermost again."""
    with signals.unit_began.connected_to(boom), bench.app.app_context():
        with transactional():
            bench.add("a")
        with transactional() as unit:
            assert unit.depth == 1

    assert bench.committed() == ["a"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_receiver_that_raises_changes_no_end(bench: Bench, fails: bool) -> None:
    """The hooks of the outcome run, and the error is the application's own."""
    ran = []
    with (
        signals.unit_committed.connected_to(boom),
        signals.unit_rolled_back.connected_to(boom),
        bench.app.app_context(),
    ):
        try:
            with transactional() as unit:
                unit.after_commit(lambda: ran.append("commit"))
                unit.after_rollback(lambda: ran.append("rollback"))
                bench.add("a")
                if fails:
                    raise ValueError("no")
        except ValueError:
            ran.append("raised")

    assert ran == (["rollback", "raised"] if fails else ["commit"])


def test_a_listener_that_raises_after_the_commit_cannot_undo_it(bench: Bench) -> None:
    """The rows are there, so the unit was committed; the error goes on."""
    ran: list[str] = []

    def listener(session: Session) -> None:
        raise LookupError("the listener's own")

    with bench.app.app_context():
        sa.event.listen(bench.session, "after_commit", listener)
        with pytest.raises(LookupError), transactional() as unit:
            unit.after_commit(lambda: ran.append("commit"))
            unit.after_rollback(lambda: ran.append("rollback"))
            bench.add("a")

    assert bench.committed() == ["a"]
    assert ran == ["commit"]


def test_what_a_listener_begins_on_a_connection_that_returns_is_rolled_back(bench: Bench) -> None:
    """A unit's COMMIT leaves nothing to roll back, unless somebody speaks between it and the pool."""
    heard: list[object] = []

    def write(dbapi_connection: Any, record: object, state: object) -> None:
        heard.append(state)
        with closing(dbapi_connection.cursor()) as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('left')")

    with bench.app.app_context():
        sa.event.listen(bench.uow.engine, "reset", write)
    for name in ("a", "b"):
        with bench.app.app_context(), transactional():
            bench.add(name)

    assert len(heard) == 2
    assert sorted(bench.committed()) == ["a", "b"]


def ask_after_each_rollback(uow: UnitOfWork) -> list[int]:
    """SQLAlchemy's own example of ``after_soft_rollback``: what the session finds when it goes on."""
    found: list[int] = []

    @sa.event.listens_for(uow.session, "after_soft_rollback")
    def ask(session: Session, transaction: object) -> None:
        if session.is_active:
            found.append(len(session.scalars(sa.select(Item.name)).all()))

    return found


def test_what_listens_to_a_rollback_may_read_on(bench: Bench) -> None:
    """Its transaction is no part of the unit: the session goes on in it, and the next unit takes it over."""
    found = ask_after_each_rollback(bench.uow)
    with bench.app.app_context():
        with pytest.raises(ValueError, match="no"), transactional(read_only=True):
            assert bench.session.scalars(sa.select(Item.name)).all() == []
            raise ValueError("no")
        assert bench.session.scalars(sa.select(Item.name)).all() == []
        with transactional():
            bench.add("a")
    assert checked_out(bench.app) == 0

    assert bench.committed() == ["a"]
    assert found == [0]


def test_what_listens_to_a_rollback_does_not_keep_a_unit_from_its_options(bench: Bench) -> None:
    """A read that came before is ended, and what a listener reads then as well."""
    found = ask_after_each_rollback(bench.uow)
    with bench.app.app_context():
        bench.session.scalars(sa.select(Item.name)).all()
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            bench.add("refused")
        bench.session.scalars(sa.select(Item.name)).all()
        with transactional(isolation="SERIALIZABLE"):
            if bench.database.is_postgresql:
                assert bench.session.scalar(sa.text("SHOW transaction_isolation")) == "serializable"

    assert bench.committed() == []
    assert len(found) > 1


def test_what_listens_to_a_rollback_may_read_in_a_request(make_bench: MakeBench) -> None:
    """A whole request that was undone goes on in what the listener has begun."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True)
    found = ask_after_each_rollback(bench.uow)

    @bench.app.errorhandler(KeyError)
    def answer(error: KeyError) -> str:
        return str(bench.session.scalars(sa.select(Item.name)).all())

    @bench.app.post("/")
    def view() -> str:
        bench.add("undone")
        raise KeyError

    assert bench.app.test_client().post("/").text == "[]"
    assert bench.committed() == []
    assert found


@pytest.fixture
def at_each_insert() -> Iterator[list[Callable[[], object]]]:
    """Hooks that a listener of the mapper adds, one for each row that is inserted, while there are any."""
    hooks: list[Callable[[], object]] = []

    def listener(*args: object) -> None:
        if hooks:
            current_unit.before_commit(hooks.pop(0))

    sa.event.listen(Item, "after_insert", listener)
    yield hooks
    sa.event.remove(Item, "after_insert", listener)


def test_a_hook_that_the_last_flush_adds_runs(bench: Bench, at_each_insert: list[Callable[[], object]]) -> None:
    """It may write, read, and add more of its kind, by the flush that follows."""
    seen: list[int | None] = []

    def count() -> None:
        seen.append(bench.session.scalar(sa.select(sa.func.count(Item.id))))

    at_each_insert += [lambda: bench.session.add(Item(name="by the first")), count]
    with bench.app.app_context(), transactional():
        bench.session.add(Item(name="a"))

    assert seen == [2]
    assert bench.committed() == ["a", "by the first"]


def test_a_hook_of_the_last_flush_that_raises_undoes_the_unit(
    bench: Bench, at_each_insert: list[Callable[[], object]]
) -> None:
    """Nothing was committed yet."""

    def refuse() -> None:
        raise LookupError("no")

    at_each_insert.append(refuse)
    with bench.app.app_context():
        with pytest.raises(LookupError, match="no"), transactional():
            bench.session.add(Item(name="a"))
        with transactional():
            bench.session.add(Item(name="next"))

    assert bench.committed() == ["next"]


@on_postgresql
def test_a_hook_of_the_last_flush_that_swallows_an_error_fails_the_unit(
    bench: Bench, at_each_insert: list[Callable[[], object]]
) -> None:
    """COMMIT would be a silent rollback."""

    def swallow() -> None:
        with suppress(sa.exc.DBAPIError):
            bench.run_sql("SELECT 1/0")

    at_each_insert.append(swallow)
    with bench.app.app_context(), pytest.raises(UnitFailedError), transactional():
        bench.session.add(Item(name="a"))

    assert bench.committed() == []


def test_a_listener_before_the_commit_sees_what_is_new(bench: Bench) -> None:
    """As it does when the commit is by hand: a search index is fed so."""
    seen: list[str] = []

    def listener(session: Session) -> None:
        seen.extend(entity.name for entity in session.new)

    with bench.app.app_context():
        sa.event.listen(bench.session, "before_commit", listener)
        with transactional() as unit:
            bench.session.add(Item(name="a"))
            unit.before_commit(lambda: bench.session.add(Item(name="by the hook")))

    assert sorted(seen) == ["a", "by the hook"]


# ---- objects of an earlier transaction


def test_a_child_that_is_appended_after_a_commit_is_kept(make_bench: MakeBench) -> None:
    """Loading the collection begins the transaction whose objects would be expired, the new child's parent too."""

    class Base(orm.DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "parent"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        children: orm.Mapped[list["Child"]] = orm.relationship()

    class Child(Base):
        __tablename__ = "child"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        parent_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("parent.id"))

    Base.registry._class_registry.update(Child=Child)
    bench = make_bench()
    with bench.app.app_context():
        session = bench.session
        Base.metadata.create_all(session.connection())
        parent = Parent(children=[Child()])
        session.add(parent)
        session.commit()
        parent.children.append(Child())
        session.commit()
        found = session.scalars(sa.select(Child.parent_id)).all()
        session.rollback()
    bench.database.execute("DROP TABLE child")
    bench.database.execute("DROP TABLE parent")

    assert found == [1, 1]


# ---- SQLite's one writer


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["by hand", "in a unit after a pending change"])
def test_who_reads_and_then_writes_waits_for_the_writer(bench: Bench, how: str) -> None:
    """A transaction that began with a read could not wait, and would fail at once: nothing begins with a read."""
    bench.database.execute("INSERT INTO item (name) VALUES ('first')")
    statuses: list[int] = []

    @bench.app.post("/")
    def view() -> str:
        item = bench.session.scalars(sa.select(Item)).one()
        item.name = f"{item.name}!"
        if how == "by hand":
            bench.session.commit()
        else:
            with transactional():
                bench.session.flush()
        return "ok"

    def post() -> None:
        statuses.extend(bench.app.test_client().post("/").status_code for _ in range(20))

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 80


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_savepoint_outside_a_unit_lies_in_a_transaction(bench: Bench) -> None:
    """It is begun for it, and for what a connection of the engine writes."""
    with bench.app.app_context():
        bench.session.scalars(sa.select(Item)).all()
        with bench.session.begin_nested():
            bench.add("undone")
        bench.session.rollback()
        with bench.uow.engine.connect() as connection:
            connection.execute(sa.select(Item)).all()
            with connection.begin_nested():
                connection.execute(sa.insert(Item).values(name="undone as well"))
            connection.rollback()

    assert bench.committed() == []


# ---- async generators


def test_an_async_generator_that_was_left_is_no_other_task(bench: Bench) -> None:
    """Python closes it later, in a context of its own."""

    @bench.app.post("/")
    @transactional
    async def view() -> str:
        async def rows() -> AsyncIterator[int]:
            with transactional():
                yield 1
                yield 2

        async for _ in rows():
            break
        await asyncio.sleep(0.01)
        with transactional():
            bench.add("row")
        return "ok"

    assert bench.app.test_client().post("/").text == "ok"
    assert bench.committed() == ["row"]


@on_postgresql
def test_a_database_error_of_a_listener_after_the_commit_cannot_undo_it(bench: Bench) -> None:
    """Neither does it make a retry of what is in."""
    ran: list[str] = []

    def listener(session: Session) -> None:
        error = psycopg2.errors.SerializationFailure()
        raise sa.exc.OperationalError("SELECT", {}, error)

    @transactional(retries=2)
    def write() -> None:
        current_unit.after_commit(lambda: ran.append("committed"))
        bench.add("row")

    with bench.app.app_context():
        sa.event.listen(bench.session, "after_commit", listener)
        with pytest.raises(sa.exc.OperationalError):
            write()

    assert ran == ["committed"]
    assert bench.committed() == ["row"]


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
@pytest.mark.parametrize("block", ["pipeline", "transaction"])
def test_a_block_of_psycopgs_that_comes_first_has_the_units_options(bench: Bench, block: str) -> None:
    """Psycopg would begin without them."""
    asked = "SELECT current_setting('transaction_isolation'), current_setting('statement_timeout') <> '0'"
    with bench.app.app_context():
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="read-only"), transactional(read_only=True):
            with getattr(driver(bench), block)():
                driver(bench).execute("INSERT INTO item (name) VALUES ('refused')")
        with transactional(isolation="SERIALIZABLE", timeout=60):
            with getattr(driver(bench), block)():
                found = driver(bench).execute(asked).fetchone()
            bench.add("row")

    assert found == ("serializable", True)
    assert bench.committed() == ["row"]


@on_postgresql
@pytest.mark.parametrize("streams", [False, True])
def test_two_phases_of_sqlalchemys_own_have_the_units_options(bench: Bench, streams: bool) -> None:
    """The driver begins them itself, without what waits."""
    engine = ride(sa.create_engine(bench.database.url), read_only_at_start=True)
    if type(engine.dialect).do_prepare_twophase is PGDialect.do_prepare_twophase:
        pytest.skip("This SQLAlchemy has texts for that, which a unit refuses.")
    app = Flask("two phases")
    uow = UnitOfWork(app, sessionmaker=orm.sessionmaker(engine, twophase=True))
    settings = [sa.func.current_setting(f"transaction_{name}") for name in ("isolation", "read_only")]
    asked = sa.select(*settings, sa.func.current_setting("statement_timeout") != "0")
    asked = asked.execution_options(stream_results=streams)
    found: list[Any] = []
    with app.app_context():
        for options in ({"isolation": "SERIALIZABLE"}, {"read_only": True}, {"timeout": 60}, {}):
            with transactional(**options):
                found += uow.session.execute(asked).all()
    engine.dispose()

    assert found == [
        ("serializable", "off", False),
        ("read committed", "on", False),
        ("read committed", "off", True),
        ("read committed", "off", False),
    ]


def by_class(engine: sa.Engine) -> orm.sessionmaker[Session]:
    """Sessions that find their engine by the class."""
    return orm.sessionmaker(binds={Item: engine})


def by_shard(engine: sa.Engine) -> orm.sessionmaker[ShardedSession]:
    """Sessions that find it by the object."""
    return orm.sessionmaker(
        class_=ShardedSession,
        shards={"only": engine},
        shard_chooser=lambda mapper, instance, clause=None: "only",
        identity_chooser=lambda *key, **options: ["only"],
        execute_chooser=lambda context: ["only"],
    )


@pytest.mark.parametrize("choosing", [by_class, by_shard])
def test_sessions_that_choose_among_engines_may_be_read_only(bench: Bench, choosing: Callable[..., Any]) -> None:
    """Which database a unit speaks to is not known before it does."""
    engine = sa.create_engine(bench.database.url)
    app = Flask("unbound")
    uow = UnitOfWork(app, sessionmaker=choosing(engine))
    with app.app_context():
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            uow.session.add(Item(name="refused"))
            uow.session.flush()
        with transactional(), transactional(isolation="READ COMMITTED"), transactional(propagation="requires_new"):
            uow.session.add(Item(name="row"))
    engine.dispose()

    assert bench.committed() == ["row"]


def test_a_shard_that_is_first_met_in_a_nested_unit_is_undone_with_it(bench: Bench, second_database: Database) -> None:
    """SQLAlchemy's sharding makes no savepoint there."""
    create_tables(second_database)
    engines = {0: sa.create_engine(bench.database.url), 1: sa.create_engine(second_database.url)}
    sessionmaker = orm.sessionmaker(
        class_=ShardedSession,
        shards=engines,
        shard_chooser=lambda mapper, instance, clause=None: instance.id % 2,
        identity_chooser=lambda *key, **options: [0, 1],
        execute_chooser=lambda context: [0, 1],
    )
    app = Flask("sharded")
    uow = UnitOfWork(app, sessionmaker=sessionmaker)
    with app.app_context(), transactional():
        uow.session.add(Item(id=2, name="kept"))
        with suppress(KeyError), transactional(), transactional():
            uow.session.add_all([Item(id=3, name="lost"), Item(id=4, name="lost as well")])
            uow.session.flush()
            raise KeyError
        uow.session.add(Item(id=5, name="later"))
    for engine in engines.values():
        engine.dispose()

    assert (bench.committed(), names(second_database)) == (["kept"], ["later"])
