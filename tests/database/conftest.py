"""The bench on which units of work are tried: one app, one table, one session, on each database."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork
from tests.databases import Database
from tests.models import Item, make_app, names


@dataclass(frozen=True)
class Bench:
    """An app on a database, and short words for what most tests do."""

    app: Flask
    uow: UnitOfWork
    database: Database

    @property
    def session(self) -> Session:
        """The current session itself."""
        return self.uow.session()

    def add(self, *added: str) -> None:
        """Add rows and send them."""
        self.session.add_all([Item(name=name) for name in added])
        self.session.flush()

    def committed(self) -> list[str]:
        """The names that a second connection sees."""
        return names(self.database)

    def run_sql(self, sql: str) -> None:
        """Run a text in the session."""
        self.session.execute(sa.text(sql))

    @property
    def checked_out(self) -> int:
        """How many connections are out of the pool."""
        pool = self.uow.engine.pool
        assert isinstance(pool, sa.QueuePool)
        return pool.checkedout()


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(database: Database) -> MakeBench:
    """A function that makes a bench with configuration keys."""

    def make(**config: object) -> Bench:
        uow = UnitOfWork()
        return Bench(make_app(database, uow, **config), uow, database)

    return make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A bench with the default configuration."""
    return make_bench()
