"""Read the boards of an app's workers: what each of them has published, without asking it.

A worker writes while it is read. So a record that was met half-written is read again, and each counter is one word, or
stands in one record: none is ever seen torn, and none falls.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flask import Flask
from flask.globals import app_ctx

from .. import _board as board
from .._board_files import (
    FoundBoard,
    Image,
    RefusedError,
    folder_of,
    is_of_ended,
    missing,
    namesakes,
    read_at,
    reading,
)
from .._hiding import harmless
from .._state import AppState, state_of_app
from ._values import Boards, EndedWorkers, Worker
from ._workers import counts_of, worker_of

_MAX_WAIT_S = 0.05
"""How long a board is read again at most: whoever writes a record for longer has been stopped, or has never been."""
_BUSY_ATTEMPTS = 3
Read = Callable[[int, int], bytes]
"""Reads so many bytes of a board: where they begin, and how many."""


def read_boards(app: Flask | None = None) -> Boards:
    """See what the workers of an app on this host have published; no database is asked.

    .. code-block:: python

        from flask_uow import stats

        for worker in stats.read_boards(app).workers:
            print(worker.pid, worker.counts.units)

    :param app: the app; the current one if not given.
    :raises RuntimeError: if no app is given and there is no current one.
    :raises ConfigurationError: if the app has no :class:`~flask_uow.UnitOfWork`.
    """
    app = app or app_ctx.app
    return _read(app, state_of_app(app))  # in no context of its own: its end would take back what has leaked


def _read(app: Flask, app_state: AppState) -> Boards:
    if not app_state.settings.stats:
        why = "UOW_STATS is False for this app: its workers publish nothing."
        return Boards((), notes=(why,), is_complete=False)
    folder = folder_of(app, app_state.settings.stats_dir)
    workers: list[Worker] = []
    ended: EndedWorkers | None = None
    notes, damaged = list(missing()), list[str]()
    try:
        with reading(folder) as (found, refusals):
            notes += refusals
            for each in found:
                told = _told_by(each, app.name, notes if each.is_alive else damaged)
                workers += [told] if isinstance(told, Worker) else []
                ended = _with(ended, told) if isinstance(told, EndedWorkers) else ended
    except FileNotFoundError:
        notes += _where_else(app, folder)
    except (OSError, RefusedError) as error:
        notes.append(str(error))
    own = app_state.board
    if own is not None and not own.is_published:
        workers.append(worker_of(copy_of_own(own)))
    workers.sort(key=lambda worker: worker.started_at)
    # What is damaged and is nobody's who lives leaves no worker out.
    return Boards(tuple(workers), ended, (*notes, *damaged), is_complete=not notes)


def read_own(app: Flask) -> Worker | None:
    """See what this process has published of an app; None if it has said nothing yet.

    Its number alone does not tell it from others: those of another container may have the same, and the name of its
    host, and so may those of another app of its name here.

    :param app: the app.
    """
    own = state_of_app(app).board
    return None if own is None else worker_of(copy_of_own(own))


def _told_by(found: FoundBoard, app_name: str, notes: list[str]) -> Worker | EndedWorkers | None:
    """What a file tells, if it is the app's."""
    try:
        image = _copy(found)
        if not _is_of(image, app_name, socket.gethostname()):
            return None
        if is_of_ended(found.path):
            return EndedWorkers(image.words[board.AT_WORKERS], counts_of(image))
        if not found.is_alive:  # it could not be swept, or has just ended
            return EndedWorkers(1, counts_of(image))
        return worker_of(image)
    except ValueError as error:
        notes.append(harmless(f"{found.path} cannot be read: {error} Remove it if no worker writes it."))
        return None


def _with(ended: EndedWorkers | None, more: EndedWorkers) -> EndedWorkers:
    if ended is None:
        return more
    return EndedWorkers(ended.workers + more.workers, ended.counts + more.counts)


def _where_else(app: Flask, folder: Path) -> Iterator[str]:
    for other in namesakes(app, folder):
        yield harmless(f"{other} belongs to another user's workers of the app. Work as that user to see them.")


def _is_of(image: Image, app_name: str, host: str) -> bool:
    names = image.text(board.AT_APP, board.NAME_WORDS), image.text(board.AT_HOST, board.NAME_WORDS)
    return names == (board.shown_name(app_name), board.shown_name(host))


# ---- copies


def _copy(found: FoundBoard) -> Image:
    """A copy of a board, of which every record is whole.

    :raises ValueError: if it is none.
    """

    def read(offset: int, size: int) -> bytes:
        return read_at(found.descriptor, offset, size)

    data = read(0, board.SIZE_BYTES)
    image = Image(data.ljust(board.SIZE_BYTES, b"\0"))
    if not image.is_board:
        raise ValueError("it is no board, or one of another version.")
    _mend(image, read)
    image.check()
    return image


def copy_of_own(own: board.Board) -> Image:
    """A copy of this process's board."""
    image = Image(bytes(own.memory))
    _mend(image, lambda offset, size: bytes(own.memory[offset : offset + size]))
    return image


def _mend(image: Image, read: Read) -> None:
    """Read again what was met while it was written."""
    until_s = time.monotonic() + _MAX_WAIT_S
    for at in image.label_rows():
        _read_until(image, read, at + board.LABEL_RECORD, len(board.LABEL_FIELDS), until_s)
    # After the labels: no more units have ended than have begun.
    _copy_again(image, read, board.AT_LIVE, board.WORDS - board.AT_LIVE)
    for at in image.slots():
        if image.words[at] and not _read_until(image, read, at, len(board.LIVE_FIELDS), until_s, board.LIVE_WORDS):
            image.words[at] = 0  # its writer has stopped in the middle: nobody knows what it was about to say


def _read_until(image: Image, read: Read, at: int, fields: int, until_s: float, words: int = 0) -> bool:
    """Copy a record until it is whole; whether it has become so.

    :param fields: how many words it has; the first and the last are the same in one that is whole.
    :param until_s: when to give up, in seconds of the monotonic clock.
    :param words: how many there are with those that belong to it.
    """
    attempt = 0
    while not _is_whole(image, read, at, at + fields - 1):
        attempt += 1
        if attempt > _BUSY_ATTEMPTS:
            if time.monotonic() > until_s:
                return False
            time.sleep(0.0005)  # its thread waits for others
        _copy_again(image, read, at, words or fields)
    return True


def _is_whole(image: Image, read: Read, first: int, last: int) -> bool:
    """Whether nobody has written a record while it was copied: its two ends are the same, and so they are afterwards.

    A copy has no order, so that of a label's record, which changes only as a whole, all of it is compared.
    """
    number = image.words[first]
    if number != image.words[last]:
        return False
    is_label = first < board.AT_LIVE
    offset, size = first * board.WORD, (last + 1 - first if is_label else 1) * board.WORD
    return number == 0 or image.memory[offset : offset + size] == read(offset, size)


def _copy_again(image: Image, read: Read, at: int, words: int) -> None:
    offset, size = at * board.WORD, words * board.WORD
    image.memory[offset : offset + size] = read(offset, size).ljust(size, b"\0")
