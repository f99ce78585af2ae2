"""Where the codemod makes the extension, and where its import goes."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flask_uow import codemod
from flask_uow.codemod._edits import Edits, edit
from flask_uow.codemod._plan import NO_CONTEXT
from tests.codemod.sources import change

VIEW = """
@app.post("/")
def count():
    db.session.add(object())
    db.session.commit()
    return ""
"""


def _after(report: codemod.Report, name: str) -> str:
    return next(each.after.decode() for each in report.changes if each.path.name == name)


@pytest.mark.parametrize(
    ("library", "made", "expected"),
    [
        ("flask_sqlalchemy", "SQLAlchemy(app)", "uow = UnitOfWork(app, session=db.session)"),
        ("flask_sqlalchemy", "SQLAlchemy(model_class=Base, app=app)", None),
        ("flask_sqlalchemy_lite", "SQLAlchemy(app)", "uow = UnitOfWork(app, session=lambda: db.session)"),
    ],
)
def test_beside_the_line_that_gives_it_the_app(tmp_path: Path, library: str, made: str, expected: str | None) -> None:
    """As an argument."""
    source = f"from flask import Flask\nfrom {library} import SQLAlchemy\n\napp = Flask(__name__)\ndb = {made}\n{VIEW}"
    changed = _after(change(tmp_path, bank=source), "bank.py")

    assert f"db = {made}\n{expected or 'uow = UnitOfWork(app, session=db.session)'}\n" in changed


FACTORY = """
from flask import Flask

{imports}

def create_app():
    app = Flask(__name__)
    {db}.init_app(app)  # first
    return app
"""
SPREAD = "from .database import (\n    db,\n    other,\n)"
DATABASE = """
from flask_sqlalchemy import SQLAlchemy

class Database(SQLAlchemy): ...

db = Database()
other = 1
"""


@pytest.mark.parametrize(
    ("imports", "db", "expected", "reached"),
    [
        ("from .database import db", "db", "from .database import db, uow", "uow"),
        ("from bank.database import other, db", "db", "from bank.database import other, db, uow", "uow"),
        ("from .database import db as base", "base", "from .database import db as base, uow", "uow"),
        (
            "from .database import (\n    db,\n    other,\n)",
            "db",
            "from .database import (\n    db,\n    other,\n    uow,\n)",
            "uow",
        ),
        ("from .database import (db, x,\n    y)", "db", "from .database import (db, uow, x,\n    y)", "uow"),
        (
            "from .database import (  # noqa: F401\n    # all\n    db,\n    other,  # too\n    # end\n)",
            "db",
            "from .database import (  # noqa: F401\n    # all\n    db,\n    other,  # too\n    # end\n    uow,\n)",
            "uow",
        ),
        (
            "from .database import (  # noqa: F401\n    db,\n    zeta,  # too\n)",
            "db",
            "from .database import (  # noqa: F401\n    db,\n    uow,\n    zeta,  # too\n)",
            "uow",
        ),
        (
            "from .database import (\n    db  # the one\n)",
            "db",
            "from .database import (\n    db,  # the one\n    uow\n)",
            "uow",
        ),
        ("from . import database", "database.db", "from . import database", "database.uow"),
        ("import bank.database", "bank.database.db", "import bank.database", "bank.database.uow"),
    ],
)
def test_below_init_app_in_a_factory(tmp_path: Path, imports: str, db: str, expected: str, reached: str) -> None:
    """It is made once, where the database is made, and serves all apps of the factory."""
    sources = {"bank/__init__": FACTORY.format(imports=imports, db=db), "bank/database": DATABASE}
    report = change(tmp_path, **sources)

    below = f"    {db}.init_app(app)  # first\n"
    assert _after(report, "__init__.py") == sources["bank/__init__"].replace(imports, expected).replace(
        below, f"{below}    {reached}.init_app(app)\n"
    )
    assert "\ndb = Database()\nuow = UnitOfWork(session=db.session)\n" in _after(report, "database.py")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("db.init_app(app); app.x = 1", "db.init_app(app); uow.init_app(app); app.x = 1"),
        ("app.x = 1; db.init_app(app)  # last", "app.x = 1; db.init_app(app); uow.init_app(app)  # last"),
        ("if app: db.init_app(app)", "if app: db.init_app(app); uow.init_app(app)"),
    ],
)
def test_beside_init_app_in_a_line_with_others(tmp_path: Path, before: str, after: str) -> None:
    """Where the line holds other statements it stands among them; left out, no request would find its extension."""
    source = f"""
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
db = SQLAlchemy(); other = 1
app = Flask(__name__)
{before}
"""
    report = change(tmp_path, bank=source)

    changed = _after(report, "bank.py")
    assert "db = SQLAlchemy(); uow = UnitOfWork(session=db.session); other = 1\n" in changed
    assert f"{after}\n" in changed
    assert not change(tmp_path, bank=changed).changes


def test_apps_of_a_factory_work_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one module with everything; each app has rows of its own."""
    source = """
        from flask import Flask
        from flask_sqlalchemy import SQLAlchemy
        from sqlalchemy import text

        db: SQLAlchemy = SQLAlchemy()

        def count():
            db.session.execute(text("INSERT INTO visit VALUES (1)"))
            db.session.commit()
            return ""

        def create_app(uri):
            app = Flask(__name__)
            app.config["SQLALCHEMY_DATABASE_URI"] = uri
            db.init_app(app)
            app.add_url_rule("/", view_func=count, methods=["POST"])
            with app.app_context():
                db.session.execute(text("CREATE TABLE visit (number INTEGER)"))
            return app
        """
    changed = _after(change(tmp_path, bank=source), "bank.py")
    names: dict[str, Any] = {"__name__": "bank"}
    exec(compile(changed, "bank.py", "exec", dont_inherit=True), names)

    assert "@transactional\ndef count" in changed
    assert "commit" not in changed
    apps = [names["create_app"](f"sqlite:///{tmp_path / name}.sqlite") for name in ("one", "two")]
    for app, number in zip(apps, (1, 2), strict=True):
        for _ in range(number):
            assert app.test_client().post("/").status_code == 200
    for app, number in zip(apps, (1, 2), strict=True):
        with app.app_context():
            database = names["db"].engine.url.database
            names["db"].engine.dispose()
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("SELECT count(*) FROM visit").fetchone() == (number,)


def test_a_database_that_is_only_handed_on_is_left(tmp_path: Path) -> None:
    """Where the extension would be imported from is a human's choice."""
    sources = {
        "bank/__init__": FACTORY.format(imports="from .names import db", db="db"),
        "bank/names": "from .database import db\n",
        "bank/database": DATABASE,
        "bank/views": f"from flask import Blueprint\nfrom .names import db\napp = Blueprint('', '')\n{VIEW}",
    }
    report = change(tmp_path, **sources)

    assert report.changes == []
    assert "it waits for the extension" in report.left[0].why


def test_one_that_is_there_is_enough(tmp_path: Path) -> None:
    """Whatever it is called."""
    source = f"""
from flask import Flask
import flask_uow as units
from flask_sqlalchemy import SQLAlchemy

app = Flask(__name__)
db = SQLAlchemy(app)
units.UnitOfWork(app, session=db.session)
{VIEW}"""
    changed = _after(change(tmp_path, bank=source), "bank.py")

    assert changed.count("UnitOfWork") == 1
    assert "@transactional\ndef count" in changed


@pytest.mark.parametrize(
    "second",
    [
        "other = SQLAlchemy()\nother.init_app(app)",
        "from sqlalchemy.orm import scoped_session, sessionmaker\nSession = scoped_session(sessionmaker())",
    ],
)
def test_of_two_sessions_none_moves(tmp_path: Path, second: str) -> None:
    """A unit commits one of them, and a commit of the other must not go."""
    source = f"""
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

app = Flask(__name__)
db = SQLAlchemy()
db.init_app(app)
{second}
{VIEW}"""
    report = change(tmp_path, bank=source)

    assert report.changes == []
    (left,) = report.left
    assert "the files make more than one session" in left.why


FREE = """
import click
from flask import Flask
from flask.cli import AppGroup, FlaskGroup, with_appcontext
from sqlalchemy import create_engine
from sqlalchemy.orm import scoped_session, sessionmaker

from flask_uow import UnitOfWork, transactional

app = Flask(__name__)
session = scoped_session(sessionmaker(create_engine("sqlite://")))
uow = UnitOfWork(app, session=session)
plain, flasks, apps = click.Group(), FlaskGroup(), AppGroup("apps")

@click.group(cls=FlaskGroup)
def made(): ...

DECORATOR
def count():
    session.add(object())
    session.commit()
"""


@pytest.mark.parametrize(
    ("decorator", "is_moved"),
    [
        ("@app.post('/')", True),
        ("@app.before_request", True),
        ("@app.cli.command()", True),
        ("@apps.command()", True),
        ("@flasks.command()", True),
        ("@made.command()", True),
        ("@plain.command()\n@with_appcontext", True),
        ("@plain.command()", False),
        ("@click.command()", False),
        ("@queue.task", False),
    ],
)
def test_what_may_run_without_an_app_is_left(tmp_path: Path, decorator: str, is_moved: bool) -> None:
    """A session of SQLAlchemy's own needs no app context, and a unit does; Flask-SQLAlchemy's need one anyway."""
    report = change(tmp_path, bank=FREE.replace("DECORATOR", decorator))
    assert bool(report.changes) == is_moved
    assert [each.why for each in report.left] == ([] if is_moved else [f"count() is left as it is: {NO_CONTEXT}."])

    owned = "from flask_sqlalchemy import SQLAlchemy\ndb = SQLAlchemy(app)\nsession = db.session"
    free = next(line for line in FREE.splitlines() if line.startswith("session ="))
    assert change(tmp_path, bank=FREE.replace("DECORATOR", decorator).replace(free, owned)).changes


def test_a_context_in_the_command_is_seen(tmp_path: Path) -> None:
    """The unit stands inside of it."""
    body = "    session.add(object())\n    session.commit()\n"
    inner = f"    with app.app_context():\n{body.replace('    ', '        ')}"
    report = change(tmp_path, bank=FREE.replace("DECORATOR", "@plain.command()").replace(body, inner))

    assert "app_context():\n        with transactional():\n            session.add" in _after(report, "bank.py")


def test_two_apps_of_one_function_are_left(tmp_path: Path) -> None:
    """They may be one app, which takes one extension."""
    source = f"""
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
app = Flask(__name__)
db.init_app(app)
same = app
db.init_app(same)
{VIEW}"""
    report = change(tmp_path, bank=source)

    assert report.changes == []
    assert "it waits for the extension" in report.left[0].why


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("import os\n\nx = 1\n", "import os\nfrom flask_uow import transactional\n\nx = 1\n"),
        ("x = 1\n", "from flask_uow import transactional\n\nx = 1\n"),
        ('"""Views."""\nx = 1\n', '"""Views."""\nfrom flask_uow import transactional\n\nx = 1\n'),
        (
            "# -*- coding: utf-8 -*-\nfrom __future__ import annotations\nx = 1\n",
            "# -*- coding: utf-8 -*-\nfrom __future__ import annotations\nfrom flask_uow import transactional\nx = 1\n",
        ),
        ("from . import db\n", "from flask_uow import transactional\nfrom . import db\n"),
        ("from flask_wtf import Form\n", "from flask_uow import transactional\nfrom flask_wtf import Form\n"),
        ("from flask_uow import UnitOfWork\n", "from flask_uow import UnitOfWork, transactional\n"),
        (
            "from flask_uow import transactional as unit\n",
            "from flask_uow import transactional as unit, transactional\n",
        ),
        ("from flask_uow import transactional\n", "from flask_uow import transactional\n"),
        (
            "from flask_uow import (\n    UnitOfWork,\n)\n",
            "from flask_uow import (\n    UnitOfWork,\n)\nfrom flask_uow import transactional\n",
        ),
        (
            "import flask, sys\nif x:\n    import os\n",
            "import flask, sys\nfrom flask_uow import transactional\nif x:\n    import os\n",
        ),
        # What is called before the import of Flask is called before this one.
        (
            "import os\nos.umask(7)\nfrom flask import Flask\nx = 1\nimport sys\n",
            "import os\nos.umask(7)\nfrom flask import Flask\nfrom flask_uow import transactional\nx = 1\nimport sys\n",
        ),
        (
            "import os\nos.umask(7)\nfrom flask_uow import UnitOfWork\n",
            "import os\nos.umask(7)\nfrom flask_uow import UnitOfWork, transactional\n",
        ),
    ],
)
def test_place_of_the_import(before: str, expected: str) -> None:
    """With its likes, at the top."""
    assert edit(before.encode(), Edits(names={"transactional"})).decode() == expected
