"""Those who go to the bank: each gives one order after the other, and writes down what it was told.

An order that is refused with an error of the server's is given again, for whoever says so says that it was not carried
out. What nobody knows of is not.
"""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from tests.faults.bank.terms import FIRST_ACCOUNT, PARTS

CLIENTS = 10
CUSTOMERS = 24
TIMEOUT_S = 30.0
GIVEN_AGAIN = 3
PAUSE_S = 0.05
POOR = 50
"""One of so many orders is about more than anybody has."""
MORE_THAN_ANYBODY_HAS = 900_000_00
OPTIMISTS = FIRST_ACCOUNT + 2 * (CUSTOMERS - 4)
"""From here on, accounts are left to transfers without locks, which watch each other alone."""
JSON = {"Accept": "application/json", "Content-Type": "application/json"}


class Told(StrEnum):
    """What the bank has said of an order."""

    DONE = "done"
    REFUSED = "not done"
    UNKNOWN = "not known"
    NOTHING = "no answer"


@dataclass(frozen=True)
class Order:
    """What is asked for.

    :param memos: those of the transfers that it makes, by which they are found in the books.
    """

    path: str
    body: dict[str, object]
    memos: tuple[str, ...]


class Journal:
    """What all of them were told."""

    def __init__(self) -> None:
        self.told: dict[str, list[Told]] = {}
        self.ids: dict[int, str] = {}
        self.answers: Counter[tuple[str, str]] = Counter()
        self.acknowledged = 0
        self._lock = threading.Lock()

    def write(self, memo: str, told: Told, transfer_id: int | None = None) -> None:
        """Write down what was said of a transfer."""
        with self._lock:
            self.told.setdefault(memo, []).append(told)
            if told is Told.DONE:
                self.acknowledged += 1
                if transfer_id is not None:
                    self.ids[transfer_id] = memo

    def count(self, path: str, answer: str) -> None:
        """Count an answer."""
        with self._lock:
            self.answers[path, answer] += 1


@dataclass
class Client:
    """One of them.

    :param number: no other has it.
    :param port: the bank's.
    :param journal: where it writes down what it is told.
    :param seed: makes its orders the same at every run.
    :ivar is_closing: is set when it is to go home.
    """

    number: int
    port: int
    journal: Journal
    seed: int
    is_closing: threading.Event = field(default_factory=threading.Event)

    def visit(self) -> None:
        """Give orders until the bank closes."""
        chance = random.Random(f"{self.seed}/{self.number}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        kinds, weights = zip(*WAYS, strict=True)
        for turn in range(1_000_000):
            if self.is_closing.is_set():
                break
            make = chance.choices(kinds, weights)[0]
            self._give(connection, make(chance, f"#{self.number}-{turn}"))
        connection.close()

    def _give(self, connection: http.client.HTTPConnection, order: Order) -> None:
        for _ in range(1 + GIVEN_AGAIN):
            told = give(connection, order, self.journal)
            if told is None:
                return
            time.sleep(PAUSE_S)


def give(connection: http.client.HTTPConnection, order: Order, journal: Journal) -> str | None:
    """Give an order once, and write down what is said.

    :return: why it can be given again; None if it cannot.
    """
    try:
        connection.request("POST", order.path, json.dumps(order.body), JSON)
        response = connection.getresponse()
        status, text = response.status, _read(response)
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        journal.count(order.path, type(error).__name__)
        for memo in order.memos:
            journal.write(memo, Told.NOTHING)
        return None
    journal.count(order.path, str(status))
    if status == 200:
        _read_stream(order, text, journal)
        return None
    if status == 201:
        _read_done(order, json.loads(text), journal)
        return None
    told = _read_error(text)
    for memo in order.memos:
        journal.write(memo, told)
    return text if told is Told.REFUSED and status >= 500 else None


def _read_error(text: str) -> Told:
    try:
        code = json.loads(text)["error"]["code"]
    except ValueError:  # gunicorn's own page: a stream has failed before its first line
        return Told.NOTHING
    return Told.UNKNOWN if code == "outcome-unknown" else Told.REFUSED


def _read(response: http.client.HTTPResponse) -> str:
    """As much of a stream as there is; of any other answer, all.

    :raises ConnectionError: if that has broken off.
    """
    parts = []
    try:
        while part := response.read1(65536):
            parts.append(part)
        has_broken_off = bool(response.length)
    except (OSError, http.client.HTTPException):
        has_broken_off = True
    if has_broken_off and response.status != 200:
        raise ConnectionError("the answer has broken off")
    response.close()
    return b"".join(parts).decode()


def _read_stream(order: Order, text: str, journal: Journal) -> None:
    done = [line for line in text.split("\n")[:-1] if line]
    for memo in order.memos:
        journal.write(memo, Told.DONE if memo in done else Told.NOTHING)


def _read_done(order: Order, answer: dict[str, object], journal: Journal) -> None:
    checks = answer.get("checks")
    if not isinstance(checks, list):
        transfer_id = answer["transfer_id"]
        assert isinstance(transfer_id, int)
        journal.write(order.memos[0], Told.DONE, transfer_id)
        return
    for check in checks:
        told = Told.DONE if check["transfer_id"] else Told.REFUSED
        journal.write(f"Check {check['number']}", told, check["transfer_id"])


# ---- what they ask for


def _transfer(path: str) -> Callable[[random.Random, str], Order]:
    parts = PARTS if path == "/streamed" else 1

    def make(chance: random.Random, memo: str) -> Order:
        is_poor = chance.randrange(POOR) == 0
        source, target = _two_accounts(chance, are_optimists=path == "/serializable")
        body = {
            "from": source,
            "to": target,
            "amount_cents": MORE_THAN_ANYBODY_HAS if is_poor else chance.randint(1, 200),
            "memo": memo,
        }
        return Order(path, body, tuple(f"{memo}/{part}" for part in range(parts)) if parts > 1 else (memo,))

    return make


def _two_accounts(chance: random.Random, *, are_optimists: bool) -> tuple[int, int]:
    first, end = (OPTIMISTS, FIRST_ACCOUNT + 2 * CUSTOMERS) if are_optimists else (FIRST_ACCOUNT, OPTIMISTS)
    source = chance.randrange(first, end, 2)  # even numbers are savings accounts, which open empty
    target = chance.choice([number for number in range(first, end) if number != source])
    return source, target


def _deposit(chance: random.Random, memo: str) -> Order:
    # The second check cannot be cashed.
    slips = [
        {"number": f"{memo}/{part}", "amount_cents": 0 if part == 1 else chance.randint(1, 500)} for part in range(3)
    ]
    account, _ = _two_accounts(chance, are_optimists=False)
    return Order("/deposits", {"account": account, "checks": slips}, tuple(f"Check {memo}/{part}" for part in range(3)))


make_transfer = _transfer("/transfers")

WAYS: list[tuple[Callable[[random.Random, str], Order], int]] = [
    (make_transfer, 4),
    (_transfer("/serializable"), 3),
    (_transfer("/confirmed"), 4),
    (_transfer("/nested"), 3),
    (_transfer("/swallowed"), 2),
    (_transfer("/timed"), 2),
    (_transfer("/async"), 2),
    (_transfer("/streamed"), 1),
    (_deposit, 1),
]
