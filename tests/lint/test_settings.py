"""The checker's configuration: where it is looked for, what it says, and one clear error for what is wrong."""

import re
from pathlib import Path

import pytest

from flask_uow.exceptions import ConfigurationError
from flask_uow.lint import Settings, check_paths, read_settings
from tests.lint.sources import write

TOML = """
[tool.flask_uow.lint]
data-access = ["bank/daos"]
exclude = ["tests", "*/versions/*"]
ignore = ["UOW302"]
sessions = ["store.session"]
units = ["house.atomic"]
"""
INI = """
[flask_uow.lint]
data-access = bank/daos
exclude =
    tests
    */versions/*
ignore = UOW302
sessions = store.session
units = house.atomic
"""


@pytest.mark.parametrize(
    ("name", "text"), [("pyproject.toml", TOML), ("setup.cfg", INI), ("tox.ini", INI)], ids=["toml", "cfg", "ini"]
)
def test_every_key(tmp_path: Path, name: str, text: str) -> None:
    """Each key has the same meaning in each file."""
    (tmp_path / name).write_text(text)

    assert read_settings(tmp_path) == Settings(
        tmp_path,
        data_access=("bank/daos",),
        exclude=("tests", "*/versions/*"),
        ignore=("UOW302",),
        sessions=("store.session",),
        units=("house.atomic",),
    )


def test_nearest_file_with_a_section_counts(tmp_path: Path) -> None:
    """A file without one is passed by, and globs are relative to the file's folder."""
    inner = tmp_path / "bank" / "branch"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(TOML)
    (inner / "pyproject.toml").write_text("[tool.other]\n")
    (inner / "setup.cfg").write_text("[metadata]\nname = bank\n")

    settings = read_settings(inner)

    assert settings.folder == tmp_path
    assert settings.is_data_access(tmp_path / "bank" / "daos" / "deep" / "account.py")
    assert not settings.is_data_access(inner / "bank" / "daos" / "account.py")


def test_named_file_counts(tmp_path: Path) -> None:
    """Whatever lies nearer; and it has to have a section."""
    (tmp_path / "pyproject.toml").write_text(TOML)
    (tmp_path / "lint.cfg").write_text("[flask_uow.lint]\nignore = UOW301\n")
    (tmp_path / "empty.toml").write_text("")

    assert read_settings(tmp_path, tmp_path / "lint.cfg").ignore == ("UOW301",)
    with pytest.raises(ConfigurationError, match=r"empty\.toml has no section \[tool\.flask_uow\.lint\]"):
        read_settings(tmp_path, tmp_path / "empty.toml")


def test_no_file_means_defaults(tmp_path: Path) -> None:
    """The usual names are sessions without any configuration."""
    settings = Settings(tmp_path)

    assert settings.sessions == ("db.session", "uow.session")
    assert (settings.data_access, settings.exclude, settings.ignore, settings.units) == ((), (), (), ())


WRONG = {
    "an unknown key": ('data_access = ["a"]', "data_access is no key of [tool.flask_uow.lint].", "data-access?"),
    "a key like no other": ("colour = 1", "colour is no key", "The keys are: data-access, exclude, ignore"),
    "a string": ('exclude = "tests"', "exclude = 'tests': expected a list of strings.", 'exclude = ["..."]'),
    "a list of numbers": ("exclude = [1]", "exclude = [1]: expected a list of strings.", 'exclude = ["..."]'),
    "an unknown rule": ('ignore = ["UOW1"]', "ignore = ['UOW1']: no such rules.", "The rules are: UOW101"),
    "no TOML": ("exclude = [", "cannot be read: Invalid value", "Mend the file."),
}


@pytest.mark.parametrize(("line", "what", "fix"), WRONG.values(), ids=WRONG)
def test_wrong_key_is_one_error(tmp_path: Path, line: str, what: str, fix: str) -> None:
    """It quotes the file and the key as they were typed."""
    (tmp_path / "pyproject.toml").write_text(f"[tool.flask_uow.lint]\n{line}\n")

    with pytest.raises(ConfigurationError, match=re.escape(what)) as caught:
        read_settings(tmp_path)

    assert str(tmp_path / "pyproject.toml") in caught.value.what
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("pyproject.toml", "[tool]\nflask_uow.lint = 3\n", "tool.flask_uow.lint = 3: expected a table"),
        ("setup.cfg", "[flask_uow.lint]\nexclude\n", "cannot be read"),
        ("setup.cfg", "[flask_uow.lint]\ncolour = red\n", "colour is no key of [flask_uow.lint]."),
    ],
)
def test_wrong_file_is_one_error(tmp_path: Path, name: str, text: str, what: str) -> None:
    """Whatever its format."""
    (tmp_path / name).write_text(text)

    with pytest.raises(ConfigurationError, match=re.escape(what)):
        read_settings(tmp_path)


def test_unreadable_file_is_one_error(tmp_path: Path) -> None:
    """Bytes that are no text are not skipped in silence."""
    (tmp_path / "setup.cfg").write_bytes(b"[flask_uow.lint]\nexclude = \xff\n")

    with pytest.raises(ConfigurationError, match=r"setup\.cfg cannot be read: 'utf-8' codec"):
        read_settings(tmp_path)


def test_excluded_files_are_left_out(tmp_path: Path) -> None:
    """In folders, and where they are named, as a commit hook names them."""
    write(tmp_path, bank__views="", bank__tests__views="", bank__migrations__versions__one="")
    settings = Settings(tmp_path, exclude=("bank/tests", "*/versions/*"))

    assert check_paths([tmp_path], settings).files == 1
    report = check_paths([tmp_path / "bank" / "tests" / "views.py"], settings)
    assert (report.files, report.excluded, report.status) == (0, 1, 0)
