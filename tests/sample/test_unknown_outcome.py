"""An order of which nobody knows what became of it."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from tests.databases import Database
from tests.faults.proxy import LISTEN, Cut, Proxy
from tests.sample.banks import Bank

ORDER = {"account": 1001, "amount_cents": 5}

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@pytest.fixture
def far_bank(open_bank: Callable[..., Bank], database: Database, proxy: Proxy) -> Bank:
    """A bank whose books are behind the proxy."""
    url = sa.make_url(database.url).set(host=LISTEN, port=proxy.port)
    return open_bank(SQLALCHEMY_DATABASE_URI=url.render_as_string(hide_password=False), TESTING=False)


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.REPLY])
def test_a_program_is_told_that_nobody_knows(far_bank: Bank, proxy: Proxy, cut: Cut) -> None:
    """By a code of its own, whether or not it was carried out."""
    proxy.cut(cut)
    answer = far_bank.client.post("/withdrawals", json=ORDER)

    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "outcome-unknown"


def test_a_person_is_told_to_look_before_ordering_again(far_bank: Bank, proxy: Proxy) -> None:
    """On a page of the bank's."""
    proxy.cut(Cut.REPLY)
    answer = far_bank.client.post("/withdrawals", data={"account": "1001", "amount": "0.05"})

    assert answer.status_code == 500
    assert "Look at the account: the order may have been carried out." in answer.text
