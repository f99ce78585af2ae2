"""The database transaction as a property of the Flask request: sessions per app context, units of work, their rules.

The public names are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Propagation": "_options",
        "Unit": "_units",
        "UnitOfWork": "_extension",
        "current_unit": "_transactional",
        "exceptions": "exceptions",
        "ride": "_ride",
        "signals": "signals",
        "stats": "stats",
        "testing": "testing",
        "transactional": "_transactional",
    },
)
