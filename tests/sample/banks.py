"""A bank under test."""

from dataclasses import dataclass

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.databases import Database

# Accounts of the first two customers; they open with $100.00, nothing, and $477.11.
ADA, ADAS_SAVINGS, ALAN = 1001, 1002, 1003


@dataclass
class Bank:
    """A bank under test: what it answers, and what a second connection finds in its database."""

    app: Flask
    client: FlaskClient
    database: Database

    def balance(self, account_id: int) -> int:
        """Return what an account holds, in cents."""
        rows = self.database.rows(f"SELECT COALESCE(SUM(amount), 0) FROM entry WHERE account_id = {account_id}")
        return int(rows[0][0])

    def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(self.database.rows(f'SELECT COUNT(*) FROM "{table}"')[0][0])

    def order(self, path: str, **body: object) -> TestResponse:
        """Post JSON."""
        return self.client.post(path, json=body)

    def run(self, *arguments: str) -> str:
        """Run ``flask bank`` and return what it printed."""
        result = self.app.test_cli_runner().invoke(args=["bank", *arguments])
        assert result.exit_code == 0, f"{result.output}{result.exception!r}"
        return result.output
