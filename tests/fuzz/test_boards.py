"""Boards with any damage, beside good ones: what is damaged is named or read, and of the good ones nothing is lost."""

import gc
import json
import os
import random
import re
import shutil
import socket
import struct
import time
import tracemalloc
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st

from flask_uow import _board, _board_files, stats, transactional
from flask_uow._board import SIZE_BYTES, WORD, WORDS, Outcome
from flask_uow.stats import _boards
from tests.boards import board_files, make_app
from tests.fuzz.odd_values import bounded

DEAD_UNITS, ENDED_UNITS, LIVING_UNITS = 5, 7, 2
MOST_BYTES = 16 * 1024 * 1024
EXTREMES = [-1, 0, 1, 2**31, 2**53, 2**53 - 1, 2**63 - 1, -(2**63), 0x7FF0000000000000, 0x7FF8000000000000]

words = st.integers(0, WORDS - 1) | st.sampled_from(range(_board.AT_COUNTS + 16 + 48 + 64))
numbers = st.sampled_from(EXTREMES) | st.integers(-(2**63), 2**63 - 1)
damages = (
    st.tuples(st.just("bits"), st.lists(st.integers(0, SIZE_BYTES * 8 - 1), min_size=1, max_size=20))
    | st.tuples(st.just("words"), st.lists(st.tuples(words, numbers), min_size=1, max_size=10))
    | st.tuples(st.just("cut"), st.integers(0, SIZE_BYTES - 1))
    | st.tuples(st.just("longer"), st.integers(1, 100_000))
    | st.tuples(st.just("garbage"), st.integers(0, 1000))
)


def _is_file_name(name: str) -> bool:
    try:
        return len(os.fsencode(name)) < 200 and name not in (".", "..")
    except UnicodeEncodeError:
        return False


odd_names = st.text(
    st.characters(exclude_characters="\0/", codec=None, exclude_categories=()), min_size=1, max_size=30
).filter(_is_file_name)


def damaged(data: bytes, way: str, where: Any) -> bytes:
    """The bytes of a good board after a damage."""
    changed = bytearray(data)
    if way == "bits":
        for bit in where:
            changed[bit // 8] ^= 1 << bit % 8
    elif way == "words":
        for word, number in where:
            struct.pack_into("=q", changed, word * WORD, number)
    elif way == "cut":
        del changed[where:]
    elif way == "longer":
        changed += bytes(where)
    else:
        head = 3 * WORD  # magic, version and size
        changed[head:] = random.Random(where).randbytes(SIZE_BYTES - head)
    return bytes(changed)


class Night:
    """A folder with the board of a living worker, of one that has died, and of ended ones."""

    def __init__(self, app: Flask, folder: Path, files: dict[str, bytes]) -> None:
        self.app, self.folder, self.files = app, folder, files

    def lay_out(self) -> None:
        """Put the good files back, and nothing else; the living worker's own stays."""
        (living,) = [path for path in board_files(self.folder) if str(os.getpid()) in path.name]
        for path in self.folder.iterdir():
            if path != living:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, data in self.files.items():
            (self.folder / name).write_bytes(data)


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    """Boards on which each kind of worker has a label of its own."""
    monkeypatch.setattr(_boards, "_MAX_WAIT_S", 0.001)
    folder = tmp_path / "boards"
    app, _ = make_app(folder)
    with app.app_context():
        for _ in range(LIVING_UNITS):
            with transactional(label="living"):
                pass
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())
    files = {f"bank-{host}-1-1.board": copied(app, folder, "dead", DEAD_UNITS)}
    ending = board_of(app, folder, "ended", ENDED_UNITS)
    del ending
    gc.collect()
    files[f"bank-{host}-ended.board"] = (folder / f"bank-{host}-ended.board").read_bytes()
    return Night(app, folder, files)


def board_of(app: Flask, folder: Path, label: str, units: int) -> _board.Board:
    """A board on which so many units have ended."""
    board = _board_files.open_board(app, str(folder))
    row = board.row(label, None, is_inner=False)
    for _ in range(units):
        board.count_unit(row, Outcome.COMMITTED, False, 1.0, 0.01, 0.0, 0.01)
    return board


def copied(app: Flask, folder: Path, label: str, units: int) -> bytes:
    """The bytes of such a board; nobody has counted them."""
    board = _board.Board(app.name, socket.gethostname(), time.time_ns(), bytearray(SIZE_BYTES))
    row = board.row(label, None, is_inner=False)
    for _ in range(units):
        board.count_unit(row, Outcome.COMMITTED, False, 1.0, 0.01, 0.0, 0.01)
    return bytes(board.memory)


def told(boards: stats.Boards, label: str) -> int:
    """How many units of a label are told of."""
    return sum(each.count for each in boards.totals.labels if each.label == label)


def is_one_harmless_line(text: str) -> bool:
    """Whether nothing in a text ends a line, commands a terminal, turns the text round or has no encoding."""
    return not {unicodedata.category(char) for char in text} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def check_that_nothing_is_lost(night: Night) -> None:
    """Read twice: the first reading sweeps, and the second reads what that has made."""
    for _ in range(2):
        seen = stats.read_boards(night.app)
        snapshot = stats.Snapshot("bank", seen.workers[0].started_at, (), seen.workers, seen.ended, seen.totals)
        json.dumps(snapshot.as_dict(), allow_nan=False)
        assert told(seen, "living") == LIVING_UNITS
        assert told(seen, "ended") == ENDED_UNITS
        assert told(seen, "dead") == DEAD_UNITS
        for note in seen.notes:
            assert is_one_harmless_line(note), note
            assert str(night.folder) in note


@bounded
@given(damage=damages)
@example(damage=("words", [(_board.BEGUN, 2**53)]))
@example(damage=("words", [(_board.RETRIED, 2**53 - 1)]))
@example(damage=("words", [(_board.AT_LABEL_ROWS + _board.LABEL_RECORD + 1, 2**40)]))
def test_a_damaged_board_of_a_dead_worker(night: Night, damage: tuple[str, Any]) -> None:
    """It is swept or named; what others have counted is whole, before and after, whatever its numbers would make."""
    night.lay_out()
    data = copied(night.app, night.folder, "damaged", 3)
    (night.folder / "bank-host-2-2.board").write_bytes(damaged(data, *damage))

    check_that_nothing_is_lost(night)


@bounded
@given(name=odd_names, way=st.sampled_from(["board", "garbage", "folder", "link", "pipe"]))
@example(name="\x1b[31m\nforged", way="garbage")
@example(name="\udc80", way="folder")
@example(name="**", way="link")
def test_a_file_of_any_name(night: Night, name: str, way: str) -> None:
    """What it is is told in one line without commands to a terminal; nothing is followed, opened for long or lost."""
    night.lay_out()
    path = night.folder / f"{name}.board"
    if way == "folder":
        path.mkdir()
    elif way == "link":
        path.symlink_to(night.folder / "nowhere")
    elif way == "pipe":
        os.mkfifo(path)
    else:
        data = copied(night.app, night.folder, "odd", 3)
        path.write_bytes(data if way == "board" else damaged(data, "garbage", 1))

    check_that_nothing_is_lost(night)


@pytest.mark.parametrize(
    "name",
    ["a**b", "a*", "[a", "?", "new\nline", "\x1b[31m", "\udc80", "%s{}", "it's", "-rf", "n" * 250, "ü ", "n" * 300],
)
def test_a_folder_of_any_name(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The worker publishes there and the reader finds it; where that cannot be, one line of the log says so."""
    folder = tmp_path / name
    app, _ = make_app(folder)

    before = stats.read_boards(app)
    with app.app_context(), transactional():
        pass
    seen = stats.read_boards(app)

    assert before.workers == ()
    assert seen.totals.units.committed == 1
    is_too_long = len(name) > 255
    assert len(caplog.messages) == is_too_long
    assert all(is_one_harmless_line(message) for message in (*caplog.messages, *seen.notes, *before.notes))
    assert len(seen.notes) == is_too_long


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Work as another user, where the process is root's."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_cannot_be_read_is_named(temporary_folder: Path) -> None:
    """One without permissions; what can be read is."""
    folder = temporary_folder / "boards"
    folder.mkdir(mode=0o700)
    user = os.geteuid() or 12345
    os.chown(folder, user, -1)
    with as_user(user) if os.geteuid() == 0 else contextmanager(lambda: iter([None]))():
        app, _ = make_app(folder)
        with app.app_context(), transactional():
            pass
        closed = folder / "bank-host-2-2.board"
        closed.write_bytes(bytes(SIZE_BYTES))
        closed.chmod(0)

        seen = stats.read_boards(app)

        assert [note for note in seen.notes if "Permission denied" in note and str(closed) in note] == list(seen.notes)
        assert len(seen.notes) == 1
        assert seen.totals.units.committed == 1
        del app
        gc.collect()


def test_what_is_too_large_takes_no_memory(night: Night) -> None:
    """A terabyte is named by its size; reading a folder of a hundred boards holds a few of their copies at a time."""
    night.lay_out()
    huge = night.folder / "bank-host-3-3.board"
    os.truncate(os.open(huge, os.O_CREAT | os.O_WRONLY), 1 << 40)
    for number in range(100):
        data = damaged(copied(night.app, night.folder, "damaged", 3), "garbage", number)
        (night.folder / f"bank-host-{number}-4.board").write_bytes(data)
    tracemalloc.start()
    try:
        seen = stats.read_boards(night.app)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < MOST_BYTES
    assert any(str(huge) in note and "1099511627776 bytes" in note for note in seen.notes)
    assert told(seen, "living") == LIVING_UNITS
