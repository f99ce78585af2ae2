"""The tutorial: in an empty folder, each file is written, each command typed, each line that it shows is printed."""

import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]

from tests import reader
from tests.databases import Database, SQLiteDatabase
from tests.throwaway_server import find_free_port

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.rst").read_text(encoding="utf-8")


class Desk:
    """Where somebody follows the page.

    :param folder: where the files come to lie.
    :param addresses: the databases that stand in the place of the page's.
    """

    def __init__(self, folder: Path, addresses: dict[str, str]) -> None:
        self.folder = folder
        self.typed: list[str] = []
        self._addresses = addresses
        self._environment = {"UOW_STATS_DIR": str(folder / "stats"), "PYTHONDONTWRITEBYTECODE": "1"}
        self._port = find_free_port()
        self._server = ExitStack()

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.close()

    def type(self, line: str) -> str:
        """Type a line, and return what is printed."""
        self.typed.append(line)
        words = shlex.split(line)
        if words[0] in ("mkdir", "python3", ".", "pip"):
            return ""  # the environment of the tests is the reader's
        if words[0] == "export":
            name, value = words[1].split("=", 1)
            self._environment[name] = self._addresses[value]
            return ""
        if words[0] == "curl":
            return self.ask(line)
        if words[-1] == "run":
            self._server.close()
            self._server.enter_context(reader.serving(words, self.folder, self._port, **self._environment))
            return ""
        words = words[words[:2] == ["python", "-m"] and 2 :]
        # This project's own configuration keeps the plugin away from its tests.
        return reader.run(words, self.folder, **self._environment, PYTEST_ADDOPTS="")

    def ask(self, line: str) -> str:
        """Send a request, and return what curl would print."""
        return reader.curl(self._port, reader.parse_curl(line))


@pytest.fixture
def desk(tmp_path: Path, make_database: Callable[[str], Database]) -> Iterator[Desk]:
    """An empty folder, and an empty database on a server."""
    with Desk(tmp_path, {"postgresql://localhost/tickets": make_database("psycopg2").url}) as desk:
        yield desk


def test_each_step_does_what_the_page_shows(desk: Desk) -> None:
    """From the first line to the last; and what it says of the two examples that are in no file."""
    alone = []
    for heading, block in _blocks():
        if "console" in block["classes"]:
            for line, shown in re.findall(r"^\$ (.*)\n?((?:(?!\$ ).*\n?)*)", block.astext(), re.MULTILINE):
                printed = desk.type(line)
                assert not shown or re.search(_pattern(shown), printed, re.DOTALL), f"$ {line}\n{printed}"
        elif named := re.search(r"\bAs (\S+?):", heading):
            (desk.folder / named[1]).write_text(block.astext() + "\n", encoding="utf-8")
        else:
            alone.append(block.astext())

    assert sum(line.startswith("curl") for line in desk.typed) == 3
    assert sum(line.endswith(" run") for line in desk.typed) == 2
    assert desk.type("curl http://127.0.0.1:5000/shows/1") == '{"names":[],"seats_left":3}'
    sqlite = SQLiteDatabase(desk.folder / "instance" / "tickets.sqlite")
    assert [row[0] for row in sqlite.rows("SELECT name FROM booking")] == ["Ada"]

    mended_helper, safe = alone
    _change(desk.folder / "mistake.py", r"def add_booking(.|\n)*?commit\(\)", mended_helper)
    assert reader.run(["python", "mistake.py"], desk.folder) == ""
    assert [row[0] for row in sqlite.rows("SELECT name FROM booking ORDER BY id")] == ["Ada", "Cy", "Di"]

    _change(desk.folder / "tickets.py", r"@transactional(?=\ndef book)", safe)
    desk.type("flask --app tickets run")
    line = next(line for line in desk.typed if "Bob" in line)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(desk.ask, [line] * 8))
    assert sum("booking" in answer for answer in answers) == 1, answers
    assert desk.type("curl http://127.0.0.1:5000/shows/1") == '{"names":["Bob"],"seats_left":1}'


def _blocks() -> Iterator[tuple[str, Any]]:
    """Return the page's blocks of code, each with the paragraph before it."""
    page = core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})
    before = ""
    for node in page.findall(lambda node: isinstance(node, (nodes.paragraph, nodes.literal_block))):
        if isinstance(node, nodes.literal_block):
            yield before, node
        before = node.astext()


def _change(file: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, file.read_text(encoding="utf-8"))
    assert count == 1
    file.write_text(text, encoding="utf-8")


def _pattern(shown: str) -> str:
    """What is printed where the page shows this; three dots stand for anything."""
    return ".*?".join(re.escape(part) for part in shown.rstrip().split("...")).replace(r"\ ", " ")
