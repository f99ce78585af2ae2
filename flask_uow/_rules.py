"""The rules UOW1xx and UOW2xx as a table, and how a violation is reported.

Who notices a violation is elsewhere: the guard for what happens inside a unit, the sessions for what is found at
teardown. Here is what a violation is: one error or warning, one signal, one count.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from flask import Flask

from . import signals
from ._callsite import CallSite, application_site, application_stacklevel
from .exceptions import RuleViolationError, RuleWarning

_MOST_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    :param code: its short name, which never changes meaning.
    :param title: what it is about, for tables.
    :param what: the first line of its text; ``{...}`` is filled in.
    :param fix: the order that mends it.
    :param origin: where the rule comes from.
    :param is_fatal: always an error, whatever ``UOW_RULES`` says.
    """

    code: str
    title: str
    what: str
    fix: str
    origin: str
    is_fatal: bool = False


RULES = {
    rule.code: rule
    for rule in (
        Rule(
            "UOW101",
            "commit or begin by hand inside a unit",
            "{call} was called inside unit of work {label!r}.",
            "Delete the {noun}: {reason}",
            "SIP-99B",
            is_fatal=True,
        ),
        Rule(
            "UOW102",
            "rollback or close by hand inside a unit",
            "{call} was called inside unit of work {label!r}.",
            "Delete the {noun}: raise an exception, or call unit.set_rollback_only(), and the unit is rolled back.",
            "SIP-99B",
            is_fatal=True,
        ),
        Rule(
            "UOW103",
            "writes outside a unit that nobody committed, lost when the context ends",
            "Writes outside a unit of work were lost at the end of the context: {lost}.",
            "Put @transactional on the view, command or function that writes.",
            "SIP-99A",
        ),
        Rule(
            "UOW104",
            "a commit with nothing to commit",
            "session.commit() was called with nothing new, changed, deleted or written to commit.",
            "Commit only where something has changed: what was only read ends with its context.",
            "SIP-99A",
        ),
        Rule(
            "UOW105",
            "merge() of an object that the session holds already",
            "merge() was called with {entity}, which this session holds already.",
            "Delete the merge and change the object itself: what is persistent is written by the next flush.",
            "SIP-99A",
        ),
        Rule(
            "UOW106",
            "a row committed and then deleted in the same context",
            "{entity} was committed and then deleted in the same context.",
            "Replace the first commit by session.flush(), so that one transaction does both.",
            "SIP-99A",
        ),
        Rule(
            "UOW107",
            "a transaction begun again after the unit, while a template renders say",
            "A transaction was begun again after unit of work {label!r} had ended.",
            "Load what the response shows inside the unit, with selectinload() say, or read it in a unit of its own.",
            "best practices",
        ),
        Rule(
            "UOW108",
            "a unit longer than UOW_MAX_UNIT_SECONDS",
            "Unit of work {label!r} took {seconds} s, and UOW_MAX_UNIT_SECONDS is {limit}.",
            "Move what is no work of the database out of the unit.",
            "best practices",
        ),
        Rule(
            "UOW109",
            "a unit idle in its transaction for longer than UOW_MAX_IDLE_SECONDS",
            "{who} sat idle in its transaction for {seconds} s, and UOW_MAX_IDLE_SECONDS is {limit}.",
            "Ask other services before the unit begins, or in an after_commit hook.",
            "best practices",
        ),
        Rule(
            "UOW110",
            "a second connection taken while a unit holds one",
            "A second connection was taken while unit of work {label!r} held one.",
            "Use the unit's session, so that the pool cannot run dry with every thread waiting for another's.",
            "pools",
        ),
        Rule(
            "UOW111",
            "a write in a read-only unit",
            "A write was sent inside read-only unit of work {label!r}: {statement}",
            "Drop read_only=True, or move the write out of the unit.",
            "reads",
            is_fatal=True,
        ),
        Rule(
            "UOW201",
            "a session used outside an app context",
            "{what} was used outside an app context.",
            "Push one: with app.app_context(): ...; in a thread, inside the thread's function; on a command, "
            "@with_appcontext.",
            "scoped sessions",
            is_fatal=True,
        ),
        Rule(
            "UOW202",
            "a session or connection that outlived its app context",
            "A {who} outlived its app context: {what}.",
            "Take connections in a with block, and keep no session. Join threads before the view returns, or give them "
            "an app context of their own.",
            "leaks",
        ),
        Rule(
            "UOW203",
            "two tasks or threads inside one session at once",
            "Two tasks or threads were inside one session at once: {what}.",
            "Await one before the next begins, or give each an app context of its own.",
            "scoped sessions",
            is_fatal=True,
        ),
    )
}
MODES = ("off", "warn", "error")


@dataclass(slots=True)
class RuleBook:
    """What one app does about violations, and how many it saw.

    :param modes: the mode of each rule that is not always an error.
    :param counts: violations so far, by code.
    :param publish: told of each code that is counted.
    """

    modes: dict[str, str]
    counts: Counter[str] = field(default_factory=Counter)
    publish: Callable[[str], object] | None = None

    def mode(self, code: str) -> str:
        """``off``, ``warn`` or ``error``."""
        return "error" if RULES[code].is_fatal else self.modes[code]

    def is_on(self, code: str) -> bool:
        """Whether a violation of the rule is to be noticed."""
        return self.mode(code) != "off"


def violation(code: str, site: CallSite | None = None, **details: str) -> RuleViolationError:
    """The violation of a rule, to be raised or to be reported as the rule's mode says.

    :param site: the line to blame; the application's current line if None.
    :param details: what the rule's text and fix leave open.
    """
    rule = RULES[code]
    site = site or application_site()
    return RuleViolationError(
        code, rule.what.format(**details), str(site) if site else None, rule.fix.format(**details)
    )


def report(app: Flask, book: RuleBook, violation: RuleViolationError | RuleWarning) -> None:
    """Count and signal a violation."""
    book.counts[violation.code] += 1
    if book.publish is not None:
        book.publish(violation.code)
    signals.tell(signals.rule_violated, app, code=violation.code, violation=violation)


def report_now(app: Flask, book: RuleBook, error: RuleViolationError) -> None:
    """Warn of a violation, or raise it, as the rule's mode says.

    :raises RuleViolationError: in mode ``error``.
    """
    mode = book.mode(error.code)
    if mode == "off":
        return
    if mode == "error":
        report(app, book, error)
        raise error
    warning = RuleWarning(*error.args)
    report(app, book, warning)
    level = application_stacklevel()
    _forget_some(sys._getframe(level - 1).f_globals)
    warnings.warn(warning, stacklevel=level)


def _forget_some(module: dict[str, Any]) -> None:
    """Bound what Python remembers of a module's warnings, each text for good: an object's key may be in it."""
    registry = module.get("__warningregistry__", ())
    if len(registry) > _MOST_REMEMBERED:
        registry.clear()


def report_at_teardown(app: Flask, book: RuleBook, error: RuleViolationError) -> None:
    """Log, count and signal a violation found where nothing may be raised any more.

    In mode ``warn`` it is a :class:`RuleWarning` as well, so that Python's warning filters see it; one that they turn
    into an error has been logged, and stays here.
    """
    mode = book.mode(error.code)
    if mode == "off":
        return
    app.logger.log(logging.ERROR if mode == "error" else logging.WARNING, "%s", error)
    with suppress(RuleViolationError, RuleWarning):
        report_now(app, book, error)
