"""Engines from settings: pool defaults, a name for each connection, liveness without a round trip, SQLite's BEGIN."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event, pool

from . import _fork
from ._application_name import application_name, is_own_name
from ._drivers import LIBPQ_DRIVERS, has_ended, libpq_version, parameter_status
from ._pool import FairQueuePool
from ._ride import ride
from ._settings import Bind, Settings, is_in_memory, wrong

CONNECT_TIMEOUT_S = 5
# A server that went without a word is noticed: after a minute where nothing is sent, after half of one else.
KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
USER_TIMEOUT_MS = 30_000
NAME = "uow_name"
"""Where a riding connection has the name that the app gave it, behind which the server is told a unit's label."""
_GENERATION = "uow_generation"
"""Where a pooled connection's ``info`` has how many forks came before it."""
_LIBPQ_WITH_USER_TIMEOUT = 12_00_00
_POOL_OPTIONS = ("pool_size", "max_overflow", "pool_timeout", "pool_recycle", "pool_use_lifo")


def make_engines(app: Flask, settings: Settings) -> dict[str, sa.Engine]:
    """One engine per database and reader of the app; none connects yet.

    :raises ConfigurationError: if ``create_engine`` refuses an option.
    """
    engines = {}
    binds = settings.binds | settings.readers
    for name, bind in binds.items():
        engines[name] = _make_engine(app, bind)
        if settings.ride:
            ride(engines[name], read_only_at_start=True)
    for bind in binds.values():  # when nothing is refused any more
        _make_folder(app, bind)
    return engines


def _make_engine(app: Flask, bind: Bind) -> sa.Engine:
    url = _beside_instance(app, bind.url)
    options = _defaults(url, bind.options) | bind.options
    options["connect_args"] = _connect_args(url, dict(bind.options.get("connect_args") or {}))
    try:
        engine = sa.create_engine(url, **options)
    except Exception as error:  # noqa: BLE001  # SQLAlchemy meets a wrong option with whatever it stumbles over
        refused = f"create_engine refused it ({type(error).__name__}: {error})"
        raise wrong(bind.options_key, bind.options, refused.rstrip(".")) from None
    if not isinstance(engine, sa.Engine):
        raise wrong(bind.options_key, bind.options, f"create_engine made a {type(engine).__name__}, which is no engine")
    _prepare(app, engine, bind.options)
    return engine


def _prepare(app: Flask, engine: sa.Engine, user_options: dict[str, Any]) -> None:
    if engine.dialect.driver in LIBPQ_DRIVERS:
        event.listen(engine, "do_connect", _NameEachConnection(app.name))
        event.listen(engine, "connect", _remember_process)
        event.listen(engine, "checkout", _refuse_parents if user_options.get("pool_pre_ping") else _refuse_dead)
    if _needs_begin(engine, user_options):
        setattr(engine.dialect, _BEGINS, True)
    _fork.dispose_in_children(engine)


# ---- options


def _defaults(url: sa.URL, user_options: dict[str, Any]) -> dict[str, Any]:
    if "pool" in user_options or not _is_queue(user_options.get("poolclass")):
        return {}
    if is_in_memory(url):
        # One connection holds the database. A pool of one makes threads wait for each other's transactions;
        # SQLAlchemy's StaticPool would let them share one.
        return {"poolclass": FairQueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    defaults: dict[str, Any] = dict(zip(_POOL_OPTIONS, (5, 10, 5, 1800, True), strict=True))
    if user_options.get("poolclass") is None:
        defaults["poolclass"] = FairQueuePool
    if url.get_dialect().driver in (*LIBPQ_DRIVERS, "pysqlite"):
        return defaults
    return defaults | {"pool_pre_ping": True}


def _is_queue(poolclass: Any) -> bool:
    return poolclass is None or (isinstance(poolclass, type) and issubclass(poolclass, pool.QueuePool))


def _connect_args(url: sa.URL, given: dict[str, Any]) -> dict[str, Any]:
    """What the driver is told besides the URL; what the user says there or in ``connect_args`` wins."""
    if (driver := url.get_dialect().driver) in LIBPQ_DRIVERS:
        defaults = {"connect_timeout": CONNECT_TIMEOUT_S}
        if not _is_by_socket_file(url, given):
            defaults |= KEEPALIVES
            if libpq_version(driver) >= _LIBPQ_WITH_USER_TIMEOUT:
                defaults |= {"tcp_user_timeout": USER_TIMEOUT_MS}
        return {name: value for name, value in defaults.items() if not _is_said(name, url, given)} | given
    if is_in_memory(url):
        return {"check_same_thread": False} | given
    return given


def _is_said(name: str, url: sa.URL, given: dict[str, Any]) -> bool:
    """Whether the user says something himself: in the URL, in a text for libpq, or in its variable."""
    text = f"{given.get('dsn')} {given.get('conninfo')}"
    is_in_text = re.search(rf"\b{name}\b", text) is not None
    return name in url.query or is_in_text or f"PG{name.upper()}" in os.environ


def _is_by_socket_file(url: sa.URL, given: dict[str, Any]) -> bool:
    """Whether the server's name is that of a Unix socket, to which TCP's settings are nothing."""
    named = given.get("host") or url.query.get("host") or url.host or ""
    hosts = named.split(",") if isinstance(named, str) else named if isinstance(named, tuple) else [str(named)]
    return all(host.startswith(("/", "@")) for host in hosts)


def _beside_instance(app: Flask, url: sa.URL) -> sa.URL:
    """A relative SQLite file lies in the app's instance folder, where Flask-SQLAlchemy has it too."""
    file = _relative_file(url)
    if file is None:
        return url
    path = str(Path(app.instance_path, file))
    return url.set(database=f"file:{quote(path)}" if url.query.get("uri") else path)


def _relative_file(url: sa.URL) -> str | None:
    """The path of a SQLite file that is not absolute; None of any other database."""
    if url.get_backend_name() != "sqlite" or is_in_memory(url):
        return None
    path = str(url.database)
    if url.query.get("uri"):
        path = unquote(path.removeprefix("file:"))
    return None if Path(path).is_absolute() else path


def _make_folder(app: Flask, bind: Bind) -> None:
    """Make the folder of a SQLite file that lies in the instance folder.

    :raises ConfigurationError: if it cannot be made.
    """
    file = _relative_file(bind.url)
    if file is None:
        return
    folder = Path(app.instance_path, file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise wrong(bind.key, bind.url, f"its folder cannot be made ({error})") from None


# ---- connections


class _NameEachConnection:
    """The start-up packet carries ``application_name``, so that it costs nothing and names the forked process."""

    def __init__(self, app_name: str) -> None:
        self.app_name = app_name

    def __call__(self, dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        if is_own_name(str(cparams.get("application_name") or "")):
            del cparams["application_name"]  # SQLAlchemy 2.0.0 keeps one dict for all connections, also after a fork
        cparams.setdefault("application_name", application_name(self.app_name, os.getpid()))


def _remember_process(dbapi_connection: Any, record: Any) -> None:
    record.info[_GENERATION] = _fork.generation
    if hasattr(dbapi_connection, "riders"):
        name = parameter_status(dbapi_connection, "application_name") or ""
        setattr(dbapi_connection, NAME, name if is_own_name(name) else None)
    _fork.detach_in_children(record)


def _refuse_parents(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    if record.info[_GENERATION] != _fork.generation:
        record.dbapi_connection = proxy.dbapi_connection = None
        raise sa.exc.DisconnectionError("This pooled connection belongs to the parent process.")


def _refuse_dead(dbapi_connection: Any, record: Any, proxy: Any) -> None:
    if record.info[_GENERATION] != _fork.generation:
        _refuse_parents(dbapi_connection, record, proxy)
    if has_ended(dbapi_connection):
        raise sa.exc.DisconnectionError("The server has closed this pooled connection.")


# ---- SQLite


_BEGINS = "_uow_begins"
"""What a dialect has whose connections begin a transaction before their first statement."""


def _needs_begin(engine: sa.Engine, user_options: dict[str, Any]) -> bool:
    """Python's sqlite3 sends BEGIN only before some statements, unless told otherwise (``autocommit``, 3.12)."""
    return engine.dialect.driver == "pysqlite" and "autocommit" not in (user_options.get("connect_args") or {})


def begins_by_statement(connection: sa.Connection) -> bool:
    """Whether a SQLite connection has not begun its transaction, and is in no ``AUTOCOMMIT``."""
    if not hasattr(connection.dialect, _BEGINS):
        return False
    driver = _driver(connection)
    return not driver.in_transaction and driver.isolation_level is not None


def begin_before_write(connection: sa.Connection) -> None:
    """Begin what has only read so far; a transaction that began with a read could not wait for the write lock."""
    _driver(connection).execute("BEGIN")


def begin_sqlite(driver: sqlite3.Connection, *, for_writing: bool) -> None:
    """Begin a transaction, if need be in the place of one that has said nothing.

    :param for_writing: whether to take SQLite's write lock now; else none is taken before the first statement.
    :raises sqlalchemy.exc.OperationalError: if another connection holds the lock for longer than the busy timeout;
        the transaction is then a plain one.
    """
    if not for_writing:
        if not driver.in_transaction:
            driver.execute("BEGIN")
        return
    if driver.in_transaction:
        driver.execute("ROLLBACK")
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        driver.execute("BEGIN")
        raise sa.exc.DBAPIError.instance("BEGIN IMMEDIATE", None, error, sqlite3.Error) from error


def refuse_writes(connection: sa.Connection, *, refuse: bool) -> None:
    """Let SQLite itself refuse, or take again, whatever writes."""
    _driver(connection).execute(f"PRAGMA query_only = {int(refuse)}")


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    driver = connection.connection.dbapi_connection
    assert driver is not None
    return driver  # type: ignore[return-value]
