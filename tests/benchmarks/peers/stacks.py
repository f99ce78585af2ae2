"""How each stack makes a request of a view: one function for each, as its own documentation tells.

A peer that is not installed is left out, and named. Nothing here knows how ours does what it does.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa
from flask import Flask, g
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as Lite
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import UnitOfWork, transactional
from flask_uow.exceptions import ConfigurationError
from tests.benchmarks.peers.views import ISOLATION, TIMEOUT_S, VIEWS, AnySession, View, Work, prepare

# A connection for each thread: one that is more than a pool keeps is made anew each time.
POOL_SIZE = 8
PRE_PING = {"pool_pre_ping": True}
IN_MEMORY = "sqlite://"
RIDE = "UOW_RIDE"
TXBOUND = "transactional-boundary"

HAND = "by hand"
HAND_PING = "by hand, pool_pre_ping"
HAND_TUNED = "by hand, tuned"
HAND_3 = "by hand, psycopg 3"
FLASK_SQLALCHEMY = "Flask-SQLAlchemy"
FLASK_SQLALCHEMY_PING = "Flask-SQLAlchemy, pool_pre_ping"
FLASK_SQLALCHEMY_PING_3 = "Flask-SQLAlchemy, pool_pre_ping, psycopg 3"
LITE = "Flask-SQLAlchemy-Lite"
OURS = "flask_uow"
OURS_3 = "flask_uow, psycopg 3"
NOT_RIDING = ", UOW_RIDE off"

Options = dict[str, Any]
Function = Callable[[], Any]


@dataclass(frozen=True)
class Served:
    """An app, and the engines behind it."""

    app: Flask
    engines: list[sa.Engine]


@dataclass(frozen=True)
class Stack:
    """A way to write the views.

    :param name: as the tables say it.
    :param serve: makes the app, from a database's URL and options of its engine.
    :param options: of its engine.
    :param driver: that it uses on PostgreSQL.
    :param config: keys of its app.
    """

    name: str
    serve: Callable[[str, Options, Options], Served]
    options: Options
    driver: str = "psycopg2"
    config: Options | None = None


@contextlib.contextmanager
def served(stack: Stack, url: str) -> Iterator[Flask]:
    """Serve the views.

    :param url: of the database, without a driver if it is PostgreSQL.
    """
    options = dict(stack.options)
    if url != IN_MEMORY:
        url = sa.make_url(url).set(drivername=f"postgresql+{stack.driver}").render_as_string(hide_password=False)
        options["pool_size"] = POOL_SIZE
    server = stack.serve(url, options, stack.config or {})
    for engine in server.engines:
        prepare(engine)
    try:
        yield server.app
    finally:
        for engine in server.engines:
            engine.dispose()


def _make_strict(session: AnySession) -> None:
    session.connection(execution_options={"isolation_level": ISOLATION})
    session.execute(sa.text(f"SET LOCAL statement_timeout = {TIMEOUT_S * 1000}"))


def _answer(view: View, result: Any) -> Any:
    return view.render(result) if view.render else result


def _in_savepoint(session: AnySession, work: Work) -> object:
    with session.begin_nested():
        return work()


def _app(make_function: Callable[[View], Function], **config: Any) -> Flask:
    app = Flask("peers")
    app.config.update(config)
    for name, view in VIEWS.items():
        app.add_url_rule(f"/{name}", name, make_function(view))
    return app


def _by_hand(url: str, options: Options, _: Options) -> Served:
    """Write ``with Session(engine) as session, session.begin()``."""
    engine = sa.create_engine(url, **options)

    def make(view: View) -> Function:
        def function() -> Any:
            with Session(engine) as session:
                with session.begin():
                    if view.is_strict:
                        _make_strict(session)
                    result = view.body(session, _in_savepoint)
                return _answer(view, result)

        return function

    return Served(_app(make), [engine])


def _by_hand_tuned(url: str, options: Options, _: Options) -> Served:
    """Read without transactions, and render what was read before COMMIT."""
    engine = sa.create_engine(url, **options)
    # An engine of its own: to switch a pooled connection to AUTOCOMMIT and back can cost a round trip.
    reader = sa.create_engine(url, isolation_level="AUTOCOMMIT", **options)

    def make(view: View) -> Function:
        def read() -> Any:
            with Session(reader) as session:
                return _answer(view, view.body(session, _in_savepoint))

        def function() -> Any:
            with Session(engine, expire_on_commit=False) as session:
                with session.begin():
                    if view.is_strict:
                        _make_strict(session)
                    result = view.body(session, _in_savepoint)
                return _answer(view, result)

        return read if view.is_read_only else function

    return Served(_app(make), [engine, reader])


def _committing(view: View, get_session: Callable[[], AnySession]) -> Function:
    """Call ``db.session.commit()`` at the end, as both of these extensions have it."""

    def function() -> Any:
        session = get_session()
        if view.is_strict:
            _make_strict(session)
        result = view.body(session, _in_savepoint)
        session.commit()
        return _answer(view, result)

    return function


def _flask_sqlalchemy(url: str, options: Options, _: Options) -> Served:
    db = SQLAlchemy()
    app = _app(lambda view: _committing(view, lambda: db.session), SQLALCHEMY_DATABASE_URI=url)
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    with app.app_context():
        return Served(app, [db.engine])


def _flask_sqlalchemy_lite(url: str, options: Options, _: Options) -> Served:
    db = Lite()
    app = _app(lambda view: _committing(view, lambda: db.session))
    app.config["SQLALCHEMY_ENGINES"] = {"default": {"url": url, **options}}
    db.init_app(app)
    with app.app_context():
        return Served(app, [db.engine])


def _txbound(url: str, options: Options, _: Options) -> Served:
    """Give each request a guarded session, and decorate what gets it."""
    txbound = importlib.import_module("txbound")
    engine = sa.create_engine(url, **options)
    make_session = sessionmaker(engine)

    def nest(session: AnySession, work: Work) -> object:
        @txbound.transactional  # type: ignore[untyped-decorator]
        def inner(_: Session) -> object:
            return work()

        result: object = inner(session)
        return result

    def make(view: View) -> Function:
        @txbound.transactional(read_only=view.is_read_only)  # type: ignore[untyped-decorator]
        def run(session: Session) -> Any:
            if view.is_strict:
                _make_strict(session)
            return view.body(session, nest)

        return lambda: _answer(view, run(g.session))

    app = _app(make)

    @app.before_request
    def open_session() -> None:
        g.session = make_session()
        txbound.install_boundary_guard(g.session)

    @app.teardown_request
    def close_session(_: BaseException | None) -> None:
        g.session.close()

    return Served(app, [engine])


def _ours(url: str, options: Options, config: Options) -> Served:
    """Decorate the view, or what it calls before it renders."""
    uow = UnitOfWork()

    def nest(_: AnySession, work: Work) -> object:
        with transactional():
            return work()

    def make(view: View) -> Function:
        strict: Options = {"isolation": ISOLATION, "timeout": TIMEOUT_S} if view.is_strict else {}

        @transactional(read_only=view.is_read_only, **strict)
        def function() -> Any:
            return view.body(uow.session, nest)

        return (lambda: _answer(view, function())) if view.render else function

    app = _app(make, SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS=options, **config)
    uow.init_app(app)
    with app.app_context():
        return Served(app, [uow.engine])


def _can_ride() -> bool:
    app = Flask("peers")
    app.config.update({"SQLALCHEMY_DATABASE_URI": IN_MEMORY, RIDE: False})
    try:
        UnitOfWork(app)
    except ConfigurationError:
        return False
    return True


def _our_stacks() -> list[Stack]:
    if not _can_ride():
        return [Stack(OURS, _ours, {}), Stack(OURS_3, _ours, {}, "psycopg")]
    return [
        Stack(name + (NOT_RIDING if not rides else ""), _ours, {}, driver, {RIDE: rides})
        for rides in (False, True)
        for name, driver in ((OURS, "psycopg2"), (OURS_3, "psycopg"))
    ]


def make_stacks() -> tuple[list[Stack], list[str]]:
    """Return the stacks that can be measured here, and the names of the packages that are missing for others."""
    stacks = [
        Stack(HAND, _by_hand, {}),
        Stack(HAND_PING, _by_hand, PRE_PING),
        Stack(HAND_TUNED, _by_hand_tuned, {}),
        Stack(HAND_3, _by_hand, {}, "psycopg"),
        Stack(FLASK_SQLALCHEMY, _flask_sqlalchemy, {}),
        Stack(FLASK_SQLALCHEMY_PING, _flask_sqlalchemy, PRE_PING),
        Stack(FLASK_SQLALCHEMY_PING_3, _flask_sqlalchemy, PRE_PING, "psycopg"),
        Stack(LITE, _flask_sqlalchemy_lite, {}),
    ]
    if not find_spec("txbound"):
        return [*stacks, *_our_stacks()], [TXBOUND]
    return [*stacks, Stack("txbound", _txbound, {}), *_our_stacks()], []
