"""What a test costs that is isolated, beside one that makes the bank's tables anew; and that both see the same."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import pytest

from flask_uow.testing import isolated
from sample.bank import create_app
from tests.databases import BACKENDS, SERVER_VARIABLE, Database, Server
from tests.sample.banks import ADA, ALAN, Bank

ROOT = Path(__file__).parents[2]
RUNS = 15
TURNS = 2
HOW = ("anew", "isolated")
LEAST = 3.0
TIMEOUT_S = 600
FILES = [f"tests/sample/test_{name}.py" for name in ("bad_input", "commands", "concurrency", "counter", "mistakes")]
"""Those of the sample's tests that look at the bank, and not at its server from outside."""


@pytest.mark.parametrize("backend", BACKENDS)
def test_isolated_test(
    request: pytest.FixtureRequest,
    make_database: Callable[[str], Database],
    tmp_path: Path,
    say: Callable[[str], object],
    backend: str,
) -> None:
    """A transfer at a bank with three customers: at least three times as fast as in a bank that is opened for it."""
    lasting = _open(make_database(backend), tmp_path)
    server: Server | None = None if backend == "sqlite" else request.getfixturevalue("postgresql_server")

    def empty() -> Database:
        return make_database(backend) if server is None else server.database(backend, 1)

    empty()
    anew_s = median(_timed(lambda: _transfer(_open(empty(), tmp_path))) for _ in range(RUNS))
    isolated_s = median(_timed(lambda: _transfer_isolated(lasting)) for _ in range(RUNS))

    say(f"\n{backend}: {anew_s * 1e3:.1f} ms with tables made anew, {isolated_s * 1e3:.1f} ms isolated")
    assert anew_s >= LEAST * isolated_s


@pytest.mark.timeout(2 * TURNS * TIMEOUT_S)
def test_same_results(postgresql_server: Server, tmp_path: Path, say: Callable[[str], object]) -> None:
    """The sample's own tests pass either way, and are at least three times as fast when they are isolated."""
    url = postgresql_server.url.render_as_string(hide_password=False)
    turns = [{how: _run(tmp_path / f"{how}{turn}.xml", how, url) for how in HOW} for turn in range(TURNS)]
    # A machine that does something else now and then does it to both.
    anew, isolated_ = ({name: min(turn[how][name] for turn in turns) for name in turns[0][how]} for how in HOW)

    say(f"\nthe sample's {len(anew)} tests, with tables made anew and isolated")
    for backend in (*BACKENDS, ""):
        anew_s, isolated_s = (_seconds_of(times, backend) for times in (anew, isolated_))
        say(f"{backend or 'all':9} {anew_s:5.1f} s, {isolated_s:5.1f} s: {anew_s / isolated_s:.1f} times")
    assert anew.keys() == isolated_.keys()
    assert _seconds_of(anew) >= LEAST * _seconds_of(isolated_)


def _open(database: Database, folder: Path) -> Bank:
    config = {"TESTING": True, "SQLALCHEMY_DATABASE_URI": database.url, "BANK_OUTBOX": str(folder / "outbox.jsonl")}
    app = create_app(config)
    bank = Bank(app, app.test_client(), database)
    bank.run("init")
    bank.run("seed", "--customers", "3")
    return bank


def _transfer(bank: Bank) -> None:
    response = bank.order("/transfers", **{"from": ADA, "to": ALAN, "amount_cents": 1})
    assert response.json == {"transfer_id": 4, "amount_cents": 1}


def _transfer_isolated(bank: Bank) -> None:
    with isolated(bank.app, sequences=True):
        _transfer(bank)


def _timed(function: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    function()
    return time.perf_counter() - began_s


def _seconds_of(times: dict[str, float], backend: str = "") -> float:
    """How long the tests on a kind of database took, set-up and tear-down included."""
    return sum(seconds for name, seconds in times.items() if re.search(rf"\[{backend}\b", name))


def _run(report: Path, how: str, server: str) -> dict[str, float]:
    """Run the sample's tests on a server; return how long each took, in seconds, all of which have passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *FILES]
    environment = os.environ | {"UOW_TEST_SAMPLE": how, SERVER_VARIABLE: server}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout[-5000:]
    cases = ElementTree.parse(report).iter("testcase")
    return {f"{case.get('classname')}.{case.get('name')}": float(case.get("time", 0)) for case in cases}
