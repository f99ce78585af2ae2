"""The formats, each read back as its readers do."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from flask_uow.lint import CHECKS, Finding, Report, Unresolved
from flask_uow.lint._command import FORMAT_NAMES
from flask_uow.lint._formats import FORMATS, SARIF_VERSION, VERSION, summary

FINDINGS = [
    Finding("bank/odd name,100%:ä.py", 3, 5, "UOW301", "db.session.commit() is called\nby hand: 100%."),
    Finding("/srv/bank/views.py", 1, 1, "UOW300", "The file cannot be checked: it is no regular file."),
]
REPORT = Report(FINDINGS, [Unresolved("bank/views.py", 7, 9, "store.commit()")], files=2)

# What the SARIF 2.1.0 schema requires of each object that is written, by its name there.
REQUIRED: dict[str, dict[str, type]] = {
    "sarifLog": {"version": str, "runs": list},
    "run": {"tool": dict},
    "tool": {"driver": dict},
    "toolComponent": {"name": str},
    "reportingDescriptor": {"id": str},
    "result": {"message": dict},
    "message": {"text": str},
}


def test_formats_of_the_command_are_those_that_there_are() -> None:
    """The command says their names without loading them."""
    assert tuple(FORMATS) == FORMAT_NAMES


def test_text() -> None:
    """Editors and people read ``path:line:column: code message``."""
    (first, *_) = FORMATS["text"](Report([FINDINGS[1]], files=1)).splitlines()

    assert first == (
        "/srv/bank/views.py:1:1: UOW300 The file cannot be checked: it is no regular file. "
        "Mend the file, or exclude it."
    )


def test_json() -> None:
    """One document with a version, and what was not resolved."""
    document = json.loads(FORMATS["json"](REPORT))

    assert document["version"] == VERSION
    assert document["files"] == 2
    assert document["findings"][0] == {
        "path": "bank/odd name,100%:ä.py",
        "line": 3,
        "column": 5,
        "code": "UOW301",
        "what": "db.session.commit() is called\nby hand: 100%.",
        "fix": CHECKS["UOW301"].fix,
    }
    assert document["unresolved"] == [{"path": "bank/views.py", "line": 7, "column": 9, "call": "store.commit()"}]


def test_sarif() -> None:
    """What the schema requires is there and of its type, and each result is of a rule that is described."""
    log = json.loads(FORMATS["sarif"](REPORT))

    assert log["version"] == SARIF_VERSION
    _require("sarifLog", log)
    (run,) = log["runs"]
    _require("run", run)
    _require("tool", run["tool"])
    _require("toolComponent", run["tool"]["driver"])
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(CHECKS)
    for rule in rules:
        _require("reportingDescriptor", rule)
        _require("message", rule["shortDescription"])
        _require("message", rule["help"])
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    for result, finding in zip(run["results"], FINDINGS, strict=True):
        _require("result", result)
        _require("message", result["message"])
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"] == {"startLine": finding.line, "startColumn": finding.column}
        assert _path(location["physicalLocation"]["artifactLocation"]["uri"]) == finding.path


def _require(name: str, value: dict[str, Any]) -> None:
    for key, kind in REQUIRED[name].items():
        assert isinstance(value[key], kind), (name, key)


def _path(uri: str) -> str:
    assert re.fullmatch(r"[A-Za-z0-9%/._~:-]+", uri), uri
    split = urlsplit(uri)
    assert split.scheme in ("", "file")
    return unquote(split.path)


def test_github() -> None:
    """Each finding is one line, whatever is in its path and its text."""
    lines = FORMATS["github"](REPORT).splitlines()

    assert lines[0] == (
        "::error file=bank/odd name%2C100%25%3Aä.py,line=3,col=5,title=UOW301::"
        f"db.session.commit() is called%0Aby hand: 100%25. {CHECKS['UOW301'].fix}"
    )
    assert len(lines) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_found(name: str) -> None:
    """Is a document as well, where the format is one."""
    text = FORMATS[name](Report(files=1))

    if name in ("json", "sarif"):
        assert json.loads(text)
    else:
        assert text == ""


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (REPORT, "2 findings in 2 files; 1 call not resolved."),
        (Report(FINDINGS[:1], files=1), "1 finding in 1 file."),
        (Report(files=3, excluded=1), "0 findings in 3 files; 1 excluded."),
        (Report(), "Nothing was checked: there is no Python file."),
    ],
)
def test_summary(report: Report, line: str) -> None:
    """One line says how much was looked at, found, and left open."""
    assert summary(report) == line


def test_path_of_a_finding_is_as_it_was_typed() -> None:
    """So that a terminal can open it."""
    assert FINDINGS[0].path == Path(FINDINGS[0].path).as_posix()
