"""What stands between an app and its server, and the bench behind it."""

import pytest
import sqlalchemy as sa

from flask_uow import UnitOfWork
from tests.database.conftest import Bench, MakeBench
from tests.databases import Database
from tests.faults.proxy import LISTEN, Proxy
from tests.models import make_app


@pytest.fixture
def make_bench(database: Database) -> MakeBench:
    """A function that makes a bench with configuration keys, with nothing before its database."""

    def make(**config: object) -> Bench:
        uow = UnitOfWork()
        return Bench(make_app(database, uow, **config), uow, database)

    return make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A bench with the default configuration."""
    return make_bench()


@pytest.fixture
def make_proxied_bench(database: Database, proxy: Proxy) -> MakeBench:
    """A function that makes a bench whose app reaches its server through the proxy; what was committed is read past it.

    The app's first connection is in its pool already, so that its start-up is not counted.
    """

    def make(**config: object) -> Bench:
        uow = UnitOfWork()
        url = sa.make_url(database.url).set(host=LISTEN, port=proxy.port).render_as_string(hide_password=False)
        bench = Bench(make_app(database, uow, **({"SQLALCHEMY_DATABASE_URI": url} | config)), uow, database)
        with bench.app.app_context():
            bench.uow.engine.connect().close()
        proxy.requests()
        return bench

    return make


@pytest.fixture
def proxied_bench(make_proxied_bench: MakeBench) -> Bench:
    """A bench with the default configuration behind the proxy."""
    return make_proxied_bench()
