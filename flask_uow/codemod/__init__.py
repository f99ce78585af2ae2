"""The codemod: moves what is mechanical of a Flask-SQLAlchemy app onto units of work, and lists what a human decides.

It asks the static checker's reading of names (:mod:`flask_uow.lint`) what a session is, finds the functions that end in
a commit by hand whichever way they take, and changes source with libcst, which keeps formatting and comments.

.. code-block:: python

    from pathlib import Path
    from flask_uow import codemod, lint

    report = codemod.change_paths([Path("bank")], lint.read_settings(Path.cwd()))
    for change in report.changes:
        change.path.write_bytes(change.after)
    for left in report.left:
        print(left.path, left.line, left.why)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ._report import Change, Left, Report
    from ._run import change_paths

__all__ = ["Change", "Left", "Report", "change_paths"]

__getattr__, __dir__ = lazy_names(
    __name__, {"Change": "_report", "Left": "_report", "Report": "_report", "change_paths": "_run"}
)
