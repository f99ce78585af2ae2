"""Spare sessions: which one serves another context, and that nobody can tell it from a new one."""

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import Session, object_session, sessionmaker

from flask_uow import UnitOfWork, current_unit, transactional
from tests.databases import Database, SQLiteDatabase
from tests.models import Item, names

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
HOLDERS: list[object] = []


@pytest.fixture(autouse=True)
def nobody_holds_anything() -> Any:
    yield
    HOLDERS.clear()


def number_of(uow: UnitOfWork) -> int:
    """SQLAlchemy's own number of the current session: by that, one can be told from another without holding it."""
    number: int = uow.session().hash_key
    return number


def number_in_context(app: Flask, use: Callable[[], object] = lambda: None, *, uow: UnitOfWork) -> int:
    """The number of a context's session, of which use is made."""
    with app.app_context():
        number = number_of(uow)
        use()
    return number


def write(uow: UnitOfWork, name: str) -> None:
    """Commit a row in a unit."""
    with transactional():
        uow.session.add(Item(name=name))


def test_a_session_that_nobody_holds_serves_the_next_context(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """After a unit that wrote, one that read, one that failed, and none."""

    def read() -> None:
        with transactional(read_only=True):
            assert uow.session.scalars(sa.select(Item.name)).all() == ["first"]

    def fail() -> None:
        with pytest.raises(ValueError, match="no"), transactional():
            uow.session.add(Item(name="lost"))
            uow.session.flush()
            raise ValueError("no")

    first = number_in_context(app, lambda: write(uow, "first"), uow=uow)
    others = {number_in_context(app, use, uow=uow) for use in (read, fail, lambda: None)}

    assert others == {first}
    assert names(database) == ["first"]


@pytest.mark.parametrize(
    "hold",
    [
        lambda session: session,
        weakref.ref,
        lambda session: session.execute,
        lambda session: session.query(Item),
        lambda session: current_unit._get_current_object(),  # type: ignore[attr-defined]
        lambda session: [threading.Thread(target=session.close)],
    ],
    ids=["session", "weak reference", "method", "query", "unit", "thread"],
)
def test_a_session_that_somebody_holds_serves_no_other(
    app: Flask, uow: UnitOfWork, hold: Callable[[Session], object]
) -> None:
    """Whoever has it has that one, after its context as well."""

    def keep() -> None:
        with transactional():
            HOLDERS.append(hold(uow.session()))

    first = number_in_context(app, keep, uow=uow)
    second = number_in_context(app, uow=uow)

    assert second != first


def change(session: Session, name: str) -> None:
    """Change an attribute of a session."""
    if name == "info":
        session.info["tenant"] = 7
    elif name == "listener":
        event.listen(session, "before_flush", lambda *arguments: None)
    elif name == "bind":
        session.bind_mapper(Item, session.get_bind())
    else:
        setattr(session, name, not getattr(session, name))


@pytest.mark.parametrize("name", ["autoflush", "expire_on_commit", "info", "listener", "bind"])
def test_a_session_that_was_changed_serves_no_other(app: Flask, uow: UnitOfWork, name: str) -> None:
    """The next context finds its session as the app has configured it."""
    first = number_in_context(app, lambda: change(uow.session(), name), uow=uow)

    with app.app_context():
        session = uow.session()
        found = (session.autoflush, session.expire_on_commit, dict(session.info), bool(session.dispatch.before_flush))
        second = session.hash_key

    assert found == (True, False, {}, False)
    assert second != first


def test_sessions_that_are_configured_anew(app: Flask, uow: UnitOfWork) -> None:
    """Options that come later hold for each session from then on."""
    first = number_in_context(app, uow=uow)

    uow.session.configure(autoflush=False, info={"tenant": 7})
    with app.app_context():
        found = (uow.session().autoflush, uow.session().info, number_of(uow))

    assert found[:2] == (False, {"tenant": 7})
    assert found[2] != first


def test_information_that_a_context_has_changed(app: Flask, uow: UnitOfWork) -> None:
    """Each context has what was configured."""
    uow.session.configure(info={"tenant": 7})

    number_in_context(app, lambda: uow.session().info.update(tenant=8), uow=uow)
    with app.app_context():
        found = dict(uow.session().info)

    assert found == {"tenant": 7}


def test_a_spare_has_nothing_of_the_context_before(app: Flask, uow: UnitOfWork) -> None:
    """No object, no transaction, no note of what it did; what is held of its objects is detached."""

    def leave_things_behind() -> None:
        HOLDERS.append(uow.session.scalars(sa.select(Item)).one())
        assert uow.session().in_transaction()

    first = number_in_context(app, lambda: write(uow, "kept"), uow=uow)
    second = number_in_context(app, leave_things_behind, uow=uow)
    with app.app_context():
        session = uow.session()
        left = (list(session), list(session.new), list(session.deleted), session.in_transaction())
        third = session.hash_key
        state = session._uow  # type: ignore[attr-defined]
        known = (state.wrote, state.error, state.inserted, state.links, state.told, state.last_commit)
        attached = object_session(HOLDERS[0])

    assert first == second == third
    assert left == ([], [], [], False)
    assert known == (False, None, [], [], 0.0, None)
    assert attached is None


def test_an_object_of_a_context_before_is_detached(app: Flask, uow: UnitOfWork) -> None:
    """Also where its session serves another context."""

    def keep() -> None:
        with transactional():
            HOLDERS.append(Item(name="kept"))
            uow.session.add(HOLDERS[0])

    first = number_in_context(app, keep, uow=uow)
    with app.app_context():
        second = number_of(uow)
        inspected = sa.inspect(HOLDERS[0])
        found = (inspected.detached, HOLDERS[0] in uow.session)

    assert second == first
    assert found == (True, False)


def test_a_session_that_leaves_its_context_is_named(app: Flask, uow: UnitOfWork) -> None:
    """It is nobody else's meanwhile, so that a leak is one, and not another request's transaction (UOW202)."""
    with app.app_context():
        HOLDERS.append(uow.session())
    with app.app_context():
        assert uow.session() is not HOLDERS[0]
        with pytest.warns(match="UOW202"):
            HOLDERS[0].execute(sa.text("SELECT 1"))  # type: ignore[attr-defined]


def test_sessions_of_threads(app: Flask, uow: UnitOfWork) -> None:
    """No two contexts have one session at the same time, however many there are."""
    in_use: set[int] = set()
    clashes: list[int] = []
    lock = threading.Lock()

    def serve() -> None:
        for turn in range(200):
            with app.app_context():
                number = number_of(uow)
                with lock:
                    clashes.extend([number] * (number in in_use))
                    in_use.add(number)
                if turn % 50 == 0:
                    uow.session.execute(sa.text("SELECT 1"))
                with lock:
                    in_use.remove(number)

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not clashes


def test_sessions_of_two_apps(app: Flask, uow: UnitOfWork, second_database: Database) -> None:
    """Each app's spares are bound to its own database."""
    other = Flask("other")
    other.config.update(SQLALCHEMY_DATABASE_URI=second_database.url, TESTING=True)
    uow.init_app(other)
    first = number_in_context(app, uow=uow)
    second = number_in_context(other, uow=uow)

    again = [(number_in_context(each, uow=uow)) for each in (app, other, app)]
    with other.app_context():
        bound_to = uow.session().get_bind()
        engine = uow.engine
    engine.dispose()

    assert again == [first, second, first]
    assert bound_to is engine


class OwnSession(Session):
    """A class of an app's own, which looks around when it is made."""

    made = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        OwnSession.made += 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnitOfWork(session_options={"class_": OwnSession}),
        lambda: UnitOfWork(sessionmaker=sessionmaker(class_=OwnSession)),
    ],
    ids=["class", "sessionmaker"],
)
def test_a_class_of_the_app_s_own_is_made_each_time(tmp_path: Any, make: Callable[[], UnitOfWork]) -> None:
    """What it does when it is made is done for each context."""
    app = Flask("own")
    app.config["SQLALCHEMY_DATABASE_URI"] = SQLiteDatabase(tmp_path / "own.sqlite").url
    uow = make()
    uow.init_app(app)
    before = OwnSession.made

    numbers = {number_in_context(app, uow=uow) for _ in range(3)}

    assert len(numbers) == 3
    assert OwnSession.made >= before + 3


def number_in_child(app: Flask, uow: UnitOfWork, before: Callable[[], object] = lambda: None) -> int:
    """The number of a context's session in a forked child.

    :param before: what the child does first.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before()
            os.write(write_end, b"%d" % number_in_context(app, uow=uow))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as told:
        return int(told.read())


@needs_fork
def test_a_child_has_none_of_its_parent_s(app: Flask, uow: UnitOfWork) -> None:
    """It makes sessions of its own."""
    first = number_in_context(app, uow=uow)
    assert number_in_context(app, uow=uow) == first

    assert number_in_child(app, uow) != first


@needs_fork
def test_a_child_spares_none_of_its_parent_s(app: Flask, uow: UnitOfWork) -> None:
    """Also where a context was open at the fork, and the collector's list has it no more, as in a preloading server."""
    context = app.app_context()
    context.push()
    first = number_of(uow)
    gc.freeze()

    in_child = number_in_child(app, uow, context.pop)
    gc.unfreeze()
    context.pop()

    assert in_child != first


def test_spares_are_no_more_than_the_contexts_that_were_open_at_once(app: Flask, uow: UnitOfWork) -> None:
    """A process does not gather them."""
    for _ in range(50):
        with app.app_context():
            number_of(uow)
            with app.app_context():
                number_of(uow)
    gc.collect()

    alive = [each for each in gc.get_objects() if isinstance(each, Session) and each.bind is not None]
    with app.app_context():
        engine = uow.engine

    assert len([each for each in alive if each.bind is engine]) == 2
