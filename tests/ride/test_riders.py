"""What waits, without a driver."""

import pytest

from flask_uow._ride._riders import IDLE, IN_ERROR, Riders


def begun(*statements: str) -> Riders:
    riders = Riders()
    riders.begin("BEGIN")
    for statement in statements:
        assert riders.defer(statement)
    return riders


def sent(*statements: str) -> Riders:
    riders = begun(*statements)
    riders.sent()
    return riders


@pytest.mark.parametrize(
    ("told", "waiting"),
    [
        (["SAVEPOINT a"], ["BEGIN", "SAVEPOINT a"]),
        (["SAVEPOINT a", "RELEASE a"], ["BEGIN"]),
        (["SAVEPOINT a", "RELEASE SAVEPOINT A"], ["BEGIN"]),
        (["SAVEPOINT a", "ROLLBACK TO a"], ["BEGIN", "SAVEPOINT a"]),
        (["SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO SAVEPOINT a"], ["BEGIN", "SAVEPOINT a"]),
        (["SAVEPOINT a", "SAVEPOINT b", "RELEASE a"], ["BEGIN"]),
        (["SAVEPOINT a", "SET LOCAL x.y = 1", "ROLLBACK TO a"], ["BEGIN", "SAVEPOINT a"]),
        (["SET LOCAL x.y = 1", "SAVEPOINT a", "RELEASE a"], ["BEGIN", "SET LOCAL x.y = 1"]),
        (["SAVEPOINT a", "SET LOCAL x.y = 1", "ROLLBACK TO a", "RELEASE a"], ["BEGIN"]),
        (["SAVEPOINT a", "SAVEPOINT a", "RELEASE a"], ["BEGIN", "SAVEPOINT a"]),
        (['SAVEPOINT "a b"', 'RELEASE "a b"'], ["BEGIN"]),
        (["SET LOCAL x.y TO 'it''s (1) [&] ~'"], ["BEGIN", "SET LOCAL x.y TO 'it''s (1) [&] ~'"]),
        (["\n SAVEPOINT  a "], ["BEGIN", "SAVEPOINT  a"]),
    ],
)
def test_savepoint_in_which_nothing_was_said_vanishes(told: list[str], waiting: list[str]) -> None:
    """Only what changes something is sent."""
    assert begun(*told).waiting == waiting


@pytest.mark.parametrize(
    ("told", "waiting"),
    [
        (["RELEASE a"], ["RELEASE a"]),
        (["ROLLBACK TO a"], ["ROLLBACK TO a"]),
        (["SAVEPOINT b", "RELEASE a"], ["RELEASE a"]),
        (["SAVEPOINT b", "SET LOCAL x.y TO 'v'", "ROLLBACK TO a"], ["ROLLBACK TO a"]),
        (["ROLLBACK TO a", "SAVEPOINT b", "RELEASE b"], ["ROLLBACK TO a"]),
    ],
)
def test_savepoint_that_was_sent_is_ended_by_a_rider(told: list[str], waiting: list[str]) -> None:
    """What the server knows of has to be told."""
    riders = sent("SAVEPOINT a")

    for statement in told:
        assert riders.defer(statement)

    assert riders.waiting == waiting


@pytest.mark.parametrize(
    "statement",
    [
        "RELEASE nope",
        "ROLLBACK TO nope",
        "ROLLBACK",
        "SAVEPOINT a; SELECT 1",
        "SAVEPOINT a -- for later",
        "SAVEPOINT 1",
        'SAVEPOINT "100%"',
        'SAVEPOINT "ä"',
        "SAVEPOINT\na",
        "SAVEPOINT user",
        "SAVEPOINT Left",
        "SET LOCAL x.y = 'ä'",
        "SET LOCAL x.y = 'a\nb'",
        r"SET LOCAL x.y = 'a\b'",
        "SET x.y = 1",
        "SET LOCAL x.y = 'a;b'",
        "SET LOCAL x.y = '50%'",
        "SET LOCAL backslash_quote = off",
        "SET LOCAL escape_string_warning = off",
        "SET LOCAL x.y = a, b",
        "SET LOCAL x.y = select",
        "SET LOCAL x..y = 1",
        "SET LOCAL x.User = 1",
        "SET LOCAL current_date = 1",
        "SET LOCAL role = 'a'",
        "SET LOCAL client_encoding = 'LATIN1'",
        "SET LOCAL Standard_Conforming_Strings TO off",
        "SELECT 1",
        "",
    ],
)
def test_anything_else_is_no_rider(statement: str) -> None:
    """A text that is not exactly one rider, or that names an unknown savepoint, is sent at once."""
    riders = begun()

    assert not riders.defer(statement)
    assert riders.waiting == ["BEGIN"]


def test_failed_transaction_takes_a_rollback_alone() -> None:
    """The server has an error to tell for everything else."""
    riders = sent("SAVEPOINT a")

    assert not riders.defer("SAVEPOINT b", IN_ERROR)
    assert not riders.defer("RELEASE a", IN_ERROR)
    assert not riders.defer("SET LOCAL x.y = 1", IN_ERROR)
    assert not riders.defer("SAVEPOINT b", IDLE)
    assert riders.defer("ROLLBACK TO a", IN_ERROR)


def test_rollback_to_a_savepoint_that_waits_ends_the_doom() -> None:
    """The failure lay inside the savepoint."""
    riders = begun("SAVEPOINT a")
    riders.is_doomed = True

    assert riders.status(IDLE) == IN_ERROR
    assert riders.defer("ROLLBACK TO a", riders.status(IDLE))
    assert not riders.is_doomed
    assert riders.waiting == ["BEGIN", "SAVEPOINT a"]


@pytest.mark.parametrize(
    ("told", "along"),
    [
        (["SAVEPOINT b"], []),
        (["RELEASE a"], []),
        (["ROLLBACK TO a"], ["ROLLBACK TO a"]),
        (["ROLLBACK TO a", "RELEASE a"], ["ROLLBACK TO a"]),
        (["SAVEPOINT b", "SET LOCAL x.y = 1"], ["SET LOCAL x.y = 1"]),
    ],
)
def test_commit_takes_along_what_must_not_be_lost(told: list[str], along: list[str]) -> None:
    """Dropped, a ROLLBACK TO would commit what it rolls back, and a bad setting would be no error."""
    riders = sent("SAVEPOINT a")
    for statement in told:
        assert riders.defer(statement)

    assert riders.for_commit() == along


def test_commit_of_nothing_takes_nothing_along() -> None:
    """A transaction in which nothing was said is not begun; one with a setting is."""
    assert begun("SAVEPOINT a").for_commit() == []
    assert begun("SAVEPOINT a", "SET LOCAL x.y = 1", "ROLLBACK TO a").for_commit() == []
    assert begun("SET LOCAL x.y = 1").for_commit() == ["BEGIN", "SET LOCAL x.y = 1"]


def test_label_goes_along_with_a_begin_alone() -> None:
    """The label costs no trip, and a read without a transaction none either."""
    riders = Riders()
    riders.add(["SET LOCAL application_name = 'view'"])
    riders.begin("BEGIN")

    assert riders.waiting == ["BEGIN", "SET LOCAL application_name = 'view'"]
    assert riders.is_untouched
    assert riders.for_commit() == []
    riders.take_back_begin()
    assert not riders.waiting
    riders.begin("BEGIN")
    assert riders.waiting == ["BEGIN", "SET LOCAL application_name = 'view'"]
    riders.end()
    riders.begin("BEGIN")
    assert riders.waiting == ["BEGIN"]


def test_savepoint_in_which_a_setting_waits_is_not_released_by_a_rider() -> None:
    """The setting's error would come after the savepoint in which it is one."""
    for riders, waiting in ((begun("SAVEPOINT a"), ["BEGIN", "SAVEPOINT a"]), (sent("SAVEPOINT a"), [])):
        assert riders.defer("SAVEPOINT b")
        assert riders.defer("SET LOCAL x.y = 1")

        for name in ("a", "b"):
            assert riders.way_back(f"RELEASE SAVEPOINT {name}") == f'ROLLBACK TO SAVEPOINT "{name}"'
            assert not riders.defer(f"RELEASE SAVEPOINT {name}")
        assert riders.waiting == [*waiting, "SAVEPOINT b", "SET LOCAL x.y = 1"]
        for statement in ("RELEASE nope", "ROLLBACK TO a", "COMMIT"):
            assert not riders.way_back(statement)
        riders.sent()
        riders.forget_savepoints("RELEASE SAVEPOINT b")
        assert not riders.defer("RELEASE b")
        assert riders.defer("RELEASE a")


def test_there_is_no_way_back_to_a_savepoint_that_may_not_be_made() -> None:
    """If the setting before it fails, the transaction has failed as a whole."""
    riders = begun("SET LOCAL x.y = 1")
    assert riders.defer("SAVEPOINT a")
    assert riders.defer("SET LOCAL x.y = 2")

    assert not riders.way_back("RELEASE a")


def test_savepoint_of_a_known_name_does_not_wait_behind_a_setting() -> None:
    """If that fails, it is the outer one of the two to which a ROLLBACK TO goes back."""
    riders = Riders()
    riders.begin("BEGIN")
    assert riders.defer("SAVEPOINT a")
    assert riders.defer("SAVEPOINT A")
    assert riders.defer("SET LOCAL my.setting = 'value'")

    assert not riders.defer("SAVEPOINT a")
    assert riders.defer("SAVEPOINT b")


def test_rollback_to_one_of_two_savepoints_alike_is_sent_at_once() -> None:
    """The server is to hear first what has ended the inner one, or it would go back to that."""
    riders = Riders()
    riders.begin("BEGIN")
    for statement in ("SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a"):
        assert riders.defer(statement)
    riders.sent()
    assert riders.defer("ROLLBACK TO b")

    assert not riders.defer("ROLLBACK TO a")
    assert riders.waiting == ["ROLLBACK TO b"]
    riders.sent()
    assert riders.defer("ROLLBACK TO a")
