"""Run SQLAlchemy's suite for dialects plainly and riding, and compare test by test.

``python -m tests.ride.dialect_suite --driver psycopg2`` starts a server for each run, prints how many tests passed,
failed and were skipped, and ends with 1 if a test has another outcome on a riding engine than on a plain one. Tests
that fail on both need what the throwaway server has not.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import psycopg2
from sqlalchemy.engine import make_url

from tests.throwaway_server import throwaway_server

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SETUP = """
[sqla_testing]
requirement_cls = tests.ride.dialect_suite.requirements:Requirements
profile_file = profiles.txt

[tool:pytest]
"""
WAYS = {
    "plain": {},
    "riding": {"plugin": "ride"},
    "riding, read-only at start": {"plugin": "ride", "start": "read-only"},
}

Outcomes = dict[str, str]


def main() -> int:
    """Run the suite in every way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--driver", choices=("psycopg2", "psycopg"), default="psycopg2")
    parser.add_argument("--only", metavar="EXPRESSION", default="", help="pytest's -k")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        runs = {
            way: stack.enter_context(running_suite(arguments.driver, query, arguments.only))
            for way, query in WAYS.items()
        }
        found = {way: wait_for(run) for way, run in runs.items()}
    plain = found.pop("plain")
    sys.stdout.write(f"plain: {dict(Counter(plain.values()))}\n")
    for test in sorted(test for test, outcome in plain.items() if outcome in ("failure", "error")):
        sys.stdout.write(f"  fails: {test}\n")
    is_equal = bool(plain)
    for way, outcomes in found.items():
        sys.stdout.write(f"{way}: {dict(Counter(outcomes.values()))}\n")
        for test in sorted(plain.keys() | outcomes.keys()):
            before, after = plain.get(test, "missing"), outcomes.get(test, "missing")
            if before != after:
                is_equal = False
                sys.stdout.write(f"  {test}: {before} plain, {after} {way}\n")
    return 0 if is_equal else 1


class Run:
    """A run of the suite in a process of its own.

    :param process: it.
    :param report: where it writes what has become of each test.
    """

    def __init__(self, process: subprocess.Popen[str], report: Path) -> None:
        self.process = process
        self.report = report


@contextmanager
def running_suite(driver: str, query: dict[str, str], only: str) -> Iterator[Run]:
    """Run the suite against a server of its own."""
    with throwaway_server() as url, tempfile.TemporaryDirectory() as folder:
        prepare(url)
        address = make_url(url).set(drivername=f"postgresql+{driver}", query=query)
        report = Path(folder) / "report.xml"
        (Path(folder) / "setup.cfg").write_text(SETUP)
        command = [sys.executable, "-m", "pytest", str(HERE / "suite.py"), "--quiet", "--tb=short", "-p"]
        command += ["tests.ride.dialect_suite.plugin", "-p", "no:cacheprovider", "--noconftest", "-o", "addopts="]
        command += [
            f"--rootdir={folder}",
            "-c",
            "setup.cfg",
            f"--dburi={address.render_as_string(hide_password=False)}",
        ]
        command += [f"--junit-xml={report}", "-k", only]
        with subprocess.Popen(
            command,
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield Run(process, report)
            finally:
                process.kill()


def prepare(url: str) -> None:
    """Make what the suite expects to find."""
    with closing(psycopg2.connect(url)) as connection, closing(connection.cursor()) as cursor:
        connection.autocommit = True
        for name in ("test_schema", "test_schema_2"):
            cursor.execute(f"CREATE SCHEMA {name}")
        cursor.execute("SELECT name FROM pg_available_extensions WHERE name IN ('hstore', 'citext')")
        for (name,) in cursor.fetchall():
            cursor.execute(f"CREATE EXTENSION {name}")


def wait_for(run: Run) -> Outcomes:
    """Return what has become of each test."""
    output, _ = run.process.communicate()
    if not run.report.exists():
        sys.stdout.write(output)
        return {}
    tests = ElementTree.parse(run.report).iter("testcase")
    return {f"{test.get('classname')}.{test.get('name')}": outcome_of(test) for test in tests}


def outcome_of(test: ElementTree.Element) -> str:
    """Return what a test's element tells."""
    return next((child.tag for child in test if child.tag in ("failure", "error", "skipped")), "passed")


if __name__ == "__main__":
    sys.exit(main())
