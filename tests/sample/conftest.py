"""A bank with three customers, open for one test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sample.bank import create_app
from tests.databases import Database
from tests.sample.banks import Bank


@pytest.fixture
def open_bank(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Bank]:
    """Return a function that opens a bank with some configuration of its own."""
    monkeypatch.setenv("DATABASE_URL", database.url)

    def build(**config: object) -> Bank:
        app = create_app({"TESTING": True, "BANK_OUTBOX": str(tmp_path / "outbox.jsonl"), **config})
        bank = Bank(app, app.test_client(), database)
        bank.run("init")
        bank.run("seed", "--customers", "3")
        return bank

    return build


@pytest.fixture
def bank(open_bank: Callable[..., Bank]) -> Bank:
    """A bank as it comes."""
    return open_bank()
