"""What is shipped, and what importing it brings along."""

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOT_COPIED = (".git", ".venv", ".venv-*", "instance", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis")
EXTRAS = ["postgres", "psycopg", "prometheus", "opentelemetry", "codemod", "test", "browser", "bench", "dev"]
TIMEOUT_S = 100

# The frameworks are there already: what is measured is what this package adds to them.
IMPORTED = """
import sys
import flask, sqlalchemy, sqlalchemy.orm
before = set(sys.modules)
import flask_uow
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


@dataclass(frozen=True)
class Built:
    """What a release consists of."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> set[str]:
        """Return the files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def sdist_names(self) -> set[str]:
        """Return the files in the source archive, without the folder that they all lie in."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}

    def metadata(self) -> Message:
        """Return what the wheel says of itself."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the source archive, the wheel built from the archive and nothing fetched for it."""
    # In a copy: building writes into the folder.
    folder = tmp_path_factory.mktemp("build with a space")
    _copy_sources(folder / "source")
    _run("-m", "build", "--no-isolation", f"--outdir={folder / 'dist'}", str(folder / "source"))
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


def test_wheel_holds_every_file_of_the_package(built: Built) -> None:
    """Modules, the marker for type checkers, and the queries: none is forgotten."""
    names = built.wheel_names()

    assert _files_under("flask_uow") <= names
    assert "flask_uow/py.typed" in names


def test_wheel_holds_nothing_else(built: Built) -> None:
    """Tests and sample stay out of other people's environments."""
    tops = {name.partition("/")[0] for name in built.wheel_names()}

    assert tops == {"flask_uow", f"flask_uow-{_version()}.dist-info"}


def test_source_archive_holds_what_proves_and_shows_the_package(built: Built) -> None:
    """Whoever packages it further can run its tests and its sample."""
    top_level = {"setup.cfg", "pyproject.toml", "Makefile", "README.rst", "CHANGES.rst", "LICENSE.txt", ".ci/run"}
    top_level |= {".pre-commit-hooks.yaml", ".github/workflows/tests.yml", ".github/workflows/release.yml"}

    assert top_level | _files_under("flask_uow") | _files_under("tests") | _files_under("sample") <= built.sdist_names()


def test_metadata_comes_from_setup_cfg(built: Built) -> None:
    """One file says what the package is called and what it needs."""
    metadata = built.metadata()

    assert metadata["Version"] == _version()
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata.get_all("Provides-Extra") == EXTRAS
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line.replace(" ", "") for line in needed] == ["Flask>=3.0", "SQLAlchemy<2.2,>=2.0", "rich>=13"]


def test_release_passes_the_check_of_the_upload_tool(built: Built) -> None:
    """The front page renders where it will be shown."""
    checked = _run("-m", "twine", "--no-color", "check", "--strict", str(built.wheel), str(built.sdist))

    assert checked.count("PASSED") == 2


def test_import_brings_no_driver_and_nothing_that_is_optional() -> None:
    """An app that never types the command never pays for it, and what ``contrib`` is for may be missing."""
    added = set(_run("-c", IMPORTED).split())

    assert "flask_uow" in added
    assert not added & {"rich", "psycopg", "psycopg2", "prometheus_client", "opentelemetry"}


def test_make_alone_prints_the_targets() -> None:
    """A newcomer who types ``make`` sees what there is, and nothing happens."""
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    tests = ("test", "test-plain", "test-threads", "test-browser", "test-isolated", "test-pythons", "soak")
    for target in ("sample", "sample-postgres", *tests, "bench", "build", "release-check", "clean"):
        assert f"  make {target} " in printed


def _copy_sources(target: Path) -> None:
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_COPIED, "__pycache__"))


def _files_under(folder: str) -> set[str]:
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {file.as_posix() for file in files if not any("cache" in part for part in file.parts)}


def _version() -> str:
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser["metadata"]["version"]


def _run(*arguments: str) -> str:
    how: dict[str, Any] = {"cwd": ROOT, "timeout": TIMEOUT_S}
    done = subprocess.run([sys.executable, *arguments], **how, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    printed: str = done.stdout
    return printed
