"""What the codemod says: the files that it would change, the places that it leaves, and the report of one run."""

from __future__ import annotations

import difflib
import io
import tokenize
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """A file before and after.

    :param path: as it was asked for.
    :param before: its bytes.
    :param after: its bytes with the changes.
    """

    path: Path
    before: bytes
    after: bytes

    @property
    def diff(self) -> str:
        """The change as a unified diff, which ``patch`` and ``git apply`` understand."""
        name = self.path.as_posix().lstrip("/")
        lines = difflib.unified_diff(_lines(self.before), _lines(self.after), f"a/{name}", f"b/{name}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


@dataclass(frozen=True, slots=True, order=True)
class Left:
    """A place that is left to a human.

    :param path: of the file, as it was asked for.
    :param line: from 1.
    :param column: from 1, in characters.
    :param why: what stands in the way, and what to do.
    """

    path: str
    line: int
    column: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.why}"


@dataclass(slots=True)
class Report:
    """What one run has found.

    :param changes: in the order of files.
    :param left: in the order of files and lines.
    :param moved: how many functions and blocks have become units.
    :param files: how many files were looked at.
    """

    changes: list[Change] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    moved: int = 0
    files: int = 0

    @property
    def status(self) -> int:
        """The exit status: 1 where a human has something left to do, or nothing was looked at."""
        return int(bool(self.left) or not self.files)


def _lines(source: bytes) -> list[str]:
    """The lines with their ends as they are."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return list(io.TextIOWrapper(io.BytesIO(source), encoding, newline="\n"))
