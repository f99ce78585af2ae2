"""The line on logger ``flask_uow``: when there is one, what it says, and what it never says."""

import json
import logging
import re
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Response
from werkzeug.exceptions import HTTPException, InternalServerError, NotFound

from flask_uow._unit_log import UnitOutcome, is_client_error, log_unit
from flask_uow.exceptions import CommitOutcomeUnknownError, UnitFailedError

SECRET = "4711-s3cret"
FIELDS = ("event", "label", "attempt", "seconds", "statements", "outcome", "error", "sqlstate", "where")


class DriverError(Exception):
    """As psycopg raises it."""

    sqlstate = "23505"


def integrity_error() -> sa.exc.IntegrityError:
    """An error whose text holds the parameters of its statement."""
    error = sa.exc.IntegrityError("INSERT INTO card VALUES (%s)", (SECRET,), DriverError(f"Key (card)=({SECRET})"))
    assert SECRET in str(error)
    return error


def log(caplog: pytest.LogCaptureFixture, **values: Any) -> list[logging.LogRecord]:
    """Log a unit that was rolled back by an error, but for what is given; return what came of it."""
    caplog.clear()
    given: dict[str, Any] = {
        "label": "POST /transfers",
        "where": "bank/transfers.py:41 in transfer",
        "attempt": 1,
        "seconds": 0.01234,
        "statements": 3,
        "outcome": "rolled_back",
        "error": ValueError("no"),
    }
    with caplog.at_level(logging.DEBUG, "flask_uow"):
        log_unit(**(given | values))
    return caplog.records


def line(caplog: pytest.LogCaptureFixture, **values: Any) -> str:
    """Return the one line of such a unit."""
    (record,) = log(caplog, **values)
    return record.getMessage()


# ---- what it says


def test_a_failed_unit_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """In this order, which stays."""
    assert line(caplog) == (
        'unit failed label="POST /transfers" attempt=1 seconds=0.012 statements=3 outcome=rolled_back '
        'error=ValueError where="bank/transfers.py:41 in transfer"'
    )


def test_a_servers_error_has_its_code(caplog: pytest.LogCaptureFixture) -> None:
    """By which it can be looked up."""
    assert " error=IntegrityError sqlstate=23505 where=" in line(caplog, error=integrity_error())


def test_the_code_of_what_has_failed_a_unit_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The error that was swallowed inside is the cause of the one that is seen."""
    error = UnitFailedError("not committed")
    error.__cause__ = integrity_error()

    assert " outcome=failed error=UnitFailedError sqlstate=23505 where=" in line(caplog, error=error, outcome="failed")


def test_a_slow_unit_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Without an error, there is none in it."""
    assert line(caplog, error=None, outcome="committed", is_slow=True, seconds=6.5) == (
        'unit slow label="POST /transfers" attempt=1 seconds=6.500 statements=3 outcome=committed '
        'where="bank/transfers.py:41 in transfer"'
    )


def test_a_lost_attempt_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The next one follows."""
    assert line(caplog, is_retried=True, attempt=2).startswith('unit retried label="POST /transfers" attempt=2 ')


def test_the_fields_are_the_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A formatter that writes JSON has them all, always, as numbers where they are numbers."""
    (record,) = log(caplog, error=integrity_error(), label='GET /"x"\n')
    fields = {name: vars(record)[f"uow_{name}"] for name in FIELDS}

    assert json.loads(json.dumps(fields)) == {
        "event": "failed",
        "label": 'GET /"x"\n',
        "attempt": 1,
        "seconds": 0.012,
        "statements": 3,
        "outcome": "rolled_back",
        "error": "IntegrityError",
        "sqlstate": "23505",
        "where": "bank/transfers.py:41 in transfer",
    }
    assert {name for name in vars(record) if name.startswith("uow_")} == {f"uow_{name}" for name in FIELDS}


def test_a_missing_value_is_a_field_too(caplog: pytest.LogCaptureFixture) -> None:
    """None, so that a query for it finds the column."""
    (record,) = log(caplog, error=None, outcome="committed", is_slow=True)

    assert (vars(record)["uow_error"], vars(record)["uow_sqlstate"]) == (None, None)


def test_lines_of_one_kind_have_one_template(caplog: pytest.LogCaptureFixture) -> None:
    """By which services that collect errors tell what is the same."""
    (first,) = log(caplog)
    first_template = first.msg
    (second,) = log(caplog, label="GET /", seconds=1.0, error=KeyError())

    assert first_template == second.msg
    assert "GET" not in second.msg


# ---- when there is one

ENDINGS: list[tuple[UnitOutcome, BaseException | None, bool, bool, int | None]] = [
    ("committed", None, False, False, None),
    ("committed", KeyError(), False, False, None),  # one of no_rollback_for
    ("committed", None, True, False, logging.WARNING),
    ("rolled_back", None, False, False, None),  # set_rollback_only(), or the status veto
    ("rolled_back", None, True, False, logging.WARNING),
    ("rolled_back", KeyError(), False, False, logging.WARNING),
    ("rolled_back", KeyboardInterrupt(), False, False, logging.WARNING),
    ("rolled_back", KeyError(), False, True, logging.WARNING),
    ("rolled_back", NotFound(), False, False, logging.INFO),
    ("rolled_back", HTTPException(response=Response(status=409)), False, False, logging.INFO),
    ("rolled_back", HTTPException(response=Response(status=503)), False, False, logging.WARNING),
    ("rolled_back", HTTPException(), False, False, logging.WARNING),
    ("rolled_back", NotFound(), True, False, logging.WARNING),
    ("rolled_back", InternalServerError(), False, False, logging.WARNING),
    ("failed", UnitFailedError("lost"), False, False, logging.WARNING),
    ("failed", integrity_error(), False, False, logging.WARNING),
    ("failed", NotFound(), False, False, logging.WARNING),
    ("unknown", CommitOutcomeUnknownError("lost"), False, False, logging.ERROR),
    ("unknown", KeyboardInterrupt(), False, False, logging.ERROR),
    ("unknown", NotFound(), False, False, logging.ERROR),
]


@pytest.mark.parametrize(("outcome", "error", "is_slow", "is_retried", "level"), ENDINGS)
def test_what_went_wrong_is_logged_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
    outcome: UnitOutcome,
    error: BaseException | None,
    is_slow: bool,
    is_retried: bool,
    level: int | None,
) -> None:
    """An answer to the client is no news, a COMMIT of which nobody knows is bad news."""
    records = log(caplog, outcome=outcome, error=error, is_slow=is_slow, is_retried=is_retried)

    assert [record.levelno for record in records] == ([] if level is None else [level])
    assert all(record.name == "flask_uow" for record in records)


def test_it_is_the_error_that_answers_the_client() -> None:
    """A redirect is none that tells of trouble either; any other exception is no answer."""
    assert is_client_error(NotFound())
    assert is_client_error(HTTPException(response=Response(status=302)))
    assert not is_client_error(InternalServerError())
    assert not is_client_error(KeyError())
    assert not is_client_error(None)


# ---- what it never says


def test_no_parameter_of_a_statement_is_in_it(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the line nor in a field, however deep the error lies."""
    outer = UnitFailedError(SECRET)
    outer.__cause__ = integrity_error()
    for error in (integrity_error(), outer, ValueError(SECRET), KeyError(SECRET)):
        for is_retried in (False, True):
            (record,) = log(caplog, error=error, is_retried=is_retried)
            assert SECRET not in logging.Formatter("%(message)s").format(record)
            assert SECRET not in repr(vars(record))
            assert record.exc_info is None


@pytest.mark.parametrize(
    "odd", ["\n", "\r", "\t", "\v", "\f", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e", "\U000e0001"]
)
def test_a_label_forges_no_line(caplog: pytest.LogCaptureFixture, odd: str) -> None:
    """What ends a line, moves the cursor or turns the text round is escaped."""
    forged = f'x"{odd}unit failed label="root'
    written = line(caplog, label=forged, where=forged)

    assert len(written.splitlines()) == 1
    assert written.isprintable()
    assert len(re.findall(r'(?<!\\)"', written)) == 4
    assert _read(written)["label"] == forged
    assert _read(written)["where"] == forged


def test_what_can_be_read_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Umlauts and percent signs are no danger; a backslash is told from an escape."""
    assert ' label="Überweisung %s %(x)s 100 %" ' in line(caplog, label="Überweisung %s %(x)s 100 %")
    assert r' label="a\\nb" ' in line(caplog, label=r"a\nb")


def test_an_error_class_forges_no_value(caplog: pytest.LogCaptureFixture) -> None:
    """Its name is what somebody called it."""
    odd = type("Odd outcome=committed\n", (Exception,), {})

    assert r' error="Odd outcome=committed\n" ' in line(caplog, error=odd())


def test_what_is_no_code_of_a_server_is_written_safely(caplog: pytest.LogCaptureFixture) -> None:
    """An application's own error may have an attribute of that name."""
    error = ValueError()
    error.sqlstate = 'a b"'  # type: ignore[attr-defined]

    assert r' sqlstate="a b\"" ' in line(caplog, error=error)


def _read(written: str) -> dict[str, str]:
    """Read the quoted values back, as JSON's strings are read."""
    quoted = re.findall(r'(\w+)=("(?:\\.|[^"\\])*")', written)
    return {name: json.loads(text) for name, text in quoted}
