"""Whose session it is: one per context and thread, taken back with its context, and what it still shows after."""

import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, Response, render_template_string, stream_with_context
from sqlalchemy.orm import Session, object_session
from sqlalchemy.orm import session as orm_session

from flask_uow import UnitOfWork, current_unit, transactional
from flask_uow._guard import guarded_class
from flask_uow.exceptions import RuleViolationError
from tests.conftest import POOLS_OF_THE_TEST
from tests.databases import Database
from tests.models import Item, checked_out, make_app, names, reuses_contexts

OUTSIDE = r"\[UOW201\] uow\.session was used outside an app context\."


def add(database: Database, *new: str) -> None:
    """Commit rows on another connection."""
    for name in new:
        database.execute(f"INSERT INTO item (name) VALUES ('{name}')")


def record_transactions(app: Flask, uow: UnitOfWork) -> list[str]:
    """Write down every BEGIN and statement of the app's engine from now on."""
    sent: list[str] = []
    with app.app_context():
        engine = uow.engine

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        sent.append("BEGIN")

    @sa.event.listens_for(engine, "before_cursor_execute")
    def executed(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    return sent


# ---- one per context


def test_a_context_has_one_session(app: Flask, uow: UnitOfWork) -> None:
    """Every use under one context meets the same session, and the next context another."""
    with app.app_context():
        first = uow.session()
        again = uow.session()
    with app.app_context():
        second = uow.session()

    assert again is first
    assert second is not first


def test_what_a_context_has_left_is_no_other_sessions(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Whatever became of an object that somebody still holds: deleted, read, never flushed."""
    add(database, "deleted", "read")

    def leave_things_behind() -> list[Item]:
        held = [*uow.session.scalars(sa.select(Item).order_by(Item.id)), Item(name="never flushed")]
        uow.session.delete(held[0])
        uow.session.flush()
        uow.session.add(held[-1])
        return held

    with app.app_context():
        held = leave_things_behind()
    with app.app_context():
        found = [(object_session(item) is uow.session(), item in uow.session) for item in held]

    assert found == [(False, False)] * 3


def test_what_listens_to_a_session_hears_no_other(app: Flask, uow: UnitOfWork) -> None:
    """The next context's session has the listeners of its class alone."""
    heard: list[object] = []
    with app.app_context():
        sa.event.listen(uow.session(), "before_flush", lambda *arguments: heard.append(arguments))
        uow.session.add(Item(name="first"))
        uow.session.commit()
    with app.app_context():
        uow.session.add(Item(name="second"))
        uow.session.commit()

    assert len(heard) == 1


def test_an_inner_context_of_the_same_app_leaves_the_outer_one_alone(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """What waits in the outer session survives the inner context's end, and the inner one never saw it."""
    with app.app_context():
        outer = uow.session()
        uow.session.add(Item(name="outer"))
        with app.app_context():
            assert uow.session() is not outer
            assert not uow.session.new
            assert uow.session.scalars(sa.select(Item)).all() == []
        assert uow.session() is outer
        assert [item.name for item in uow.session.new] == ["outer"]
        uow.session.commit()

    assert names(database) == ["outer"]


def test_contexts_of_two_apps_have_sessions_apart(
    app: Flask, uow: UnitOfWork, database: Database, second_database: Database
) -> None:
    """The inner app works on its own database, and its teardown takes back its own session only."""
    other_app = make_app(second_database, uow)
    with app.app_context():
        uow.session.add(Item(name="first app"))
        with other_app.app_context():
            uow.session.add(Item(name="second app"))
            uow.session.commit()
        assert checked_out(other_app) == 0
        uow.session.commit()

    assert names(database) == ["first app"]
    assert names(second_database) == ["second app"]


@reuses_contexts
def test_a_request_in_a_pushed_context_uses_the_session_of_that_context(app: Flask, uow: UnitOfWork) -> None:
    """Flask reuses the app context that a test has pushed, and so its session; nothing is taken back before it ends."""
    seen: list[Session] = []

    @app.get("/")
    def index() -> str:
        seen.append(uow.session())
        return ""

    with app.app_context():
        outer = uow.session()
        uow.session.add(Item(name="pending"))
        app.test_client().get("/")
        pending = [item.name for item in uow.session.new]
        uow.session.expunge_all()

    assert seen == [outer]
    assert pending == ["pending"]


def test_a_context_never_inherits_the_session_of_one_whose_address_it_has(app: Flask, uow: UnitOfWork) -> None:
    """A context that is dropped without a teardown takes its session with it; its address is reused, nothing else."""

    def work_in_a_context_that_is_never_popped() -> int:
        context = app.app_context()
        context.push()
        assert not uow.session.new
        uow.session.add(Item(name="left behind"))
        return id(context)

    addresses: set[int] = set()
    while (address := contextvars.copy_context().run(work_in_a_context_that_is_never_popped)) not in addresses:
        addresses.add(address)
        assert len(addresses) < 1000, "No address was reused; the test shows nothing."
        gc.collect(1)  # the context
    for _ in range(2):  # the context, then the session that only it had held
        gc.collect(1)


# ---- outside a context


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda uow: uow.session(), id="call"),
        pytest.param(lambda uow: uow.session.add(Item(name="a")), id="add"),
        pytest.param(lambda uow: uow.session.execute(sa.text("SELECT 1")), id="execute"),
        pytest.param(lambda uow: uow.session(autoflush=False), id="call with options"),
    ],
)
def test_outside_a_context_the_session_refuses(app: Flask, uow: UnitOfWork, use: Callable[[UnitOfWork], Any]) -> None:
    """UOW201 says so, names the line, and what to do; nothing is made that nobody would close."""
    with pytest.raises(RuleViolationError, match=OUTSIDE) as caught:
        use(uow)

    assert caught.value.code == "UOW201"
    assert caught.value.where is not None
    assert "test_sessions.py:" in caught.value.where
    assert caught.value.fix is not None
    assert "with app.app_context():" in caught.value.fix


def test_outside_a_context_there_is_nothing_to_remove(app: Flask, uow: UnitOfWork) -> None:
    """``remove()`` does nothing there, as with any registry that is empty."""
    uow.session.remove()

    assert not uow.session.registry.has()


# ---- what a scoped_session offers


def test_remove_gives_the_connection_back_and_the_next_use_begins_anew(app: Flask, uow: UnitOfWork) -> None:
    """``remove()`` rolls back and closes the context's session; the context goes on with another."""
    with app.app_context():
        first = uow.session()
        uow.session.add(Item(name="removed"))
        uow.session.flush()
        assert checked_out(app) == 1
        uow.session.remove()
        assert checked_out(app) == 0
        assert uow.session() is not first
        assert uow.session.scalars(sa.select(Item)).all() == []


def test_a_session_is_made_with_options_of_its_own(app: Flask, uow: UnitOfWork) -> None:
    """``uow.session(autoflush=False)`` makes the context's session so, and it is taken back like any other."""
    with app.app_context():
        session = uow.session(autoflush=False)
        uow.session.execute(sa.text("SELECT 1"))
        assert uow.session() is session
        assert not uow.session.autoflush
        with pytest.raises(sa.exc.InvalidRequestError, match="already present"):
            uow.session(autoflush=True)

    assert checked_out(app) == 0


def test_a_session_that_is_replaced_is_closed_with_its_context(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Both give back what they hold; the one that ``registry.set()`` has put in its place is the current one."""
    with app.app_context():
        first = uow.session()
        first.scalar(sa.select(1))
        second = Session(uow.engine)
        uow.session.registry.set(second)
        assert uow.session() is second
        second.scalar(sa.select(1))
        assert first.in_transaction()

    assert not first.in_transaction()
    assert not second.in_transaction()
    assert checked_out(app) == 0


def test_a_unit_goes_on_in_a_session_that_is_replaced(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """And in one that is put back; its work is committed."""
    with app.app_context():
        with transactional() as unit:
            first = uow.session()
            uow.session.add(Item(name="first"))
            uow.session.registry.set(Session(uow.engine))
            uow.session.registry.set(first)
            assert current_unit == unit
            uow.session.add(Item(name="second"))

    assert names(database) == ["first", "second"]


def test_a_session_that_is_forgotten_is_closed(app: Flask, uow: UnitOfWork) -> None:
    """``registry.clear()`` is ``remove()`` then; inside a unit it is refused like that."""
    with app.app_context():
        first = uow.session()
        first.scalar(sa.select(1))
        uow.session.registry.clear()
        assert not first.in_transaction()
        assert uow.session() is not first
        with transactional() as unit:
            uow.session.scalar(sa.select(1))
            with pytest.raises(RuleViolationError, match=r"\[UOW102\] session\.close\(\)"):
                uow.session.registry.clear()
            assert current_unit == unit

    assert checked_out(app) == 0


# ---- taken back


@pytest.mark.parametrize("kind", ["pending", "flushed", "queried", "committed and queried"])
def test_a_context_that_ends_gives_its_connection_back(
    app: Flask, uow: UnitOfWork, database: Database, without_collector: None, kind: str
) -> None:
    """Whatever state the session is in, it is rolled back and closed, by the context and not by the collector."""
    with app.app_context():
        session = uow.session()
        session.add(Item(name=kind))
        if kind != "pending":
            session.flush()
        if kind.startswith("committed"):
            session.commit()
        if kind.endswith("queried"):
            session.scalars(sa.select(Item)).all()

    assert not session.in_transaction()
    assert not session.identity_map
    assert checked_out(app) == 0
    assert names(database) == ([kind] if kind.startswith("committed") else [])


@pytest.mark.parametrize("base", [Session, guarded_class(Session)], ids=["SQLAlchemy's", "a guarded one"])
def test_a_class_of_the_users_own_is_closed_with_its_context(database: Database, base: type[Session]) -> None:
    """Also where it holds nothing."""
    closed: list[bool] = []

    class Noting(base):  # type: ignore[misc,valid-type]
        def close(self) -> None:
            super().close()
            closed.append(self.in_transaction())

    uow = UnitOfWork(session_options={"class_": Noting})
    app = make_app(database, uow)
    closed.clear()
    with app.app_context():
        uow.session()

    assert closed == [False]


@pytest.mark.parametrize("databases", ["one", "binds", "a reader"])
def test_an_app_that_is_dropped_is_forgotten(database: Database, second_database: Database, databases: str) -> None:
    """With the classes of its sessions and its pool, and what those refer to."""
    configs: dict[str, dict[str, Any]] = {
        "one": {},
        "binds": {"SQLALCHEMY_BINDS": {"other": second_database.url}},
        "a reader": {"UOW_READER_URI": second_database.url},
    }

    def use_and_drop() -> list[weakref.ref[Any]]:
        class Own(Session):
            of_app: Any = None

        class OwnPool(sa.QueuePool):
            of_app: Any = None

        uow = UnitOfWork(session_options={"class_": Own}, engine_options={"poolclass": OwnPool})
        app = Own.of_app = OwnPool.of_app = make_app(database, uow, **configs[databases])
        with app.app_context(), transactional():
            uow.session.add(Item(name="a"))
        with app.app_context():
            for engine in uow.engines.values():
                engine.dispose()
        return [weakref.ref(app), weakref.ref(Own), weakref.ref(OwnPool)]

    dropped = use_and_drop()
    POOLS_OF_THE_TEST.clear()
    gc.collect()

    assert [each() for each in dropped] == [None, None, None]


@pytest.mark.skipif(not hasattr(orm_session, "_SessionCloseState"), reason="SQLAlchemy 2.0.22 has this")
def test_a_session_that_ends_for_good_ends_with_its_context(database: Database) -> None:
    uow = UnitOfWork(session_options={"close_resets_only": False})
    app = make_app(database, uow)
    with app.app_context():
        session = uow.session()

    with pytest.raises(sa.exc.InvalidRequestError, match="permanently closed"):
        session.scalar(sa.select(1))


def test_a_session_of_many_contexts_is_in_the_registry_for_none_after(
    app: Flask, uow: UnitOfWork, without_collector: None
) -> None:
    """The registry keeps nothing of a context that has ended, in requests and out of them."""
    sessions: list[weakref.ref[Session]] = []

    @app.get("/")
    def index() -> str:
        sessions.append(weakref.ref(uow.session()))
        uow.session.execute(sa.text("SELECT 1"))
        return ""

    client = app.test_client()
    for _ in range(10):
        assert client.get("/").status_code == 200
        assert checked_out(app) == 0
    with app.app_context():
        assert not uow.session.registry.has()
    gc.collect()

    assert [session() for session in sessions] == [None] * 10


def test_a_context_that_is_torn_down_twice_is_served_twice(
    app: Flask, uow: UnitOfWork, without_collector: None
) -> None:
    """A test client that keeps its contexts pops them again: what was used in between comes back as well."""
    app.add_url_rule("/", view_func=lambda: str(uow.session.scalar(sa.text("SELECT 1"))))
    with app.test_client() as client:
        for _ in range(2):
            assert client.get("/").text == "1"
            assert checked_out(app) == 0
            uow.session.execute(sa.text("SELECT 2"))
            assert checked_out(app) == 1

    assert checked_out(app) == 0


# ---- streaming


def stream_items(uow: UnitOfWork) -> Iterator[str]:
    """Yield the names of all rows, each read when it is asked for."""
    for number in range(1, 4):
        yield str(uow.session.scalar(sa.select(Item.name).where(Item.id == number)))


def test_a_stream_without_its_context_is_refused_before_it_leaks(
    app: Flask, uow: UnitOfWork, database: Database, without_collector: None
) -> None:
    """A plain generator runs after the context has ended: UOW201, where a session would have stayed open for ever."""
    add(database, "a", "b", "c")
    app.add_url_rule("/", view_func=lambda: Response(stream_items(uow)))

    with pytest.raises(RuleViolationError, match=OUTSIDE) as caught:
        app.test_client().get("/")

    assert caught.value.where is not None
    assert caught.value.where.endswith("in stream_items")
    assert checked_out(app) == 0


def test_a_stream_with_its_context_reads_to_its_end_and_gives_back(
    app: Flask, uow: UnitOfWork, database: Database, without_collector: None
) -> None:
    """``stream_with_context`` pushes the context again; its second teardown takes back what the stream used."""
    add(database, "a", "b", "c")
    app.add_url_rule("/", view_func=lambda: Response(stream_with_context(stream_items(uow))))
    response = app.test_client().get("/", buffered=False)
    assert checked_out(app) == 1

    assert response.text == "abc"
    assert checked_out(app) == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_stream_that_the_client_leaves_gives_back(
    app: Flask, uow: UnitOfWork, database: Database, without_collector: None, method: str
) -> None:
    """Closed in the middle, or never begun, a stream leaves nothing checked out."""
    add(database, "a", "b", "c")
    app.add_url_rule("/", view_func=lambda: Response(stream_with_context(stream_items(uow))))

    app.test_client().open("/", method=method, buffered=False).close()

    assert checked_out(app) == 0


def test_a_stream_shows_the_objects_that_its_view_has_committed(
    app: Flask, uow: UnitOfWork, database: Database, without_collector: None
) -> None:
    """What the view's unit has loaded is still readable when its session has been taken back."""

    @app.get("/")
    @transactional
    def view() -> Response:
        items = [Item(name=name) for name in "abc"]
        uow.session.add_all(items)
        return Response(item.name for item in items)

    assert app.test_client().get("/").text == "abc"
    assert names(database) == ["a", "b", "c"]
    assert checked_out(app) == 0


# ---- what is still shown after a commit


def test_a_template_shows_what_was_committed_without_a_transaction(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """After the unit its objects keep their values, server-made ones too: nothing is sent, no connection is taken."""
    with app.app_context():
        with transactional():
            item = Item(name="shown")
            uow.session.add(item)
        sent = record_transactions(app, uow)
        with app.test_request_context():
            shown = render_template_string("{{ item.id }} {{ item.name }}", item=item)
        assert checked_out(app) == 0

    assert shown == "1 shown"
    assert sent == []


def test_the_next_unit_reads_fresh_rows(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """What another connection changed since is seen by the next unit of the same context, in the same objects."""
    with app.app_context():
        with transactional():
            item = Item(name="before")
            uow.session.add(item)
        database.execute("UPDATE item SET name = 'after'")
        assert item.name == "before"
        with transactional():
            assert item.name == "after"
            assert uow.session.get(Item, item.id) is item


def test_a_unit_reads_fresh_rows_in_a_transaction_that_it_meets(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """An object that was added before it has begun the transaction, in which nothing was sent yet."""
    add(database, "before")
    with app.app_context():
        with transactional():
            item = uow.session.scalars(sa.select(Item)).one()
        database.execute("UPDATE item SET name = 'after'")
        uow.session.add(Item(name="added"))
        assert uow.session().in_transaction()

        with transactional():
            assert item.name == "after"

    assert names(database) == ["added", "after"]


@pytest.mark.parametrize("is_read", [False, True])
def test_a_transaction_outside_of_units_reads_fresh_rows(
    app: Flask, uow: UnitOfWork, database: Database, is_read: bool
) -> None:
    """From its first statement on, whether that is a read or sends an object which had begun it when it was added."""
    add(database, "before")
    with app.app_context():
        with transactional():
            item = uow.session.scalars(sa.select(Item)).one()
        database.execute("UPDATE item SET name = 'after'")
        if is_read:
            uow.session.scalar(sa.select(1))
        else:
            uow.session.add(Item(name="added"))
            uow.session.flush()
        assert item.name == "after"
        uow.session.rollback()


def test_what_was_changed_before_the_next_unit_is_not_lost(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """A changed object keeps its change when the next transaction begins, and that commits it."""
    with app.app_context():
        with transactional():
            changed, other = Item(name="changed"), Item(name="other")
            uow.session.add_all([changed, other])
        changed.name = "changed by us"
        database.execute("UPDATE item SET name = 'other by them' WHERE name = 'other'")
        with transactional():
            assert changed.name == "changed by us"
            assert other.name == "other by them"

    assert names(database) == ["changed by us", "other by them"]


def test_a_rollback_shows_what_is_in_the_database(app: Flask, uow: UnitOfWork) -> None:
    """After a rollback the values that were not kept are gone from the objects."""
    with app.app_context():
        with transactional():
            item = Item(name="kept")
            uow.session.add(item)
        with transactional() as unit:
            item.name = "undone"
            uow.session.flush()
            unit.set_rollback_only()
        assert item.name == "kept"


def test_an_object_of_an_ended_context_stays_readable(app: Flask, uow: UnitOfWork) -> None:
    """It is detached, and keeps the values that it had."""
    with app.app_context(), transactional():
        item = Item(name="kept")
        uow.session.add(item)

    assert sa.inspect(item).detached
    assert item.name == "kept"
