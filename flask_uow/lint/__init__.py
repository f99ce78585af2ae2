"""The static checker: what of the rules can be read from source, without importing or running any of it.

.. code-block:: python

    from pathlib import Path
    from flask_uow import lint

    report = lint.check_paths([Path("bank")], lint.read_settings(Path.cwd()))
    for finding in report.findings:
        print(finding.path, finding.line, finding.code, finding.text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from ._checks import CHECKS, Check
    from ._findings import Finding, Report, Unresolved
    from ._run import check_paths
    from ._settings import Settings, read_settings

__all__ = ["CHECKS", "Check", "Finding", "Report", "Settings", "Unresolved", "check_paths", "read_settings"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CHECKS": "_checks",
        "Check": "_checks",
        "Finding": "_findings",
        "Report": "_findings",
        "Settings": "_settings",
        "Unresolved": "_findings",
        "check_paths": "_run",
        "read_settings": "_settings",
    },
)
