"""Small apps of Flask-SQLAlchemy for the codemod: their source before and after, and both of them at work."""

from __future__ import annotations

import sqlite3
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from flask_uow import codemod
from flask_uow.lint import Settings

HEAD = """\
from flask import Flask, abort, flash, redirect, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


app = Flask(__name__)
app.secret_key = "secret"
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///BANK"
db = SQLAlchemy(app, model_class=Base)


class Account(db.Model):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(unique=True)
    balance: Mapped[int] = mapped_column(default=0)


# ---- the code
"""
MARK = "# ---- the code\n"

Answer = tuple[int, str]
Row = tuple[str, int]


def change(folder: Path, *functions: str, **sources: str) -> codemod.Report:
    """Write modules into a folder, and ask the codemod what it would change there."""
    for name, source in sources.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    return codemod.change_paths([folder], Settings(folder), functions)


def whole(source: str) -> str:
    """An app with this code below its models."""
    return HEAD + textwrap.dedent(source).lstrip("\n")


def after(folder: Path, source: str, *functions: str) -> tuple[str, codemod.Report]:
    """An app after the codemod, and what it said."""
    report = change(folder, *functions, bank=source)
    return (report.changes[0].after.decode() if report.changes else source), report


def code(source: str) -> str:
    """What stands below the models."""
    return source.partition(MARK)[2]


@contextmanager
def running(source: str, file: Path) -> Iterator[FlaskClient]:
    """An app at work, on a database of its own with an account of Ann's."""
    names: dict[str, Any] = {"__name__": "bank"}
    exec(compile(source.replace("BANK", str(file)), "bank.py", "exec", dont_inherit=True), names)
    db, app = names["db"], names["app"]
    with app.app_context():
        db.create_all()
        db.session.add(names["Account"](owner="ann", balance=10))
        db.session.commit()
    try:
        yield app.test_client()
    finally:
        with app.app_context():
            db.engine.dispose()


def rows(file: Path) -> list[Row]:
    """What is committed, as a second connection sees it."""
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT owner, balance FROM account ORDER BY owner").fetchall()


def ask(source: str, file: Path, requests: Sequence[str]) -> list[tuple[Answer, list[Row]]]:
    """Post requests one after the other: what each was answered, and what was committed then."""
    seen = []
    with running(source, file) as client:
        for url in requests:
            answer = client.post(url)
            text = answer.get_data(as_text=True) if answer.status_code < 300 else ""
            seen.append(((answer.status_code, text), rows(file)))
    return seen
