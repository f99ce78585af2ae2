"""Statements that need no answer of their own ride in front of those that do: fewer round trips on PostgreSQL.

The driver's own connection class does it; this makes an engine's future connections be of such a class. It stands in
the place of the dialect's ``connect``, behind all that listens to ``do_connect``.

A pooler such as PgBouncer in transaction mode gives each transaction another of its connections to the server. What a
start option sets is then refused, or dropped, or true for one of them: it is not believed in.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Engine

logger = logging.getLogger(__name__)

RIDES = "_uow_rides"
"""What a dialect has whose connections let statements ride, if they were made after that."""
READ_ONLY_AT_START = "-c default_transaction_read_only=on"
# With these, libpq asks a server whether it is read-only, and is told so of a primary.
_ASKING = frozenset(("read-write", "read-only"))
# What may hold options that cannot be seen here.
_HIDING = ("service", "dsn", "conninfo")
# PgBouncer's words, before 1.20 and since, and those of Amazon's RDS Proxy.
_REFUSED = re.compile(r"unsupported startup parameter|command-line options", re.IGNORECASE)

_Arguments = tuple[Any, ...]
_Options = dict[str, Any]
_Connect = Callable[..., Any]


def ride(engine: Engine, *, read_only_at_start: bool = False) -> Engine:
    """Let statements ride on the connections that an engine makes from now on.

    BEGIN, SET LOCAL, SAVEPOINT, RELEASE and ROLLBACK TO then wait for the next statement that is sent anyway, and
    COMMIT of a transaction that has failed raises an error. Engines of another database or driver are left as they
    are, and so are asynchronous connections.

    :param engine: SQLAlchemy's engine, on psycopg2 or psycopg.
    :param read_only_at_start: whether the server is to refuse writes outside of transactions, so that harmless reads
        need none; those that may write say so in their BEGIN. It is a start option, and one question for each new
        connection; options of the application's own stay, and forbid it where they speak of the same thing. A pooler
        may refuse or drop it: the connections then do without, and the log says so.
    :raises TypeError: if it is no engine.
    """
    if not isinstance(engine, Engine):
        raise TypeError(f"ride() takes an Engine of SQLAlchemy's, not {engine!r}. Flask-SQLAlchemy's is db.engine.")
    dialect: Any = engine.dialect
    if dialect.name != "postgresql" or dialect.is_async or isinstance(dialect.connect, _Connecting):
        return engine
    connect = _CONNECTS.get(dialect.driver)
    if connect is not None and _can_ride(dialect.driver):
        dialect.connect = _Connecting(engine, connect, read_only_at_start=read_only_at_start)
        setattr(dialect, RIDES, True)
    return engine


class _Connecting:
    """What connects an engine, in the place of its dialect's own way, and takes the same.

    :param connect: makes a connection that rides, if it can, of the dialect's own way and what that takes.
    """

    def __init__(self, engine: Engine, connect: _Connect, *, read_only_at_start: bool) -> None:
        self._url = engine.url
        self._error: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._connect = partial(connect, engine.dialect.connect)
        self._asks_for_start = read_only_at_start
        self._is_pooled = False
        self._findings = itertools.count()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        connection = self._ask_for_start(arguments, options)
        if self._is_pooled and "prepare_threshold" not in options and hasattr(connection, "prepare_threshold"):
            connection.prepare_threshold = None  # what a transaction prepares, the next one's server does not know
        return connection

    def _ask_for_start(self, arguments: _Arguments, options: _Options) -> Any:
        asking = _with_start_option(arguments, options) if self._asks_for_start else None
        if asking is None:
            return self._connect(arguments, options)
        try:
            connection = self._connect(arguments, asking)
        except self._error as error:
            if _REFUSED.search(str(error)) is None:
                raise
            connection = self._connect(arguments, options)
            self._asks_for_start = False
            self._note_pooler("refuses")
            return connection
        if not hasattr(connection, "riders"):
            connection.close()  # nobody would say READ WRITE on it
            self._asks_for_start = False
            return self._connect(arguments, options)
        if not _starts_read_only(connection):
            self._note_pooler("does not keep")
        return connection

    def _note_pooler(self, what: str) -> None:
        self._is_pooled = True
        if next(self._findings) == 0:
            logger.info(
                "%s: what seems a pooler such as PgBouncer %s the start option default_transaction_read_only. Reads "
                "say BEGIN READ ONLY there, so that one alone takes a round trip more; psycopg prepares statements if "
                "connect_args has a prepare_threshold. fix: To keep both, connect to the server itself.",
                self._url.render_as_string(),
                what,
            )


def _can_ride(driver: str) -> bool:
    """Whether the installed version of a driver has what riding rests on."""
    if driver != "psycopg":
        return True
    from ._psycopg import can_ride

    return can_ride()


def _connect_psycopg2(connect: _Connect, arguments: _Arguments, options: _Options) -> Any:
    from ._psycopg2 import riding_factory

    if _is_asynchronous(options):
        return connect(*arguments, **options)
    factory = riding_factory(options.get("connection_factory"))
    return connect(*arguments, **options | {"connection_factory": factory})


def _connect_psycopg(connect: _Connect, arguments: _Arguments, options: _Options) -> Any:
    from ._psycopg import connect as connect_riding

    return connect_riding(arguments, options)


_CONNECTS: dict[str, Callable[[_Connect, _Arguments, _Options], Any]] = {
    "psycopg2": _connect_psycopg2,
    "psycopg": _connect_psycopg,
}


def _with_start_option(arguments: _Arguments, options: _Options) -> _Options | None:
    """What connects, and asks libpq for the start option; None if the application's own forbids it."""
    own = str(options.get("options") or os.environ.get("PGOPTIONS") or "")
    asked = options.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    is_hidden = any(arguments) or any(name in options for name in _HIDING) or "PGSERVICE" in os.environ
    if asked in _ASKING or is_hidden or "default_transaction_read_only" in own or _is_asynchronous(options):
        return None
    return options | {"options": f"{own} {READ_ONLY_AT_START}".strip()}


def _is_asynchronous(options: _Options) -> bool:
    return bool(options.get("async") or options.get("async_"))


def _starts_read_only(connection: Any) -> bool:
    try:
        is_read_only: bool = connection.note_read_only_at_start()
    except BaseException:
        connection.close()
        raise
    return is_read_only
