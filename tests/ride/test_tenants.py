"""A class of cursors that tells the server who asks, for its policies and views, and read-only units."""

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg2 import extensions

from flask_uow import UnitOfWork, transactional
from tests.databases import PostgreSQLDatabase, Server
from tests.models import make_app

TELL = "SELECT set_config('app.tenant', 'mine', true)"
ASKED = sa.select(sa.table("asked", sa.column("tenant")).c.tenant)


class Psycopg2Cursor(extensions.cursor):
    """Says it before each statement."""

    def execute(self, query: Any, vars: Any = None) -> None:
        super().execute(TELL)
        super().execute(query, vars)


class Psycopg2CursorByName(extensions.cursor):
    """The same, past what is between it and psycopg2."""

    def execute(self, query: Any, vars: Any = None) -> None:
        extensions.cursor.execute(self, TELL)
        extensions.cursor.execute(self, query, vars)


class Psycopg2CursorBeside(extensions.cursor):
    """The same with another cursor."""

    def execute(self, query: Any, vars: Any = None) -> None:
        with self.connection.cursor(cursor_factory=extensions.cursor) as cursor:
            cursor.execute(TELL)
        super().execute(query, vars)


class PsycopgCursor(psycopg.Cursor[Any]):
    """Says it before each statement."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> "PsycopgCursor":
        super().execute(TELL)
        return super().execute(query, params, **options)


class PsycopgCursorBeside(psycopg.Cursor[Any]):
    """The same with another cursor."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> "PsycopgCursorBeside":
        with psycopg.Cursor(self.connection) as cursor:
            cursor.execute(TELL)
        return super().execute(query, params, **options)


@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only"])
@pytest.mark.parametrize(
    ("driver", "cursor_class"),
    [
        ("psycopg2", Psycopg2Cursor),
        ("psycopg2", Psycopg2CursorByName),
        ("psycopg2", Psycopg2CursorBeside),
        ("psycopg", PsycopgCursor),
        ("psycopg", PsycopgCursorBeside),
    ],
)
def test_each_statement_knows_who_asks(
    postgresql_server: Server, driver: str, cursor_class: type, read_only: bool
) -> None:
    """What a read needs is in its transaction, also where the read by itself would need none."""
    database: PostgreSQLDatabase = postgresql_server.database(driver)
    database.execute("CREATE VIEW asked AS SELECT current_setting('app.tenant', true) AS tenant")
    uow = UnitOfWork()
    options = {"connect_args": {"cursor_factory": cursor_class}}
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS=options)

    for _ in range(3):
        with app.app_context(), transactional(read_only=read_only):
            assert [uow.session.scalar(ASKED), uow.session.scalar(ASKED)] == ["mine", "mine"]
    with app.app_context():
        uow.engine.dispose()
