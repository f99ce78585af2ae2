"""A bank with three customers, open for one test.

With ``UOW_TEST_SAMPLE=isolated`` it is opened once for each kind of database, and each test is isolated.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Engine

from flask_uow.testing import isolated
from flask_uow.testing._left_open import Checkouts, checkouts
from sample.bank import create_app
from tests.databases import BACKENDS, Database, Server, SQLiteDatabase
from tests.sample.banks import Bank
from tests.sample.inside import IS_ISOLATED, SeenInside

# The numbers of the databases that other tests do not empty.
NUMBERS = {"psycopg2": 2, "psycopg": 3}
CUSTOMERS = ("seed", "--customers", "3")


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest, make_database: Callable[[str], Database]) -> Database:
    """A database of each kind: an empty one, or that of a bank that is open already."""
    if not IS_ISOLATED:
        return make_database(request.param)
    opened: dict[str, Bank] = request.getfixturevalue("opened_banks")
    if request.param not in opened:
        opened[request.param] = bank = _open(_lasting_database(request))
        # Its pool lasts as well: `_refuse_leaks` finds what a test leaves open.
        request.getfixturevalue("pools").discard(_engine(bank).pool)
    return opened[request.param].database


@pytest.fixture(scope="session")
def opened_banks() -> Iterator[dict[str, Bank]]:
    """The banks that are open already, by the kind of their database."""
    opened: dict[str, Bank] = {}
    yield opened
    for bank in opened.values():
        _engine(bank).dispose()


@pytest.fixture
def open_bank(
    request: pytest.FixtureRequest, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Bank]]:
    """Return a function that opens a bank with some configuration of its own."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    outbox = str(tmp_path / "outbox.jsonl")

    def build(**config: object) -> Bank:
        return _open(database, BANK_OUTBOX=outbox, **config)

    def build_isolated(**config: object) -> Bank:
        opened: dict[str, Bank] = request.getfixturevalue("opened_banks")
        app = opened[database.backend].app if not config else create_app({"TESTING": True, **config})
        monkeypatch.setitem(app.config, "BANK_OUTBOX", outbox)
        stack.enter_context(isolated(app))
        stack.callback(_refuse_leaks, stack.enter_context(checkouts(app)))
        return Bank(app, app.test_client(), SeenInside(database, app))

    with ExitStack() as stack:
        yield build_isolated if IS_ISOLATED else build


@pytest.fixture
def bank(open_bank: Callable[..., Bank]) -> Bank:
    """A bank as it comes."""
    return open_bank()


def _open(database: Database, **config: object) -> Bank:
    app: Flask = create_app({"TESTING": True, "SQLALCHEMY_DATABASE_URI": database.url, **config})
    bank = Bank(app, app.test_client(), database)
    bank.run("init")
    bank.run(*CUSTOMERS)
    return bank


def _refuse_leaks(seen: Checkouts) -> None:
    if left := seen.left():
        pytest.fail("\n".join(left), pytrace=False)


def _engine(bank: Bank) -> Engine:
    with bank.app.app_context():
        engine: Engine = bank.app.extensions["uow"].engine
        return engine


def _lasting_database(request: pytest.FixtureRequest) -> Database:
    if request.param == "sqlite":
        folder: Path = request.getfixturevalue("tmp_path_factory").mktemp("bank")
        return SQLiteDatabase(folder / "bank.sqlite")
    server: Server = request.getfixturevalue("postgresql_server")
    return server.database(request.param, NUMBERS[request.param])
