"""Draw the README's picture of ``flask db-session-stats``: real sessions of two workers on a real server.

Run it from the top of the source tree: ``python -m tests.pictures.db_session_stats docs/db-session-stats.svg``.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import StringIO
from pathlib import Path

import psycopg2
import sqlalchemy as sa
from flask import Flask
from rich.console import Console
from sqlalchemy.engine import URL, make_url

from flask_uow import UnitOfWork, stats
from flask_uow._tables import draw
from tests.throwaway_server import throwaway_server

WIDTH = 92
DEADLINE_S = 30.0
OLD_S = 3.0
TABLE = "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 100), (2, 100)"
WITHDRAW = "UPDATE account SET balance = balance - 30 WHERE id = 1"
READ = "SELECT balance FROM account WHERE id = 2; COMMIT"
COUNT = "SELECT count(*) FROM account, pg_sleep(60)"
# What each worker's connections do last. One withdrawal waits for its caller, the other for the first.
WORKERS = ((READ, READ, WITHDRAW), (COUNT, WITHDRAW))


def main(target: str) -> None:
    """Make the sessions, look at them and write the picture.

    :param target: the SVG file to write.
    """
    with throwaway_server() as server:
        url = _open_bank(make_url(server))
        app = make_app(url.render_as_string(hide_password=False))
        with _workers(url):
            snapshot = _wait_for_trouble(app)
    Path(target).parent.mkdir(exist_ok=True)
    Path(target).write_text(picture(snapshot), encoding="utf-8")


def make_app(url: str) -> Flask:
    """Make an app on the bank's database.

    :param url: the database.
    """
    app = Flask("bank")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    UnitOfWork(app)
    return app


def work(url: str, statements: tuple[str, ...]) -> None:
    """Be a worker: run each statement on a connection of its own, and keep them all until ended.

    :param url: the database.
    :param statements: one for each connection.
    """
    app = make_app(url)
    with app.app_context():
        engine = app.extensions["uow"].engine
    for statement in statements:
        threading.Thread(target=_run, args=(engine.connect(), statement), daemon=True).start()
    threading.Event().wait()


def picture(snapshot: stats.Snapshot) -> str:
    """Draw a snapshot as the terminal would show it.

    :param snapshot: what to draw.
    """
    console = Console(file=StringIO(), record=True, width=WIDTH, force_terminal=True, highlight=False, markup=False)
    draw(snapshot, console)
    svg = console.export_svg(title="flask db-session-stats", unique_id="db-session-stats")
    # The picture must not fetch its font from somewhere.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def _open_bank(server: URL) -> URL:
    for url, statement in (
        (server, "CREATE ROLE bank LOGIN PASSWORD 'bank'"),
        (server, "CREATE DATABASE bank OWNER bank"),
        (bank := server.set(username="bank", password="bank", database="bank"), TABLE),
    ):
        with closing(psycopg2.connect(url.render_as_string(hide_password=False))) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement)
    return bank.set(drivername="postgresql+psycopg2")


@contextmanager
def _workers(url: URL) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    full_url = url.render_as_string(hide_password=False)
    processes = [spawn.Process(target=work, args=(full_url, statements), daemon=True) for statements in WORKERS]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run(connection: sa.Connection, statement: str) -> None:
    with suppress(sa.exc.OperationalError):
        connection.exec_driver_sql(statement)


def _wait_for_trouble(app: Flask) -> stats.Snapshot:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        snapshot = stats.snapshot(app)
        counts = {state.state: state for state in snapshot.databases[0].summary.states}
        is_complete = set(counts) == {"idle in transaction", "blocked", "active", "idle"}
        if is_complete and (counts["idle in transaction"].longest_seconds or 0) > OLD_S:
            return snapshot
        time.sleep(0.1)
    raise SystemExit("The sessions have not come about in time.")


if __name__ == "__main__":
    main(*sys.argv[1:])
