"""Where boards lie: a file of each process in a folder that is its user's alone, and how dead ones are swept.

A process holds a lock on its file as long as it lives, and the kernel lets go of it whichever way it ends. So whoever
reads a file knows whether its writer lives, and a process number that was given to another proves nothing. What a dead
worker had counted is added to one file of ended workers when its own is removed. That file is forgotten by the first
worker that is started while none lives, unless it takes the place of one of them.

What another user owns, what is a link, and what is no board is never read, and named. Only a platform that has no
locks of files (``fcntl``) cannot tell the living from the dead.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import socket
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask

from . import _board, _fork
from ._board import Board, shown_name
from ._hiding import harmless
from ._short_names import digest, distinct

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None

_SUFFIX = ".board"
_UNFINISHED = ".new"
_UNFIT = re.compile(r"[^A-Za-z0-9_.]")
_MAX_PART_BYTES = 40
_LOCK = ".lock"
_LOCK_WAIT_S = 1.0
_MAX_UNFINISHED_S = 60.0
_MAX_COUNT = 1 << 53
"""More than anybody counts, and a sum of many is still a word."""
_MAX_RULE = 999
_COUNTED = (
    (_board.AT_LABELS, _board.AT_APP),
    (_board.AT_COUNTS, _board.HELD_S),
    (_board.HELD_S + 1, _board.END_OF_COUNTS),
)
_TURN_AGAIN = _board.LIVE_FIELDS.index("turn_again")
_FLAGS = ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY")
_O_OURS = sum(getattr(os, name, 0) for name in _FLAGS)


class RefusedError(Exception):
    """A folder or a file that is not to be trusted; its text says why, and how to mend it.

    :param text: with the path in it, whose name may be anybody's.
    """

    def __init__(self, text: str) -> None:
        super().__init__(harmless(text))


class FoundBoard(NamedTuple):
    """A file in the folder, open for reading."""

    path: Path
    descriptor: int
    is_alive: bool


# ---- the folder


def folder_of(app: Flask, configured: str | None) -> Path:
    """Where the boards of an app lie.

    :param configured: ``UOW_STATS_DIR``; a relative one lies in the app's instance folder.
    """
    if configured is not None:
        return Path(app.instance_path, configured)
    mark = digest(app.root_path, 8)
    return Path(tempfile.gettempdir(), f"flask_uow-{_user()}-{_part(app.name)}-{mark}")


def check_folder(folder: Path) -> None:
    """Refuse a folder that others could have prepared.

    :raises RefusedError: if it is a link, somebody else's, or open to others.
    :raises FileNotFoundError: if there is none.
    """
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode):
        raise RefusedError(f"{folder} is a link. Name the folder itself in UOW_STATS_DIR.")
    if not stat.S_ISDIR(status.st_mode):
        raise RefusedError(f"{folder} is no folder. Remove it, or name another one in UOW_STATS_DIR.")
    _check_owner(folder, status)
    if hasattr(os, "geteuid") and status.st_mode & 0o077:
        raise RefusedError(
            f"{folder} is open to other users. Say: chmod 700 '{folder}', or name another UOW_STATS_DIR."
        )


def _check_owner(path: Path, status: os.stat_result) -> None:
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise RefusedError(
            f"{path} belongs to another user (uid {status.st_uid}). Work as that user, or name another UOW_STATS_DIR."
        )


def namesakes(app: Flask, folder: Path) -> list[Path]:
    """The default folders that other users have for the app: a command that was started as another user finds them."""
    if folder != folder_of(app, None):
        return []
    name = folder.name.replace(f"flask_uow-{_user()}-", "flask_uow-*-", 1)
    return [path for path in sorted(folder.parent.glob(name)) if path != folder]


def _user() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else _part(os.environ.get("USERNAME", "user"))


def _part(name: str) -> str:
    """Part of a file's name, unlike that of any other app or host; the same for the whole name and for the board's."""
    name = shown_name(name)
    return distinct(name, _UNFIT.sub("_", name), _MAX_PART_BYTES)


# ---- a process's own file


def open_board(app: Flask, configured: str | None) -> Board:
    """Publish a board of this process; one that nobody else can read where that is refused, which is logged.

    :param configured: ``UOW_STATS_DIR``.
    """
    started_ns, host = time.time_ns(), socket.gethostname()
    if app.testing and configured is None:
        return Board(app.name, host, started_ns)  # a suite makes an app for each of its tests
    folder = folder_of(app, configured)
    name = f"{_part(app.name)}-{_part(host)}-{os.getpid()}-{started_ns}{_SUFFIX}"
    try:
        _make_folder(folder, with_parents=configured is not None)
        check_folder(folder)
        return _publish(app.name, host, started_ns, folder / name)
    except (OSError, RefusedError) as error:
        app.logger.warning("flask_uow publishes no statistics of this process: %s", error)
        return Board(app.name, host, started_ns)


def _make_folder(folder: Path, *, with_parents: bool) -> None:
    """Make the folder for its user alone, and no folder above it in which others could put another in its place."""
    for parent in reversed(folder.parents) if with_parents else ():
        with contextlib.suppress(FileExistsError):
            if not parent.exists():
                parent.mkdir(mode=0o755)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def _publish(app_name: str, host: str, started_ns: int, path: Path) -> Board:
    with _locked(path.parent, wait_s=_LOCK_WAIT_S) as is_locked:
        if is_locked and not _sweep(path.parent, app_name, host):
            _forget_ended(_ended_path(path.parent, app_name, host))
        # What is open cannot be renamed on every platform; where none can tell the dead, none is in a hurry either.
        unfinished = path if fcntl is None else path.with_name(path.name + _UNFINISHED)
        board = Board(app_name, host, started_ns, _make_file(unfinished))
        holder = _Holder(unfinished, path)
        _fork.abandon_in_children(holder)
        weakref.finalize(board, holder.remove, weakref.ref(board))
        if unfinished != path:
            os.rename(unfinished, path)
        board.path = path
    return board


def notice_removal(app: Flask, board: Board) -> None:
    """Say once that a board's file is gone: what is written there nobody else sees.

    Its memory cannot be put into a folder again, and to exchange it while threads write there could lose their word.
    """
    if board.is_published and board.path is not None and not os.path.lexists(board.path):
        board.is_published = False
        app.logger.warning(
            "flask_uow publishes no statistics of this process any more: %s was removed. Restart the process to "
            "publish again, and name a folder in UOW_STATS_DIR that nobody clears.",
            harmless(str(board.path)),
        )


def _make_file(path: Path) -> mmap.mmap:
    """The memory of a new file, which is not left behind where there is no room for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_OURS, 0o600)
    try:
        _reserve(descriptor)
        return mmap.mmap(descriptor, _board.SIZE_BYTES)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def _reserve(descriptor: int) -> None:
    """Take the space now: a disk that is full when a page is first written would kill the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, _board.SIZE_BYTES)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
        else:
            return
    left = _board.SIZE_BYTES  # macOS, Windows, and file systems that have no such call
    while left:
        left -= os.write(descriptor, bytes(left))


_CANNOT_RESERVE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class _Holder:
    """Holds the lock that says that the process lives, on a description of the file that no forked child keeps open."""

    def __init__(self, unfinished: Path, path: Path) -> None:
        self._path, self._pid = path, os.getpid()
        self._descriptor: int | None = os.open(unfinished, os.O_RDWR | _O_OURS)
        if fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def abandon(self) -> object:
        """A forked child lets go of its copy, which would say that the parent lives when it does not."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return None

    def remove(self, board: weakref.ref[Board]) -> None:
        """The board's end, or the process's; what was counted goes to the ended ones."""
        if self._descriptor is None or self._pid != os.getpid():
            return
        if (left := board()) is not None:
            left.path = None  # which nobody is to miss
        os.close(self._descriptor)
        self._descriptor = None
        with contextlib.suppress(OSError), _locked(self._path.parent, wait_s=_LOCK_WAIT_S) as is_locked:
            if is_locked:
                _bury(self._path)


# ---- everybody's files


def missing() -> Iterator[str]:
    """What this platform lacks, in a line each."""
    if fcntl is None:
        yield "This platform has no locks of files (fcntl): who has ended is listed until its file is removed."
    if not hasattr(os, "geteuid"):
        yield "This platform has no owners and modes of files: nobody checks who else can read the boards."


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Read some bytes of a file.

    :param offset: where they begin.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[tuple[list[FoundBoard], list[str]]]:
    """Open the boards in a folder, after the dead ones were swept, and keep them as they are until the end.

    :return: what was found, and a line on each thing that was refused.
    :raises RefusedError: if the folder is not to be trusted.
    :raises FileNotFoundError: if there is none.
    """
    check_folder(folder)
    found: list[FoundBoard] = []
    refusals: list[str] = []
    if _has_dead(folder):
        with _locked(folder, wait_s=_LOCK_WAIT_S) as is_locked:
            if is_locked:
                _bury_the_dead(folder)
    with _locked(folder, wait_s=_LOCK_WAIT_S, is_shared=True):
        try:
            for path in sorted(folder.glob(f"*{_SUFFIX}")):
                try:
                    found.append(_open(path))
                except FileNotFoundError:
                    continue
                except (OSError, RefusedError) as error:
                    refusals.append(str(error))
            yield found, refusals
        finally:
            for board in found:
                os.close(board.descriptor)


def _open(path: Path) -> FoundBoard:
    """Open a board that has the right owner and size.

    :raises RefusedError: if it has not.
    """
    _check_file(path, os.lstat(path))  # before it is opened, for that alone may wake a device
    descriptor = os.open(path, os.O_RDONLY | _O_OURS)
    try:
        status = os.fstat(descriptor)
        _check_file(path, status)  # another may have taken its place
        if status.st_size != _board.SIZE_BYTES:
            raise RefusedError(f"{path} has {status.st_size} bytes, a board has {_board.SIZE_BYTES}. Remove it.")
        return FoundBoard(path, descriptor, _is_alive(descriptor))
    except BaseException:
        os.close(descriptor)
        raise


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"{path} is no regular file. Remove it.")
    _check_owner(path, status)


def _is_alive(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


@contextlib.contextmanager
def _locked(folder: Path, *, wait_s: float, is_shared: bool = False) -> Iterator[bool]:
    """Keep others from adding up what this process adds up, or reads; whether it was possible.

    :param is_shared: whether others may read meanwhile.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | _O_OURS, 0o600)
    try:
        yield _has_locked(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX, wait_s)
    finally:
        os.close(descriptor)


def _has_locked(descriptor: int, way: int, wait_s: float) -> bool:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, way | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > until:
                return False
            time.sleep(0.002)


# ---- the dead


def is_of_ended(path: Path) -> bool:
    """Whether a file is that of the workers that have ended."""
    return path.name.endswith(f"-ended{_SUFFIX}")


def _ended_path(folder: Path, app_name: str, host: str) -> Path:
    return folder / f"{_part(app_name)}-{_part(host)}-ended{_SUFFIX}"


def _sweep(folder: Path, app_name: str, host: str) -> bool:
    """Sweep the folder.

    :return: whether a worker of the app lives.
    """
    _bury_the_dead(folder)
    prefix = f"{_part(app_name)}-{_part(host)}-"
    return any(path.name.startswith(prefix) and not is_of_ended(path) for path in folder.glob(f"*{_SUFFIX}"))


def _has_dead(folder: Path) -> bool:
    """Whether there is anything to sweep."""
    if fcntl is None:
        return False
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, RefusedError):
            board = _open(path)
            os.close(board.descriptor)
            if not board.is_alive and not is_of_ended(path):
                return True
    return any(folder.glob(f"*{_SUFFIX}{_UNFINISHED}"))


def _forget_ended(path: Path) -> None:
    """Begin anew, unless this process takes the place of one that has ended."""
    ended = _read(path)
    if ended is None or _board.starter() not in ended.starters():
        path.unlink(missing_ok=True)


def _bury_the_dead(folder: Path) -> None:
    if fcntl is None:
        return
    for path in folder.glob(f"*{_SUFFIX}{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - os.lstat(path).st_mtime > _MAX_UNFINISHED_S:
                path.unlink()
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, RefusedError):
            if not is_of_ended(path):
                _bury_if_dead(path)


def _bury_if_dead(path: Path) -> None:
    board = _open(path)
    os.close(board.descriptor)
    if not board.is_alive:
        _bury(path)


def _bury(path: Path) -> None:
    """Add what a dead worker has counted to what others had, and remove its file.

    What is no board stays, for a reader to name; so does what would make a sum that no workers can have counted.
    """
    dead = _read(path)
    if dead is None:
        return
    app_name, host = dead.text(_board.AT_APP, _board.NAME_WORDS), dead.text(_board.AT_HOST, _board.NAME_WORDS)
    ended_path = _ended_path(path.parent, app_name, host)
    ended = _read(ended_path) or Image(bytes(_board.SIZE_BYTES))
    ended.add(dead)
    try:
        ended.check()
    except ValueError:
        return
    unfinished = ended_path.with_name(ended_path.name + _UNFINISHED)
    unfinished.unlink(missing_ok=True)
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_OURS, 0o600)
        with open(descriptor, "wb") as file:
            file.write(ended.memory)  # where there is no room for it, the dead one is kept, and swept later
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)  # before: what is lost by a crash in between is better than what is counted twice
    os.replace(unfinished, ended_path)


def _read(path: Path) -> Image | None:
    """A board that nobody writes any more; None if it is none, or damaged."""
    with contextlib.suppress(OSError, RefusedError, ValueError):
        board = _open(path)
        with open(board.descriptor, "rb") as file:
            image = Image(file.read(_board.SIZE_BYTES).ljust(_board.SIZE_BYTES, b"\0"))
        if image.is_board:
            image.check()
            return image
    return None


class Image:
    """A copy of a board's bytes."""

    def __init__(self, memory: bytes) -> None:
        self.memory = bytearray(memory)
        self.words = memoryview(self.memory).cast("q")
        self.reals = memoryview(self.memory).cast("d")

    @property
    def is_board(self) -> bool:
        """Whether it is a board of this version."""
        words = self.words
        return (
            words[_board.AT_MAGIC] == _board.MAGIC
            and words[_board.AT_VERSION] == _board.VERSION
            and words[_board.AT_SIZE] == _board.SIZE_BYTES
        )

    def check(self) -> None:
        """Refuse what no worker counts.

        :raises ValueError: then.
        """
        labels = [value for at in self.label_rows() for value in self.label(at).values()]
        times = [self.reals[_board.HELD_S], *(value for value in labels if isinstance(value, float))]
        numbers = [value for value in labels if isinstance(value, int)]
        for first, end in _COUNTED:
            numbers += self.words[first:end]
        numbers += self._rest()
        numbers += (self.words[at + _TURN_AGAIN] for at in self.slots())
        if min(numbers) < 0 or max(numbers) > _MAX_COUNT:
            raise ValueError("it holds a number that no worker counts.")
        if not all(0.0 <= time_s < _MAX_COUNT for time_s in times):
            raise ValueError("it holds a time that no worker measures.")

    def _rest(self) -> Iterator[int]:
        """What is left of each sum when its parts are taken from it; a reader takes it for a number of times."""
        units = without = long_units = long_idle = long_held = 0
        for at in self.label_rows():
            record = self.label(at)
            yield record["count"] - record["rolled_back"] - record["failed"]
            if not self.words[at + _board.LABEL_INNER]:
                units, without = units + record["count"], without + record["without_connection"]
                long_units, long_idle = long_units + record["long_units"], long_idle + record["long_idle"]
                long_held += record["long_held"]
        yield from (units - long_units, units - without - long_idle)
        yield units - without - long_held + self.words[_board.FAST_CHECKOUTS]
        for at in range(_board.AT_RULES, _board.END_OF_COUNTS, 2):
            yield _MAX_RULE - self.words[at]

    def text(self, at: int, words: int) -> str:
        """The text in some words."""
        data = bytes(self.memory[at * _board.WORD : (at + words) * _board.WORD])
        return data.rstrip(b"\0").decode("utf-8", "replace")

    def label(self, at: int) -> dict[str, Any]:
        """The record of a label's row."""
        values = _board.LABEL.unpack_from(self.memory, (at + _board.LABEL_RECORD) * _board.WORD)
        return dict(zip(_board.LABEL_FIELDS, values, strict=True))

    def begun_at_home(self) -> int:
        """How many units began in the slots of their threads."""
        turns = range(_board.AT_LIVE, _board.AT_LIVE + _board.LIVE_WORDS * _board.MAX_HOMES, _board.LIVE_WORDS)
        return sum(self.words[at + _TURN_AGAIN] for at in turns)

    def label_rows(self) -> Iterator[int]:
        """Where the rows of labels begin that are in use."""
        used = min(max(self.words[_board.AT_LABELS], 0), _board.MAX_LABELS - 2)
        for index in (*range(used), _board.MAX_LABELS - 2, _board.MAX_LABELS - 1):
            yield _board.AT_LABEL_ROWS + _board.LABEL_WORDS * index

    def slots(self) -> range:
        """Where the live slots begin that readers look at."""
        return range(_board.AT_LIVE, _board.AT_LIVE + _board.LIVE_WORDS * (_board.MAX_LIVE - 1), _board.LIVE_WORDS)

    def add(self, dead: Image) -> None:
        """Add the counters of another board."""
        words = self.words
        if not self.is_board:
            words[: _board.AT_COUNTS] = dead.words[: _board.AT_COUNTS]
            words[_board.AT_LABELS] = words[_board.AT_POOLS] = words[_board.AT_WORKERS] = 0
            for at in self.label_rows():  # the last two, which are for what finds no row of its own
                self._write_label_key(at, dead._label_key(at))
        words[_board.AT_WORKERS] += 1
        self._add_starter(dead.words[_board.AT_STARTER])
        words[_board.BEGUN] += dead.begun_at_home()
        for at in range(_board.AT_COUNTS, _board.AT_RULES):
            if at != _board.HELD_S:
                words[at] += dead.words[at]
        self.reals[_board.HELD_S] += dead.reals[_board.HELD_S]
        self._add_rules(dead)
        rows = {self._label_key(at): at for at in self.label_rows()}
        for at in dead.label_rows():
            if dead.words[at + _board.LABEL_RECORD]:
                self._add_label(rows, dead, at)

    def starters(self) -> list[int]:
        """What had started workers that have ended, the last one first."""
        return list(self.words[_board.AT_STARTERS : _board.AT_STARTERS + _board.MAX_STARTERS])

    def _add_starter(self, starter: int) -> None:
        starters = [starter, *(each for each in self.starters() if each != starter)][: _board.MAX_STARTERS]
        for place, each in enumerate(starters):
            self.words[_board.AT_STARTERS + place] = each

    def _add_rules(self, dead: Image) -> None:
        for source in range(_board.AT_RULES, _board.END_OF_COUNTS, 2):
            code = dead.words[source]
            for at in range(_board.AT_RULES, _board.END_OF_COUNTS, 2):
                if code and self.words[at] in (0, code):
                    self.words[at] = code
                    self.words[at + 1] += dead.words[source + 1]
                    break

    def _label_key(self, at: int) -> bytes:
        return bytes(self.memory[at * _board.WORD : (at + _board.LABEL_RECORD) * _board.WORD])

    def _add_label(self, rows: dict[bytes, int], dead: Image, source: int) -> None:
        key = dead._label_key(source)
        at = rows.get(key)
        if at is None:
            at = rows[key] = self._new_label(key, is_inner=bool(dead.words[source + _board.LABEL_INNER]))
        here, there = self.label(at), dead.label(source)
        both = {name: max(here[name], there[name]) if name == "worst_s" else here[name] + there[name] for name in here}
        both["count_again"] = both["count"]  # whoever was killed while it wrote its record has left half of it
        offset = (at + _board.LABEL_RECORD) * _board.WORD
        _board.LABEL.pack_into(self.memory, offset, *both.values())

    def _new_label(self, key: bytes, *, is_inner: bool) -> int:
        index = self.words[_board.AT_LABELS]
        if index >= _board.MAX_LABELS - 2:
            return _board.AT_LABEL_ROWS + _board.LABEL_WORDS * (_board.MAX_LABELS - 2 + is_inner)
        self.words[_board.AT_LABELS] = index + 1
        at = int(_board.AT_LABEL_ROWS + _board.LABEL_WORDS * index)
        self._write_label_key(at, key)
        return at

    def _write_label_key(self, at: int, key: bytes) -> None:
        self.memory[at * _board.WORD : at * _board.WORD + len(key)] = key
