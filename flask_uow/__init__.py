"""The database transaction as a property of the Flask request: sessions per app context, units of work, their rules."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import exceptions, signals
from ._extension import UnitOfWork
from ._options import Propagation
from ._ride import ride
from ._transactional import current_unit, transactional
from ._units import Unit

if TYPE_CHECKING:
    from . import stats, testing

__all__ = [
    "Propagation",
    "Unit",
    "UnitOfWork",
    "current_unit",
    "exceptions",
    "ride",
    "signals",
    "stats",
    "testing",
    "transactional",
]


def __getattr__(name: str) -> ModuleType:
    """``stats`` and ``testing`` are imported when they are first asked for: a worker needs neither to start."""
    if name in ("stats", "testing"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
