"""The board: what a process publishes of an app's units, sessions and connections, in memory that others can read.

It is an array of 8-byte words. A word is stored whole, so that no reader sees half of one; a record of several words
has one that tells whether the rest belongs together. What a unit does is one word, written where the unit turns to
something else; what it has done is one record, written when it ends. Labels are written once, and units refer to their
row. Counters are written under a lock of the process, and everything else by one thread.

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

AT_MAGIC, AT_VERSION, AT_SIZE, AT_PID, AT_STARTED_NS, AT_LABELS, AT_POOLS = range(7)
AT_WORKERS = 7
"""How many workers a board of ended ones stands for."""
AT_UNTOLD = 8
UNTOLD = ("units", "connections", "labels", "pools")
AT_APP, AT_HOST = 16, 24
NAME_WORDS = 8

AT_COUNTS = 64
BEGUN, RETRIED, OPENED, CLOSED, LEAKED, STATEMENTS_OUTSIDE, CHECKOUTS, HELD_NS = range(AT_COUNTS, AT_COUNTS + 8)
"""``BEGUN`` are the units that had no slot of their thread's; ``CHECKOUTS`` and ``HELD_NS`` those outside of units."""
BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1
UNIT_SECONDS, HELD_SECONDS, IDLE_SECONDS = (AT_COUNTS + 16 + BUCKETS * each for each in range(3))
"""Histograms. The first bucket is not written: it holds all that is in no other one."""
AT_RULES = IDLE_SECONDS + BUCKETS
MAX_RULES = 32
"""Each a rule's number and its count."""
END_OF_COUNTS = AT_RULES + 2 * MAX_RULES

AT_POOL_ROWS = 256
POOL_WORDS, MAX_POOLS = 24, 16
POOL_NAME_WORDS, POOL_CLASS_WORDS = 8, 6
POOL_SIZE, POOL_MAX_OVERFLOW, POOL_TIMEOUT_MS, POOL_TIMEOUTS, POOL_LONGEST_NS = range(14, 19)

AT_LABEL_ROWS = AT_POOL_ROWS + POOL_WORDS * MAX_POOLS
LABEL_WORDS, MAX_LABELS = 56, 256
"""The last two rows are for what found no other: outermost units, and inner ones."""
TEXT_WORDS = 20
LABEL_WHERE, LABEL_INNER, LABEL_COUNT = TEXT_WORDS, 2 * TEXT_WORDS, 2 * TEXT_WORDS + 1
_LABEL = struct.Struct("=12q")
LABEL_FIELDS = (
    "count", "committed", "rolled_back", "failed", "errors",
    "took_ns", "worst_ns", "statements", "idle_ns", "held_ns", "without_connection", "count_again",
)  # fmt: skip
"""The record at ``LABEL_COUNT``; a reader that finds the two counts different has met it while it was written."""

AT_LIVE = AT_LABEL_ROWS + LABEL_WORDS * MAX_LABELS
LIVE_WORDS, MAX_LIVE = 16, 256
MAX_HOMES = 128
"""The first slots are the threads' own, for their outermost units; the others are for everything else."""
LIVE_TURN, LIVE_STATE, LIVE_BEGAN_NS, LIVE_LABEL, LIVE_PARENT, LIVE_DEPTH, LIVE_ATTEMPT = range(7)
LIVE_STATEMENTS_BEFORE, LIVE_CONNECTION, LIVE_THREAD, LIVE_THREAD_NAME = range(7, 11)
THREAD_NAME_BYTES = 4 * WORD
_LIVE = struct.Struct("=8q")
_THREAD = struct.Struct(f"=q{THREAD_NAME_BYTES}s")
KIND_BITS = 2
"""``LIVE_TURN`` is how often the slot was taken, and a :class:`Kind`: who reads it alike before and after the rest has
read one record."""
STATE_BITS, STATEMENT_BITS, CLOCK_BITS = 3, 20, 20
"""``LIVE_STATE`` is since when, in units of 2 ** CLOCK_BITS nanoseconds, the statements that the session had sent, and
a :class:`State`."""

AT_CONNECTIONS = AT_LIVE + LIVE_WORDS * MAX_LIVE
CONNECTION_WORDS, MAX_CONNECTIONS = 4, 256
CONNECTION_POOL, CONNECTION_PID, CONNECTION_HELD = range(3)
"""The pool's row and one, the server's process, and who holds it: 0, or the slot and one, and its turn."""

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


class Outcome(IntEnum):
    """How a unit ended."""

    COMMITTED = 0
    ROLLED_BACK = 1
    FAILED = 2


SINCE_SHIFT = STATE_BITS + STATEMENT_BITS
STATEMENT_MASK = (1 << STATEMENT_BITS) - 1
_KIND_MASK = (1 << KIND_BITS) - 1
_TURN = 1 << KIND_BITS
_FIRST_BOUND_NS = round(BUCKET_BOUNDS_SECONDS[0] * 1e9)
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BUCKET_BOUNDS_SECONDS)
_UNIT = int(Kind.UNIT)
_OTHERS = "(others)"


class Live:
    """A slot in which somebody says what it does; reused, and never by two at a time.

    :ivar words: the board's.
    :ivar at: the word that says what is done.
    :ivar turn: how often the slot was taken, as its first word has it.
    :ivar held_since_ns: when the unit took its first connection, 0 before that.
    """

    __slots__ = ("at", "board", "held_since_ns", "index", "is_home", "is_taken", "turn", "words")

    def __init__(self, board: Board, index: int) -> None:
        self.board = board
        self.words = board.words
        self.index = index
        self.at = AT_LIVE + LIVE_WORDS * index + LIVE_STATE
        self.turn = self.held_since_ns = 0
        self.is_home = index < MAX_HOMES
        self.is_taken = False

    def turn_to(self, state: int, now_ns: int, statements: int = 0) -> None:
        """Say what is done from now on.

        :param statements: how many the session has sent.
        """
        self.words[self.at] = now_ns >> CLOCK_BITS << SINCE_SHIFT | (statements & STATEMENT_MASK) << STATE_BITS | state

    def free(self) -> None:
        """Leave the slot to others."""
        self.words[self.at - 1] = self.turn = self.turn & ~_KIND_MASK
        self.is_taken = False
        if not self.is_home:
            self.board.free.append(self)

    def name_thread(self) -> None:
        """Say whose slot it is from now on."""
        number = threading.get_native_id() if hasattr(threading, "get_native_id") else threading.get_ident()
        name = _fitted(threading.current_thread().name, THREAD_NAME_BYTES)
        _THREAD.pack_into(self.board.memory, (self.at - LIVE_STATE + LIVE_THREAD) * WORD, number, name)


class _Home(threading.local):
    """The calling thread's own slot; None if there are too many threads."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.live = board.free_homes.pop() if board.free_homes else None
        if self.live is not None:
            self.live.name_thread()
            self.guard = _HomeGuard(self.live)


class _HomeGuard:
    """Gives a thread's slot back when the thread ends."""

    __slots__ = ("_live",)

    def __init__(self, live: Live) -> None:
        self._live = live

    def __del__(self) -> None:
        self._live.board.free_homes.append(self._live)


class Row:
    """Where the units of a label are counted."""

    __slots__ = ("at", "code", "errors", "held_ns", "idle_ns", "index", "is_inner", "line", "outcomes", "statements",
                 "took_ns", "without_connection", "worst_ns")  # fmt: skip

    def __init__(self, index: int, site: CallSite | None, *, is_inner: bool) -> None:
        self.index = index
        self.at = AT_LABEL_ROWS + LABEL_WORDS * index
        self.code: CodeType | None = site[0] if site else None
        self.line = site[1] if site else 0
        self.is_inner = is_inner
        self.outcomes = [0, 0, 0]
        self.errors = self.took_ns = self.worst_ns = self.statements = 0
        self.idle_ns = self.held_ns = self.without_connection = 0


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
        self._lives = [Live(self, index) for index in range(MAX_LIVE)]
        self.free_homes = self._lives[MAX_HOMES - 1 :: -1]
        self.free = self._lives[-2 : MAX_HOMES - 1 : -1]
        self._rows: dict[str, Row] = {}
        self._rows_of_namesakes: dict[tuple[str, Any, int, bool], Row] = {}
        self._others = [self._write_row(MAX_LABELS - 2 + inner, _OTHERS, None, bool(inner)) for inner in (0, 1)]
        self._pools: dict[str, int] = {}
        self._free_connections = list(reversed(range(MAX_CONNECTIONS)))
        self._home = _Home(self)
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
        for live in self._lives:
            live.words = self.words
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

    def occupy_home(self, row: Row, state: int, now_ns: int, statements: int, attempt: int) -> Live:
        """Take the thread's own slot for an outermost unit; another one if that is taken.

        :param state: a :class:`State`.
        :param statements: how many the session has sent before.
        :param attempt: the unit's.
        """
        live: Live | None = self._home.live
        if live is None or live.is_taken:
            self.count(BEGUN)
            return self.occupy(_UNIT, row, state, now_ns, statements, depth=1, attempt=attempt)
        live.is_taken = True
        live.held_since_ns = 0
        at = live.at
        _LIVE.pack_into(
            self.memory, at * WORD,
            now_ns >> CLOCK_BITS << SINCE_SHIFT | (statements & STATEMENT_MASK) << STATE_BITS | state,
            now_ns, row.index, 0, 1, attempt, statements, 0,
        )  # fmt: skip
        self.words[at - 1] = live.turn = (live.turn & ~_KIND_MASK) + _TURN + _UNIT
        return live

    def occupy(
        self,
        kind: int,
        row: Row,
        state: int,
        now_ns: int,
        statements: int = 0,
        *,
        parent: Live | None = None,
        depth: int = 0,
        attempt: int = 1,
    ) -> Live:
        """Take a slot.

        :param kind: a :class:`Kind`.
        :param state: a :class:`State`.
        :param statements: how many the session has sent before.
        :param parent: the slot of the unit around.
        """
        try:
            live = self.free.pop()
        except IndexError:
            self.count(AT_UNTOLD)
            live = Live(self, MAX_LIVE - 1)  # which nobody reads
            live.is_home = True
        live.is_taken = True
        live.held_since_ns = 0
        live.name_thread()
        word = now_ns >> CLOCK_BITS << SINCE_SHIFT | (statements & STATEMENT_MASK) << STATE_BITS | state
        around = 0 if parent is None else parent.index + 1
        _LIVE.pack_into(
            self.memory, live.at * WORD, word, now_ns, row.index, around, depth, attempt, statements, 0
        )  # fmt: skip
        self.words[live.at - 1] = live.turn = (live.turn & ~_KIND_MASK) + _TURN + kind
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

    def count_checkout(self, held_ns: int) -> None:
        """Count a connection that came back from outside of units."""
        with self.lock:
            self.words[CHECKOUTS] += 1
            self.words[HELD_NS] += held_ns
            self._count_time(HELD_SECONDS, held_ns)

    def count_unit(
        self, row: Row, outcome: int, took_ns: int, statements: int, idle_ns: int, held_ns: int, is_error: bool
    ) -> None:
        """Count a unit that has ended.

        :param outcome: an :class:`Outcome`.
        :param idle_ns: how long it was idle in its transaction.
        :param held_ns: how long it had a connection.
        """
        with self.lock:
            outcomes = row.outcomes
            outcomes[outcome] += 1
            row.errors += is_error
            row.took_ns += took_ns
            row.statements += statements
            row.idle_ns += idle_ns
            if held_ns:
                row.held_ns += held_ns
            else:
                row.without_connection += 1
            if took_ns > row.worst_ns:
                row.worst_ns = took_ns
            committed, rolled_back, failed = outcomes
            count = committed + rolled_back + failed
            _LABEL.pack_into(
                self.memory, (row.at + LABEL_COUNT) * WORD, count, committed, rolled_back, failed, row.errors,
                row.took_ns, row.worst_ns, row.statements, row.idle_ns, row.held_ns, row.without_connection, count,
            )  # fmt: skip
            if took_ns > _FIRST_BOUND_NS and not row.is_inner:
                self._count_time(UNIT_SECONDS, took_ns)
                self._count_time(IDLE_SECONDS, idle_ns)
                self._count_time(HELD_SECONDS, held_ns)

    def _count_time(self, histogram: int, time_ns: int) -> None:
        if time_ns > _FIRST_BOUND_NS:
            self.words[histogram + bisect_left(_BOUNDS_NS, time_ns)] += 1

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
