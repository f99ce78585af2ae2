"""What there is to see, as a page and as JSON."""

import csv
import io
from html.parser import HTMLParser

import pytest

from sample.bank import reports
from sample.bank.db import uow
from tests.sample.banks import ADA, ALAN, Bank

JSON = {"Accept": "application/json"}


def test_the_entrance_lists_the_customers(bank: Bank) -> None:
    assert "Ada Baker" in bank.client.get("/").text
    assert bank.client.get("/", headers=JSON).json == {
        "customers": [
            {"id": 1, "name": "Ada Baker"},
            {"id": 2, "name": "Alan Baker"},
            {"id": 3, "name": "Barbara Baker"},
        ]
    }


def test_the_list_of_customers_goes_on(bank: Bank) -> None:
    """A page shows twenty; the link leads to the next."""
    bank.run("seed", "--customers", "22")

    first, second = bank.client.get("/").text, bank.client.get("/?after=20").text

    assert "/?after=20#customers" in first
    assert ("no. 20" in first, "no. 21" in first, "no. 25" in second) == (True, False, True)


def test_a_customer_sees_every_account(bank: Bank) -> None:
    """An account on which nothing happened holds zero."""
    customer = bank.client.get("/customers/1", headers=JSON).json

    assert customer == {
        "customer": {
            "id": 1,
            "name": "Ada Baker",
            "email": "ada.baker.1@example.com",
            "accounts": [
                {"id": 1001, "name": "Current", "balance_cents": 10000},
                {"id": 1002, "name": "Savings", "balance_cents": 0},
            ],
        }
    }
    assert "$100.00" in bank.client.get("/customers/1").text


def test_an_account_shows_its_latest_entries(bank: Bank) -> None:
    """The newest first, each with the balance after it."""
    bank.order("/withdrawals", account=ADA, amount_cents=2500)

    found = bank.client.get(f"/accounts/{ADA}", headers=JSON).json

    assert found is not None
    lines = [(line["kind"], line["amount_cents"], line["balance_cents"]) for line in found["account"]["entries"]]
    assert lines == [("withdrawal", -2500, 7500), ("opening", 10000, 10000)]
    assert found["account"]["balance_cents"] == 7500


def test_an_address_tells_caches_of_its_two_forms(bank: Bank) -> None:
    assert "accept" in bank.client.get("/").vary


def test_reading_leaves_nothing_open(bank: Bank) -> None:
    """On a server, the sessions are idle when the answer has been sent."""
    for path in ["/", "/customers/1", f"/accounts/{ADA}", "/transfers/1", "/audit", "/nowhere"]:
        bank.client.get(path)

    assert {session.state for session in bank.database.sessions()} <= {"idle"}


def test_the_statement_holds_every_entry(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over several pages, each a unit of its own; the balance is carried on."""
    monkeypatch.setattr(reports, "STATEMENT_PAGE", 2)
    for cents in [100, 200, 300, 400]:
        bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": cents, "memo": "=1+1"})

    response = bank.client.get(f"/accounts/{ADA}/statement.csv")
    lines = list(csv.DictReader(io.StringIO(response.text)))

    assert response.headers["Content-Disposition"] == 'attachment; filename="statement-1001.csv"'
    assert [line["amount"] for line in lines] == ["100.00", "-1.00", "-2.00", "-3.00", "-4.00"]
    assert [line["balance"] for line in lines] == ["100.00", "99.00", "97.00", "94.00", "90.00"]
    assert lines[-1]["memo"] == "'=1+1"


def test_a_slow_download_occupies_no_connection(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pages nothing is checked out; a download broken off leaves nothing either."""
    monkeypatch.setattr(reports, "STATEMENT_PAGE", 1)
    bank.order("/withdrawals", account=ADA, amount_cents=100)

    response = bank.client.get(f"/accounts/{ADA}/statement.csv", buffered=False)
    chunks = iter(response.response)
    read = [next(chunks), next(chunks)]
    with bank.app.app_context():
        checked_out = uow.engine.pool.checkedout()  # type: ignore[attr-defined]
    response.close()

    assert len(read) == 2
    assert checked_out == 0


def test_a_form_is_filled_in_from_its_link(bank: Bank) -> None:
    for path in ["/transfers/new?from=1001", "/deposits/new?account=1001", "/withdrawals/new?account=1001"]:
        assert 'value="1001"' in bank.client.get(path).text


def test_what_people_type_is_shown_as_text(bank: Bank) -> None:
    """A memo cannot bring markup into a page."""
    bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 1, "memo": "<b>bold</b>"})

    for path in [f"/accounts/{ADA}", "/transfers/4", "/audit"]:
        assert "&lt;b&gt;bold" in bank.client.get(path).text


class Labels(HTMLParser):
    """Collects what a page offers to somebody who does not see it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, tag: str, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for name, attrs in self.tags if name == tag and attribute in attrs]


def test_every_page_can_be_used_without_seeing_it(bank: Bank) -> None:
    """One main heading, a language, a label for every field, no id twice, no reference into nothing."""
    for path in ["/", "/customers/1", f"/accounts/{ADA}", "/transfers/1", "/transfers/new", "/deposits/new",
                 "/withdrawals/new", "/audit", "/outbox", "/mistakes/", "/nowhere"]:  # fmt: skip
        page = Labels(bank.client.get(path).text)
        ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
        assert [tag for tag, _ in page.tags].count("h1") == 1, path
        assert page.values("html", "lang") == ["en"]
        assert set(page.values("input", "id")) == set(page.values("label", "for")), path
        assert len(ids) == len(set(ids)), path
        references = [
            str(attrs.get("aria-labelledby") or attrs.get("aria-describedby") or "") for _, attrs in page.tags
        ]
        assert {name for line in references for name in line.split()} <= set(ids), path
