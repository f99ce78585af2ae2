"""The panel of Flask-DebugToolbar in a real browser: what it draws at the bank, and what it lets nobody run."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_debugtoolbar import DebugToolbarExtension
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from werkzeug.serving import make_server

from flask_uow import UnitOfWork, transactional
from tests.browser.test_visit import TIMEOUT_S, fill_in, next_page, press

SHORTEST_PX = 0.9
IN_EACH_WIDTH = pytest.mark.parametrize("browser", [1280, 800], ids=["wide", "narrow"], indirect=True)
EVIL = "</title></svg><script>window.wasRun = true</script><img src=x onerror='window.wasRun = true'>"


@IN_EACH_WIDTH
def test_a_transfer_is_drawn(browser: Chrome, debugged_bank_url: str, tmp_path: Path) -> None:
    """On the page between the form and its redirect: two units, their BEGIN, statements and COMMIT, in order."""
    browser.get(f"{debugged_bank_url}/transfers/new?from=1001")
    fill_in(browser, to="1003", amount="12.50", memo=EVIL)
    press(browser, "Transfer")
    open_panel(browser)

    assert titles(browser, ".unit")[0].startswith("POST /transfers: committed, ")
    assert titles(browser, ".commit")[0].startswith("COMMIT")
    assert any(title.startswith("INSERT INTO transfer (kind, memo, at) VALUES (?, ?, ?)") for title in sent(browser))
    lefts = [element.rect["x"] for element in shapes(browser, ".begin, .statement, .commit")]
    assert lefts == sorted(lefts)
    assert subtitle(browser).startswith("2 units, ")
    check_the_panel(browser)
    take_picture(browser, tmp_path / "transfer.png")


@IN_EACH_WIDTH
def test_checks_are_drawn_as_savepoints(browser: Chrome, debugged_bank_url: str, tmp_path: Path) -> None:
    """A bracket for each that was cashed, below its connection; the bad one is a unit that was rolled back."""
    browser.get(f"{debugged_bank_url}/deposits/new?account=1001")
    for row, (number, amount) in enumerate([("71", "10"), ("72", "no amount"), ("73", "30.50")]):
        browser.find_element(By.ID, f"number-{row}").send_keys(number)
        browser.find_element(By.ID, f"amount-{row}").send_keys(amount)
    press(browser, "Deposit")
    open_panel(browser)

    assert [title.split(":")[0] for title in titles(browser, ".bracket")] == ["savepoint of cash_check"] * 2
    assert titles(browser, ".undone")[0].startswith("cash_check: rolled back")
    assert browser.find_elements(By.CSS_SELECTOR, ".uow-timeline .idle")
    check_the_panel(browser)
    take_picture(browser, tmp_path / "deposit.png")


@IN_EACH_WIDTH
def test_a_page_is_drawn_with_its_template(browser: Chrome, debugged_bank_url: str, tmp_path: Path) -> None:
    """And tells the browser itself, in the header, what the panel shows."""
    browser.get(f"{debugged_bank_url}/accounts/1001")
    open_panel(browser)

    assert [title.split(":")[0] for title in titles(browser, ".template")] == ["account.html"]
    timings = browser.execute_script(
        "return Object.fromEntries(performance.getEntriesByType('navigation')[0].serverTiming"
        ".map(timing => [timing.name, timing.toJSON()]))"
    )
    assert sorted(timings) == ["idle", "sql", "trips", "unit"]
    assert 0 < timings["sql"]["duration"] < timings["unit"]["duration"] < 60_000
    trips = timings["trips"]["description"].split()[0]
    assert timings["trips"]["description"] == f"{trips} round trips"
    assert f"{trips} trips" in subtitle(browser)
    check_the_panel(browser)
    take_picture(browser, tmp_path / "page.png")


@IN_EACH_WIDTH
def test_a_mistake_is_marked_where_it_happened(browser: Chrome, debugged_bank_url: str, tmp_path: Path) -> None:
    """Inside the unit that it broke, and with its line and its fix above the picture."""
    browser.get(f"{debugged_bank_url}/mistakes/")
    with next_page(browser):
        browser.find_elements(By.CSS_SELECTOR, "main button")[0].click()
    open_panel(browser)

    (mark,) = browser.find_elements(By.CSS_SELECTOR, ".uow-timeline .breach circle")
    (unit,) = browser.find_elements(By.CSS_SELECTOR, ".uow-timeline .unit rect")
    middle = mark.rect["x"] + mark.rect["width"] / 2
    assert unit.rect["x"] - 1 <= middle <= unit.rect["x"] + unit.rect["width"] + 1
    (violation,) = browser.find_elements(By.CSS_SELECTOR, ".uow-violations li")
    assert violation.text.startswith("UOW101 ")
    assert "sample/mistakes.py:" in violation.text
    assert "Delete the commit" in violation.text
    check_the_panel(browser)
    take_picture(browser, tmp_path / "mistake.png")


@pytest.mark.parametrize("browser", [1280], indirect=True)
def test_nothing_in_a_label_or_a_statement_runs(browser: Chrome, evil_url: str) -> None:
    """Whatever an app calls its units, and whatever stands in its SQL."""
    browser.get(evil_url)
    open_panel(browser)

    assert any(EVIL in title for title in titles(browser, ".unit"))
    assert any(EVIL in title for title in sent(browser))
    assert EVIL in browser.find_element(By.CSS_SELECTOR, ".uow-steps").text
    assert not browser.execute_script("return window.wasRun")
    assert not browser.find_elements(By.CSS_SELECTOR, ".uow script, .uow img")


@pytest.fixture
def evil_url(tmp_path: Path) -> Iterator[str]:
    """The address of an app that is full of markup."""
    app = Flask("evil")
    app.debug = True
    app.config.update(
        SECRET_KEY="tests",
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'evil.sqlite'}",
        DEBUG_TB_PANELS=["flask_uow.contrib.debugtoolbar.UnitOfWorkPanel"],
    )
    uow = UnitOfWork(app)
    DebugToolbarExtension(app)

    @app.get("/")
    @transactional(label=EVIL)
    def view() -> str:
        uow.session.execute(sa.text(f'SELECT 1 AS "{EVIL}"'))
        with transactional(label=f"{EVIL} inside"):
            uow.session.execute(sa.text("SELECT 1"))
        return "<!doctype html><html><head><title>evil</title></head><body>evil</body></html>"

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join(TIMEOUT_S)
    server.server_close()
    with app.app_context():
        uow.engine.dispose()


# ---- what is looked at


def open_panel(browser: Chrome) -> None:
    """Open the toolbar, if it is shut, and the panel in it."""
    wait = WebDriverWait(browser, TIMEOUT_S)
    handle, button = ((By.ID, "flDebugShowToolBarButton"), (By.CSS_SELECTOR, "a.flDebugUnitOfWorkPanel"))
    wait.until(lambda page: page.find_element(*handle).is_displayed() or page.find_element(*button).is_displayed())
    if browser.find_element(*handle).is_displayed():
        browser.find_element(*handle).click()
    wait.until(lambda page: page.find_element(*button).is_displayed())
    browser.find_element(*button).click()
    wait.until(lambda page: page.find_element(By.CSS_SELECTOR, ".uow-timeline").is_displayed())
    # The toolbar fetches its style sheet, and until it is there nothing has its place.
    wait.until(lambda page: shown(page, ".uow").value_of_css_property("color") == "rgba(29, 36, 51, 1)")


def check_the_panel(browser: Chrome) -> None:
    """Everything that was sent can be seen, nothing sticks out, no label runs into another, and no script ran."""
    frame = shown(browser, ".uow-timeline").rect
    panel = shown(browser, ".flDebugPanelContentParent:has(.uow)").rect
    assert panel["x"] <= frame["x"]
    assert frame["x"] + frame["width"] <= panel["x"] + panel["width"]
    table = shown(browser, ".uow-steps").rect
    assert table["x"] + table["width"] <= panel["x"] + panel["width"]
    for bar in shapes(browser, ".sent"):
        assert bar.rect["width"] >= SHORTEST_PX or bar.value_of_css_property("stroke-width") == "1.5px"
        assert frame["x"] <= bar.rect["x"]
        assert bar.rect["x"] + bar.rect["width"] <= frame["x"] + frame["width"]
    assert overlapping(browser) == []
    assert not browser.execute_script("return window.wasRun")
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in log if entry["level"] == "SEVERE" and "favicon.ico" not in entry["message"]] == []


def overlapping(browser: Chrome) -> list[str]:
    """Return the labels of which two stand in one place."""
    pairs: list[str] = browser.execute_script("""
        const texts = [...document.querySelectorAll('.uow-timeline text')]
            .filter(text => text.getClientRects().length && !text.matches('.sign'))
            .map(text => [text.textContent, text.getBoundingClientRect()]);
        const cross = (low, high, otherLow, otherHigh) => low < otherHigh && otherLow < high;
        const meet = (a, b) =>
            cross(a.left, a.right, b.left, b.right) && cross(a.top + 4, a.bottom, b.top + 4, b.bottom);
        return texts.flatMap(([text, box], index) => texts.slice(index + 1)
            .filter(([_, other]) => meet(box, other)).map(([other]) => `${text} / ${other}`));
    """)
    return pairs


def shown(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def shapes(browser: Chrome, selector: str) -> list[WebElement]:
    groups = browser.find_elements(By.CSS_SELECTOR, f".uow-timeline :is({selector})")
    return [rect for group in groups for rect in group.find_elements(By.CSS_SELECTOR, ":scope > rect")]


def titles(browser: Chrome, selector: str) -> list[str]:
    """Return what the pointer tells of each."""
    found = browser.find_elements(By.CSS_SELECTOR, f".uow-timeline {selector} > title")
    return [str(title.get_attribute("textContent")) for title in found]


def sent(browser: Chrome) -> list[str]:
    return titles(browser, ".sent")


def subtitle(browser: Chrome) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, "#flDebugUnitOfWorkPanel small").get_attribute("textContent"))


def take_picture(browser: Chrome, file: Path) -> None:
    """Leave a picture for whoever wants to look."""
    browser.save_screenshot(str(file))
    print(f"A picture of {browser.current_url} is in {file}")
