"""The command with any arguments: an answer, or click's own error that quotes what was typed."""

from collections.abc import Callable

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from flask_uow import UnitOfWork, _cli
from flask_uow._cli import db_session_stats
from flask_uow.stats import condition_forms
from tests.fuzz.odd_values import TEXTS, bounded

FLAGS = ("--json", "--explain")
# Another process could not be given a NUL.
WORDS = [text for text in TEXTS if "\0" not in text] + ["nan", "-1", "1e400", "9" * 5000, "*a" * 40, "[", "%", "--"]

words = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=12)
numbers = st.floats().map(str) | st.integers().map(str)
names = st.sampled_from([form.partition("=")[0] for form in condition_forms()])
conditions = st.builds("{}={}".format, names | words, numbers | words)
options = st.sampled_from(["--watch", "--sort", "--limit", "--label", "--worker", "--min-age", "--state", "--fail-on"])
arguments = st.lists(
    st.builds("{}={}".format, options, words | numbers | conditions | st.sampled_from(["idle", "mean", "waiting=1"]))
    | st.sampled_from([*FLAGS, "--watch"])
    | words,
    max_size=4,
)


def test_every_option_is_typed() -> None:
    """A new option is one of those that are tried."""
    known = {name for option in db_session_stats.params for name in option.opts}

    assert known == {*FLAGS, *("--watch --sort --limit --label --worker --min-age --state --fail-on".split())}


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An app whose command takes one snapshot where it would go on."""

    def once(step: Callable[[], None], seconds: float) -> None:
        step()

    monkeypatch.setattr(_cli, "repeat", once)
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    UnitOfWork(app)
    return app


@bounded
@given(typed=arguments)
@example(typed=["--label=" + "*a" * 40])
@example(typed=["--watch=1e308"])
@example(typed=["--fail-on=waiting=" + "9" * 5000])
@example(typed=["--state=\x1b[31m"])
def test_any_arguments(app: Flask, typed: list[str]) -> None:
    """It ends with a status of its own and no traceback, and prints nothing that commands a terminal."""
    result = app.test_cli_runner().invoke(args=["db-session-stats", *typed])

    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    assert result.exit_code != 2 or "Error: " in result.stderr
    assert not {char for char in result.stdout if char != "\n" and ord(char) < 32}
