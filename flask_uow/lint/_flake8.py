"""The checker as a plugin of flake8, which reads the file, prints what is found and has ``# noqa`` of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ._run import Checker
from ._settings import Settings, read_settings


class Plugin:
    """What flake8 makes of each file.

    :param filename: as flake8 shows it.
    :param lines: the file's text.
    """

    def __init__(self, tree: ast.AST, filename: str, lines: list[str]) -> None:
        self._path = Path(filename)
        self._source = "".join(lines).encode()

    def run(self) -> Iterator[tuple[int, int, str, type[Plugin]]]:
        """Line, column from 0, code and text of each finding."""
        if _settings().is_excluded(self._path):
            return
        findings, _ = _checker().check(self._path, self._source)
        for finding in findings:
            yield finding.line, finding.column - 1, f"{finding.code} {finding.text}", type(self)


@cache
def _settings() -> Settings:
    return read_settings(Path.cwd())


@cache
def _checker() -> Checker:
    return Checker(_settings())
