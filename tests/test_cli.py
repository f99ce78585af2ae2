"""The command: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from flask import Flask
from rich.console import Console
from sqlalchemy import orm

from flask_uow import UnitOfWork, stats
from flask_uow._tables import draw
from flask_uow.stats import duration
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
    assert f"pools of this process ({os.getpid()})" in result.output
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
    reason = f"idle-in-transaction=0.1: session {pid} (flask_uow:bank:{os.getpid()}) is idle in transaction for 0."
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


# ---- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-on", "idle=5"], "'idle=5' is no condition. Write idle-in-transaction=SECONDS."),
        (["--fail-on", "idle-in-transaction=soon"], "'soon' is not a number of seconds."),
        (["--min-age", "nan"], "'nan' is not a number of seconds."),
        (["--min-age", "-1"], "'-1' is not a number of seconds."),
        (["--state", "asleep"], "'asleep' is no state. Choose from: idle in transaction (aborted), "),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    """What was typed wrongly is quoted."""
    result = run(make_app("sqlite://"), *arguments)

    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_help_documents_the_json_keys() -> None:
    """Every key of the JSON document is in the help."""
    text = run(make_app("sqlite://"), "--help").stdout

    snapshot = snapshot_of(session())
    values = (
        snapshot,
        snapshot.databases[0],
        session(),
        stats.Summary(0, ()),
        stats.StateCount("idle", 0, None),
        stats.PoolSnapshot("default", "QueuePool", 1),
        stats.SQLiteDatabase(None),
    )
    missing = {name for value in values for name in type(value).__dataclass_fields__ if name not in text}
    assert missing == set()


def test_rich_is_imported_by_the_command_only() -> None:
    """An app that does not run the command does not load rich, nor a driver."""
    code = (
        "import sys, flask_uow._cli; print([name for name in ('rich', 'psycopg', 'psycopg2') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


# ---- the drawing


def session(**changes: Any) -> stats.ServerSession:
    """A session that is idle in a transaction, unless changed; its numbers are as long as they get."""
    idle = stats.ServerSession(
        pid=4194304,
        application_name="flask_uow:bank:4194303",
        worker_pid=4194303,
        user="bank",
        database="bank",
        client_address=None,
        state="idle in transaction",
        transaction_age_seconds=95000.0,
        state_age_seconds=86399.0,
        wait_event=None,
        query="SELECT 1",
        blocked_by=(),
    )
    return replace(idle, **changes)


def snapshot_of(*sessions: stats.ServerSession, **changes: Any) -> stats.Snapshot:
    """A snapshot of one database with these sessions."""
    database = stats.DatabaseSnapshot(
        binds=("default",),
        dialect="postgresql",
        driver="psycopg2",
        url="postgresql://bank:***@db.example/bank",
        pools=(stats.PoolSnapshot("default", "QueuePool", 1, 5, 3, 0, 0, -1, 5.0),),
        server_version="15.18 (Debian 15.18-0+deb12u1)",
        found_by="application_name flask_uow:bank:*",
        sessions=sessions,
        summary=stats.Summary.of(sessions),
    )
    return stats.Snapshot("bank", datetime.now(UTC), (replace(database, **changes),))


def drawn(snapshot: stats.Snapshot, width: int = 80) -> str:
    """What is printed at a width."""
    file = StringIO()
    draw(snapshot, Console(file=file, width=width, highlight=False, markup=False, color_system=None))
    return file.getvalue()


def test_trouble_comes_first() -> None:
    """Groups stand in the order of trouble, and within a group the longest comes first."""
    text = drawn(
        snapshot_of(
            session(state="hidden", query=None, state_age_seconds=None, transaction_age_seconds=None, user="clerk"),
            session(state="idle", pid=1, state_age_seconds=7.0),
            session(state="idle", pid=2, state_age_seconds=70.0),
            session(state="active"),
            session(state="active", blocked_by=(4711, 0)),
            session(),
            session(state="idle in transaction (aborted)", transaction_age_seconds=None),
        )
    )

    groups = ("idle in transaction (aborted)", "idle in transaction", "blocked", "active", "hidden")
    places = [text.index(f"\n{group} (1)\n") for group in groups]
    assert places == sorted(places)
    assert text.index("       2 ") < text.index("       1 ")
    assert "4711, a prepared transaction" in text
    assert "role clerk" in text


@pytest.mark.parametrize("width", [80, 60])
def test_nothing_that_counts_is_cut(width: int) -> None:
    """Pid, worker, state and ages are whole at 80 columns and below; the statement takes what is left."""
    text = drawn(snapshot_of(session(query="SELECT " + "x, " * 100), session(blocked_by=(4194302,))), width)

    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    (idle,) = [line for line in lines if "SELECT x" in line]
    assert idle.split()[:6] == ["4194304", "4194303", "23", "h", "59", "min"]
    assert "1 d 2 h" in idle
    assert idle.rstrip().endswith("…")
    assert any("4194302" in line and "4194304" in line for line in lines)


def test_long_summary_is_whole() -> None:
    """A summary with every state and large numbers is wrapped at words, not cut."""
    states = [state for state in stats.GROUPS for _ in range(120)]
    text = drawn(snapshot_of(*(session(state=state) for state in states)))

    summary = " ".join(text.split())
    assert "1080 sessions: 120 idle in transaction (aborted) for 23 h 59 min, 120 idle in transaction for" in summary
    assert max(map(len, text.splitlines())) <= 80


HOSTILE = "[bold red]x[/] \x1b[31m\x1b]0;owned\x07\r\n\u202eevil\u2066\x9b2J :smile: [link=http://x]y[/link]"


def test_hostile_names_and_queries() -> None:
    """Neither rich's markup nor a terminal's control sequences nor reversed text gets through."""
    hostile = session(application_name=HOSTILE, query=HOSTILE, user=HOSTILE, state="active", blocked_by=(1,))
    blocker = session(application_name=HOSTILE, user=HOSTILE, state=HOSTILE, pid=1, blocked_by=(0,))
    hidden = session(user=HOSTILE, query=None, state="hidden")
    snapshot = snapshot_of(
        hostile, hidden, session(state=HOSTILE), blockers=(blocker,), url=HOSTILE, binds=(HOSTILE,), notes=(HOSTILE,)
    )

    text = drawn(snapshot, 200)

    assert not set(text) & set("\x1b\x07\r\x9b\u202e\u2066")
    assert "[bold red]x[/] ?[31m?]0;owned???" in text
    assert ":smile: [link=http://x]y[/link]" in text


def test_blockers_outside_the_app() -> None:
    """Who is not of the app and in its way is named with state and age."""
    blocker = session(pid=99, application_name="", user="root", state="idle in transaction", blocked_by=(98,))

    text = drawn(snapshot_of(session(blocked_by=(99,)), blockers=(blocker,)))

    assert "not of this app, but in its way" in text
    assert "idle in transaction, waits for 98:" in text
    assert "no name, role root" in " ".join(text.split())


def test_pools_and_notes() -> None:
    """A pool without counters has dashes, one without a limit says so; notes stand below."""
    pools = (
        stats.PoolSnapshot("default", "QueuePool", 1, 5, 3, 0, 0, -1, 5.0),
        stats.PoolSnapshot("reader", "QueuePool", 1, 5, 15, 0, 10, 10, 5.0),
        stats.PoolSnapshot("archive", "NullPool", 1),
    )

    lines = drawn(snapshot_of(pools=pools, notes=("A NullPool keeps no counters.",))).splitlines()

    assert lines[-1] == "Note: A NullPool keeps no counters."
    assert [line.split()[:4] for line in lines[-4:-1]] == [["5", "3", "0", "no"], ["5", "15", "10", "10"], ["-"] * 4]
    assert "0 sessions" in lines


def test_writer_of_a_sqlite_file_and_its_log() -> None:
    """The process that writes and the size of the log are named; a mode that cannot be read is said to be unknown."""
    sqlite = stats.SQLiteDatabase("/bank.db", 1234567, 4096, None, 4711)

    text = drawn(snapshot_of(server_version=None, sqlite=sqlite), 100)

    assert "SQLite file of 1,234,567 bytes, write-ahead log 4,096 bytes, journal mode not known" in text
    assert "process 4711 holds the write lock" in text


def test_several_databases_are_set_apart() -> None:
    """Between two databases there is an empty line."""
    snapshot = snapshot_of()
    (database,) = snapshot.databases

    text = drawn(replace(snapshot, databases=(database, replace(database, binds=("archive",)))))

    assert "\n\narchive: postgresql://" in text


def show(monkeypatch: pytest.MonkeyPatch, *, charset: str = "utf-8", **env: str | None) -> bytes:
    """What the command writes for a snapshot with a long statement."""
    monkeypatch.setattr(stats, "snapshot", lambda: snapshot_of(session(query="SELECT 'ü' " + "x" * 100)))
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


def test_output_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that knows only ASCII gets question marks, not a traceback."""
    text = show(monkeypatch, charset="ascii")

    assert b"SELECT '?' xxx" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.0 s"),
        (0.25, "0.2 s"),
        (9.94, "9.9 s"),
        (10.0, "10 s"),
        (59.9, "59 s"),
        (60.0, "1 min"),
        (125.0, "2 min 5 s"),
        (3600.0, "1 h"),
        (7325.0, "2 h 2 min"),
        (86400.0, "1 d"),
        (200000.0, "2 d 7 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    """A duration is given in its two largest units."""
    assert duration(seconds) == text


def test_threads_of_the_reader_end() -> None:
    """The thread that asks the server is gone when the command is."""
    run(make_app(DOWN))

    end = time.monotonic() + DEADLINE_S
    while any(thread.name == "flask_uow stats" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
