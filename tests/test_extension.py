"""``UnitOfWork``: what it takes, what it serves, and what works before it serves anything."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event, orm
from sqlalchemy.orm import Session

import flask_uow
from flask_uow import UnitOfWork, transactional
from flask_uow.exceptions import ConfigurationError, RuleViolationError
from tests.databases import Database
from tests.models import Base, Item, checked_out, create_tables, make_app, names


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    """An engine that is the test's own."""
    create_tables(database)
    engine = sa.create_engine(database.url)
    yield engine
    engine.dispose()


class Factory:
    """What libraries such as factory_boy and marshmallow do: keep the registry, use it when asked for a row."""

    def __init__(self, model: type[Base], sqlalchemy_session: orm.scoped_session[Session]) -> None:
        self.model = model
        self.sqlalchemy_session = sqlalchemy_session

    def create(self, **values: Any) -> Base:
        """Add and flush a row."""
        entity = self.model(**values)
        self.sqlalchemy_session.add(entity)
        self.sqlalchemy_session.flush()
        return entity


# ---- apps


def test_the_package_has_the_names_of_its_contract() -> None:
    """They are all that the root exports, and ``stats`` and ``testing`` come when they are asked for."""
    expected = {"UnitOfWork", "Unit", "Propagation", "transactional", "current_unit", "ride"}

    assert set(flask_uow.__all__) == expected | {"exceptions", "signals", "stats", "testing"}
    assert all(hasattr(flask_uow, name) for name in flask_uow.__all__)
    assert not hasattr(flask_uow, "no_such_name")


def test_an_app_can_be_given_at_once(database: Database) -> None:
    """``UnitOfWork(app)`` is ``UnitOfWork()`` and ``init_app(app)``."""
    create_tables(database)
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    uow = UnitOfWork(app)

    with app.app_context(), transactional():
        uow.session.add(Item(name="a"))

    assert app.extensions["uow"] is uow
    assert names(database) == ["a"]


def test_one_extension_serves_two_apps(database: Database, second_database: Database) -> None:
    """Each context works on the engines, the session and the settings of its own app."""
    uow = UnitOfWork()
    first, second = make_app(database, uow), make_app(second_database, uow, UOW_COMMIT_INSIDE_UNIT="flush")

    @uow.transactional
    def add(name: str) -> None:
        uow.session.add(Item(name=name))
        uow.session.commit()

    with second.app_context():
        add("second")
        second_engine = uow.engine
    with first.app_context():
        with pytest.raises(RuleViolationError, match="UOW101"):
            add("first")
        assert uow.engine is not second_engine
        with transactional():
            uow.session.add(Item(name="first again"))

    assert (first.extensions["uow"], second.extensions["uow"]) == (uow, uow)
    assert names(database) == ["first again"]
    assert names(second_database) == ["second"]


def test_two_extensions_serve_two_apps(database: Database, second_database: Database) -> None:
    """``transactional`` finds the extension of the app whose context it is called in."""
    first_uow, second_uow = UnitOfWork(), UnitOfWork()
    first, second = make_app(database, first_uow), make_app(second_database, second_uow)

    for app, uow in ((first, first_uow), (second, second_uow)):
        with app.app_context(), transactional() as unit:
            assert unit.session is uow.session()
            uow.session.add(Item(name="of its own"))

    assert names(database) == names(second_database) == ["of its own"]


def test_a_second_extension_on_one_app_is_refused(app: Flask, uow: UnitOfWork) -> None:
    """Two would commit apart from each other; the first one stays."""
    with pytest.raises(ConfigurationError, match=r"App 'tests\.models' has a UnitOfWork already"):
        UnitOfWork(app)

    assert app.extensions["uow"] is uow


def test_the_same_extension_is_refused_a_second_time(app: Flask, uow: UnitOfWork) -> None:
    """Its engines are not made twice."""
    with pytest.raises(ConfigurationError, match="has a UnitOfWork already"):
        uow.init_app(app)


def test_an_app_that_was_refused_can_be_mended(database: Database, uow: UnitOfWork) -> None:
    """A wrong configuration leaves nothing behind in the app."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=database.url, UOW_RETRIES=-1)
    with pytest.raises(ConfigurationError, match="UOW_RETRIES"):
        uow.init_app(app)
    app.config["UOW_RETRIES"] = 1

    uow.init_app(app)

    assert app.extensions["uow"] is uow


def test_an_app_of_another_extension_is_not_served(app: Flask, database: Database) -> None:
    """Its session says so, with the likely cause, instead of using the engines of another app."""
    stranger = UnitOfWork()

    with app.app_context():
        with pytest.raises(ConfigurationError, match="is not served by this UnitOfWork"):
            stranger.session()
        with pytest.raises(ConfigurationError, match="is not served by this UnitOfWork"):
            _ = stranger.engine


def test_an_app_without_an_extension_is_told_so() -> None:
    """``transactional`` needs one."""
    with Flask(__name__).app_context(), pytest.raises(ConfigurationError, match="has no UnitOfWork"), transactional():
        pass


def test_an_app_is_served_without_a_context(app: Flask, uow: UnitOfWork) -> None:
    """``init_app`` pushes none and needs none, and connects to nothing."""
    unreachable = Flask("unreachable")
    unreachable.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg2://nobody@192.0.2.1:1/nowhere"

    uow.init_app(unreachable)

    assert unreachable.extensions["uow"] is uow


def test_an_app_is_served_within_its_context(database: Database) -> None:
    """A context that was pushed before ``init_app`` has a session as well, and gives it back."""
    create_tables(database)
    app, uow = Flask(__name__), UnitOfWork()
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url

    with app.app_context():
        uow.init_app(app)
        assert uow.session.scalar(sa.text("SELECT 1")) == 1
        assert checked_out(app) == 1

    assert checked_out(app) == 0


def test_the_engines_are_those_of_the_current_app(app: Flask, uow: UnitOfWork) -> None:
    """By name; ``engine`` is the default one."""
    with app.app_context():
        assert list(uow.engines) == ["default"]
        assert uow.engine is uow.engines["default"] is uow.get_engine("default") is uow.get_engine(None)
        uow.engines.clear()
        assert uow.engines, "The caller's dict is a copy."
        with pytest.raises(ConfigurationError, match="There is no engine 'reports'; the engines are: 'default'"):
            uow.get_engine("reports")


def test_outside_a_context_there_is_no_engine(app: Flask, uow: UnitOfWork) -> None:
    """It belongs to an app, and which one is meant is not known."""
    with pytest.raises(RuleViolationError, match=r"\[UOW201\] uow\.engines was used outside an app context"):
        _ = uow.engine


def test_engines_of_an_owner_are_not_ours(engine: sa.Engine) -> None:
    """With ``sessionmaker=`` and ``session=`` there are none to be asked for."""
    app = Flask(__name__)
    uow = UnitOfWork(app, sessionmaker=orm.sessionmaker(engine))

    with app.app_context(), pytest.raises(ConfigurationError, match="they belong to the session's owner"):
        _ = uow.engine


# ---- before init_app


def test_a_library_takes_the_session_before_there_is_an_app(database: Database, uow: UnitOfWork) -> None:
    """``sqlalchemy_session=uow.session`` at import time works on the context's session later."""
    factory = Factory(Item, sqlalchemy_session=uow.session)
    app = make_app(database, uow)

    with app.app_context(), transactional() as unit:
        item = factory.create(name="made")
        assert sa.inspect(item).session is unit.session

    assert names(database) == ["made"]


def test_a_query_property_is_made_before_there_is_an_app(database: Database, uow: UnitOfWork) -> None:
    """``Model.query`` of ``query_property()`` reads through the context's session."""

    class WithQuery:
        query = uow.session.query_property()

    class Model(WithQuery, orm.DeclarativeBase):
        pass

    class Row(Model):
        __tablename__ = "item"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    app = make_app(database, uow)
    with app.app_context(), transactional():
        uow.session.add(Row(name="seen"))
        assert [row.name for row in Row.query.all()] == ["seen"]


def test_an_options_change_before_there_is_an_app_holds(database: Database, uow: UnitOfWork) -> None:
    """``uow.session.configure`` reaches the sessions that are made later."""
    uow.session.configure(autoflush=False, info={"made by": "test"})
    app = make_app(database, uow)

    with app.app_context():
        assert uow.session.autoflush is False
        assert uow.session.info["made by"] == "test"


def listen_after_flush(target: Any) -> list[str]:
    """Write down what is flushed in the target's sessions."""
    flushed: list[str] = []

    def after_flush(session: Session, context: object) -> None:
        flushed.extend(entity.name for entity in session.new)

    event.listen(target, "after_flush", after_flush)
    return flushed


def test_events_of_the_session_fire_whenever_they_were_asked_for(database: Database, uow: UnitOfWork) -> None:
    """``event.listen(uow.session, ...)`` works before ``init_app``, after it, and while a session is open."""
    before = listen_after_flush(uow.session)
    app = make_app(database, uow)
    after = listen_after_flush(uow.session)

    with app.app_context(), transactional():
        uow.session.add(Item(name="a"))
        uow.session.flush()
        late = listen_after_flush(uow.session)
        uow.session.add(Item(name="b"))

    assert (before, after, late) == (["a", "b"], ["a", "b"], ["b"])


def test_events_that_are_asked_for_between_two_sessions_fire(app: Flask, uow: UnitOfWork) -> None:
    """A session hears of listeners that came after the first session of its class."""
    with app.app_context(), transactional():
        uow.session.add(Item(name="a"))
    heard = listen_after_flush(uow.session)
    with app.app_context(), transactional():
        uow.session.add(Item(name="b"))

    assert heard == ["b"]


def test_events_of_a_session_that_listens_to_itself_fire(database: Database) -> None:
    """A session class may listen to its own sessions as it makes them."""
    heard: list[bool] = []

    class ListeningSession(Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            event.listen(self, "before_commit", self.note)

        def note(self, session: Session) -> None:
            heard.append(session is self)

    uow = UnitOfWork(session_options={"class_": ListeningSession})
    app = make_app(database, uow)
    for name in ("a", "b", "c"):
        with app.app_context(), transactional():
            uow.session.add(Item(name=name))

    assert heard == [True] * 3


def test_events_of_one_extension_are_its_own(database: Database, second_database: Database) -> None:
    """What listens to one extension's sessions hears nothing of another's."""
    first_uow, second_uow = UnitOfWork(), UnitOfWork()
    heard = listen_after_flush(first_uow.session)
    app = make_app(second_database, second_uow)

    with app.app_context(), transactional():
        second_uow.session.add(Item(name="not ours"))

    assert heard == []


def test_an_event_of_one_session_fires(app: Flask, uow: UnitOfWork) -> None:
    """``event.listen(uow.session(), ...)`` listens to the session of this context."""
    with app.app_context():
        heard = listen_after_flush(uow.session())
        with transactional():
            uow.session.add(Item(name="a"))
    with app.app_context(), transactional():
        uow.session.add(Item(name="b"))

    assert heard == ["a"]


# ---- options of sessions and engines


class CountingSession(Session):
    """A session class of an application."""

    def count(self, model: type[Base]) -> int:
        """Count the rows of a model."""
        return self.scalar(sa.select(sa.func.count()).select_from(model)) or 0


def test_a_session_class_of_ones_own_is_used(database: Database) -> None:
    """``session_options`` may name a class; its methods and the guard both work."""
    uow = UnitOfWork(session_options={"class_": CountingSession, "autoflush": False})
    app = make_app(database, uow)

    with app.app_context(), transactional():
        session = uow.session()
        assert isinstance(session, CountingSession)
        assert type(session).__name__ == "CountingSession"
        assert session.autoflush is False
        uow.session.add(Item(name="a"))
        uow.session.flush()
        assert session.count(Item) == 1
        with pytest.raises(RuleViolationError, match="UOW101"):
            uow.session.commit()


def test_objects_can_be_expired_on_commit(database: Database) -> None:
    """``expire_on_commit`` is a default that ``session_options`` may change."""
    uow = UnitOfWork(session_options={"expire_on_commit": True})
    app = make_app(database, uow)

    with app.app_context():
        item = Item(name="a")
        with transactional():
            uow.session.add(item)
        assert sa.inspect(item).expired_attributes >= {"name"}


def test_engine_options_of_the_configuration_win(database: Database) -> None:
    """``engine_options=`` are the extension's defaults, ``SQLALCHEMY_ENGINE_OPTIONS`` the app's word."""
    uow = UnitOfWork(engine_options={"pool_size": 2, "max_overflow": 3})
    app = make_app(database, uow, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 4})

    with app.app_context():
        pool = uow.engine.pool
    assert isinstance(pool, sa.QueuePool)
    assert (pool.size(), pool._max_overflow) == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"session": orm.scoped_session(orm.sessionmaker()), "sessionmaker": orm.sessionmaker()},
            "both session= and sessionmaker=",
            id="two owners",
        ),
        pytest.param({"session": "db.session"}, "UnitOfWork.session='db.session'", id="a text"),
        pytest.param({"session": Session()}, "expected a scoped_session", id="a session itself"),
        pytest.param({"sessionmaker": Session}, "UnitOfWork.sessionmaker=", id="a session's class"),
        pytest.param({"engine_options": []}, "UnitOfWork.engine_options=.*expected a dict", id="a list"),
        pytest.param(
            {"sessionmaker": orm.sessionmaker(), "session_options": {"autoflush": False}},
            "session_options= for sessions that it does not make",
            id="options of a factory that is another's",
        ),
        pytest.param(
            {"session": Session, "engine_options": {"echo": True}},
            "engine_options= for sessions that it does not make",
            id="options of engines that are another's",
        ),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: dict[str, Any], message: str) -> None:
    """At once, in one sentence, with what to pass instead."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        UnitOfWork(**arguments)

    assert caught.value.fix


# ---- a factory of one's own


def test_a_factory_can_be_configured_later(engine: sa.Engine, database: Database) -> None:
    """``sessionmaker=`` is empty when the extension is made, and has its engine when the first session is."""
    factory = orm.sessionmaker()
    uow = UnitOfWork(sessionmaker=factory)
    app = Flask(__name__)
    uow.init_app(app)
    factory.configure(bind=engine)

    with app.app_context():
        with transactional() as unit:
            session = uow.session()
            assert session.get_bind() is engine
            assert unit.session is session
            uow.session.add(Item(name="a"))
        with pytest.raises(RuleViolationError, match="UOW101"), transactional():
            uow.session.commit()
        uow.session.execute(sa.text("SELECT 1"))

    assert isinstance(engine.pool, sa.QueuePool)
    assert engine.pool.checkedout() == 0
    assert names(database) == ["a"]


def test_a_factory_keeps_its_own_events_and_class(engine: sa.Engine) -> None:
    """What listens to the factory or to its class hears the sessions that are made through the extension."""
    factory = orm.sessionmaker(engine, class_=CountingSession)
    before = listen_after_flush(factory)
    uow = UnitOfWork(sessionmaker=factory)
    app = Flask(__name__)
    uow.init_app(app)
    after = listen_after_flush(uow.session)

    with app.app_context(), transactional():
        uow.session.add(Item(name="a"))
        late = listen_after_flush(factory)
        uow.session.flush()
        session = uow.session()
        assert isinstance(session, CountingSession)
        assert session.count(Item) == 1

    assert (before, after, late) == (["a"], ["a"], ["a"])


@pytest.mark.filterwarnings("ignore:.UOW110.")
def test_a_factory_serves_its_owner_as_before(engine: sa.Engine, database: Database) -> None:
    """Sessions that the owner makes of it by hand are under no guard, and no context takes them back."""
    factory = orm.sessionmaker(engine)
    app = Flask(__name__)
    UnitOfWork(app, sessionmaker=factory)

    with app.app_context(), factory() as session:
        with app.app_context(), transactional(read_only=True):
            session.add(Item(name="by hand"))
            session.commit()
        assert session.in_transaction() is False

    assert names(database) == ["by hand"]
