"""The rules as a table, and what one violation is: one error or warning, one signal, one count."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import currentframe
from pathlib import Path
from string import Formatter

import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork, transactional
from flask_uow._callsite import CallSite
from flask_uow._rules import RULES, Rule, RuleBook, report, report_at_teardown, report_now, violation
from flask_uow._settings import read_settings
from flask_uow.exceptions import RuleViolationError, RuleWarning
from flask_uow.signals import rule_violated, session_leaked

HERE = Path(__file__)
FATAL = {"UOW101", "UOW102", "UOW111", "UOW201", "UOW203"}
ORIGINS = {
    "UOW101": "SIP-99B",
    "UOW102": "SIP-99B",
    "UOW103": "SIP-99A",
    "UOW104": "SIP-99A",
    "UOW105": "SIP-99A",
    "UOW106": "SIP-99A",
    "UOW107": "best practices",
    "UOW108": "best practices",
    "UOW109": "best practices",
    "UOW110": "pools",
    "UOW111": "reads",
    "UOW201": "scoped sessions",
    "UOW202": "leaks",
    "UOW203": "scoped sessions",
}

Violation = RuleViolationError | RuleWarning


@pytest.fixture
def app() -> Flask:
    """An app that nothing was done with."""
    return Flask("bank")


@contextmanager
def signalled(app: Flask) -> Iterator[list[Violation]]:
    """Collect what receivers of the signal get."""
    seen: list[Violation] = []

    def violated(sender: Flask, code: str, violation: Violation) -> None:
        assert sender is app
        assert violation.code == code
        seen.append(violation)

    with rule_violated.connected_to(violated, app):
        yield seen


def book_with(mode: str) -> RuleBook:
    """Return a rule book in which every rule that has a mode has this one."""
    return RuleBook({code: mode for code, rule in RULES.items() if not rule.is_fatal})


def lost() -> RuleViolationError:
    return violation("UOW103", lost="statements that wrote were sent")


def line_here() -> int:
    """Return the line of the caller."""
    frame = currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


# ---- the table


def test_table_has_every_rule() -> None:
    """Codes never change their meaning, nor where they come from; the table is in their order."""
    assert {code: rule.origin for code, rule in RULES.items()} == ORIGINS
    assert list(RULES) == sorted(RULES)
    assert all(rule.code == code for code, rule in RULES.items())


def test_table_says_which_are_always_errors() -> None:
    """What would break a unit, or use a session that is nobody's, is refused in every mode."""
    assert {code for code, rule in RULES.items() if rule.is_fatal} == FATAL


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_texts_of_a_rule(rule: Rule) -> None:
    """What happened is a sentence in one line, what to do is an order; nothing stays unfilled."""
    names = {name for text in (rule.what, rule.fix) for _, name, _, _ in Formatter().parse(text) if name}

    error = violation(rule.code, None, **dict.fromkeys(names, "x"))

    assert "\n" not in error.what
    assert error.fix is not None
    assert error.fix[0].isupper()
    assert "{" not in str(error)
    assert error.code == rule.code


# ---- one violation


def test_violation_blames_the_current_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another line to blame, it is the application's innermost one."""
    monkeypatch.chdir(HERE.parent.parent)

    error, line = violation("UOW201", what="uow.session"), line_here()

    assert str(error) == (
        "[UOW201] uow.session was used outside an app context.\n"
        f"  where: tests/test_rules.py:{line} in test_violation_blames_the_current_line\n"
        "  fix:   Push one: with app.app_context(): ...; in a thread, inside the thread's function; "
        "on a command, @with_appcontext."
    )


def test_violation_blames_the_line_that_it_is_given() -> None:
    """What is found late is blamed on the line that did it."""
    site = CallSite(lost.__code__, 7)

    assert violation("UOW103", site, lost="x").where == str(site)


def test_braces_in_details_are_left_alone() -> None:
    """A statement may hold what looks like something to be filled in."""
    assert violation("UOW111", label="{x}", statement="SELECT '{y}'").what.endswith("'{x}': SELECT '{y}'")


@pytest.mark.parametrize("mode", ["off", "warn", "error"])
@pytest.mark.parametrize("code", sorted(FATAL))
def test_fatal_rule_is_an_error_in_every_mode(app: Flask, code: str, mode: str) -> None:
    """No mode makes a warning of it, or nothing."""
    details = dict.fromkeys(("call", "label", "noun", "reason", "statement", "what"), "x")
    book = book_with(mode)

    with signalled(app) as seen, pytest.raises(RuleViolationError, match=rf"^\[{code}\] ") as caught:
        report_now(app, book, violation(code, None, **details))

    assert seen == [caught.value]
    assert book.counts == Counter({code: 1})


def test_reported_error_is_counted_and_signalled(app: Flask) -> None:
    """The caller raises it: here it is one signal, one count."""
    book, error = book_with("off"), violation("UOW201", what="x")

    with signalled(app) as seen:
        report(app, book, error)

    assert seen == [error]
    assert book.counts == Counter(UOW201=1)


def test_mode_error_raises(app: Flask) -> None:
    """One error, one signal that carries it, one count."""
    book, error = book_with("error"), lost()

    with signalled(app) as seen, pytest.raises(RuleViolationError, match=r"^\[UOW103\] ") as caught:
        report_now(app, book, error)

    assert caught.value is error
    assert seen == [error]
    assert book.counts == Counter(UOW103=1)


def test_mode_warn_warns(app: Flask) -> None:
    """One warning with the error's text, blamed on the application's line, one signal that carries it, one count."""
    book, error = book_with("warn"), lost()

    with signalled(app) as seen, pytest.warns(RuleWarning, match=r"^\[UOW103\] ") as caught:
        report_now(app, book, error)
        line = line_here() - 1

    assert [warning.message for warning in caught] == seen
    assert [(str(warning.message), warning.filename, warning.lineno) for warning in caught] == [
        (str(error), str(HERE), line)
    ]
    assert vars(seen[0]) == vars(error)
    assert book.counts == Counter(UOW103=1)


def test_mode_off_is_silent(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised, warned of, logged, signalled or counted."""
    book = book_with("off")

    with signalled(app) as seen:
        report_now(app, book, lost())
        report_at_teardown(app, book, lost())

    assert seen == []
    assert not book.counts
    assert caplog.messages == []


def test_warning_that_is_an_error_is_counted_and_signalled_before(app: Flask) -> None:
    """Python's filters may make an exception of it; it has been seen all the same."""
    book = book_with("warn")

    with signalled(app) as seen, pytest.raises(RuleWarning, match=r"^\[UOW103\] ") as caught:
        report_now(app, book, lost())  # the run's own filter: every warning is an error

    assert seen == [caught.value]
    assert book.counts == Counter(UOW103=1)


def test_each_rule_has_a_mode_of_its_own(app: Flask) -> None:
    """A dict sets the modes apart."""
    config = {"UOW_RULES": {"UOW103": "off", "UOW202": "error"}}
    book = RuleBook(read_settings(config, owns_engines=False).rule_modes)

    with signalled(app) as seen:
        report_now(app, book, lost())
        with pytest.raises(RuleViolationError, match=r"^\[UOW202\] "):
            report_now(app, book, violation("UOW202", who="session", what="x"))
        with pytest.warns(RuleWarning, match=r"^\[UOW104\] "):
            report_now(app, book, violation("UOW104"))

    assert [error.code for error in seen] == ["UOW202", "UOW104"]


def test_texts_that_differ_do_not_pile_up(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python remembers each text that it has shown, and an object's key may be in it."""
    shown: list[str] = []
    book = book_with("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
        for number in range(3_000):
            for _ in range(2):
                report_now(app, book, violation("UOW202", who=f"session {number}", what="x"))

    assert len(set(shown)) == 3_000
    assert len(shown) < 3_010
    assert len(globals()["__warningregistry__"]) <= 1_100


# ---- where nothing may be raised


@pytest.mark.parametrize(("mode", "level"), [("warn", logging.WARNING), ("error", logging.ERROR)])
def test_teardown_logs_and_never_raises(app: Flask, caplog: pytest.LogCaptureFixture, mode: str, level: int) -> None:
    """At teardown it is one record, one signal, one count, although every warning is an error here."""
    book, error = book_with(mode), lost()

    with signalled(app) as seen:
        report_at_teardown(app, book, error)

    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, str(error))]
    assert [str(violation) for violation in seen] == [str(error)]
    assert book.counts == Counter(UOW103=1)


def test_teardown_warns_where_warnings_are_no_errors(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Besides the log, Python's filters see it."""
    with pytest.warns(RuleWarning, match=r"^\[UOW103\] ") as caught:
        report_at_teardown(app, book_with("warn"), lost())

    assert len(caught) == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_teardown_survives_a_receiver_that_fails(app: Flask, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    """A receiver's own error is logged with its traceback, and goes no further."""

    def fail(sender: Flask, **_: object) -> None:
        raise LookupError("no such receiver")

    with rule_violated.connected_to(fail, app):
        report_at_teardown(app, book_with(mode), lost())

    assert caplog.messages[1:] == ["A receiver of rule_violated failed."]
    assert caplog.records[1].exc_info is not None
    assert caplog.records[1].exc_info[0] is LookupError


# ---- in an app


MakeApp = Callable[..., tuple[Flask, UnitOfWork]]


@pytest.fixture
def make_app(tmp_path: Path) -> MakeApp:
    """A function that makes an app on a SQLite file with one table."""

    def make(**config: object) -> tuple[Flask, UnitOfWork]:
        app = Flask("bank")
        app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'bank.db'}", **config)
        uow = UnitOfWork(app)
        with app.app_context(), uow.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE t (x int)"))
        return app, uow

    return make


def counts(app: Flask) -> Counter[str]:
    """Return what the app's rule book has counted."""
    book: RuleBook = app.extensions["uow_state"].rules
    return book.counts


def lose_a_write(app: Flask, uow: UnitOfWork) -> int:
    """Write outside of any unit, and return the line that did it."""
    with app.app_context():
        uow.session.execute(sa.text("INSERT INTO t VALUES (1)"))
        return line_here() - 1


@pytest.mark.parametrize(
    ("rules", "levels"),
    [
        ("off", []),
        ("warn", [logging.WARNING]),
        ("error", [logging.ERROR]),
        ({"UOW103": "off"}, []),
        ({"UOW103": "error"}, [logging.ERROR]),
        ({"UOW202": "off"}, [logging.WARNING]),
        (None, [logging.WARNING]),
    ],
    ids=str,
)
def test_lost_write_in_each_mode(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, rules: object, levels: list[int]
) -> None:
    """The configuration decides whether it is logged; it ends no context by an exception."""
    app, uow = make_app(UOW_RULES=rules)

    with signalled(app) as seen:
        line = lose_a_write(app, uow)

    assert [record.levelno for record in caplog.records] == levels
    assert [error.code for error in seen] == ["UOW103"] * len(levels)
    assert counts(app) == Counter(UOW103=len(levels))
    assert all(f"test_rules.py:{line} in lose_a_write" in str(error.where) for error in seen)


def test_violations_are_counted_one_by_one(make_app: MakeApp) -> None:
    """Each is one more, in the app in which it happened."""
    app, uow = make_app()
    other = Flask("other")
    other.config.update(SQLALCHEMY_DATABASE_URI="sqlite://")
    uow.init_app(other)

    for _ in range(3):
        lose_a_write(app, uow)

    assert counts(app) == Counter(UOW103=3)
    assert counts(other) == Counter()


@pytest.mark.parametrize("rules", ["off", "warn", "error"])
def test_commit_inside_a_unit_is_one_violation(make_app: MakeApp, rules: str) -> None:
    """Whatever the mode, it is raised where it was done: one error, one signal, one count."""
    app, uow = make_app(UOW_RULES=rules)

    @transactional(label="POST /transfers")
    def transfer() -> None:
        uow.session.commit()

    text = r"[UOW101] session.commit() was called inside unit of work 'POST /transfers'."
    with (
        app.app_context(),
        signalled(app) as seen,
        pytest.raises(
            RuleViolationError, match=rf"^{re.escape(text)}\n  where: .*test_rules\.py:\d+ in transfer\n"
        ) as caught,
    ):
        transfer()

    assert seen == [caught.value]
    assert counts(app) == Counter(UOW101=1)


def test_warning_points_through_sqlalchemy_at_the_application(make_app: MakeApp) -> None:
    """A session that is used after its context is blamed on the line that used it."""
    app, uow = make_app()
    with app.app_context():
        session = uow.session()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session.execute(sa.text("SELECT 1"))
        line = line_here() - 1
    session.close()

    assert [(warning.category, warning.filename, warning.lineno) for warning in caught] == [
        (RuleWarning, str(HERE), line)
    ]
    assert counts(app) == Counter(UOW202=1)


def test_a_receiver_that_fails_keeps_no_statement_from_its_answer(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Each signal of a leak is logged where its receiver fails, and the statement goes on."""
    app, uow = make_app()
    with app.app_context():
        session = uow.session()

    def fail(sender: Flask, **_: object) -> None:
        raise LookupError("the receiver's own")

    with rule_violated.connected_to(fail, app), session_leaked.connected_to(fail, app), pytest.warns(RuleWarning):
        assert session.scalar(sa.text("SELECT 1")) == 1
    session.close()

    assert caplog.messages == ["A receiver of session_leaked failed.", "A receiver of rule_violated failed."]


def test_a_receiver_that_fails_does_not_take_the_place_of_the_violation(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The unit is refused its commit for its own reason."""
    app, uow = make_app()

    def fail(sender: Flask, **_: object) -> None:
        raise LookupError("the receiver's own")

    with (
        rule_violated.connected_to(fail, app),
        app.app_context(),
        pytest.raises(RuleViolationError, match="UOW101"),
        transactional(label="transfer"),
    ):
        uow.session.commit()

    assert caplog.messages[0] == "A receiver of rule_violated failed."
