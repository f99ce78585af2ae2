"""The board: what a process publishes of an app's units, sessions and connections, in memory that others can read.

It is an array of 8-byte words. A word is stored whole, so that no reader sees half of one; what belongs together in
several words has a sequence number in front, odd while it is written. Counters are written under a lock of the
process; everything else has one writer. Nothing is formatted, allocated or sent while a unit runs: labels are written
once, and units refer to their row.

Where the memory lies, who may read it and who sweeps it is left to ``_board_files``, what it means to
:mod:`flask_uow.stats`.
"""

from __future__ import annotations

import os
import struct
import threading
from bisect import bisect_left
from enum import IntEnum
from types import CodeType
from typing import Any

from . import _fork
from ._callsite import CallSite

BUCKET_BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The upper bounds of a histogram's buckets, inclusive; a last bucket has none."""

# ---- the layout, in words; the version grows with every change

WORD = 8
MAGIC = int.from_bytes(b"UOWBOARD", "little")
VERSION = 1

AT_MAGIC, AT_VERSION, AT_SIZE, AT_PID, AT_STARTED_NS, AT_SEQUENCE, AT_LABELS, AT_POOLS = range(8)
AT_UNTOLD = 8
UNTOLD = ("units", "connections", "labels", "pools")
AT_WORKERS = 12
"""How many workers a board of ended ones stands for."""
AT_APP, AT_HOST = 16, 24
NAME_WORDS = 8

AT_COUNTS = 64
COUNTS = (
    "units_begun", "units_committed", "units_rolled_back", "units_failed", "units_retried",
    "sessions_opened", "sessions_closed", "sessions_leaked", "statements_outside",
)  # fmt: skip
BEGUN, COMMITTED, ROLLED_BACK, FAILED, RETRIED, OPENED, CLOSED, LEAKED, STATEMENTS_OUTSIDE = range(
    AT_COUNTS, AT_COUNTS + len(COUNTS)
)
BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1
HISTOGRAM_WORDS = BUCKETS + 1
"""The buckets, and the sum in nanoseconds."""
UNIT_SECONDS = 80
HELD_SECONDS = UNIT_SECONDS + HISTOGRAM_WORDS
IDLE_SECONDS = HELD_SECONDS + HISTOGRAM_WORDS
AT_RULES = 144
MAX_RULES = 32
"""Each a rule's number and its count."""
END_OF_COUNTS = AT_RULES + 2 * MAX_RULES

AT_POOL_ROWS = 256
POOL_WORDS, MAX_POOLS = 24, 16
POOL_NAME_WORDS, POOL_CLASS_WORDS = 8, 6
POOL_SIZE, POOL_MAX_OVERFLOW, POOL_TIMEOUT_MS, POOL_TIMEOUTS, POOL_LONGEST_NS = range(14, 19)

AT_LABEL_ROWS = AT_POOL_ROWS + POOL_WORDS * MAX_POOLS
LABEL_WORDS, MAX_LABELS = 48, 256
"""The last two rows are for what found no other: outermost units, and inner ones."""
TEXT_WORDS = 20
LABEL_WHERE, LABEL_INNER = TEXT_WORDS, 2 * TEXT_WORDS
LABEL_COUNT, LABEL_ERRORS, LABEL_TOTAL_NS, LABEL_WORST_NS, LABEL_STATEMENTS = range(
    2 * TEXT_WORDS + 1, 2 * TEXT_WORDS + 6
)

AT_LIVE = AT_LABEL_ROWS + LABEL_WORDS * MAX_LABELS
LIVE_WORDS, MAX_LIVE = 16, 256
NO_SLOT = MAX_LIVE - 1
"""The slot of whoever found no other; what it says is nobody's."""
LIVE_SEQUENCE, LIVE_STATE, LIVE_STATEMENTS, LIVE_KIND, LIVE_BEGAN_NS, LIVE_LABEL, LIVE_PARENT = range(7)
LIVE_DEPTH, LIVE_ATTEMPT, LIVE_THREAD, LIVE_THREAD_NAME = range(7, 11)
THREAD_NAME_BYTES = 4 * WORD
_LIVE = struct.Struct(f"=7q{THREAD_NAME_BYTES}s")
STATE_BITS = 3

AT_CONNECTIONS = AT_LIVE + LIVE_WORDS * MAX_LIVE
CONNECTION_WORDS, MAX_CONNECTIONS = 4, 256
CONNECTION_POOL, CONNECTION_PID, CONNECTION_HELD = range(3)
"""The pool's row and one, the server's process, and who holds it since when, 0 in the pool."""
SLOT_BITS, TURN_BITS = 8, 7
"""Who holds a connection: the slot, and the turn of that slot, which tells its users apart."""

WORDS = AT_CONNECTIONS + CONNECTION_WORDS * MAX_CONNECTIONS
SIZE_BYTES = WORDS * WORD


class Kind(IntEnum):
    """What is in a live slot."""

    FREE = 0
    UNIT = 1
    SESSION = 2
    CONNECTION = 3


class State(IntEnum):
    """What it does."""

    NO_TRANSACTION = 0
    RUNNING = 1
    IDLE = 2
    WAITING = 3
    COMMITTING = 4
    ROLLING_BACK = 5
    HELD = 6
    LEAKED = 7


_IDLE, _RUNNING, _NO_TRANSACTION = int(State.IDLE), int(State.RUNNING), int(State.NO_TRANSACTION)
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BUCKET_BOUNDS_SECONDS)
_TURN_MASK = (1 << TURN_BITS) - 1
_HELD_BITS = SLOT_BITS + TURN_BITS
_OTHERS = "(others)"


class _Thread(threading.local):
    """What a thread is called, told once."""

    def __init__(self) -> None:
        self.number = threading.get_native_id() if hasattr(threading, "get_native_id") else threading.get_ident()
        self.name = _fitted(threading.current_thread().name, THREAD_NAME_BYTES)


class Live:
    """A slot in which somebody says what it does; reused, and never by two at a time.

    :ivar tag: the slot and its turn, as connections refer to it.
    """

    __slots__ = ("_index", "_sequence", "at", "board", "tag")

    def __init__(self, board: Board, index: int) -> None:
        self.board = board
        self.at = AT_LIVE + LIVE_WORDS * index
        self.tag = self._index = index
        self._sequence = 0

    def turn_to(self, state: int, now_ns: int) -> None:
        """Say what is done from now on."""
        self.board.words[self.at + LIVE_STATE] = now_ns << STATE_BITS | state

    def run_statement(self, now_ns: int) -> None:
        """Say that one more statement runs."""
        words, at = self.board.words, self.at
        words[at + LIVE_STATE] = now_ns << STATE_BITS | _RUNNING
        words[at + LIVE_STATEMENTS] += 1

    def free(self) -> None:
        """Leave the slot to others."""
        board = self.board
        board.words[self.at + LIVE_KIND] = 0
        if self._index != NO_SLOT:
            board.free.append(self)


class Row:
    """Where a label is counted."""

    __slots__ = ("at", "code", "index", "is_inner", "line")

    def __init__(self, index: int, site: CallSite | None, *, is_inner: bool) -> None:
        self.index = index
        self.at = AT_LABEL_ROWS + LABEL_WORDS * index
        self.code: CodeType | None = site[0] if site else None
        self.line = site[1] if site else 0
        self.is_inner = is_inner


class Board:
    """What one process says of one app.

    :param app_name: the app's name.
    :param host: the name of the machine.
    :param started_ns: the time, in nanoseconds since 1970.
    :param memory: :data:`SIZE_BYTES` bytes, all of them zero, that others can read; the process's own if None.
    :ivar memory: the bytes.
    :ivar words: the same as words.
    :ivar is_published: whether others can read it.
    """

    def __init__(self, app_name: str, host: str, started_ns: int, memory: Any = None) -> None:
        self.is_published = memory is not None
        self.memory = bytearray(SIZE_BYTES) if memory is None else memory
        self.words = memoryview(self.memory).cast("q")
        self.lock = threading.Lock()
        self.free = [Live(self, index) for index in reversed(range(NO_SLOT))]
        self._no_slot = Live(self, NO_SLOT)
        self._rows: dict[str, Row] = {}
        self._rows_of_namesakes: dict[tuple[str, Any, int, bool], Row] = {}
        self._pools: dict[str, int] = {}
        self._free_connections = list(reversed(range(MAX_CONNECTIONS)))
        self._thread = _Thread()
        self._others = [self._write_row(MAX_LABELS - 2 + inner, _OTHERS, None, bool(inner)) for inner in (0, 1)]
        self._write_header(app_name, host, started_ns)
        _fork.abandon_in_children(self)

    def _write_header(self, app_name: str, host: str, started_ns: int) -> None:
        words = self.words
        words[AT_VERSION], words[AT_SIZE] = VERSION, SIZE_BYTES
        words[AT_PID], words[AT_STARTED_NS] = os.getpid(), started_ns
        self._write_text(AT_APP, NAME_WORDS, app_name)
        self._write_text(AT_HOST, NAME_WORDS, host)
        words[AT_MAGIC] = MAGIC  # last: what lacks it is no board yet

    def abandon(self) -> object:
        """In a forked child, leave the parent's memory alone."""
        shared = self.memory, self.words
        self.memory = bytearray(SIZE_BYTES)
        self.words = memoryview(self.memory).cast("q")
        self.lock = threading.Lock()
        self.is_published = False
        return shared

    # ---- labels

    def row(self, label: str, site: CallSite | None, *, is_inner: bool) -> Row:
        """Where units of a label are counted.

        :param site: the line where they are defined.
        :param is_inner: whether they are inside other units.
        """
        row = self._rows.get(label)
        code, line = site or (None, 0)
        if row is not None and row.code is code and row.line == line and row.is_inner is is_inner:
            return row
        return self._rows_of_namesakes.get((label, code, line, is_inner)) or self._new_row(label, site, is_inner)

    def _new_row(self, label: str, site: CallSite | None, is_inner: bool) -> Row:
        with self.lock:
            index = self.words[AT_LABELS]
            if index == MAX_LABELS - len(self._others):
                self.words[AT_UNTOLD + UNTOLD.index("labels")] += 1
                return self._others[is_inner]
            row = self._write_row(index, label, site, is_inner)
            self.words[AT_LABELS] = index + 1
            self._rows.setdefault(label, row)
            self._rows_of_namesakes[label, row.code, row.line, is_inner] = row
        return row

    def _write_row(self, index: int, label: str, site: CallSite | None, is_inner: bool) -> Row:
        row = Row(index, site, is_inner=is_inner)
        self._write_text(row.at, TEXT_WORDS, label)
        self._write_text(row.at + LABEL_WHERE, TEXT_WORDS, str(site) if site else "", keeps_end=True)
        self.words[row.at + LABEL_INNER] = is_inner
        return row

    # ---- who does what

    def occupy(
        self,
        kind: int,
        row: Row,
        state: int,
        now_ns: int,
        *,
        parent: Live | None = None,
        depth: int = 0,
        attempt: int = 1,
    ) -> Live:
        """Take a slot.

        :param kind: a :class:`Kind`.
        :param state: a :class:`State`.
        :param parent: the slot of the unit around.
        """
        try:
            live = self.free.pop()
        except IndexError:
            live = self._no_slot
            self.count(AT_UNTOLD)
        thread, words, at = self._thread, self.words, live.at
        sequence = live._sequence = live._sequence + 2
        live.tag = (sequence >> 1 & _TURN_MASK) << SLOT_BITS | live._index
        words[at] = sequence - 1
        words[at + LIVE_STATE] = now_ns << STATE_BITS | state
        words[at + LIVE_STATEMENTS] = 0
        _LIVE.pack_into(
            self.memory, (at + LIVE_KIND) * WORD, kind, now_ns, row.index, 0 if parent is None else parent._index + 1,
            depth, attempt, thread.number, thread.name,
        )  # fmt: skip
        words[at] = sequence
        return live

    # ---- counters

    def count(self, at: int, number: int = 1) -> None:
        """Add to a counter that stands alone."""
        with self.lock:
            self.words[at] += number

    def count_violation(self, code: str) -> None:
        """Count the violation of a rule.

        :param code: ``UOW`` and a number.
        """
        number = int(code[3:])
        with self.lock:
            for at in range(AT_RULES, END_OF_COUNTS, 2):
                if self.words[at] in (0, number):
                    self.words[at + 1] += 1
                    self.words[at] = number
                    return

    def count_held(self, held_ns: int) -> None:
        """Count a connection that came back."""
        bucket = HELD_SECONDS + bisect_left(_BOUNDS_NS, held_ns)
        with self.lock:
            words = self.words
            words[AT_SEQUENCE] += 1
            words[bucket] += 1
            words[HELD_SECONDS + BUCKETS] += held_ns
            words[AT_SEQUENCE] += 1

    def count_outermost(
        self, row: Row, outcome: int, unit_ns: int, idle_ns: int, statements: int, *, is_error: bool
    ) -> None:
        """Count an outermost unit that has ended.

        :param outcome: ``COMMITTED``, ``ROLLED_BACK`` or ``FAILED``.
        """
        with self.lock:
            words = self.words
            words[AT_SEQUENCE] += 1
            words[outcome] += 1
            words[UNIT_SECONDS + bisect_left(_BOUNDS_NS, unit_ns)] += 1
            words[IDLE_SECONDS + bisect_left(_BOUNDS_NS, idle_ns)] += 1
            words[IDLE_SECONDS + BUCKETS] += idle_ns
            self._count_label(row.at, unit_ns, statements, is_error)
            words[AT_SEQUENCE] += 1

    def count_inner(self, row: Row, unit_ns: int, statements: int, *, is_error: bool) -> None:
        """Count an inner unit that has ended."""
        with self.lock:
            self.words[AT_SEQUENCE] += 1
            self._count_label(row.at, unit_ns, statements, is_error)
            self.words[AT_SEQUENCE] += 1

    def _count_label(self, at: int, unit_ns: int, statements: int, is_error: bool) -> None:
        words = self.words
        words[at + LABEL_COUNT] += 1
        words[at + LABEL_TOTAL_NS] += unit_ns
        if unit_ns > words[at + LABEL_WORST_NS]:
            words[at + LABEL_WORST_NS] = unit_ns
        if statements:
            words[at + LABEL_STATEMENTS] += statements
        if is_error:
            words[at + LABEL_ERRORS] += 1

    # ---- pools and connections

    def pool_row(self, bind: str, class_name: str) -> int:
        """The row of a pool; -1 if there is no room.

        :param bind: the name of its engine.
        """
        with self.lock:
            if bind not in self._pools:
                index = self.words[AT_POOLS]
                if index == MAX_POOLS:
                    self.words[AT_UNTOLD + UNTOLD.index("pools")] += 1
                    return -1
                at = AT_POOL_ROWS + POOL_WORDS * index
                self._write_text(at, POOL_NAME_WORDS, bind)
                self._write_text(at + POOL_NAME_WORDS, POOL_CLASS_WORDS, class_name)
                self.words[AT_POOLS] = index + 1
                self._pools[bind] = index
            return self._pools[bind]

    def take_connection(self) -> int | None:
        """The index of a free connection's row, None if there is none."""
        try:
            return self._free_connections.pop()
        except IndexError:
            self.count(AT_UNTOLD + UNTOLD.index("connections"))
            return None

    def free_connection(self, index: int) -> None:
        """Leave a connection's row to another."""
        at = AT_CONNECTIONS + CONNECTION_WORDS * index
        self.words[at] = self.words[at + CONNECTION_HELD] = 0
        self._free_connections.append(index)

    def _write_text(self, at: int, words: int, text: str, *, keeps_end: bool = False) -> None:
        self.memory[at * WORD : (at + words) * WORD] = _fitted(text, words * WORD, keeps_end=keeps_end)


def _fitted(text: str, size: int, *, keeps_end: bool = False) -> bytes:
    """A text in so many bytes; one that is too long loses its end, or its beginning."""
    data = text.encode("utf-8", "replace")
    if len(data) > size:
        dots = "…".encode()
        rest = data[len(data) - size + len(dots) :] if keeps_end else data[: size - len(dots)]
        shown = rest.decode("utf-8", "ignore").encode()
        data = dots + shown if keeps_end else shown + dots
    return data.ljust(size, b"\0")
