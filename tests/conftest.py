"""What a test may ask for, databases of its own, and what is asked of it: that nothing stays open."""

import gc
import itertools
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import _sessions
from sqlalchemy.pool import Pool, QueuePool

from flask_uow import UnitOfWork
from tests.databases import (
    BACKENDS,
    SERVER_VARIABLE,
    Database,
    PostgreSQLDatabase,
    Server,
    SQLiteDatabase,
    run_server,
)
from tests.faults.proxy import Proxy, run_proxy
from tests.models import make_app
from tests.throwaway_server import ServerError

NO_SERVER = f"""The tests need a real PostgreSQL, and have none.
  why: {{}}
  fix: Name one on which they may create databases: {SERVER_VARIABLE}=postgresql://user:password@host:5432/postgres"""
# Tests under these folders run when their mark is asked for: they need a browser, or a machine that does nothing else.
MARKED_FOLDERS = {"benchmarks": "benchmark", "browser": "browser"}

# The browser's tests are collected where the extra of that name is installed.
collect_ignore = [] if find_spec("selenium") else ["browser"]

ALTERNATING_S = 1e-6
"""How often the interpreter changes from one thread to another where it is to do so after nearly every step."""

NUMBERS = itertools.count()
HAS_FAILED = pytest.StashKey[bool]()
# The pools that the test has made: one that is collected before it is emptied drops its connections unclosed.
POOLS_OF_THE_TEST: list[Pool] = []


def pytest_sessionstart() -> None:
    if os.environ.get("UOW_TEST_THREADS") == "alternate":
        sys.setswitchinterval(ALTERNATING_S)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of some folders."""
    for item in items:
        for folder, mark in MARKED_FOLDERS.items():
            if folder in item.path.parts:
                item.add_marker(mark)


def pytest_collection_finish() -> None:
    """Thousands of collected tests stay to the end: the collector need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test has failed: what it then leaves behind is no news."""
    report = yield
    item.stash[HAS_FAILED] = item.stash.get(HAS_FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """The run's one PostgreSQL, started for the first test that asks; without it the run ends."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(run_server())
        except ServerError as error:
            pytest.exit(NO_SERVER.format(error), returncode=1)
        yield server


@pytest.fixture(scope="session")
def temporary_folders() -> Iterator[Path]:
    """A folder for what this run's processes leave where temporary files lie; the server's own user can enter it."""
    with tempfile.TemporaryDirectory(prefix="uow-tests-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(autouse=True)
def temporary_folder(temporary_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, in which the boards of its apps and of its processes lie."""
    folder = temporary_folders / str(next(NUMBERS))
    folder.mkdir(mode=0o711)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Database]:
    """A function that returns an empty database of a backend, each time another one."""
    numbers = itertools.count()

    def make(backend: str) -> Database:
        number = next(numbers)
        if backend == "sqlite":
            return SQLiteDatabase(tmp_path / f"database{number}.sqlite")
        server: Server = request.getfixturevalue("postgresql_server")
        return server.database(backend, number)

    return make


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest, make_database: Callable[[str], Database]) -> Database:
    """An empty database; the test runs once for each backend."""
    return make_database(request.param)


@pytest.fixture
def second_database(database: Database, make_database: Callable[[str], Database]) -> Database:
    """Another empty database of the same backend."""
    return make_database(database.backend)


@pytest.fixture
def uow() -> UnitOfWork:
    """The extension; it serves ``app``, and may serve others."""
    return UnitOfWork()


@pytest.fixture
def app(database: Database, uow: UnitOfWork) -> Flask:
    """An app on the database, with the tables in it."""
    return make_app(database, uow)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Switch the garbage collector off: what comes back now was given back."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def threads_that_alternate() -> Iterator[None]:
    """Let the interpreter change from one thread to another after nearly every step."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(ALTERNATING_S)
    yield
    sys.setswitchinterval(interval_s)


@pytest.fixture
def postgres(postgresql_server: Server) -> PostgreSQLDatabase:
    """An empty database on PostgreSQL, with psycopg2."""
    return postgresql_server.database("psycopg2")


@pytest.fixture
def postgresql_url(postgres: PostgreSQLDatabase) -> str:
    """The URL of an empty database on PostgreSQL, without a driver, as a user would type it."""
    return postgres.driverless_url


@pytest.fixture(scope="session")
def pools() -> Iterator["weakref.WeakSet[Pool]"]:
    """Every connection pool that the run has made and nobody has dropped."""
    made: weakref.WeakSet[Pool] = weakref.WeakSet()

    # Not __init__: SQLAlchemy reads from its signature which options a pool takes.
    def remember(cls: type[Pool], *args: Any, **options: Any) -> Pool:
        pool = object.__new__(cls)
        made.add(pool)
        POOLS_OF_THE_TEST.append(pool)
        return pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "__new__", remember)
        yield made


@pytest.fixture(autouse=True)
def nothing_stays_open(request: pytest.FixtureRequest, pools: "weakref.WeakSet[Pool]") -> Iterator[None]:
    """After the test, no connection is checked out and no session in a transaction; the pools are emptied."""
    yield
    found = _find_open(pools)
    left_open = "; ".join(leak.status() if isinstance(leak, Pool) else str(leak) for leak in found)
    for leak in found:
        _forget(leak, pools)
    for pool in pools:
        # The other pools may hold a database in memory, which would go with its connection.
        if isinstance(pool, QueuePool):
            pool.dispose()
    POOLS_OF_THE_TEST.clear()
    is_excused = request.node.stash.get(HAS_FAILED, False) or request.node.get_closest_marker("leaves_open")
    if found and not is_excused:
        pytest.fail(f"The test has left open: {left_open}", pytrace=False)


def _find_open(pools: "weakref.WeakSet[Pool]") -> list[Pool | Session]:
    # A collection takes longer than most tests: it is for the rare case that something seems open.
    if not _list_open(pools):
        return []
    gc.collect()
    return _list_open(pools)


def _list_open(pools: "weakref.WeakSet[Pool]") -> list[Pool | Session]:
    busy_pools = [pool for pool in pools if isinstance(pool, QueuePool) and pool.checkedout() > 0]
    return [*busy_pools, *(session for session in list(_sessions.values()) if session.in_transaction())]


def _forget(leak: Pool | Session, pools: "weakref.WeakSet[Pool]") -> None:
    """Keep a leak from being held against the next test."""
    if isinstance(leak, Pool):
        pools.discard(leak)
        return
    with suppress(SQLAlchemyError):
        leak.invalidate()


@pytest.fixture(scope="session")
def proxy_process(postgresql_server: Server) -> Iterator[Proxy]:
    """The run's one proxy."""
    host, port = postgresql_server.url.host or "localhost", postgresql_server.url.port or 5432
    with run_proxy(host, port) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxy_process: Proxy) -> Iterator[Proxy]:
    """The proxy without orders."""
    proxy_process.reset()
    yield proxy_process
    proxy_process.reset()
