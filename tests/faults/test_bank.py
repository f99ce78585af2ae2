"""A short day of faults at the bank; ``make faults`` is the long one."""

import random

import pytest

from tests.databases import PostgreSQLDatabase
from tests.faults.bank.__main__ import complaints
from tests.faults.bank.books import audit
from tests.faults.bank.clients import Journal, Told
from tests.faults.bank.faults import FAULTS
from tests.faults.bank.run import BY_HAND, Plan, run


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_nothing_is_lost_doubled_or_left_behind(driver: str) -> None:
    """Every fault there is, once, and what everybody was told is what is in the books."""
    report = run(Plan(random.randrange(1 << 32), 250, len(FAULTS), driver))

    wrong = [line for line in complaints(report) if not line.startswith("late: ")]
    assert wrong == [], f"seed {report.plan.seed}"
    assert {name for name, _ in report.recovered_s} | set(report.impossible) == set(FAULTS)
    assert report.journal.acknowledged >= 250


def test_what_is_written_by_hand_loses_some() -> None:
    """So that a day on which nothing is lost means something."""
    report = run(Plan(1, 200, 1, app=BY_HAND))

    assert report.verdict.lost


def test_books_are_compared_with_what_was_told(postgres: PostgreSQLDatabase) -> None:
    """Each thing that can be wrong is found, and nothing else."""
    postgres.execute("CREATE TABLE transfer (id int PRIMARY KEY, kind text DEFAULT 'transfer', memo text)")
    postgres.execute("CREATE TABLE account (id int PRIMARY KEY, customer_id int)")
    postgres.execute("CREATE TABLE entry (id serial PRIMARY KEY, transfer_id int, account_id int, amount int)")
    postgres.execute('CREATE TABLE "check" (number text, transfer_id int)')
    postgres.execute("INSERT INTO account VALUES (1, 1), (2, 1)")
    memos = ["done", "again", "again", "refused", "unknown", "unknown twice", "unknown twice", "unheard of"]
    for number, memo in enumerate(memos):
        postgres.execute("INSERT INTO transfer (id, memo) VALUES (%s, %s)", number, memo)
        postgres.execute(
            "INSERT INTO entry (transfer_id, account_id, amount) VALUES (%s, 1, 1), (%s, 2, -1)", number, number
        )
    journal = Journal()
    journal.write("done", Told.DONE, 0)
    journal.write("again", Told.REFUSED)
    journal.write("again", Told.DONE, 2)
    journal.write("gone", Told.DONE, 77)
    for memo, told in {"refused": Told.REFUSED, "unknown": Told.UNKNOWN, "not done": Told.NOTHING}.items():
        journal.write(memo, told)
    journal.write("unknown twice", Told.NOTHING)

    verdict = audit(postgres, journal)

    assert verdict.lost == ["gone", "gone as number 77"]
    assert verdict.doubled == ["again", "unknown twice"]
    assert verdict.phantom == ["refused", "unheard of, which nobody has ordered"]
    assert verdict.unknown["not known, and carried out"] == 1
    assert (verdict.unknown["no answer"], verdict.unknown["no answer, and carried out"]) == (2, 1)
    assert verdict.unsound == ["an account is overdrawn: [(2,)]"]
