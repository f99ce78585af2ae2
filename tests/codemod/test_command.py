"""``python -m flask_uow.codemod``: what it prints, what it writes, and how it ends."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flask_uow.codemod import _command

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
APP = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

app = Flask(__name__)
db = SQLAlchemy(app)


@app.post("/")
def count():
    db.session.add(object())
    db.session.commit()
    return ""
"""
LONG = APP + "\n" * 20 + APP.partition("SQLAlchemy(app)")[2].replace("count", "again") + "# the end\n" * 10
HELPER = """
from bank import db


def save(account):
    db.session.add(account)
    db.session.commit()
"""
DIFF = """\
--- a/bank.py
+++ b/bank.py
@@ -1,13 +1,15 @@
.
 from flask import Flask
 from flask_sqlalchemy import SQLAlchemy
+from flask_uow import UnitOfWork, transactional
.
 app = Flask(__name__)
 db = SQLAlchemy(app)
+uow = UnitOfWork(app, session=db.session)
.
.
 @app.post("/")
+@transactional
 def count():
     db.session.add(object())
-    db.session.commit()
     return ""
""".replace("\n.", "\n ")

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that types the command in a folder with an app."""
    (tmp_path / "bank.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(_command.codemod, arguments)


def test_prints_the_diff_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    """As ``patch`` reads it; what is said of the run goes to standard error."""
    result = run("bank.py")

    assert (result.exit_code, result.stdout) == (0, DIFF)
    assert result.stderr == "1 file to change of 1, 1 new unit, 0 places left to you.\n"
    assert (tmp_path / "bank.py").read_text() == APP


def _patched(source: str, diff: str) -> str:
    """A source with a unified diff in it, read as ``patch`` reads it: nothing is taken from anywhere else."""
    lines = iter(source.splitlines(keepends=True))
    patched = []
    at = 1
    for line in diff.splitlines(keepends=True)[2:]:
        if line.startswith("@@"):
            start = int(line.split()[1].partition(",")[0].lstrip("-"))
            patched += [next(lines) for _ in range(start - at)]
            at = start
        elif line.startswith("+"):
            patched.append(line[1:])
        else:
            old = next(lines)
            at += 1
            assert line[1:] == old
            patched += [] if line.startswith("-") else [old]
    return "".join([*patched, *lines])


def test_diff_is_the_change(run: Run, tmp_path: Path) -> None:
    """Patched with it, a file is what ``--write`` makes of it, in all of its places."""
    (tmp_path / "bank.py").write_text(LONG)
    diff = run("bank.py").stdout

    result = run("--write", "bank.py")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "1 file changed of 1, 2 new units, 0 places left to you.\n"
    assert diff.count("\n@@ ") == 2
    assert (tmp_path / "bank.py").read_text() == _patched(LONG, diff)


def test_what_is_left_exits_with_1(run: Run, tmp_path: Path) -> None:
    """One line for each place."""
    (tmp_path / "helpers.py").write_text(HELPER)

    result = run("--write", ".")

    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    assert first.startswith("helpers.py:7:5: save() is left as it is: it is no view, command or task.")
    assert last == "1 file changed of 2, 1 new unit, 1 place left to you."
    assert (tmp_path / "helpers.py").read_text() == HELPER


def test_named_functions_move(run: Run, tmp_path: Path) -> None:
    """Each that has the name."""
    (tmp_path / "helpers.py").write_text(HELPER)

    result = run("--write", "--function", "helpers.save", ".")

    assert result.exit_code == 0
    assert "@transactional\ndef save" in (tmp_path / "helpers.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'PATH...'"),
        (("nowhere",), "Path 'nowhere' does not exist"),
        (("--function", "svae", "bank.py"), "--function svae: no such function."),
        (("--config", "bank.py", "bank.py"), "bank.py"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    """And changes nothing."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_no_file_exits_with_1(run: Run, tmp_path: Path) -> None:
    """A wrong folder would pass for a clean one otherwise."""
    (tmp_path / "empty").mkdir()

    assert run("empty").exit_code == 1


def test_configuration_of_the_checker_holds(run: Run, tmp_path: Path) -> None:
    """What it leaves out stays out, and what it calls a session is one."""
    (tmp_path / "pyproject.toml").write_text('[tool.flask_uow.lint]\nexclude = ["bank.py"]\n')

    assert run(".").stderr == "0 files to change of 0, 0 new units, 0 places left to you.\n"


@pytest.mark.parametrize(
    ("source", "why"),
    [(b"def (:\n", "invalid syntax"), (b"x = '\xff'\n", "utf-8"), (b"x = 1\0\n", "null bytes"), (b"return 1\n", "")],
)
def test_what_is_no_python_is_told_and_left(run: Run, tmp_path: Path, source: bytes, why: str) -> None:
    """The others are changed all the same."""
    (tmp_path / "broken.py").write_bytes(source)

    result = run("--write", ".")

    assert "1 file changed of 2" in result.stderr
    if why:
        assert result.exit_code == 1
        assert "broken.py:1:1: the file cannot be read: " in result.stderr
        assert why in result.stderr
    assert (tmp_path / "broken.py").read_bytes() == source


@pytest.mark.parametrize(
    "source",
    [
        APP.replace("\n", "\r\n").encode(),
        APP.replace("    ", "\t").encode(),
        APP.replace('""', '"\u00e4\u00f6"').encode() + b"# the end, without an end",
        b"\xef\xbb\xbf" + APP.encode(),
        b"# -*- coding: latin-1 -*-" + APP.replace('""', '"\u00e4\u00f6"').encode("latin-1"),
        (APP + "\f\nx = 1  ;  y = 2\n# \u2603 \\\nz = (  1,\n  2 )\n").encode(),
    ],
    ids=["CRLF", "tabs", "no last line end", "byte order mark", "latin-1", "odd forms"],
)
def test_bytes_beside_the_change_are_kept(run: Run, tmp_path: Path, source: bytes) -> None:
    """Only whole lines have come and gone, with the file's own line ends."""
    (tmp_path / "bank.py").write_bytes(source)

    assert run("--write", "bank.py").exit_code == 0

    before = source.splitlines(keepends=True)
    after = (tmp_path / "bank.py").read_bytes().splitlines(keepends=True)
    end = b"\r\n" if b"\r\n" in source else b"\n"
    added = [line for line in after if line not in before]
    assert added == [
        b"from flask_uow import UnitOfWork, transactional" + end,
        b"uow = UnitOfWork(app, session=db.session)" + end,
        b"@transactional" + end,
    ]
    gone = [line for line in before if line not in after]
    assert [line.strip() for line in gone] == [b"db.session.commit()"]
    assert [line for line in after if line not in added] == [line for line in before if line not in gone]
    assert run("bank.py").stdout == ""


def test_file_without_need_is_not_touched(run: Run, tmp_path: Path) -> None:
    """Not even its time."""
    path = tmp_path / "other.py"
    path.write_text("import os\n\n\ndef home( ):\n    return os . sep\n")
    before = path.stat().st_mtime_ns

    assert run("--write", ".").exit_code == 0

    assert path.stat().st_mtime_ns == before


def test_without_libcst_it_says_how_to_install_it(tmp_path: Path) -> None:
    """In one line, and nothing of it is loaded before."""
    (tmp_path / "bank.py").write_text(APP)
    code = """
    import sys
    sys.modules["libcst"] = None
    from flask_uow.codemod._command import codemod
    codemod(["bank.py"])
    """
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(code)],
        cwd=tmp_path,
        text=True,
        timeout=TIMEOUT_S,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.endswith(f"Error: {_command.MISSING}\n")


def test_module_runs_by_itself(run: Run, tmp_path: Path) -> None:
    """Without an app, and without Flask being imported by it."""
    done = subprocess.run(
        [sys.executable, "-m", "flask_uow.codemod", str(tmp_path / "bank.py")],
        cwd=ROOT,
        text=True,
        timeout=TIMEOUT_S,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0
    assert "+@transactional\n" in done.stdout
