"""The bank in debug: its pages have the toolbar, where that is installed, and nothing else changes."""

import importlib.util
from collections.abc import Callable

import pytest

from sample import bank as bank_module
from tests.sample.banks import Bank

PANEL = "Units of work"


@pytest.fixture
def debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``--debug`` does."""
    monkeypatch.setenv("FLASK_DEBUG", "1")


@pytest.mark.usefixtures("debug")
def test_a_page_shows_its_units(open_bank: Callable[..., Bank]) -> None:
    """And what is no page has the header alone."""
    bank = open_bank()

    page = bank.client.get("/accounts/1001", headers={"Accept": "text/html"})
    document = bank.client.get("/accounts/1001", headers={"Accept": "application/json"})

    assert page.status_code == 200
    assert PANEL in page.text
    assert 'class="uow-timeline"' in page.text
    assert document.json is not None
    assert ["Server-Timing" in response.headers for response in (page, document)] == [True, True]


def test_a_page_without_debug(bank: Bank) -> None:
    """It has no toolbar and no header."""
    page = bank.client.get("/accounts/1001", headers={"Accept": "text/html"})

    assert PANEL not in page.text
    assert "Server-Timing" not in page.headers


@pytest.mark.usefixtures("debug")
def test_a_bank_without_the_toolbar(open_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens all the same."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        bank_module, "find_spec", lambda name: None if name == "flask_debugtoolbar" else find_spec(name)
    )

    page = open_bank().client.get("/accounts/1001", headers={"Accept": "text/html"})

    assert page.status_code == 200
    assert PANEL not in page.text
