"""Hooks of a unit: what runs before its commit, after it, or after its rollback.

One list keeps the order in which they were added. A savepoint has a list of its own: released, it is appended to its
parent's; rolled back, its commit hooks are dropped and its rollback hooks wait for the outermost unit to end,
whichever way (the semantics of Django's ``on_commit``, and of its missing ``on_rollback``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import cast

from flask import Flask

from ._options import is_coroutine_function

Hook = Callable[[], object]


class When(Enum):
    """The moment for which a hook was added."""

    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"
    AFTER_ROLLBACK = "after_rollback"
    AT_END = "the outermost unit's end"


class Hooks:
    """The hooks of one savepoint or outermost unit, in the order in which they were added."""

    __slots__ = ("_entries", "_passed", "is_running")

    def __init__(self) -> None:
        self._entries: list[tuple[When, Hook]] = []
        self._passed = 0  # how many entries the run before the commit has gone past
        self.is_running = False

    def add(self, when: When, function: object) -> None:
        """Append a hook.

        :raises TypeError: if it is not callable, or a coroutine function: nothing would await it.
        """
        if not callable(function) or is_coroutine_function(function):
            raise TypeError(f"{when.value}({function!r}): expected a plain function without arguments.")
        self._entries.append((when, cast(Hook, function)))

    def take_from(self, released: Hooks) -> None:
        """Append those of a savepoint that was released."""
        self._entries += released._entries

    def take_undone(self, rolled_back: Hooks) -> None:
        """Append what remains of a savepoint that was rolled back."""
        for when, function in rolled_back._entries:
            if when in (When.AFTER_ROLLBACK, When.AT_END):
                self._entries.append((When.AT_END, function))

    def run_before_commit(self) -> bool:
        """Run the ``before_commit`` hooks that have not run yet, also those that they add; the first error ends it.

        :return: whether there were any.
        """
        has_run = False
        while self._passed < len(self._entries):
            when, function = self._entries[self._passed]
            self._passed += 1
            if when is When.BEFORE_COMMIT:
                has_run = True
                function()
        return has_run

    def run_after(self, when: When, app: Flask, label: str) -> list[Exception]:
        """Run what was added for this ending, also what the hooks add; every error is logged, none ends it.

        :return: the errors, in order.
        """
        errors = []
        self.is_running = True
        try:
            for function in self._due(when):
                try:
                    function()
                except Exception as error:
                    app.logger.exception("An %s hook of unit of work %r failed: %r", when.value, label, function)
                    errors.append(error)
        finally:
            self.is_running = False
        return errors

    def _due(self, ending: When) -> Iterator[Hook]:
        # A list that grows under its own iterator yields what was appended too.
        return (function for when, function in self._entries if when in (ending, When.AT_END))
