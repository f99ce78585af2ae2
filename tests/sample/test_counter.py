"""Transfers, deposits and withdrawals: each is done whole, or not at all."""

import re

from tests.sample.banks import ADA, ADAS_SAVINGS, ALAN, Bank

HUGE = 10**30


def test_a_transfer_moves_money(bank: Bank) -> None:
    """Both sides are entered, and the ledger still adds up to zero."""
    response = bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 2550, "memo": "lunch"})

    ((number,),) = bank.database.rows("SELECT id FROM transfer WHERE memo = 'lunch'")
    assert response.status_code == 201
    assert response.json == {"transfer_id": number, "amount_cents": 2550}
    assert (bank.balance(ADA), bank.balance(ALAN)) == (7450, 50261)
    assert bank.database.rows("SELECT SUM(amount) FROM entry")[0][0] == 0


def test_a_transfer_answers_with_the_address_of_its_receipt(bank: Bank) -> None:
    """``Location`` leads to both sides of the transfer."""
    made = bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 100})

    receipt = bank.client.get(made.headers["Location"], headers={"Accept": "application/json"})

    assert receipt.json is not None
    sides = {entry["account_id"]: entry["amount_cents"] for entry in receipt.json["transfer"]["entries"]}
    assert sides == {ADA: -100, ALAN: 100}


def test_a_person_is_led_on_to_the_receipt(bank: Bank) -> None:
    """A form ends in a redirect, so that reloading the page does not pay twice."""
    form = {"from": str(ADA), "to": str(ALAN), "amount": "25.50", "memo": ""}

    response = bank.client.post("/transfers", data=form)
    page = bank.client.get(response.headers["Location"])

    assert response.status_code == 303
    assert "Transferred $25.50 to account 1003." in page.text


def test_too_much_is_refused_and_leaves_nothing(bank: Bank) -> None:
    """The unit is rolled back: no transfer, no entry, no e-mail."""
    response = bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 10001})

    assert response.status_code == 422
    assert response.json == {
        "error": {
            "code": "insufficient-funds",
            "message": "Account 1001 holds $100.00; $100.01 is more than that.",
            "field": "amount",
        }
    }
    assert (bank.count("transfer"), bank.balance(ADA)) == (3, 10000)
    assert bank.client.get("/outbox", headers={"Accept": "application/json"}).json == {"mails": []}


def test_the_last_cent_can_be_spent(bank: Bank) -> None:
    """A balance may come to zero, not below it."""
    assert bank.order("/withdrawals", account=ADA, amount_cents=10000).status_code == 201
    assert bank.order("/withdrawals", account=ADA, amount_cents=1).status_code == 422
    assert bank.balance(ADA) == 0


def test_a_refused_form_keeps_what_was_typed(bank: Bank) -> None:
    """The page says what was wrong, at the field, with everything still filled in."""
    form = {"from": str(ADA), "to": str(ALAN), "amount": "90000", "memo": "<rent>"}

    page = bank.client.post("/transfers", data=form)

    assert page.status_code == 422
    assert "$90,000.00 is more than that." in page.text
    assert re.findall(r'value="(.*?)"', page.text) == ["1001", "1003", "90000", "&lt;rent&gt;"]
    assert re.search(r'name="amount"[^>]*aria-invalid="true"', page.text)


def test_what_was_asked_for_stays_in_the_audit_trail(bank: Bank) -> None:
    """Its line is a unit of its own and survives the rollback of the order."""
    bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 10001, "memo": "too much"})

    rows = bank.database.rows("SELECT action, detail FROM audit")

    assert [tuple(row) for row in rows] == [("transfer", "$100.01 from 1001 to 1003: too much")]


def test_money_does_not_leave_for_the_account_it_came_from(bank: Bank) -> None:
    """A transfer needs two accounts."""
    response = bank.order("/transfers", **{"from": ADA, "to": ADA, "amount_cents": 1})

    assert response.status_code == 422
    assert response.json is not None
    assert response.json["error"]["code"] == "same-account"


def test_the_banks_own_accounts_are_not_for_customers(bank: Bank) -> None:
    """Nobody transfers money out of the vault."""
    response = bank.order("/transfers", **{"from": 999, "to": ADA, "amount_cents": 1})

    assert response.status_code == 404
    assert bank.balance(ADA) == 10000


def test_one_bad_check_does_not_undo_the_others(bank: Bank) -> None:
    """Each check is a savepoint; the refused one is named with its reason."""
    bank.order("/deposits", account=ALAN, checks=[{"number": "72", "amount_cents": 1}])
    checks = [
        {"number": "71", "amount_cents": 1000},
        {"number": "72", "amount_cents": 2000},
        {"number": "73", "amount": "30"},
    ]

    response = bank.order("/deposits", account=ADA, checks=checks)

    assert response.status_code == 201
    assert response.json is not None
    refused = {receipt["number"]: receipt["refused"] for receipt in response.json["checks"]}
    assert refused == {"71": None, "72": "it was cashed before", "73": None}
    assert bank.balance(ADA) == 14000
    assert [row[0] for row in bank.database.rows('SELECT number FROM "check" ORDER BY number')] == ["71", "72", "73"]


def test_a_check_handed_in_twice_at_once_counts_once(bank: Bank) -> None:
    """The database refuses the second one; its savepoint alone is rolled back."""
    check = {"number": "71", "amount_cents": 1000}

    response = bank.order("/deposits", account=ADA, checks=[check, check, {"number": "72", "amount_cents": 1}])

    assert response.status_code == 201
    assert bank.balance(ADA) == 11001


def test_a_check_that_nobody_can_read_is_handed_back(bank: Bank) -> None:
    """An amount that is not one concerns its check only."""
    checks = [
        {"number": "71", "amount": "ten"},
        {"number": "72", "amount_cents": HUGE},
        {"number": "73", "amount": "5"},
    ]

    response = bank.order("/deposits", account=ADA, checks=checks)

    assert response.json is not None
    assert [bool(receipt["refused"]) for receipt in response.json["checks"]] == [True, True, False]
    assert bank.balance(ADA) == 10500


def test_a_deposit_without_a_good_check_is_refused(bank: Bank) -> None:
    """Nothing is left, and every check is named."""
    response = bank.order("/deposits", account=ADA, checks=[{"number": "71", "amount_cents": 0}])

    assert response.status_code == 422
    assert response.json is not None
    assert response.json["error"]["code"] == "deposit-refused"
    assert response.json["checks"][0]["number"] == "71"
    assert (bank.count("check"), bank.balance(ADA)) == (0, 10000)


def test_a_person_reads_what_became_of_each_check(bank: Bank) -> None:
    """The account page shows a line for each check, once."""
    form = {"account": str(ADA), "number": ["71", "72", ""], "amount": ["10", "", ""]}

    response = bank.client.post("/deposits", data=form)
    page = bank.client.get(response.headers["Location"]).text

    assert "Check 71 is cashed: $10.00." in page
    assert "Check 72 is handed back: the amount must be between $0.01 and $1,000,000.00." in page
    assert "is cashed" not in bank.client.get(response.headers["Location"]).text


def test_a_refused_deposit_form_keeps_its_lines(bank: Bank) -> None:
    """Numbers and amounts are still where they were typed."""
    form = {"account": str(ADA), "number": ["71", "72"], "amount": ["zero", "none"]}

    page = bank.client.post("/deposits", data=form)

    assert page.status_code == 422
    assert re.findall(r' value="([^"]+)"', page.text) == ["1001", "71", "zero", "72", "none"]


def test_a_withdrawal_pays_out_cash(bank: Bank) -> None:
    """What leaves the account leaves the vault."""
    vault = bank.balance(999)

    response = bank.order("/withdrawals", account=ADA, amount_cents=2000)

    assert response.status_code == 201
    assert (bank.balance(ADA), bank.balance(999)) == (8000, vault + 2000)


def test_e_mail_goes_out_after_the_commit(bank: Bank) -> None:
    """Both sides of a transfer hear of it."""
    bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 100})

    outbox = bank.client.get("/outbox", headers={"Accept": "application/json"}).json

    assert outbox is not None
    assert {mail["to"]: mail["subject"] for mail in outbox["mails"]} == {
        "ada.baker.1@example.com": "You sent $1.00 to account 1003.",
        "alan.baker.2@example.com": "You received $1.00 from account 1001.",
    }


def test_an_empty_account_takes_a_transfer(bank: Bank) -> None:
    """An account without entries holds nothing, and can be paid into."""
    assert bank.order("/transfers", **{"from": ADA, "to": ADAS_SAVINGS, "amount_cents": 1}).status_code == 201
    assert bank.balance(ADAS_SAVINGS) == 1
