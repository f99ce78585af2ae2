"""The README: what it shows runs as printed, and its tables say what the code does."""

import ast
import contextlib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask_sqlalchemy
import flask_sqlalchemy_lite
import pytest
import sqlalchemy as sa
from docutils import core, nodes  # type: ignore[import-untyped]
from flask import Flask
from sqlalchemy import orm

from flask_uow import UnitOfWork, ride, transactional
from flask_uow._cli import db_session_stats
from flask_uow._options import Propagation, Relation, UnitOptions, relation
from flask_uow._rules import RULES
from flask_uow._settings import _CHECKS, Settings, read_settings
from flask_uow._transactional import Options
from flask_uow._units import Ending, ending
from flask_uow.exceptions import ConfigurationError, RuleViolationError, UnitOfWorkError
from sample.bank import create_app
from tests.databases import SQLiteDatabase
from tests.faults.test_riding_units import TRIPS
from tests.models import Item, create_tables, make_app, names
from tests.quick_start import blocks_under, read_quick_start
from tests.reader import parse_curl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.rst").read_text(encoding="utf-8")
IN_DEPTH = (ROOT / "docs" / "in-depth.rst").read_text(encoding="utf-8")
TIMEOUT_S = 30.0

# A value of each key that is not its default.
OTHER_VALUES: dict[str, object] = {
    "UOW_COMMIT_INSIDE_UNIT": "flush",
    "UOW_RULES": "off",
    "UOW_ROLLBACK_ON_STATUS": 400,
    "UOW_RETRIES": 2,
    "UOW_READER_URI": "postgresql://reader/readme",
    "UOW_READ_YOUR_WRITES": "time",
    "UOW_READ_YOUR_WRITES_SECONDS": 1.5,
    "UOW_ATOMIC_REQUESTS": True,
    "UOW_TWO_PHASE": True,
    "UOW_RIDE": False,
    "UOW_LABEL_SERVER": False,
    "UOW_MAX_UNIT_SECONDS": 1.5,
    "UOW_MAX_IDLE_SECONDS": 1.5,
    "UOW_STATS": False,
    "UOW_STATS_DIR": "stats",
    "UOW_SERVER_TIMING": True,
}

BODIES = {
    "returns": {"has_raised": False, "is_kept": False},
    "raises what no_rollback_for names": {"has_raised": True, "is_kept": True},
    "raises anything else": {"has_raised": True, "is_kept": False},
}
# Whether it is failed, and whether it is set to roll back.
UNITS: dict[str, set[tuple[bool, ...]]] = {
    "healthy": {(False, False)},
    "set to roll back": {(False, True), (True, True)},
    "failed": {(True, False)},
    "failed, or set to roll back": {(True, False), (False, True), (True, True)},
    "any": set(itertools.product([False, True], repeat=2)),
}
ENDINGS = {
    "commit, and the value is returned": Ending.COMMIT,
    "commit, and the exception goes on": Ending.COMMIT,
    "rollback, and the value is returned": Ending.ROLLBACK,
    "rollback, and the exception goes on": Ending.ROLLBACK,
    "rollback, and UnitFailedError": Ending.FAIL,
}

# Which of the counted bodies each row of the round trips is about.
COUNTED = {
    "one SELECT, read_only=True": ("one_select",),
    "one SELECT, or one INSERT": ("one_select_that_may_write", "one_insert"),
    "INSERT, three nested units with one statement each": ("nested_inserts", "nested_selects"),
    "INSERT, a nested unit that fails, INSERT": ("nested_failure", "nested_duplicate"),
    "one INSERT, SERIALIZABLE and with a time limit": ("options",),
    "SELECT, INSERT, commit, a template renders ten": ("rendering",),
}

RELATIONS = {
    Relation.BEGIN: "begins",
    Relation.SAVEPOINT: "savepoint",
    Relation.JOIN: "joins",
    Relation.INDEPENDENT: "independent",
    Relation.WITHOUT: "runs without",
    Relation.SUSPEND: "suspends",
}


class Base(orm.DeclarativeBase):
    """Of the models that the README's first example is about."""


class Account(Base):
    """What money lies on."""

    __tablename__ = "account"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    balance: orm.Mapped[int]


@pytest.fixture(scope="module")
def document() -> Any:
    """The README as docutils reads it; a warning is an error."""
    return core.publish_doctree(README, settings_overrides={"halt_level": 2, "report_level": 2})


@pytest.fixture(scope="module")
def in_depth() -> Any:
    """What the README has no room for, in the same way."""
    return core.publish_doctree(IN_DEPTH, settings_overrides={"halt_level": 2, "report_level": 2})


@pytest.fixture
def database(tmp_path: Path) -> SQLiteDatabase:
    """An empty SQLite file."""
    return SQLiteDatabase(tmp_path / "readme.sqlite")


# ---- the page


def test_the_page_is_short_and_renders(document: Any) -> None:
    """A front page of less than 250 lines."""
    assert README.count("\n") < 250
    assert not list(document.findall(nodes.problematic))


def test_every_picture_lies_beside_it(document: Any) -> None:
    """The addresses are relative, so that a clone shows them without a network."""
    pictures = [image["uri"] for image in document.findall(nodes.image)]

    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_every_make_target_exists() -> None:
    """What the page tells to make, the Makefile can make, and the help knows."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"``make ([a-z-]+)``", README))

    assert {"sample", "sample-postgres", "test", "test-browser", "bench"} <= named <= targets


# ---- what runs


def test_the_first_example_does_what_its_comments_say(document: Any, database: SQLiteDatabase) -> None:
    """The same call loses money in the one form, and nothing in the other."""
    without, with_unit = blocks_under(document, "flask_uow")[0].split("\n\n")

    assert _balance_after(database, without, commits=True) == 70
    assert _balance_after(database, with_unit, commits=False) == 100


def test_the_quick_start_runs_as_printed(tmp_path: Path) -> None:
    """Its program, its commands and its requests, in an empty folder and with a real server."""
    printed = read_quick_start(README).follow(tmp_path)

    assert printed.count("Tell the owner of account 2") == 1
    rows = SQLiteDatabase(tmp_path / "instance" / "bank.sqlite").rows("SELECT id, balance FROM account ORDER BY id")
    assert rows == [(1, 70), (2, 30)]


def test_the_samples_requests_are_answered_as_the_comments_say(
    document: Any, database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One after the other, and the pages that belong to them."""
    client = _open_bank(database, monkeypatch, tmp_path).test_client()
    lines = blocks_under(document, "The sample")[0].replace("\\\n", "").splitlines()
    variables = dict(word.split("=", 1) for word in shlex.split(lines[0]))
    requests = [parse_curl(line, variables) for line in lines[1:]]
    pages = re.findall(r"``(/[^`]*)``", README)

    # Read to its end, as curl does: a stream that nobody closes would end its context in the middle of another test.
    answers = [client.open(r.path, method=r.method, headers=r.headers, data=r.body, buffered=True) for r in requests]

    assert [answer.status_code for answer in answers] == [request.status for request in requests]
    assert [check["refused"] is None for check in (answers[4].json or {})["checks"]] == [True, False]
    assert len((answers[7].json or {})["lines"]) == 4
    assert len(pages) == 4
    assert {client.get(page).status_code for page in pages} == {200}


def test_the_samples_commands_run(database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the order in which they are named."""
    sentence = re.search(r"``\.venv/bin/flask --app sample\.bank bank`` has the commands (.*)\.$", README, re.MULTILINE)
    assert sentence
    runner = _open_bank(database, monkeypatch, tmp_path).test_cli_runner()

    results = [runner.invoke(args=["bank", *command.split()]) for command in re.findall(r"``(.*?)``", sentence[1])]

    assert [result.exit_code for result in results] == [0, 0, 0]
    assert "1000 customers came in" in results[1].output


@pytest.mark.parametrize("library", ["flask-sqlalchemy", "flask-sqlalchemy-lite", "sessionmaker"])
def test_the_lines_of_adoption_adopt(in_depth: Any, database: SQLiteDatabase, library: str) -> None:
    """With each of them a unit commits, and another one rolls back."""
    lines = blocks_under(in_depth, "Sessions of others")[0].splitlines()
    line = lines[["flask-sqlalchemy", "flask-sqlalchemy-lite", "sessionmaker"].index(library)]
    app = Flask(__name__)
    create_tables(database)

    with _owner(app, library, database) as owner:
        uow = eval(line, {"app": app, "UnitOfWork": UnitOfWork, **owner})
        with app.app_context():
            with transactional():
                uow.session.add(Item(name="kept"))
            with pytest.raises(ZeroDivisionError, match="division"):
                with transactional():
                    uow.session.add(Item(name="lost"))
                    uow.session.flush()
                    raise ZeroDivisionError("division")

    assert names(database) == ["kept"]


def test_the_line_for_an_engine_made_elsewhere_runs(in_depth: Any, database: SQLiteDatabase) -> None:
    """It returns the engine, which is left alone where nothing can ride."""
    line = blocks_under(in_depth, "Sessions of others")[0].splitlines()[3]
    engine = sa.create_engine(database.url)

    assert eval(line, {"ride": ride, "engine": engine}) is engine


# ---- units


def test_the_table_of_endings_is_the_codes(document: Any) -> None:
    """Each case stands in one row, and ends as the row says."""
    rows = _table(document, "the body")
    cases = [(body, case, outcome) for body, unit, outcome in rows for case in sorted(UNITS[unit])]

    assert sorted((body, case) for body, case, _ in cases) == sorted(itertools.product(BODIES, UNITS["any"]))
    for body, (is_failed, is_rollback_only), outcome in cases:
        decided = ending(**BODIES[body], is_failed=is_failed, is_rollback_only=is_rollback_only)
        assert decided is ENDINGS[outcome], (body, is_failed, is_rollback_only)


def test_the_table_of_propagations_is_the_codes(document: Any) -> None:
    """Each propagation, outside and inside of a unit."""
    rows = _table(document, "propagation")

    assert [name for name, _, _ in rows] == [propagation.value for propagation in Propagation]
    assert UnitOptions().propagation.value == rows[0][0]
    assert "default" in rows[0][2]
    for name, outside, inside in rows:
        assert outside == _relation(name, None)
        assert inside.startswith(_relation(name, "POST /transfers"))


def test_every_option_is_named() -> None:
    """All that ``transactional`` takes, and nothing else."""
    paragraph = README[README.index("The other options") : README.index("Hooks: ")]

    named = re.findall(r"``([a-z_]+)``", re.sub(r"\(.*?\)", "", paragraph, flags=re.DOTALL))

    assert sorted(named) == sorted(name for name in Options.__annotations__ if name != "propagation")


# ---- round trips


def test_the_table_of_round_trips_is_what_the_proxy_counts(in_depth: Any) -> None:
    """Each figure of ours is one that the tests count, on both drivers."""
    counted = {body.__name__: trips for body, trips in TRIPS}

    rows = _table(in_depth, "what a request does")
    assert [what for what, *_ in rows] == list(COUNTED)
    for what, by_hand, with_ping, ours in rows:
        assert {counted[name] for name in COUNTED[what]} == {int(ours)}, what
        assert int(ours) < int(by_hand) < int(with_ping)


# ---- configuration


def test_every_key_is_named_once(document: Any) -> None:
    """All of them are in the table."""
    databases = ["SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_BINDS", "SQLALCHEMY_ENGINE_OPTIONS"]

    assert sorted(key for key, _, _ in _table(document, "key")) == sorted([*databases, *_CHECKS])
    assert sorted(OTHER_VALUES) == sorted(_CHECKS)


def test_the_defaults_are_the_codes(document: Any) -> None:
    """To set a default changes nothing, and what is required is."""
    for key, default, _ in _table(document, "key"):
        if default == "required":
            with pytest.raises(ConfigurationError, match=f"{key} is not set"):
                read_settings({}, owns_engines=True)
        else:
            assert _settings(**{key: ast.literal_eval(default)}) == _settings()


@pytest.mark.parametrize(("key", "value"), OTHER_VALUES.items())
def test_every_key_is_in_effect(key: str, value: object) -> None:
    """Another value than the default changes what is read."""
    assert _settings(**{key: value}) != _settings()


def test_the_pools_defaults_are_the_codes(database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``create_engine`` gets them."""
    given: dict[str, object] = {}
    create_engine = sa.create_engine

    def note(url: sa.URL, **options: Any) -> sa.Engine:
        given.update(options)
        return create_engine(url, **options)

    monkeypatch.setattr(sa, "create_engine", note)
    make_app(database)

    named = dict(re.findall(r"``(pool_\w+|max_overflow)=(\w+)``", README + IN_DEPTH))
    assert len(named) == 5
    assert {name: ast.literal_eval(value) for name, value in named.items()} == {name: given[name] for name in named}


# ---- rules


def test_the_table_of_rules_is_the_codes(document: Any) -> None:
    """Code, title, source, and what this version does about it."""
    noticed = ("by mode", "always an error")
    expected = [[rule.code, rule.title, rule.origin, noticed[rule.is_fatal]] for rule in RULES.values()]

    assert _table(document, "code") == expected


def test_the_text_of_a_violation_is_the_codes(in_depth: Any, database: SQLiteDatabase) -> None:
    """But for the place, which is this file."""
    app = make_app(database)

    with app.app_context(), pytest.raises(RuleViolationError, match="UOW101") as caught:
        with transactional(label="POST /transfers") as unit:
            unit.session.commit()

    shown, raised = blocks_under(in_depth, "What a violation says")[0].splitlines(), str(caught.value).splitlines()
    assert [shown[0], shown[2]] == [raised[0], raised[2]]
    assert re.fullmatch(r"  where: \S+\.py:\d+ in \w+", shown[1])
    assert re.fullmatch(r"  where: \S+\.py:\d+ in \w+", raised[1])


# ---- the command


def test_every_option_of_the_command_is_named() -> None:
    """And none that it does not have."""
    section = README[README.index("The command\n") : README.index("The sample\n")]
    known = {name for option in db_session_stats.params for name in option.opts}

    assert set(re.findall(r"--[a-z][a-z-]+", section)) == known
    assert db_session_stats.name == "db-session-stats"


# ---- what is on the page


def _table(document: Any, first_head: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this head."""
    for table in document.findall(nodes.table):
        head, *rows = [[entry.astext() for entry in row.children] for row in table.findall(nodes.row)]
        if head[0] == first_head:
            return rows
    raise AssertionError(f"There is no table whose first column is {first_head!r}.")


# ---- what is tried


def _balance_after(database: SQLiteDatabase, code: str, *, commits: bool) -> int:
    """Return what the source holds after a transfer of 30, with a helper that commits by hand or as a unit."""
    database.file.unlink(missing_ok=True)
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    uow = UnitOfWork(app)

    def record(*_: object) -> None:
        uow.session.add(Account(balance=0))
        if commits:
            uow.session.commit()

    def deposit(*_: object) -> None:
        raise LookupError("no such account")

    scope: dict[str, Any] = {"transactional": transactional, "db": SimpleNamespace(session=uow.session)}
    scope |= {"record": record if commits else transactional(record), "deposit": deposit}
    exec(code, scope)
    with app.app_context():
        with transactional():
            Base.metadata.create_all(uow.session.connection())
            uow.session.add(source := Account(id=1, balance=100))
        with pytest.raises(LookupError, match="no such account"):
            scope["transfer"](source, None, 30)
    return int(database.rows("SELECT balance FROM account WHERE id = 1")[0][0])


def _open_bank(database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Flask:
    """Open the bank as ``make sample`` does."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    app = create_app({"TESTING": True, "BANK_OUTBOX": str(tmp_path / "outbox.jsonl")})
    runner = app.test_cli_runner()
    results = [runner.invoke(args=["bank", *command]) for command in (["init"], ["seed", "--customers", "20"])]
    assert [result.exit_code for result in results] == [0, 0]
    return app


@contextlib.contextmanager
def _owner(app: Flask, library: str, database: SQLiteDatabase) -> Iterator[dict[str, object]]:
    """Give what a line of adoption names: the library's object, or a factory."""
    if library == "sessionmaker":
        engine = sa.create_engine(database.url)
        yield {"factory": orm.sessionmaker(engine)}
        engine.dispose()
        return
    app.config.update(SQLALCHEMY_DATABASE_URI=database.url, SQLALCHEMY_ENGINES={"default": database.url})
    make: Callable[[Flask], Any] = flask_sqlalchemy.SQLAlchemy
    yield {"db": make(app) if library == "flask-sqlalchemy" else flask_sqlalchemy_lite.SQLAlchemy(app)}


def _relation(propagation: str, active: str | None) -> str:
    try:
        return RELATIONS[relation(UnitOptions.checked({"propagation": propagation}), active)]
    except UnitOfWorkError as error:
        return type(error).__name__


def _settings(**config: object) -> Settings:
    return read_settings({"SQLALCHEMY_DATABASE_URI": "postgresql://host/readme", **config}, owns_engines=True)
