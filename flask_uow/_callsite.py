"""The application's frame: which line of the user's code is to blame.

A violation is noticed deep inside SQLAlchemy; the line to mend is the innermost frame that belongs neither to the
libraries in between nor to this package.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import blinker
import click
import flask
import jinja2
import sqlalchemy
import werkzeug


def _folder(module_file: str | None) -> str:
    return os.path.dirname(module_file or "") + os.sep


_BESIDE_FLASK = ("flask_sqlalchemy" + os.sep, "flask_sqlalchemy_lite" + os.sep)
"""Libraries that an app may have, and that call sessions for it."""

_LIBRARIES = (
    _folder(__file__),
    *(_folder(module.__file__) for module in (sqlalchemy, flask, werkzeug, blinker, click, jinja2)),
    *(os.path.join(os.path.dirname(_folder(flask.__file__)[:-1]), name) for name in _BESIDE_FLASK),
    _folder(os.__file__) + "concurrent" + os.sep,
    _folder(os.__file__) + "asyncio" + os.sep,
    contextlib.__file__,
    _folder(os.__file__) + "threading.py",
    _folder(os.__file__) + "functools.py",
    "<",  # SQLAlchemy's generated wrappers: '<string>' in 2.0, '<sqlalchemy generated ...>' in 2.1
)


class CallSite(NamedTuple):
    """A line of the application; cheap to take, formatted only when shown."""

    code: CodeType
    line: int

    def __str__(self) -> str:
        return f"{_shown_path(self.code.co_filename)}:{self.line} in {_function_name(self.code)}"


def defined_at(function: Callable[..., object]) -> CallSite | None:
    """Where a function, whatever decorates it, begins; None for one that is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return CallSite(code, code.co_firstlineno) if code else None


def is_of_application(site: CallSite) -> bool:
    """Whether a line is the application's, and no library's."""
    return not site.code.co_filename.startswith(_LIBRARIES)


def application_site() -> CallSite | None:
    """The innermost frame of the application, or None when there is none (code typed at a prompt, say)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            return CallSite(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return None


def application_stacklevel() -> int:
    """The ``stacklevel`` that makes ``warnings.warn``, called by our caller, blame :func:`application_site`."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_LIBRARIES) and frame.f_back is not None:
        frame = frame.f_back
        level += 1
    return level


def _function_name(code: CodeType) -> str:
    return code.co_qualname.rpartition("<locals>.")[2]


def _shown_path(filename: str) -> str:
    with contextlib.suppress(ValueError, OSError):
        return str(Path(filename).relative_to(Path.cwd()))
    return filename
