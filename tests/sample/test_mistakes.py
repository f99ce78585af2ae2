"""Each mistake is answered with the rule that catches it, and leaves nothing behind."""

from collections.abc import Callable

import pytest

from sample.mistakes import MISTAKES
from tests.sample.banks import Bank

pytestmark = pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")

OpenBank = Callable[..., Bank]

EXPECTED = [
    ("commit-by-hand", "UOW101", True),
    ("begin-by-hand", "UOW101", True),
    ("commit-as-text", "UOW101", True),
    ("rollback-by-hand", "UOW102", True),
    ("close-by-hand", "UOW102", True),
    ("forget-to-commit", "UOW103", False),
    ("commit-nothing", "UOW104", False),
    ("merge-what-is-there", "UOW105", False),
    ("commit-and-delete", "UOW106", False),
    ("read-on-after-the-unit", "UOW107", False),
    ("take-long", "UOW108", False),
    ("idle-in-a-transaction", "UOW109", False),
    ("take-a-second-connection", "UOW110", False),
    ("write-in-a-read-only-unit", "UOW111", True),
    ("use-the-session-in-a-plain-thread", "UOW201", True),
    ("keep-a-session", "UOW202", False),
    ("interleave-two-tasks", "UOW203", True),
]

# As short as can be told from none at all: the mistake is to wait for longer.
LIMITS = {
    "take-long": {"UOW_MAX_UNIT_SECONDS": 0.05},
    "idle-in-a-transaction": {"UOW_MAX_IDLE_SECONDS": 0.05},
}


def line_of(where: str) -> int:
    """Return the line of ``sample/mistakes.py:57 in commit_by_hand``."""
    file, _, rest = where.partition(":")
    assert file == "sample/mistakes.py"
    return int(rest.split()[0])


@pytest.mark.parametrize(("slug", "code", "raised"), EXPECTED, ids=[case[0] for case in EXPECTED])
def test_a_mistake_is_caught_by_its_rule(open_bank: OpenBank, slug: str, code: str, raised: bool) -> None:
    """The answer has the code, the line in this repository, and the order that mends it."""
    bank = open_bank(**LIMITS.get(slug, {}))

    response = bank.client.post(f"/mistakes/{slug}", headers={"Accept": "application/json"})

    assert response.status_code == 200
    assert response.json is not None
    caught = response.json["caught"]
    assert (caught["code"], caught["raised"]) == (code, raised)
    assert -1 <= line_of(caught["where"]) - line_of(MISTAKES[slug][0].line) < MISTAKES[slug][0].source.count("\n") + 1
    assert caught["fix"]
    assert bank.count("audit") == 0


@pytest.mark.parametrize("slug", [case[0] for case in EXPECTED])
def test_the_bank_goes_on_after_a_mistake(open_bank: OpenBank, slug: str) -> None:
    """The next order in the same thread is clean."""
    bank = open_bank(**LIMITS.get(slug, {}))

    bank.client.post(f"/mistakes/{slug}")

    response = bank.order("/withdrawals", account=1001, amount_cents=100)

    assert response.status_code == 201
    assert bank.balance(1001) == 9900


def test_every_mistake_is_on_the_list_and_in_this_test(bank: Bank) -> None:
    page = bank.client.get("/mistakes/").text

    assert list(MISTAKES) == [slug for slug, _, _ in EXPECTED]
    for slug, code, _ in EXPECTED:
        assert f'action="/mistakes/{slug}"' in page
        assert code in page


def test_the_page_shows_the_rule(bank: Bank) -> None:
    page = bank.client.post("/mistakes/commit-by-hand").text

    assert "UOW101" in page
    assert "this request would have ended with status 500" in page


def test_an_unknown_mistake_is_not_found(bank: Bank) -> None:
    assert bank.client.post("/mistakes/perfection").status_code == 404
