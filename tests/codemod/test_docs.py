"""The codemod's page in ``docs/``: its examples are what the codemod does, its options are the command's."""

import re
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]

from flask_uow.codemod import _command
from tests.codemod.sources import after, code, whole

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "codemod.rst").read_text(encoding="utf-8")
MODELS = """
from smtplib import SMTP

class Tag(db.Model):
    __tablename__ = "tag"
    name: Mapped[str] = mapped_column(primary_key=True)

def send_mail(account):
    SMTP("localhost").sendmail("bank", account.owner, "less")

"""


def _blocks() -> list[str]:
    page: Any = core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})
    return [block.astext() for block in page.findall(nodes.literal_block)]


SHELL, *EXAMPLES = _blocks()


@pytest.mark.parametrize(("before", "expected"), [*zip(EXAMPLES[::2], EXAMPLES[1::2], strict=True)])
def test_examples_are_what_it_does(tmp_path: Path, before: str, expected: str) -> None:
    """Each second one is made of the first."""
    changed, report = after(tmp_path, whole(f"{MODELS}{before}\n"))

    assert code(changed) == code(whole(f"{MODELS}{expected}\n"))
    assert report.left == []


def test_output_is_the_commands(tmp_path: Path) -> None:
    """The reason, word by word."""
    source = "def remind(account):\n    db.session.add(account)\n    db.session.commit()\n"
    _, report = after(tmp_path, whole(source))

    (left,) = report.left
    assert left.why in SHELL


def test_options_and_exit_statuses_are_described() -> None:
    """All of them."""
    options = [name for option in _command.codemod.params for name in option.opts if name.startswith("--")]

    assert all(name in PAGE for name in options)
    assert re.findall(r"Exit status: (\d);.*? (\d) if .*?; (\d) on", PAGE, re.DOTALL) == [("0", "1", "2")]
    assert (_command.codemod.help or "").count("Exit status: 0; 1 if") == 1


def test_what_it_needs_is_an_extra() -> None:
    """Under the name that the error gives."""
    assert "pip install 'flask_uow[codemod]'" in PAGE
    assert "pip install 'flask_uow[codemod]'" in _command.MISSING
    assert "\ncodemod =\n    libcst" in (ROOT / "setup.cfg").read_text()
