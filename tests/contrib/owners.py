"""Libraries that own sessions and engines, each with an app that has adopted them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flask_sqlalchemy
import flask_sqlalchemy_lite
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork
from tests.databases import Database
from tests.models import create_tables


@dataclass(frozen=True)
class Owned:
    """An app whose sessions are another library's.

    :ivar session: how the app's own code reaches the current session.
    :ivar engine: the owner's engine, in a context.
    """

    app: Flask
    uow: UnitOfWork
    session: Callable[[], Any]
    engine: Callable[[], sa.Engine]

    def checked_out(self) -> int:
        """Return how many of the owner's connections are not in its pool."""
        with self.app.app_context():
            pool = self.engine().pool
        assert isinstance(pool, sa.QueuePool)
        return pool.checkedout()


def own_flask_sqlalchemy(database: Database, **config: Any) -> Owned:
    """Flask-SQLAlchemy: a ``scoped_session`` for each app context."""
    app = make_app(database, config)
    db = flask_sqlalchemy.SQLAlchemy(app)
    return Owned(app, UnitOfWork(app, session=db.session), db.session, lambda: db.engine)


def own_flask_sqlalchemy_lite(database: Database, **config: Any) -> Owned:
    """Flask-SQLAlchemy-Lite: a session in ``flask.g``, behind a property."""
    app = make_app(database, {"SQLALCHEMY_ENGINES": {"default": database.url}} | config)
    db = flask_sqlalchemy_lite.SQLAlchemy(app)
    return Owned(app, UnitOfWork(app, session=lambda: db.session), lambda: db.session, lambda: db.engine)


def own_scoped_session(database: Database, **config: Any) -> Owned:
    """A ``scoped_session`` of the app's own, one session for each thread."""
    app = make_app(database, config)
    engine = sa.create_engine(database.url)
    scoped: orm.scoped_session[Session] = orm.scoped_session(orm.sessionmaker(engine))

    @app.teardown_appcontext
    def remove(exception: BaseException | None) -> None:
        scoped.remove()

    return Owned(app, UnitOfWork(app, session=scoped), scoped, lambda: engine)


OWNERS: dict[str, Callable[..., Owned]] = {
    "Flask-SQLAlchemy": own_flask_sqlalchemy,
    "Flask-SQLAlchemy-Lite": own_flask_sqlalchemy_lite,
    "scoped_session": own_scoped_session,
}


def make_app(database: Database, config: dict[str, Any]) -> Flask:
    """Make the app, with the tables in its database."""
    create_tables(database)
    app = Flask(__name__)
    app.config.update({"SQLALCHEMY_DATABASE_URI": database.url, "TESTING": True} | config)
    return app
