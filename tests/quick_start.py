"""The README's quick start, out of the README's own text: its program, its commands, its requests and their answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import core, nodes  # type: ignore[import-untyped]

from tests.reader import curl, parse_curl, run, serving
from tests.throwaway_server import find_free_port

FLASK = ["flask", "--app", "bank"]


@dataclass(frozen=True)
class QuickStart:
    """What a reader copies.

    :ivar program: what he saves as ``bank.py``.
    :ivar exchanges: the lines that he types into another terminal, each with what is printed then.
    """

    program: str
    exchanges: list[tuple[str, str]]

    def follow(self, folder: Path, environment: Mapping[str, str] | None = None, python: str | None = None) -> str:
        """Do what a reader does, with a real server.

        :param folder: an empty one, in which the program and its database are left.
        :param environment: of all that is run, instead of this process's.
        :param python: the interpreter that has the package, instead of the one that runs the tests.
        :return: what the server has printed.
        :raises AssertionError: if something else is answered than the page says.
        """
        (folder / "bank.py").write_text(self.program, encoding="utf-8")
        run([*FLASK, "init"], folder, python, **(environment or {}))
        port = find_free_port()
        with serving([*FLASK, "run"], folder, port, python, **(environment or {})) as printed:
            answers = [curl(port, parse_curl(line)) for line, _ in self.exchanges]
        expected = [answer for _, answer in self.exchanges]
        assert answers == expected, f"{answers} instead of {expected}:\n{printed[0]}"
        return printed[0]


def read_quick_start(readme: str) -> QuickStart:
    """Find the quick start in the README's text.

    :raises AssertionError: if it has another form than one program and one dialogue with curl.
    """
    document = core.publish_doctree(readme, settings_overrides={"halt_level": 2, "report_level": 2})
    assert all(f"``flask --app bank {command}``" in readme for command in ("init", "run"))
    program, dialogue = blocks_under(document, "Quick start")
    exchanges = re.findall(r"^\$ (curl .*)\n(.*)", dialogue, re.MULTILINE)
    assert len(exchanges) == dialogue.count("$ ")
    return QuickStart(program, exchanges)


def blocks_under(document: Any, title: str) -> list[str]:
    """Return the blocks of code directly under a title; the page's own is its document's."""
    sections = [document, *document.findall(nodes.section)]
    section = next(section for section in sections if section.next_node(nodes.title).astext() == title)
    return [block.astext() for block in section.children if isinstance(block, nodes.literal_block)]
