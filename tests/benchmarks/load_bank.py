"""A day at the bank: many people at once, a third of whose orders are refused, and the books afterwards.

``python -m tests.benchmarks.load_bank --requests 10000`` starts a PostgreSQL and gunicorn, drives them, prints what was
asked and answered, and checks that what was acknowledged is in the books exactly once, and nothing else, and that the
workers' boards have counted just that.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.databases import PostgreSQLDatabase, run_server
from tests.throwaway_server import find_free_port

ROOT = Path(__file__).parents[2]
CUSTOMERS = 40
FIRST_ACCOUNT = 1001
LAST_ACCOUNT = FIRST_ACCOUNT + 2 * CUSTOMERS - 1
CLIENTS = 16
WORKERS = 2
THREADS = 4
START_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 30.0
QUIET_TIMEOUT_S = 5.0
MORE_THAN_ANYBODY_HAS = 900_000_00
MISTAKE_CODES = {
    "commit-by-hand": "UOW101",
    "commit-as-text": "UOW101",
    "rollback-by-hand": "UOW102",
    "forget-to-commit": "UOW103",
}

Order = tuple[str, dict[str, object] | None]


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    :param weight: how often it comes, in twelfths of all.
    :param answers: the statuses that are right.
    :param make: makes the path and the body from a random generator and a number that no other request has.
    """

    name: str
    weight: int
    answers: frozenset[int]
    make: Callable[[random.Random, int], Order]


def _account(chance: random.Random) -> int:
    # Even numbers are savings accounts, which open empty: only the others pay.
    return chance.randrange(FIRST_ACCOUNT, LAST_ACCOUNT, 2)


def _transfer(chance: random.Random, number: int) -> Order:
    target = chance.randrange(FIRST_ACCOUNT + 1, LAST_ACCOUNT + 1, 2)
    return "/transfers", {
        "from": _account(chance),
        "to": target,
        "amount_cents": chance.randint(1, 50),
        "memo": f"#{number}",
    }


def _poor_transfer(chance: random.Random, number: int) -> Order:
    path, body = _transfer(chance, number)
    return path, {**(body or {}), "amount_cents": MORE_THAN_ANYBODY_HAS}


def _lost_transfer(chance: random.Random, number: int) -> Order:
    path, body = _transfer(chance, number)
    return path, {**(body or {}), "to": LAST_ACCOUNT + 1 + chance.randrange(1000)}


def _withdrawal(chance: random.Random, _: int) -> Order:
    return "/withdrawals", {"account": _account(chance), "amount_cents": chance.randint(1, 50)}


def _deposit(chance: random.Random, number: int) -> Order:
    checks = [{"number": f"{number}-{part}", "amount_cents": chance.randint(1, 500)} for part in range(3)]
    return "/deposits", {"account": _account(chance), "checks": checks}


def _bad_deposit(chance: random.Random, number: int) -> Order:
    checks: list[dict[str, object]] = [{"number": f"{number}-{part}", "amount_cents": 100} for part in range(2)]
    checks.insert(1, {"number": "the same for all", "amount_cents": 0})
    return "/deposits", {"account": _account(chance), "checks": checks}


def _read(chance: random.Random, _: int) -> Order:
    return f"/accounts/{_account(chance)}", None


def _statement(chance: random.Random, _: int) -> Order:
    return f"/accounts/{_account(chance)}/statement.csv", None


def _mistake(chance: random.Random, _: int) -> Order:
    return f"/mistakes/{chance.choice(list(MISTAKE_CODES))}", {}


def _kind(name: str, weight: int, make: Callable[[random.Random, int], Order], *answers: int) -> Kind:
    return Kind(name, weight, frozenset(answers), make)


KINDS = [
    _kind("transfer", 3, _transfer, 201),
    _kind("deposit", 1, _deposit, 201),
    _kind("withdrawal", 1, _withdrawal, 201),
    _kind("account page", 2, _read, 200),
    _kind("statement", 1, _statement, 200),
    # A third of all orders goes wrong, each in a way of its own.
    _kind("transfer, too much", 1, _poor_transfer, 422),
    _kind("transfer, no such account", 1, _lost_transfer, 404),
    _kind("deposit, bad check", 1, _bad_deposit, 201),
    _kind("mistake", 1, _mistake, 200),
]


@dataclass
class Outcome:
    """What was answered, and what the bank has acknowledged."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    acknowledged: dict[int, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    cashed: set[str] = field(default_factory=set)
    mistakes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, kind: Kind, order: Order, status: int, text: str) -> None:
        """Count an answer, and keep what has to be in the books because of it, or must not be."""
        with self.lock:
            self.answers[kind.name, status] += 1
            if status not in kind.answers:
                self.wrong.append(f"{kind.name}: {order} was answered with {status}: {text[:300]}")
            path, body = order
            if path == "/transfers" and body:
                self._record_transfer(str(body["memo"]), status, text)
            if kind.name == "mistake":
                self.mistakes[path.rpartition("/")[2]] += 1
            if path == "/deposits" and status == 201:
                self.cashed |= {check["number"] for check in json.loads(text)["checks"] if check["transfer_id"]}

    def _record_transfer(self, memo: str, status: int, text: str) -> None:
        if status == 201:
            self.acknowledged[json.loads(text)["transfer_id"]] = memo
        else:
            self.refused.add(memo)

    def table(self) -> str:
        """Return the requests by kind and status."""
        total = self.answers.total()
        lines = [f"{name:<28}{status:>6}{number:>8}" for (name, status), number in sorted(self.answers.items())]
        head = f"{'request':<28}{'status':>6}{'number':>8}"
        return "\n".join([head, *lines, f"{total} requests in {self.seconds:.1f} s, {total / self.seconds:.0f}/s"])


def run_load(database: PostgreSQLDatabase, requests: int, outbox: Path) -> Outcome:
    """Open a bank on an empty database, drive it, and check it from outside while its workers still run."""
    folder = {"TMPDIR": str(outbox.parent)}  # for the boards, so that no other bank's are among them
    environment = {**os.environ, **folder, "DATABASE_URL": database.url, "BANK_OUTBOX": str(outbox)}
    for arguments in (["init"], ["seed", "--customers", str(CUSTOMERS)]):
        command = [sys.executable, "-m", "flask", "--app", "sample.bank", "bank", *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    with _gunicorn(environment) as port:
        outcome = _drive(port, requests)
        _check_connections(database)
        _check_boards(environment, outcome)
    _check_books(database, outcome)
    return outcome


@contextlib.contextmanager
def _gunicorn(environment: dict[str, str]) -> Iterator[int]:
    port = find_free_port()
    size = [f"--workers={WORKERS}", f"--threads={THREADS}", "--worker-class=gthread", "--keep-alive=30"]
    quiet = ["--log-level=warning", f"--bind=127.0.0.1:{port}"]
    command = [sys.executable, "-m", "gunicorn", *size, *quiet, "sample.bank:create_app()"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as gunicorn:
        try:
            _wait_until_open(port)
            yield port
        finally:
            gunicorn.terminate()


def _wait_until_open(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", "/outbox")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        finally:
            connection.close()


def _drive(port: int, requests: int) -> Outcome:
    outcome = Outcome()
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(_visit, port, range(first, requests, CLIENTS), outcome) for first in range(CLIENTS)]
        for client in clients:
            client.result()
    outcome.seconds = time.monotonic() - started
    return outcome


def _visit(port: int, numbers: range, outcome: Outcome) -> None:
    """One client, one connection that is kept alive, one request after the other."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)) as connection:
        for number in numbers:
            chance = random.Random(number)  # the same requests at every run
            kind = chance.choices(KINDS, weights=[kind.weight for kind in KINDS])[0]
            order = kind.make(chance, number)
            outcome.record(kind, order, *_send(connection, order))


def _send(connection: http.client.HTTPConnection, order: Order) -> tuple[int, str]:
    path, body = order
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if body is None:
        connection.request("GET", path, headers={"Accept": "application/json"})
    else:
        connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def _check_connections(database: PostgreSQLDatabase) -> None:
    """No session is in a transaction, and there are no more than threads: one that leaked would have been replaced."""
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while busy := [session for session in database.sessions() if session.state != "idle"]:
        assert time.monotonic() < deadline, f"sessions that are not idle: {busy}"
        time.sleep(0.05)
    assert len(database.sessions()) <= WORKERS * THREADS


def _check_boards(environment: dict[str, str], outcome: Outcome) -> None:
    """What the workers have published, as the command shows it, is what was answered: not one more or less."""
    totals, number_of_workers = _read_boards(environment)
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    while totals["sessions"]["opened"] != totals["sessions"]["closed"]:  # an answer is sent before its context ends
        assert time.monotonic() < deadline, totals["sessions"]
        totals, number_of_workers = _read_boards(environment)
    assert 1 <= number_of_workers <= WORKERS, number_of_workers
    labels = {(each["label"], each["is_inner"]): each for each in totals["labels"]}
    for label, (number, errors) in _expected_labels(outcome).items():
        counted = labels[label, False]
        assert (counted["count"], counted["errors"]) == (number, errors), f"{counted}, not {number} and {errors}"
    outermost = [each for each in totals["labels"] if not each["is_inner"]]
    rolled_back = sum(each["errors"] for each in outermost)
    begun = sum(each["count"] for each in outermost)
    units = {"begun": begun, "committed": begun - rolled_back, "rolled_back": rolled_back, "failed": 0, "retried": 0}
    assert totals["units"] == units
    assert rolled_back == sum(errors for _, errors in _expected_labels(outcome).values())
    # How long a unit takes is the machine's affair.
    broken = {code: number for code, number in totals["rules"].items() if code not in ("UOW108", "UOW109")}
    assert broken == dict(_expected_rules(outcome)), f"{broken}, not {dict(_expected_rules(outcome))}"
    assert totals["sessions"]["leaked"] == 0
    assert sum(totals["unit_seconds"]["counts"]) == begun


def _read_boards(environment: dict[str, str]) -> tuple[dict[str, Any], int]:
    command = [sys.executable, "-m", "flask", "--app", "sample.bank", "db-session-stats", "--json"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    document = json.loads(shown.stdout)
    assert document["notes"] == []
    assert document["ended"] is None, "what the commands before the workers had counted is of the past"
    return document["totals"], len(document["workers"])


def _expected_labels(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """How many units of a label there were, and how many of them were refused."""
    asked = Counter[str]()
    for (name, _), number in outcome.answers.items():
        asked[name.partition(",")[0]] += number
    refused = outcome.answers["transfer, too much", 422] + outcome.answers["transfer, no such account", 404]
    expected = {
        "POST /transfers": (asked["transfer"], refused),
        "POST /deposits": (asked["deposit"], 0),
        "POST /withdrawals": (asked["withdrawal"], 0),
        "GET /accounts/<id:account_id>": (asked["account page"], 0),
        "GET /accounts/<id:account_id>/statement.csv": (asked["statement"], 0),
        "record": (asked["transfer"] + asked["deposit"] + asked["withdrawal"], 0),
    }
    units = {"commit-by-hand", "commit-as-text", "rollback-by-hand"}
    mistakes = {slug: number for slug, number in outcome.mistakes.items() if slug in units}
    return expected | {slug.replace("-", "_"): (number, number) for slug, number in mistakes.items()}


def _expected_rules(outcome: Outcome) -> Counter[str]:
    codes = Counter[str]()
    for slug, number in outcome.mistakes.items():
        codes[MISTAKE_CODES[slug]] += number
    return codes


def _check_books(database: PostgreSQLDatabase, outcome: Outcome) -> None:
    assert not outcome.wrong, "\n".join(outcome.wrong[:5])
    assert database.rows("SELECT SUM(amount) FROM entry") == [(0,)]
    off = database.rows("SELECT transfer_id FROM entry GROUP BY transfer_id HAVING SUM(amount) <> 0 OR COUNT(*) <> 2")
    assert off == [], f"transfers that do not add up: {off[:5]}"
    booked = database.rows("SELECT id, memo FROM transfer WHERE kind = 'transfer'")
    assert dict(booked) == outcome.acknowledged
    assert len({memo for _, memo in booked}) == len(booked)
    assert not {memo for _, memo in booked} & outcome.refused
    assert {number for (number,) in database.rows('SELECT number FROM "check"')} == outcome.cashed
    assert database.rows("SELECT COUNT(*) FROM audit WHERE action = 'mistake'") == [(0,)]


def main() -> None:
    """Run the load on a PostgreSQL that lives as long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    with run_server() as server, tempfile.TemporaryDirectory() as folder:
        outcome = run_load(server.database("psycopg2"), options.requests, Path(folder) / "outbox.jsonl")
    said = "The books are in order, no session is in a transaction, and the boards have counted just that."
    sys.stdout.write(f"{outcome.table()}\n{said}\n")


if __name__ == "__main__":
    main()
