"""The modules of the project that is checked, read when they are first asked for; nothing is ever imported."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ._binding import bind_names
from ._scopes import Module

MAX_BYTES = 5_000_000
_SOURCE_FOLDER = "src"


class UnreadableError(Exception):
    """A file is no Python that can be checked; the text says why."""


class Project:
    """The modules that were read so far.

    :param folders: where absolute imports are looked for, after the folder of the importing module's own package.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._roots = [root for folder in folders for root in (folder, folder / _SOURCE_FOLDER)]
        self._modules: dict[Path, Module | None] = {}
        self._files: dict[tuple[Path, str], Path | None] = {}

    def read(self, path: Path) -> Module:
        """The module in a file, which is read once.

        :raises UnreadableError: if it is no Python.
        """
        return self._modules.get(path.absolute()) or self.parse(path, read_bytes(path))

    def parse(self, path: Path, source: bytes) -> Module:
        """The module that a text makes at the place of a file.

        :raises UnreadableError: if it is no Python.
        """
        absolute = path.absolute()
        root, name = _place(absolute)
        tree, lines = _parse(source)
        module = Module(absolute, name, root, tree, lines)
        try:
            bind_names(module)
        except RecursionError:
            raise UnreadableError("it is nested too deeply") from None
        self._modules[absolute] = module
        return module

    def find(self, name: str, near: Module) -> Module | None:
        """The module of a dotted name as another one would import it, or None if it is none of the project."""
        for root in dict.fromkeys((near.root, *self._roots)):
            path = self._file(root, name)
            if path is not None:
                return self._known(path)
        return None

    def _file(self, root: Path, name: str) -> Path | None:
        key = (root, name)
        if key not in self._files:
            self._files[key] = next(filter(is_file, _candidates(root, name)), None)
        return self._files[key]

    def _known(self, path: Path) -> Module | None:
        if path not in self._modules:
            self._modules[path] = None
            # That it is no Python is said where it is checked itself.
            with suppress(UnreadableError):
                self.read(path)
        return self._modules[path]


def read_bytes(path: Path) -> bytes:
    """What is in a file.

    :raises UnreadableError: if it cannot be read, or is too large to be source.
    """
    try:
        if not path.is_file():
            raise UnreadableError("it is no regular file")
        if path.stat().st_size > MAX_BYTES:
            raise UnreadableError(f"it has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None


def is_file(path: Path) -> bool:
    """Whether there is a file of a name, however odd the name is."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _lines(source: bytes) -> list[str]:
    """The lines as the parser counts them."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return io.TextIOWrapper(io.BytesIO(source), encoding, errors="replace", newline=None).readlines()


def _parse(source: bytes) -> tuple[ast.Module, list[str]]:
    try:
        with warnings.catch_warnings():
            # An odd escape is another tool's business.
            warnings.simplefilter("ignore")
            return ast.parse(source), _lines(source)
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        raise UnreadableError(f"{error.msg}{where}") from None
    except ValueError as error:
        raise UnreadableError(str(error)) from None
    except (RecursionError, MemoryError):
        raise UnreadableError("it is nested too deeply") from None


def _place(path: Path) -> tuple[Path, str]:
    """The folder that a file's imports start from, and its dotted name there."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while is_file(folder / "__init__.py") and folder.name:
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def _candidates(root: Path, name: str) -> Iterator[Path]:
    parts = [part for part in name.split(".") if part]
    if not parts:
        return
    folder = root.joinpath(*parts)
    yield folder / "__init__.py"
    yield folder.with_name(f"{folder.name}.py")
