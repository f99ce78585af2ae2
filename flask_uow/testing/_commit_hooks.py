"""What would be run after commits, collected: a test looks at it, and runs it when it likes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

from flask import Flask

from .._hooks import Hook, Hooks, When
from .._scopes import find_context
from ._tested import tested


@dataclass(slots=True)
class CommitHooks:
    """The ``after_commit`` hooks of the units that have committed, in order.

    :param app: whose units they are.
    :ivar waiting: those that have not run, each with the label of its unit.
    """

    app: Flask
    waiting: list[tuple[str, Hook]] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The labels of the units whose hooks wait."""
        return [label for label, _ in self.waiting]

    def __len__(self) -> int:
        return len(self.waiting)

    def run(self) -> None:
        """Run what waits, also what is added meanwhile, in an app context; the first error is raised at the end.

        :raises Exception: the error of a hook, as with ``TESTING``.
        """
        errors: list[Exception] = []
        with nullcontext() if find_context() else self.app.app_context():
            while self.waiting:
                _, function = self.waiting.pop(0)
                try:
                    function()
                except Exception as error:  # noqa: BLE001  # raised when all have run
                    errors.append(error)
        if errors:
            raise errors[0]

    def _collect(self, hooks: Hooks, label: str, start: int = 0) -> None:
        """Let a unit's hooks wait, from one of its entries on."""
        due = [function for when, function in hooks._entries[start:] if when is When.AFTER_COMMIT]
        self.waiting += [(label, partial(self._run_one, hooks, label, function)) for function in due]

    def _run_one(self, hooks: Hooks, label: str, function: Hook) -> None:
        """Run a hook, which may add others to its unit as in life."""
        known = len(hooks._entries)
        hooks.is_running = True
        try:
            function()
        finally:
            hooks.is_running = False
            self._collect(hooks, label, known)


@contextmanager
def collected(app: Flask) -> Iterator[CommitHooks]:
    """Collect, for a block, the ``after_commit`` hooks of an app in place of running them.

    .. code-block:: python

        with collected(app) as hooks:
            client.post("/transfers", json={"amount": 30})
        assert len(hooks) == 1
        hooks.run()
    """
    app, _ = tested(app)
    hooks = CommitHooks(app)
    run_after = Hooks.run_after

    def collect(self: Hooks, when: When, of: Flask, label: str) -> list[Exception]:
        if of is not app or when is not When.AFTER_COMMIT:
            return run_after(self, when, of, label)
        errors = run_after(self, When.AT_END, of, label)  # which may add what is to wait
        hooks._collect(self, label)
        return errors

    with patch.object(Hooks, "run_after", collect):
        yield hooks
