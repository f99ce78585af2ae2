"""``ride(engine)``: units on engines that another library or the application has made cost what they do on ours."""

from collections.abc import Iterator

import flask_sqlalchemy
import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm

from flask_uow import UnitOfWork, ride
from tests.database.conftest import Bench
from tests.databases import Database
from tests.faults.proxy import LISTEN, Proxy
from tests.faults.test_riding_units import TRIPS, Body, assert_trips, nested_inserts, one_select, rendering
from tests.models import create_tables, make_app

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@pytest.fixture
def proxied_url(database: Database, proxy: Proxy) -> str:
    """The database's URL with the proxy in front of it."""
    return sa.make_url(database.url).set(host=LISTEN, port=proxy.port).render_as_string(hide_password=False)


@pytest.fixture
def engine(proxied_url: str) -> Iterator[sa.Engine]:
    """An engine of the application's own."""
    engine = sa.create_engine(proxied_url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(("body", "trips"), TRIPS)
def test_trips(engine: sa.Engine, database: Database, proxy: Proxy, body: Body, trips: int) -> None:
    """With one line for the engine."""
    assert ride(engine, read_only_at_start=True) is engine
    uow = UnitOfWork(sessionmaker=orm.sessionmaker(engine, expire_on_commit=False))

    assert_trips(Bench(make_app(database, uow), uow, database), proxy, body, trips)


@pytest.mark.parametrize(("body", "trips"), [(one_select, 2), (nested_inserts, 5)])
def test_trips_without_the_start_option(
    engine: sa.Engine, database: Database, proxy: Proxy, body: Body, trips: int
) -> None:
    """Then a read has its BEGIN and its end like all else."""
    uow = UnitOfWork(sessionmaker=orm.sessionmaker(ride(engine)))

    assert_trips(Bench(make_app(database, uow), uow, database), proxy, body, trips)


@pytest.mark.parametrize(("body", "trips"), [(one_select, 1), (rendering, 3)])
def test_trips_with_flask_sqlalchemy(
    proxied_url: str, database: Database, proxy: Proxy, body: Body, trips: int
) -> None:
    """Its engine rides from its first connection on."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = proxied_url
    create_tables(database)
    db = flask_sqlalchemy.SQLAlchemy(app, session_options={"expire_on_commit": False})
    uow = UnitOfWork(app, session=db.session)
    with app.app_context():
        ride(db.engine, read_only_at_start=True)

    assert_trips(Bench(app, uow, database), proxy, body, trips)

    with app.app_context():
        db.engine.dispose()


def test_the_first_call_decides(engine: sa.Engine, proxy: Proxy) -> None:
    """A second one adds nothing, and takes nothing back."""
    ride(ride(engine, read_only_at_start=True))

    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW default_transaction_read_only")) == "on"
        assert connection.scalar(sa.text("SHOW transaction_read_only")) == "off"
