"""``# uow: ignore[UOW101]``: comments that take findings back, and those that have nothing to take back."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ._checks import CHECKS, UNREADABLE, UNUSED_IGNORE
from ._findings import Finding

_COMMENT = re.compile(r"#\s*uow:\s*ignore\b\s*(?:\[(?P<codes>[^\]]*)\])?", re.IGNORECASE)
_NEVER_IGNORED = frozenset((UNREADABLE, UNUSED_IGNORE))


@dataclass(slots=True)
class Ignore:
    """One comment.

    :param line: from 1.
    :param column: from 1, in characters.
    :param codes: the rules that it names.
    :param used: those of them that have been broken there.
    """

    line: int
    column: int
    text: str
    codes: tuple[str, ...]
    used: set[str] = field(default_factory=set)

    def takes_back(self, finding: Finding) -> bool:
        """Whether a finding stands on its line and is of one of its rules."""
        is_here = finding.line <= self.line <= max(finding.line, finding.last_line)
        return is_here and finding.code in self.codes


def read_ignores(lines: Sequence[str]) -> list[Ignore]:
    """The comments of a file; as many as can be read of one that the tokenizer does not understand."""
    ignores: list[Ignore] = []
    if not any(map(_COMMENT.search, lines)):
        return ignores
    with suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
            if token.type == tokenize.COMMENT:
                ignores.extend(_ignores_in(token))
    return ignores


def _ignores_in(token: tokenize.TokenInfo) -> Iterator[Ignore]:
    for match in _COMMENT.finditer(token.string):
        codes = tuple(code.strip().upper() for code in (match["codes"] or "").split(",") if code.strip())
        yield Ignore(token.start[0], token.start[1] + match.start() + 1, match[0].strip(), codes)


def apply_ignores(
    findings: Iterable[Finding], ignores: Collection[Ignore], path: str, switched_off: Collection[str]
) -> list[Finding]:
    """The findings that no comment takes back, and one for each comment that is of no use.

    :param switched_off: rules that the configuration leaves out, of which a comment may speak all the same.
    """
    kept = []
    for finding in findings:
        takers = [ignore for ignore in ignores if ignore.takes_back(finding)]
        for ignore in takers:
            ignore.used.add(finding.code)
        if not takers:
            kept.append(finding)
    return [*kept, *(unused for ignore in ignores for unused in _unused(ignore, path, switched_off))]


def _unused(ignore: Ignore, path: str, switched_off: Collection[str]) -> Iterator[Finding]:
    for why in _complaints(ignore, switched_off):
        what = CHECKS[UNUSED_IGNORE].what.format(comment=ignore.text, why=why)
        yield Finding(path, ignore.line, ignore.column, UNUSED_IGNORE, what, ignore.line)


def _complaints(ignore: Ignore, switched_off: Collection[str]) -> Iterator[str]:
    if not ignore.codes:
        yield "names no rule"
    for code in ignore.codes:
        if code not in CHECKS or code in _NEVER_IGNORED:
            yield f"names {code}, which cannot be ignored"
        elif code not in ignore.used and code not in switched_off:
            yield f"has no {code} to ignore"
