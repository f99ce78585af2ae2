"""Connections that die in the pool: found by their sockets, at no round trip, before anybody sees an error."""

import os
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork
from tests.database.conftest import MakeBench
from tests.databases import Database
from tests.faults.proxy import LISTEN, Proxy
from tests.models import checked_out
from tests.throwaway_server import RestartableServer, restartable_server

DRIVERS = ("psycopg2", "psycopg")
DEADLINE_S = 10.0
POLL_S = 0.005
POOL_SIZE = 5
PID = sa.text("SELECT pg_backend_pid()")

on_postgresql = pytest.mark.parametrize("database", DRIVERS, indirect=True)
by_each_driver = pytest.mark.parametrize("driver", DRIVERS)
ways = pytest.mark.parametrize("way", ["tcp", "unix"])


def field(kind: bytes, text: str) -> bytes:
    return kind + text.encode() + b"\0"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


PARAMETER = message(b"S", field(b"", "TimeZone") + field(b"", "Asia/Tokyo"))
NOTICE = message(b"N", field(b"S", "WARNUNG") + field(b"V", "WARNING") + field(b"M", "the disk is warm") + b"\0")
LAST_WORDS = message(b"E", field(b"S", "FATAL") + field(b"C", "57P01") + field(b"M", "going down") + b"\0")


# ---- a server that is started anew


@pytest.fixture(scope="module")
def own_server() -> Iterator[RestartableServer]:
    """A server of this file's own, which its tests restart."""
    with restartable_server() as server:
        yield server


def make_app_on(url: sa.URL, **config: Any) -> tuple[Flask, UnitOfWork]:
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=url.render_as_string(hide_password=False), TESTING=True, **config)
    uow = UnitOfWork(app)
    app.add_url_rule("/", view_func=lambda: str(uow.session.scalar(PID)))
    return app, uow


def url_of(server: RestartableServer, driver: str, way: str) -> sa.URL:
    url = sa.make_url(server.url).set(drivername=f"postgresql+{driver}")
    if way == "tcp":
        return url
    return sa.URL.create(
        url.drivername,
        url.username,
        url.password,
        database=url.database,
        query={"host": server.socket_folder, "port": str(url.port)},
    )


def fill_pool(app: Flask, uow: UnitOfWork, number: int = POOL_SIZE) -> set[int]:
    """Open as many connections, give them back, and return their servers' numbers."""
    with app.app_context(), ExitStack() as stack:
        return {stack.enter_context(uow.engine.connect()).scalar(PID) or 0 for _ in range(number)}


@ways
@by_each_driver
@pytest.mark.parametrize("is_immediate", [False, True], ids=["fast", "immediate"])
def test_no_request_sees_a_restart(own_server: RestartableServer, driver: str, way: str, is_immediate: bool) -> None:
    """The whole pool is dead, and one request after the other is answered."""
    app, uow = make_app_on(url_of(own_server, driver, way))
    old = fill_pool(app, uow)

    own_server.restart(is_immediate=is_immediate)
    answers = [app.test_client().get("/") for _ in range(POOL_SIZE + 1)]

    assert len(old) == POOL_SIZE
    assert [answer.status_code for answer in answers] == [200] * (POOL_SIZE + 1)
    assert checked_out(app) == 0


@ways
@by_each_driver
def test_every_connection_of_the_pool_is_replaced(own_server: RestartableServer, driver: str, way: str) -> None:
    """Taken all at the same time, each is a new one."""
    app, uow = make_app_on(url_of(own_server, driver, way))
    old = fill_pool(app, uow)

    own_server.restart()
    new = fill_pool(app, uow)

    assert len(new) == POOL_SIZE
    assert new.isdisjoint(old)


# ---- what an idle connection may have to read


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this run, and its key, in one file."""
    openssl = shutil.which("openssl")
    assert openssl, "The tests of TLS need the program openssl."
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "server.crt", folder / "server.key"
    request = ["req", "-new", "-x509", "-days", "2", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=localhost"]
    subprocess.run([openssl, *request, "-keyout", key, "-out", made], check=True, capture_output=True)
    both = folder / "server.pem"
    both.write_text(key.read_text() + made.read_text())
    return both


@pytest.fixture(params=["plain", "tls"])
def proxied(
    request: pytest.FixtureRequest, make_proxied_bench: MakeBench, proxy: Proxy, database: Database, certificate: Path
) -> tuple[Flask, UnitOfWork]:
    """An app behind the proxy, with one connection in its pool; with and without TLS."""
    mode = "disable"
    if request.param == "tls":
        proxy.encrypt(certificate)
        mode = "require"
    url = sa.make_url(database.url).set(host=LISTEN, port=proxy.port).update_query_dict({"sslmode": mode})
    bench = make_proxied_bench(SQLALCHEMY_DATABASE_URI=url.render_as_string(hide_password=False))
    assert is_encrypted(bench.uow, bench.app) == (request.param == "tls")
    proxy.requests()
    return bench.app, bench.uow


def is_encrypted(uow: UnitOfWork, app: Flask) -> bool:
    with app.app_context(), uow.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return bool(driver.pgconn.ssl_in_use if hasattr(driver, "pgconn") else driver.info.ssl_in_use)


def take(app: Flask, uow: UnitOfWork) -> Any:
    """Take a connection and give it back; return the driver's own."""
    with app.app_context(), uow.engine.connect() as connection:
        return connection.connection.driver_connection


def wait_until(question: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < end, "It does not come."
        time.sleep(POLL_S)


@on_postgresql
def test_a_look_is_no_round_trip(proxied: tuple[Flask, UnitOfWork], proxy: Proxy) -> None:
    """Connections are taken and given back, and the server hears nothing at all."""
    app, uow = proxied
    taken = {id(take(app, uow)) for _ in range(5)}

    assert len(taken) == 1
    assert proxy.requests() == []


@on_postgresql
@pytest.mark.parametrize("said", [PARAMETER, NOTICE, PARAMETER + NOTICE * 3], ids=["parameter", "notice", "several"])
def test_what_is_said_meanwhile_is_no_death(proxied: tuple[Flask, UnitOfWork], proxy: Proxy, said: bytes) -> None:
    """A server may tell a parameter's new value, or a warning, to a client that has asked nothing."""
    app, uow = proxied
    before = take(app, uow)

    proxy.say(said)
    wait_until(lambda: is_readable(before))
    after = take(app, uow)
    quiet = not is_readable(after)

    assert after is before
    assert quiet
    assert proxy.requests() == []
    with app.app_context():
        assert uow.session.scalar(sa.text("SELECT 7")) == 7


@on_postgresql
def test_what_was_said_meanwhile_is_handed_on(proxied: tuple[Flask, UnitOfWork], proxy: Proxy) -> None:
    """A notice is where the driver keeps notices, a parameter's value is the new one."""
    app, uow = proxied
    driver = take(app, uow)
    told: list[str] = []
    if hasattr(driver, "pgconn"):
        driver.add_notice_handler(lambda notice: told.append(notice.message_primary))

    proxy.say(NOTICE + PARAMETER)
    wait_until(lambda: is_readable(driver))
    take(app, uow)

    if not hasattr(driver, "pgconn"):
        told = list(driver.notices)
    assert "the disk is warm" in "".join(told)
    assert driver.info.parameter_status("TimeZone") == "Asia/Tokyo"


@on_postgresql
def test_the_servers_last_words_are_a_death(
    proxied: tuple[Flask, UnitOfWork], proxy: Proxy, database: Database
) -> None:
    """Whatever is said before it, the end of the stream is the end."""
    app, uow = proxied
    before = take(app, uow)
    proxy.say(LAST_WORDS)
    wait_until(lambda: is_readable(before))
    for session in database.sessions():
        database.kill(session.pid)

    with app.app_context():
        assert uow.session.scalar(sa.text("SELECT 7")) == 7
    assert take(app, uow) is not before


@on_postgresql
def test_a_listener_is_left_alone(proxied: tuple[Flask, UnitOfWork], proxy: Proxy, database: Database) -> None:
    """It keeps its connection, and finds what was sent to it while the connection was in the pool."""
    app, uow = proxied
    with app.app_context(), uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("LISTEN news")
        listener: Any = connection.connection.driver_connection
    proxy.requests()

    database.execute("NOTIFY news, 'extra'")
    wait_until(lambda: is_readable(listener))
    again = take(app, uow)
    kept = again.notifies if isinstance(again.notifies, list) else list(again.notifies(timeout=0))

    assert again is listener
    assert [notification.payload for notification in kept] == ["extra"]
    assert "LISTEN" not in proxy.words()


@on_postgresql
def test_a_session_that_was_ended_is_replaced(proxied: tuple[Flask, UnitOfWork], database: Database) -> None:
    """Behind TLS as well, where the end is not the first thing to read."""
    app, uow = proxied
    before = take(app, uow)
    for session in database.sessions():
        database.kill(session.pid)
    wait_until(lambda: is_readable(before))

    with app.app_context():
        assert uow.session.scalar(sa.text("SELECT 7")) == 7
    assert take(app, uow) is not before


def is_readable(driver: Any) -> bool:
    return bool(select.select([driver], [], [], 0)[0])


# ---- silent deaths


def parameters_of(url: sa.URL, **config: Any) -> dict[str, str]:
    """Return what libpq was told for an app's connection."""
    app, uow = make_app_on(url, **config)
    driver = take(app, uow)
    found: dict[str, str] = driver.info.get_parameters() if hasattr(driver, "pgconn") else driver.info.dsn_parameters
    names = (
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    )
    return {name: found[name] for name in names if name in found}


DEFAULTS = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


@by_each_driver
def test_a_connection_by_tcp_notices_a_server_that_goes_silent(own_server: RestartableServer, driver: str) -> None:
    """The socket itself has the settings."""
    app, uow = make_app_on(url_of(own_server, driver, "tcp"))
    connection = take(app, uow)
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        set_ = [
            copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        ]

    assert set_ == [1, 30, 10, 3, 30_000]


@by_each_driver
def test_the_users_own_settings_win(own_server: RestartableServer, driver: str) -> None:
    """Those of the URL, and those of ``connect_args``; the others stay."""
    url = url_of(own_server, driver, "tcp").update_query_dict({"keepalives_idle": "7"})
    options = {"connect_args": {"tcp_user_timeout": 9000}}

    found = parameters_of(url, SQLALCHEMY_ENGINE_OPTIONS=options)

    assert found == DEFAULTS | {"keepalives_idle": "7", "tcp_user_timeout": "9000"}


@by_each_driver
def test_what_the_user_says_to_libpq_wins(
    own_server: RestartableServer, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own words, or in its variable."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "9")
    url = url_of(own_server, driver, "tcp")
    said = {"dsn" if driver == "psycopg2" else "conninfo": "keepalives_idle=7"}

    found = parameters_of(url, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": said})

    assert found == DEFAULTS | {"connect_timeout": "9", "keepalives_idle": "7"}


@by_each_driver
def test_a_unix_socket_is_told_nothing_of_tcp(own_server: RestartableServer, driver: str) -> None:
    """It has no use for that."""
    found = parameters_of(url_of(own_server, driver, "unix"))

    found.pop("keepalives", None)
    assert found == {"connect_timeout": "5"}


# ---- pool_pre_ping


@on_postgresql
def test_a_ping_that_the_user_wants_is_sent(make_proxied_bench: MakeBench, proxy: Proxy, database: Database) -> None:
    """One round trip for each checkout, instead of our look, and a dead connection is replaced by it."""
    bench = make_proxied_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True})
    before = take(bench.app, bench.uow)
    asked = proxy.requests()
    for session in database.sessions():
        database.kill(session.pid)

    with bench.app.app_context():
        assert bench.uow.session.scalar(sa.text("SELECT 7")) == 7
    assert len(asked) == 1
    assert take(bench.app, bench.uow) is not before
