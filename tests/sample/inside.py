"""Banks that are opened once, and isolated for each test; what they hold is seen from inside the test's transaction."""

import os
from typing import Any

import sqlalchemy as sa
from flask import Flask

from tests.databases import Database, Row, ServerSession

IS_ISOLATED = os.environ.get("UOW_TEST_SAMPLE") == "isolated"


class SeenInside(Database):
    """A database of a bank, as the bank's own engine sees it.

    :param database: as others see it.
    """

    def __init__(self, database: Database, app: Flask) -> None:
        super().__init__(sa.make_url(database.url), database.backend)
        self._outside = database
        with app.app_context():
            self._engine: sa.Engine = app.extensions["uow"].engine

    def rows(self, sql: str, *values: object) -> list[Row]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql, values)]

    def execute(self, sql: str, *values: object) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(sql, values)

    def connect(self) -> Any:
        return self._outside.connect()

    def sessions(self) -> list[ServerSession]:
        return self._outside.sessions()
