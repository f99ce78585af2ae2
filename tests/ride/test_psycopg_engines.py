"""``ride(engine)`` on psycopg 3: SQLAlchemy's ORM, its pool and its adapters on riding connections."""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import Cursor
from sqlalchemy.dialects.postgresql import ARRAY, INT4RANGE, JSONB, Range
from sqlalchemy.orm import Session

from flask_uow._ride import _psycopg, ride
from flask_uow._ride._psycopg_cursors import RidingCursor
from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import LISTEN, Proxy

METADATA = sa.MetaData()
ITEM = sa.Table("item", METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
MakeEngine = Callable[..., sa.Engine]


@pytest.fixture
def make_engine(postgres: PostgreSQLDatabase, proxy: Proxy) -> Iterator[MakeEngine]:
    """A function that makes a riding engine through the proxy; its start-up is not counted."""
    with ExitStack() as stack:

        def make(*, read_only_at_start: bool = False, **options: Any) -> sa.Engine:
            url = sa.make_url(postgres.url).set(drivername="postgresql+psycopg", host=LISTEN, port=proxy.port)
            engine = ride(sa.create_engine(url, **options), read_only_at_start=read_only_at_start)
            stack.callback(engine.dispose)
            METADATA.create_all(engine)
            proxy.requests()
            return engine

        yield make


def texts(proxy: Proxy) -> list[str]:
    """The first words of what each request consists of."""
    return [" ".join(part.split()[0] for part in request.split("; ")) for request in proxy.requests()]


def test_a_session(make_engine: MakeEngine, proxy: Proxy) -> None:
    """Savepoints, one of which fails, and a commit."""
    with Session(make_engine()) as session:
        session.execute(sa.insert(ITEM), {"id": 1})
        with session.begin_nested():
            session.execute(sa.insert(ITEM), {"id": 2})
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.execute(sa.insert(ITEM), {"id": 1})
        with session.begin_nested():
            pass
        session.execute(sa.insert(ITEM), {"id": 3})
        session.commit()

    assert texts(proxy) == [
        *("BEGIN INSERT", "SAVEPOINT INSERT", "RELEASE SAVEPOINT INSERT", "ROLLBACK INSERT", "COMMIT"),
    ]


def test_an_isolation_level_and_the_next_transaction(make_engine: MakeEngine, proxy: Proxy) -> None:
    """The level is the BEGIN's, and nobody pays for it afterwards."""
    engine = make_engine()
    with engine.connect().execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True) as connection:
        connection.execute(sa.select(ITEM))
    with engine.begin() as connection:
        connection.execute(sa.insert(ITEM), {"id": 1})

    assert proxy.requests()[0].startswith("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT")
    proxy.reset()
    with engine.begin() as connection:
        connection.execute(sa.insert(ITEM), {"id": 2})
    assert texts(proxy) == ["BEGIN INSERT", "COMMIT"]


def test_an_autocommit_engine_that_starts_read_only(make_engine: MakeEngine, proxy: Proxy) -> None:
    """It writes."""
    with make_engine(read_only_at_start=True, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.insert(ITEM), {"id": 1})
        assert connection.scalar(sa.select(sa.func.count()).select_from(ITEM)) == 1


def test_pre_ping_on_an_engine_that_starts_read_only(make_engine: MakeEngine, proxy: Proxy) -> None:
    """It is one request, and undoes nothing."""
    engine = make_engine(read_only_at_start=True, pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(sa.insert(ITEM), {"id": 1})

    assert texts(proxy)[-2:] == ["BEGIN INSERT", "COMMIT"]


def test_start_options_of_the_application(make_engine: MakeEngine) -> None:
    """They stay; one that speaks of the same thing is the application's own affair."""
    engine = make_engine(read_only_at_start=True, connect_args={"options": "-c work_mem=70kB"})
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW work_mem")) == "70kB"
        assert connection.scalar(sa.text("SHOW default_transaction_read_only")) == "on"
        assert driver_connection(connection).is_read_only_at_start
    own = make_engine(read_only_at_start=True, connect_args={"options": "-c default_transaction_read_only=off"})
    with own.connect() as connection:
        assert not driver_connection(connection).is_read_only_at_start


def driver_connection(connection: sa.Connection) -> _psycopg.RidingConnection:
    """Psycopg's connection under SQLAlchemy's."""
    found = connection.connection.driver_connection
    assert isinstance(found, _psycopg.RidingConnection)
    return found


def test_sqlalchemy_s_adapters(make_engine: MakeEngine) -> None:
    """Values of its own types go in and come out, and so do its batches and server-side cursors."""
    engine = make_engine(json_serializer=lambda value: '"written"', json_deserializer=lambda text: ["read", text])
    metadata = sa.MetaData()
    table = sa.Table(
        "many",
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("data", JSONB),
        sa.Column("span", INT4RANGE),
        sa.Column("numbers", ARRAY(sa.Integer)),
    )
    rows = [{"id": uuid.UUID(int=n), "data": {}, "span": Range(n, 9), "numbers": [n]} for n in range(3)]
    metadata.create_all(engine)
    with engine.begin() as connection:
        found = connection.execute(sa.insert(table).returning(table.c.id), rows).scalars().all()
        streamed = connection.execute(sa.select(table).order_by(table.c.id), execution_options={"yield_per": 1}).all()
        metadata.drop_all(connection)

    assert found == [row["id"] for row in rows]
    assert [tuple(row) for row in streamed] == [
        (uuid.UUID(int=n), ["read", b'"written"'], Range(n, 9), [n]) for n in range(3)
    ]


def test_a_cursor_class_of_the_application(make_engine: MakeEngine) -> None:
    """It is asked, and rides."""

    class Own(Cursor[Any]):
        pass

    with make_engine(connect_args={"cursor_factory": Own}).connect() as connection:
        cursor: object = connection.execute(sa.select(1)).cursor

    assert isinstance(cursor, Own)
    assert isinstance(cursor, RidingCursor)


def test_riding_twice(make_engine: MakeEngine, proxy: Proxy) -> None:
    """It is the same as once."""
    engine = ride(make_engine())
    with engine.connect() as connection:
        connection.execute(sa.select(1))

    assert texts(proxy) == ["BEGIN SELECT", "ROLLBACK"]


@pytest.mark.parametrize(
    ("owner", "name", "value", "lacks"),
    [
        (_psycopg, "PREPARED_METHODS", ("will_be_renamed",), "PrepareManager.will_be_renamed"),
        (psycopg, "capabilities", None, "waiting.wait(interval)"),
    ],
    ids=["in a later version", "in 3.1"],
)
def test_a_psycopg_without_what_riding_needs(
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: object,
    name: str,
    value: object,
    lacks: str,
) -> None:
    """Nothing rides, nothing is read-only, and the log says so once."""
    monkeypatch.setattr(owner, name, value)
    _psycopg.can_ride.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "flask_uow"):
            engine = make_engine(read_only_at_start=True)
            with engine.connect() as connection:
                assert type(connection.connection.driver_connection) is psycopg.Connection
                assert connection.scalar(sa.text("SHOW default_transaction_read_only")) == "off"
            engine.dispose()
            engine.connect().close()
    finally:
        _psycopg.can_ride.cache_clear()

    (message,) = [record.message for record in caplog.records if record.name == _psycopg.__name__]
    assert message.startswith(f"Statements do not ride: psycopg {psycopg.__version__} lacks {lacks}.")
