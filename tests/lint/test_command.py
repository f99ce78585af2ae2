"""``flask db-session-lint`` and ``python -m flask_uow.lint``: what they print, and how they end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask

from flask_uow import UnitOfWork
from tests.lint.sources import write

ROOT = Path(__file__).parents[2]
COMMIT = "db.session.commit()\n"
TIMEOUT_S = 60

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that types the command in an empty folder, in an app whose database cannot be reached."""
    app = Flask("bank")
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg2://teller@127.0.0.1:1/bank"
    UnitOfWork(app)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: app.test_cli_runner().invoke(args=["db-session-lint", *arguments])


def test_findings_exit_with_1(run: Run, tmp_path: Path) -> None:
    """Findings go to standard output, what is said of the run to standard error."""
    write(tmp_path, bank__views=COMMIT)

    result = run("bank")

    assert result.exit_code == 1
    assert result.stdout.startswith("bank/views.py:1:1: UOW301 db.session.commit() is called by hand")
    assert result.stdout.count("\n") == 1
    assert result.stderr == "1 finding in 1 file.\n"


def test_nothing_found_exits_with_0(run: Run, tmp_path: Path) -> None:
    """And prints nothing but the summary."""
    write(tmp_path, bank__views="x = 1\n")

    result = run("bank/views.py", "bank")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "0 findings in 1 file.\n")


def test_nothing_scanned_exits_with_1(run: Run, tmp_path: Path) -> None:
    """A wrong folder in a pipeline would pass for ever otherwise."""
    (tmp_path / "empty").mkdir()

    result = run("empty")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Nothing was checked: there is no Python file.\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing argument 'PATH...'"),
        (["missing.py"], "Path 'missing.py' does not exist."),
        ([".", "--format", "xml"], "'xml' is not one of 'text', 'json', 'sarif', 'github'."),
        ([".", "--config", "missing.toml"], "File 'missing.toml' does not exist."),
        ([".", "--unknown"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str], text: str) -> None:
    """And says what is wrong."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert text in result.stderr


def test_wrong_configuration_exits_with_2(run: Run, tmp_path: Path) -> None:
    """It is wrong usage, with the key and what to do."""
    (tmp_path / "pyproject.toml").write_text("[tool.flask_uow.lint]\nsession = []\n")

    result = run(".")

    assert result.exit_code == 2
    assert "session is no key of [tool.flask_uow.lint]." in result.stderr
    assert "Did you mean sessions?" in result.stderr


def test_configuration_that_is_named(run: Run, tmp_path: Path) -> None:
    """--config names another file."""
    write(tmp_path, bank__views=COMMIT)
    (tmp_path / "other.ini").write_text("[flask_uow.lint]\nignore = UOW301\n")

    assert run("bank").exit_code == 1
    assert run("bank", "--config", "other.ini").exit_code == 0


def test_unresolved_calls_are_counted_and_listed(run: Run, tmp_path: Path) -> None:
    """They are no findings, and do not fail the run."""
    write(tmp_path, bank__views="def deposit(store):\n    store.commit()\n")

    assert run("bank").stderr == "0 findings in 1 file; 1 call not resolved.\n"
    result = run("bank", "--show-unresolved")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == "bank/views.py:2:5: not resolved: store.commit()"


@pytest.mark.parametrize("name", ["json", "sarif", "github"])
def test_formats(run: Run, tmp_path: Path, name: str) -> None:
    """Standard output is the document, and nothing else."""
    write(tmp_path, bank__views=COMMIT)

    result = run("bank", "--format", name)

    assert result.exit_code == 1
    if name == "github":
        assert result.stdout.startswith("::error file=bank/views.py,line=1,col=1,title=UOW301::")
    else:
        assert json.loads(result.stdout)["version"]


def test_module_needs_no_app(tmp_path: Path) -> None:
    """The same command without Flask's, in a process of its own."""
    write(tmp_path, bank__views=COMMIT)

    done = _python(tmp_path, "-m", "flask_uow.lint", "bank")
    wrong = _python(tmp_path, "-m", "flask_uow.lint")

    assert (done.returncode, done.stderr) == (1, "1 finding in 1 file.\n")
    assert done.stdout.startswith("bank/views.py:1:1: UOW301 ")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Usage: python -m flask_uow.lint [OPTIONS] PATH...")


def test_app_loads_the_command_alone(tmp_path: Path) -> None:
    """The checker itself is loaded when the command is typed."""
    program = (
        "import sys, flask, flask_uow\n"
        "app = flask.Flask('bank')\n"
        "app.config['SQLALCHEMY_DATABASE_URI'] = 'sqlite://'\n"
        "flask_uow.UnitOfWork(app)\n"
        "print(sorted(name for name in sys.modules if name.startswith('flask_uow.lint')))\n"
    )

    done = _python(tmp_path, "-c", program)

    assert done.stdout == "['flask_uow.lint', 'flask_uow.lint._command']\n"


def test_hook_of_pre_commit(tmp_path: Path) -> None:
    """The hook's entry, given files as pre-commit gives them, checks those."""
    text = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    hook = dict(line.strip(" -").split(": ", 1) for line in text.splitlines() if ": " in line)
    write(tmp_path, bank__views=COMMIT, bank__models="x = 1\n")

    program, *arguments = hook["entry"].split()
    done = _python(tmp_path, *arguments, "bank/models.py", "bank/views.py")

    assert program == "python"
    assert {"id", "name", "language", "types"} <= hook.keys()
    assert done.stdout.startswith("bank/views.py:1:1: UOW301 ")
    assert done.stderr == "1 finding in 2 files.\n"


def _python(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
