"""The database transaction as a property of the Flask request: sessions per app context, units of work, their rules."""

from . import exceptions, signals, stats, testing
from ._extension import UnitOfWork
from ._options import Propagation
from ._transactional import current_unit, transactional
from ._units import Unit

__all__ = [
    "Propagation",
    "Unit",
    "UnitOfWork",
    "current_unit",
    "exceptions",
    "signals",
    "stats",
    "testing",
    "transactional",
]
