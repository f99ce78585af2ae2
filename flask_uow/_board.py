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
import time
from bisect import bisect_left
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import CodeType
from typing import Any

from . import _fork
from ._callsite import CallSite
from ._short_names import digest, distinct

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
AT_STARTER = 13
"""What has started the worker: a process, and the group of both. A master replaces its workers by others like them."""
_STARTER_DIGITS = 13
AT_APP, AT_HOST = 16, 24
NAME_WORDS = 8

AT_STARTERS, MAX_STARTERS = 32, 16
"""On a board of ended workers: what had started them."""

AT_COUNTS = 64
BEGUN, RETRIED, OPENED, CLOSED, LEAKED, STATEMENTS_OUTSIDE, FAST_CHECKOUTS, HELD_S = range(AT_COUNTS, AT_COUNTS + 8)
"""``BEGUN`` are the units that had no slot of their thread's, ``FAST_CHECKOUTS`` and ``HELD_S`` of connections outside
of units."""
BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1
UNIT_SECONDS, HELD_SECONDS, IDLE_SECONDS = (AT_COUNTS + 16 + BUCKETS * each for each in range(3))
"""Histograms. The first bucket is not written: it holds what the labels have counted, and not counted as long."""
AT_RULES = IDLE_SECONDS + BUCKETS
MAX_RULES = 32
"""Each a rule's number and its count."""
END_OF_COUNTS = AT_RULES + 2 * MAX_RULES

AT_POOL_ROWS = 256
POOL_WORDS, MAX_POOLS = 24, 16
POOL_NAME_WORDS, POOL_CLASS_WORDS = 8, 6
POOL_SIZE, POOL_MAX_OVERFLOW, POOL_TIMEOUT_MS, POOL_TIMEOUTS, POOL_LONGEST_S = range(14, 19)

AT_LABEL_ROWS = AT_POOL_ROWS + POOL_WORDS * MAX_POOLS
LABEL_WORDS, MAX_LABELS = 56, 256
"""The last two rows are for what found no other: outermost units, and inner ones."""
TEXT_WORDS = 20
LABEL_WHERE, LABEL_INNER, LABEL_RECORD = TEXT_WORDS, 2 * TEXT_WORDS, 2 * TEXT_WORDS + 1
LABEL_FIELDS = (
    "count", "rolled_back", "failed", "errors", "without_connection",
    "long_units", "long_idle", "long_held", "statements", "took_s", "worst_s", "idle_s", "held_s", "count_again",
)  # fmt: skip
"""The record of a label; a reader that finds the two counts different has met it while it was written."""
LABEL = struct.Struct("=8q5dq")
"""What is packed is copied to its place by one call, in which no other thread gets its turn; ``pack_into`` would fill
the place with zeros first, which a reader may see."""

AT_LIVE = AT_LABEL_ROWS + LABEL_WORDS * MAX_LABELS
LIVE_WORDS, MAX_LIVE = 16, 256
MAX_HOMES = 128
"""The first slots are the threads' own, for their outermost units; the others are for everything else."""
LIVE_FIELDS = ("turn", "told", "began_s", "told_before", "label", "connection", "turn_again")
"""The record of a slot. The turn is how often it was taken, 0 where nobody has it; what is told is one number made of
how many statements the session has sent, what it does, and since when, in seconds of the monotonic clock."""
LIVE = struct.Struct("=q3d3q")
pack_live = LIVE.pack
_pack_label, _pack_rare = struct.Struct("=q24sq24s5dq").pack, struct.Struct("=3q").pack
"""Of a label's record, what is so of few units is packed when it changes: how they ended, and how long they took."""
LIVE_KIND, LIVE_PARENT, LIVE_DEPTH, LIVE_ATTEMPT, LIVE_THREAD, LIVE_THREAD_NAME = range(7, 13)
LIVE_CONNECTION, LIVE_TOLD_BEFORE = (
    LIVE_FIELDS.index(field) - LIVE_FIELDS.index("told") for field in ("connection", "told_before")
)
"""Where a slot has its connection, and the statements before it, from where it tells what it does."""
THREAD_NAME_BYTES = 4 * WORD
_THREAD = struct.Struct(f"=q{THREAD_NAME_BYTES}s")

AT_CONNECTIONS = AT_LIVE + LIVE_WORDS * MAX_LIVE
CONNECTION_WORDS, MAX_CONNECTIONS = 4, 256
CONNECTION_POOL, CONNECTION_PID, CONNECTION_HELD = range(3)
"""The pool's row and one, the server's process, and who holds it where that does not say so itself: 0, or its slot and
one, and its turn."""
SLOT_BITS = 9

WORDS = AT_CONNECTIONS + CONNECTION_WORDS * MAX_CONNECTIONS
SIZE_BYTES = WORDS * WORD


class Kind(IntEnum):
    """What is in a live slot."""

    UNIT = 1
    SESSION = 2
    CONNECTION = 3


CLOCK = float(1 << 28)
"""More seconds than a machine runs: what is told holds states in their multiples, and statements in eightfold ones."""
STATEMENT = 8 * CLOCK
NO_TRANSACTION, RUNNING, IDLE, WAITING, COMMITTING, ROLLING_BACK, HELD, LEAKING = (CLOCK * each for each in range(8))
"""What it does."""


class Outcome(IntEnum):
    """How a unit ended."""

    COMMITTED = 0
    ROLLED_BACK = 1
    FAILED = 2


_BOUNDS_S = BUCKET_BOUNDS_SECONDS
_FIRST_BOUND_S = BUCKET_BOUNDS_SECONDS[0]
_UNIT = int(Kind.UNIT)
_OTHERS = "(others)"
_MAX_KNOWN_LABELS = 10_000
_get_ident = threading.get_ident


def _no_function() -> None:
    """Nothing was called yet."""


class Live:
    """A slot in which somebody says what it does; reused, and never by two at a time.

    :ivar reals: the board's words as floating-point numbers.
    :ivar place: where its record begins, whose first word is the turn.
    :ivar at: the word that tells what is done.
    :ivar span: where its record lies, in bytes.
    :ivar turns: how often the slot was taken.
    :ivar is_taken: whether somebody has it.
    :ivar held_since_s: when the unit took its first connection, 0.0 before that.
    """

    __slots__ = ("at", "board", "held_since_s", "index", "is_home", "is_taken", "place", "reals", "span", "turns",
                 "words")  # fmt: skip

    def __init__(self, board: Board, index: int) -> None:
        self.board = board
        self.words, self.reals = board.words, board.reals
        self.index = index
        self.place = AT_LIVE + LIVE_WORDS * index
        self.at = self.place + 1
        self.span = _span(self.place, LIVE)
        self.turns = 0
        self.held_since_s = 0.0
        self.is_home = index < MAX_HOMES
        self.is_taken = False

    def take(self, row: Row, now_s: float, told: float) -> None:
        """Have it from now on.

        :param told: what the session has told of its statements.
        """
        self.is_taken = True
        self.held_since_s = 0.0
        self.turns = turn = self.turns + 1
        self.board.memory[self.span] = pack_live(turn, told, now_s, told, row.index, 0, turn)

    def tell(self, what: float) -> None:
        """Say what is done from now on, where no statements are counted."""
        self.reals[self.at] = what + time.monotonic()

    def wait_for(self, pool_row: int) -> None:
        """Say in which pool it waits for its first connection.

        :param pool_row: the row of the pool, -1 for none.
        """
        if not self.held_since_s:
            self.words[self.place + 1 + LIVE_CONNECTION] = -(pool_row + 1)

    def free(self) -> None:
        """Leave the slot to others."""
        self.words[self.place] = 0
        if self.is_taken and not self.is_home:
            self.board.free.append(self)
        self.is_taken = False

    def describe(self, kind: int, parent: int, depth: int, attempt: int) -> None:
        """Say whose slot it is: what changes seldom."""
        words, at = self.words, self.place
        words[at + LIVE_KIND], words[at + LIVE_PARENT] = kind, parent
        words[at + LIVE_DEPTH], words[at + LIVE_ATTEMPT] = depth, attempt
        number = threading.get_native_id() if hasattr(threading, "get_native_id") else _get_ident()
        name = _fitted(threading.current_thread().name, THREAD_NAME_BYTES)
        _THREAD.pack_into(self.board.memory, (at + LIVE_THREAD) * WORD, number, name)


class _Guest:
    """Gives a thread's own slot back when the thread has ended, for its number is another's soon."""

    __slots__ = ("_homes", "_ident")

    def __init__(self, homes: dict[int, Live]) -> None:
        self._homes = homes
        self._ident = _get_ident()

    def __del__(self) -> None:
        live = self._homes.pop(self._ident, None)
        if live is not None and not live.is_taken:
            live.board.free_homes.append(live)


class Row:
    """Where the units of a label are counted.

    :ivar find_function: gives the decorated function whose unit was the last one, as long as there is that: one that is
        defined inside another holds whatever it refers to there.
    """

    __slots__ = ("at", "code", "count", "errors", "failed", "find_function", "held_s", "idle_s", "index", "is_inner",
                 "line", "long_held", "long_idle", "long_units",
                 "rare_ends", "rare_lengths", "rolled_back", "span", "statements",
                 "took_s", "without_connection", "worst_s")  # fmt: skip

    def __init__(self, index: int, site: CallSite | None, *, is_inner: bool) -> None:
        self.index = index
        self.at = AT_LABEL_ROWS + LABEL_WORDS * index
        self.span = _span(self.at + LABEL_RECORD, LABEL)
        self.find_function: Callable[[], object] = _no_function
        self.code: CodeType | None = site[0] if site else None
        self.line = site[1] if site else 0
        self.is_inner = is_inner
        self.count = self.rolled_back = self.failed = self.errors = self.without_connection = 0
        self.long_units = self.long_idle = self.long_held = 0
        self.rare_ends = self.rare_lengths = bytes(3 * WORD)
        self.statements = self.took_s = self.worst_s = self.idle_s = self.held_s = 0.0


class Board:
    """What one process says of one app.

    :param app_name: the app's name.
    :param host: the name of the machine.
    :param started_ns: the time, in nanoseconds since 1970.
    :param memory: :data:`SIZE_BYTES` bytes, all of them zero, that others can read; the process's own if None.
    :ivar memory: the bytes.
    :ivar words: the same as words.
    :ivar reals: the same as floating-point numbers.
    :ivar is_published: whether others can read it.
    :ivar path: where its file lies, None where it has none.
    """

    def __init__(self, app_name: str, host: str, started_ns: int, memory: Any = None) -> None:
        self.is_published = memory is not None
        self.path: Path | None = None
        self._take_memory(bytearray(SIZE_BYTES) if memory is None else memory)
        self._lives = [Live(self, index) for index in range(MAX_LIVE)]
        self.free_homes = self._lives[MAX_HOMES - 1 :: -1]
        self.homes: dict[int, Live] = {}
        self._guests = threading.local()
        self.free = self._lives[-2 : MAX_HOMES - 1 : -1]
        self.rows: dict[str, Row] = {}
        self._rows_of_namesakes: dict[tuple[str, Any, int, bool], Row] = {}
        self._others = [self._write_row(MAX_LABELS - 2 + inner, _OTHERS, None, bool(inner)) for inner in (0, 1)]
        self._pools: dict[str, int] = {}
        self._free_connections = list(reversed(range(MAX_CONNECTIONS)))
        self._write_header(app_name, host, started_ns)
        _fork.abandon_in_children(self)

    def _take_memory(self, memory: Any) -> None:
        self.memory = memory
        self.words = memoryview(memory).cast("q")
        self.reals = memoryview(memory).cast("d")
        # What the collector, or a signal, finds to count while this thread counts must not wait for it.
        self.lock = threading.RLock()

    def _write_header(self, app_name: str, host: str, started_ns: int) -> None:
        words = self.words
        words[AT_VERSION], words[AT_SIZE] = VERSION, SIZE_BYTES
        words[AT_PID], words[AT_STARTED_NS] = os.getpid(), started_ns
        words[AT_STARTER] = starter()
        self._write_text(AT_APP, NAME_WORDS, shown_name(app_name))
        self._write_text(AT_HOST, NAME_WORDS, shown_name(host))
        words[AT_MAGIC] = MAGIC  # last: what lacks it is no board yet

    def abandon(self) -> object:
        """In a forked child, leave the parent's memory alone."""
        shared = self.memory, self.words, self.reals
        self._take_memory(bytearray(SIZE_BYTES))
        self.is_published = False
        for live in self._lives:
            live.words, live.reals = self.words, self.reals
        return shared

    # ---- labels

    def row(self, label: str, site: CallSite | None, *, is_inner: bool) -> Row:
        """Where units of a label are counted.

        :param site: the line where they are defined.
        :param is_inner: whether they are inside other units.
        """
        row = self.rows.get(label)
        code, line = site or (None, 0)
        if row is not None and row.code is code and row.line == line and row.is_inner is is_inner:
            return row
        return self._rows_of_namesakes.get((label, code, line, is_inner)) or self._new_row(label, site, is_inner)

    def _new_row(self, label: str, site: CallSite | None, is_inner: bool) -> Row:
        code, line = site or (None, 0)
        key = label, code, line, is_inner
        with self.lock:
            if key in self._rows_of_namesakes:
                return self._rows_of_namesakes[key]  # another thread was faster
            index = self.words[AT_LABELS]
            if index == MAX_LABELS - len(self._others):
                if len(self._rows_of_namesakes) < _MAX_KNOWN_LABELS:
                    self.words[AT_UNTOLD + UNTOLD.index("labels")] += 1
                    self._rows_of_namesakes[key] = self._others[is_inner]  # it is counted once
                return self._others[is_inner]
            row = self._write_row(index, label, site, is_inner)
            self.words[AT_LABELS] = index + 1
            self.rows.setdefault(label, row)
            self._rows_of_namesakes[key] = row
        return row

    def _write_row(self, index: int, label: str, site: CallSite | None, is_inner: bool) -> Row:
        row = Row(index, site, is_inner=is_inner)
        self._write_text(row.at, TEXT_WORDS, label)
        self._write_text(row.at + LABEL_WHERE, TEXT_WORDS, str(site) if site else "", keeps_end=True)
        self.words[row.at + LABEL_INNER] = is_inner
        return row

    # ---- who does what

    def home(self) -> Live | None:
        """The calling thread's own slot, None if there are too many threads."""
        with self.lock:
            ident = _get_ident()
            live = self.homes.get(ident)
            if live is None and self.free_homes:
                live = self.homes[ident] = self.free_homes.pop()
                live.describe(_UNIT, 0, 1, 1)
                self._guests.guest = _Guest(self.homes)
            return live

    def occupy(
        self,
        kind: int,
        row: Row,
        now_s: float,
        told: float = 0.0,
        *,
        parent: Live | None = None,
        depth: int = 0,
        attempt: int = 1,
    ) -> Live:
        """Take a slot that is no thread's own.

        :param kind: a :class:`Kind`.
        :param told: what the session has told of its statements.
        :param parent: the slot of the unit around.
        """
        try:
            live = self.free.pop()
        except IndexError:
            self.count(AT_UNTOLD)
            live = Live(self, MAX_LIVE - 1)  # which nobody reads
            live.is_home = True
            if parent is not None:
                live.at = parent.at  # the unit around says for it what it does
        live.describe(kind, 0 if parent is None else parent.index + 1, depth, attempt)
        live.take(row, now_s, told)
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

    def count_unit(
        self, row: Row, outcome: int, is_error: bool, statements: float, took_s: float, idle_s: float, held_s: float
    ) -> None:
        """Count a unit that has ended; every unit pays for each line here.

        :param outcome: an :class:`Outcome`.
        :param idle_s: how long it was idle in its transaction.
        :param held_s: how long it had a connection.
        """
        with self.lock:
            row.count = count = row.count + 1
            row.statements = statements = row.statements + statements
            row.took_s = total_s = row.took_s + took_s
            row.idle_s = total_idle_s = row.idle_s + idle_s
            if held_s:
                row.held_s += held_s
            else:
                row.without_connection += 1
            if took_s > row.worst_s:
                row.worst_s = took_s
            if outcome or is_error or took_s > _FIRST_BOUND_S or idle_s > _FIRST_BOUND_S:
                self._count_rare(row, outcome, is_error, took_s, idle_s, held_s)
            self.memory[row.span] = _pack_label(
                count, row.rare_ends, row.without_connection, row.rare_lengths,
                statements, total_s, row.worst_s, total_idle_s, row.held_s, count
            )  # fmt: skip

    def _count_rare(self, row: Row, outcome: int, is_error: bool, took_s: float, idle_s: float, held_s: float) -> None:
        """Count what is not so of most units, or of none that is short."""
        if outcome:
            row.rolled_back += outcome == Outcome.ROLLED_BACK
            row.failed += outcome == Outcome.FAILED
        if is_error:
            row.errors += 1
        if not row.is_inner:  # only outermost units are in a histogram, and not in its first bucket
            self._count_long(row, took_s, idle_s, held_s)
        row.rare_ends = _pack_rare(row.rolled_back, row.failed, row.errors)
        row.rare_lengths = _pack_rare(row.long_units, row.long_idle, row.long_held)

    def _count_long(self, row: Row, took_s: float, idle_s: float, held_s: float) -> None:
        if took_s > _FIRST_BOUND_S:
            row.long_units += 1
            self.words[UNIT_SECONDS + bisect_left(_BOUNDS_S, took_s)] += 1
        if idle_s > _FIRST_BOUND_S:
            row.long_idle += 1
            self.words[IDLE_SECONDS + bisect_left(_BOUNDS_S, idle_s)] += 1
        if held_s > _FIRST_BOUND_S:
            row.long_held += 1
            self.words[HELD_SECONDS + bisect_left(_BOUNDS_S, held_s)] += 1

    def count_checkout(self, held_s: float) -> None:
        """Count a connection that came back from outside of units."""
        with self.lock:
            self.reals[HELD_S] += held_s
            bucket = bisect_left(_BOUNDS_S, held_s)
            self.words[HELD_SECONDS + bucket if bucket else FAST_CHECKOUTS] += 1

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
                self._write_text(at, POOL_NAME_WORDS, shown_name(bind))
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


def _span(at: int, record: struct.Struct) -> slice:
    return slice(at * WORD, at * WORD + record.size)


def starter() -> int:
    """What has started this process, as a board has it: in so few digits that no reader takes it for damage.

    In a container that is started again, processes have the numbers that others had before: that is told by the time.
    """
    parent, group = os.getppid(), os.getpgrp() if hasattr(os, "getpgrp") else 0
    return int(digest(f"{parent} {group} {started_s(parent or group)}", _STARTER_DIGITS), 16)


def started_s(pid: int) -> float | None:
    """When a process was started, in seconds since the machine was; None where nobody can tell.

    :param pid: its number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def shown_name(name: str, size: int = NAME_WORDS * WORD) -> str:
    """An app's, a host's or a pool's name as a board has it.

    :param name: the whole name, or what this has made of it.
    :param size: how many bytes there are for it.
    """
    return distinct(name, name.encode("utf-8", "replace").decode(), size).rstrip("\0")


def _fitted(text: str, size: int, *, keeps_end: bool = False) -> bytes:
    """A text in so many bytes; one that is too long loses its end, or its beginning."""
    data = text.encode("utf-8", "replace")
    if len(data) > size:
        dots = "…".encode()
        rest = data[len(data) - size + len(dots) :] if keeps_end else data[: size - len(dots)]
        shown = rest.decode("utf-8", "ignore").encode()
        data = dots + shown if keeps_end else shown + dots
    return data.ljust(size, b"\0")
