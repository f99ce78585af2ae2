"""A short day at the bank, on gunicorn and PostgreSQL; ``tests.benchmarks.load_bank`` is the long one."""

from pathlib import Path

from tests.benchmarks.load_bank import KINDS, run_load
from tests.databases import PostgreSQLDatabase


def test_the_books_and_the_boards_are_in_order_after_a_day_of_orders(
    postgres: PostgreSQLDatabase, tmp_path: Path
) -> None:
    """What was acknowledged is there once, what was refused is not, nothing stays open, and all of it is counted."""
    outcome = run_load(postgres, 600, tmp_path / "outbox.jsonl")

    assert outcome.answers.total() == 600
    assert {name for name, _ in outcome.answers} == {kind.name for kind in KINDS}
