"""Small sources, whose comments say what is to be found in their lines: ``db.session.commit()  # UOW301``."""

import re
import textwrap
from pathlib import Path

from flask_uow.lint import Report, Settings, check_paths

EXPECTED = re.compile(r"#[^\n]*?((?:\bUOW\d{3}\b[ ,]*)+)$", re.MULTILINE)
HEAD = """\
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_uow import UnitOfWork, transactional

app = Flask(__name__)
db = SQLAlchemy(app)
uow = UnitOfWork(app, session=db.session)

"""


def write(folder: Path, **sources: str) -> Path:
    """Write modules into a folder, by their names with ``__`` for a dot, and give the first one's path."""
    paths = [folder.joinpath(*name.split("__")).with_suffix(".py") for name in sources]
    for path, source in zip(paths, sources.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
    return paths[0]


def check(folder: Path, source: str, **settings: tuple[str, ...]) -> Report:
    """Check one source."""
    return check_paths([write(folder, bank=source)], Settings(folder, **settings))


def found(report: Report) -> list[str]:
    """What a report says, as ``line: code``."""
    return [f"{finding.line}: {finding.code}" for finding in report.findings]


def expected(source: str) -> list[str]:
    """What a source's comments say, in the same form."""
    lines = enumerate(textwrap.dedent(source).splitlines(), start=1)
    marks = [(number, EXPECTED.search(line)) for number, line in lines]
    return [f"{number}: {code}" for number, mark in marks if mark for code in mark[1].replace(",", " ").split()]


def assert_as_marked(folder: Path, source: str, **settings: tuple[str, ...]) -> None:
    """Check a source below the usual imports, and compare with what its comments say."""
    whole = HEAD + textwrap.dedent(source).lstrip("\n")
    assert found(check(folder, whole, **settings)) == expected(whole)
