"""What psycopg 3 is asked for by libpq's own functions, and by psycopg's methods where these are not found."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import generators, pq
from psycopg.abc import PQGen

from flask_uow._drivers import _libpq
from tests.databases import PostgreSQLDatabase
from tests.ride.psycopg_bench import Told, riding

LARGE = 20_000_000  # bytes: more than the sockets of both sides hold


@pytest.fixture(params=["libpq", "psycopg"])
def told(
    postgres: PostgreSQLDatabase, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Told]:
    """A riding connection, by either way."""
    if request.param == "psycopg":
        monkeypatch.setattr(_libpq, "_libpq", None)
    with riding(postgres.driverless_url) as told:
        yield told


@pytest.mark.skipif(pq.__impl__ == "python", reason="It has no module in C.")
def test_the_libpq_of_psycopg_is_found() -> None:
    """It is the one that psycopg's module was linked with."""
    assert _libpq._libpq is not None
    assert _libpq._libpq.PQlibVersion() == pq.version()


def test_what_listen_hears(told: Told, postgres: PostgreSQLDatabase) -> None:
    """It comes with a statement's answer, or a COMMIT's, in its order."""
    heard: list[psycopg.Notify] = []
    told.connection.add_notify_handler(heard.append)
    told.cursor.execute("LISTEN channel")
    told.connection.commit()
    for text in ("one", "two"):
        postgres.execute(f"NOTIFY channel, '{text}'")

    told.cursor.execute("SELECT 1")
    told.cursor.execute("NOTIFY channel, 'mine, ä'")
    assert [notification.payload for notification in heard] == ["one", "two"]
    told.connection.commit()

    assert [notification.payload for notification in heard] == ["one", "two", "mine, ä"]
    assert {notification.channel for notification in heard} == {"channel"}
    assert heard[-1].pid == told.connection.info.backend_pid


def test_more_than_sockets_hold(told: Told) -> None:
    """What is sent, and what comes back, is taken in parts."""
    for _ in range(2):  # the first one is prepared by none, and rides
        told.cursor.execute("SELECT repeat(%s, 2)", ("x" * LARGE,))
        ((answer,),) = told.cursor.fetchall()
        assert len(answer) == 2 * LARGE


@pytest.mark.parametrize("first", [(), ("SELECT 1",)], ids=["rides", "alone"])
def test_large_answers_are_left_to_psycopg(told: Told, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...]) -> None:
    """It lets other threads run while it reads them; a first read brings no more than a new connection has room for."""
    left: list[pq.abc.PGconn] = []

    def fetch(pgconn: pq.abc.PGconn) -> PQGen[pq.abc.PGresult | None]:
        left.append(pgconn)
        result: pq.abc.PGresult | None = yield from psycopg_fetch(pgconn)
        return result

    psycopg_fetch = generators.fetch
    monkeypatch.setattr(generators, "fetch", fetch)
    told.tell(*first)
    left.clear()
    told.cursor.execute("SELECT repeat('x', %s)", (LARGE,))
    assert left


@pytest.mark.parametrize("first", [(), ("SELECT 1",)], ids=["rides", "alone"])
def test_what_was_read_before_a_statement_is_sent(
    told: Told, postgres: PostgreSQLDatabase, first: tuple[str, ...]
) -> None:
    """A server that has ended the connection says why, though libpq has read all of it before."""
    told.tell(*first)
    postgres.kill(told.connection.info.backend_pid)
    told.connection.pgconn.consume_input()
    with pytest.raises(psycopg.errors.AdminShutdown):
        told.cursor.execute("SELECT 1")


def test_a_connection_that_another_thread_closes(told: Told) -> None:
    """What it was about to answer is missing: that is psycopg's error."""
    pgconn = told.connection.pgconn
    _libpq.send_query(pgconn, b"SELECT 1")
    pgconn.finish()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        next(_libpq.fetch_many(pgconn))


def test_what_libpq_does_not_take(told: Told) -> None:
    """It is psycopg's error, and says why."""
    pgconn = told.connection.pgconn
    with pytest.raises(psycopg.OperationalError, match="pipeline mode"):
        in_pipeline(pgconn)
    with pytest.raises(psycopg.OperationalError, match="sending a command failed"):
        _libpq.sync(pgconn)
    told.connection.close()
    with pytest.raises(psycopg.OperationalError, match="connection"):
        _libpq.queue_query(pgconn, b"SELECT 1")
    assert not _libpq._is_busy(pgconn)


def in_pipeline(pgconn: pq.abc.PGconn) -> None:
    pgconn.enter_pipeline_mode()
    try:
        _libpq.send_query(pgconn, b"SELECT 1")
    finally:
        pgconn.exit_pipeline_mode()
