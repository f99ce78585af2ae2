"""What the copy of a board says, as values.

A board may be damaged, or not be one: what no worker writes is a ``ValueError``, never a number that looks like one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from .. import _board as board
from .._board_files import Image
from ._values import (
    Counts,
    Histogram,
    LabelCounts,
    LiveUnit,
    PoolSnapshot,
    SessionCounts,
    State,
    UnitCounts,
    Worker,
)

_STATES = (
    State.NO_TRANSACTION,
    State.RUNNING,
    State.IDLE,
    State.WAITING,
    State.COMMITTING,
    State.ROLLING_BACK,
    State.HELD,
    State.LEAKED,
)
_KINDS: dict[int, str] = {board.Kind.UNIT: "unit", board.Kind.SESSION: "session", board.Kind.CONNECTION: "connection"}


def worker_of(image: Image) -> Worker:
    """One worker.

    :raises ValueError: if there is something in the copy that no worker writes.
    """
    words, pid = image.words, _counted(image.words[board.AT_PID])
    connections = _connections(image)
    live = _live(image, pid, connections)
    return Worker(
        pid=pid,
        host=image.text(board.AT_HOST, board.NAME_WORDS),
        started_at=_time(words[board.AT_STARTED_NS]),
        counts=counts_of(image),
        pools=tuple(_pools(image, pid, live, connections)),
        backend_pids=tuple(each.pid for each in connections if each.pid),
        live=tuple(slot.shown for slot in live),
        untold={
            name: words[board.AT_UNTOLD + place]
            for place, name in enumerate(board.UNTOLD)
            if words[board.AT_UNTOLD + place]
        },
    )


def _time(nanoseconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError(f"{nanoseconds} is no time.") from error


def counts_of(image: Image) -> Counts:
    """What a worker has counted, or several that have ended.

    :raises ValueError: if there is something in the copy that no worker writes.
    """
    words, labels = image.words, []
    outcomes, long, without, statements = [0, 0, 0], [0, 0, 0], 0, 0
    took_s = idle_s = held_s = 0.0
    for at in image.label_rows():
        record = image.label(at)
        if not record["count"]:
            continue
        label = _label_counts(image, at, record)
        labels.append(label)
        if label.is_inner:
            continue
        committed = _counted(record["count"] - record["rolled_back"] - record["failed"])
        ended = (committed, record["rolled_back"], record["failed"])
        outcomes = [total + number for total, number in zip(outcomes, ended, strict=True)]
        long = [total + record[name] for total, name in zip(long, _LONG, strict=True)]
        without += record["without_connection"]
        statements += label.statements
        took_s += label.total_seconds
        idle_s, held_s = idle_s + _addable(record["idle_s"]), held_s + _addable(record["held_s"])
    units = sum(outcomes)
    return Counts(
        units=UnitCounts(
            begun=image.begun_at_home() + words[board.BEGUN],
            committed=outcomes[0],
            rolled_back=outcomes[1],
            failed=outcomes[2],
            retried=words[board.RETRIED],
        ),
        sessions=SessionCounts(words[board.OPENED], words[board.CLOSED], words[board.LEAKED]),
        statements=statements + words[board.STATEMENTS_OUTSIDE],
        rules=_rules(image),
        unit_seconds=_histogram(image, board.UNIT_SECONDS, units - long[0], took_s),
        held_seconds=_histogram(
            image,
            board.HELD_SECONDS,
            units - without - long[2] + words[board.FAST_CHECKOUTS],
            held_s + _addable(image.reals[board.HELD_S]),
        ),
        idle_seconds=_histogram(image, board.IDLE_SECONDS, units - without - long[1], idle_s),
        labels=tuple(labels),
    )


_FRACTIONS = 1 << 20
"""Of a second, about a microsecond each."""
_LONG = ("long_units", "long_idle", "long_held")


def _label_counts(image: Image, at: int, record: dict[str, Any]) -> LabelCounts:
    return LabelCounts(
        label=image.text(at, board.TEXT_WORDS),
        where=image.text(at + board.LABEL_WHERE, board.TEXT_WORDS) or None,
        is_inner=bool(image.words[at + board.LABEL_INNER]),
        count=record["count"],
        errors=record["errors"],
        total_seconds=_addable(record["took_s"]),
        worst_seconds=_addable(record["worst_s"]),
        statements=round(record["statements"]),
    )


def _rules(image: Image) -> dict[str, int]:
    pairs = range(board.AT_RULES, board.END_OF_COUNTS, 2)
    return {f"UOW{image.words[at]}": image.words[at + 1] for at in pairs if image.words[at] and image.words[at + 1]}


def _histogram(image: Image, at: int, first: int, total_s: float) -> Histogram:
    return Histogram((_counted(first), *image.words[at + 1 : at + board.BUCKETS]), total_s)


def _counted(number: int) -> int:
    """A number of times.

    :raises ValueError: if it is none.
    """
    if number < 0:
        raise ValueError(f"{number} is no number of times.")
    return number


def _rounded(seconds: float) -> float:
    """Seconds to a microsecond.

    :raises ValueError: if it is no time.
    """
    return round(_timed(seconds), 6)


def _addable(seconds: float) -> float:
    """Seconds, down to a fraction of which sums are exact.

    In whichever order they are added up, and whether before or after a worker was added to those that have ended: what
    workers have counted together is never less than it was.

    :raises ValueError: if it is no time.
    """
    return math.floor(_timed(seconds) * _FRACTIONS) / _FRACTIONS


def _timed(seconds: float) -> float:
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{seconds} is no time.")
    return seconds


# ---- live units and connections


def holders_of(image: Image, bind: str) -> list[LiveUnit]:
    """What holds the connections of a worker's pool, who has had one for longest first.

    :raises ValueError: if there is something in the copy that no worker writes.
    """
    connections = _connections(image)
    live = _live(image, _counted(image.words[board.AT_PID]), connections)
    pools = [image.text(at, board.POOL_NAME_WORDS) for at in _pool_rows(image)]
    name = board.shown_name(bind)
    own = [each for each in connections if each.pool <= len(pools) and pools[each.pool - 1] == name]
    found = [slot.shown for slot in live if any(each.is_held_by(slot) for each in own)]
    return sorted(found, key=lambda unit: -unit.seconds)


@dataclasses.dataclass
class _Slot:
    """What is in a live slot."""

    index: int
    turn: int
    parent: int
    told: float
    told_before: float
    connection: int
    shown: LiveUnit

    @property
    def holding(self) -> int:
        """What the row of a connection says of whoever has it, where that does not say so itself."""
        return self.turn << board.SLOT_BITS | self.index + 1


@dataclasses.dataclass(frozen=True)
class _Connection:
    """What is in the row of an open connection."""

    number: int
    pool: int
    pid: int
    held: int

    def is_held_by(self, slot: _Slot) -> bool:
        """Whether it is what is in a slot that has it."""
        return slot.connection == self.number or self.held == slot.holding


def _live(image: Image, worker_pid: int, connections: list[_Connection]) -> list[_Slot]:
    """The live units, each outermost one before what is inside it."""
    now_s = time.monotonic()
    slots = {
        index: _slot(image, at, index, worker_pid, now_s)
        for index, at in enumerate(image.slots())
        if image.words[at] and _is_told(image, at)
    }
    inner = {slot.parent: slot for slot in reversed(slots.values())}
    pools = [image.text(at, board.POOL_NAME_WORDS) for at in _pool_rows(image)]
    found: list[_Slot] = []
    for slot in slots.values():
        if slot.parent not in slots:
            stack = list(_stack(slot, inner))
            _complete(stack, now_s, [each for each in connections if each.pid and each.is_held_by(slot)], pools)
            found += stack
    return found


def _stack(slot: _Slot, inner: dict[int, _Slot]) -> Iterator[_Slot]:
    """An outermost slot, and those inside it.

    :param inner: the slot inside each.
    """
    yield slot
    while slot.index in inner:
        slot = inner[slot.index]
        yield slot


def _complete(stack: list[_Slot], now_s: float, held: list[_Connection], pools: list[str]) -> None:
    """The innermost tells for all of them what they do."""
    told, pids = stack[-1].told, tuple(each.pid for each in held)
    binds = tuple(pools[each.pool - 1] if each.pool <= len(pools) else "" for each in held)
    for slot in stack:
        state, state_s, statements = _told(told, slot.told_before, slot.shown.seconds, now_s)
        slot.told = told
        slot.shown = dataclasses.replace(
            slot.shown, state=state, state_seconds=state_s, statements=statements, backend_pids=pids, binds=binds
        )


def _told(told: float, before: float, age_s: float, now_s: float) -> tuple[str, float, int]:
    """The state, for how long, and the statements."""
    statements = int(told // board.STATEMENT) - round(before / board.STATEMENT)
    state = _STATES[int(told % board.STATEMENT // board.CLOCK)]
    since_s = told % board.CLOCK
    return state, _rounded(max(0.0, now_s - since_s)) if since_s else age_s, max(0, statements)


def _is_told(image: Image, at: int) -> bool:
    """Whether a slot's label was written before the board was read; else its unit began meanwhile."""
    row = image.words[at + board.LIVE_FIELDS.index("label")]
    return row < image.words[board.AT_LABELS] or row >= board.MAX_LABELS - 2


def _slot(image: Image, at: int, index: int, worker_pid: int, now_s: float) -> _Slot:
    values = dict(zip(board.LIVE_FIELDS, board.LIVE.unpack_from(image.memory, at * board.WORD), strict=True))
    words = image.words
    kind = _KINDS.get(words[at + board.LIVE_KIND])
    row = values["label"]
    if kind is None or not 0 <= row < board.MAX_LABELS:
        raise ValueError("no worker writes such a slot")
    label = board.AT_LABEL_ROWS + board.LABEL_WORDS * row
    shown = LiveUnit(
        kind=kind,
        label=image.text(label, board.TEXT_WORDS),
        where=image.text(label + board.LABEL_WHERE, board.TEXT_WORDS) or None,
        worker_pid=worker_pid,
        thread=image.text(at + board.LIVE_THREAD_NAME, board.THREAD_NAME_BYTES // board.WORD),
        thread_id=_counted(words[at + board.LIVE_THREAD]),
        depth=_counted(words[at + board.LIVE_DEPTH]),
        attempt=_counted(words[at + board.LIVE_ATTEMPT]),
        state=State.NO_TRANSACTION,
        state_seconds=0.0,
        seconds=_rounded(max(0.0, now_s - values["began_s"])),
        statements=0,
    )
    told, before = (_checked(values[name]) for name in ("told", "told_before"))
    return _Slot(index, values["turn"], words[at + board.LIVE_PARENT] - 1, told, before, values["connection"], shown)


def _checked(told: float) -> float:
    if not 0.0 <= told < math.inf:
        raise ValueError(f"{told} is nothing that a worker tells.")
    return told


def _connections(image: Image) -> list[_Connection]:
    """The connections that are open."""
    words = image.words[board.AT_CONNECTIONS : board.WORDS].tolist()
    rows = range(0, len(words), board.CONNECTION_WORDS)
    pools = words[board.CONNECTION_POOL :: board.CONNECTION_WORDS]
    return [
        _Connection(index + 1, pool, _counted(words[at + board.CONNECTION_PID]), words[at + board.CONNECTION_HELD])
        for index, (at, pool) in enumerate(zip(rows, pools, strict=True))
        if pool > 0
    ]


def _pool_rows(image: Image) -> Iterator[int]:
    for index in range(min(max(image.words[board.AT_POOLS], 0), board.MAX_POOLS)):
        yield board.AT_POOL_ROWS + board.POOL_WORDS * index


def _pools(image: Image, pid: int, live: list[_Slot], connections: list[_Connection]) -> Iterator[PoolSnapshot]:
    words = image.words
    held = {each.number for each in connections for slot in live if each.is_held_by(slot)}
    waiting = [slot for slot in live if slot.shown.state == State.WAITING]
    for index, at in enumerate(_pool_rows(image)):
        opened = [each.number for each in connections if each.pool == index + 1]
        busy = sum(number in held for number in opened)
        size, timeout_ms = words[at + board.POOL_SIZE], words[at + board.POOL_TIMEOUT_MS]
        max_overflow = max(-1, words[at + board.POOL_MAX_OVERFLOW]) if size >= 0 else None
        waits = [slot.shown.state_seconds for slot in waiting if -slot.connection == index + 1]
        is_full = max_overflow is not None and -1 < max_overflow <= busy - size  # else they make one
        yield PoolSnapshot(
            bind=image.text(at, board.POOL_NAME_WORDS),
            class_name=image.text(at + board.POOL_NAME_WORDS, board.POOL_CLASS_WORDS),
            process_pid=pid,
            size=size if size >= 0 else None,
            checked_out=busy,
            checked_in=len(opened) - busy,
            overflow=max(0, len(opened) - size) if size >= 0 else None,
            max_overflow=max_overflow,
            timeout_seconds=timeout_ms / 1000 if timeout_ms >= 0 else None,
            waiting=len(waits),
            timeouts=_counted(words[at + board.POOL_TIMEOUTS]),
            longest_wait_seconds=max([_rounded(image.reals[at + board.POOL_LONGEST_S]), *(waits if is_full else ())]),
        )
