"""What is in the books afterwards, beside what was told."""

from collections import Counter
from dataclasses import dataclass, field

from tests.databases import PostgreSQLDatabase
from tests.faults.bank.clients import Journal, Told

UNKNOWN = frozenset((Told.UNKNOWN, Told.NOTHING))


@dataclass
class Verdict:
    """Transfers by what is wrong with them; all empty if nothing is.

    :ivar lost: acknowledged, and not in the books.
    :ivar doubled: in the books more than once.
    :ivar phantom: in the books, though whoever ordered it was told that it was not carried out.
    :ivar unsound: what the books say that cannot be.
    :ivar unknown: of how many it was said that nobody knows, or nothing, and how many of these were carried out.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)


def audit(database: PostgreSQLDatabase, journal: Journal) -> Verdict:
    """Compare the books with what was told."""
    verdict = Verdict()
    booked = database.rows("SELECT id, memo FROM transfer WHERE kind IN ('transfer', 'check')")
    times = Counter(memo for _, memo in booked)
    memos: dict[int, str] = dict(booked)
    for memo, told in journal.told.items():
        _judge(verdict, memo, told, times[memo])
    verdict.lost += [f"{memo} as number {key}" for key, memo in journal.ids.items() if memos.get(key) != memo]
    verdict.phantom += [f"{memo}, which nobody has ordered" for memo in times if memo not in journal.told]
    verdict.unsound += _unsound(database)
    return verdict


def _judge(verdict: Verdict, memo: str, told: list[Told], times: int) -> None:
    is_done, is_unknown = Told.DONE in told, bool(UNKNOWN & set(told))
    if is_done and not times:
        verdict.lost.append(memo)
    if times > 1:
        verdict.doubled.append(memo)
    if times and not is_done and not is_unknown:
        verdict.phantom.append(memo)
    if is_unknown:
        verdict.unknown[told[-1]] += 1
        verdict.unknown[f"{told[-1]}, and carried out"] += times > 0


UNSOUND = {
    "all entries do not add up to zero": "SELECT SUM(amount) FROM entry HAVING SUM(amount) <> 0",
    "a transfer does not have two sides that add up to zero": """
        SELECT t.id FROM transfer t LEFT JOIN entry e ON e.transfer_id = t.id WHERE t.kind <> 'opening'
         GROUP BY t.id HAVING COUNT(e.id) <> 2 OR SUM(e.amount) <> 0
    """,
    "an account is overdrawn": """
        SELECT a.id FROM account a JOIN entry e ON e.account_id = a.id WHERE a.customer_id IS NOT NULL
         GROUP BY a.id HAVING SUM(e.amount) < 0
    """,
    "what an inner unit wrote that was undone is there": "SELECT id FROM transfer WHERE kind IN ('note', 'twice')",
    "a check was cashed without a transfer of its number": """
        SELECT c.number FROM "check" c JOIN transfer t ON t.id = c.transfer_id WHERE t.memo <> 'Check ' || c.number
    """,
}


def _unsound(database: PostgreSQLDatabase) -> list[str]:
    return [f"{what}: {found[:3]}" for what, query in UNSOUND.items() if (found := database.rows(query))]
