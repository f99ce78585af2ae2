"""For tests of applications: what units did and which rules were broken, and a database that forgets each test.

pytest imports this in every run, for the plugin: what is large is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._lazy import lazy_names

if TYPE_CHECKING:
    from flask import Flask

    from .._units import Unit
    from ..exceptions import RuleViolationError, RuleWarning
    from ._commit_hooks import CommitHooks, collected
    from ._isolation import Isolation, isolated
    from ._trace import Event, Trace, traced

__all__ = [
    "CommitHooks",
    "Event",
    "Isolation",
    "Record",
    "Trace",
    "collected",
    "isolated",
    "record",
    "traced",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CommitHooks": "_commit_hooks",
        "Event": "_trace",
        "Isolation": "_isolation",
        "Trace": "_trace",
        "collected": "_commit_hooks",
        "isolated": "_isolation",
        "traced": "_trace",
    },
)


@dataclass(slots=True)
class Record:
    """What :func:`record` saw, in order.

    :param began: labels of the outermost units and savepoints that began.
    :param committed: labels of those whose work was kept.
    :param rolled_back: labels of those that were undone.
    :param violations: the violations of rules.
    """

    began: list[str] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    violations: list[RuleViolationError | RuleWarning] = field(default_factory=list)

    @property
    def codes(self) -> list[str]:
        """The codes of the violations."""
        return [violation.code for violation in self.violations]


@contextmanager
def record(app: Flask) -> Iterator[Record]:
    """Record the units and violations of ``app`` while the block runs.

    .. code-block:: python

        with testing.record(app) as seen:
            client.post("/transfers", data={...})
        assert seen.committed == ["POST /transfers"]
        assert seen.codes == []
    """
    from .. import signals

    seen = Record()

    def began(sender: Any, unit: Unit) -> None:
        seen.began.append(unit.label)

    def committed(sender: Any, unit: Unit) -> None:
        seen.committed.append(unit.label)

    def rolled_back(sender: Any, unit: Unit, exception: BaseException | None) -> None:
        seen.rolled_back.append(unit.label)

    def violated(sender: Any, code: str, violation: RuleViolationError | RuleWarning) -> None:
        seen.violations.append(violation)

    app = real_app(app)
    with (
        signals.unit_began.connected_to(began, app),
        signals.unit_committed.connected_to(committed, app),
        signals.unit_rolled_back.connected_to(rolled_back, app),
        signals.rule_violated.connected_to(violated, app),
    ):
        yield seen


def real_app(app: Flask) -> Flask:
    """The app behind ``current_app``, or the app itself."""
    from werkzeug.local import LocalProxy

    return app._get_current_object() if isinstance(app, LocalProxy) else app
