"""What can be known of a SQLite database: there is no server to ask, only a file and the system's locks.

Looking must not disturb. Nobody tries to lock the file in order to find out whether it is locked, because a writer that
met that lock would fail; where the system lists its locks (Linux), the list names the process that writes. And nobody
opens the file but SQLite itself: whoever closes a file drops all locks that his process has on it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import URL

from ._values import SQLiteDatabase

_LOCKS = Path("/proc/locks")
# SQLite's file format fixes the bytes that a writer locks: one far out in the database file, or, with a write-ahead
# log, one in the file of shared memory beside it.
_RESERVED_BYTE = 0x40000001
_WAL_WRITE_BYTE = 120


def sqlite_database(url: URL) -> SQLiteDatabase:
    """Look at a SQLite database without disturbing it.

    :param url: the engine's URL.
    :raises OSError: if the file is not there.
    :raises sqlite3.DatabaseError: if it is no database.
    """
    path = _path(url)
    if path is None:
        return SQLiteDatabase(path=None)
    return SQLiteDatabase(
        path=str(path),
        size_bytes=path.stat().st_size,
        wal_bytes=_wal(path).stat().st_size if _wal(path).exists() else None,
        writer_pid=_writer_pid(path),
        journal_mode=_journal_mode(path),
    )


def _path(url: URL) -> Path | None:
    name = url.database or ":memory:"
    if not name.startswith("file:"):
        return None if name == ":memory:" else Path(name).absolute()
    name = unquote(urlsplit(name).path)
    return None if name in ("", ":memory:") or url.query.get("mode") == "memory" else Path(name).absolute()


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _journal_mode(path: Path) -> str | None:
    """Read the mode that the file knows; what a rollback journal is like in detail, each writer chooses for itself.

    Opened for writing, though nothing is written: the last reader of a write-ahead log would leave its files behind.
    """
    if _wal(path).exists():
        return "wal"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0)) as connection:
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    return "wal" if mode == "wal" else "rollback"


def _writer_pid(path: Path) -> int | None:
    shared_memory = path.with_name(f"{path.name}-shm")
    writers = [*_lock_holders(path, _RESERVED_BYTE), *_lock_holders(shared_memory, _WAL_WRITE_BYTE)]
    return writers[0] if writers else None


def _lock_holders(path: Path, byte: int) -> Iterator[int]:
    """Find the processes that have locked a byte of a file for writing."""
    if not (_LOCKS.exists() and path.exists()):
        return
    status = path.stat()
    file_id = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in _LOCKS.read_text(encoding="ascii").splitlines():
        # 1: POSIX  ADVISORY  WRITE 4711 08:01:131074 1073741825 1073741825
        fields = line.split()
        if fields[1] == "POSIX" and fields[3] == "WRITE" and fields[5] == file_id:
            end = float("inf") if fields[7] == "EOF" else int(fields[7])
            if int(fields[6]) <= byte <= end:
                yield int(fields[4])
