"""Take a snapshot: which databases an app has, and what each of them and its pools say.

A database that cannot be read leaves its error in the snapshot; the others are read all the same. How each kind of
database is read is left to the modules beside this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime

from flask import Flask, has_app_context
from flask.globals import app_ctx
from sqlalchemy import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from .._application_name import as_part
from .._board import shown_name
from .._checkouts import name_without_bind
from .._hiding import error_line, shown_url
from .._state import state_of_app
from ..exceptions import ConfigurationError, UnitOfWorkError
from ._boards import read_boards
from ._join import Known, with_servers, with_units
from ._pools import pool_snapshot
from ._postgresql import outcome_of, with_sessions
from ._sqlite import sqlite_database
from ._troubles import find_troubles
from ._values import Boards, DatabaseSnapshot, Snapshot, Worker


def snapshot(app: Flask | None = None) -> Snapshot:
    """See every session and connection of an app, as far as the databases and this process know them.

    .. code-block:: python

        from flask_uow import stats

        for database in stats.snapshot(app).databases:
            print(database.url, database.summary)

    A database is asked over a connection of its own, not over one of the app's pool.

    :param app: the app; the current one if not given.
    :raises RuntimeError: if no app is given and there is no current one.
    :raises ConfigurationError: if the app has no :class:`~flask_uow.UnitOfWork`.
    """
    app = app or app_ctx.app
    is_current = has_app_context() and app_ctx.app is app
    with nullcontext() if is_current else app.app_context():
        engines = _engines(app)
        boards = read_boards(app)
        databases = _each_once(_database(group, app.name) for group in _by_database(engines))
        databases = [_with_outcomes(database, engines) for database in databases]
        return _joined(app, boards, databases)


def _joined(app: Flask, boards: Boards, databases: list[DatabaseSnapshot]) -> Snapshot:
    later = read_boards(app) if any(database.sessions for database in databases) else boards
    processes = frozenset(session.pid for database in databases for session in database.sessions)
    known = Known(boards.workers, later.workers, boards.is_complete and later.is_complete, processes)
    joined = tuple(with_units(database, known) for database in databases)
    notes = (*boards.notes, *_notes(boards.workers, databases))
    snapshot = Snapshot(
        app=app.name,
        taken_at=datetime.now(UTC),
        databases=joined,
        workers=with_servers(boards.workers, joined),
        ended=boards.ended,
        totals=boards.totals,
        notes=notes,
    )
    settings = state_of_app(app).settings
    troubles = find_troubles(snapshot, max_idle_seconds=settings.idle_limit_s, max_unit_seconds=settings.slow_unit_s)
    return dataclasses.replace(snapshot, troubles=troubles)


def _notes(workers: Iterable[Worker], databases: Iterable[DatabaseSnapshot]) -> Iterator[str]:
    asked = {shown_name(bind) for database in databases for bind in database.binds}
    used = {pool.bind for worker in workers for pool in worker.pools}
    unknown = ", ".join(sorted(used - asked))
    if unknown:
        yield f"The workers use databases that only their sessions know, and which were not asked: {unknown}."


def _engines(app: Flask) -> Mapping[str, Engine]:
    """Give the app's engines by bind; of a session that was adopted, its owner's and those that it is bound to."""
    if "uow" not in app.extensions:
        raise ConfigurationError(f"App {app.name!r} has no UnitOfWork.", fix="Call UnitOfWork(app), or init_app(app).")
    app_state = state_of_app(app)
    if app_state.engines:
        return app_state.engines
    bound: list[Engine] = []
    with suppress(UnitOfWorkError, SQLAlchemyError):
        bound.append(app_state.sessions.bind())
    with suppress(UnitOfWorkError, SQLAlchemyError):
        bound += [bind.engine for bind in app_state.sessions.binds()]
    found = app_state.named_engines()
    if bound and not set(bound) & set(found.values()):
        found = {}  # they are of another library than the session
    for engine in dict.fromkeys(bound):
        if engine not in found.values():
            found[name_without_bind(engine, found)] = engine
    return found


def _by_database(engines: Mapping[str, Engine]) -> Iterable[Mapping[str, Engine]]:
    """Put the binds together that lead to one database with one role, which sees the same by each."""
    databases: dict[tuple[object, ...], dict[str, Engine]] = {}
    for bind, engine in engines.items():
        databases.setdefault(_place(bind, engine.url), {})[bind] = engine
    return databases.values()


def _place(bind: str, url: URL) -> tuple[object, ...]:
    if not url.host and url.database in (None, "", ":memory:"):
        return (bind,)
    address = (url.host, url.port, url.query.get("host"), url.query.get("port"))
    return (url.get_backend_name(), url.username, url.database, *address)


def _database(engines: Mapping[str, Engine], app_name: str) -> DatabaseSnapshot:
    engine = next(iter(engines.values()))
    pools = tuple(pool_snapshot(bind, each.pool) for bind, each in engines.items())
    database = DatabaseSnapshot(
        binds=tuple(engines),
        dialect=engine.dialect.name,
        driver=engine.dialect.driver,
        url=shown_url(engine.url),
        pools=pools,
        notes=tuple(f"A {pool.class_name} keeps no counters." for pool in pools if not pool.has_counters),
    )
    try:
        return _read(database, engine, app_name)
    except Exception as error:  # noqa: BLE001 (of a driver, a creator or an event of the app's own: reported)
        return dataclasses.replace(database, error=error_line(error, engine.url))


def _each_once(databases: Iterable[DatabaseSnapshot]) -> list[DatabaseSnapshot]:
    """Put together what has turned out to be one database: a server has several roles, addresses and poolers."""
    found: dict[object, DatabaseSnapshot] = {}
    for number, database in enumerate(databases):
        key = database.identity or number
        found[key] = found[key].with_other(database) if key in found else database
    return list(found.values())


def _with_outcomes(database: DatabaseSnapshot, engines: Mapping[str, Engine]) -> DatabaseSnapshot:
    """Ask for each prepared part the database that decides over it."""
    by_part = {as_part(bind): engine for bind, engine in engines.items()}
    prepared = tuple(
        dataclasses.replace(each, outcome=outcome_of(by_part[each.decided_by], each.xid))
        if each.decided_by in by_part
        else each
        for each in database.prepared
    )
    return dataclasses.replace(database, prepared=prepared)


def _read(database: DatabaseSnapshot, engine: Engine, app_name: str) -> DatabaseSnapshot:
    if database.dialect == "postgresql":
        return with_sessions(database, engine, app_name)
    if database.dialect == "sqlite":
        return dataclasses.replace(database, sqlite=sqlite_database(engine.url))
    unread = f"What a {database.dialect} server knows of its sessions is not read."
    return dataclasses.replace(database, notes=(*database.notes, unread))
