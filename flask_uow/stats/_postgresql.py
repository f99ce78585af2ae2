"""What a PostgreSQL server says of an app's sessions, asked over a connection that is nobody else's.

The app's pool may be dry at the very moment when somebody wants to know why. So the question is asked over a new
connection, made the way the engine makes its own, and by a thread of its own that is not waited for for ever: a
network that swallows packets is one of the reasons for asking.

The role needs no privilege. What it may not see of other roles' sessions, the server blanks and we call hidden.
"""

from __future__ import annotations

import contextvars
import dataclasses
import threading
import typing as t
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, Row, TextClause, create_engine, text

from .._application_name import is_own_name, like_pattern, name_prefix, unit_label, worker_pid
from .._checkouts import unwatched
from .._drivers import server_process
from .._two_phase import PreparedName
from ._query_line import query_line
from ._values import IDLE, DatabaseSnapshot, PreparedTransaction, ServerSession, Summary

READER_NAME = "flask_uow db-session-stats"
_STATEMENT_TIMEOUT_S = 5.0
_DEADLINE_S = 8.0

T = t.TypeVar("T")


def with_sessions(database: DatabaseSnapshot, engine: Engine, app_name: str) -> DatabaseSnapshot:
    """Complete a database's snapshot with what its server says.

    :param database: what is known without the server.
    :param engine: one of the app's engines for that database; its pool is not touched.
    :param app_name: the Flask app's name.
    :raises TimeoutError: if the server does not answer in time.
    """
    return _in_time(lambda: _ask(database, engine, app_name), _DEADLINE_S)


def _in_time(function: Callable[[], T], seconds: float) -> T:
    """Wait for a function at most for some seconds; after that it goes on unheard."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised again by whoever waits)
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="flask_uow stats", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def _ask(database: DatabaseSnapshot, engine: Engine, app_name: str) -> DatabaseSnapshot:
    with _own_connection(engine) as connection:
        server = connection.execute(_question("server")).one()
        told_pid = server_process(database.driver, connection.connection.dbapi_connection)
        own_name = None if is_own_name(server.application_name) else server.application_name
        connection.execute(_question("limits"), _limits())
        names = {"pattern": like_pattern(app_name), "own_name": own_name, "reader_name": READER_NAME}
        rows = connection.execute(_question("sessions"), names).all()
        prepared = connection.execute(_question("prepared"), {"pattern": like_pattern(app_name)}).all()
    sessions = tuple(_server_session(row) for row in rows if row.is_own)
    return dataclasses.replace(
        database,
        server_version=server.server_version,
        identity=f"{server.database}@{server.started_at}",
        found_by=_found_by(app_name, server),
        client_address=server.client_address,
        is_pooled=bool(told_pid) and told_pid != server.backend_pid,
        sessions=sessions,
        blockers=tuple(_server_session(row) for row in rows if not row.is_own),
        prepared=tuple(_prepared(prepared)),
        summary=Summary.of(sessions),
        notes=(*database.notes, *_notes(server)),
    )


@contextmanager
def _own_connection(engine: Engine) -> Iterator[Connection]:
    """Connect as the engine does (its URL, arguments, creator and events), but beside its pool."""
    reader = create_engine(engine.url, pool=unwatched(engine.pool))
    try:
        with reader.connect() as connection:
            yield connection
    finally:
        reader.dispose()


def _question(name: str) -> TextClause:
    from importlib.resources import files

    return text(files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8"))


def _limits() -> dict[str, str]:
    return {"timeout_ms": str(int(_STATEMENT_TIMEOUT_S * 1000)), "reader_name": READER_NAME}


def _server_session(row: Row[t.Any]) -> ServerSession:
    # Outside of its transaction a label would be somebody else's doing, and another app's unit is none of this one.
    label = unit_label(row.application_name) if row.is_own and row.state != IDLE else None
    return ServerSession(
        pid=row.pid,
        application_name=row.application_name,
        worker_pid=worker_pid(row.application_name),
        user=row.user_name,
        database=row.database,
        client_address=row.client_address,
        state=row.state,
        transaction_age_seconds=_age(row.transaction_age_seconds),
        state_age_seconds=_age(row.state_age_seconds),
        wait_event=row.wait_event,
        query=None if row.query is None else query_line(row.query),
        blocked_by=tuple(dict.fromkeys(row.blocked_by or ())),
        wait_seconds=_age(row.wait_seconds),
        connected_seconds=_age(row.connected_seconds),
        unit=label,
        view=label,
        is_told_by_server=label is not None,
    )


def _prepared(rows: Iterable[Row[t.Any]]) -> Iterator[PreparedTransaction]:
    for row in rows:
        name = PreparedName.read(row.name)
        if name is not None:
            yield PreparedTransaction(
                name=row.name,
                role=row.role,
                age_seconds=_age(row.age_seconds),
                bind=name.bind,
                decided_by=name.decider,
                xid=name.xid,
            )


def outcome_of(engine: Engine, xid: str) -> str | None:
    """What a server says of a transaction: ``committed``, ``aborted`` or ``in progress``; None if it cannot say.

    :param engine: one of the app's engines; its pool is not touched.
    :param xid: the transaction's id.
    """

    def ask() -> str | None:
        with _own_connection(engine) as connection:
            connection.execute(_question("limits"), _limits())
            status: str | None = connection.scalar(_question("outcome"), {"xid": xid})
            return status

    with suppress(Exception):  # it is said elsewhere that the database cannot be read
        return _in_time(ask, _DEADLINE_S)
    return None


def _age(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(0.0, seconds), 3)


def _found_by(app_name: str, server: Row[t.Any]) -> str:
    if is_own_name(server.application_name):
        return f"application_name {name_prefix(app_name)}*"
    return f"application_name {server.application_name!r} of role {server.role!r}"


def _notes(server: Row[t.Any]) -> Iterator[str]:
    if not is_own_name(server.application_name):
        yield (
            "This app's connections are not named by flask_uow: other programs that connect "
            "under the same name and role are counted too, and a session whose worker is gone is not called an orphan."
        )
