"""Which files are looked at, and that no file stops the checker: it says so, and goes on to the next."""

import ast
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import flask_uow
from flask_uow.lint import Settings, check_paths
from flask_uow.lint._project import MAX_BYTES
from flask_uow.lint._run import Checker
from tests.lint.sources import HEAD, found, write
from tests.lint.test_sessions import SESSIONS
from tests.lint.test_units import GENERATORS, MERGES, ORDER, UNITS, VIEWS

COMMIT = "db.session.commit()\n"
DEPTH = 100_000

HOSTILE = {
    "a syntax error": (b"def f(:\n", "invalid syntax"),
    "tabs and spaces": (b"if 1:\n\tpass\n        pass\n", "inconsistent use of tabs"),
    "a null byte": (b"x = 1\0\n", "null byte"),
    "no UTF-8": (b"x = '\xff\xfe'\n", "utf-8"),
    "an unknown encoding": (b"# coding: klingon\n", "encoding"),
    "an encoding that lies": (b"# coding: ascii\nx = '\xc3\xa4'\n", "ascii"),
    "parentheses": (b"(" * DEPTH, "parenthes"),
    "a deep expression": (b"x = " + b"-" * DEPTH + b"1\n", "nested too deeply"),
    "a long chain": (b"x" + b".y" * DEPTH + b"\n", "nested too deeply"),
    "a long sum": (b"x = 1" + b" + 1" * DEPTH + b"\n", "nested too deeply"),
    "many calls": (b"x" + b"()" * DEPTH + b"\n", "nested too deeply"),
    "too much": (b"#" * (MAX_BYTES + 1), "more than 5,000,000 bytes"),
}


@pytest.mark.parametrize(("source", "why"), HOSTILE.values(), ids=HOSTILE)
def test_file_that_cannot_be_checked(tmp_path: Path, source: bytes, why: str) -> None:
    """It has a line of its own, and the next file is checked all the same."""
    (tmp_path / "a.py").write_bytes(source)
    (tmp_path / "b.py").write_text(COMMIT)

    report = check_paths([tmp_path], Settings(tmp_path))

    assert [each.code for each in report.findings] == ["UOW300", "UOW301"]
    assert why in report.findings[0].what
    assert "\n" not in report.findings[0].text


@pytest.mark.parametrize("piece", ["-", "not ", "f()."])
def test_each_depth_is_survived(piece: str) -> None:
    """Also those that are read, and are too deep for the walk alone."""
    results = {_survive(f"x = {piece * depth}y\n".encode()) for depth in range(20, 1000, 15)}

    assert results == {True, False}


@pytest.mark.parametrize(
    "source",
    [
        b"\xef\xbb\xbf" + COMMIT.encode(),
        b"# coding: latin-1\nx = '\xe4'; " + COMMIT.encode(),
        COMMIT.encode().replace(b"\n", b"\r\n"),
        COMMIT.encode().replace(b"\n", b"\r"),
        b"x = '\\d'; " + COMMIT.encode(),
        b"\x0c\n" + COMMIT.encode(),
    ],
    ids=["byte order mark", "Latin-1", "Windows", "old Mac", "odd escape", "form feed"],
)
def test_odd_file_is_checked(tmp_path: Path, source: bytes) -> None:
    """What Python reads is checked, without a warning."""
    (tmp_path / "a.py").write_bytes(source)

    (finding,) = check_paths([tmp_path], Settings(tmp_path)).findings

    assert finding.code == "UOW301"


def test_module_that_cannot_be_read_stops_nobody_who_imports_it(tmp_path: Path) -> None:
    """What it would have told is told by the name; and modules may import each other."""
    path = write(
        tmp_path, a="from b import db\nfrom c import session, missing\ndb.session.commit()\nsession.close()\n", b="("
    )
    write(tmp_path, c="from a import session\nfrom d import *\n", d="from c import *\n")

    assert found(check_paths([path], Settings(tmp_path))) == ["3: UOW301"]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would wait for ever, a link may lead nowhere or in a circle."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "missing.py")
    (tmp_path / "circle").symlink_to(tmp_path)

    report = check_paths([tmp_path], Settings(tmp_path))

    assert report.files == 2
    assert [each.what for each in report.findings] == ["The file cannot be checked: it is no regular file."] * 2


def test_folders_of_others_are_left_out(tmp_path: Path) -> None:
    """Hidden ones, environments, and what was built."""
    for folder in (".venv", "venv", "node_modules", "build", "__pycache__", "bank.egg-info"):
        write(tmp_path / folder, a=COMMIT)
    write(tmp_path, bank__a=COMMIT)
    (tmp_path / "notes.txt").write_text(COMMIT)

    assert [
        Path(each.path).name for each in check_paths([tmp_path, tmp_path / "bank"], Settings(tmp_path)).findings
    ] == ["a.py"]


def test_named_file_needs_no_suffix(tmp_path: Path) -> None:
    """Whoever names a script means it."""
    (tmp_path / "script").write_text(COMMIT)

    assert found(check_paths([tmp_path / "script"], Settings(tmp_path))) == ["1: UOW301"]


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    """A file that would leave a mark leaves none, and is no module of this process."""
    mark = tmp_path / "mark"
    path = write(tmp_path, marker=f"open({str(mark)!r}, 'w')\n", a="import marker\nmarker.session.commit()\n")

    check_paths([tmp_path, path], Settings(tmp_path))

    assert not mark.exists()
    assert "marker" not in sys.modules


# ---- any source at all


def _pieces() -> list[str]:
    tables = (SESSIONS, UNITS, VIEWS, ORDER, GENERATORS, MERGES)
    return [
        line.strip() for table in tables for source in table.values() for line in source.splitlines() if line.strip()
    ]


PIECES = _pieces()


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PIECES)), max_size=25))
@example([(0, "global s"), (0, "s = s"), (1, "class s(s): pass")])
def test_lines_in_any_order_are_survived(lines: list[tuple[int, str]]) -> None:
    """Whatever code is made of them."""
    _survive((HEAD + "".join(f"{'    ' * depth}{line}\n" for depth, line in lines)).encode())


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_bytes_are_survived(source: bytes) -> None:
    """Whatever they are."""
    _survive(source)


def test_shuffled_trees_are_survived() -> None:
    """Programs whose parts have been put into other places are still programs, and stranger than anybody writes."""
    chance = random.Random(7)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(_own_files())[:60:4]]
    expressions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr)]
    parsed = 0
    for tree in trees:
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            node.args = [chance.choice(expressions) for _ in node.args]
        try:
            source = ast.unparse(tree).encode()
        except (RecursionError, ValueError, TypeError):
            continue
        parsed += _survive(source[:200_000])
    assert parsed


def _survive(source: bytes) -> bool:
    """Check a text; the answer is whether it was Python."""
    findings, _ = Checker(Settings(Path.cwd())).check(Path("survivor.py"), source)
    for finding in findings:
        assert finding.line >= 1
        assert finding.column >= 1
        assert "\n" not in finding.text
    return all(finding.code != "UOW300" for finding in findings)


def _own_files() -> Iterator[Path]:
    return Path(flask_uow.__file__).parent.rglob("*.py")
