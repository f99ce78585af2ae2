"""Where boards lie: who may read them, what is refused and named, and what becomes of those whose writers are gone."""

import errno
import gc
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from flask import Flask

from flask_uow import UnitOfWork, _board, _board_files, stats, transactional
from flask_uow._board import MAGIC, SIZE_BYTES, VERSION, WORD, Board, Outcome
from flask_uow.stats import _boards
from tests.boards import DEADLINE_S, ROOT, board_files, make_app, read_until, worker

BOUND_BYTES = 256 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the boards of the test's apps lie; it is made by the first of them."""
    return tmp_path / "boards"


def begin(app: Flask, units: int = 1, label: str = "unit") -> None:
    """Work through some units, which opens the app's board."""
    with app.app_context():
        for _ in range(units):
            with transactional(label=label):
                app.extensions["uow"].session.execute(sa.text("SELECT 1"))


def committed(boards: stats.Boards) -> int:
    """The units that were committed, by whomever."""
    return boards.totals.units.committed


# ---- the folder and the file


def test_a_board_is_its_users_alone(folder: Path) -> None:
    """The folder is 0700, the files are 0600, whatever the umask; a name says app, host, process and start."""
    app, _ = make_app(folder)
    before_ns = time.time_ns()
    umask = os.umask(0)
    try:
        begin(app)
    finally:
        os.umask(umask)

    (path,) = board_files(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()] == [0o600] * len(list(folder.iterdir()))
    host = re.sub(r"[^A-Za-z0-9_.]", "_", socket.gethostname())[:40]
    match = re.fullmatch(rf"bank-(?:{re.escape(host)}|\w+~[0-9a-f]{{6}})-{os.getpid()}-(\d+)\.board", path.name)
    assert match is not None
    assert before_ns <= int(match[1]) <= time.time_ns()


def test_no_folder_above_is_open_to_others(tmp_path: Path) -> None:
    """What is made on the way is its user's to change alone, whatever the umask."""
    folder = tmp_path / "a" / "b" / "boards"
    app, _ = make_app(folder)
    umask = os.umask(0)
    try:
        begin(app)
    finally:
        os.umask(umask)

    modes = [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent, folder.parent.parent)]
    assert modes == [0o700, 0o755, 0o755]
    assert len(board_files(folder)) == 1


def test_a_board_is_small_and_does_not_grow(folder: Path) -> None:
    """Under 256 KiB, and as large after more labels than it has room for."""
    app, _ = make_app(folder)
    with app.app_context():
        for number in range(_board.MAX_LABELS + 10):
            with transactional(label=f"unit {number}"):
                pass

    (path,) = board_files(folder)
    assert path.stat().st_size == SIZE_BYTES < BOUND_BYTES
    assert path.stat().st_blocks * 512 <= BOUND_BYTES


def test_the_default_folder_is_of_the_user_and_the_app(temporary_folder: Path) -> None:
    """Under the system's temporary folder; two apps of one name that lie elsewhere have folders of their own."""
    apps = [Flask("bank", root_path=str(temporary_folder / name)) for name in ("one", "other")]
    for app in apps:
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        UnitOfWork(app)
        begin(app)

    made = sorted(temporary_folder.glob("flask_uow-*"))
    assert len(made) == 2
    assert all(path.name.startswith(f"flask_uow-{os.geteuid()}-bank-") for path in made)
    assert [len(stats.read_boards(app).workers) for app in apps] == [1, 1]


def test_a_relative_folder_lies_in_the_instance_folder(tmp_path: Path) -> None:
    """It is the same one from wherever the worker and the command are started."""
    app = Flask("bank", instance_path=str(tmp_path))
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", UOW_STATS_DIR="deep/boards")
    UnitOfWork(app)

    begin(app)

    assert len(board_files(tmp_path / "deep" / "boards")) == 1


def test_stats_that_are_off_leave_no_file(folder: Path) -> None:
    """``UOW_STATS = False``: nothing is published, which is said."""
    app, _ = make_app(folder, UOW_STATS=False)

    begin(app)

    assert not folder.exists()
    assert stats.read_boards(app) == stats.Boards(
        (), notes=("UOW_STATS is False for this app: its workers publish nothing.",), is_complete=False
    )


def test_apps_under_test_stay_in_memory(temporary_folder: Path) -> None:
    """A suite makes many apps: they see their own numbers, and leave no file."""
    app = Flask("bank")
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    UnitOfWork(app)

    begin(app, 3)

    assert committed(stats.read_boards(app)) == 3
    assert not list(temporary_folder.iterdir())


def test_apps_of_one_name_have_a_board_each(folder: Path) -> None:
    """In one process as well: each counts its own, and each sees both."""
    apps = [make_app(folder)[0] for _ in range(2)]
    for number, app in enumerate(apps, 1):
        begin(app, number)

    seen = stats.read_boards(apps[0])

    assert [each.counts.units.committed for each in seen.workers] == [1, 2]
    assert committed(seen) == 3
    assert seen.notes == ()


def test_apps_of_other_names_do_not_count(folder: Path) -> None:
    """A folder may be shared by several apps; each sees its own workers, the living and the ended ones."""
    bank, _ = make_app(folder, "bank")
    shop, _ = make_app(folder, "shop")
    begin(bank)
    begin(shop, 5)
    with worker(folder, 3):
        pass
    with worker(folder, 7, name="shop"):
        pass

    assert committed(read_until(bank, lambda seen: seen.ended)) == 4
    assert committed(read_until(shop, lambda seen: seen.ended)) == 12


@pytest.mark.parametrize("beginning", ["company.platform.services.accounting.backend_", "x" * 70, "Ä"])
def test_names_that_begin_alike_are_not_mixed_up(folder: Path, beginning: str) -> None:
    """Names of modules are long: each app has its own workers, the living and the ended ones."""
    public, intern = f"{beginning}:public", f"{beginning}?intern"
    app, other = make_app(folder, public)[0], make_app(folder, intern)[0]
    begin(app)
    begin(other, 5)
    for name, units in ((public, 3), (intern, 7)):
        with worker(folder, units, name=name):
            pass

    assert committed(read_until(app, lambda seen: seen.ended)) == 4
    assert committed(read_until(other, lambda seen: seen.ended)) == 12
    assert len(list(folder.glob("*-ended.board"))) == 2


def test_an_ended_worker_of_a_long_name_is_forgotten_with_its_app(folder: Path) -> None:
    """What is made of the whole name, and of what its board has of it, is one file."""
    with worker(folder, 5, name="x" * 70) as process:
        pass
    process.wait()
    app, _ = make_app(folder, "x" * 70)

    begin(app)

    assert not list(folder.glob("*-ended.board"))


DROPPED = """
import gc, pathlib, sys
from flask_uow.stats import _boards
from tests.boards import DEADLINE_S, ROOT, board_files, make_app
from tests.test_board_files import begin

folder = pathlib.Path(sys.argv[1])
dropped, _ = make_app(folder)
begin(dropped, 4)
assert len(board_files(folder)) == 2
del dropped, _
gc.collect()
assert len(board_files(folder)) == 1
"""


def test_an_app_that_is_dropped_gives_its_board_back(folder: Path) -> None:
    """Its file goes with it, while its process lives on, and what it has counted is kept among the ended ones."""
    app, _ = make_app(folder)
    begin(app)

    subprocess.run([sys.executable, "-c", DROPPED, str(folder)], cwd=ROOT, check=True, timeout=DEADLINE_S)

    seen = stats.read_boards(app)
    assert seen.ended is not None
    assert (seen.ended.workers, seen.ended.counts.units.committed, committed(seen)) == (1, 4, 5)


# ---- what a worker cannot publish


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_costs_the_statistics_alone(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The room is taken when the board is made, so that no later write can fail; nothing is left behind."""

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    app, _ = make_app(folder)

    begin(app)

    assert os.strerror(number) in caplog.text
    assert "publishes no statistics" in caplog.text
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert committed(stats.read_boards(app)) == 1, "of this process, from its own memory"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_file_system_that_cannot_reserve_is_written_instead(
    folder: Path, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS say, or a system without such a call: the bytes are written, all of them, however few at a time."""

    def fail(*arguments: object) -> None:
        assert number is not None
        raise OSError(number, os.strerror(number))

    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10_000]))
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail)
    app, _ = make_app(folder)

    begin(app)

    (path,) = board_files(folder)
    assert path.stat().st_size == SIZE_BYTES
    assert path.stat().st_blocks * 512 >= SIZE_BYTES
    assert committed(stats.read_boards(app)) == 1


def test_a_folder_that_cannot_be_made_costs_the_statistics_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, not at every unit."""
    (tmp_path / "file").write_text("")
    app, _ = make_app(tmp_path / "file" / "boards")

    begin(app, 3)

    assert caplog.text.count("publishes no statistics") == 1
    assert str(tmp_path / "file") in caplog.text
    assert committed(stats.read_boards(app)) == 3


@pytest.mark.parametrize("is_folder", [True, False], ids=["the folder", "the file"])
def test_a_board_that_was_removed_is_missed_with_the_next_connection(
    folder: Path, is_folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once; the process goes on counting, and reads its own memory."""
    app, uow = make_app(folder)
    begin(app)
    if is_folder:
        shutil.rmtree(folder)
    else:
        board_files(folder)[0].unlink()

    for _ in range(3):
        with app.app_context():
            uow.engine.dispose()
        begin(app)

    assert caplog.text.count("publishes no statistics of this process any more") == 1
    assert "was removed" in caplog.text
    assert committed(stats.read_boards(app)) == 4


CONNECTING_LAST = """
import atexit, pathlib, sys

def connect():
    uow.engine.connect().close()

atexit.register(connect)  # before all others, which are called before it
from tests.boards import make_app
from tests.test_board_files import begin

app, uow = make_app(pathlib.Path(sys.argv[1]))
app.app_context().push()
begin(app)
uow.engine.dispose()
"""


def test_a_process_does_not_miss_the_board_that_its_own_end_removes(folder: Path) -> None:
    """Whoever connects at the interpreter's very end hears nothing of a file that somebody has removed."""
    command = [sys.executable, "-c", CONNECTING_LAST, str(folder)]

    ended = subprocess.run(command, cwd=ROOT, check=True, timeout=DEADLINE_S, capture_output=True, text=True)

    assert "was removed" not in ended.stderr


@pytest.mark.parametrize("lacks_all", [False, True], ids=["no locks", "no locks, modes, reserving and reading at"])
def test_what_a_platform_lacks_is_said_and_the_rest_works(
    folder: Path, lacks_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no ``fcntl``: boards are written and read, and nobody is taken for dead."""
    monkeypatch.setattr(_board_files, "fcntl", None)
    for name in ("geteuid", "pread", "posix_fallocate") if lacks_all else ():
        monkeypatch.delattr(os, name)
    app, _ = make_app(folder)
    begin(app, 2)
    shown = app.test_cli_runner().invoke(args=["db-session-stats"])

    seen = stats.read_boards(app)

    assert committed(seen) == 2
    assert len(seen.workers) == 1
    assert seen.ended is None
    assert [note.partition(" (fcntl)")[0].partition(":")[0] for note in seen.notes] == [
        "This platform has no locks of files",
        "This platform has no owners and modes of files",
    ][: 1 + lacks_all]
    assert " ".join(seen.notes[0].split()[:7]) in " ".join(shown.output.split())


# ---- whom a reader trusts


def somebody_elses_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given away, or, where that is not allowed, looked at with other eyes."""
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


def link_to_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = folder.with_name("real")
    real.mkdir(mode=0o700)
    folder.symlink_to(real)


def open_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    folder.chmod(0o750)


def no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (somebody_elses_folder, r"belongs to another user \(uid \d+\)"),
        (link_to_a_folder, "is a link"),
        (open_folder, "is open to other users. Say: chmod 700"),
        (no_folder, "is no folder"),
    ],
)
def test_a_folder_that_others_could_have_prepared_is_refused(
    folder: Path,
    prepare: Callable[[Path, pytest.MonkeyPatch], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the worker, who logs it and works, and by the reader, who names it; neither changes anything there."""
    prepare(folder, monkeypatch)
    mode = os.lstat(folder).st_mode
    app, _ = make_app(folder)

    begin(app)
    seen = stats.read_boards(app)

    assert re.search(rf"publishes no statistics of this process: {re.escape(str(folder))} {reason}", caplog.text)
    assert len(seen.notes) == 1
    assert re.match(rf"{re.escape(str(folder))} {reason}", seen.notes[0])
    assert committed(seen) == 1, "of this process, from its own memory"
    assert os.lstat(folder).st_mode == mode
    assert folder.is_file() or not list(folder.resolve().iterdir())


def the_lock_is_a_link(folder: Path, outside: Path) -> None:
    (folder / ".lock").symlink_to(outside)


def the_lock_is_a_folder(folder: Path, outside: Path) -> None:
    (folder / ".lock").mkdir()


@pytest.mark.parametrize("prepare", [the_lock_is_a_link, the_lock_is_a_folder])
def test_a_lock_that_is_none_is_refused(
    folder: Path, tmp_path: Path, prepare: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """What it leads to is neither made nor touched."""
    folder.mkdir(mode=0o700)
    prepare(folder, tmp_path / "outside")
    app, _ = make_app(folder)

    begin(app)
    (note,) = stats.read_boards(app).notes

    assert str(folder / ".lock") in note
    assert "publishes no statistics" in caplog.text
    assert not (tmp_path / "outside").exists()


Plant = Callable[[Path, bytes], Any]
"""Makes a thing at a path, given the bytes of a real board."""


def link(path: Path, data: bytes) -> None:
    real = path.with_name("real")
    real.write_bytes(data)
    path.symlink_to(real)


def dangling_link(path: Path, data: bytes) -> None:
    path.symlink_to(path.with_name("nowhere"))


def give_away(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.chown(path, 12345, -1)


PLANTS: dict[str, tuple[Plant, str]] = {
    "link": (link, "is no regular file"),
    "link that leads nowhere": (dangling_link, "is no regular file"),
    "pipe": (lambda path, data: os.mkfifo(path, 0o600), "is no regular file"),
    "folder": (lambda path, data: path.mkdir(), "is no regular file"),
    "empty": (lambda path, data: path.write_bytes(b""), "has 0 bytes"),
    "truncated": (lambda path, data: path.write_bytes(data[:-1]), f"has {SIZE_BYTES - 1} bytes"),
    "oversized": (lambda path, data: path.write_bytes(data + b"\0"), f"has {SIZE_BYTES + 1} bytes"),
    "huge": (lambda path, data: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), "has 1099511627776 by"),
    "zeros": (lambda path, data: path.write_bytes(bytes(SIZE_BYTES)), "is no board"),
    "garbage": (lambda path, data: path.write_bytes(random.Random(1).randbytes(SIZE_BYTES)), "is no board"),
    "another version": (
        lambda path, data: path.write_bytes(struct.pack("=qq", MAGIC, VERSION + 1) + data[2 * WORD :]),
        "one of another version",
    ),
    "damaged": (
        lambda path, data: path.write_bytes(
            data[: _board.AT_COUNTS * WORD] + struct.pack("=q", -1) + data[(_board.AT_COUNTS + 1) * WORD :]
        ),
        "a number that no worker counts",
    ),
    "somebody else's": (give_away, "belongs to another user (uid 12345)"),
}


@pytest.mark.parametrize("name", ["bank-host-1-1.board", "ended"])
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_no_board_is_named_and_skipped(folder: Path, plant: str, name: str) -> None:
    """With its path and the reason; what is real is read all the same, and nothing is followed or removed."""
    if plant == "somebody else's" and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    app, _ = make_app(folder)
    begin(app, 2)
    (real,) = board_files(folder)
    path = real.with_name(re.sub(r"-\d+-\d+\.board", "-ended.board", real.name) if name == "ended" else name)
    make, reason = PLANTS[plant]
    make(path, real.read_bytes())

    seen = [stats.read_boards(app) for _ in range(2)]

    for each in seen:
        assert committed(each) == 2
        assert [str(path) in note and reason in note for note in each.notes] == [True], each.notes
    assert os.path.lexists(path)
    assert "bank-host" not in str(os.listdir(folder)).replace(path.name, "")


def test_a_file_that_is_exchanged_after_a_first_look_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is what was opened: its owner is asked for once more."""
    app, _ = make_app(folder)
    begin(app, 2)
    (real,) = board_files(folder)
    planted = folder / "bank-host-1-1.board"
    planted.write_bytes(real.read_bytes())
    looks = os.lstat
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    def look(path: Any) -> os.stat_result:
        seen = looks(path)
        return os.stat_result((seen.st_mode, *seen[1:4], 12345, *seen[5:]))

    monkeypatch.setattr(os, "lstat", look)
    seen = stats.read_boards(app)

    assert [f"belongs to another user (uid {looks(real).st_uid})" in note for note in seen.notes] == [True, True]
    assert seen.workers == ()


def test_a_hard_link_is_neither_followed_nor_written(folder: Path, tmp_path: Path) -> None:
    """Something of the user's own that was linked into the folder is named, and its text stays."""
    app, _ = make_app(folder)
    begin(app, 2)
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("bank-host-1-1.board", "bank-host-ended.board", "bank-host-ended.board.new"):
        os.link(outside, folder / name)

    notes = stats.read_boards(app).notes

    assert [f"has {len('precious')} bytes" in note for note in notes] == [True, True]
    assert outside.read_text() == "precious"


@pytest.mark.parametrize(
    ("word", "number"),
    [
        pytest.param(_board.BEGUN, 2**53, id="a sum that is too large"),
        pytest.param(_board.AT_LABEL_ROWS + _board.LABEL_RECORD + 1, 2, id="more rolled back than ended"),
        pytest.param(_board.AT_LABEL_ROWS + _board.LABEL_RECORD + 5, 2, id="more long ones than ended"),
        pytest.param(_board.AT_LABEL_ROWS + _board.LABEL_RECORD + 6, 9, id="more that idled than ended"),
        pytest.param(_board.AT_LABEL_ROWS + _board.LABEL_RECORD + 7, 9, id="more that held than ended"),
        pytest.param(_board.AT_RULES, 2**40, id="a rule that there is not"),
        pytest.param(_board.HELD_S, int.from_bytes(struct.pack("=d", math.nan), sys.byteorder), id="no time"),
    ],
)
def test_a_damaged_board_takes_no_sums_with_it(folder: Path, word: int, number: int) -> None:
    """Of one that has died with numbers that fit no others, those of the ended stay as they were."""
    app, _ = make_app(folder)
    begin(app)
    (real,) = board_files(folder)
    data = bytearray(real.read_bytes())
    with worker(folder, 3, label="ended"):
        pass
    read_until(app, lambda boards: boards.ended)
    struct.pack_into("=q", data, word * WORD, number)
    (folder / "bank-host-1-1.board").write_bytes(data)

    seen = [stats.read_boards(app) for _ in range(2)]

    for each in seen:
        assert {label.label: label.count for label in each.totals.labels}["ended0"] == 3
        assert each.ended is not None


def test_a_damaged_number_of_the_ended_is_named(folder: Path) -> None:
    """Nobody hears of fewer workers than none."""
    app, _ = make_app(folder)
    begin(app)
    ending = _board_files.open_board(app, str(folder))
    del ending
    gc.collect()
    (path,) = folder.glob("*-ended.board")
    data = bytearray(path.read_bytes())
    struct.pack_into("=q", data, _board.AT_WORKERS * WORD, -1)
    path.write_bytes(data)

    seen = stats.read_boards(app)

    assert seen.ended is None
    assert [str(path) in note for note in seen.notes] == [True]


@pytest.mark.parametrize("plant", PLANTS)
def test_no_ended_file_keeps_a_worker_from_ending(folder: Path, plant: str) -> None:
    """What lies in the place of the sums is replaced where that is possible, and what it leads to is not written."""
    if plant == "somebody else's" and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    app, _ = make_app(folder)
    begin(app, 2)
    (real,) = board_files(folder)
    path = real.with_name(re.sub(r"-\d+-\d+\.board", "-ended.board", real.name))
    PLANTS[plant][0](path, real.read_bytes())
    outside = (folder / "real").read_bytes() if plant == "link" else None

    ending = _board_files.open_board(app, str(folder))
    row = ending.row("unit", None, is_inner=False)
    for _ in range(5):
        ending.count_unit(row, Outcome.COMMITTED, False, 1.0, 0.01, 0.0, 0.01)
    del ending
    gc.collect()
    seen = stats.read_boards(app)

    assert len(board_files(folder)) == 1
    assert committed(seen) == (2 if plant == "folder" else 7)
    assert outside is None or (folder / "real").read_bytes() == outside


def test_random_bytes_never_raise_nor_show_what_is_no_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of damaged boards, dead or alive, ended or not: read, or named, and the JSON is one."""
    monkeypatch.setattr(_boards, "_MAX_WAIT_S", 0.001)
    app, uow = make_app(folder)
    with app.app_context(), transactional(label="outer"), transactional(label="inner"):
        uow.session.execute(sa.text("SELECT 1"))
        (real,) = board_files(folder)
        data = real.read_bytes()
        with ExitStack() as stack:
            for seed in range(300):
                chance = random.Random(seed)
                path = folder / f"bank-{socket.gethostname()}-{seed}-{'ended' if seed % 3 == 0 else seed}.board"
                if seed % 5 == 0:  # locked, as if it lived
                    path.write_bytes(b"")
                    holder = stack.enter_context(open(path, "r+b"))
                    _board_files.fcntl.flock(holder, _board_files.fcntl.LOCK_EX)
                path.write_bytes(_damage(data, chance))
                boards = stats.read_boards(app)
                snapshot = json.dumps(boards_as_dict(app, boards), allow_nan=False)
                assert "-" not in re.sub(r'"(?:[^"\\]|\\.)*"', "", snapshot).replace("e-", ""), "a negative number"
                if seed % 5 == 0:
                    holder.close()
                path.unlink(missing_ok=True)


def _damage(data: bytes, chance: random.Random) -> bytes:
    """Random bytes behind the magic, random words in the midst of good ones, or bits that are flipped."""
    head = 3 * WORD
    way = chance.randrange(3)
    if way == 0:
        names = data[_board.AT_APP * WORD : _board.AT_COUNTS * WORD]
        rest = chance.randbytes(len(data))
        return data[:head] + rest[head : _board.AT_APP * WORD] + names + rest[_board.AT_COUNTS * WORD :]
    damaged = bytearray(data)
    places = [word for word in range(3, len(data) // WORD) if way == 1 or any(data[word * WORD : (word + 1) * WORD])]
    for word in chance.sample(places, chance.randint(1, min(40, len(places)))):
        if _board.AT_APP <= word < _board.AT_COUNTS:
            continue
        odd = chance.choice((b"\xff" * WORD, struct.pack("=d", math.nan), struct.pack("=d", -math.inf), None))
        damaged[word * WORD : (word + 1) * WORD] = odd or chance.randbytes(WORD)
    return bytes(damaged)


def boards_as_dict(app: Flask, boards: stats.Boards) -> dict[str, Any]:
    """What the command would print of them as JSON."""
    whole = stats.Snapshot(app.name, datetime(2026, 1, 1, tzinfo=UTC), (), boards.workers, boards.ended, boards.totals)
    return whole.as_dict()


# ---- the dead


def test_a_worker_that_ends_hands_its_numbers_on(folder: Path) -> None:
    """Its file goes with it, and no reader is needed for that."""
    app, _ = make_app(folder)
    begin(app)
    with worker(folder, 5) as process:
        assert len(board_files(folder)) == 2
    assert process.wait() == 0

    assert len(board_files(folder)) == 1
    units = stats.read_boards(app).totals.units
    assert (units.begun, units.committed) == (6, 6)


@pytest.mark.parametrize("sweeper", ["reader", "worker"])
def test_a_worker_that_was_killed_is_swept_by_whoever_sees_it(folder: Path, sweeper: str) -> None:
    """By a reader, or by a worker that starts: its numbers are kept, once."""
    app, _ = make_app(folder)
    begin(app)
    with worker(folder, 5, label="killed") as process:
        process.kill()
        process.wait()
    assert len(board_files(folder)) == 2

    if sweeper == "worker":
        with worker(folder) as late:
            assert len(board_files(folder)) == 2
        late.wait()
        assert len(board_files(folder)) == 1
    seen = [stats.read_boards(app) for _ in range(3)]

    assert len(board_files(folder)) == 1
    for each in seen:
        assert each.ended is not None
        assert len(each.workers) == 1
        assert [label.count for label in each.ended.counts.labels if label.label == "killed0"] == [5]
        assert committed(each) == (6 if sweeper == "reader" else 7)
        assert each.notes == ()


@pytest.mark.parametrize("is_first", [True, False], ids=["the first", "one more"])
def test_a_worker_that_ends_on_a_full_disk_loses_nothing(folder: Path, is_first: bool) -> None:
    """Its board stays, and nothing else; it is added to the others when there is room again."""
    app, _ = make_app(folder)
    begin(app)
    if not is_first:
        with worker(folder, 3) as process:
            pass
        process.wait()
    ending = _board_files.open_board(app, str(folder))
    row = ending.row("unit", None, is_inner=False)
    ending.count_unit(row, Outcome.COMMITTED, False, 1.0, 0.01, 0.0, 0.01)
    expected = 2 if is_first else 5
    before = sorted(folder.iterdir())

    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_BYTES // 2, most))
    try:
        del ending
        gc.collect()
        left, full = sorted(folder.iterdir()), [committed(stats.read_boards(app)) for _ in range(2)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert left == before
    assert full == [expected, expected]
    assert committed(stats.read_boards(app)) == expected
    assert len(board_files(folder)) == 1


def test_sums_of_the_ended_are_neither_lost_nor_counted_twice(folder: Path) -> None:
    """Over many generations, read in between, with labels of their own; in the end it is as if one had done it all."""
    app, _ = make_app(folder)
    begin(app)
    expected = 1
    for generation in range(25):
        board = _board_files.open_board(app, str(folder))
        row = board.row(f"generation {generation % 7}", None, is_inner=False)
        for number in range(generation):
            board.count_unit(row, Outcome(number % 3), number % 2 == 0, 2.0, 0.003, 0.0, 0.002)
            board.count(_board.BEGUN)
            expected += 1
        board.count_violation("UOW104")
        board.count_checkout(0.5)
        if generation % 3:
            stats.read_boards(app)
        del board, row
        gc.collect()

    seen = stats.read_boards(app)

    assert seen.ended is not None
    ended = seen.ended.counts
    assert seen.ended.workers == 25
    assert len(board_files(folder)) == 1
    assert seen.totals.units.begun == expected
    assert ended.units.committed + ended.units.rolled_back + ended.units.failed == expected - 1
    assert ended.rules == {"UOW104": 25}
    assert sum(label.count for label in ended.labels) == ended.unit_seconds.count == expected - 1
    assert ended.held_seconds.count == expected - 1 + 25
    assert ended.held_seconds.total_seconds == pytest.approx((expected - 1) * 0.002 + 12.5)
    assert ended.statements == 2 * (expected - 1)
    assert max(label.worst_seconds for label in ended.labels) == pytest.approx(0.003, abs=1e-5)


def test_seconds_never_fall_when_a_worker_ends(folder: Path) -> None:
    """By the smallest part: a monitoring job takes a counter that has fallen for one that began anew."""
    app, _ = make_app(folder)
    begin(app)
    boards = [_board_files.open_board(app, str(folder)) for _ in range(20)]
    for number, board in enumerate(boards, start=1):
        for label in "abc":
            row = board.row(label, None, is_inner=False)
            board.count_unit(row, Outcome.COMMITTED, False, 1.0, number / 7e5, number / 11e5, number / 13e5)
        board.count_checkout(number / 17e5)
    del board, row

    seen = [stats.read_boards(app).totals]
    while boards:
        boards.pop()
        gc.collect()
        seen.append(stats.read_boards(app).totals)

    for before, after in pairwise(map(_all_seconds, seen)):
        assert all(earlier <= later for earlier, later in zip(before, after, strict=True))


def test_the_worst_of_one_unit_is_its_total(folder: Path) -> None:
    """Neither is rounded past the other."""
    app, _ = make_app(folder)
    begin(app)
    board = _board_files.open_board(app, str(folder))
    for number in range(100):
        row = board.row(f"label {number}", None, is_inner=False)
        board.count_unit(row, Outcome.COMMITTED, False, 1.0, number / 7e5, 0.0, 0.0)

    labels = [each for each in stats.read_boards(app).totals.labels if each.label.startswith("label ")]

    assert len(labels) == 100
    assert all(each.worst_seconds == each.total_seconds for each in labels)


def _all_seconds(counts: stats.Counts) -> list[float]:
    labels = [each.total_seconds for each in sorted(counts.labels, key=lambda each: each.label)]
    return labels + [each.total_seconds for each in (counts.unit_seconds, counts.held_seconds, counts.idle_seconds)]


def test_more_labels_than_there_is_room_for_are_others_among_the_ended_too(folder: Path) -> None:
    """Two workers of which each has another half of them: all units are there, and every label has a name."""
    app, _ = make_app(folder)
    begin(app)
    for name in ("first", "second"):
        with worker(folder, 200, label=name, labels=200) as process:
            pass
        process.wait()

    ended = stats.read_boards(app).ended

    assert ended is not None
    assert ended.counts.units.committed == 400
    assert sum(label.count for label in ended.counts.labels) == 400
    labels = {label.label: label.count for label in ended.counts.labels}
    assert labels["(others)"] == 400 - (_board.MAX_LABELS - 2)
    assert "" not in labels


def test_inner_units_of_labels_without_room_stay_inner_among_the_ended(folder: Path) -> None:
    """They are no units of their own, nor are their statements."""
    app, _ = make_app(folder)
    begin(app)
    for name in ("first", "second"):
        board = _board_files.open_board(app, str(folder))
        for number in range(200):
            row = board.row(f"{name} {number}", None, is_inner=True)
            board.count_unit(row, Outcome.COMMITTED, False, 1.0, 0.01, 0.0, 0.01)
        del board, row
        gc.collect()

    ended = stats.read_boards(app).ended

    assert ended is not None
    assert sum(label.count for label in ended.counts.labels if label.is_inner) == 400
    assert (ended.counts.units.committed, ended.counts.statements, ended.counts.unit_seconds.count) == (0, 0, 0)


def test_an_app_that_is_started_anew_begins_with_nothing(folder: Path) -> None:
    """When none of its workers is left, what they had counted is of the past for one that something else starts."""
    with worker(folder, 5) as process:
        pass
    process.wait()
    assert list(folder.glob("*-ended.board"))
    app, _ = make_app(folder)

    begin(app)

    seen = stats.read_boards(app)
    assert seen.ended is None
    assert committed(seen) == 1


def test_workers_that_are_all_replaced_at_once_lose_nothing(folder: Path) -> None:
    """The same master has started them all: gunicorn, say, whose workers reached their last request together."""
    for _ in range(3):
        with worker(folder, 5) as process:
            pass
        process.wait()
    app, _ = make_app(folder)

    seen = stats.read_boards(app)

    assert seen.ended is not None
    assert (seen.ended.workers, seen.ended.counts.units.committed) == (3, 15)


def test_a_container_that_is_started_again_is_another_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes have the numbers that others had before; when they were started tells them apart."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    found = []
    for started_s in (100.0, 100.0, 101.0):
        monkeypatch.setattr(_board, "started_s", lambda pid, started_s=started_s: started_s)
        found.append(_board.starter())

    assert found[0] == found[1] != found[2]


def test_a_process_may_have_the_highest_number_that_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux goes up to 2 ** 22: what has started a worker is no number that a reader takes for damage."""
    monkeypatch.setattr(os, "getppid", lambda: 1 << 22)
    monkeypatch.setattr(os, "getpgrp", lambda: 1 << 22)
    app, _ = make_app(folder)

    begin(app)

    seen = stats.read_boards(app)
    assert seen.notes == ()
    assert committed(seen) == 1


def test_a_worker_that_was_killed_while_it_wrote_is_read_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its half-written record is made one when it is swept: nobody waits for its other half again and again."""
    monkeypatch.setattr(_boards, "_MAX_WAIT_S", DEADLINE_S)
    app, _ = make_app(folder)
    begin(app)
    killed = Board("bank", socket.gethostname(), time.time_ns())
    row = killed.row("killed", None, is_inner=False)
    for _ in range(3):
        killed.count_unit(row, Outcome.COMMITTED, False, 1.0, 0.01, 0.0, 0.01)
    killed.words[row.at + _board.LABEL_RECORD] += 1  # the first word of the next record
    (folder / "bank-killed-1-1.board").write_bytes(killed.memory)

    stats.read_boards(app)
    before = time.monotonic()
    seen = stats.read_boards(app)

    assert time.monotonic() - before < DEADLINE_S
    assert seen.ended is not None
    assert [(label.label, label.count) for label in seen.ended.counts.labels] == [("killed", 4)]


def test_what_was_never_finished_is_swept_when_it_is_old(folder: Path) -> None:
    """A worker that was killed while it made its file has left it; one that makes its file now is left alone."""
    app, _ = make_app(folder)
    begin(app)
    old, young = folder / "bank-host-1-1.board.new", folder / "bank-host-2-2.board.new"
    for path in (old, young):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 3600, time.time() - 3600))

    stats.read_boards(app)

    assert not old.exists()
    assert young.exists()


def test_a_reader_that_was_stopped_holds_nobody_up(folder: Path) -> None:
    """Who waits for its lock goes on after a second: a reader without sweeping, and a worker that begins."""
    app, _ = make_app(folder)
    begin(app)
    with worker(folder, 5) as process, open(folder / ".lock", "r+b") as lock:
        _board_files.fcntl.flock(lock, _board_files.fcntl.LOCK_EX)
        process.kill()
        process.wait()
        before = time.monotonic()
        seen = stats.read_boards(app)
        late, _ = make_app(folder)
        begin(late)
        took_s = time.monotonic() - before

    assert took_s < 10.0
    assert len(seen.workers) == 1, "the dead one is not shown among the living"
    assert committed(seen) == 6, "and its numbers are not lost"
    assert committed(stats.read_boards(app)) == 7


def test_a_worker_that_is_stopped_is_read_all_the_same(folder: Path) -> None:
    """Its board is there for whoever wants to know why it does nothing."""
    app, _ = make_app(folder)
    begin(app)
    with worker(folder, 5) as process:
        os.kill(process.pid, signal.SIGSTOP)
        try:
            seen = stats.read_boards(app)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    assert {each.pid for each in seen.workers} == {os.getpid(), process.pid}
    assert committed(seen) == 6


# ---- what is never there


SECRET, VALUE = "hunter2-the-password", "a-value-4711-of-a-parameter"


def test_no_password_and_no_value_is_on_a_board(
    folder: Path, postgresql_url: str, database_role: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the files, not in what is read from them: of units that used them, and of units that failed with them."""
    app, uow = make_app(folder, url=database_role(SECRET))
    with app.app_context():
        with transactional(label="uses it"):
            uow.session.scalar(sa.text("SELECT CAST(:value AS text)"), {"value": VALUE})
            files = _bytes_of(folder)
            shown = json.dumps(stats.snapshot(app).as_dict())
        with pytest.raises(sa.exc.DataError), transactional(label="fails with it"):
            uow.session.scalar(sa.text("SELECT CAST(CAST(:value AS text) AS integer)"), {"value": VALUE})
        with uow.engine.connect() as connection:
            connection.scalar(sa.text("SELECT CAST(:value AS text)"), {"value": VALUE})
            files += _bytes_of(folder)
            shown += json.dumps(stats.snapshot(app).as_dict())
    shown += app.test_cli_runner().invoke(args=["db-session-stats", "--explain"]).output

    for secret in (SECRET, VALUE):
        assert secret.encode() not in files
        assert secret not in shown
    assert b"fails with it" in _bytes_of(folder), "it is the right file that was looked into"


def _bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.fixture
def database_role(postgresql_url: str, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """A function that makes a role with a password, for this test, and gives the database's URL with both."""

    def run(sql: str) -> None:
        connection = psycopg2.connect(postgresql_url)
        connection.autocommit = True
        connection.cursor().execute(sql)
        connection.close()

    def make(password: str) -> str:
        role = f"teller_{os.getpid()}"
        run(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        request.addfinalizer(lambda: run(f"DROP ROLE {role}"))
        url = sa.make_url(postgresql_url).set(username=role, password=password, drivername="postgresql+psycopg2")
        return url.render_as_string(hide_password=False)

    return make
