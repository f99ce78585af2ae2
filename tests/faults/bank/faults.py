"""What happens to the bank meanwhile: each fault is a function that begins, lasts, and is over when it returns."""

import contextlib
import http.client
import json
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.databases import PostgreSQLDatabase
from tests.faults.bank.clients import JSON, Journal, Order, Told, give
from tests.faults.bank.terms import FIRST_ACCOUNT, POOL_TIMEOUT_S, STATEMENT_TIMEOUT_S
from tests.faults.proxy import Cut, Proxy
from tests.throwaway_server import RestartableServer

PERSISTENT_S = 0.6
"""How long what lasts, lasts."""
SLOW_REQUESTS = 14
CUTS = 3
DEADLINE_S = 30.0


@dataclass
class Site:
    """The bank, and what it stands on.

    :param port: gunicorn's.
    :param master: gunicorn's process.
    :param database: reached past the proxy.
    :param journal: where is written down what was told, here too.
    :param chance: picks who is hit.
    :param orders: of which no two are the same.
    """

    port: int
    master: psutil.Process
    server: RestartableServer
    database: PostgreSQLDatabase
    proxy: Proxy
    journal: Journal
    chance: random.Random
    orders: Iterator[Order]

    def workers(self) -> list[psutil.Process]:
        """Gunicorn's workers."""
        return [child for child in self.master.children() if child.status() != psutil.STATUS_ZOMBIE]

    def sessions(self) -> list[int]:
        """The server's processes that serve the bank."""
        return [session.pid for session in self.database.sessions()]


Fault = Callable[[Site], None]


# ---- the server


def end_sessions(site: Site) -> None:
    """``pg_terminate_backend`` of some sessions, whatever they do."""
    for _ in range(4):
        pids = site.sessions()
        for pid in site.chance.sample(pids, min(2, len(pids))):
            site.database.execute("SELECT pg_terminate_backend(%s)", pid)
        time.sleep(0.05)


def cancel_statements(site: Site) -> None:
    """``pg_cancel_backend`` of all sessions, some times."""
    for _ in range(5):
        for pid in site.sessions():
            site.database.execute("SELECT pg_cancel_backend(%s)", pid)
        time.sleep(0.05)


def restart_fast(site: Site) -> None:
    """The server ends every session, and starts anew."""
    site.server.restart()


def restart_immediately(site: Site) -> None:
    """The server ends as in a crash, and recovers."""
    site.server.restart(is_immediate=True)


def hold_locks(site: Site) -> None:
    """Somebody locks all accounts, three times, longer than a timed order may take."""
    for _ in range(3):
        with closing(site.database.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("BEGIN; LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
            time.sleep(PERSISTENT_S / 2)
        time.sleep(0.05)


def outlast_timeouts(site: Site) -> None:
    """An account is locked for longer than an order for it may take."""
    order = _for_account(next(site.orders), "/timed")
    with closing(site.database.connect()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM account WHERE id = %s FOR UPDATE", (FIRST_ACCOUNT,))
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(_give_once, site, order)
            time.sleep(2 * STATEMENT_TIMEOUT_S)
            cursor.execute("ROLLBACK")
        answer.result(DEADLINE_S)


def fill_disk(site: Site) -> None:
    """The disk of the books is full."""
    ballast = Path(site.server.small_disk, "ballast")
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        time.sleep(PERSISTENT_S)
    finally:
        ballast.unlink(missing_ok=True)


# ---- the network


def cut_before_commit(site: Site) -> None:
    """Connections break before their COMMIT reaches the server."""
    _cut(site, Cut.BEFORE)


def cut_after_commit(site: Site) -> None:
    """Connections break as soon as their COMMIT is on its way."""
    _cut(site, Cut.AFTER)


def cut_reply(site: Site) -> None:
    """Connections break when the server has replied to their COMMIT."""
    _cut(site, Cut.REPLY)


def _cut(site: Site, cut: Cut) -> None:
    site.proxy.cut(cut, times=CUTS)
    until = time.monotonic() + DEADLINE_S
    while site.proxy.cuts_left() and time.monotonic() < until:
        time.sleep(0.01)
    site.proxy.reset()


def stall(site: Site) -> None:
    """Nothing gets through."""
    site.proxy.stall()
    time.sleep(PERSISTENT_S)
    site.proxy.reset()


def slow_down(site: Site) -> None:
    """Everything gets through late."""
    site.proxy.slow_down(0.03)
    time.sleep(PERSISTENT_S)
    site.proxy.reset()


# ---- the workers


def kill_worker(site: Site) -> None:
    """``kill -9`` of a worker."""
    _end_worker(site, signal.SIGKILL)


def end_worker(site: Site) -> None:
    """SIGTERM to a worker."""
    _end_worker(site, signal.SIGTERM)


def _end_worker(site: Site, number: signal.Signals) -> None:
    worker = site.chance.choice(site.workers())
    worker.send_signal(number)
    # Its master has to see that it has ended before it can be told apart from a zombie that stays.
    until = time.monotonic() + DEADLINE_S
    while worker.is_running() and time.monotonic() < until:
        time.sleep(0.01)


# ---- the clients


def fill_pool(site: Site) -> None:
    """More requests than there are connections, each with one for longer than the others wait for it."""
    path = f"/slow/{int(1000 * (POOL_TIMEOUT_S + PERSISTENT_S))}"
    with ThreadPoolExecutor(SLOW_REQUESTS) as threads:
        for answer in [threads.submit(_post, site, path) for _ in range(SLOW_REQUESTS)]:
            answer.result(DEADLINE_S)


def leave_in_the_middle(site: Site) -> None:
    """Clients go away in the middle of their request's body, or before the answer comes."""
    for number in range(12):
        order = next(site.orders)
        body = json.dumps(order.body).encode()
        is_whole = number % 3 == 0
        with socket.create_connection(("127.0.0.1", site.port), DEADLINE_S) as client:
            client.sendall(_head(order.path, len(body)) + (body if is_whole else body[: len(body) // 2]))
        for memo in order.memos:
            site.journal.write(memo, Told.NOTHING if is_whole else Told.REFUSED)
        site.journal.count(order.path, "gone before the answer" if is_whole else "gone in the middle")


def _head(path: str, length: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in JSON.items())]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def leave_a_stream(site: Site) -> None:
    """Clients go away when they have read the beginning of a stream."""
    for _ in range(4):
        order = _for_account(next(site.orders), "/streamed")
        body = json.dumps(order.body).encode()
        with socket.create_connection(("127.0.0.1", site.port), DEADLINE_S) as client:
            client.sendall(_head("/streamed", len(body)) + body)
            client.recv(1)
        site.journal.count("/streamed", "left")
        for part in range(3):
            site.journal.write(f"{order.memos[0]}/{part}", Told.NOTHING)


def _for_account(order: Order, path: str) -> Order:
    """The same order, given another way, and for the first account."""
    body = {**order.body, "from": FIRST_ACCOUNT, "to": FIRST_ACCOUNT + 1}
    return Order(path, body, order.memos)


def _give_once(site: Site, order: Order) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE_S)) as connection:
        give(connection, order, site.journal)


def _post(site: Site, path: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE_S)) as connection:
        try:
            connection.request("POST", path, headers=JSON)
            response = connection.getresponse()
            response.read()
            site.journal.count("/slow", str(response.status))
        except (OSError, http.client.HTTPException) as error:
            site.journal.count("/slow", type(error).__name__)


FAULTS: dict[str, Fault] = {
    "sessions ended": end_sessions,
    "statements cancelled": cancel_statements,
    "server restarted, fast": restart_fast,
    "server restarted, immediate": restart_immediately,
    "locks held": hold_locks,
    "timeouts outlasted": outlast_timeouts,
    "disk full": fill_disk,
    "cut before COMMIT": cut_before_commit,
    "cut after COMMIT": cut_after_commit,
    "COMMIT's reply eaten": cut_reply,
    "network stalls": stall,
    "network slow": slow_down,
    "worker killed": kill_worker,
    "worker terminated": end_worker,
    "pool exhausted": fill_pool,
    "body broken off": leave_in_the_middle,
    "stream left": leave_a_stream,
}
