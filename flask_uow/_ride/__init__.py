"""Statements that need no answer of their own ride in front of those that do: fewer round trips on PostgreSQL.

The driver's own connection class does it; this makes an engine's future connections be of such a class.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event

READ_ONLY_AT_START = "-c default_transaction_read_only=on"
# With these, libpq asks a server whether it is read-only, and is told so of a primary.
_ASKING = frozenset(("read-write", "read-only"))

_Arguments = dict[str, Any]
_Connect = Callable[[Any, Any, list[Any], _Arguments], Any]


def ride(engine: Engine, *, read_only_at_start: bool = False) -> Engine:
    """Let statements ride on the connections that an engine makes from now on.

    BEGIN, SET LOCAL, SAVEPOINT, RELEASE and ROLLBACK TO then wait for the next statement that is sent anyway, and
    COMMIT of a transaction that has failed raises an error. Engines of another database or driver are left as they
    are, and so are asynchronous connections.

    :param engine: SQLAlchemy's engine, on psycopg2 or psycopg.
    :param read_only_at_start: whether the server is to refuse writes outside of transactions, so that harmless reads
        need none; those that may write say so in their BEGIN. It is a start option, and costs nothing; options of the
        application's own stay, and forbid it where they speak of the same thing.
    """
    if engine.dialect.name != "postgresql" or engine.dialect.is_async:
        return engine
    kinds = _CONNECTS.get(engine.dialect.driver)
    if kinds is None or any(event.contains(engine, "do_connect", connect) for connect in kinds):
        return engine
    event.listen(engine, "do_connect", kinds[read_only_at_start])
    return engine


def _connect_psycopg2(dialect: Any, record: Any, arguments: list[Any], options: _Arguments) -> None:
    from ._psycopg2 import riding_factory

    if options.get("async") or options.get("async_"):
        return
    options["connection_factory"] = riding_factory(options.get("connection_factory"))


def _connect_psycopg2_read_only(dialect: Any, record: Any, arguments: list[Any], options: _Arguments) -> None:
    _start_read_only(options)
    _connect_psycopg2(dialect, record, arguments, options)


def _connect_psycopg(dialect: Any, record: Any, arguments: list[Any], options: _Arguments) -> Any:
    from . import _psycopg

    return _psycopg.connect(arguments, options, is_read_only_asked=False) if _psycopg.can_ride() else None


def _connect_psycopg_read_only(dialect: Any, record: Any, arguments: list[Any], options: _Arguments) -> Any:
    from . import _psycopg

    if not _psycopg.can_ride():
        return None
    return _psycopg.connect(arguments, options, is_read_only_asked=_start_read_only(options))


def _start_read_only(options: _Arguments) -> bool:
    """Add the start option to libpq's, unless the application's own forbid it; return whether it was added."""
    own = str(options.get("options") or os.environ.get("PGOPTIONS") or "")
    asked = options.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    is_hidden = any(name in options for name in ("service", "dsn")) or "PGSERVICE" in os.environ
    if asked in _ASKING or is_hidden or "default_transaction_read_only" in own:
        return False
    options["options"] = f"{own} {READ_ONLY_AT_START}".strip()
    return True


# For each driver: how it connects, and how it does if the server is to start read-only.
_CONNECTS: dict[str, tuple[_Connect, _Connect]] = {
    "psycopg2": (_connect_psycopg2, _connect_psycopg2_read_only),
    "psycopg": (_connect_psycopg, _connect_psycopg_read_only),
}
