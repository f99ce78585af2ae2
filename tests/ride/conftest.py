"""Connections that ride beside plain ones, and a proxy that counts what is sent."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from flask_uow._ride._psycopg2 import RidingConnection
from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import LISTEN, Proxy

MakeConnection = Callable[..., Any]


@pytest.fixture
def connect(postgres: PostgreSQLDatabase, proxy: Proxy) -> Iterator[MakeConnection]:
    """A function that connects through the proxy; what was asked so far is forgotten."""
    made: list[Any] = []
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")

    def connect(factory: Any = RidingConnection, **options: Any) -> Any:
        url = postgres.driverless_url
        connection: Any = psycopg2.connect(url, host=LISTEN, port=proxy.port, connection_factory=factory, **options)
        if "default_transaction_read_only" in options.get("options", ""):
            assert connection.note_read_only_at_start()
        made.append(connection)
        proxy.requests()
        return connection

    yield connect
    for connection in made:
        with closing(connection):
            pass


@pytest.fixture
def riding(connect: MakeConnection) -> RidingConnection:
    """A riding connection through the proxy; the database has a table ``t (id int PRIMARY KEY, name text)``."""
    connection: RidingConnection = connect()
    return connection


@pytest.fixture
def plain(connect: MakeConnection) -> Any:
    """A plain connection to the same database."""
    return connect(None)
