"""A bank with gunicorn and a SQLite file, and a Chromium that visits it."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.throwaway_server import find_free_port

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 30.0
FLASK = ["flask", "--app", "sample.bank"]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def bank_url(tmp_path: Path) -> Iterator[str]:
    """The address of a bank with three customers, which runs in two workers for one test."""
    port = find_free_port()
    size = ["--workers=2", "--threads=2", "--worker-class=gthread", f"--bind=127.0.0.1:{port}"]
    with _open_bank(tmp_path, port, ["gunicorn", *size, "--log-level=warning", "sample.bank:create_app()"]) as url:
        yield url


@pytest.fixture
def debugged_bank_url(tmp_path: Path) -> Iterator[str]:
    """The address of such a bank in debug, with Flask's own server."""
    port = find_free_port()
    with _open_bank(tmp_path, port, [*FLASK, "run", "--debug", "--no-reload", "--port", str(port)]) as url:
        yield url


@contextlib.contextmanager
def _open_bank(folder: Path, port: int, server: list[str]) -> Iterator[str]:
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{folder / 'bank.sqlite'}",
        "BANK_OUTBOX": str(folder / "outbox.jsonl"),
    }
    for arguments in (["init"], ["seed", "--customers", "3"]):
        command = [sys.executable, "-m", *FLASK, "bank", *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, "-m", *server], cwd=ROOT, env=environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_open(url)
            yield url
        finally:
            process.terminate()


@pytest.fixture(params=[1100, 375], ids=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chrome]:
    """A Chromium with a profile of its own, as wide as a desk's screen and as a phone's."""
    options = ChromeOptions()
    if "CHROMIUM" in os.environ:
        options.binary_location = os.environ["CHROMIUM"]
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    driver = Chrome(options=options, service=ChromeService(_find_driver()))
    screen = {"width": request.param, "height": 800, "deviceScaleFactor": 1, "mobile": request.param < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
    try:
        yield driver
    finally:
        driver.quit()


def _find_driver() -> str | None:
    """Return Debian's driver, which belongs to Debian's Chromium; without it selenium looks for one."""
    debian = Path("/usr/bin/chromedriver")
    return str(debian) if debian.exists() else None


def _wait_until_open(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.05)
    raise TimeoutError(f"The bank does not answer at {url}.")
