"""Bad input gets one clear answer in the form that was asked for, and never a 500."""

import pytest

from tests.sample.banks import ADA, ALAN, Bank

GOOD_TRANSFER: dict[str, object] = {"from": ADA, "to": ALAN, "amount_cents": 100, "memo": ""}
HUGE = 10**30

TRANSFERS = [
    ("no from", {"from": None}, 400, "from"),
    ("from is a word", {"from": "me"}, 400, "from"),
    ("from is negative", {"from": -1}, 400, "from"),
    ("from is a float", {"from": 1001.0}, 400, "from"),
    ("from is true", {"from": True}, 400, "from"),
    ("from is a list", {"from": [ADA]}, 400, "from"),
    ("from is huge", {"from": HUGE}, 400, "from"),
    ("from is the largest key", {"from": 10**18 - 1}, 404, None),
    ("to is unknown", {"to": 4711}, 404, None),
    ("to is zero", {"to": 0}, 404, None),
    ("to is in other digits", {"to": "\u0661\u0660"}, 400, "to"),
    ("to is nul", {"to": "\0"}, 400, "to"),
    ("no amount", {"amount_cents": None}, 400, "amount"),
    ("amount is zero", {"amount_cents": 0}, 400, "amount"),
    ("amount is negative", {"amount_cents": -100}, 400, "amount"),
    ("amount is over the limit", {"amount_cents": 1_000_000_01}, 400, "amount"),
    ("amount is huge", {"amount_cents": HUGE}, 400, "amount"),
    ("amount is a float", {"amount_cents": 0.5}, 400, "amount"),
    ("amount is true", {"amount_cents": True}, 400, "amount"),
    ("amount is a word", {"amount_cents": None, "amount": "much"}, 400, "amount"),
    ("amount is an object", {"amount_cents": None, "amount": {}}, 400, "amount"),
    ("memo is a number", {"memo": 5}, 400, "memo"),
    ("memo is too long", {"memo": "x" * 141}, 400, "memo"),
    ("memo holds nul", {"memo": "a\0b"}, 400, "memo"),
    ("memo holds half a character", {"memo": "\ud800"}, 400, "memo"),
]


@pytest.mark.parametrize(
    ("change", "status", "field"), [case[1:] for case in TRANSFERS], ids=[case[0] for case in TRANSFERS]
)
def test_a_bad_transfer_is_refused_at_its_field(
    bank: Bank, change: dict[str, object], status: int, field: str | None
) -> None:
    """The answer names the field, and nothing has moved."""
    response = bank.client.post("/transfers", json=GOOD_TRANSFER | change)

    assert response.status_code == status, response.text
    assert response.json is not None
    assert response.json["error"]["field"] == field
    assert response.json["error"]["message"]
    assert bank.count("transfer") == 3


@pytest.mark.parametrize("path", ["/transfers", "/deposits", "/withdrawals"])
def test_a_body_that_is_not_an_object_is_refused(bank: Bank, path: str) -> None:
    """Broken, nested without end, or of another kind."""
    for body in [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"[" * 30_000, b'{"a":' * 9_000]:
        response = bank.client.post(path, data=body, content_type="application/json")
        assert response.status_code == 400, body[:20]
        assert response.json == {
            "error": {"code": "bad-input", "message": "The body is not a JSON object.", "field": None}
        }


def test_a_bad_list_of_checks_is_refused(bank: Bank) -> None:
    """Too many, none, or not a list of objects."""
    check = {"number": "1", "amount_cents": 1}
    unnumbered, misnumbered = {"amount_cents": 1}, {"number": 5, "amount_cents": 1}
    bad: list[object] = [None, [], {}, "x", [1], [check] * 21, [unnumbered], [check, misnumbered]]
    for checks in bad:
        response = bank.order("/deposits", account=ADA, checks=checks)
        assert response.status_code == 400, checks
    assert bank.count("check") == 0


def test_a_bad_form_comes_back_as_a_page(bank: Bank) -> None:
    """Missing, unreadable and unknown fields, typed into each form."""
    for path, form, status in [
        ("/transfers", {}, 400),
        ("/transfers", {"from": "1001", "to": "1003", "amount": "lots"}, 400),
        ("/transfers", {"from": "1001", "to": "4711", "amount": "1"}, 404),
        ("/withdrawals", {"account": "1001"}, 400),
        ("/withdrawals", {"account": "1001", "amount": "500"}, 422),
        ("/deposits", {"account": "1001"}, 400),
        ("/deposits", {"account": "4711", "number": "1", "amount": "1"}, 404),
        ("/deposits", {"account": "1001", "number": "", "amount": "5"}, 400),
    ]:
        response = bank.client.post(path, data=form)
        assert (response.status_code, response.mimetype) == (status, "text/html"), (path, form)
        assert 'role="alert"' in response.text
        assert f'<form method="post" action="{path}">' in response.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/customers/0", 404),
        ("/customers/x", 404),
        ("/customers/999999999999999999", 404),
        ("/accounts/4711", 404),
        ("/accounts/999", 404),
        ("/accounts/-1", 404),
        ("/accounts/99999999999999999999", 404),
        ("/accounts/" + "9" * 5000, 404),
        ("/accounts/4711/statement.csv", 404),
        ("/transfers/4711", 404),
        ("/transfers", 405),
        ("/?after=x", 400),
        ("/?after=-1", 400),
        ("/?after=" + "9" * 5000, 400),
        ("/?after=999999999999999999", 200),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_address_is_refused_in_both_forms(bank: Bank, path: str, status: int) -> None:
    """A page for a person, JSON for a program."""
    page = bank.client.get(path)
    data = bank.client.get(path, headers={"Accept": "application/json"})

    assert (page.status_code, page.mimetype) == (status, "text/html")
    assert (data.status_code, data.mimetype) == (status, "application/json")


def test_a_body_that_is_too_large_is_refused(bank: Bank) -> None:
    """The bank reads no more than it needs."""
    response = bank.client.post("/transfers", json={"memo": "x" * 70_000})

    assert response.status_code == 413
    assert response.json is not None
    assert response.json["error"]["code"] == "request-entity-too-large"
