"""Flask-SQLAlchemy-Lite, adopted by ``session=lambda: db.session``."""

import flask_sqlalchemy_lite
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.globals import app_ctx
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, transactional
from flask_uow.exceptions import RuleViolationError, UnitOptionsError
from tests.databases import Database
from tests.models import Item, create_tables, names


@pytest.fixture
def app(database: Database) -> Flask:
    """An app on the database, before any extension."""
    create_tables(database)
    app = Flask(__name__)
    app.config["SQLALCHEMY_ENGINES"] = {"default": database.url}
    return app


def test_it_is_adopted_before_there_is_an_app(app: Flask, database: Database) -> None:
    """Both extensions are made at import, and ``uow.session`` is as good an argument as ``db.session``."""
    db = flask_sqlalchemy_lite.SQLAlchemy()
    uow = UnitOfWork(session=lambda: db.session)
    registry = uow.session
    db.init_app(app)
    uow.init_app(app)

    with app.app_context(), transactional():
        registry.add(Item(name="a"))
        assert registry() is db.session

    assert names(database) == ["a"]


def test_outside_a_context_its_session_is_refused_as_ours(app: Flask) -> None:
    """UOW201 instead of a ``RuntimeError`` from within."""
    db = flask_sqlalchemy_lite.SQLAlchemy(app)
    uow = UnitOfWork(app, session=lambda: db.session)

    with pytest.raises(RuleViolationError, match=r"\[UOW201\] uow\.session was used outside an app context"):
        uow.session()


def test_its_session_cannot_be_made_with_options(app: Flask) -> None:
    """Their owner makes them: a call with arguments is refused with the reason."""
    db = flask_sqlalchemy_lite.SQLAlchemy(app)
    uow = UnitOfWork(app, session=lambda: db.session)

    with app.app_context(), pytest.raises((UnitOptionsError, sa.exc.InvalidRequestError), match="session"):
        uow.session(autoflush=False)


def test_another_of_its_sessions_is_nobodys(app: Flask, database: Database) -> None:
    """Only what the function returns is adopted: a named session of the same library commits by hand."""
    db = flask_sqlalchemy_lite.SQLAlchemy(app)
    uow = UnitOfWork(app, session=lambda: db.session)

    with app.app_context():
        other = db.get_session("other")
        other.add(Item(name="by hand"))
        other.commit()
        with transactional(propagation="requires_new"):
            uow.session.add(Item(name="unit"))
            assert db.get_session("other") is other

    assert names(database) == ["by hand", "unit"]


@pytest.mark.parametrize("keeper", ["one for ever", "one per context"])
def test_a_session_that_its_owner_keeps_elsewhere_cannot_be_replaced(database: Database, keeper: str) -> None:
    """``requires_new`` says so, instead of working on the outer session; the outer unit goes on."""
    create_tables(database)
    app = Flask(__name__)
    engine = sa.create_engine(database.url)
    kept: dict[object, Session] = {}

    def current() -> Session:
        key = app_ctx._get_current_object() if keeper == "one per context" else None  # type: ignore[attr-defined]
        return kept.setdefault(key, Session(engine))

    uow = UnitOfWork(app, session=current)
    with app.app_context():
        session = current()
        with transactional():
            with pytest.raises(UnitOptionsError, match="cannot be replaced"), transactional(propagation="requires_new"):
                pass
            assert uow.session() is session
            uow.session.add(Item(name="outer"))
        session.close()
    engine.dispose()

    assert names(database) == ["outer"]
