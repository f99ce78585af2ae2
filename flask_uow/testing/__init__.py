"""For tests of applications: what units did and which rules were broken, recorded while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from werkzeug.local import LocalProxy

from .. import signals
from .._units import Unit
from ..exceptions import RuleViolationError, RuleWarning

__all__ = ["Record", "record"]


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
    seen = Record()
    if isinstance(app, LocalProxy):
        app = app._get_current_object()

    def began(sender: Any, unit: Unit) -> None:
        seen.began.append(unit.label)

    def committed(sender: Any, unit: Unit) -> None:
        seen.committed.append(unit.label)

    def rolled_back(sender: Any, unit: Unit, exception: BaseException | None) -> None:
        seen.rolled_back.append(unit.label)

    def violated(sender: Any, code: str, violation: RuleViolationError | RuleWarning) -> None:
        seen.violations.append(violation)

    with (
        signals.unit_began.connected_to(began, app),
        signals.unit_committed.connected_to(committed, app),
        signals.unit_rolled_back.connected_to(rolled_back, app),
        signals.rule_violated.connected_to(violated, app),
    ):
        yield seen
