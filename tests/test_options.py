"""The options of a unit: what each takes, which contradict each other, and what they say of another unit."""

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from flask_uow import Propagation, transactional
from flask_uow._options import Relation, UnitOptions, is_vetoed, relation
from flask_uow.exceptions import NoActiveUnitError, UnitActiveError, UnitOfWorkError, UnitOptionsError

NAMES = "'nested', 'required', 'requires_new', 'mandatory', 'supports', 'not_supported', 'never'"
LEVELS = "'READ UNCOMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'"


class Rejected(Exception):
    """A business rule failed."""


class RejectedForMoney(Rejected):
    """There is not enough of it."""


class RejectedForGood(RejectedForMoney):
    """And there will never be."""


class CoroutineFunction:
    """An object that is called as one."""

    async def __call__(self, argument: object) -> None:
        """Do nothing."""


async def coroutine_function(argument: object) -> None:
    """Stand where a plain function is wanted."""


# ---- one by one

A_BOOLEAN = "expected True or False."
SECONDS = "expected a number of seconds above 0."
COUNT = "expected a whole number, 0 or above."
CLASSES = "expected an exception class or several."
STATUS = "expected an HTTP status from 100 to 599, or a function of the status."
FUNCTION = "expected a plain function of the exception."
TEXT = "expected a text that is not empty."
PROPAGATION = f"expected a Propagation or one of {NAMES}."
ISOLATION = f"expected one of {LEVELS}."


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("propagation", "NESTED", PROPAGATION),
        ("propagation", "new", PROPAGATION),
        ("propagation", None, PROPAGATION),
        ("propagation", ["nested"], PROPAGATION),
        ("propagation", Relation.JOIN, PROPAGATION),
        ("read_only", None, A_BOOLEAN),
        ("read_only", 1, A_BOOLEAN),
        ("read_only", "yes", A_BOOLEAN),
        ("isolation", "AUTOCOMMIT", ISOLATION),
        ("isolation", "SNAPSHOT", ISOLATION),
        ("isolation", "", ISOLATION),
        ("isolation", 3, ISOLATION),
        ("isolation", ["SERIALIZABLE"], ISOLATION),
        ("deferrable", 1, A_BOOLEAN),
        ("timeout", 0, SECONDS),
        ("timeout", -1.5, SECONDS),
        ("timeout", True, SECONDS),
        ("timeout", "5", SECONDS),
        ("timeout", float("nan"), SECONDS),
        ("timeout", float("inf"), SECONDS),
        ("retries", -1, COUNT),
        ("retries", 1.0, COUNT),
        ("retries", True, COUNT),
        ("retries", "3", COUNT),
        ("durable", 0, A_BOOLEAN),
        ("timeout", 10**400, SECONDS),
        ("rollback_for", "ValueError", CLASSES),
        ("rollback_for", ValueError("not the class"), CLASSES),
        ("rollback_for", int, CLASSES),
        ("rollback_for", None, CLASSES),
        ("rollback_for", (ValueError, "KeyError"), CLASSES),
        ("rollback_for", range(0), CLASSES),
        ("rollback_for", {ValueError: KeyError}, CLASSES),
        ("no_rollback_for", 5, CLASSES),
        ("no_rollback_for", [ValueError, int], CLASSES),
        ("rollback_on_status", 99, STATUS),
        ("rollback_on_status", 600, STATUS),
        ("rollback_on_status", True, STATUS),
        ("rollback_on_status", "400", STATUS),
        ("rollback_on_status", 400.0, STATUS),
        ("rollback_on_status", int, STATUS),
        ("rollback_on_status", coroutine_function, STATUS),
        ("rollback_on_status", CoroutineFunction(), STATUS),
        ("rollback_on_status", functools.partial(CoroutineFunction()), STATUS),
        ("on_error", 5, FUNCTION),
        ("on_error", "print", FUNCTION),
        ("on_error", coroutine_function, FUNCTION),
        ("on_error", CoroutineFunction(), FUNCTION),
        ("confirm_commit", "yes", A_BOOLEAN),
        ("label", "", TEXT),
        ("label", " \t", TEXT),
        ("label", 5, TEXT),
        ("label", b"transfer", TEXT),
    ],
    ids=lambda value: None if callable(value) else repr(value) if not isinstance(value, str) else value[:20],
)
def test_wrong_option_is_refused_where_it_is_written(name: str, value: object, wanted: str) -> None:
    """A value that cannot be used fails when the decorator is applied, and is quoted with its name."""
    with pytest.raises(UnitOptionsError) as caught:
        transactional(**{name: value})  # type: ignore[call-overload]

    assert caught.value.what == f"transactional({name}={value!r}): {wanted}"
    assert str(caught.value.where).endswith(" in test_wrong_option_is_refused_where_it_is_written")
    assert caught.value.fix == f"Pass {name} as described, or leave it out."


def test_unknown_option_is_refused() -> None:
    """A misspelt option is an error, as for any function, and the options are listed."""
    with pytest.raises(TypeError, match=r"^transactional\(\) has no option 'readonly'; its options are: propagation, "):
        transactional(readonly=True)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param(
            {"rollback_for": (KeyError, ValueError), "no_rollback_for": [ValueError, KeyError]},
            "rollback_for and no_rollback_for both name KeyError, ValueError.",
            id="one class in both lists",
        ),
        *(
            pytest.param(
                {"durable": True, "propagation": name},
                f"durable=True and propagation={name!r} contradict each other: a durable unit always begins a",
                id=f"durable and {name}",
            )
            for name in ("mandatory", "supports", "not_supported", "never")
        ),
        pytest.param({"deferrable": True}, "deferrable=True has no effect unless", id="deferrable alone"),
        pytest.param(
            {"deferrable": True, "read_only": True}, "deferrable=True has no effect unless", id="not serializable"
        ),
        pytest.param(
            {"deferrable": True, "isolation": "SERIALIZABLE"}, "deferrable=True has no effect unless", id="may write"
        ),
        pytest.param(
            {"deferrable": True, "read_only": True, "isolation": "REPEATABLE READ"},
            "deferrable=True has no effect unless read_only=True and isolation='SERIALIZABLE' are given too.",
            id="less than serializable",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], text: str) -> None:
    """Two options of which one would be silently without effect are an error, with a way out."""
    with pytest.raises(UnitOptionsError, match=rf"^{re.escape(text)}[^\n]*\n  where: [^\n]+\n  fix:   [^\n]+$"):
        transactional(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timeout": None, "retries": None, "isolation": None, "rollback_on_status": None, "on_error": None},
        {"label": None},
        {"retries": 0},
        {"retries": 100},
        {"timeout": 0.001},
        {"timeout": 60},
        {"rollback_on_status": 100},
        {"rollback_on_status": 599},
        {"rollback_on_status": bin},
        {"on_error": repr},
        {"rollback_for": ()},
        {"rollback_for": KeyboardInterrupt},
        {"rollback_for": RejectedForMoney, "no_rollback_for": Rejected},
        {"deferrable": True, "read_only": True, "isolation": "serializable"},
        {"durable": True},
        {"durable": True, "propagation": "required"},
        {"durable": True, "propagation": "requires_new"},
    ],
    ids=str,
)
def test_right_options_are_taken(options: dict[str, Any]) -> None:
    """What the documentation allows passes."""
    assert UnitOptions.checked(options)


def test_defaults() -> None:
    """Without options a unit nests, may write, is tried as often as the app says, and rolls back for everything."""
    options = UnitOptions.checked({})

    assert options == UnitOptions()
    assert options.propagation is Propagation.NESTED
    assert (options.read_only, options.deferrable, options.durable, options.confirm_commit) == (False,) * 4
    assert (options.isolation, options.timeout, options.retries, options.label) == (None, None, None, None)
    assert (options.rollback_on_status, options.on_error) == (None, None)
    assert options.rolls_back_for(BaseException())


def test_propagation_has_seven_members() -> None:
    """Each is known by its name in lower case."""
    assert {member.name: member.value for member in Propagation} == {
        "NESTED": "nested",
        "REQUIRED": "required",
        "REQUIRES_NEW": "requires_new",
        "MANDATORY": "mandatory",
        "SUPPORTS": "supports",
        "NOT_SUPPORTED": "not_supported",
        "NEVER": "never",
    }


@pytest.mark.parametrize("member", Propagation, ids=lambda member: member.value)
def test_propagation_is_a_member_or_its_name(member: Propagation) -> None:
    """The enumeration's member and the text mean the same."""
    assert UnitOptions.checked({"propagation": member}).propagation is member
    assert UnitOptions.checked({"propagation": member.value}).propagation is member


@pytest.mark.parametrize("typed", ["REPEATABLE READ", "repeatable read", "Repeatable_Read", "REPEATABLE_READ"])
def test_isolation_is_read_in_any_case(typed: str) -> None:
    """SQL's spelling and Python's are the same level."""
    assert UnitOptions.checked({"isolation": typed}).isolation == "REPEATABLE READ"


# ---- which exceptions roll back


@pytest.mark.parametrize(
    ("rollback_for", "no_rollback_for", "raised", "expected"),
    [
        pytest.param((), (), Rejected(), True, id="neither names it"),
        pytest.param((), (), KeyboardInterrupt(), True, id="neither names it, and it is no Exception"),
        pytest.param((), Rejected, Rejected(), False, id="kept"),
        pytest.param((), Rejected, RejectedForGood(), False, id="kept by its base"),
        pytest.param((), RejectedForMoney, Rejected(), True, id="a subclass is kept"),
        pytest.param((), (ValueError, Rejected), Rejected(), False, id="one of several"),
        pytest.param((), Exception, KeyboardInterrupt(), True, id="no Exception"),
        pytest.param((), BaseException, SystemExit(), False, id="everything is kept"),
        pytest.param(Rejected, (), Rejected(), True, id="rolled back, as without"),
        pytest.param(Rejected, (), ValueError(), True, id="others roll back all the same"),
        pytest.param(RejectedForMoney, Rejected, Rejected(), False, id="the base is kept"),
        pytest.param(RejectedForMoney, Rejected, RejectedForMoney(), True, id="the subclass rolls back"),
        pytest.param(RejectedForMoney, Rejected, RejectedForGood(), True, id="the nearest base of two rolls back"),
        pytest.param(Rejected, RejectedForMoney, Rejected(), True, id="the base rolls back"),
        pytest.param(Rejected, RejectedForMoney, RejectedForGood(), False, id="the nearest base of two is kept"),
        pytest.param(Rejected, RejectedForGood, RejectedForMoney(), True, id="the middle goes with its base"),
        pytest.param((Rejected, RejectedForGood), RejectedForMoney, RejectedForGood(), True, id="itself before bases"),
    ],
)
def test_most_specific_class_wins(
    rollback_for: Any, no_rollback_for: Any, raised: BaseException, expected: bool
) -> None:
    """Of the classes in both lists, the one nearest to the exception's own decides; none of them means rollback."""
    options = UnitOptions.checked({"rollback_for": rollback_for, "no_rollback_for": no_rollback_for})

    assert options.rolls_back_for(raised) is expected


def test_order_of_inheritance_decides_between_two_bases() -> None:
    """An exception with two bases follows the one that Python looks at first."""

    class Both(LookupError, ArithmeticError):
        pass

    class BothTheOtherWay(ArithmeticError, LookupError):
        pass

    options = UnitOptions.checked({"rollback_for": ArithmeticError, "no_rollback_for": LookupError})

    assert not options.rolls_back_for(Both())
    assert options.rolls_back_for(BothTheOtherWay())


@pytest.mark.parametrize(
    ("rule", "status", "expected"),
    [
        (None, 500, False),
        (400, 399, False),
        (400, 400, True),
        (400, 503, True),
        ([404].__contains__, 404, True),
        ([404].__contains__, 500, False),
    ],
    ids=lambda value: "function" if callable(value) else str(value),
)
def test_status_veto(rule: int | Callable[[int], bool] | None, status: int, expected: bool) -> None:
    """A number vetoes itself and what is above it, a function what it says yes to."""
    assert is_vetoed(rule, status) is expected


# ---- how a unit stands to another

BEGIN, SAVEPOINT, JOIN = Relation.BEGIN, Relation.SAVEPOINT, Relation.JOIN
INDEPENDENT, WITHOUT, SUSPEND = Relation.INDEPENDENT, Relation.WITHOUT, Relation.SUSPEND


@pytest.mark.parametrize(
    ("propagation", "outside", "inside"),
    [
        ("nested", BEGIN, SAVEPOINT),
        ("required", BEGIN, JOIN),
        ("requires_new", BEGIN, INDEPENDENT),
        ("mandatory", NoActiveUnitError, JOIN),
        ("supports", WITHOUT, JOIN),
        ("not_supported", WITHOUT, SUSPEND),
        ("never", WITHOUT, UnitActiveError),
    ],
)
def test_relation_of_units(
    propagation: str, outside: Relation | type[UnitOfWorkError], inside: Relation | type[UnitOfWorkError]
) -> None:
    """What a unit does alone and inside another one, for each propagation."""
    options = UnitOptions.checked({"propagation": propagation})

    assert answer(options, None) is outside
    assert answer(options, "POST /transfers") is inside


@pytest.mark.parametrize("propagation", ["nested", "required", "requires_new"])
def test_durable_unit_is_outermost(propagation: str) -> None:
    """A durable unit begins, and refuses to be an inner one, whatever else it would do there."""
    options = UnitOptions.checked({"propagation": propagation, "durable": True})

    assert answer(options, None) is BEGIN
    assert answer(options, "POST /transfers") is UnitActiveError


def answer(options: UnitOptions, active_label: str | None) -> Relation | type[UnitOfWorkError]:
    try:
        return relation(options, active_label)
    except UnitOfWorkError as error:
        return type(error)


@pytest.mark.parametrize(
    ("options", "active_label", "text"),
    [
        pytest.param(
            {"propagation": "mandatory"},
            None,
            "propagation='mandatory' needs a unit of work to be active, and none is.\n"
            "  fix:   Call this function from inside a @transactional view, command or function.",
            id="mandatory",
        ),
        pytest.param(
            {"propagation": "never"},
            "POST /transfers",
            "propagation='never' allows no active unit of work, and 'POST /transfers' is active.\n"
            "  fix:   Call this function outside of any unit.",
            id="never",
        ),
        pytest.param(
            {"durable": True},
            "POST /transfers",
            "A durable unit cannot run inside unit of work 'POST /transfers': its commit would not be the last word.\n"
            "  fix:   Call it after that unit has ended, or drop durable=True.",
            id="durable",
        ),
    ],
)
def test_refusal_names_the_active_unit(options: dict[str, Any], active_label: str | None, text: str) -> None:
    """Who is refused learns why, by whom, and what to do."""
    with pytest.raises(UnitOfWorkError, match=rf"^{re.escape(text)}$"):
        relation(UnitOptions.checked(options), active_label)
