"""The command: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo
from sqlalchemy import orm

from flask_uow import UnitOfWork, stats, transactional
from flask_uow._application_name import application_name
from flask_uow._cli import db_session_stats
from flask_uow._watch import watched_screen
from flask_uow.exceptions import ConfigurationError
from tests import snapshots
from tests.databases import Database

COMMAND = "db-session-stats"
DEADLINE_S = 15.0
DOWN = "postgresql+psycopg2://teller:s3cret@127.0.0.1:1/bank"

on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


def make_app(url: str, **config: Any) -> Flask:
    """Make an app on a database."""
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, **config)
    UnitOfWork(app)
    return app


def run(app: Flask, *arguments: str, **env: str | None) -> Result:
    """Type the command."""
    return app.test_cli_runner(env=env).invoke(args=[COMMAND, *arguments])


@pytest.fixture
def idler(database: Database) -> Iterator[tuple[Flask, int]]:
    """An app with one session that has been idle in a transaction for a fifth of a second, and the session's pid."""
    app = make_app(database.url)
    with app.app_context():
        engine = app.extensions["uow"].engine
    with engine.connect() as connection:
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        end = time.monotonic() + DEADLINE_S
        while not is_old_enough(app):
            assert time.monotonic() < end
            time.sleep(0.01)
        yield app, pid
    engine.dispose()


def is_old_enough(app: Flask) -> bool:
    """Whether the one session idles for long enough."""
    sessions = stats.snapshot(app).databases[0].sessions
    return any(session.is_idle_in_transaction and (session.state_age_seconds or 0) > 0.2 for session in sessions)


# ---- a real server


@on_postgresql
def test_tables(idler: tuple[Flask, int]) -> None:
    """The command prints sessions by state with a summary, and pools; in plain text when it is not for a terminal."""
    app, pid = idler

    result = run(app)

    assert result.exit_code == 0
    assert result.stderr == ""
    assert "1 session: 1 idle in transaction for 0." in result.output
    assert "\nidle in transaction (1)\n" in result.output
    assert f"{pid}" in result.output
    assert "SELECT pg_backend_pid()" in result.output
    assert re.search(rf"\npools .*\nworker +size .*\n +{os.getpid()} ", result.output)
    assert "\x1b" not in result.output
    assert max(map(len, result.output.splitlines())) <= 80


@on_postgresql
def test_json(idler: tuple[Flask, int]) -> None:
    """With --json the output is one document with a version, and nothing else."""
    app, pid = idler

    result = run(app, "--json", FORCE_COLOR="1")

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["version"] == 1
    assert document["app"] == "bank"
    assert document["databases"][0]["sessions"][0]["pid"] == pid
    assert "\x1b" not in result.stdout


@on_postgresql
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--state", "idle in transaction"], 1),
        (["--state", "Idle-In-Transaction"], 1),
        (["--state", "active", "--state", "idle in transaction"], 1),
        (["--state", "hidden"], 0),
        (["--min-age", "0.1"], 1),
        (["--min-age", "3600"], 0),
    ],
)
def test_filters(idler: tuple[Flask, int], arguments: list[str], count: int) -> None:
    """--state and --min-age choose what is listed; the summary counts all the same."""
    app, pid = idler

    listed = json.loads(run(app, "--json", *arguments).stdout)["databases"][0]
    printed = run(app, *arguments).stdout

    assert [session["pid"] for session in listed["sessions"]] == [pid] * count
    assert listed["summary"]["total"] == 1
    assert ("(0 listed)" in printed) == (count == 0)
    assert ("idle in transaction (1)" in printed) == (count == 1)


@on_postgresql
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--fail-on", "idle-in-transaction=0.1"], 1),
        (["--fail-on", "idle-in-transaction=3600"], 0),
        (["--fail-on", "idle-in-transaction=3600", "--fail-on", "idle-in-transaction=0.1"], 1),
        (["--fail-on", "idle-in-transaction=0.1", "--state", "active"], 1),
        (["--fail-on", "idle-in-transaction=0.1", "--min-age", "3600", "--json"], 1),
    ],
)
def test_fail_on(idler: tuple[Flask, int], arguments: list[str], status: int) -> None:
    """A condition that holds ends the command with 1 and says why, whatever is listed."""
    app, pid = idler

    result = run(app, *arguments)

    assert result.exit_code == status
    reason = (
        f"idle-in-transaction=0.1: session {pid} ({application_name('bank', os.getpid())}) is idle in transaction for "
    )
    assert (reason in result.stderr) == (status == 1)
    assert result.stdout


@on_postgresql
def test_fail_on_an_aborted_transaction(database: Database) -> None:
    """A transaction that failed and was never ended is one that idles too."""
    app = make_app(database.url)
    with app.app_context():
        engine = app.extensions["uow"].engine
    with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError, match="division by zero"):
            connection.execute(sa.text("SELECT 1 / 0"))
        end = time.monotonic() + DEADLINE_S
        while not is_old_enough(app):
            assert time.monotonic() < end
            time.sleep(0.01)
        result = run(app, "--fail-on", "idle-in-transaction=0.1")
    engine.dispose()

    assert result.exit_code == 1
    assert "is idle in transaction (aborted) for" in result.stderr


@on_postgresql
def test_command_line(idler: tuple[Flask, int], database: Database, tmp_path: Path) -> None:
    """Typed as ``flask db-session-stats`` in another process, it sees this process's session."""
    _, pid = idler
    (tmp_path / "bank.py").write_text(
        "from flask import Flask\nfrom flask_uow import UnitOfWork\n"
        f"app = Flask('bank')\napp.config['SQLALCHEMY_DATABASE_URI'] = {database.url!r}\nUnitOfWork(app)\n",
        encoding="utf-8",
    )
    package = Path(str(stats.__file__)).parents[2]
    env = {**os.environ, "PYTHONPATH": str(package), "COLUMNS": "80"}
    command = [sys.executable, "-m", "flask", "--app", "bank", COMMAND, "--fail-on", "idle-in-transaction=0.1"]

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1, done.stderr
    assert f"{pid}" in done.stdout
    assert "\x1b" not in done.stdout
    assert "1 session: 1 idle in transaction" in done.stdout


# ---- databases that cannot be read


@pytest.mark.parametrize("arguments", [[], ["--fail-on", "idle-in-transaction=1"], ["--state", "idle"]])
def test_database_that_is_down(arguments: list[str]) -> None:
    """A database that is down is one line on standard error and status 2, with no password."""
    result = run(make_app(DOWN), *arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "refused" in result.stderr
    assert "Traceback" not in result.output
    assert "s3cret" not in result.output


def test_database_that_is_down_as_json() -> None:
    """A program gets its document all the same."""
    result = run(make_app(DOWN), "--json")

    assert result.exit_code == 2
    assert "refused" in json.loads(result.stdout)["databases"][0]["error"]
    assert "s3cret" not in result.output


def test_one_of_two_databases_is_down(tmp_path: Path) -> None:
    """What can be read is printed, beside the line about what cannot."""
    result = run(make_app(f"sqlite:///{tmp_path}/bank.db", SQLALCHEMY_BINDS={"archive": DOWN}), "--json")
    assert result.exit_code == 2

    (tmp_path / "bank.db").touch()
    result = run(make_app(f"sqlite:///{tmp_path}/bank.db", SQLALCHEMY_BINDS={"archive": DOWN}))

    assert result.exit_code == 2
    assert "SQLite file of 0 bytes" in result.stdout
    assert "cannot be read: " in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert "Database archive (postgresql+psycopg2://teller:***@127.0.0.1:1/bank)" in result.stderr


@on_postgresql
def test_no_value_is_shown(database: Database) -> None:
    """The server's text of a statement, into which psycopg2 writes them, is shown without its literals."""
    value = "a-value-of-somebody"
    app = make_app(database.url)
    with app.app_context(), transactional(label="asks"):
        app.extensions["uow"].session.scalar(sa.text("SELECT CAST(:value AS text)"), {"value": value})
        (session,) = database.sessions()
        as_json, tables = run(app, "--json"), run(app, "--explain", "--fail-on", "unit=0")
    (shown,) = [each for database in json.loads(as_json.stdout)["databases"] for each in database["sessions"]]

    assert (value in session.query) == (database.backend == "psycopg2")
    assert re.fullmatch(r"SELECT CAST\((?:'\?'|\$1) AS text\)", shown["query"])
    assert value not in as_json.output + tables.output


def test_an_error_of_ours_commands_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in it; its lines stay lines."""

    def fail() -> stats.Snapshot:
        raise ConfigurationError("what\x1b[2J", fix="this\r")

    monkeypatch.setattr(stats, "snapshot", fail)

    result = run(make_app("sqlite://"))

    assert result.exit_code == 2
    assert result.stderr == "what?[2J\n  fix:   this?\n"


def test_session_without_a_database() -> None:
    """An app whose session is bound to nothing is told so."""
    app = Flask("unbound")
    UnitOfWork(app, session=orm.scoped_session(orm.sessionmaker()))

    result = run(app)

    assert result.exit_code == 0
    assert "No database of app 'unbound' is known" in result.stdout


def test_extension_that_went_missing() -> None:
    """An error of our own is told without a traceback."""
    app = make_app("sqlite://")
    del app.extensions["uow"]

    result = run(app)

    assert result.exit_code == 2
    assert "App 'bank' has no UnitOfWork." in result.stderr
    assert "Traceback" not in result.output


# ---- SQLite


def test_sqlite_in_memory() -> None:
    """A database in memory is called so."""
    result = run(make_app("sqlite://"), "--fail-on", "idle-in-transaction=0")

    assert result.exit_code == 0
    assert "SQLite in memory" in result.stdout
    assert "0 sessions" not in result.stdout


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_file(database: Database) -> None:
    """Of a file, size, journal and writer are printed."""
    database.execute("CREATE TABLE account (id INTEGER)")

    result = run(make_app(database.url))

    assert result.exit_code == 0
    assert "bytes, journal mode " in result.stdout
    assert "no writer seen" in result.stdout


# ---- a night made by hand


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An app that has a bad night."""
    monkeypatch.setattr(stats, "snapshot", snapshots.bad_night)
    return make_app("sqlite://")


def kept(app: Flask, *arguments: str) -> dict[str, Any]:
    """What is left of workers, live units, sessions and troubles."""
    document = json.loads(run(app, "--json", *arguments).stdout)
    live = [unit["label"] for worker in document["workers"] for unit in worker["live"]]
    return {
        "workers": [worker["pid"] for worker in document["workers"]],
        "live": live,
        "sessions": [session["pid"] for session in document["databases"][0]["sessions"]],
        "troubles": [trouble["kind"] for trouble in document["troubles"]],
        "labels": [each["label"] for each in document["totals"]["labels"]],
        "begun": document["totals"]["units"]["begun"],
    }


def test_label_chooses(night: Flask) -> None:
    """A part of a label in any case, an inner unit's too; what is inside of the outer one stays with it."""
    found = kept(night, "--label", "TRANSFER")

    assert found["live"] == ["POST /transfers", "transfer"]
    assert found["sessions"] == [5102]
    assert found["troubles"] == ["blocked"]
    assert found["labels"] == ["POST /transfers", "transfer", snapshots.LONG]
    assert kept(night, "--label", "transfer")["live"] == found["live"]
    assert kept(night, "--label", "POST /*")["live"] == ["POST /withdrawals", "POST /transfers", "transfer"]
    assert kept(night, "--label", "nothing of this")["live"] == []
    assert "Listed: label 'TRANSFER'." in run(night, "--label", "TRANSFER").stdout


def test_worker_chooses(night: Flask) -> None:
    """Its units, sessions and pools are listed, and what it alone has counted."""
    found = kept(night, "--worker", "4712")

    assert found["workers"] == [4712]
    assert found["live"] == ["GET /accounts/<int:number>", "GET /statement"]
    assert found["sessions"] == [5201, *range(5110, 5118)]
    assert found["troubles"] == ["pool-exhausted", "waiting-for-connection", "pool-timeouts"]
    assert found["begun"] == 1320
    assert kept(night, "--worker", "4711", "--worker", "4712")["workers"] == [4711, 4712]
    assert "No worker 99 publishes here." in run(night, "--worker", "99").stdout


def test_age_and_state_choose_live_units_too(night: Flask) -> None:
    """A unit is as old as its outermost one, and in the state that its innermost one is in."""
    assert kept(night, "--min-age", "30")["live"] == ["POST /withdrawals", "engine.connect()"]
    assert kept(night, "--state", "waiting-for-a-connection")["live"] == ["GET /accounts/<int:number>"]
    assert kept(night, "--state", "idle in transaction")["live"] == ["POST /withdrawals"]
    assert kept(night, "--state", "Running-SQL")["live"] == ["POST /transfers", "transfer", "GET /statement"]
    assert kept(night, "--state", "leaked")["sessions"] == []


def test_conditions_judge_what_is_not_listed(night: Flask) -> None:
    """Whatever is chosen."""
    result = run(night, "--label", "nothing of this", "--fail-on", "leaked=1", "--fail-on", "pool-usage=90%")

    assert result.exit_code == 1
    who = "engine.connect() (bank/reports.py:12 in nightly, worker 4711, backend 5103)"
    assert result.stderr.splitlines() == [
        f"leaked=1: 1 session or connection has outlived its context: {who}",
        "pool-usage=90%: pool default of worker 4712 has 15 of 15 connections in use (100%)",
    ]


def test_explain_and_limit_and_sort(night: Flask) -> None:
    """They reach the tables."""
    assert "what it means, and what to do" in run(night, "--explain").stdout
    assert "... and 4 more" in run(night, "--limit", "1").stdout
    assert "by worst" in run(night, "--sort", "worst").stdout


def test_workers_are_shown_where_every_database_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers tell does not need a database."""
    down = snapshots.database(error="Connection refused", server_version=None)
    seen = snapshots.snapshot(snapshots.worker(4711, snapshots.unit()), databases=(down,))
    monkeypatch.setattr(stats, "snapshot", lambda: seen)

    result = run(make_app("sqlite://"), "--fail-on", "unit=0")

    assert result.exit_code == 2, "whatever else fails"
    assert "unit=0: POST /transfers has not ended" in result.stderr
    assert "live units (1)" in result.stdout


# ---- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-on", "idle=5"], "'idle=5' is no condition. Write idle-in-transaction=SECONDS, blocked=SECONDS,"),
        (["--fail-on", "idle-in-transaction=soon"], "'soon' is not a number of seconds."),
        (["--min-age", "nan"], "'nan' is not a number of seconds."),
        (["--min-age", "-1"], "'-1' is not a number of seconds."),
        (["--state", "asleep"], "'asleep' is no state. Choose from: idle in transaction (aborted), "),
        (["--fail-on", "pool-usage=0"], "'0' is not a percentage above 0 and up to 100. Write pool-usage=PERCENT."),
        (["--watch", "0"], "'0' is too often. Choose 0.1 seconds or more."),
        (["--watch", "1e10"], "'1e10' is too seldom. Choose 86400 seconds or less."),
        (["--fail-on", "waiting=" + "9" * 5000], "9' is not a whole number from 1 on. Write waiting=NUMBER."),
        (["--watch", "soon"], "'soon' is not a number of seconds."),
        (["--sort", "colour"], "'colour' is not one of"),
        (["--limit", "-1"], "-1 is not in the range"),
        (["--explain", "--json"], "--explain is for people, --json for programs: leave one of them away."),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    """What was typed wrongly is quoted."""
    result = run(make_app("sqlite://"), *arguments)

    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_rich_is_imported_by_the_command_only() -> None:
    """An app that does not run the command does not load rich, nor a driver."""
    code = (
        "import sys, flask_uow._cli; print([name for name in ('rich', 'psycopg', 'psycopg2') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


# ---- where it is printed


def show(monkeypatch: pytest.MonkeyPatch, *, charset: str = "utf-8", **env: str | None) -> bytes:
    """What the command writes for a snapshot with a long statement."""
    session = snapshots.session(query="SELECT 'ü' " + "x" * 100)
    seen = snapshots.snapshot(databases=(snapshots.database(session),))
    monkeypatch.setattr(stats, "snapshot", lambda: seen)
    runner = make_app("sqlite://").test_cli_runner(charset=charset, env=env)
    result = runner.invoke(args=[COMMAND])
    assert result.exit_code == 0
    return result.stdout_bytes


def test_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rich takes the output for a terminal, it is coloured."""
    assert b"\x1b[" in show(monkeypatch, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR=None)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR wins over everything."""
    assert b"\x1b" not in show(monkeypatch, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")


def test_a_terminal_of_no_width_has_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is how a program says that it does not know; nothing would be shown there."""
    usual = show(monkeypatch, COLUMNS="80")

    assert show(monkeypatch, COLUMNS="0") == usual
    assert b"SELECT" in usual


def test_output_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that knows only ASCII gets question marks, not a traceback."""
    text = show(monkeypatch, charset="ascii")

    assert b"SELECT '?' xxx" in text


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_output_that_is_closed(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Whoever wants the status alone gets it."""
    script = ScriptInfo(create_app=lambda: make_app("sqlite://"))
    monkeypatch.setattr(sys, "stdout", None)

    status = db_session_stats.main(arguments, obj=script, standalone_mode=False)

    assert status == 0
    assert watched_screen() is None


def test_threads_of_the_reader_end() -> None:
    """The thread that asks the server is gone when the command is."""
    run(make_app(DOWN))

    end = time.monotonic() + DEADLINE_S
    while any(thread.name == "flask_uow stats" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
