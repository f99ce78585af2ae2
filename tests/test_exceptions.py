"""The errors and the warning: who is whose kind, what they say, and that they travel."""

import copy
import pickle
import re

import pytest

from flask_uow import exceptions
from flask_uow.exceptions import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    IsolationError,
    NoActiveUnitError,
    PartialCommitError,
    RuleViolationError,
    RuleWarning,
    UnitActiveError,
    UnitFailedError,
    UnitOfWorkError,
    UnitOptionsError,
    UnitTimeoutError,
)

WHAT, WHERE, FIX = "It went wrong.", "bank/transfers.py:41 in transfer", "Do it right."

PLAIN = (
    UnitOfWorkError,
    ConfigurationError,
    IsolationError,
    NoActiveUnitError,
    UnitActiveError,
    UnitOptionsError,
    UnitFailedError,
    PartialCommitError,
    UnitTimeoutError,
    IsolationError,
)
WITH_CODE = (RuleViolationError, RuleWarning)

# Each class at least once, with all of its fields and with as few as it can do with.
EXAMPLES = (
    *(cls(WHAT, WHERE, FIX) for cls in PLAIN),
    *(cls(WHAT) for cls in PLAIN),
    CommitOutcomeUnknownError(WHAT, WHERE, FIX, "4711"),
    CommitOutcomeUnknownError(WHAT, fix=FIX, xid="4711"),
    CommitOutcomeUnknownError(WHAT),
    PartialCommitError(WHAT, WHERE, FIX, ("default",), ("audit",), ("archive",)),
    *(cls("UOW103", WHAT, WHERE, FIX) for cls in WITH_CODE),
    *(cls("UOW103", WHAT, fix=FIX) for cls in WITH_CODE),
    *(cls("UOW103", WHAT) for cls in WITH_CODE),
)

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=repr)


def test_hierarchy() -> None:
    """Every error is a ``UnitOfWorkError``; the one warning is a ``UserWarning``."""
    bases = {name: {base.__name__ for base in getattr(exceptions, name).__bases__} for name in exceptions.__all__}

    assert bases == {
        "UnitOfWorkError": {"Exception"},
        "ConfigurationError": {"UnitOfWorkError"},
        "IsolationError": {"UnitOfWorkError"},
        "NoActiveUnitError": {"UnitOfWorkError", "RuntimeError"},
        "UnitActiveError": {"UnitOfWorkError"},
        "UnitOptionsError": {"UnitOfWorkError"},
        "UnitFailedError": {"UnitOfWorkError"},
        "PartialCommitError": {"UnitFailedError"},
        "UnitTimeoutError": {"UnitOfWorkError"},
        "CommitOutcomeUnknownError": {"UnitOfWorkError"},
        "RuleViolationError": {"UnitOfWorkError"},
        "RuleWarning": {"UserWarning"},
    }


def test_every_class_is_an_example() -> None:
    """The tests below leave none out."""
    assert {type(example).__name__ for example in EXAMPLES} == set(exceptions.__all__)


@pytest.mark.parametrize("cls", PLAIN)
def test_text_says_what_where_and_how_to_mend_it(cls: type[UnitOfWorkError]) -> None:
    """The first line stands alone; the place and the order follow, each if there is one."""
    assert str(cls(WHAT, WHERE, FIX)) == f"{WHAT}\n  where: {WHERE}\n  fix:   {FIX}"
    assert str(cls(WHAT, None, FIX)) == f"{WHAT}\n  fix:   {FIX}"
    assert str(cls(WHAT, WHERE)) == f"{WHAT}\n  where: {WHERE}"
    assert str(cls(WHAT)) == WHAT


@pytest.mark.parametrize("cls", WITH_CODE)
def test_text_of_a_violation_begins_with_its_code(cls: type[RuleViolationError | RuleWarning]) -> None:
    """Error and warning have one text, in the shape that the rules' documentation shows."""
    violation = cls(
        "UOW101",
        "session.commit() was called inside unit of work 'POST /transfers'.",
        "bank/transfers.py:41 in transfer",
        "Delete the commit.",
    )

    assert str(violation) == (
        "[UOW101] session.commit() was called inside unit of work 'POST /transfers'.\n"
        "  where: bank/transfers.py:41 in transfer\n"
        "  fix:   Delete the commit."
    )


def test_text_of_an_unknown_outcome_leaves_the_transaction_id_to_its_field() -> None:
    """The id is for programs, the text for people."""
    error = CommitOutcomeUnknownError(WHAT, WHERE, FIX, "4711")

    assert str(error) == f"{WHAT}\n  where: {WHERE}\n  fix:   {FIX}"
    assert error.xid == "4711"
    assert CommitOutcomeUnknownError(WHAT).xid is None


@every_example
def test_fields(example: UnitOfWorkError | RuleWarning) -> None:
    """What the text is made of can be read one by one."""
    assert example.what == WHAT
    assert example.where in (WHERE, None)
    assert example.fix in (FIX, None)
    if isinstance(example, WITH_CODE):
        assert example.code == "UOW103"


@every_example
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(example: UnitOfWorkError | RuleWarning, protocol: int) -> None:
    """A worker of a task queue may send any of them home."""
    read = pickle.loads(pickle.dumps(example, protocol))

    assert type(read) is type(example)
    assert str(read) == str(example)
    assert vars(read) == vars(example)
    assert read.args == example.args


@every_example
def test_arguments_make_it_again(example: UnitOfWorkError | RuleWarning) -> None:
    """Nothing that it was made of is missing in ``args``."""
    again = type(example)(*example.args)

    assert vars(again) == vars(example)


@every_example
def test_copying(example: UnitOfWorkError | RuleWarning) -> None:
    """A copy says the same."""
    assert str(copy.copy(example)) == str(example)
    assert vars(copy.copy(example)) == vars(example)


def test_notes_travel_too() -> None:
    """What was added on the way is not lost on the way."""
    error = UnitFailedError(WHAT, WHERE, FIX)
    error.add_note("seen by worker 7")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen by worker 7"]


@pytest.mark.parametrize("caught", [UnitOfWorkError, NoActiveUnitError, RuntimeError])
def test_missing_unit_is_a_runtime_error(caught: type[Exception]) -> None:
    """Like Flask's own error for a missing context, so that a proxy's user may treat both alike."""
    with pytest.raises(caught, match=rf"^{re.escape(WHAT)}$"):
        raise NoActiveUnitError(WHAT)


def test_warning_can_be_warned_and_raised() -> None:
    """It works with Python's warnings, and where these are turned into errors."""
    with pytest.raises(RuleWarning, match=r"^\[UOW103\] It went wrong\.$") as caught:
        raise RuleWarning("UOW103", WHAT)

    assert isinstance(caught.value, UserWarning)
