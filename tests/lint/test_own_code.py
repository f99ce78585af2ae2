"""The checker on this project: what the sample does wrong on purpose is found, and nothing else."""

from pathlib import Path

import pytest

from flask_uow.lint import Settings, check_paths
from sample.mistakes import MISTAKES

ROOT = Path(__file__).parents[2]
# What only shows when the line runs: nothing was written, the context ends, a unit takes long, and so on.
AT_RUN_TIME = {"UOW103", "UOW106", "UOW107", "UOW108", "UOW109", "UOW110", "UOW111", "UOW201", "UOW202", "UOW203"}


@pytest.fixture
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings, in the folder from which the sample is run."""
    monkeypatch.chdir(ROOT)
    return Settings(ROOT)


def test_sample_does_nothing_wrong_but_its_mistakes(at_the_top: Settings) -> None:
    """In the bank there is no finding; each mistake that can be read from source is found, and as the rule it shows."""
    report = check_paths([Path("sample")], at_the_top)

    assert {finding.path for finding in report.findings} == {"sample/mistakes.py"}
    shown = [mistake for mistake, _ in MISTAKES.values() if mistake.code not in AT_RUN_TIME]
    # Outside a unit, source does not tell whether there is something to commit.
    codes = ["UOW301" if mistake.code == "UOW104" else mistake.code for mistake in shown]
    assert [finding.code for finding in report.findings] == codes
    for finding, mistake in zip(report.findings, shown, strict=True):
        first = int(mistake.line.rpartition(":")[2])
        assert first <= finding.line <= first + len(mistake.source.splitlines())
    assert report.unresolved == []


def test_package_ends_transactions_where_units_and_sessions_end(at_the_top: Settings) -> None:
    """What the units stand for is done in these modules alone."""
    report = check_paths([Path("flask_uow")], at_the_top)

    assert {finding.path for finding in report.findings} == {"flask_uow/_sessions.py", "flask_uow/_units.py"}
    assert {finding.code for finding in report.findings} == {"UOW301", "UOW302"}
