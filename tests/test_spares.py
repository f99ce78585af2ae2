"""Spare dispatches: which one serves another session, and that no session hears of another one's listeners."""

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import Session, object_session, sessionmaker

from flask_uow import UnitOfWork, current_unit, transactional
from flask_uow._spares import NotingDispatch
from flask_uow._state import STATE_KEY
from tests.models import Item

HOLDERS: list[Any] = []
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def nobody_holds_anything() -> Iterator[None]:
    """Let go at the end."""
    yield
    HOLDERS.clear()


def spares(app: Flask) -> int:
    """How many dispatches wait for a session."""
    return sum(map(len, app.extensions[STATE_KEY].spares._spares.values()))


def write(uow: UnitOfWork) -> None:
    """Commit a row in a unit."""
    with transactional():
        uow.session.add(Item(name=f"written {next(NUMBERS)}"))


def in_context(app: Flask, use: Callable[[], object]) -> None:
    """Make use of a context."""
    with app.app_context():
        use()


def heard_by_a_new_session(app: Flask, uow: UnitOfWork) -> list[object]:
    """Who hears of a flush in a context that comes now, besides the class's listeners."""
    with app.app_context():
        heard: list[object] = list(uow.session().dispatch.before_flush)
        write(uow)
    return heard


def test_a_dispatch_that_is_nobodys_serves_the_next_session(app: Flask, uow: UnitOfWork) -> None:
    """After a unit that wrote, one that failed, and none; each context's session is a new one."""
    numbers = []

    def fail() -> None:
        with pytest.raises(ValueError, match="no"), transactional():
            uow.session.add(Item(name="lost"))
            uow.session.flush()
            raise ValueError("no")

    uses: list[Callable[[], object]] = [lambda: write(uow), fail, uow.session]
    for use in uses:
        with app.app_context():
            numbers.append(uow.session().hash_key)
            assert spares(app) == 0
            assert isinstance(uow.session().dispatch, NotingDispatch)
            use()
        assert spares(app) == 1

    assert len(set(numbers)) == 3


@pytest.mark.parametrize(
    "hold",
    [
        lambda session: session,
        lambda session: session.dispatch,
        lambda session: session.execute,
        lambda session: session.query(Item),
        lambda session: current_unit._get_current_object(),  # type: ignore[attr-defined]
        lambda session: [threading.Thread(target=session.close)],
    ],
    ids=["session", "dispatch", "method", "query", "unit", "thread"],
)
def test_a_dispatch_that_somebody_has_serves_no_other(
    app: Flask, uow: UnitOfWork, hold: Callable[[Session], object]
) -> None:
    """Who holds a session may still listen to it."""

    def keep() -> None:
        with transactional():
            HOLDERS.append(hold(uow.session()))

    in_context(app, keep)

    assert spares(app) == 0


def test_a_session_that_is_held_is_listened_to_alone(app: Flask, uow: UnitOfWork) -> None:
    """Also when its context is over, and others have come."""
    in_context(app, lambda: HOLDERS.append(uow.session()))
    in_context(app, lambda: write(uow))
    heard: list[object] = []

    event.listen(HOLDERS[0], "before_flush", lambda *arguments: heard.append(arguments))

    assert heard_by_a_new_session(app, uow) == []
    assert heard == []


@pytest.mark.parametrize("is_removed", [False, True], ids=["kept", "removed"])
def test_what_listens_to_a_session_hears_no_other(app: Flask, uow: UnitOfWork, is_removed: bool) -> None:
    """The dispatch of such a session is no spare, and one that comes later knows nothing of it."""
    heard: list[object] = []

    def listener(*arguments: object) -> None:
        heard.append(arguments)

    def listen() -> None:
        session = uow.session()
        event.listen(session, "before_flush", listener)
        write(uow)
        if is_removed:
            event.remove(session, "before_flush", listener)

    in_context(app, listen)
    gc.collect()

    assert spares(app) == 0
    assert len(heard) == 1
    assert heard_by_a_new_session(app, uow) == []
    assert len(heard) == 1


def test_a_dispatch_that_has_a_listener_is_not_kept(app: Flask, uow: UnitOfWork) -> None:
    """Nor one that had one, nor what is none of ours."""
    with app.app_context():
        session, kept = uow.session(), app.extensions[STATE_KEY].spares
        event.listen(session, "before_flush", print)
        kept.keep(session.dispatch)
        event.remove(session, "before_flush", print)
        kept.keep(session.dispatch)
        kept.keep(Session().dispatch)
        kept.keep(None)

    assert spares(app) == 0


def test_what_listens_to_all_sessions_hears_those_with_spares(app: Flask, uow: UnitOfWork) -> None:
    """Also where it came when the dispatch had found all there was."""
    in_context(app, lambda: write(uow))
    assert spares(app) == 1
    heard: list[object] = []

    def listener(session: Session, *arguments: object) -> None:
        heard.append(session.hash_key)

    event.listen(uow.session, "before_flush", listener)
    try:
        in_context(app, lambda: write(uow))
    finally:
        event.remove(uow.session, "before_flush", listener)
    in_context(app, lambda: write(uow))

    assert len(heard) == 1


def test_an_object_of_a_context_before_is_no_other_sessions(app: Flask, uow: UnitOfWork) -> None:
    """Whatever became of it there: read, deleted and flushed, never flushed."""

    def keep() -> None:
        HOLDERS.extend(uow.session.scalars(sa.select(Item).order_by(Item.id)))
        HOLDERS.append(Item(name="never flushed"))
        uow.session.delete(HOLDERS[0])
        uow.session.flush()
        uow.session.add(HOLDERS[-1])

    in_context(app, lambda: write(uow))
    in_context(app, lambda: write(uow))
    in_context(app, keep)
    with app.app_context():
        found = [(object_session(entity) is uow.session(), entity in uow.session) for entity in HOLDERS]

    assert found == [(False, False)] * 3


def test_sessions_of_two_apps(app: Flask, uow: UnitOfWork) -> None:
    """Each app keeps its own."""
    other = Flask("other")
    other.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    uow.init_app(other)

    in_context(app, uow.session)
    in_context(other, uow.session)

    assert (spares(app), spares(other)) == (1, 1)


class OwnSession(Session):
    """A class of an app's own."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnitOfWork(session_options={"class_": OwnSession}),
        lambda: UnitOfWork(sessionmaker=sessionmaker(sa.create_engine("sqlite://"), class_=OwnSession)),
    ],
    ids=["class", "sessionmaker"],
)
def test_sessions_of_a_class_of_the_apps_own(make: Callable[[], UnitOfWork]) -> None:
    """What listens to the class hears each of its sessions once."""
    app = Flask("own")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    uow = make()
    uow.init_app(app)
    heard: list[object] = []

    def listener(session: Session, *arguments: object) -> None:
        heard.append(session.hash_key)

    in_context(app, uow.session.begin)
    event.listen(OwnSession, "after_begin", listener)
    try:
        for _ in range(3):
            in_context(app, lambda: uow.session.execute(sa.text("SELECT 1")))
    finally:
        event.remove(OwnSession, "after_begin", listener)

    assert len(heard) == len(set(heard)) == 3
    assert spares(app) == 1


def test_spares_are_no_more_than_the_sessions_that_were_open_at_once(app: Flask, uow: UnitOfWork) -> None:
    """A process does not gather them, whatever its threads do."""

    def serve() -> None:
        for _ in range(100):
            with app.app_context():
                uow.session.execute(sa.text("SELECT 1"))
                with app.app_context():
                    uow.session()

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 2 <= spares(app) <= 8
