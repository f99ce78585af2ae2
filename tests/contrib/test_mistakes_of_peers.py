"""What other libraries of this kind have got wrong, each as a test, on the session of Flask-SQLAlchemy and on ours."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import flask_sqlalchemy
import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, current_unit, testing, transactional
from flask_uow.exceptions import RuleViolationError, RuleWarning, UnitFailedError, UnitOptionsError
from tests.databases import Database
from tests.models import Item, create_tables, make_app, names

on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@dataclass
class Place:
    """An app, its session, and its database.

    :ivar session: how the app's own code reaches its session.
    """

    app: Flask
    database: Database
    session: Callable[[], Session]

    def add(self, name: str) -> None:
        """Add a row and send it."""
        self.session().add(Item(name=name))
        self.session().flush()

    def committed(self) -> list[str]:
        """What a second connection sees."""
        return names(self.database)


@pytest.fixture(params=["ours", "Flask-SQLAlchemy"])
def make_place(request: pytest.FixtureRequest, database: Database) -> Callable[..., Place]:
    """A function that makes an app with configuration keys."""

    def make(**config: Any) -> Place:
        if request.param == "ours":
            uow = UnitOfWork()
            return Place(make_app(database, uow, **config), database, uow.session)
        create_tables(database)
        app = Flask("peer")
        app.config.update(SQLALCHEMY_DATABASE_URI=database.url, **({"TESTING": True} | config))
        db = flask_sqlalchemy.SQLAlchemy(app)
        UnitOfWork(app, session=db.session)
        return Place(app, database, db.session)

    return make


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Iterator[Place]:
    """An app with the default configuration."""
    place = make_place()
    yield place
    if "SQLAlchemy" in str(place.app.extensions.get("sqlalchemy", "")):
        with place.app.app_context():
            place.app.extensions["sqlalchemy"].engine.dispose()


def test_an_inner_failure_that_is_swallowed_undoes_the_inner_part_alone(place: Place) -> None:
    """A savepoint is a real one, also on a ``scoped_session``: a rival opens none there, and says nothing."""

    @transactional
    def inner() -> None:
        place.add("inner")
        raise ValueError("no")

    with place.app.app_context(), transactional():
        place.add("before")
        with pytest.raises(ValueError, match="no"):
            inner()
        place.add("after")

    assert place.committed() == ["after", "before"]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_the_request_after_an_exit_is_committed(place: Place, error: type[BaseException]) -> None:
    """A rival that counts its depth in the thread, and catches ``Exception``, never commits in that thread again."""

    @place.app.post("/<name>")
    @transactional
    def view(name: str) -> str:
        place.add(name)
        if name == "exit":
            raise error
        return name

    client = place.app.test_client()
    with pytest.raises(error):
        client.post("/exit")
    assert client.post("/next").status_code == 200

    assert place.committed() == ["next"]


def test_a_commit_by_hand_is_no_commit(place: Place) -> None:
    """What came before it is not kept if what comes after it fails."""
    with place.app.app_context(), pytest.raises(RuleViolationError, match="UOW101"), transactional():
        place.add("half")
        place.session().commit()

    assert place.committed() == []


@on_postgresql
def test_a_raw_delete_in_a_with_clause_is_a_write(place: Place) -> None:
    """A rival that looks at a statement's first word takes it for a SELECT: lost without a word, or let through."""
    place.database.execute("INSERT INTO item (name) VALUES ('there')")
    delete = sa.text("WITH gone AS (DELETE FROM item RETURNING name) SELECT name FROM gone")
    with testing.record(place.app) as recorded, place.app.app_context():
        place.session().execute(delete).all()
    with place.app.app_context(), pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
        place.session().execute(delete)
    assert place.committed() == ["there"]
    assert [violation.code for violation in recorded.violations] == ["UOW103"]

    with place.app.app_context(), transactional():
        place.session().execute(delete)
    assert place.committed() == []


def test_a_write_past_the_orm_is_a_write(place: Place) -> None:
    """``exec_driver_sql`` is seen as well: outside a unit it is lost aloud, inside it is committed."""
    insert = "INSERT INTO item (name) VALUES ('raw')"
    with testing.record(place.app) as recorded, place.app.app_context():
        place.session().connection().exec_driver_sql(insert)
    assert [violation.code for violation in recorded.violations] == ["UOW103"]
    assert place.committed() == []

    with place.app.app_context(), transactional():
        place.session().connection().exec_driver_sql(insert)
    assert place.committed() == ["raw"]


@pytest.mark.parametrize(
    "statement", ["COMMIT", "commit;", "/* it */ COMMIT", "END", "SELECT 1; COMMIT", "SAVEPOINT a; COMMIT"]
)
def test_a_commit_as_text_is_none(place: Place, statement: str) -> None:
    """It is refused before it is sent, and the unit is as it was."""
    with place.app.app_context(), transactional() as unit:
        place.add("half")
        with pytest.raises(RuleViolationError, match="UOW101"):
            place.session().execute(sa.text(statement))
        unit.set_rollback_only()

    assert place.committed() == []


def test_an_object_that_was_added_and_never_sent_is_missed(place: Place) -> None:
    """Nobody flushed it, so that no statement tells of it."""
    with testing.record(place.app) as recorded, place.app.app_context():
        place.session().execute(sa.select(Item)).all()
        place.session().add(Item(name="never sent"))

    (violation,) = recorded.violations
    assert violation.code == "UOW103"
    assert "1 new" in violation.what


def test_a_hook_of_a_savepoint_that_was_rolled_back_does_not_run(place: Place) -> None:
    """The mail of what never was is not sent."""
    sent: list[str] = []
    with place.app.app_context(), transactional() as outer:
        outer.after_commit(lambda: sent.append("outer"))
        with pytest.raises(ValueError, match="no"), transactional() as inner:
            inner.after_commit(lambda: sent.append("inner"))
            raise ValueError("no")

    assert sent == ["outer"]


@on_postgresql
def test_a_retry_inside_a_retry_multiplies_nothing(place: Place) -> None:
    """The outermost unit alone begins again, and its inner one with it."""
    attempts: list[tuple[str, int]] = []
    conflict = sa.text("DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$")

    @transactional(retries=2)
    def inner() -> None:
        attempts.append(("inner", current_unit.attempt))
        place.session().execute(conflict)

    @transactional(retries=2)
    def outer() -> None:
        attempts.append(("outer", current_unit.attempt))
        inner()

    with place.app.app_context(), pytest.raises(sa.exc.DBAPIError, match="conflict"):
        outer()

    assert attempts == [("outer", 1), ("inner", 1), ("outer", 2), ("inner", 1), ("outer", 3), ("inner", 1)]


@on_postgresql
@pytest.mark.parametrize("propagation", ["nested", "required", "mandatory", "supports"])
def test_an_isolation_that_a_join_asks_for_is_not_ignored(place: Place, propagation: Any) -> None:
    """The transaction runs already, with less: that is an error and no silence."""
    with place.app.app_context(), transactional():
        place.add("outer")
        with (
            pytest.raises(UnitOptionsError, match="SERIALIZABLE"),
            transactional(propagation=propagation, isolation="SERIALIZABLE"),
        ):
            pass


def test_what_no_rollback_for_names_commits_and_goes_on(place: Place) -> None:
    """The most specific class of the two options wins, whichever it is in."""

    class NotFoundError(LookupError):
        pass

    def write(name: str, error: type[Exception], **options: Any) -> None:
        with pytest.raises(error), transactional(**options):
            place.add(name)
            raise error

    with place.app.app_context():
        write("kept", LookupError, no_rollback_for=LookupError)
        write("kept as well", NotFoundError, no_rollback_for=LookupError)
        write("undone", NotFoundError, no_rollback_for=LookupError, rollback_for=NotFoundError)
        write("kept after all", NotFoundError, no_rollback_for=NotFoundError, rollback_for=LookupError)
        write("undone as ever", ValueError, no_rollback_for=LookupError)

    assert place.committed() == ["kept", "kept after all", "kept as well"]


@on_postgresql
def test_a_commit_that_fails_after_the_response_was_made_is_no_success(make_place: Callable[..., Place]) -> None:
    """A rival commits in ``after_request``, where a failure is a 200 that has kept nothing, or stops other handlers."""
    place = make_place(UOW_ATOMIC_REQUESTS=True, TESTING=False)
    place.database.execute(
        "CREATE FUNCTION refuse() RETURNS trigger AS 'BEGIN RAISE ''refused''; END' LANGUAGE plpgsql"
    )
    place.database.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    order: list[str] = []

    @place.app.post("/")
    def view() -> str:
        place.add("refused")
        return "fine"

    @place.app.after_request
    def note(response: Any) -> Any:
        order.append(f"after {response.status_code}")
        return response

    @place.app.errorhandler(500)
    def sorry(error: Exception) -> tuple[str, int]:
        order.append("sorry")
        return "sorry", 500

    response = place.app.test_client().post("/")

    assert (response.status_code, response.text) == (500, "sorry")
    assert order[:2] == ["after 200", "sorry"]
    assert place.committed() == []


def test_a_status_that_was_returned_vetoes(make_place: Callable[..., Place]) -> None:
    """A 503 that is returned rolls back like one that is raised."""
    place = make_place(UOW_ROLLBACK_ON_STATUS=500)

    @place.app.post("/<int:status>")
    @transactional
    def view(status: int) -> tuple[str, int]:
        place.add(str(status))
        return "", status

    client = place.app.test_client()
    assert [client.post(f"/{status}").status_code for status in (200, 404, 503)] == [200, 404, 503]

    assert place.committed() == ["200", "404"]


def test_a_failure_of_a_join_that_is_swallowed_is_no_commit(place: Place) -> None:
    """The joined part has failed, and cannot be undone alone: nothing is kept, and that is said."""
    with place.app.app_context(), pytest.raises(UnitFailedError) as caught, transactional():
        place.add("outer")
        with pytest.raises(ValueError, match="no"), transactional(propagation="required"):
            place.add("inner")
            raise ValueError("no")

    assert isinstance(caught.value.__cause__, ValueError)
    assert place.committed() == []


def test_a_rule_says_it_once_to_each_who_listens(make_place: Callable[..., Place]) -> None:
    """One warning, one signal, one count; Python's filters work on it by category and line."""
    place = make_place()
    with testing.record(place.app) as recorded, place.app.app_context():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            place.session().execute(sa.select(Item)).all()
            place.session().commit()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=RuleWarning)
            place.session().execute(sa.select(Item)).all()
            with pytest.raises(RuleWarning, match="UOW104"):
                place.session().commit()

    assert [str(each.message)[:8] for each in warned] == ["[UOW104]"]
    assert warned[0].filename == __file__
    assert [violation.code for violation in recorded.violations] == ["UOW104"] * 2
