"""A decorated function keeps its signature: for mypy, by its own word, and when it runs."""

import asyncio
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TYPING = ROOT / "tests" / "typing"
IGNORE = re.compile(r"  # type: ignore\[([\w, -]+)\]$")
MESSAGE = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): (?P<kind>error|note): (?P<text>.*?)(?:  \[(?P<code>[\w-]+)\])?$")

# What mypy says that these names of tests/typing/kept.py are.
REVEALED = {
    "bare": "def (account_id: int, *, note: str =) -> list[str]",
    "empty": "def (account_id: int) -> str",
    "with_options": "def (account_id: int, *notes: str) -> tuple[str, ...]",
    "with_more_options": "def () -> bytes",
    "bound": "def (account_id: int) -> str",
    "bound_with_options": "def (account_id: int) -> str",
    "coroutine": "def (account_id: int) -> typing.Coroutine[Any, Any, str]",
    "coroutine_with_options": "def (account_id: int) -> typing.Coroutine[Any, Any, str]",
    "Account.pay": "def (self: Account, amount: int) -> str",
    "Account().pay": "def (amount: int) -> str",
    "Account.number": "def (name: str) -> int",
    "Account.open": "def (name: str) -> Account",
    "hooks": "def ()",
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> list[re.Match[str]]:
    """What mypy, as strict as for the project, says of the files of this test; it runs once."""
    pytest.importorskip("mypy", reason="it comes with the dev extra")
    folder = tmp_path_factory.mktemp("typing")
    refused = (TYPING / "refused.py").read_text().splitlines()
    (folder / "refused.py").write_text("\n".join(IGNORE.sub("", line) for line in refused))
    reveals = [f"reveal_type(kept.{name})" for name in REVEALED]
    (folder / "reveals.py").write_text("\n".join(["from tests.typing import kept", *reveals]))
    options = ["--strict", "--no-pretty", "--hide-error-context", f"--cache-dir={folder / 'cache'}"]

    done = subprocess.run(
        [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'setup.cfg'}", *options, "refused.py", "reveals.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.stderr == ""
    found = [MESSAGE.match(line) for line in done.stdout.splitlines()]
    return [match for match in found if match]


def test_types_are_kept(messages: list[re.Match[str]]) -> None:
    """Functions, methods, coroutine functions, views and blocks: nothing to object to."""
    assert [match[0] for match in messages if Path(match["file"]).name == "kept.py"] == []


def test_signatures_are_kept(messages: list[re.Match[str]]) -> None:
    """Asked what a decorated function is, mypy shows the signature that was written."""
    shown = [match["text"] for match in messages if match["file"] == "reveals.py"]

    revealed = [re.sub(r'^Revealed type is "(.*)"$', r"\1", text) for text in shown]

    short = [text.replace("builtins.", "").replace("tests.typing.kept.", "") for text in revealed]
    assert dict(zip(REVEALED, short, strict=True)) == REVEALED


def test_mistakes_are_refused(messages: list[re.Match[str]]) -> None:
    """A wrong argument to a decorated function and a wrong option are errors, on each line and of the kind named."""
    expected = {
        number: set(match[1].split(", "))
        for number, line in enumerate((TYPING / "refused.py").read_text().splitlines(), start=1)
        if (match := IGNORE.search(line))
    }

    found: dict[int, set[str]] = defaultdict(set)
    for match in messages:
        if match["file"] == "refused.py" and match["kind"] == "error":
            found[int(match["line"])].add(match["code"])

    assert found == expected
    assert len(found) > 20


def test_what_is_typed_also_runs() -> None:
    """What the type checker was shown is no fiction."""
    from tests.typing import kept

    with kept.app.app_context():
        asyncio.run(kept.use())
        assert kept.blocks() == 1
        kept.hooks()
