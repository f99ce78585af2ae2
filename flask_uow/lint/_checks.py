"""The rules that can be read from source, as a table: what a finding says, and what to do.

UOW1xx are the rules of :mod:`flask_uow._rules`, found before the line runs. UOW3xx are known from source alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._rules import RULES


@dataclass(frozen=True, slots=True)
class Check:
    """One rule as the checker knows it.

    :param code: its short name, which never changes meaning.
    :param title: what it is about, for tables.
    :param what: what a finding says; ``{...}`` is filled in.
    :param fix: the order that mends it.
    """

    code: str
    title: str
    what: str
    fix: str


UNREADABLE = "UOW300"
UNUSED_IGNORE = "UOW307"

CHECKS = {
    check.code: check
    for check in (
        Check(
            "UOW101",
            RULES["UOW101"].title,
            "{call} is called by hand inside a unit of work.",
            "Delete it: the outermost unit commits. session.flush() gives the primary key now.",
        ),
        Check(
            "UOW102",
            RULES["UOW102"].title,
            "{call} is called by hand inside a unit of work.",
            "Delete it: raise an exception, or call unit.set_rollback_only(), and the unit is rolled back.",
        ),
        Check(
            "UOW105",
            RULES["UOW105"].title,
            "{call} merges what the same session has loaded in line {line}.",
            "Delete the merge and change the object itself: what is persistent is written by the next flush.",
        ),
        Check(
            UNREADABLE,
            "a file that cannot be checked",
            "The file cannot be checked: {why}.",
            "Mend the file, or exclude it.",
        ),
        Check(
            "UOW301",
            "commit or begin by hand in code that is no unit",
            "{call} is called by hand, outside any unit of work.",
            "Make the function, or a block of it, a unit with transactional, and delete the call.",
        ),
        Check(
            "UOW302",
            "rollback or close by hand in code that is no unit",
            "{call} is called by hand, outside any unit of work.",
            "Delete it, and make the function, or a block of it, a unit with transactional: exceptions roll it back.",
        ),
        Check(
            "UOW303",
            "a data-access module that does more than flush",
            "{call} is called in a data-access module, which may flush and no more.",
            "Replace it by session.flush(), and make the caller a unit with @transactional.",
        ),
        Check(
            "UOW304",
            "a view that writes and is no unit",
            "View {name!r} writes ({call} in line {line}) and is no unit of work.",
            "Put @transactional under the route.",
        ),
        Check(
            "UOW305",
            "a unit that is to last across a yield",
            "{what}.",
            "Open the unit inside the generator, and yield when it has ended.",
        ),
        Check(
            "UOW306",
            "@transactional above what registers the function",
            "@transactional stands above {decorator}, which has registered the bare function.",
            "Move @transactional down, next to the function.",
        ),
        Check(
            UNUSED_IGNORE,
            "an ignore that ignores nothing",
            "{comment!r} {why}.",
            "Delete what is not needed.",
        ),
    )
}
