"""The code of pages that have no test of their own: what is typed and what is run does as it says."""

import re
import shlex
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from docutils import core, nodes  # type: ignore[import-untyped]
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import exc

from flask_uow import UnitOfWork, transactional
from tests.databases import Database, PostgreSQLDatabase
from tests.models import Item, create_tables, names

DOCS = Path(__file__).parents[1] / "docs"


def blocks(name: str, language: str) -> list[str]:
    """The blocks of a page that are in a language; in none if it is empty."""
    text = (DOCS / f"{name}.rst").read_text(encoding="utf-8")
    page = core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2})
    found = page.findall(nodes.literal_block)
    return [block.astext() for block in found if (language in block["classes"] if language else not block["classes"])]


def test_the_alarms_ring_when_their_condition_holds(app: Flask, uow: UnitOfWork, database: Database) -> None:
    """And are silent before: the command of the page on operation, on an app that has a unit idle for too long."""
    (line,) = (block for block in blocks("operations", "") if block.startswith("flask "))
    words = [word.replace("idle-in-transaction=5", "idle-in-transaction=0") for word in shlex.split(line)]
    assert words[:3] == ["flask", "--app", "bank"]
    runner = app.test_cli_runner()

    assert runner.invoke(args=words[3:]).exit_code == 0
    with app.app_context(), transactional():
        uow.session.add(Item(name="first"))
        uow.session.flush()
        assert runner.invoke(args=words[3:]).exit_code == 1


def test_a_session_that_the_server_ends_fails_alone(postgres: PostgreSQLDatabase) -> None:
    """The last line of defence: its unit fails with the server's error and is rolled back, the next one works."""
    (statement,) = blocks("operations", "sql")
    assert statement.startswith("ALTER ROLE bank SET ")
    create_tables(postgres)
    url = sa.make_url(postgres.url)
    with role(postgres) as bank:
        postgres.execute(statement.replace(" bank ", f" {bank} ").replace("60s", "200ms"))
        app = Flask("bank")
        app.config["SQLALCHEMY_DATABASE_URI"] = url.set(username=bank).render_as_string(hide_password=False)
        uow = UnitOfWork(app)
        with app.app_context():
            with pytest.raises(exc.OperationalError), transactional():
                uow.session.add(Item(name="lost"))
                uow.session.execute(sa.text("SELECT pg_sleep(0.4)"))  # a statement is not idle
                while postgres.rows("SELECT pid FROM pg_stat_activity WHERE usename = %s", bank):
                    time.sleep(0.05)
                uow.session.execute(sa.text("SELECT 1"))
            with transactional():
                uow.session.add(Item(name="kept"))
            uow.engine.dispose()

    assert names(postgres) == ["kept"]


@contextmanager
def role(postgres: PostgreSQLDatabase) -> Iterator[str]:
    """A role of the server's that may do what the tests' own may."""
    name = f"bank_{uuid.uuid4().hex[:8]}"
    postgres.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{sa.make_url(postgres.url).password}'")
    try:
        yield name
    finally:
        postgres.execute(f"DROP ROLE {name}")


def test_engines_made_elsewhere_ride(postgres: PostgreSQLDatabase) -> None:
    """One of SQLAlchemy's own, and Flask-SQLAlchemy's."""
    (block,) = (block for block in blocks("in-depth", "python") if "ride(" in block)
    app, db = Flask(__name__), SQLAlchemy()
    app.config["SQLALCHEMY_DATABASE_URI"] = postgres.url
    db.init_app(app)
    scope: dict[str, Any] = {"create_engine": sa.create_engine, "url": postgres.url, "app": app, "db": db}

    exec(block, scope)

    with app.app_context():
        for engine in (scope["engine"], db.engine):
            with engine.connect() as connection:
                assert hasattr(connection.connection.driver_connection, "riders")
            engine.dispose()


def test_live_units_are_listed(app: Flask, capsys: pytest.CaptureFixture[str]) -> None:
    """What the program of the command's page prints, while a unit lives."""
    (block,) = blocks("db-session-stats", "python")
    with app.app_context(), transactional(label="POST /transfers"):
        exec(block, {"app": app})

    assert re.fullmatch(
        r"POST /transfers \S+test_pages_code\.py:\d+ in \w+ \w[\w ]* [\d.e-]+\n", capsys.readouterr().out
    )
