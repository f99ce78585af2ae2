"""Flask-SQLAlchemy: an app that has it adopts it in one line."""

import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import flask_sqlalchemy
import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm

from flask_uow import UnitOfWork, stats, testing, transactional
from flask_uow._state import state_of_app
from flask_uow.exceptions import RuleViolationError
from tests.conftest import POOLS_OF_THE_TEST
from tests.databases import Database

DEADLINE_S = 30.0


def test_its_models_queries_and_binds_work_in_units(database: Database, second_database: Database) -> None:
    """``db.Model``, ``Model.query``, ``db.paginate``, ``db.session.remove()`` and ``__bind_key__`` are as before."""

    class Base(orm.DeclarativeBase):
        pass

    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=database.url, SQLALCHEMY_BINDS={"remote": second_database.url})
    db = flask_sqlalchemy.SQLAlchemy(model_class=Base)
    uow = UnitOfWork(session=db.session)

    class Local(db.Model):  # type: ignore[name-defined, misc]
        id = sa.Column(sa.Integer, primary_key=True)

    class Remote(db.Model):  # type: ignore[name-defined, misc]
        __bind_key__ = "remote"
        id = sa.Column(sa.Integer, primary_key=True)

    db.init_app(app)
    uow.init_app(app)
    with app.app_context():
        db.create_all()
        with transactional():
            db.session.add_all([Local(id=1), Remote(id=2)])
        with transactional(read_only=True):
            assert db.paginate(sa.select(Local)).total == 1
            assert db.session.scalars(sa.select(Remote.id)).all() == [2]
        db.session.remove()
        engines = list(db.engines.values())

    assert database.rows("SELECT id FROM local") == [(1,)]
    assert second_database.rows("SELECT id FROM remote") == [(2,)]
    assert all(engine.pool.checkedout() == 0 for engine in engines if isinstance(engine.pool, sa.QueuePool))


def test_all_of_its_databases_are_asked(make_database: Callable[[str], Database], tmp_path: Path) -> None:
    """A unit that waits in a second one is seen to wait there, and its pool has the bind's name."""
    database, remote = make_database("psycopg2"), make_database("psycopg2")
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=database.url, SQLALCHEMY_BINDS={"remote": remote.url})
    app.config["UOW_STATS_DIR"] = str(tmp_path / "boards")
    db = flask_sqlalchemy.SQLAlchemy(app)
    UnitOfWork(app, session=db.session)
    lock = sa.text("SELECT pg_advisory_xact_lock(1)")

    def take() -> None:
        with app.app_context(), transactional(label="transfer"):
            db.session.execute(lock, bind_arguments={"bind": db.engines["remote"]})

    with ThreadPoolExecutor(1) as threads, closing(remote.connect()) as holder:
        holder.cursor().execute("SELECT pg_advisory_lock(1)")
        waiting = threads.submit(take)
        end = time.monotonic() + DEADLINE_S
        seen = stats.snapshot(app)
        while not (seen.troubles and any(worker.live and worker.pools for worker in seen.workers)):  # read one by one
            assert time.monotonic() < end, seen
            seen = stats.snapshot(app)
        holder.cursor().execute("SELECT pg_advisory_unlock(1)")
        waiting.result(DEADLINE_S)
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()

    assert [each.binds for each in seen.databases] == [("default",), ("remote",)]
    (trouble,), (live,), (pool,) = seen.troubles, seen.workers[0].live, seen.workers[0].pools
    assert (trouble.kind, trouble.label, live.server_state) == ("blocked", "transfer", "active")
    assert (pool.bind, seen.notes) == ("remote", ())


def test_a_remove_inside_a_unit_is_refused(database: Database) -> None:
    """It would close the unit's session under it; the session stays the registry's."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    db = flask_sqlalchemy.SQLAlchemy(app)
    UnitOfWork(app, session=db.session)

    with app.app_context(), transactional(read_only=True) as unit:
        with pytest.raises(RuleViolationError, match=r"\[UOW102\] session\.close\(\) was called inside"):
            db.session.remove()
        assert db.session() is unit.session


def test_lost_writes_are_named_in_a_session_that_no_unit_has_met(database: Database) -> None:
    """UOW103 also finds the view that was never decorated."""
    database.execute("CREATE TABLE t (x INTEGER)")
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    db = flask_sqlalchemy.SQLAlchemy(app)
    UnitOfWork(app, session=db.session)

    @app.get("/")
    def view() -> str:
        db.session.execute(sa.text("INSERT INTO t VALUES (1)"))
        return "done"

    with testing.record(app) as seen:
        assert app.test_client().get("/").text == "done"

    assert seen.codes == ["UOW103"]
    assert str(seen.violations[0].where).endswith("in view")


def test_one_database_serves_two_apps(database: Database, second_database: Database) -> None:
    """As many factories have it: the units of each app are on its own database."""
    db = flask_sqlalchemy.SQLAlchemy()
    uow = UnitOfWork(session=db.session)
    apps = []
    for owner in (database, second_database):
        owner.execute("CREATE TABLE t (x INTEGER)")
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = owner.url
        db.init_app(app)
        uow.init_app(app)
        with app.app_context(), transactional():
            db.session.execute(sa.text("INSERT INTO t VALUES (1)"))
        apps.append(app)
    with apps[1].app_context():
        named = [state_of_app(app).named_engines() for app in apps]

    assert [list(engines) for engines in named] == [[], ["default"]]
    assert database.rows("SELECT x FROM t") == second_database.rows("SELECT x FROM t") == [(1,)]


@pytest.mark.parametrize("extension", ["of its own", "shared"])
def test_an_app_of_a_factory_that_is_dropped_is_forgotten(database: Database, extension: str) -> None:
    """While ``db`` lives on, and with it what ``db`` keeps for each app."""
    database.execute("CREATE TABLE t (x INTEGER)")
    db = flask_sqlalchemy.SQLAlchemy()
    shared = UnitOfWork(session=db.session)

    def use_and_drop(number: int) -> weakref.ref[Flask]:
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = database.url
        db.init_app(app)
        uow = UnitOfWork(session=db.session) if extension == "of its own" else shared
        uow.init_app(app)
        with app.app_context(), transactional():
            db.session.execute(sa.text("INSERT INTO t VALUES (:x)"), {"x": number})
        return weakref.ref(app)

    dropped = [use_and_drop(number) for number in range(3)]
    gc.collect()

    assert [app() for app in dropped] == [None] * 3
    assert database.rows("SELECT x FROM t ORDER BY x") == [(0,), (1,), (2,)]


def test_sessions_that_the_app_removes_are_closed(database: Database) -> None:
    """Between two parts of a long job, say; what they have sent outside of units is counted as well."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    db = flask_sqlalchemy.SQLAlchemy(app)
    UnitOfWork(app, session=db.session)
    with app.app_context():
        for _ in range(3):
            with transactional():
                db.session.execute(sa.text("SELECT 1"))
            db.session.execute(sa.text("SELECT 1"))
            db.session.remove()
    gc.collect()

    counts = stats.read_boards(app).totals
    assert (counts.sessions.opened, counts.sessions.closed) == (3, 3)
    assert counts.statements == 6


def make_sharer(engine: sa.Engine) -> tuple[Flask, orm.scoped_session[orm.Session]]:
    """An app on an engine that others use as well."""
    app, scoped = Flask(__name__), orm.scoped_session(orm.sessionmaker(engine))
    UnitOfWork(app, session=scoped)
    app.teardown_appcontext(lambda exception: scoped.remove())
    return app, scoped


def told_pools(app: Flask) -> list[list[tuple[str, int | None]]]:
    """The pools of each worker of an app, and how many of their connections are out."""
    return [[(pool.bind, pool.checked_out) for pool in worker.pools] for worker in stats.read_boards(app).workers]


@pytest.mark.parametrize("pool", ["emptied", "as it was"])
def test_an_engine_that_outlives_its_app_is_the_next_ones(database: Database, pool: str) -> None:
    """Its pool is on the board of the app that uses it now, and nothing keeps the board of the other."""
    engine = sa.create_engine(database.url)

    def use_and_drop() -> weakref.ref[Flask]:
        app, scoped = make_sharer(engine)
        with app.app_context(), transactional():
            scoped.scalar(sa.select(1))
        assert told_pools(app) == [[("default", 0)]]
        return weakref.ref(app)

    find_dropped = use_and_drop()
    gc.collect()
    assert find_dropped() is None
    if pool == "emptied":
        engine.dispose()
    app, scoped = make_sharer(engine)
    with app.app_context():
        with transactional():
            scoped.scalar(sa.select(1))
            with engine.connect():
                assert told_pools(app) == [[("default", 2)]]
        assert told_pools(app) == [[("default", 0)]]
    engine.dispose()


def test_two_apps_share_an_engine(database: Database) -> None:
    """A connection is on the board of the app that has it, whichever had it before."""
    engine = sa.create_engine(database.url)
    apps = [make_sharer(engine) for _ in range(2)]

    def told(app: Flask) -> tuple[str, bool]:
        ((live, worker),) = [(live, worker) for worker in stats.read_boards(app).workers for live in worker.live]
        assert [(pool.bind, pool.checked_out) for pool in worker.pools] == [("default", 1)]
        assert sum(pools.count(("default", 1)) for pools in told_pools(app)) == 1
        return live.kind, bool(live.backend_pids)

    for app, scoped in apps * 2:
        with app.app_context():
            with transactional():
                scoped.scalar(sa.select(1))
                assert told(app) == ("unit", database.is_postgresql)
            scoped.scalar(sa.select(1))
            assert told(app) == ("session", database.is_postgresql)
    assert told_pools(app) == [[("default", 0)]] * 2
    engine.dispose()


def test_the_names_of_engines_that_are_gone_are_others(database: Database) -> None:
    """A board has room for sixteen pools, and an engine may be made for each of a thousand customers, one by one."""
    app = Flask(__name__)
    scoped = orm.scoped_session(orm.sessionmaker())
    UnitOfWork(app, session=scoped)
    for _ in range(20):
        engine = sa.create_engine(database.url)
        with app.app_context(), scoped(bind=engine), transactional():
            scoped.scalar(sa.select(1))
        scoped.remove()
        engine.dispose()
        del engine
        POOLS_OF_THE_TEST.clear()
        gc.collect()

    (worker,) = stats.read_boards(app).workers
    assert [pool.bind for pool in worker.pools] == ["default"]
    assert worker.untold == {}


def test_each_app_of_a_factory_may_have_an_extension_of_its_own(database: Database, second_database: Database) -> None:
    """Also one that has none uses the same ``db`` as before; lost writes are told to the app whose they are."""
    db = flask_sqlalchemy.SQLAlchemy()

    def create_app(where: Database, *, is_served: bool = True) -> Flask:
        where.execute("CREATE TABLE IF NOT EXISTS t (x INTEGER)")
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = where.url
        db.init_app(app)
        if is_served:
            UnitOfWork(app, session=db.session)

        @app.post("/<int:number>")
        @transactional
        def add(number: int) -> str:
            db.session.execute(sa.text("INSERT INTO t VALUES (:x)"), {"x": number})
            return "added"

        @app.post("/lose")
        def lose() -> str:
            db.session.execute(sa.text("INSERT INTO t VALUES (0)"))
            return "lost"

        return app

    first, second, bare = create_app(database), create_app(second_database), create_app(database, is_served=False)
    with testing.record(first) as seen_by_first, testing.record(second) as seen_by_second:
        for app, number in ((first, 1), (second, 2), (first, 3)):
            assert app.test_client().post(f"/{number}").status_code == 200
        assert bare.test_client().post("/lose").status_code == 200
        assert second.test_client().post("/lose").status_code == 200
    with bare.app_context():
        db.session.execute(sa.text("INSERT INTO t VALUES (4)"))
        db.session.commit()

    assert database.rows("SELECT x FROM t ORDER BY x") == [(1,), (3,), (4,)]
    assert second_database.rows("SELECT x FROM t") == [(2,)]
    assert (seen_by_first.codes, seen_by_second.codes) == ([], ["UOW103"])
    for app in (first, second, bare):
        with app.app_context():
            db.engine.dispose()
