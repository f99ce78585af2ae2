"""Labels that somebody else may have had a hand in: they name a unit and do nothing else."""

import re

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event

from flask_uow import UnitOfWork, transactional
from tests.database.conftest import Bench
from tests.databases import Database
from tests.models import create_tables

HOSTILE = [
    "'; DROP TABLE item; --",
    "\\'; DROP TABLE item; --",
    '"; DROP TABLE item; --',
    "$$; DROP TABLE item; --",
    "*/ ; DROP TABLE item; /*",
    "%s %(name)s {label} :name",
    "line\nline\r\n\x1b[2J\0\u202e",
    "\ud800",
    "ü" * 100,
    "x" * 100_000,
]

every_label = pytest.mark.parametrize("label", HOSTILE, ids=lambda label: ascii(label[:24]))


def texts_of(engine: sa.Engine) -> list[str]:
    """What is sent on an engine's connections from now on, as far as SQLAlchemy sends it."""
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    for end in ("rollback_savepoint", "release_savepoint"):
        event.listen(engine, end, lambda connection, name, context: sent.append(f"SAVEPOINT {name}"))
    return sent


@every_label
def test_a_label_is_no_sql(bench: Bench, label: str) -> None:
    """Of an outermost unit, of a savepoint and of one that is undone; savepoints have names of SQLAlchemy's."""
    with bench.app.app_context():
        sent = texts_of(bench.uow.engine)
        with transactional(label=label):
            bench.add("outer")
            with transactional(label=label):
                bench.add("inner")
            with pytest.raises(LookupError, match="no"), transactional(label=label):
                bench.add("undone")
                raise LookupError("no")
        with transactional(label=label, read_only=True):
            bench.run_sql("SELECT 1")

    assert bench.committed() == ["inner", "outer"]
    assert {text for text in sent if "SAVEPOINT" in text} >= {"SAVEPOINT sa_savepoint_1", "SAVEPOINT sa_savepoint_2"}
    assert {text for text in sent if "savepoint" in text.lower() and "sa_savepoint_" not in text} == set()
    assert not any("DROP" in text for text in sent)


@pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)
@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize("app_name", ["o'brien", "x\\", "a\\'; DROP TABLE item; --", "%s;", "Bänk\n"])
def test_the_server_is_told_names_and_no_sql(database: Database, app_name: str, conforming: str) -> None:
    """The app's name too, whether a backslash escapes a quote there or not; the app finds its sessions by it."""
    bench = named_bench(database, app_name, conforming)

    for label in HOSTILE:
        with bench.app.app_context(), transactional(label=label):
            bench.run_sql("SELECT count(*) FROM item")
            # The command's own of the turn before may not have left yet.
            (session,) = (each for each in database.sessions() if each.state == "idle in transaction")
            assert bench.app.test_cli_runner().invoke(args=["db-session-stats"]).exit_code == 0
        assert re.fullmatch(r"flask_uow:[^:]*:\d+@[0-9a-f]{4}:[ -~]+", session.application_name)
        assert not set(session.application_name) & set("'\\%;")
        assert len(session.application_name) <= 63

    assert database.rows("SELECT count(*) FROM item") == [(0,)]
    with bench.app.app_context():
        bench.uow.engine.dispose()


def named_bench(database: Database, app_name: str, conforming: str) -> Bench:
    """A bench on which statements ride, of an app with this name, and on a server that reads texts this way."""
    create_tables(database)
    app, uow = Flask(app_name), UnitOfWork()
    url = sa.make_url(database.url).update_query_dict({"options": f"-c standard_conforming_strings={conforming}"})
    app.config.update(SQLALCHEMY_DATABASE_URI=url, TESTING=True)
    uow.init_app(app)
    return Bench(app, uow, database)
