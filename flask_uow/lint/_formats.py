"""How a report is printed: as lines for people, as JSON, as SARIF 2.1.0, as commands for GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ._checks import CHECKS
from ._findings import Finding, Report, Unresolved

VERSION = 1
"""Of the JSON document; it changes when a key changes its meaning."""

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
SARIF_VERSION = "2.1.0"


def as_text(report: Report) -> str:
    """One line for each finding."""
    return "".join(f"{each.path}:{each.line}:{each.column}: {each.code} {each.text}\n" for each in report.findings)


def as_json(report: Report) -> str:
    """One document, with what could not be resolved."""
    document = {
        "version": VERSION,
        "files": report.files,
        "findings": [_finding(each) for each in report.findings],
        "unresolved": [_unresolved(each) for each in report.unresolved],
    }
    return json.dumps(document, indent=2) + "\n"


def as_github(report: Report) -> str:
    """One workflow command for each finding, which GitHub shows beside its line."""
    return "".join(map(_github, report.findings))


def as_sarif(report: Report) -> str:
    """A log that code scanning services read."""
    rules = [
        {
            "id": check.code,
            "name": check.code,
            "shortDescription": {"text": check.title},
            "help": {"text": check.fix},
            "defaultConfiguration": {"level": "error"},
        }
        for check in CHECKS.values()
    ]
    driver = {"name": "flask-uow", "rules": rules}
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(each) for each in report.findings],
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": SARIF_VERSION, "runs": [run]}, indent=2) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": as_text,
    "json": as_json,
    "sarif": as_sarif,
    "github": as_github,
}


def summary(report: Report) -> str:
    """The run in one line."""
    findings = _plural(len(report.findings), "finding")
    parts = [f"{findings} in {_plural(report.files, 'file')}"]
    if not report.files:
        parts = ["Nothing was checked: there is no Python file"]
    if report.excluded:
        parts.append(f"{report.excluded} excluded")
    if report.unresolved:
        parts.append(f"{_plural(len(report.unresolved), 'call')} not resolved")
    return "; ".join(parts) + "."


def unresolved_lines(report: Report) -> Iterator[str]:
    """One line for each call that could not be resolved."""
    return (f"{each.path}:{each.line}:{each.column}: not resolved: {each.call}" for each in report.unresolved)


def _finding(finding: Finding) -> dict[str, object]:
    place = {"path": finding.path, "line": finding.line, "column": finding.column}
    return {**place, "code": finding.code, "what": finding.what, "fix": finding.fix}


def _unresolved(unresolved: Unresolved) -> dict[str, object]:
    return {
        "path": unresolved.path,
        "line": unresolved.line,
        "column": unresolved.column,
        "call": unresolved.call,
    }


def _result(finding: Finding) -> dict[str, object]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    location = {"artifactLocation": {"uri": _uri(finding.path)}, "region": region}
    return {
        "ruleId": finding.code,
        "ruleIndex": list(CHECKS).index(finding.code),
        "level": "error",
        "message": {"text": finding.text},
        "locations": [{"physicalLocation": location}],
    }


def _uri(path: str) -> str:
    if Path(path).is_absolute():
        return Path(path).as_uri()
    # The first part of a relative reference may hold no colon.
    return quote(path)


def _github(finding: Finding) -> str:
    place = f"file={_property(finding.path)},line={finding.line},col={finding.column},title={finding.code}"
    return f"::error {place}::{_message(finding.text)}\n"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
