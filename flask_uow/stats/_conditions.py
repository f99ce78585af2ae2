"""Conditions of ``--fail-on``: what a monitoring job wants to hear of.

A condition is written ``name=limit``. Each name has one function that reads the limit and one that judges a snapshot
by it; a new condition is a new row of the table at the end.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t
from collections.abc import Callable, Iterator

from ._values import Snapshot

Judge = Callable[[Snapshot, float], Iterator[str]]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition, ready to judge a snapshot."""

    text: str
    """As it was typed."""
    limit: float
    judge: Judge

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        >>> Condition.parse("idle-in-transaction=5").limit
        5.0

        :param text: ``name=limit``.
        :raises ValueError: if it is none; the message quotes the text.
        """
        name, _, limit = text.partition("=")
        if name.strip() not in _CONDITIONS:
            raise ValueError(f"{text!r} is no condition. Write {_forms()}.")
        form, read, judge = _CONDITIONS[name.strip()]
        try:
            return cls(text, read(limit), judge)
        except ValueError as error:
            raise ValueError(f"{text!r} has no limit that can be read: {error} Write {form}.") from None

    def failures(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Say in one line each what the condition is not content with.

        :param snapshot: the snapshot to judge, with all of its sessions.
        """
        return tuple(f"{self.text}: {failure}" for failure in self.judge(snapshot, self.limit))


def parse_seconds(text: str) -> float:
    """Read a number of seconds.

    :param text: a decimal number, zero or more.
    :raises ValueError: if it is anything else; the message quotes the text.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text.strip()!r} is not a number of seconds.")
    return seconds


def _judge_idle_in_transaction(snapshot: Snapshot, limit_seconds: float) -> Iterator[str]:
    for database in snapshot.databases:
        for session in database.sessions:
            age = session.state_age_seconds
            if session.is_idle_in_transaction and age is not None and age > limit_seconds:
                yield f"session {session.pid} ({session.application_name}) is {session.state} for {age:.1f} s"


def _forms() -> str:
    return " or ".join(form for form, _, _ in _CONDITIONS.values())


_CONDITIONS: t.Final[dict[str, tuple[str, Callable[[str], float], Judge]]] = {
    "idle-in-transaction": ("idle-in-transaction=SECONDS", parse_seconds, _judge_idle_in_transaction),
}
