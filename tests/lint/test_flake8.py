"""The checker inside of flake8: the real one, which reads the files and prints what is found."""

import configparser
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.lint.sources import write

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
SOURCE = """\
from flask_uow import UnitOfWork

uow = UnitOfWork()
uow.session.commit()
uow.session.rollback()  # noqa: UOW302
uow.session.close()  # uow: ignore[UOW302]
'ä'; uow.session.begin()
"""


def entry_point() -> str:
    """What ``setup.cfg`` says to flake8."""
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["options.entry_points"]["flake8.extension"].strip()


def test_plugin_reports_to_flake8(tmp_path: Path) -> None:
    """With flake8's own comments and ours, and columns in characters."""
    write(tmp_path, bank__views=SOURCE)
    (tmp_path / "setup.cfg").write_text("[flake8]\nselect = UOW\n")

    done = subprocess.run(
        [sys.executable, "-m", "flake8", "bank"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.stderr == ""
    assert done.returncode == 1
    assert [line.split(" ")[:2] for line in done.stdout.splitlines()] == [
        ["bank/views.py:4:1:", "UOW301"],
        ["bank/views.py:7:6:", "UOW301"],
    ]


@pytest.mark.parametrize("line", ["ignore = UOW301", "exclude = bank"])
def test_configuration_is_the_checkers_own(tmp_path: Path, line: str) -> None:
    """Its section lies beside that of flake8, in the same file."""
    write(tmp_path, bank__views=SOURCE)
    (tmp_path / "setup.cfg").write_text(f"[flask_uow.lint]\n{line}\n\n[flake8]\nselect = UOW\n")

    done = subprocess.run(
        [sys.executable, "-m", "flake8", "bank"], cwd=tmp_path, capture_output=True, timeout=TIMEOUT_S, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_entry_point_leads_to_the_plugin() -> None:
    """Under the prefix of the rules' codes, which is the longest that flake8 takes."""
    name, _, place = entry_point().partition(" = ")
    module, _, attribute = place.partition(":")

    assert name == "UOW"
    assert hasattr(import_module(module), attribute)
