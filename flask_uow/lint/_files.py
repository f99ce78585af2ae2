"""Which files are looked at: those that are named, and every ``.py`` in the folders that are named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ._settings import Settings

# Folders that hold what others have written, or what was made from something else.
SKIPPED_FOLDERS = frozenset(("__pycache__", "build", "dist", "node_modules", "site-packages", "venv"))


def find_files(paths: Iterable[Path], settings: Settings) -> tuple[list[Path], int]:
    """The files to look at, each once, and how many were named that are excluded."""
    found: dict[Path, None] = {}
    excluded = 0
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(sorted(_in_folder(path, settings))))
        elif settings.is_excluded(path):
            excluded += 1
        else:
            found[path] = None
    return list(found), excluded


def _in_folder(folder: Path, settings: Settings) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = sorted(name for name in folders if not _is_skipped(name) and not settings.is_excluded(here / name))
        yield from (
            here / name for name in sorted(files) if name.endswith(".py") and not settings.is_excluded(here / name)
        )


def _is_skipped(name: str) -> bool:
    return name in SKIPPED_FOLDERS or name.startswith(".") or name.endswith(".egg-info")
