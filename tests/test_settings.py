"""The configuration keys: what each accepts, and the one message for what it does not."""

import pickle
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork
from flask_uow._rules import RULES
from flask_uow._settings import read_settings
from flask_uow.exceptions import ConfigurationError
from flask_uow.signals import rule_violated

PASSWORD = "s3cret p@ss:w/rd"
IN_MEMORY = {"SQLALCHEMY_DATABASE_URI": "sqlite://"}
QUOTED = "postgresql://bob:" + PASSWORD
REPLICA = "postgresql://bob:s3cret@replica/bank"


async def veto_later(status: int) -> bool:
    """A veto that nobody would await."""
    return False


def database(uri: object) -> dict[str, object]:
    return {"SQLALCHEMY_DATABASE_URI": uri}


def reader(value: object, **more: object) -> dict[str, object]:
    return IN_MEMORY | {"UOW_READER_URI": value} | more


def connect() -> None:
    """A creator."""


def binds(value: object) -> dict[str, object]:
    return IN_MEMORY | {"SQLALCHEMY_BINDS": value}


def engine_options(value: object) -> dict[str, object]:
    return IN_MEMORY | {"SQLALCHEMY_ENGINE_OPTIONS": value}


def key(name: str, value: object) -> dict[str, object]:
    return IN_MEMORY | {name: value}


# A configuration, the key that its message quotes first, and the rest of the message's first line.
WRONG: Mapping[str, tuple[Mapping[str, object], str, str]] = {
    "no database": ({}, "SQLALCHEMY_DATABASE_URI", " is not set."),
    "database None": (database(None), "SQLALCHEMY_DATABASE_URI", " is not set."),
    "database empty": (database(""), "SQLALCHEMY_DATABASE_URI", " = '': expected a database URL such as"),
    "database a number": (database(5432), "SQLALCHEMY_DATABASE_URI", " = 5432: expected a database URL such as"),
    "database in bytes": (
        database(b"sqlite://"),
        "SQLALCHEMY_DATABASE_URI",
        " = b'sqlite://': expected a database URL",
    ),
    "database a path": (database("bank.db"), "SQLALCHEMY_DATABASE_URI", " = 'bank.db': not a database URL; expected"),
    "port no number": (
        database(f"{QUOTED}@host:port/bank"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'postgresql://bob:***@host:port/bank': not a database URL; expected",
    ),
    "dialect unknown": (
        database("prostgesql://bob:s3cret@host/bank"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'prostgesql://bob:***@host/bank': SQLAlchemy knows no dialect 'prostgesql'.",
    ),
    "dialect unknown, password in the query": (
        database("prostgesql://host/bank?password=s3cret&sslmode=require&sslpassword=s3cret"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'prostgesql://host/bank?password=***&sslmode=require&sslpassword=***': SQLAlchemy knows no dialect",
    ),
    "driver asynchronous": (
        database(sa.URL.create("postgresql+asyncpg", "bob", PASSWORD, "host")),
        "SQLALCHEMY_DATABASE_URI",
        " = 'postgresql+asyncpg://bob:***@host': an async driver cannot serve Flask's threads.",
    ),
    "driver not installed": (
        database("mssql+pymssql://bob:s3cret@host/bank"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'mssql+pymssql://bob:***@host/bank': the driver cannot be imported (No module named 'pymssql').",
    ),
    "engine options a list": (engine_options([]), "SQLALCHEMY_ENGINE_OPTIONS", " = []: expected a dict of keyword"),
    "engine options a text": (engine_options("echo"), "SQLALCHEMY_ENGINE_OPTIONS", " = 'echo': expected a dict of"),
    "engine options with a number for a name": (
        engine_options({5: True, "connect_args": {"password": PASSWORD}}),
        "SQLALCHEMY_ENGINE_OPTIONS",
        " = {5: True, 'connect_args': {'password': ***}}: expected a dict of keyword arguments for create_engine.",
    ),
    "connect_args a text": (
        engine_options({"connect_args": f"password='{PASSWORD}'"}),
        "SQLALCHEMY_ENGINE_OPTIONS['connect_args']",
        ' = "password=***": expected a dict of keyword arguments for the driver.',
    ),
    "connect_args an empty list": (
        engine_options({"connect_args": []}),
        "SQLALCHEMY_ENGINE_OPTIONS['connect_args']",
        " = []: expected a dict of keyword arguments for the driver.",
    ),
    "creator a number": (
        engine_options({"creator": 5}),
        "SQLALCHEMY_ENGINE_OPTIONS['creator']",
        " = 5: expected a function that returns a connection.",
    ),
    "pool_size a text": (
        engine_options({"pool_size": "5"}),
        "SQLALCHEMY_ENGINE_OPTIONS['pool_size']",
        " = '5': expected a whole number, 0 or above.",
    ),
    "pool_timeout a text": (
        engine_options({"pool_timeout": "5s"}),
        "SQLALCHEMY_ENGINE_OPTIONS['pool_timeout']",
        " = '5s': expected a number of seconds from 0 to ",
    ),
    "connect_args with a number for a name": (
        engine_options({"connect_args": {5: 5}}),
        "SQLALCHEMY_ENGINE_OPTIONS['connect_args']",
        " = {5: 5}: expected a dict of keyword arguments for the driver.",
    ),
    "pool_size negative": (
        engine_options({"pool_size": -5}),
        "SQLALCHEMY_ENGINE_OPTIONS['pool_size']",
        " = -5: expected a whole number, 0 or above.",
    ),
    "pool_timeout that cannot be waited for": (
        engine_options({"pool_timeout": 1e300}),
        "SQLALCHEMY_ENGINE_OPTIONS['pool_timeout']",
        " = 1e+300: expected a number of seconds from 0 to ",
    ),
    "pool_recycle no number": (
        engine_options({"pool_recycle": float("nan")}),
        "SQLALCHEMY_ENGINE_OPTIONS['pool_recycle']",
        " = nan: expected a number of seconds, or -1.",
    ),
    "pool_pre_ping a text": (
        engine_options({"pool_pre_ping": "no"}),
        "SQLALCHEMY_ENGINE_OPTIONS['pool_pre_ping']",
        " = 'no': expected True or False.",
    ),
    "paramstyle a number": (
        engine_options({"paramstyle": 5}),
        "SQLALCHEMY_ENGINE_OPTIONS['paramstyle']",
        " = 5: expected a parameter style of DB-API.",
    ),
    "no engine": (
        engine_options({"strategy": "mock", "executor": print}),
        "SQLALCHEMY_ENGINE_OPTIONS",
        " = {'strategy': 'mock', 'executor': <built-in function print>}: create_engine ",
    ),
    "dialect that is none": (
        database("sqlite+json://"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'sqlite+json://': SQLAlchemy kno",
    ),
    "a NUL in a path": (
        database("sqlite:///a\0b.db"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'sqlite:///a\\x00b.db': not a database URL",
    ),
    "a query that the driver cannot read": (
        database("sqlite:///bank.db?timeout=soon"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'sqlite:///bank.db?timeout=soon': the driver cannot read it (could not convert string to float: 'soon').",
    ),
    "engines that commit by themselves": (
        engine_options({"isolation_level": "AUTOCOMMIT"}),
        "SQLALCHEMY_ENGINE_OPTIONS['isolation_level']",
        " = 'AUTOCOMMIT': in AUTOCOMMIT each statement is committed by itself, and no unit could be undone.",
    ),
    "isolation unknown": (
        engine_options({"isolation_level": "SNAPSHOT"}),
        "SQLALCHEMY_ENGINE_OPTIONS['isolation_level']",
        " = 'SNAPSHOT': expected one of READ UNCOMMITTED, READ COMMITTED, REPEATABLE READ, SERIALIZABLE.",
    ),
    "a URL that the driver cannot read": (
        database("sqlite://host/bank.db"),
        "SQLALCHEMY_DATABASE_URI",
        " = 'sqlite://host/bank.db': the driver cannot read it (Invalid SQLite URL: sqlite://host/bank.db).",
    ),
    "binds a text": (binds("sqlite://"), "SQLALCHEMY_BINDS", " = 'sqlite://': expected a dict of name to URL"),
    "binds a list": (
        binds([f"{QUOTED}@host/bank"]),
        "SQLALCHEMY_BINDS",
        " = ['postgresql://bob:***@host/bank']: expected a dict of name to URL or options.",
    ),
    "bind's name a number": (binds({1: "sqlite://"}), "SQLALCHEMY_BINDS", " = 1: a bind's name must be a text"),
    "bind's name empty": (binds({"": "sqlite://"}), "SQLALCHEMY_BINDS", " = '': a bind's name must be a text"),
    "bind's name taken": (
        binds({"default": "sqlite://"}),
        "SQLALCHEMY_BINDS",
        " = 'default': this name is the database of SQLALCHEMY_DATABASE_URI.",
    ),
    "bind None": (binds({"audit": None}), "SQLALCHEMY_BINDS['audit']", " = None: expected a database URL such as"),
    "bind no URL": (binds({"audit": "audit.db"}), "SQLALCHEMY_BINDS['audit']", " = 'audit.db': not a database URL"),
    "bind without a URL": (
        binds({"audit": {"URL": f"{QUOTED}@host"}}),
        "SQLALCHEMY_BINDS['audit']",
        " = {'URL': 'postgresql://bob:***@host'}: the options have no 'url'.",
    ),
    "bind with a wrong URL": (
        binds({"audit": {"url": "nowhere"}}),
        "SQLALCHEMY_BINDS['audit']['url']",
        " = 'nowhere': not a database URL",
    ),
    "bind with a wrong connect_args": (
        binds({"audit": {"url": "sqlite://", "connect_args": 5}}),
        "SQLALCHEMY_BINDS['audit']['connect_args']",
        " = 5: expected a dict of keyword arguments for the driver.",
    ),
    "misspelt": (key("UOW_RETRYS", 3), "UOW_RETRYS", " is not a configuration key."),
    "misspelt, like none": (key("UOW_XYZ", None), "UOW_XYZ", " is not a configuration key."),
    "in lower case": (key("uow_retries", 3), "uow_retries", " is not a configuration key."),
    "commit inside unknown": (
        key("UOW_COMMIT_INSIDE_UNIT", "warn"),
        "UOW_COMMIT_INSIDE_UNIT",
        " = 'warn': expected 'error' or 'flush'.",
    ),
    "commit inside a truth": (key("UOW_COMMIT_INSIDE_UNIT", False), "UOW_COMMIT_INSIDE_UNIT", " = False: expected 'er"),
    "rules unknown mode": (key("UOW_RULES", "warning"), "UOW_RULES", " = 'warning': expected 'off', 'warn', 'error',"),
    "rules a truth": (key("UOW_RULES", True), "UOW_RULES", " = True: expected 'off', 'warn', 'error', or a dict of"),
    "rules a list": (key("UOW_RULES", ["UOW103"]), "UOW_RULES", " = ['UOW103']: expected 'off', 'warn', 'error', or a"),
    "rules unknown code": (
        key("UOW_RULES", {"UOW999": "off"}),
        "UOW_RULES",
        " = {'UOW999': 'off'}: there is no rule 'UOW999'.",
    ),
    "rules number for a code": (key("UOW_RULES", {103: "off"}), "UOW_RULES", " = {103: 'off'}: there is no rule 103."),
    "rules unknown mode of one": (
        key("UOW_RULES", {"UOW104": "off", "UOW103": "quiet"}),
        "UOW_RULES",
        " = {'UOW103': 'quiet'}: a rule's mode is 'off', 'warn' or 'error'.",
    ),
    "rules unhashable mode": (
        key("UOW_RULES", {"UOW103": ["off"]}),
        "UOW_RULES",
        " = {'UOW103': ['off']}: a rule's mo",
    ),
    "rollback status a text": (
        key("UOW_ROLLBACK_ON_STATUS", "400"),
        "UOW_ROLLBACK_ON_STATUS",
        " = '400': expected an HTTP status from 100 to 599, or a function of the status.",
    ),
    "rollback status too low": (key("UOW_ROLLBACK_ON_STATUS", 99), "UOW_ROLLBACK_ON_STATUS", " = 99: expected an HTTP"),
    "rollback status too high": (key("UOW_ROLLBACK_ON_STATUS", 600), "UOW_ROLLBACK_ON_STATUS", " = 600: expected an"),
    "rollback status True": (key("UOW_ROLLBACK_ON_STATUS", True), "UOW_ROLLBACK_ON_STATUS", " = True: expected an H"),
    "rollback status a class": (key("UOW_ROLLBACK_ON_STATUS", int), "UOW_ROLLBACK_ON_STATUS", " = <class 'int'>: exp"),
    "rollback status a coroutine function": (
        key("UOW_ROLLBACK_ON_STATUS", veto_later),
        "UOW_ROLLBACK_ON_STATUS",
        " = <function veto_later at 0x",
    ),
    "retries negative": (key("UOW_RETRIES", -1), "UOW_RETRIES", " = -1: expected a whole number, 0 or above."),
    "retries a text": (key("UOW_RETRIES", "3"), "UOW_RETRIES", " = '3': expected a whole number, 0 or above."),
    "retries True": (key("UOW_RETRIES", True), "UOW_RETRIES", " = True: expected a whole number, 0 or above."),
    "retries with a fraction": (key("UOW_RETRIES", 2.5), "UOW_RETRIES", " = 2.5: expected a whole number, 0 or above."),
    "reader": (reader("/replica/bank"), "UOW_READER_URI", " = '/replica/bank': not a database URL; expected"),
    "reader a number": (reader(5), "UOW_READER_URI", " = 5: expected a database URL, or a list of them."),
    "readers none": (reader([]), "UOW_READER_URI", " = []: expected a database URL, or a list of them."),
    "reader empty": (reader(""), "UOW_READER_URI", " = '': expected a database URL such as"),
    "second of two readers": (
        reader(["sqlite:////a", REPLICA]),
        "UOW_READER_URI[1]",
        " = 'postgresql+psycopg2://bob:***@replica/bank': expected a copy of SQLALCHEMY_DATABASE_URI, which is sqlite.",
    ),
    "second of two readers in a text": (
        reader("sqlite:////a,sqlite://"),
        "UOW_READER_URI[1]",
        " = 'sqlite://': nobody else can read a database in memory.",
    ),
    "reader's driver": (reader("postgresql+nothing://replica/bank"), "UOW_READER_URI", " = 'postgresql+nothing://repl"),
    "reader's name taken": (
        reader("sqlite:////a", SQLALCHEMY_BINDS={"reader": REPLICA}),
        "SQLALCHEMY_BINDS['reader']",
        " = 'postgresql+psycopg2://bob:***@replica/bank': this name is an engine of UOW_READER_URI.",
    ),
    "reader behind a creator": (
        reader("sqlite:////a", SQLALCHEMY_ENGINE_OPTIONS={"creator": connect}),
        "UOW_READER_URI",
        " = 'sqlite:////a': SQLALCHEMY_ENGINE_OPTIONS['creator'] would lead each reader to the primary.",
    ),
    **{
        f"reader behind a {name}": (
            reader(
                "postgresql://b:1/bank?service=b",
                SQLALCHEMY_DATABASE_URI="postgresql://host/bank",
                SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {name: place}},
            ),
            "UOW_READER_URI",
            " = 'postgresql+psycopg2://b:1/bank?service=b': SQLALCHEMY_ENGINE_OPTIONS['connect_args'] would",
        )
        for name, place in {"host": "host", "hostaddr": "10.0.0.1", "port": 5432, "service": "bank"}.items()
    },
    "reader in SERIALIZABLE": (
        reader(
            "postgresql://replica/bank",
            SQLALCHEMY_DATABASE_URI="postgresql://host/bank",
            SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "SERIALIZABLE"},
        ),
        "UOW_READER_URI",
        " = 'postgresql+psycopg2://replica/bank': SQLALCHEMY_ENGINE_OPTIONS['isolation_level'] is SERIALIZABLE, in",
    ),
    "read your writes": (key("UOW_READ_YOUR_WRITES", True), "UOW_READ_YOUR_WRITES", " = True: expected 'off', 'time'"),
    "read your writes of SQLite": (
        reader("sqlite:////a", UOW_READ_YOUR_WRITES="lsn"),
        "UOW_READ_YOUR_WRITES",
        " = 'lsn': only PostgreSQL has positions, and SQLALCHEMY_DATABASE_URI is sqlite.",
    ),
    "read your writes for how long": (
        key("UOW_READ_YOUR_WRITES_SECONDS", 0),
        "UOW_READ_YOUR_WRITES_SECONDS",
        " = 0: expected a number of seconds above 0.",
    ),
    "atomic requests 0": (key("UOW_ATOMIC_REQUESTS", 0), "UOW_ATOMIC_REQUESTS", " = 0: expected True, False, or a set"),
    "atomic requests a text": (key("UOW_ATOMIC_REQUESTS", "POST"), "UOW_ATOMIC_REQUESTS", " = 'POST': expected True,"),
    "atomic requests small": (
        key("UOW_ATOMIC_REQUESTS", {"post"}),
        "UOW_ATOMIC_REQUESTS",
        " = {'post'}: 'post' is no HTTP method; they are in upper case.",
    ),
    "atomic requests a list in a list": (
        key("UOW_ATOMIC_REQUESTS", ["POST", ["GET"]]),
        "UOW_ATOMIC_REQUESTS",
        " = ['POST', ['GET']]: ['GET'] is no HTTP method",
    ),
    "two-phase": (key("UOW_TWO_PHASE", 1), "UOW_TWO_PHASE", " = 1: expected True or False."),
    "two-phase on SQLite": (
        key("UOW_TWO_PHASE", True),
        "UOW_TWO_PHASE",
        " = True: SQLALCHEMY_DATABASE_URI is no PostgreSQL database, which alone can prepare a transaction.",
    ),
    "ride a text": (key("UOW_RIDE", "no"), "UOW_RIDE", " = 'no': expected True or False."),
    "label a number": (key("UOW_LABEL_SERVER", 0), "UOW_LABEL_SERVER", " = 0: expected True or False."),
    "unit seconds 0": (
        key("UOW_MAX_UNIT_SECONDS", 0),
        "UOW_MAX_UNIT_SECONDS",
        " = 0: expected a number of seconds abo",
    ),
    "unit seconds a text": (key("UOW_MAX_UNIT_SECONDS", "5"), "UOW_MAX_UNIT_SECONDS", " = '5': expected a number of"),
    "idle seconds negative": (key("UOW_MAX_IDLE_SECONDS", -1.0), "UOW_MAX_IDLE_SECONDS", " = -1.0: expected a number"),
    "idle seconds True": (key("UOW_MAX_IDLE_SECONDS", True), "UOW_MAX_IDLE_SECONDS", " = True: expected a number of s"),
    "idle seconds without end": (key("UOW_MAX_IDLE_SECONDS", float("inf")), "UOW_MAX_IDLE_SECONDS", " = inf: expected"),
    "idle seconds no number": (key("UOW_MAX_IDLE_SECONDS", float("nan")), "UOW_MAX_IDLE_SECONDS", " = nan: expected a"),
    "unit seconds without end": (
        key("UOW_MAX_UNIT_SECONDS", 10**400),
        "UOW_MAX_UNIT_SECONDS",
        " = 1000",
    ),
    "retries of 5,000 digits": (
        key("UOW_RETRIES", -(10**5000)),
        "UOW_RETRIES",
        " = <int that cannot be shown>: expected a whole number, 0 or above.",
    ),
    "stats folder with a NUL": (
        key("UOW_STATS_DIR", "a\0b"),
        "UOW_STATS_DIR",
        " = 'a\\x00b': expected the path of a folder",
    ),
    "stats a text": (key("UOW_STATS", "on"), "UOW_STATS", " = 'on': expected True or False."),
    "stats folder empty": (key("UOW_STATS_DIR", ""), "UOW_STATS_DIR", " = '': expected the path of a folder."),
    "stats folder a truth": (key("UOW_STATS_DIR", True), "UOW_STATS_DIR", " = True: expected the path of a folder."),
    "stats folder in bytes": (key("UOW_STATS_DIR", b"/tmp"), "UOW_STATS_DIR", " = b'/tmp': expected the path of a"),
    "server timing a number": (key("UOW_SERVER_TIMING", 1), "UOW_SERVER_TIMING", " = 1: expected True or False."),
} | {
    f"rules {code} off": (
        key("UOW_RULES", {code: "off"}),
        "UOW_RULES",
        f" = {{'{code}': 'off'}}: {code} is always an error.",
    )
    for code, rule in RULES.items()
    if rule.is_fatal
}


@pytest.mark.parametrize(("config", "quoted", "rest"), WRONG.values(), ids=WRONG.keys())
def test_wrong_configuration_is_one_error(config: Mapping[str, object], quoted: str, rest: str) -> None:
    """Each wrong value fails in ``init_app`` by one error that begins with its key, and the app stays as it was."""
    app = Flask("bank")
    app.config.update(config)
    before = dict(app.config)

    with pytest.raises(ConfigurationError, match=rf"^{re.escape(quoted + rest)}") as caught:
        UnitOfWork(app)

    text = str(caught.value)
    assert "s3cret" not in text
    assert caught.value.fix
    assert "uow" not in app.extensions
    assert app.extensions == {}
    assert dict(app.config) == before
    assert "db-session-stats" not in app.cli.commands


@pytest.mark.parametrize("config", [config for config, _, _ in WRONG.values()], ids=WRONG.keys())
def test_mended_configuration_is_taken(config: Mapping[str, object]) -> None:
    """After a refusal, the same extension serves the same app as soon as its configuration is right."""
    uow = UnitOfWork()
    app = Flask("bank")
    app.config.update(config)
    with pytest.raises(ConfigurationError, match="fix:"):
        uow.init_app(app)

    for name in config:
        del app.config[name]
    app.config.update(IN_MEMORY)
    uow.init_app(app)

    with app.app_context():
        assert uow.session.scalar(sa.text("SELECT 1")) == 1


@pytest.mark.parametrize(
    ("config", "fix"),
    [
        pytest.param({}, "Set app.config['SQLALCHEMY_DATABASE_URI'], e.g. to 'postgresql://", id="no database"),
        pytest.param(database(""), "Set app.config['SQLALCHEMY_DATABASE_URI'] before init_app.", id="database empty"),
        pytest.param(binds({"a": 5}), "Set app.config['SQLALCHEMY_BINDS']['a'] before init_app.", id="bind"),
        pytest.param(binds({"default": "sqlite://"}), "Choose another name.", id="bind's name taken"),
        pytest.param(binds({"a": {}}), "Add 'url' to them.", id="bind without a URL"),
        pytest.param(database("postgersql://host"), "Mend the URL's scheme.", id="dialect unknown"),
        pytest.param(
            database("postgresql+asyncpg://"), "Name a synchronous driver in the URL.", id="driver asynchronous"
        ),
        pytest.param(database("mssql+pymssql://host"), "Install the driver.", id="driver not installed"),
        pytest.param(key("UOW_RETRYS", 3), "Did you mean UOW_RETRIES?", id="misspelt"),
        pytest.param(key("uow_rules", "off"), "Did you mean UOW_RULES?", id="in lower case"),
        pytest.param(key("UOW_TIMEOUT", 3), "The keys are: UOW_ATOMIC_REQUESTS, UOW_COMMIT_INSIDE", id="like none"),
        pytest.param(key("UOW_RULES", {"UOW999": "off"}), "The rules are: UOW101, UOW102, UOW103,", id="unknown code"),
        pytest.param(key("UOW_RULES", {"UOW101": "off"}), "Leave UOW101 out of UOW_RULES.", id="always an error"),
        pytest.param(key("UOW_TWO_PHASE", True), "Leave the key out.", id="not in this version"),
    ],
)
def test_error_says_how_to_mend_it(config: Mapping[str, object], fix: str) -> None:
    """The second line is an order."""
    app = Flask("bank")
    app.config.update(config)

    with pytest.raises(ConfigurationError, match=rf"\n  fix:   {re.escape(fix)}"):
        UnitOfWork(app)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("postgresql://bob:s3cret@host:x/", id="URL"),
        pytest.param("postgresql://:s3cret@host:x/", id="URL without a user"),
        pytest.param("postgresql://bob@bank:s3cret@host:x/", id="URL with @ in the user"),
        pytest.param("postgresql://bob:a@s3cret@host:x/", id="URL with @ in the password"),
        pytest.param("postgresql://bob:a s3cret\n@host:x/", id="URL with blanks in the password"),
        pytest.param("postgresql://host:x/?password=s3cret", id="query"),
        pytest.param("postgresql://host:x/?user=bob&PASSWD=s3cret&x=1", id="query in upper case"),
        pytest.param("host=db password='s3cret' x", id="libpq's own syntax"),
        pytest.param({"password": "s3cret"}, id="dict"),
        pytest.param({"password": b"s3cret"}, id="bytes in a dict"),
        pytest.param({"password": 'it\'s "s3cret"'}, id="dict with quotes"),
        pytest.param(["postgresql://bob:s3cret@host", "postgresql://eve:s3cret@host"], id="several"),
    ],
)
def test_password_is_hidden(value: object) -> None:
    """Wherever a password stands in a value that is refused, the message does not show it."""
    app = Flask("bank")
    app.config.update(database(value))

    with pytest.raises(ConfigurationError, match=r"^SQLALCHEMY_DATABASE_URI = .*\*\*\*") as caught:
        UnitOfWork(app)

    assert "s3cret" not in str(caught.value)


def test_url_without_a_password_is_shown_whole() -> None:
    """Nothing is hidden that is no secret."""
    app = Flask("bank")
    app.config.update(database("postgersql://bob@host:5432/bank?sslmode=require"))

    with pytest.raises(ConfigurationError, match=r"'postgersql://bob@host:5432/bank\?sslmode=require'"):
        UnitOfWork(app)


def test_option_that_create_engine_refuses_is_one_error() -> None:
    """An option that does not exist is quoted with the key in which it stands."""
    app = Flask("bank")
    app.config.update(engine_options({"pool_sise": 5}))

    with pytest.raises(ConfigurationError, match=r"^SQLALCHEMY_ENGINE_OPTIONS.*pool_sise"):
        UnitOfWork(app)


# ---- what is right


def settings(**config: object) -> Any:
    return read_settings(IN_MEMORY | config, owns_engines=True)


def test_defaults() -> None:
    """Without any key but the database's, everything is as the documentation says."""
    read = settings()

    assert read.commit_inside_unit == "error"
    assert read.rollback_on_status is None
    assert read.retries == 0
    assert set(read.rule_modes.values()) == {"warn"}
    assert list(read.binds) == ["default"]
    assert read.binds["default"].options == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UOW_COMMIT_INSIDE_UNIT", "flush"),
        ("UOW_RULES", {}),
        ("UOW_RETRIES", 0),
        ("UOW_ROLLBACK_ON_STATUS", 100),
        ("UOW_ROLLBACK_ON_STATUS", 599),
        ("UOW_READER_URI", "sqlite:////a"),
        ("UOW_READ_YOUR_WRITES", "off"),
        ("UOW_READ_YOUR_WRITES", False),
        ("UOW_READ_YOUR_WRITES", "lsn"),
        ("UOW_READ_YOUR_WRITES_SECONDS", 60),
        ("UOW_ATOMIC_REQUESTS", False),
        ("UOW_TWO_PHASE", False),
        ("UOW_RIDE", False),
        ("UOW_LABEL_SERVER", True),
        ("UOW_MAX_UNIT_SECONDS", 5),
        ("UOW_MAX_IDLE_SECONDS", 0.1),
        ("UOW_STATS", False),
        ("UOW_STATS_DIR", "/run/bank"),
        ("UOW_STATS_DIR", Path("/run/bank")),
        ("UOW_SERVER_TIMING", True),
        ("SQLALCHEMY_ENGINE_OPTIONS", {"connect_args": None}),
        ("SQLALCHEMY_BINDS", {}),
    ],
    ids=str,
)
def test_right_value_is_taken(name: str, value: object) -> None:
    """What the documentation allows passes, also where this version only checks it."""
    assert read_settings(IN_MEMORY | {name: value}, owns_engines=True)


@pytest.mark.parametrize(
    "name",
    [
        "SQLALCHEMY_BINDS",
        "SQLALCHEMY_ENGINE_OPTIONS",
        "UOW_ATOMIC_REQUESTS",
        "UOW_COMMIT_INSIDE_UNIT",
        "UOW_LABEL_SERVER",
        "UOW_MAX_IDLE_SECONDS",
        "UOW_MAX_UNIT_SECONDS",
        "UOW_READER_URI",
        "UOW_READ_YOUR_WRITES",
        "UOW_READ_YOUR_WRITES_SECONDS",
        "UOW_RETRIES",
        "UOW_RIDE",
        "UOW_ROLLBACK_ON_STATUS",
        "UOW_RULES",
        "UOW_SERVER_TIMING",
        "UOW_STATS",
        "UOW_STATS_DIR",
        "UOW_TWO_PHASE",
    ],
)
def test_none_is_the_default(name: str) -> None:
    """A key that is set to None is as good as left out."""
    assert settings(**{name: None}) == settings()


def test_foreign_keys_are_left_alone() -> None:
    """Keys of Flask, of Flask-SQLAlchemy and of the application are none of this extension's business."""
    assert settings(SQLALCHEMY_ECHO="x", SECRET_KEY=5, BANK_UOW_RULES="x") == settings()


def test_keys_have_their_effect() -> None:
    """What is configured is what the app's units read."""
    read = settings(UOW_COMMIT_INSIDE_UNIT="flush", UOW_ROLLBACK_ON_STATUS=400, UOW_RETRIES=3)

    assert (read.commit_inside_unit, read.rollback_on_status, read.retries) == ("flush", 400, 3)


def test_status_may_be_a_function() -> None:
    """A predicate of the status is kept as it is."""

    def is_error(status: int) -> bool:
        return status >= 500

    assert settings(UOW_ROLLBACK_ON_STATUS=is_error).rollback_on_status is is_error


@pytest.mark.parametrize("mode", ["off", "warn", "error"])
def test_one_mode_is_for_all_rules(mode: str) -> None:
    """A single word is the mode of every rule that has one."""
    modes = settings(UOW_RULES=mode).rule_modes

    assert modes == {code: mode for code, rule in RULES.items() if not rule.is_fatal}


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if not rule.is_fatal])
def test_dict_sets_the_mode_of_one_rule(code: str) -> None:
    """What a dict does not name stays at its default, ``warn``."""
    modes = settings(UOW_RULES={code: "error"}).rule_modes

    assert modes.pop(code) == "error"
    assert set(modes.values()) == {"warn"}


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.is_fatal])
def test_dict_may_say_that_a_fatal_rule_is_one(code: str) -> None:
    """``error`` for a rule that is always an error is true, and changes nothing."""
    assert settings(UOW_RULES={code: "error"}) == settings()


def test_each_mode_of_a_dict_reaches_its_rule() -> None:
    """In an app too: what is off is silent, what is an error is counted as one."""
    app = Flask("bank")
    app.config.update(IN_MEMORY, UOW_RULES={"UOW103": "off"})
    uow = UnitOfWork(app)
    codes: list[str] = []

    def violated(sender: Flask, code: str, violation: object) -> None:
        codes.append(code)

    with rule_violated.connected_to(violated, app), app.app_context():
        uow.session.execute(sa.text("CREATE TABLE t (x int)"))

    assert codes == []


# ---- databases


@pytest.mark.parametrize(
    ("uri", "drivername"),
    [
        ("postgres://bob@host/bank", "postgresql+psycopg2"),
        ("postgresql://bob@host/bank", "postgresql+psycopg2"),
        ("postgresql+psycopg2://bob@host/bank", "postgresql+psycopg2"),
        ("postgresql+psycopg://bob@host/bank", "postgresql+psycopg"),
        ("sqlite:///bank.db", "sqlite"),
    ],
)
def test_driver_of_a_url(uri: str, drivername: str) -> None:
    """A PostgreSQL URL without a driver, or with the name of old, gets psycopg2; any other is left as it is."""
    url = settings(SQLALCHEMY_DATABASE_URI=uri).binds["default"].url

    assert url == sa.make_url(uri).set(drivername=drivername)


@pytest.mark.parametrize(
    ("installed", "drivername"), [({"psycopg"}, "postgresql+psycopg"), ({"psycopg", "psycopg2"}, "postgresql+psycopg2")]
)
def test_driver_is_the_one_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], drivername: str
) -> None:
    """Psycopg 3 steps in where psycopg2 is missing."""
    monkeypatch.setattr("flask_uow._settings.find_spec", installed.__and__({"psycopg", "psycopg2"}).__contains__)

    url = settings(SQLALCHEMY_DATABASE_URI="postgresql://bob@host/bank").binds["default"].url

    assert url.drivername == drivername


def test_no_driver_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either, the message says what to install."""
    monkeypatch.setattr("flask_uow._settings.find_spec", lambda name: None)

    with pytest.raises(
        ConfigurationError,
        match=r"^SQLALCHEMY_DATABASE_URI = 'postgres://bob:\*\*\*@host': no PostgreSQL driver is installed\.\n"
        r"  fix:   pip install 'flask-uow\[postgres\]' \(or 'flask-uow\[psycopg\]'\)\.",
    ):
        settings(SQLALCHEMY_DATABASE_URI="postgres://bob:s3cret@host")


def test_driver_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is there and broken is named, also when it was chosen for the user."""
    monkeypatch.setattr("flask_uow._settings.find_spec", str)
    monkeypatch.setitem(sys.modules, "psycopg2", None)

    with pytest.raises(ConfigurationError, match=r"'postgresql\+psycopg2://host': the driver cannot be imported \("):
        settings(SQLALCHEMY_DATABASE_URI="postgresql://host")


def test_binds_are_urls_or_options() -> None:
    """A bind is a URL, or options with a URL among them."""
    read = settings(
        SQLALCHEMY_ENGINE_OPTIONS={"echo": True},
        SQLALCHEMY_BINDS={
            "one": "sqlite:///one.db",
            "two": sa.make_url("sqlite:///two.db"),
            "three": {"url": "postgresql://host/three", "pool_size": 1},
        },
    )

    assert {name: str(bind.url) for name, bind in read.binds.items()} == {
        "default": "sqlite://",
        "one": "sqlite:///one.db",
        "two": "sqlite:///two.db",
        "three": "postgresql+psycopg2://host/three",
    }
    assert {name: bind.options for name, bind in read.binds.items()} == {
        "default": {"echo": True},
        "one": {},
        "two": {},
        "three": {"pool_size": 1},
    }


def test_configured_options_win_over_the_extension_s() -> None:
    """``UnitOfWork(engine_options=)`` gives defaults for every engine; the configuration has the last word."""
    config = IN_MEMORY | {
        "SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 2},
        "SQLALCHEMY_BINDS": {"one": {"url": "sqlite://", "pool_size": 3}, "two": "sqlite://"},
    }

    read = read_settings(config, owns_engines=True, engine_options={"pool_size": 1, "echo": True})

    assert {name: bind.options for name, bind in read.binds.items()} == {
        "default": {"pool_size": 2, "echo": True},
        "one": {"pool_size": 3, "echo": True},
        "two": {"pool_size": 1, "echo": True},
    }


def test_configuration_is_not_changed() -> None:
    """What is read from the configuration is a copy."""
    options = {"url": "sqlite://", "echo": True}
    config = IN_MEMORY | {"SQLALCHEMY_BINDS": {"one": options}}

    read_settings(config, owns_engines=True).binds["one"].options["pool_size"] = 7

    assert options == {"url": "sqlite://", "echo": True}


def test_engines_of_another_owner_need_no_database() -> None:
    """Where another library makes the engines, its keys are not read, and ours are."""
    assert read_settings({"SQLALCHEMY_DATABASE_URI": 5}, owns_engines=False).binds == {}
    with pytest.raises(ConfigurationError, match=r"^UOW_RETRIES = -1: "):
        read_settings({"UOW_RETRIES": -1}, owns_engines=False)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"session": "x"}, id="session"),
        pytest.param({"sessionmaker": "x"}, id="sessionmaker"),
    ],
)
def test_wrong_argument_is_one_error(arguments: dict[str, Any]) -> None:
    """The extension's own arguments are checked when it is made."""
    with pytest.raises(ConfigurationError, match=rf"^UnitOfWork\({next(iter(arguments))}='x'\): expected"):
        UnitOfWork(**arguments)


def test_second_extension_is_refused() -> None:
    """An app has one; the first one stays."""
    app = Flask("bank")
    app.config.update(IN_MEMORY)
    first = UnitOfWork(app)

    with pytest.raises(ConfigurationError, match=r"^App 'bank' has a UnitOfWork already; "):
        UnitOfWork(app)

    assert app.extensions["uow"] is first


@pytest.mark.parametrize(
    ("value", "hosts"),
    [
        ("postgresql://a/bank", ["a"]),
        (sa.make_url("postgresql://a/bank"), ["a"]),
        ("postgresql://a/bank, postgresql+psycopg://b:5433/bank", ["a", "b"]),
        (["postgresql://a/bank", sa.make_url("postgresql://b/bank")], ["a", "b"]),
        ("postgresql://u:p,w@a/bank?application_name=x,y", ["a"]),
    ],
    ids=str,
)
def test_readers_are_one_url_or_several(value: object, hosts: list[str]) -> None:
    """They are named by their number, and have the options of the database whose copies they are."""
    config = {
        "SQLALCHEMY_DATABASE_URI": "postgresql://host/bank",
        "SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 3},
        "UOW_READER_URI": value,
    }

    readers = read_settings(config, owns_engines=True).readers

    assert [bind.url.host for bind in readers.values()] == hosts
    assert list(readers) == ["reader", "reader2"][: len(hosts)]
    assert [bind.options for bind in readers.values()] == [{"pool_size": 3}] * len(hosts)


def test_readers_beside_what_the_driver_is_told() -> None:
    """A place that their URLs leave to it is no other one."""
    config = {
        "SQLALCHEMY_DATABASE_URI": "postgresql://a/bank",
        "SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": {"port": 6432, "user": "bob"}},
        "UOW_READER_URI": "postgresql://b/bank",
    }

    assert list(read_settings(config, owns_engines=True).readers) == ["reader"]


def test_readers_need_engines_of_ours() -> None:
    """Somebody else's are not ours to choose from, which is said with what to do instead."""
    with pytest.raises(ConfigurationError, match="the engines belong to whoever made the sessions") as caught:
        read_settings({"UOW_READER_URI": REPLICA}, owns_engines=False)

    assert "get_bind" in str(caught.value.fix)
    assert "s3cret" not in str(caught.value)


def test_settings_show_no_password() -> None:
    """Who prints them, or has a debugger print them, sees where the databases are."""
    read = settings(
        SQLALCHEMY_DATABASE_URI="postgresql://bob:s3cret@host/bank?password=s3cret",
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"password": "s3cret", "connect_timeout": 3}},
        UOW_READER_URI="postgresql://bob:s3cret@replica/bank",
    )

    assert "s3cret" not in repr(read)
    assert "postgresql+psycopg2://bob:***@replica/bank" in repr(read)
    assert "connect_timeout" in repr(read)


def test_no_password_is_in_what_is_reported_of_an_error() -> None:
    """Neither in its traceback, whatever was caught on the way, nor in what is sent to another process."""
    app = Flask("bank")
    app.config.update(database("sqlite://bob:s3cret@host/bank?password=s3cret"))
    with pytest.raises(ConfigurationError, match="the driver cannot read it") as caught:
        UnitOfWork(app)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value, chain=True)).replace(__file__, "")
    assert b"s3cret" not in pickle.dumps(caught.value)


def test_an_option_that_is_none_is_left_out() -> None:
    """The pool has its default then."""
    app = Flask("bank")
    app.config.update(engine_options({"pool_size": None, "creator": None, "pool_timeout": None}))
    uow = UnitOfWork(app)

    with app.app_context():
        pool = uow.engine.pool
    assert isinstance(pool, sa.QueuePool)
    assert (pool.size(), pool.timeout()) == (1, 5)


def test_a_folder_is_made_when_nothing_is_refused(tmp_path: Path) -> None:
    """A wrong bind leaves no folder of the first database behind; one that cannot be made is an error of its key."""
    app = Flask("bank", instance_path=str(tmp_path / "instance"))
    app.config.update(database("sqlite:///inner/bank.db"), SQLALCHEMY_BINDS={"audit": {"url": "sqlite://", "echo": []}})
    with pytest.raises(ConfigurationError, match=r"^SQLALCHEMY_BINDS\['audit'\]"):
        UnitOfWork(app)
    assert not (tmp_path / "instance").exists()

    (tmp_path / "instance").write_text("")
    app.config["SQLALCHEMY_BINDS"] = {}
    with pytest.raises(ConfigurationError, match=r"^SQLALCHEMY_DATABASE_URI.*its folder cannot be made \("):
        UnitOfWork(app)
