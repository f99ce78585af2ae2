"""One run: the bank opens, people come, one fault follows the other, and in the end somebody counts the money."""

import contextlib
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.databases import PostgreSQLDatabase, Server
from tests.faults.bank.books import Verdict, audit
from tests.faults.bank.clients import CLIENTS, CUSTOMERS, JSON, Client, Journal, Told, give, make_transfer
from tests.faults.bank.faults import FAULTS, Site
from tests.faults.bank.terms import FIRST_ACCOUNT
from tests.faults.proxy import LISTEN, Proxy, run_proxy
from tests.throwaway_server import find_free_port, restartable_server

ROOT = Path(__file__).parents[3]
WORKERS, THREADS = 2, 4
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 20.0
QUIET_TIMEOUT_S = 10.0
SMALL_DISK_MB = 24
ROWS_PER_PAGE = "fillfactor = 10"
"""So that a table grows often."""
FLASK_UOW, BY_HAND = "ours", "by_hand"


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    :param seed: decides which faults come when, and what is ordered.
    :param acknowledged: after how many transfers the bank closes, if all faults are over.
    :param faults: how many.
    :param app: :data:`FLASK_UOW` or :data:`BY_HAND`.
    :param log: the file that the workers' log is to be in.
    """

    seed: int
    acknowledged: int
    faults: int
    driver: str = "psycopg2"
    app: str = FLASK_UOW
    log: Path | None = None

    def names(self, possible: list[str]) -> list[str]:
        """The faults in their order: each that is possible as often as the others."""
        chance = random.Random(self.seed)
        rounds = (chance.sample(possible, len(possible)) for _ in itertools.count())
        return list(itertools.islice(itertools.chain.from_iterable(rounds), self.faults))


@dataclass
class Report:
    """What has happened.

    :ivar recovered_s: for each fault, how long after its end the bank read and wrote again, in seconds.
    :ivar left: what was left behind when everybody had gone.
    :ivar impossible: faults that this machine does not have.
    """

    plan: Plan
    verdict: Verdict = field(default_factory=Verdict)
    journal: Journal = field(default_factory=Journal)
    recovered_s: list[tuple[str, float]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    impossible: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(plan: Plan) -> Report:
    """Open a bank on a server of its own, and see what becomes of it."""
    report = Report(plan)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(restartable_server(small_disk_mb=SMALL_DISK_MB))
        database = Server(server.url).database(plan.driver)
        url = sa.make_url(database.url)
        proxy = stack.enter_context(run_proxy(str(url.host), int(url.port or 0)))
        environment = _environment(folder, database, proxy)
        _open_books(database, environment, server.small_disk)
        port, master = stack.enter_context(_gunicorn(plan.app, environment, plan.log or folder / "log"))
        orders = (make_transfer(random.Random(number), f"!{number}") for number in itertools.count())
        chance = random.Random(plan.seed)
        site = Site(port, master, server, database, proxy, report.journal, chance, orders)
        began = time.monotonic()
        _live_through(plan, site, report)
        report.seconds = time.monotonic() - began
        _look_around(site, environment, report)
        report.verdict = audit(database, report.journal)
    return report


def _environment(folder: Path, database: PostgreSQLDatabase, proxy: Proxy) -> dict[str, str]:
    url = sa.make_url(database.url).set(host=LISTEN, port=proxy.port)
    return {
        **os.environ,
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "BANK_OUTBOX": str(folder / "outbox.jsonl"),
        "TMPDIR": str(folder),  # for the boards, so that no other bank's are among them
    }


def _open_books(database: PostgreSQLDatabase, environment: dict[str, str], small_disk: str) -> None:
    for arguments in (["init"], ["seed", "--customers", str(CUSTOMERS)]):
        command = [sys.executable, "-m", "flask", "--app", "sample.bank", "bank", *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    if not small_disk:
        return
    database.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    for table in ("transfer", "entry", "audit"):
        database.execute(f"ALTER TABLE {table} SET ({ROWS_PER_PAGE})")
        database.execute(f"ALTER TABLE {table} SET TABLESPACE small")


@contextlib.contextmanager
def _gunicorn(app: str, environment: dict[str, str], log: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = find_free_port()
    size = [f"--workers={WORKERS}", f"--threads={THREADS}", "--worker-class=gthread", "--keep-alive=30"]
    always = ["--no-control-socket", "--log-level=warning", f"--bind=127.0.0.1:{port}"]
    command = [sys.executable, "-m", "gunicorn", *size, *always, f"tests.faults.bank.{app}:create_app()"]
    with log.open("wb") as file, subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file) as gunicorn:
        try:
            _answer_s(port, time.monotonic(), START_TIMEOUT_S)
            yield port, psutil.Process(gunicorn.pid)
        finally:
            gunicorn.terminate()


# ---- while it lasts


def _live_through(plan: Plan, site: Site, report: Report) -> None:
    possible = [name for name in FAULTS if name != "disk full" or site.server.small_disk]
    report.impossible = [name for name in FAULTS if name not in possible]
    names = plan.names(possible)
    clients = [Client(number, site.port, report.journal, plan.seed) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        visits = [threads.submit(client.visit) for client in clients]
        try:
            for number, name in enumerate(names):
                _wait_for(report.journal, plan.acknowledged * number // len(names))
                FAULTS[name](site)
                report.recovered_s.append((name, _recovered_s(site)))
            _wait_for(report.journal, plan.acknowledged)
        finally:
            for client in clients:
                client.is_closing.set()
        for visit in visits:
            visit.result()


def _wait_for(journal: Journal, acknowledged: int) -> None:
    seen, seen_at = journal.acknowledged, time.monotonic()
    while journal.acknowledged < acknowledged:
        time.sleep(0.01)
        if journal.acknowledged > seen:
            seen, seen_at = journal.acknowledged, time.monotonic()
        assert time.monotonic() - seen_at < ANSWER_TIMEOUT_S, f"nobody was served any more: {journal.answers}"


def _recovered_s(site: Site) -> float:
    """How long it takes until the bank reads and writes again, in seconds."""
    over = time.monotonic()
    _answer_s(site.port, over, ANSWER_TIMEOUT_S)
    return _answer_s(site.port, over, ANSWER_TIMEOUT_S, site)


def _answer_s(port: int, since: float, timeout_s: float, site: Site | None = None) -> float:
    while not (_is_read(port) if site is None else _is_written(site)):
        assert time.monotonic() - since < timeout_s, "The bank does not answer any more."
        time.sleep(0.02)
    return time.monotonic() - since


def _is_read(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)) as connection:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/accounts/{FIRST_ACCOUNT}", headers=JSON)
            response = connection.getresponse()
            response.read()
            return response.status == 200
    return False


def _is_written(site: Site) -> bool:
    order = next(site.orders)
    with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=ANSWER_TIMEOUT_S)) as connection:
        give(connection, order, site.journal)
    return Told.DONE in site.journal.told[order.memos[0]]


# ---- afterwards


def _look_around(site: Site, environment: dict[str, str], report: Report) -> None:
    """Wait until what was asked for has ended, then say what has stayed."""
    until = time.monotonic() + QUIET_TIMEOUT_S
    while left := _left(site, environment, report.plan.app):
        if time.monotonic() > until:
            report.left.update(left)
            return
        time.sleep(0.2)


def _left(site: Site, environment: dict[str, str], app: str) -> Counter[str]:
    left: Counter[str] = Counter()
    pools = _pools(site)
    open_connections = sum(pool["checked_out"] + pool["checked_in"] for pool in pools)
    sessions = site.database.sessions()
    left["connections checked out"] = sum(pool["checked_out"] for pool in pools)
    left["sessions in a transaction"] = sum(session.state != "idle" for session in sessions)
    left["sessions of nobody"] = max(0, len(sessions) - open_connections)
    left["zombies"] = sum(child.status() == psutil.STATUS_ZOMBIE for child in site.master.children(recursive=True))
    if app == FLASK_UOW:
        left.update(_shown_left(environment))
    return +left


def _pools(site: Site) -> list[dict[str, int]]:
    """What each worker says of its pool."""
    said: dict[int, dict[str, int]] = {}
    until = time.monotonic() + QUIET_TIMEOUT_S
    while len(said) < len(site.workers()) and time.monotonic() < until:
        with closing(http.client.HTTPConnection("127.0.0.1", site.port, timeout=ANSWER_TIMEOUT_S)) as connection:
            connection.request("GET", "/pool", headers=JSON)
            pool = json.loads(connection.getresponse().read())
            said[pool["pid"]] = pool
    return list(said.values())


def _shown_left(environment: dict[str, str]) -> Counter[str]:
    """What ``flask db-session-stats`` says is still there."""
    command = [sys.executable, "-m", "flask", "--app", "sample.bank", "db-session-stats", "--json"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    document = json.loads(shown.stdout)
    left = Counter({"sessions or connections leaked, by the board": document["totals"]["sessions"]["leaked"]})
    left["units on the board"] = sum(len(worker["live"]) for worker in document["workers"])
    sessions = [session for database in document["databases"] for session in database["sessions"]]
    left["orphans, by the command"] = sum(session["is_orphan"] for session in sessions)
    return left
