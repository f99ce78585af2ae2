"""A person's visit to the bank."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

TIMEOUT_S = 10.0


@contextlib.contextmanager
def next_page(browser: Chrome) -> Iterator[None]:
    """Wait at the end until another page has come: a click returns before it does."""
    browser.execute_script("window.isLeft = true")
    yield
    # Between two pages the browser has no answer.
    wait = WebDriverWait(browser, TIMEOUT_S, ignored_exceptions=[WebDriverException])
    wait.until(lambda page: page.execute_script("return !window.isLeft && document.readyState === 'complete'"))


def open_link(browser: Chrome, text: str) -> None:
    with next_page(browser):
        browser.find_element(By.PARTIAL_LINK_TEXT, text).click()


def fill_in(browser: Chrome, **fields: str) -> None:
    for name, text in fields.items():
        field = browser.find_element(By.NAME, name)
        field.clear()
        field.send_keys(text)


def press(browser: Chrome, text: str) -> None:
    with next_page(browser):
        browser.find_element(By.XPATH, f"//button[normalize-space()='{text}']").click()


def texts(browser: Chrome, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def typed(browser: Chrome) -> dict[str, str]:
    fields = browser.find_elements(By.TAG_NAME, "input")
    return {str(field.get_attribute("name")): str(field.get_attribute("value")) for field in fields}


def check_the_page(browser: Chrome) -> None:
    """Nothing sticks out to the right, and the console is empty but for the status of a refusal."""
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), browser.current_url
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    loud = [entry for entry in log if "status of 422" not in entry["message"]]
    assert loud == []


def test_a_customer_deposits_transfers_and_takes_the_statement_home(
    browser: Chrome, bank_url: str, tmp_path: Path
) -> None:
    """Three checks, one of them bad; a transfer of too much, one that works; the statement as a file."""
    browser.get(bank_url)
    check_the_page(browser)
    open_link(browser, "Ada Baker")
    check_the_page(browser)
    open_link(browser, "Current account")
    assert texts(browser, ".balance strong") == ["$100.00"]
    check_the_page(browser)

    open_link(browser, "Deposit checks")
    for row, (number, amount) in enumerate([("71", "10"), ("72", "no amount"), ("73", "30.50")]):
        browser.find_element(By.ID, f"number-{row}").send_keys(number)
        browser.find_element(By.ID, f"amount-{row}").send_keys(amount)
    check_the_page(browser)
    press(browser, "Deposit")
    assert [line[:30] for line in texts(browser, ".messages li")] == [
        "✓ Check 71 is cashed: $10.00.",
        "✕ Check 72 is handed back: the",
        "✓ Check 73 is cashed: $30.50.",
    ]
    assert texts(browser, ".balance strong") == ["$140.50"]
    check_the_page(browser)

    open_link(browser, "Transfer")
    fill_in(browser, to="1003", amount="500", memo="rent")
    press(browser, "Transfer")
    assert texts(browser, "[role=alert] strong") == ["Account 1001 holds $140.50; $500.00 is more than that."]
    assert typed(browser) == {"from": "1001", "to": "1003", "amount": "500", "memo": "rent"}
    assert browser.switch_to.active_element.get_attribute("name") == "amount"
    check_the_page(browser)

    fill_in(browser, amount="40.50")
    press(browser, "Transfer")
    assert texts(browser, ".messages li") == ["✓ Transferred $40.50 to account 1003."]
    assert texts(browser, "tfoot td") == ["$0.00"]
    check_the_page(browser)

    open_link(browser, "Current account 1001")
    browser.find_element(By.PARTIAL_LINK_TEXT, "Download statement").click()
    lines = downloaded(tmp_path / "downloads" / "statement-1001.csv").splitlines()
    assert [line.split(",")[-2:] for line in lines[1:]] == [
        ["100.00", "100.00"],
        ["10.00", "110.00"],
        ["30.50", "140.50"],
        ["-40.50", "100.00"],
    ]

    open_link(browser, "Audit trail")
    assert len(texts(browser, "tbody tr")) == 3
    check_the_page(browser)
    open_link(browser, "Outbox")
    assert len(texts(browser, "tbody tr")) == 3
    check_the_page(browser)


def test_a_mistake_shows_the_rule_that_catches_it(browser: Chrome, bank_url: str) -> None:
    """Every button on the page leads to the rule it announces."""
    browser.get(f"{bank_url}/mistakes/")
    check_the_page(browser)
    codes = texts(browser, "h2 .code")

    for number, code in enumerate(codes):
        with next_page(browser):
            browser.find_elements(By.CSS_SELECTOR, "main button")[number].click()
        assert texts(browser, "dd .code") == [code]
        check_the_page(browser)
        open_link(browser, "Mistakes")

    assert len(codes) >= 7


def test_the_keyboard_alone_is_enough(browser: Chrome, bank_url: str) -> None:
    """The first stop skips the menu; a form is filled in and sent without a mouse."""
    browser.get(f"{bank_url}/withdrawals/new?account=1001")
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to content"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("name") == "account"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    with next_page(browser):
        browser.switch_to.active_element.send_keys("20", Keys.ENTER)

    assert texts(browser, ".messages li") == ["✓ Here is your cash: $20.00."]


def downloaded(path: Path) -> str:
    """Return a file's text as soon as the browser has it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, "The download did not come."
        time.sleep(0.05)
    return path.read_text()
