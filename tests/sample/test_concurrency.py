"""Many people at many counters: no money is made, none is lost, nobody waits for ever."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from tests.sample.banks import ADA, ALAN, Bank

THREADS = 6
DEADLINE_S = 60


def together(tasks: list[Callable[[], int]]) -> Counter[int]:
    """Run tasks at the same time and count what they return."""
    barrier = Barrier(len(tasks))

    def run(task: Callable[[], int]) -> int:
        barrier.wait(DEADLINE_S)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return Counter(pool.map(run, tasks, timeout=DEADLINE_S))


def test_an_account_is_never_overdrawn(bank: Bank) -> None:
    """Six people withdraw $30 from $100 at once: three get it."""

    def withdraw() -> int:
        body = {"account": ADA, "amount_cents": 3000}
        return bank.app.test_client().post("/withdrawals", json=body).status_code

    assert together([withdraw] * THREADS) == {201: 3, 422: 3}
    assert bank.balance(ADA) == 1000


def test_transfers_in_both_directions_do_not_deadlock(bank: Bank) -> None:
    """Accounts are locked in the order of their numbers, whoever pays."""

    def pay(source: int, target: int) -> Callable[[], int]:
        def run() -> int:
            client = bank.app.test_client()
            body = {"from": source, "to": target, "amount_cents": 1}
            return max(client.post("/transfers", json=body).status_code for _ in range(10))

        return run

    assert together([pay(ADA, ALAN), pay(ALAN, ADA)] * (THREADS // 2)) == {201: THREADS}
    assert (bank.balance(ADA), bank.balance(ALAN)) == (10000, 47711)


def test_one_teller_is_enough_for_everybody(open_bank: Callable[..., Bank]) -> None:
    """With one connection nobody waits for a second one: the audit's unit gives it back before the order's takes it."""
    bank = open_bank(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})

    def withdraw() -> int:
        body = {"account": ADA, "amount_cents": 100}
        return bank.app.test_client().post("/withdrawals", json=body).status_code

    assert together([withdraw] * THREADS) == {201: THREADS}
    assert bank.count("audit") == THREADS


def test_one_check_is_cashed_once(bank: Bank) -> None:
    """The same checks in another order, into two accounts at once: each counts once, and nobody deadlocks."""
    numbers = ["71", "72", "73", "74"]

    def deposit(account: int, order: list[str]) -> Callable[[], int]:
        checks = [{"number": number, "amount_cents": 100} for number in order]

        def run() -> int:
            response = bank.app.test_client().post("/deposits", json={"account": account, "checks": checks})
            return response.status_code // 100

        return run

    ended = together([deposit(ADA, numbers), deposit(ALAN, numbers[::-1])] * (THREADS // 2))

    assert set(ended) == {2, 4}
    assert bank.balance(ADA) + bank.balance(ALAN) == 10000 + 47711 + 400
    assert bank.count("check") == 4
