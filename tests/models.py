"""One table, an app that serves it, and a look at it from outside."""

import os
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.ctx import AppContext
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

from flask_uow import UnitOfWork
from tests.databases import Database

RIDES = os.environ.get("UOW_TEST_RIDE") != "off"
"""Whether statements ride in the apps of this run; ``make test-plain`` runs what speaks to PostgreSQL without."""

reuses_contexts = pytest.mark.skipif(
    hasattr(AppContext, "from_environ"), reason="From Flask 3.2 on, a request has a context of its own."
)


class Base(DeclarativeBase):
    """Of the tests' models."""


class Item(Base):
    """A row with a name of its own."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


def create_tables(database: Database) -> None:
    """Create the tables, on a connection that the code under test never sees."""
    dialect = sa.make_url(database.url).get_dialect()()
    for table in Base.metadata.sorted_tables:
        database.execute(str(CreateTable(table, if_not_exists=True).compile(dialect=dialect)))


def make_app(database: Database, uow: UnitOfWork | None = None, **config: Any) -> Flask:
    """Make an app on ``database``, with the tables in it.

    :param uow: the extension that is to serve it; a new one if None.
    :param config: configuration keys besides ``SQLALCHEMY_DATABASE_URI`` and ``TESTING``.
    """
    create_tables(database)
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=database.url, TESTING=True, UOW_RIDE=RIDES)
    app.config.update(config)
    (uow or UnitOfWork()).init_app(app)
    return app


def checked_out(app: Flask) -> int:
    """Return how many connections of the app's own engines are not in their pools."""
    with app.app_context():
        engines: dict[str, sa.Engine] = app.extensions["uow"].engines
    pools = [engine.pool for engine in engines.values()]
    return sum(pool.checkedout() for pool in pools if isinstance(pool, sa.QueuePool))


def names(database: Database) -> list[str]:
    """Return the names that were committed, sorted, read on a connection of its own."""
    return [name for (name,) in database.rows("SELECT name FROM item ORDER BY name")]
