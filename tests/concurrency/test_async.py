"""``async def`` views: their event loop runs in a thread of its own, and works for the thread that waits for it."""

import asyncio
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, Response, g
from flask.ctx import AppContext
from flask.globals import app_ctx
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, current_unit, stats, transactional
from tests.databases import Database
from tests.models import Item, checked_out, make_app, names

DEADLINE_S = 15.0


@pytest.fixture(autouse=True)
def no_collection(without_collector: None) -> None:
    """Nothing here is given back by the garbage collector."""


def test_an_object_that_was_loaded_before_the_view_is_used_in_it(
    app: Flask, uow: UnitOfWork, database: Database
) -> None:
    """``before_request``, an ``async def`` view and ``after_request`` work on one session."""
    database.execute("INSERT INTO item (name) VALUES ('loaded')")
    sessions: list[Session] = []
    threads: set[int] = set()

    @app.before_request
    def load() -> None:
        g.item = uow.session.scalars(sa.select(Item)).one()
        sessions.append(uow.session())
        threads.add(threading.get_ident())

    @app.get("/")
    @transactional
    async def view() -> str:
        sessions.append(uow.session())
        threads.add(threading.get_ident())
        g.item.name = "changed"
        uow.session.add(g.item)
        await asyncio.sleep(0)
        return "ok"

    assert app.test_client().get("/").text == "ok"
    assert len(threads) == 2
    assert sessions[0] is sessions[1]
    assert names(database) == ["changed"]
    assert checked_out(app) == 0


def test_a_unit_in_an_async_view_is_shown_inside_that_of_its_request(uow: UnitOfWork, database: Database) -> None:
    """They are one thing, although the one runs in the event loop's thread and the other waits for it."""
    app = make_app(database, uow, UOW_ATOMIC_REQUESTS=True)
    stacks: list[list[tuple[str, int]]] = []

    @app.get("/")
    async def view() -> str:
        with transactional(label="inner"):
            (worker,) = stats.read_boards(app).workers
            stacks.extend([(unit.label, unit.depth) for unit in stack] for stack in worker.stacks)
            threads = {unit.thread_id for unit in worker.live}
        return str(len(threads))

    assert app.test_client().get("/").text == "2"
    assert stacks == [[("GET /", 1), ("inner", 2)]]


def test_the_status_of_an_async_view_vetoes_its_commit(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """What it returns is looked at as that of any other view."""

    @app.get("/<int:status>")
    @transactional(rollback_on_status=400)
    async def view(status: int) -> tuple[str, int]:
        uow.session.add(Item(name=f"{status}"))
        return "answer", status

    assert [app.test_client().get(f"/{status}").status_code for status in (422, 201)] == [422, 201]
    assert names(database) == ["201"]


def test_a_context_of_the_apps_own_kind_is_known_by_its_thread_too(database: Database) -> None:
    """An app that makes contexts of its own class keeps it, and its first use may be in the event loop's thread."""

    class OwnContext(AppContext):
        pass

    class OwnFlask(Flask):
        def app_context(self) -> AppContext:
            return OwnContext(self)

        def request_context(self, environ: Any) -> Any:
            context: Any = super().request_context(environ)
            if isinstance(context, AppContext):  # from Flask 3.2 on
                context.__class__ = OwnContext
            return context

    uow = UnitOfWork()
    app = OwnFlask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    uow.init_app(app)
    sessions: list[Session] = []

    @app.get("/")
    async def view() -> str:
        sessions.append(uow.session())
        return type(app_ctx._get_current_object()).__name__  # type: ignore[attr-defined]

    @app.after_request
    def after(response: Response) -> Response:
        sessions.append(uow.session())
        return response

    assert app.test_client().get("/").text == "OwnContext"
    assert sessions[0] is sessions[1]


def test_many_async_requests_leave_nothing_behind(app: Flask, uow: UnitOfWork) -> None:
    """Each request's connection is back when it has ended, although each had a thread of its own that is gone."""

    @app.get("/")
    async def view() -> str:
        return str(uow.session.scalar(sa.text("SELECT 1")))

    client = app.test_client()
    for _ in range(20):
        assert client.get("/").text == "1"
        assert checked_out(app) == 0
    with app.app_context():
        assert isinstance(uow.engine.pool, sa.QueuePool)
        assert uow.engine.pool.checkedin() == 1


def test_an_async_unit_ends_like_any_other(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Commit, rollback and savepoints in coroutines; what they await belongs to their unit."""

    @transactional
    async def add(name: str) -> int:
        await asyncio.sleep(0)
        uow.session.add(Item(name=name))
        uow.session.flush()
        if name == "bad":
            raise ValueError(name)
        return current_unit.depth

    @app.get("/<last>")
    @transactional
    async def view(last: str) -> str:
        depth = await add("good")
        with pytest.raises(ValueError, match="bad"):
            await add("bad")
        await add(last)
        return str(depth)

    client = app.test_client()
    with pytest.raises(ValueError, match="bad"):
        client.get("/bad")
    assert names(database) == []
    assert client.get("/better").text == "2"
    assert names(database) == ["better", "good"]
    assert checked_out(app) == 0


def test_a_thread_of_a_coroutine_has_a_session_of_its_own(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """``to_thread`` runs under the same context at the same time, and shares neither session nor unit."""

    def look() -> tuple[Session, list[str], bool]:
        return uow.session(), list(uow.session.scalars(sa.select(Item.name))), bool(current_unit)

    looked: list[tuple[Session, list[str], bool]] = []
    seen: list[Session] = []

    @app.get("/")
    @transactional(read_only=not database.is_postgresql)
    async def view() -> str:
        seen.append(uow.session())
        if database.is_postgresql:
            uow.session.add(Item(name="not committed"))
            uow.session.flush()
        looked.extend(await asyncio.gather(asyncio.to_thread(look), asyncio.to_thread(look)))
        current_unit.set_rollback_only()
        return "ok"

    assert app.test_client().get("/").text == "ok"
    assert all(session is not seen[0] for session, _, _ in looked)
    assert [(found, has_unit) for _, found, has_unit in looked] == [([], False)] * 2
    assert checked_out(app) == 0, "The threads' sessions belong to the context, and end with it."


def test_threads_of_one_coroutine_work_at_the_same_time(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Two threads under one context are each in a transaction of their own when they meet."""
    barrier = threading.Barrier(2)

    def work() -> int:
        uow.session.execute(sa.text("SELECT 1"))
        barrier.wait(DEADLINE_S)
        return id(uow.session())

    @app.get("/")
    async def view() -> str:
        first, second = await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))
        return "shared" if first == second else "apart"

    assert app.test_client().get("/").text == "apart"
    assert checked_out(app) == 0


def test_a_task_works_in_the_session_of_its_view(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """Tasks of one loop take turns in one thread: they see what the view has flushed."""

    async def look() -> list[str]:
        return list(uow.session.scalars(sa.select(Item.name)))

    @app.get("/")
    @transactional
    async def view() -> list[str]:
        uow.session.add(Item(name="flushed"))
        uow.session.flush()
        return await asyncio.create_task(look())

    assert app.test_client().get("/").json == ["flushed"]
    assert checked_out(app) == 0


def test_an_async_view_that_fails_gives_back(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """As a plain one does, with and without a unit."""

    @app.get("/<kind>")
    async def view(kind: str) -> str:
        if kind == "unit":
            with transactional():
                uow.session.add(Item(name="lost"))
                uow.session.flush()
                raise ValueError(kind)
        uow.session.execute(sa.text("SELECT 1"))
        raise ValueError(kind)

    for kind in ("unit", "plain"):
        with pytest.raises(ValueError, match=kind):
            app.test_client().get(f"/{kind}")
        assert checked_out(app) == 0
    assert names(database) == []


def test_a_context_that_another_thread_has_made_is_at_home_where_it_is_pushed(app: Flask, uow: UnitOfWork) -> None:
    """A loop works for the thread that has pushed the context, whichever thread has made it."""
    context = app.app_context()
    sessions: list[Session] = []

    def work() -> None:
        async def use() -> None:
            sessions.append(uow.session())

        with context:
            sessions.append(uow.session())
            asyncio.run(use())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE_S)

    assert len(sessions) == 2
    assert sessions[0] is sessions[1]
