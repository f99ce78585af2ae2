"""Configuration of any kind: it is taken and works, or one error quotes the key, and nothing has happened."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import orm

from flask_uow import UnitOfWork, transactional
from flask_uow._settings import _CHECKS, _ENGINE_OPTIONS
from flask_uow.exceptions import ConfigurationError
from tests.fuzz.odd_values import SECRET, bounded, odd_values, refusal_of

MOST_CHARACTERS = 5000
DATABASE_KEYS = ("SQLALCHEMY_DATABASE_URI", "SQLALCHEMY_BINDS", "SQLALCHEMY_ENGINE_OPTIONS")
MORE_OPTIONS = ("echo", "execution_options", "isolation_level", "poolclass", "pool", "module", "plugins", "strategy")

values = odd_values()
engine_options = st.dictionaries(st.sampled_from([*_ENGINE_OPTIONS, *MORE_OPTIONS]), values, min_size=1, max_size=3)
binds = st.dictionaries(
    st.sampled_from(["audit", "", "default", "reader", "\0", "b" * 300]) | st.integers(),
    values
    | engine_options.map(lambda options: {"url": "sqlite://"} | options)
    | st.fixed_dictionaries({"url": values}),
    max_size=2,
)


def served(config: dict[str, object], folder: Path) -> tuple[Flask, Exception | None]:
    """An app with a configuration, and what ``init_app`` said of it."""
    app = Flask("bank", instance_path=str(folder / "instance"))
    app.config.update({"SQLALCHEMY_DATABASE_URI": "sqlite://", "TESTING": True} | config)
    before = dict(app.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's, of a URL's query
        error = refusal_of(lambda: UnitOfWork(app), ConfigurationError)
    assert all(app.config[key] is value for key, value in before.items())
    return app, error


def check_refusal(app: Flask, error: Exception, keys: Mapping[str, object], folder: Path) -> None:
    """The error is one, begins with a key of those that were set, shows no secret, and nothing has happened."""
    text = str(error)
    assert text.startswith((*keys, *DATABASE_KEYS)), text
    assert "\n  fix:   " in text
    assert len(text) < MOST_CHARACTERS
    assert SECRET not in text
    assert "uow" not in app.extensions
    assert "db-session-stats" not in app.cli.commands
    assert "its folder cannot be made" in text or not (folder / "instance").exists()


@bounded
@given(config=st.dictionaries(st.sampled_from(sorted(_CHECKS)), values, min_size=1, max_size=2))
@example(config={"UOW_MAX_UNIT_SECONDS": 10**400})
@example(config={"UOW_RETRIES": -(10**5000)})
@example(config={"UOW_STATS_DIR": "a\0b"})
@example(config={"UOW_ATOMIC_REQUESTS": [10**5000]})
@example(config={"UOW_ATOMIC_REQUESTS": [f"postgresql://bob:{SECRET}@host/bank"]})
def test_any_value_of_our_keys(config: dict[str, Any], tmp_path: Path) -> None:
    """It is refused, or a unit runs with it."""
    app, error = served(config, tmp_path)

    if error is not None:
        check_refusal(app, error, config, tmp_path)
        return
    if "UOW_STATS_DIR" not in config:  # which may name any folder of this machine
        with app.app_context(), transactional():
            assert app.extensions["uow"].session.scalar(sa.text("SELECT 1")) == 1
    shutil.rmtree(tmp_path / "instance", ignore_errors=True)


@bounded
@given(
    config=st.fixed_dictionaries(
        {},
        optional={
            "SQLALCHEMY_DATABASE_URI": values,
            "SQLALCHEMY_ENGINE_OPTIONS": values | engine_options,
            # A bind's name is shown, and so is what stands behind it if that is no URL.
            "SQLALCHEMY_BINDS": values.filter(lambda named: not isinstance(named, dict)) | binds,
            "UOW_READER_URI": values | st.just(["sqlite:////nowhere/bank.db"]),
        },
    )
)
@example(config={"SQLALCHEMY_DATABASE_URI": "sqlite:///bank.db?timeout=soon"})
@example(
    config={
        "SQLALCHEMY_DATABASE_URI": "sqlite:///made/bank.db",
        "SQLALCHEMY_BINDS": {"a": {"url": "sqlite://", "echo": []}},
    }
)
@example(config={"SQLALCHEMY_DATABASE_URI": "sqlite:///" + "d" * 300 + "/bank.db"})
@example(config={"SQLALCHEMY_ENGINE_OPTIONS": dict.fromkeys(_ENGINE_OPTIONS)})
@example(config={"SQLALCHEMY_ENGINE_OPTIONS": {"strategy": "mock", "executor": print}})
def test_any_value_of_the_databases_keys(config: dict[str, Any], tmp_path: Path) -> None:
    """It is refused before anything is written, or there are engines for all that was named."""
    app, error = served(config, tmp_path)
    instance = tmp_path / "instance"

    if error is not None:
        check_refusal(app, error, config, tmp_path)
        shutil.rmtree(instance, ignore_errors=True)
        return
    with app.app_context():
        engines = app.extensions["uow"].engines
        assert {"default", *(config.get("SQLALCHEMY_BINDS") or {})} <= set(engines)
        for engine in engines.values():
            assert not isinstance(engine.pool, sa.QueuePool) or engine.pool.checkedout() == 0
            engine.dispose()
    assert not any(path.is_file() for path in instance.rglob("*"))
    shutil.rmtree(instance, ignore_errors=True)


session_options = st.dictionaries(
    st.sampled_from(["autoflush", "autocommit", "bind", "binds", "class_", "info", "twophase", "join_transaction_mode"])
    | st.integers(),
    values,
    min_size=1,
    max_size=2,
)


@bounded
@given(
    arguments=st.fixed_dictionaries(
        {},
        optional={
            "app": values,
            "session": values,
            "sessionmaker": values | st.just(orm.sessionmaker()),
            "engine_options": values | engine_options,
            "session_options": values | session_options,
        },
    )
)
@example(arguments={"session_options": {"bind": 5}})
@example(arguments={"engine_options": {"isolation_level": "AUTOCOMMIT"}})
@example(arguments={"app": 5})
def test_any_argument_of_the_extension(arguments: dict[str, Any]) -> None:
    """It is refused by one error that quotes what was given, where it was given, or an extension is made."""
    make: Callable[..., UnitOfWork] = UnitOfWork
    made: list[UnitOfWork] = []

    error = refusal_of(lambda: made.append(make(**arguments)), ConfigurationError)

    if error is None:
        assert made[0].session is not None
        return
    assert str(error).startswith(("UnitOfWork", "engine_options")), error
    assert len(str(error)) < MOST_CHARACTERS
    assert SECRET not in str(error)
