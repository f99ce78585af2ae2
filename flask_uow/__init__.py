"""The database transaction as a property of the Flask request: sessions per app context, units of work, their rules.

The public names are imported when they are first asked for: pytest imports this package in every run of whoever has
it, for the plugin, and a worker needs neither ``stats`` nor ``testing`` to start.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import exceptions, signals, stats, testing
    from ._extension import UnitOfWork
    from ._options import Propagation
    from ._ride import ride
    from ._transactional import current_unit, transactional
    from ._units import Unit

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

_HOMES = {
    "Propagation": "_options",
    "Unit": "_units",
    "UnitOfWork": "_extension",
    "current_unit": "_transactional",
    "ride": "_ride",
    "transactional": "_transactional",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES.get(name, name)}", __name__)
    value = globals()[name] = getattr(home, name) if name in _HOMES else home
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
