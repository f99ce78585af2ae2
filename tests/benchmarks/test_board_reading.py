"""What it takes to read the boards of many workers: real files, as many workers write them."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask

from flask_uow import UnitOfWork, stats
from flask_uow._board import (
    AT_CONNECTIONS,
    BUCKET_BOUNDS_SECONDS,
    CONNECTION_PID,
    CONNECTION_WORDS,
    IDLE,
    LIVE_CONNECTION,
    RUNNING,
    STATEMENT,
    Board,
    Kind,
    Outcome,
)
from flask_uow._board_files import open_board

WORKERS = 64
UNITS = 8
LABELS = 40
RUNS = 9
MAX_MS = 150.0


def publish(app: Flask, folder: Path) -> Board:
    """A board such as a busy worker has: labels, pools, connections, and units that run."""
    board = open_board(app, str(folder))
    pool = board.pool_row("default", "QueuePool")
    rows = [
        board.row(f"POST /accounts/<int:number>/{number}", None, is_inner=number % 4 == 3) for number in range(LABELS)
    ]
    for number, row in enumerate(rows):
        took_s = BUCKET_BOUNDS_SECONDS[number % len(BUCKET_BOUNDS_SECONDS)]
        board.count_unit(row, Outcome(number % 3), False, 4 * 1.0, took_s, took_s / 2, took_s)
    for number in range(UNITS):
        now_s = time.monotonic()
        live = board.occupy(Kind.UNIT, rows[number], now_s, depth=1)
        index = board.take_connection()
        assert index is not None
        _write_connection(board, index, pool, pid=1000 + number)
        live.words[live.at + LIVE_CONNECTION] = index + 1
        live.reals[live.at] = 3 * STATEMENT + (IDLE if number % 2 else RUNNING) + now_s
    return board


def _write_connection(board: Board, index: int, pool: int, *, pid: int) -> None:
    at = AT_CONNECTIONS + CONNECTION_WORDS * index
    board.words[at + CONNECTION_PID], board.words[at] = pid, pool + 1


def test_many_workers_are_read_at_once(tmp_path: Path, say: Callable[[str], object]) -> None:
    """64 workers with 8 live units each, in less than a person notices; the best of some runs."""
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", UOW_STATS_DIR=str(tmp_path / "boards"))
    UnitOfWork(app)
    boards = [publish(app, tmp_path / "boards") for _ in range(WORKERS)]

    took_ms = []
    for _ in range(RUNS):
        before = time.perf_counter()
        seen = stats.read_boards(app)
        took_ms.append((time.perf_counter() - before) * 1000)

    say(f"\nreading {WORKERS} workers x {UNITS} live units, {LABELS} labels: {min(took_ms):.1f} ms")
    assert len(seen.workers) == len(boards)
    assert all(len(worker.live) == UNITS and worker.host == socket.gethostname() for worker in seen.workers)
    assert not seen.notes
    assert min(took_ms) < MAX_MS
