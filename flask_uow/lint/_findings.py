"""What the checker says: findings, what it could not resolve, and the report of one run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._checks import CHECKS


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A line that breaks a rule.

    :param path: of the file, as it was asked for.
    :param line: from 1.
    :param column: from 1, in characters.
    :param code: of the rule.
    :param what: what was found.
    :param last_line: the last line on which a comment may ignore it.
    """

    path: str
    line: int
    column: int
    code: str
    what: str
    last_line: int = 0

    @property
    def fix(self) -> str:
        """What to do."""
        return CHECKS[self.code].fix

    @property
    def text(self) -> str:
        """What was found and what to do, in one line."""
        return f"{self.what} {self.fix}"


@dataclass(frozen=True, slots=True, order=True)
class Unresolved:
    """A call that may be one by hand, on something that the source does not tell.

    :param path: of the file, as it was asked for.
    :param line: from 1.
    :param column: from 1, in characters.
    :param call: as it is written.
    """

    path: str
    line: int
    column: int
    call: str


@dataclass(slots=True)
class Report:
    """What one run has found.

    :param findings: in the order of files and lines.
    :param unresolved: in the same order.
    :param files: how many were looked at.
    :param excluded: how many files were named and are excluded by the configuration.
    """

    findings: list[Finding] = field(default_factory=list)
    unresolved: list[Unresolved] = field(default_factory=list)
    files: int = 0
    excluded: int = 0

    @property
    def status(self) -> int:
        """The exit status: 1 for findings, and where nothing was looked at."""
        has_looked = self.files or self.excluded
        return int(bool(self.findings) or not has_looked)
