"""The errors and the one warning of this package, sorted by cause.

Each text has the same shape: a first line that stands alone and says what happened, then ``where:`` (the
application's line, when one is to blame) and ``fix:`` (what to do). None of them shows a password, and all of them
survive pickling, so that a worker of a task queue can report them.
"""

from __future__ import annotations

__all__ = [
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "IsolationError",
    "NoActiveUnitError",
    "PartialCommitError",
    "RuleViolationError",
    "RuleWarning",
    "UnitActiveError",
    "UnitFailedError",
    "UnitOfWorkError",
    "UnitOptionsError",
    "UnitTimeoutError",
]


def _text(what: str, where: str | None, fix: str | None) -> str:
    lines = [what]
    if where:
        lines.append(f"  where: {where}")
    if fix:
        lines.append(f"  fix:   {fix}")
    return "\n".join(lines)


class UnitOfWorkError(Exception):
    """Base of every error of this package.

    :param what: what happened, in one line.
    :param where: the application's line to blame, as ``file:line in function``.
    :param fix: what to do about it.
    """

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        return _text(self.what, self.where, self.fix)

    def locate(self, where: object) -> None:
        """Say where it happened, if nobody has yet."""
        if self.where is None and where is not None:
            self.where = str(where)
            self.args = (self.what, self.where, *self.args[2:])


class ConfigurationError(UnitOfWorkError):
    """A configuration key holds a wrong value, or the extension was set up wrongly."""


class NoActiveUnitError(UnitOfWorkError, RuntimeError):
    """A unit of work was needed and none is active."""


class UnitActiveError(UnitOfWorkError):
    """A unit of work is active where none may be."""


class UnitOptionsError(UnitOfWorkError):
    """The options of a unit cannot hold where it was begun."""


class UnitFailedError(UnitOfWorkError):
    """A transaction that was to be committed had failed before; nothing of it was committed.

    ``__cause__`` is the error that took the transaction with it, where SQLAlchemy saw that error.
    """


class PartialCommitError(UnitFailedError):
    """A unit over several databases was committed in some of them, and then one failed.

    :param committed: the binds that have committed.
    :param lost: those in which it was rolled back.
    :param unknown: those of which nobody could say.
    """

    def __init__(
        self,
        what: str,
        where: str | None = None,
        fix: str | None = None,
        committed: tuple[str, ...] = (),
        lost: tuple[str, ...] = (),
        unknown: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, committed, lost, unknown)
        self.committed = committed
        self.lost = lost
        self.unknown = unknown


class UnitTimeoutError(UnitOfWorkError):
    """A unit of work ran past its deadline."""


class CommitOutcomeUnknownError(UnitOfWorkError):
    """The connection was lost during COMMIT, and nobody could say whether the server committed.

    :param xid: the server's transaction id, if it was learnt before; ``SELECT pg_xact_status(xid)`` tells later.
    """

    def __init__(self, what: str, where: str | None = None, fix: str | None = None, xid: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.args = (what, where, fix, xid)
        self.xid = xid


class IsolationError(UnitOfWorkError):
    """A test asked for what its isolation, one transaction that is rolled back, cannot give."""


class RuleViolationError(UnitOfWorkError):
    """A rule was broken whose mode is ``error``.

    :param code: the rule's code, e.g. ``UOW101``.
    """

    def __init__(self, code: str, what: str, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.args = (code, what, where, fix)
        self.code = code

    def __str__(self) -> str:
        return f"[{self.code}] {super().__str__()}"


class RuleWarning(UserWarning):
    """A rule was broken whose mode is ``warn``; the same fields and text as :class:`RuleViolationError`.

    :param code: the rule's code, e.g. ``UOW103``.
    """

    def __init__(self, code: str, what: str, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(code, what, where, fix)
        self.code = code
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        return f"[{self.code}] {_text(self.what, self.where, self.fix)}"
