"""Whether what lies in ``dist`` can be released: ``make release-check``, after it has built that.

Wheel and source archive are each installed into an empty virtual environment, with what they need from the index, and
the README's quick start is followed there, in an empty folder: nothing of the checkout can be imported. What is wrong
ends it with status 1.
"""

import argparse
import configparser
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from tests.quick_start import read_quick_start

ROOT = Path(__file__).parents[1]
NAME = "flask_uow"
PIP_TIMEOUT_S = 600
TIMEOUT_S = 100
NOT_PASSED_ON = ("PYTHON", "FLASK_", "UOW_", "VIRTUAL_ENV")
ROWS = [(1, 70), (2, 30)]
"""What the quick start leaves in its table: one transfer was made, and the other refused."""

INSTALLED = """
import importlib.metadata, pathlib, flask_uow
print(importlib.metadata.version("flask_uow"))
print(pathlib.Path(flask_uow.__file__).parent)
"""
COMMIT_BY_HAND = """
from flask_uow import transactional


@transactional
def pay(db):
    db.session.commit()
"""
ISOLATED = """
import pytest
from bank import Account, app as bank, transactional, uow

@pytest.fixture
def app():
    return bank

@pytest.mark.uow_isolation
@pytest.mark.parametrize("turn", [1, 2])
def test_close_account(app, uow_trace, turn):
    with app.app_context(), transactional():
        uow.session.delete(uow.session.get(Account, 1))
    uow_trace.assert_units(1)
"""


class ReleaseError(Exception):
    """What is in ``dist`` is not to be released."""


# ---- what is read


def released_version(setup_cfg: str, changes: str, tag: str | None) -> str:
    """The version that ``setup.cfg`` says, and that everything else has to say.

    :param changes: the text of ``CHANGES.rst``, whose newest entry has to be the version's.
    :param tag: the tag under which it is to be released; then the newest entry has to have a date as well.
    :raises ReleaseError: if they say different things.
    """
    parser = configparser.RawConfigParser()
    parser.read_string(setup_cfg)
    version = parser["metadata"]["version"]
    newest = re.search(r"^Version (\S+), (unreleased|\d{4}-\d\d-\d\d)$", changes, re.MULTILINE)
    if newest is None or newest[1] != version:
        raise ReleaseError(
            f"The newest entry of CHANGES.rst is {newest and newest[0]!r}, and setup.cfg says {version}."
        )
    if tag and tag != f"v{version}":
        raise ReleaseError(f"The tag is {tag!r}, and setup.cfg says {version}.")
    if tag and newest[2] == "unreleased":
        raise ReleaseError(f"The entry of CHANGES.rst has no date: {newest[0]!r}.")
    return version


def check_wheel(wheel: Path, version: str, modules: set[str]) -> None:
    """Look into a wheel.

    :param modules: the files that the package has, which have to be in it; no other may be but its metadata.
    :raises ReleaseError: if something is missing, too much, or of another version.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = {name for name in names if name.startswith(f"{NAME}-{version}.dist-info/")}
        if missing := modules - names:
            raise ReleaseError(f"{wheel.name} lacks {', '.join(sorted(missing))}.")
        if strange := names - modules - about:
            raise ReleaseError(f"{wheel.name} has what is none of it: {', '.join(sorted(strange))}.")
        metadata = Parser().parsestr(archive.read(f"{NAME}-{version}.dist-info/METADATA").decode())
    if metadata["Version"] != version:
        raise ReleaseError(f"{wheel.name} says that it is version {metadata['Version']}.")


def check_sdist(sdist: Path, version: str, modules: set[str]) -> None:
    """Look into a source archive.

    :raises ReleaseError: if a file of the package, its tests or its sample are not in it.
    """
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    wanted = modules | {"setup.cfg", "tests/release_check.py", "sample/bank/__init__.py"}
    if missing := {name for name in wanted if f"{NAME}-{version}/{name}" not in names}:
        raise ReleaseError(f"{sdist.name} lacks {', '.join(sorted(missing))}.")


def files_of_the_package() -> set[str]:
    """The files that git knows of the package, or, in a source archive, those that lie there."""
    listed = subprocess.run(["git", "ls-files", NAME], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if listed:
        return set(listed.split())
    files = (file.relative_to(ROOT).as_posix() for file in (ROOT / NAME).rglob("*") if file.is_file())
    return {file for file in files if "__pycache__" not in file}


# ---- what is run


class Environment:
    """An empty virtual environment, and an empty folder to work in.

    :param folder: where both are made.
    """

    def __init__(self, folder: Path) -> None:
        self.work = folder / "an empty folder"
        self.work.mkdir(parents=True)
        self.venv = folder / "venv"
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True, env=self.variables, timeout=PIP_TIMEOUT_S)
        self.python = str(self.venv / "bin" / "python")

    def install(self, *what: str) -> None:
        """Install something with what it needs.

        :raises ReleaseError: if that cannot be, or does not fit together.
        """
        self.run("-m", "pip", "install", "--quiet", *what, timeout_s=PIP_TIMEOUT_S)
        self.run("-m", "pip", "check")

    def run(self, *arguments: str, status: int = 0, timeout_s: float = TIMEOUT_S) -> str:
        """Run Python, and return what it has printed.

        :param status: with which it has to end.
        :raises ReleaseError: if it ends with another one.
        """
        command = [self.python, *arguments]
        done = subprocess.run(
            command, cwd=self.work, env=self.variables, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode != status:
            shown = " ".join(arguments[:4])
            raise ReleaseError(f"{shown!r} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def check_installed(environment: Environment, version: str) -> None:
    """Import the package.

    :raises ReleaseError: if it has another version, comes from elsewhere, or has no marker for type checkers.
    """
    found, folder = environment.run("-c", INSTALLED).splitlines()
    if found != version:
        raise ReleaseError(f"What was installed says that it is version {found}.")
    if not Path(folder).resolve().is_relative_to(environment.venv.resolve()):
        raise ReleaseError(f"What is imported lies in {folder}.")
    if not (Path(folder) / "py.typed").is_file():
        raise ReleaseError("What was installed has no py.typed.")


def check_quick_start(environment: Environment) -> None:
    """Follow the README's quick start.

    :raises ReleaseError: if something else is answered, told or in the database than the page says.
    """
    try:
        quick_start = read_quick_start((ROOT / "README.rst").read_text(encoding="utf-8"))
        printed = quick_start.follow(environment.work, environment.variables, environment.python)
    except AssertionError as error:
        raise ReleaseError(f"The quick start does not run: {error}") from error
    if printed.count("Tell the owner of account 2") != 1:
        raise ReleaseError(f"The quick start's hook has not run once:\n{printed}")
    (file,) = environment.work.rglob("bank.sqlite")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT id, balance FROM account ORDER BY id").fetchall()
    if rows != ROWS:
        raise ReleaseError(f"The quick start has left {rows}.")


def check_entry_points(environment: Environment) -> None:
    """Use what other programs find by the package's entry points, and its commands.

    :raises ReleaseError: if one of them is not there, or does not do its work.
    """
    (environment.work / "by_hand.py").write_text(COMMIT_BY_HAND, encoding="utf-8")
    (environment.work / "test_bank.py").write_text(ISOLATED, encoding="utf-8")
    stats = environment.run("-m", "flask", "--app", "bank", "db-session-stats", "--json")
    if "databases" not in json.loads(stats):
        raise ReleaseError(f"flask db-session-stats has printed {stats}")
    environment.run("-m", "flask", "--app", "bank", "db-session-stats")
    linted = {
        "flask db-session-lint": ("-m", "flask", "--app", "bank", "db-session-lint", "by_hand.py"),
        "flask_uow.lint": ("-m", "flask_uow.lint", "by_hand.py"),
        "flake8": ("-m", "flake8", "--select=UOW", "by_hand.py"),
    }
    for what, arguments in linted.items():
        printed = environment.run(*arguments, status=1)
        if not re.search(r"by_hand\.py:7:\d+: UOW101", printed):
            raise ReleaseError(f"{what} has not found the commit by hand, but printed:\n{printed}")
    # The second test finds the account that the first one has closed.
    passed = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bank.py")
    if "2 passed" not in passed:
        raise ReleaseError(f"pytest has printed:\n{passed}")


# ---- all of it


def check(dist: Path, tag: str | None) -> None:
    """Check what lies in a folder.

    :param tag: the tag under which it is to be released, if it is.
    :raises ReleaseError: if it is not to be released.
    """
    setup_cfg, changes = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.cfg", "CHANGES.rst"))
    version = released_version(setup_cfg, changes, tag)
    wheel, sdist = dist / f"{NAME}-{version}-py3-none-any.whl", dist / f"{NAME}-{version}.tar.gz"
    if found := {file.name for file in dist.iterdir()} ^ {wheel.name, sdist.name}:
        raise ReleaseError(f"dist has not these two files, {wheel.name} and {sdist.name}: {', '.join(sorted(found))}.")
    modules = files_of_the_package()
    check_wheel(wheel, version, modules)
    check_sdist(sdist, version, modules)
    with tempfile.TemporaryDirectory(prefix="release check ") as folder:
        for archive in (wheel, sdist):
            environment = Environment(Path(folder) / archive.suffix)
            environment.install(str(archive))
            check_installed(environment, version)
            check_quick_start(environment)
            print(f"{archive.name}: installed, and the quick start runs")  # noqa: T201
            if archive is wheel:
                environment.install("pytest", "flake8")
                check_entry_points(environment)
                print(f"{archive.name}: its commands and entry points work")  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.release_check", description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--tag", help="the tag under which it is to be released")
    typed = parser.parse_args(arguments)
    try:
        check(typed.dist.resolve(), typed.tag or None)
    except ReleaseError as error:
        print(f"Not to be released: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
