"""Conditions of ``--fail-on``: what a monitoring job wants to hear of.

A condition is written ``name=limit``. Each name has one function that reads the limit and one that judges a snapshot
by it; a new condition is a new row of the table at the end. A limit in seconds is one that may be reached and not
exceeded; a number or a percentage fails when it is reached.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t
from collections.abc import Callable, Iterator

from ._holders import Holder, holders
from ._troubles import known_pools, live_leaks
from ._values import Snapshot
from ._wording import counted

_MOST_DIGITS = 18
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


def condition_forms() -> tuple[str, ...]:
    """Give what can be written, ``name=LIMIT`` each."""
    return tuple(form for form, _, _ in _CONDITIONS.values())


def _parse_number(text: str) -> float:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS and int(digits) > 0):
        raise ValueError(f"{text.strip()!r} is not a whole number from 1 on.")
    return int(digits)


def _parse_percent(text: str) -> float:
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not 0 < percent <= 100:
        raise ValueError(f"{text.strip()!r} is not a percentage above 0 and up to 100.")
    return percent


def _judge_idle_in_transaction(snapshot: Snapshot, limit_s: float) -> Iterator[str]:
    for holder in holders(snapshot):
        for session in holder.idle_sessions:
            age = session.state_age_seconds
            if age is not None and age > limit_s:
                who = f"session {session.pid} ({session.application_name}) is {session.state}"
                yield f"{who} for {age:.1f} s{_said_of(holder, with_name=True)}"
        # A worker's word counts where its server says nothing: on SQLite, or where the role may not see it.
        age = None if holder.idle_sessions else holder.idle_seconds
        if age is not None and age > limit_s:
            yield f"{holder.name} is {holder.state} for {age:.1f} s{_said_of(holder)}"


def _judge_blocked(snapshot: Snapshot, limit_s: float) -> Iterator[str]:
    for holder in holders(snapshot):
        age = holder.blocked_seconds
        if age is not None and age > limit_s:
            yield f"{holder.name} waits for {' and '.join(holder.waits_for)} for {age:.1f} s{_said_of(holder)}"


def _judge_unit(snapshot: Snapshot, limit_s: float) -> Iterator[str]:
    for holder in holders(snapshot):
        if holder.is_unit and holder.seconds is not None and holder.seconds > limit_s:
            yield f"{holder.name} has not ended for {holder.seconds:.1f} s{_said_of(holder)}"


def _judge_prepared(snapshot: Snapshot, limit_s: float) -> Iterator[str]:
    for database in snapshot.databases:
        for each in database.prepared:
            if each.age_seconds is not None and each.age_seconds > limit_s:
                yield f"{each.name} lies prepared in {', '.join(database.binds)} for {each.age_seconds:.1f} s"


def _judge_pool_usage(snapshot: Snapshot, percent: float) -> Iterator[str]:
    for pool in known_pools(snapshot):
        # Multiplied, not divided: 29 of 100 are 29 per cent.
        if pool.limit and pool.checked_out is not None and pool.checked_out * 100 >= percent * pool.limit:
            use = f"{pool.checked_out} of {pool.limit} connections in use ({pool.checked_out / pool.limit:.0%})"
            yield f"pool {pool.bind} of worker {pool.process_pid} has {use}"


def _judge_waiting(snapshot: Snapshot, number: float) -> Iterator[str]:
    waiting = [holder for holder in holders(snapshot) if holder.is_waiting]
    # A pool sees those who wait without a unit, a unit those whose pool keeps no counters.
    count = max(len(waiting), sum(pool.waiting or 0 for pool in known_pools(snapshot)))
    if count >= number:
        yield f"{counted(count, 'thread waits', 'threads wait')} for a connection{_listed(waiting)}"


def _judge_timeouts(snapshot: Snapshot, number: float) -> Iterator[str]:
    count = sum(pool.timeouts or 0 for pool in known_pools(snapshot))
    if count >= number:
        yield f"a connection was waited for in vain {counted(count, 'time')}"


def _judge_leaked(snapshot: Snapshot, number: float) -> Iterator[str]:
    live = live_leaks(snapshot)
    count = max(len(live), snapshot.totals.sessions.leaked)
    if count >= number:
        who = counted(count, "session or connection has outlived its", "sessions or connections have outlived their")
        yield f"{who} context{_listed(live)}"


def _judge_orphans(snapshot: Snapshot, number: float) -> Iterator[str]:
    orphans = [holder for holder in holders(snapshot) if holder.is_orphan]
    if len(orphans) >= number:
        yield f"{counted(len(orphans), 'session is', 'sessions are')} known to no living worker{_listed(orphans)}"
    unsure = [holder for holder in holders(snapshot) if holder.may_be_orphan]
    if len(unsure) >= number:
        who = counted(len(unsure), "session")
        yield f"{who} may be known to no living worker, and not all workers can be read{_listed(unsure)}"


def _judge_troubles(snapshot: Snapshot, number: float) -> Iterator[str]:
    if len(snapshot.troubles) >= number:
        yield f"{counted(len(snapshot.troubles), 'trouble')}, the worst: {snapshot.troubles[0].text}"


def _said_of(holder: Holder, *, with_name: bool = False) -> str:
    """Give what follows a line about somebody: who it is, if that was not said, and where."""
    name = holder.name if with_name and holder.label is not None else ""
    said = ", ".join(filter(None, (name, holder.place)))
    return f": {said}" if said else ""


def _listed(found: t.Sequence[Holder]) -> str:
    names = [f"{holder.name}{f' ({holder.place})' if holder.place else ''}" for holder in found]
    return f": {'; '.join(names)}" if names else ""


def _forms() -> str:
    *forms, last = condition_forms()
    return f"{', '.join(forms)} or {last}"


_CONDITIONS: t.Final[dict[str, tuple[str, Callable[[str], float], Judge]]] = {
    "idle-in-transaction": ("idle-in-transaction=SECONDS", parse_seconds, _judge_idle_in_transaction),
    "blocked": ("blocked=SECONDS", parse_seconds, _judge_blocked),
    "unit": ("unit=SECONDS", parse_seconds, _judge_unit),
    "prepared": ("prepared=SECONDS", parse_seconds, _judge_prepared),
    "pool-usage": ("pool-usage=PERCENT", _parse_percent, _judge_pool_usage),
    "waiting": ("waiting=NUMBER", _parse_number, _judge_waiting),
    "timeouts": ("timeouts=NUMBER", _parse_number, _judge_timeouts),
    "leaked": ("leaked=NUMBER", _parse_number, _judge_leaked),
    "orphans": ("orphans=NUMBER", _parse_number, _judge_orphans),
    "troubles": ("troubles=NUMBER", _parse_number, _judge_troubles),
}
