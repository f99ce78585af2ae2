"""Checks files: reads each, walks through it, and takes back what its comments ignore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ._checks import CHECKS, UNREADABLE
from ._files import find_files
from ._findings import Finding, Report, Unresolved
from ._ignores import apply_ignores, read_ignores
from ._project import Project, UnreadableError
from ._resolve import Resolver
from ._settings import Settings
from ._walk import walk


def check_paths(paths: Iterable[Path], settings: Settings) -> Report:
    """Check files, and the folders' files.

    Nothing is imported or run. What the files import is read as well, where it lies beside them, so that a name means
    the same whether one file is checked or all of them.
    """
    files, excluded = find_files(paths, settings)
    report = Report(files=len(files), excluded=excluded)
    checker = Checker(settings)
    for file in files:
        findings, unresolved = checker.check(file)
        report.findings.extend(findings)
        report.unresolved.extend(unresolved)
    return report


class Checker:
    """Checks one file after the other, and remembers the modules that it has read for the next."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._project = Project([settings.folder, Path.cwd()])
        self._resolver = Resolver(self._project, settings.sessions, settings.units)

    def check(self, path: Path, source: bytes | None = None) -> tuple[list[Finding], list[Unresolved]]:
        """What is wrong in a file, and what could not be told.

        :param source: its text, if it has been read.
        """
        name = path.as_posix()
        try:
            module = self._project.read(path) if source is None else self._project.parse(path, source)
            is_data_access = self._settings.is_data_access(path)
            findings, unresolved = walk(module, name, self._resolver, is_data_access=is_data_access)
        except (UnreadableError, RecursionError) as error:
            why = str(error) if isinstance(error, UnreadableError) else "it is nested too deeply"
            return [Finding(name, 1, 1, UNREADABLE, CHECKS[UNREADABLE].what.format(why=why))], []
        wanted = [finding for finding in findings if finding.code not in self._settings.ignore]
        kept = apply_ignores(wanted, read_ignores(module.lines), name, self._settings.ignore)
        return sorted(finding for finding in kept if finding.code not in self._settings.ignore), sorted(unresolved)
