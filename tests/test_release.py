"""What is released, and who checks it: one version, the look into the archives, the workflows on GitHub."""

import configparser
import io
import re
import runpy
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.release_check import ReleaseError, check, check_sdist, check_wheel, files_of_the_package, released_version

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MODULES = {"flask_uow/__init__.py", "flask_uow/py.typed"}
ABOUT = "flask_uow-1.0.dist-info/METADATA"
SETUP_CFG = "[metadata]\nversion = 1.0\n"
UNRELEASED = "Version 1.0, unreleased\n---\n\nVersion 0.9, 2026-01-01\n---\n"
DATED = UNRELEASED.replace("unreleased", "2026-02-01")


# ---- the version


def test_every_place_has_the_version_of_setup_cfg(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed package, the pages and the list of changes say the same, and no other file says any."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    setup_cfg, changes = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.cfg", "CHANGES.rst"))
    version = released_version(setup_cfg, changes, None)
    pages = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    files = [*(ROOT / "flask_uow").rglob("*.py"), *(ROOT / "docs").glob("*.*"), *(ROOT / "sample").rglob("*.py")]

    said = [file.name for file in files if re.search(rf"\b{re.escape(version)}\b", file.read_text(encoding="utf-8"))]

    assert (metadata.version("flask_uow"), pages["version"], pages["release"]) == (version,) * 3
    assert said == []


@pytest.mark.parametrize(("changes", "tag"), [(UNRELEASED, None), (DATED, None), (DATED, "v1.0")])
def test_a_version_that_all_agree_on(changes: str, tag: str | None) -> None:
    """A date is needed for a tag only."""
    assert released_version(SETUP_CFG, changes, tag) == "1.0"


@pytest.mark.parametrize(
    ("changes", "tag", "why"),
    [
        (UNRELEASED.replace("1.0", "1.1"), None, "is 'Version 1.1, unreleased', and setup.cfg says 1.0"),
        ("Changes\n", None, "is None, and setup"),
        (DATED, "v1.1", "The tag is 'v1.1', and setup.cfg says 1.0"),
        (DATED, "1.0", "The tag is '1.0'"),
        (UNRELEASED, "v1.0", "has no date"),
    ],
)
def test_a_version_that_somebody_contradicts(changes: str, tag: str | None, why: str) -> None:
    with pytest.raises(ReleaseError, match=why):
        released_version(SETUP_CFG, changes, tag)


# ---- the archives


def make_wheel(folder: Path, names: set[str], version: str = "1.0") -> Path:
    wheel = folder / "flask_uow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, f"Name: flask_uow\nVersion: {version}\n" if name == ABOUT else "")
    return wheel


def make_sdist(folder: Path, names: set[str]) -> Path:
    sdist = folder / "flask_uow-1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"flask_uow-1.0/{name}"), io.BytesIO())
    return sdist


def test_a_wheel_of_the_package_and_nothing_else(tmp_path: Path) -> None:
    check_wheel(make_wheel(tmp_path, {*MODULES, ABOUT}), "1.0", MODULES)


@pytest.mark.parametrize(
    ("names", "version", "why"),
    [
        ({"flask_uow/__init__.py", ABOUT}, "1.0", r"lacks flask_uow/py\.typed"),
        ({*MODULES, ABOUT, "tests/conftest.py"}, "1.0", r"has what is none of it: tests/conftest\.py"),
        ({*MODULES, ABOUT, "flask_uow/old.py"}, "1.0", r"none of it: flask_uow/old\.py"),
        ({*MODULES, ABOUT}, "0.9", r"says that it is version 0\.9"),
    ],
)
def test_a_wheel_that_is_not_to_be_released(tmp_path: Path, names: set[str], version: str, why: str) -> None:
    with pytest.raises(ReleaseError, match=why):
        check_wheel(make_wheel(tmp_path, names, version), "1.0", MODULES)


@pytest.mark.parametrize("lacking", ["flask_uow/py.typed", "tests/release_check.py", "sample/bank/__init__.py"])
def test_a_source_archive_has_package_tests_and_sample(tmp_path: Path, lacking: str) -> None:
    names = {*MODULES, "setup.cfg", "tests/release_check.py", "sample/bank/__init__.py"}
    check_sdist(make_sdist(tmp_path, names), "1.0", MODULES)

    with pytest.raises(ReleaseError, match=f"lacks {re.escape(lacking)}"):
        check_sdist(make_sdist(tmp_path, names - {lacking}), "1.0", MODULES)


def test_a_folder_with_something_older_in_it(tmp_path: Path) -> None:
    """What is uploaded is all that lies there."""
    make_wheel(tmp_path, MODULES)

    with pytest.raises(ReleaseError, match=r"dist has not these two files.*flask_uow-1\.0-py3-none-any\.whl"):
        check(tmp_path, None)


def test_the_files_of_the_package_are_all_its_files() -> None:
    assert {"flask_uow/__init__.py", "flask_uow/py.typed", "flask_uow/lint/__main__.py"} <= files_of_the_package()


# ---- the workflows


def jobs() -> dict[str, dict[str, Any]]:
    """The jobs of all workflows."""
    return {name: job for file in WORKFLOWS for name, job in load(file)["jobs"].items()}


def load(file: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def rows(job: dict[str, Any]) -> list[dict[str, str]]:
    """What a job's matrix makes of it."""
    matrix = job.get("strategy", {}).get("matrix", {})
    pythons = matrix.get("python", [""])
    made = [{"python": python, "target": target} for python in pythons for target in matrix.get("target", [""])]
    return [*made, *matrix.get("include", [])]


def made(job: dict[str, Any]) -> set[str]:
    """The targets that a job makes."""
    lines = [step["run"] for step in job["steps"] if "run" in step]
    named = {target for line in lines for target in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    return named | ({row["target"] for row in rows(job)} if 'make "$TARGET"' in lines else set())


def test_the_workflows_make_what_the_makefile_has() -> None:
    """All that a change has to pass is among it."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    all_made = set().union(*map(made, jobs().values()))

    wanted = {
        "test",
        "test-plain",
        "test-threads",
        "test-oldest",
        "test-isolated",
        "test-browser",
        "docs",
        "release-check",
    }
    assert wanted <= all_made <= targets


def test_the_workflows_run_the_pythons_of_the_classifiers() -> None:
    """All tests and the release on each, the oldest libraries on the oldest."""
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    classified = re.findall(
        r"^Programming Language :: Python :: (3\.\d+)$", parser["metadata"]["classifiers"], re.MULTILINE
    )
    every = jobs()

    assert [row["python"] for row in rows(every["newest"])] == classified
    assert [row["python"] for row in rows(every["others"]) if row["target"] == "release-check"] == classified
    oldest = [
        step["with"]["python-version"] for step in every["oldest"]["steps"] if "python-version" in step.get("with", {})
    ]
    assert oldest == classified[:1]
    assert parser["options"]["python_requires"] == f">={classified[0]}"


def test_the_workflows_may_do_little() -> None:
    """Each job ends in time and reads only; the one that publishes has nothing but its identity, after the check."""
    every = jobs()

    assert [load(file)["permissions"] for file in WORKFLOWS] == [{}, {}]
    assert all(0 < job["timeout-minutes"] <= 45 for job in every.values())
    publishing = every.pop("publish")
    assert publishing["permissions"] == {"id-token": "write"}
    assert made(every[publishing["needs"]]) == {"release-check"}
    assert all(job["permissions"] == {"contents": "read"} for job in every.values())


def test_the_workflows_use_actions_that_nobody_can_change() -> None:
    """By the hash of a commit, and not by a tag."""
    used = [step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step]

    assert used
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each)] == []
