"""Options of a unit of any kind, alone and one inside another: refused with a text of ours, or they run."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from flask_uow import Propagation, UnitOfWork, _retry, current_unit, transactional
from flask_uow._options import _CHECKS, ISOLATION_LEVELS
from flask_uow.exceptions import UnitOfWorkError, UnitOptionsError
from tests.fuzz.odd_values import Speechless, bounded, odd_values, refusal_of
from tests.models import checked_out

MOST_CHARACTERS = 5000
unchecked: Callable[..., Any] = transactional

RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "propagation": st.sampled_from([*Propagation, *(member.value for member in Propagation)]),
    "read_only": st.booleans(),
    "isolation": st.sampled_from([None, *ISOLATION_LEVELS, "serializable", "read_committed"]),
    "deferrable": st.booleans(),
    "timeout": st.sampled_from([None, 5e-324, 1, 30.0, 3e6, 1e300]),
    "retries": st.sampled_from([None, 0, 1, 10**30]),
    "durable": st.booleans(),
    "rollback_for": st.sampled_from([KeyError, (KeyError,), [LookupError, OSError], ()]),
    "no_rollback_for": st.sampled_from([KeyError, (ValueError,), {LookupError}, BaseException, ()]),
    "rollback_on_status": st.sampled_from([None, 100, 400, 599, bool]) | st.just(lambda status: status == 200),
    "on_error": st.sampled_from([None, str, lambda error: "answered"]),
    "confirm_commit": st.booleans(),
    "label": st.sampled_from([None, "unit", "'; DROP TABLE item;--", "\0\n\x1b[31m\ud800", "l" * 100_000]),
}
right_options = st.fixed_dictionaries({}, optional=RIGHT)


def test_every_option_is_drawn() -> None:
    """A new option is one of those that are tried."""
    assert RIGHT.keys() == _CHECKS.keys()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """An app on a file of SQLite."""
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/bank.db", TESTING=True, UOW_RULES="off")
    UnitOfWork(app)
    monkeypatch.setattr(_retry, "BASE_DELAY_S", 0.0)
    monkeypatch.setattr(logging.getLogger("flask_uow"), "disabled", True)
    yield app
    with app.app_context():
        app.extensions["uow"].engine.dispose()


@bounded
@given(options=st.dictionaries(st.sampled_from(sorted(_CHECKS)) | st.text(max_size=5), odd_values(), max_size=3))
@example(options={"timeout": 10**400})
@example(options={"retries": -(10**5000)})
def test_any_value_of_an_option(options: dict[str, Any]) -> None:
    """It is refused where it is written, and quoted, or it is an option."""
    error = refusal_of(lambda: unchecked(**options), UnitOptionsError, TypeError)

    if isinstance(error, TypeError):
        assert "transactional() has no option" in str(error)
        assert not options.keys() <= _CHECKS.keys()
    elif error is not None:
        assert any(f"{name}=" in str(error) or f"{name} and " in str(error) for name in options), error
        assert "\n  fix:   " in str(error)
        assert len(str(error)) < MOST_CHARACTERS


@pytest.mark.parametrize("name", sorted(_CHECKS))
def test_a_value_that_has_no_text_is_refused(name: str) -> None:
    """Its class is named instead."""
    with pytest.raises(
        UnitOptionsError, match=rf"^transactional\({name}=<Speechless that cannot be shown>\): expected"
    ):
        unchecked(**{name: Speechless()})


@bounded
@given(function=odd_values())
def test_anything_that_is_decorated(function: object) -> None:
    """What is no function is refused by a text of ours."""
    error = refusal_of(lambda: unchecked()(function), TypeError)

    assert error is not None or callable(function)
    assert error is None or str(error).startswith("@transactional ")
    assert len(str(error)) < MOST_CHARACTERS


@bounded
@given(outer=right_options, inner=right_options, fails=st.booleans())
@example(outer={"timeout": 1e300}, inner={}, fails=False)
def test_right_options_inside_each_other(app: Flask, outer: dict[str, Any], inner: dict[str, Any], fails: bool) -> None:
    """Every pair runs, or says in a text of ours why not; afterwards nothing is open, and the next unit runs."""
    with app.app_context():
        session = app.extensions["uow"].session

        def run_inside() -> str:
            session.execute(sa.text("SELECT 1"))
            if fails:
                raise KeyError("no")
            return "inner"

        def run() -> str:
            session.execute(sa.text("SELECT 1"))
            answer: str = unchecked(**inner)(run_inside)()
            return answer

        def decorate_and_call() -> None:
            unchecked(**outer)(run)()

        error = refusal_of(decorate_and_call, UnitOfWorkError, KeyError)
        assert fails or not isinstance(error, KeyError)
        assert not current_unit
        session.remove()
        with transactional():
            assert session.scalar(sa.text("SELECT 1")) == 1
    assert checked_out(app) == 0
