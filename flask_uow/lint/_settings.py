"""The checker's configuration: ``[tool.flask_uow.lint]`` in pyproject.toml, else ``[flask_uow.lint]`` in an ini file.

A key that does not exist, or a value of a wrong type, is one :class:`ConfigurationError` that quotes it.
"""

from __future__ import annotations

import configparser
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..exceptions import ConfigurationError
from ._checks import CHECKS

TOML_TABLE = "tool.flask_uow.lint"
INI_SECTION = "flask_uow.lint"
FILES = ("pyproject.toml", "setup.cfg", "tox.ini")
KEYS = ("data-access", "exclude", "ignore", "sessions", "units")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says, checked.

    :param folder: what globs are relative to.
    :param data_access: globs of the modules that may flush and no more.
    :param exclude: globs of files and folders to leave out.
    :param ignore: the rules to leave out.
    :param sessions: names that are sessions wherever the source does not tell what they are.
    :param units: names of the project's own decorators and context managers that make units.
    """

    folder: Path
    data_access: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ("db.session", "uow.session")
    units: tuple[str, ...] = ()

    def is_excluded(self, path: Path) -> bool:
        """Whether a file or a folder is left out."""
        return self._matches(path, self.exclude)

    def is_data_access(self, path: Path) -> bool:
        """Whether a module may flush and no more."""
        return self._matches(path, self.data_access)

    def _matches(self, path: Path, globs: tuple[str, ...]) -> bool:
        absolute = path.absolute()
        names = absolute.relative_to(self.folder) if absolute.is_relative_to(self.folder) else absolute
        # A glob that names a folder is about all that is in it.
        parents = [parent.as_posix() for parent in (names, *names.parents)][:-1]
        return any(fnmatchcase(parent, glob.rstrip("/")) for parent in parents for glob in globs)


def read_settings(start: Path, file: Path | None = None) -> Settings:
    """Settings from a file, or from the nearest one that has any, in ``start`` or above it.

    :raises ConfigurationError: for a file that cannot be read, and a key that is wrong.
    """
    if file is not None:
        values = _read(file)
        if values is None:
            raise ConfigurationError(f"{file} has no section {_section_of(file)}.", fix="Add it, or name another file.")
        return _checked(values, file)
    for folder in (start.absolute(), *start.absolute().parents):
        for path in (folder / name for name in FILES):
            found = _read(path) if path.is_file() else None
            if found is not None:
                return _checked(found, path)
    return Settings(start.absolute())


def _section_of(file: Path) -> str:
    return f"[{TOML_TABLE if file.suffix == '.toml' else INI_SECTION}]"


def _read(file: Path) -> Mapping[str, object] | None:
    """The section of a file, or None if it has none."""
    try:
        text = file.read_text(encoding="utf-8")
        return _read_toml(text, file) if file.suffix == ".toml" else _read_ini(text)
    except (OSError, ValueError, configparser.Error) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise ConfigurationError(f"{file} cannot be read: {why}.", fix="Mend the file.") from None


def _read_toml(text: str, file: Path) -> Mapping[str, object] | None:
    table: object = tomllib.loads(text)
    for name in TOML_TABLE.split("."):
        if not isinstance(table, dict) or name not in table:
            return None
        table = table[name]
    if not isinstance(table, dict):
        raise ConfigurationError(f"{file}: {TOML_TABLE} = {table!r}: expected a table.", fix=f"Write [{TOML_TABLE}].")
    return table


def _read_ini(text: str) -> Mapping[str, object] | None:
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    if not parser.has_section(INI_SECTION):
        return None
    return {key: value.replace(",", "\n").split() for key, value in parser.items(INI_SECTION)}


def _checked(values: Mapping[str, object], file: Path) -> Settings:
    for key, value in values.items():
        _check(key, value, file)
    lists = {key.replace("-", "_"): tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Settings(file.absolute().parent, **lists)


def _check(key: str, value: object, file: Path) -> None:
    if key not in KEYS:
        close = difflib.get_close_matches(key, KEYS, n=1)
        fix = f"Did you mean {close[0]}?" if close else f"The keys are: {', '.join(KEYS)}."
        raise ConfigurationError(f"{file}: {key} is no key of {_section_of(file)}.", fix=fix)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        what = f"{file}: {key} = {value!r}: expected a list of strings."
        raise ConfigurationError(what, fix=f'Write {key} = ["..."].')
    unknown = [code for code in value if key == "ignore" and code not in CHECKS]
    if unknown:
        raise ConfigurationError(
            f"{file}: ignore = {unknown!r}: no such rules.", fix=f"The rules are: {', '.join(CHECKS)}."
        )
