"""Where the codemod makes the extension, and where its import goes."""

import textwrap
from pathlib import Path

import pytest

from flask_uow import codemod
from flask_uow.codemod._edits import Edits, edit
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


def test_below_init_app_in_a_factory(tmp_path: Path) -> None:
    """In another module than the one where the database is made, which hands it on."""
    report = change(
        tmp_path,
        **{
            "bank/__init__": """
                from flask import Flask

                from .database import db

                def create_app():
                    app = Flask(__name__)
                    db.init_app(app)  # first
                    return app
                """,
            "bank/database": "from .tables import db",
            "bank/tables": """
                from flask_sqlalchemy import SQLAlchemy

                class Database(SQLAlchemy): ...

                db = Database()
                """,
            "bank/views": f"from flask import Blueprint\n\nfrom .database import db\n\napp = Blueprint('', '')\n{VIEW}",
        },
    )

    assert _after(report, "__init__.py") == textwrap.dedent(
        """
        from flask import Flask
        from flask_uow import UnitOfWork

        from .database import db

        def create_app():
            app = Flask(__name__)
            db.init_app(app)  # first
            UnitOfWork(app, session=db.session)
            return app
        """
    )
    assert _after(report, "views.py").startswith(
        "from flask import Blueprint\nfrom flask_uow import transactional\n\nfrom .database"
    )
    assert report.left == []


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


def test_two_for_one_function_are_left(tmp_path: Path) -> None:
    """They may be for one app, which takes one extension."""
    source = f"""
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

app = Flask(__name__)
db = SQLAlchemy()
other = SQLAlchemy()
db.init_app(app)
other.init_app(app)
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
    ],
)
def test_place_of_the_import(before: str, expected: str) -> None:
    """With its likes, at the top."""
    assert edit(before.encode(), Edits(names={"transactional"})).decode() == expected
