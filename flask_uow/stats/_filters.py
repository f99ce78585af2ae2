"""What is listed of a snapshot: by age, state, label and worker.

A filter takes nothing from what is counted or judged; it decides what somebody gets to see.
"""

from __future__ import annotations

import dataclasses
import typing as t
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

if t.TYPE_CHECKING:
    from ._values import LiveUnit, ServerSession, Trouble


@dataclasses.dataclass(frozen=True)
class Filter:
    """What to keep; a criterion that is empty keeps everything."""

    min_age_seconds: float = 0.0
    states: Collection[str] = ()
    label: str = ""
    """A part of a label in whichever case; with ``*`` or ``?`` in it, a pattern for the whole of it."""
    workers: Collection[int] = ()

    def keeps_session(self, session: ServerSession) -> bool:
        """Whether a session of a server is listed; one that nothing holds has no label."""
        is_chosen = self._keeps_either(session.unit, session.view) and self.keeps_worker(session.worker_pid)
        return is_chosen and session.is_within(self.min_age_seconds, self.states)

    def keeps_stack(self, stack: Sequence[LiveUnit]) -> bool:
        """Whether a live unit is listed, with all that is inside it."""
        is_old = not self.min_age_seconds or stack[0].seconds >= self.min_age_seconds
        # The connection may be one of the units around it.
        told = next((unit for unit in reversed(stack) if unit.server_group is not None), stack[-1])
        is_in_state = not self.states or bool({stack[-1].state, told.server_state, told.server_group} & {*self.states})
        return is_old and is_in_state and any(self.keeps_label(unit.label) for unit in stack)

    def keeps_trouble(self, trouble: Trouble) -> bool:
        """Whether a trouble is listed; age and state are not asked, for trouble comes in all of them."""
        return self.keeps_worker(trouble.worker_pid) and self._keeps_either(trouble.label, trouble.view)

    def keeps_worker(self, pid: int | None) -> bool:
        """Whether what belongs to a process is listed."""
        return not self.workers or pid in self.workers

    def _keeps_either(self, label: str | None, view: str | None) -> bool:
        return self.keeps_label(label) or (view is not None and self.keeps_label(view))

    def keeps_label(self, label: str | None) -> bool:
        """Whether what has a label is listed.

        >>> Filter(label="transfers").keeps_label("POST /transfers"), Filter(label="GET *").keeps_label("POST /x")
        (True, False)
        """
        if not self.label:
            return True
        if label is None:
            return False
        if "*" not in self.label and "?" not in self.label:
            return self.label.casefold() in label.casefold()
        # A star that has found the text behind it is not tried again, so that the time grows with the lengths alone.
        return fnmatchcase(label.casefold(), self.label.casefold().replace("[", "[[]"))
