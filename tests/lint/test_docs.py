"""The checker's page in ``docs/``: its rules, keys and examples are the checker's."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]

from flask_uow.lint import CHECKS, Settings, check_paths, read_settings
from flask_uow.lint._command import FORMAT_NAMES, db_session_lint
from flask_uow.lint._settings import KEYS
from tests.lint.sources import HEAD, check, found, write

PAGE = (Path(__file__).parents[2] / "docs" / "lint.rst").read_text(encoding="utf-8")


def _read() -> Any:
    return core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})


def _sections() -> dict[str, Any]:
    return {section.next_node(nodes.title).astext(): section for section in _read().findall(nodes.section)}


SECTIONS = _sections()
EXAMPLES = {code: [block.astext() for block in SECTIONS[code].findall(nodes.literal_block)] for code in CHECKS}


def test_every_rule_has_a_section_in_order() -> None:
    """With what it is about, why, before and after; a file that is no Python has no after."""
    assert [title for title in SECTIONS if title.startswith("UOW")] == sorted(CHECKS)
    for code, examples in EXAMPLES.items():
        text = SECTIONS[code].astext()
        assert "What: " in text
        assert "Why: " in text
        assert len(examples) == (0 if code == "UOW300" else 2), code


@pytest.mark.parametrize("code", sorted(set(CHECKS) - {"UOW300"}))
def test_examples_are_found_and_mended(tmp_path: Path, code: str) -> None:
    """The first of each two breaks the rule and no other, the second breaks none."""
    settings = {"data_access": ("bank.py",)} if code == "UOW303" else {}
    before, after = (check(tmp_path, f"{HEAD}{example}\n", **settings) for example in EXAMPLES[code])

    assert [finding.code for finding in before.findings] == [code]
    assert found(after) == []
    assert (before.unresolved, after.unresolved) == ([], [])


def test_configuration_is_the_checkers(tmp_path: Path) -> None:
    """Every key is shown, and as the checker takes it."""
    (block,) = SECTIONS["Configuration"].findall(nodes.literal_block)
    (tmp_path / "pyproject.toml").write_text(block.astext())

    assert tuple(tomllib.loads(block.astext())["tool"]["flask_uow"]["lint"]) == KEYS
    assert read_settings(tmp_path).units == ("house.atomic",)
    for session in Settings(tmp_path).sessions:
        assert session in block.astext()


def test_output_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first example prints what the checker says."""
    line = next(line for line in PAGE.splitlines() if "bank/views.py:12:5" in line)
    write(tmp_path, bank__views=f"{HEAD}def deposit(account):\n    account.balance += 1\n\n    db.session.commit()\n")
    monkeypatch.chdir(tmp_path)

    (finding,) = check_paths([Path("bank")], Settings(tmp_path)).findings

    assert line.strip() == f"{finding.path}:{finding.line}:{finding.column}: {finding.code} {finding.text}"


def test_every_option_is_described() -> None:
    """And every format."""
    options = {name for option in db_session_lint.params for name in option.opts if name.startswith("--")}

    for word in (*options, *FORMAT_NAMES):
        assert f"``{word}``" in PAGE
