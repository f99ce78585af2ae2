"""Blinker signals, named as Flask names its own. The sender is always the Flask app.

=====================  ==========================================================================
signal                 sent, and what the receiver gets besides the sender
=====================  ==========================================================================
``unit_began``         when an outermost unit or a savepoint began: ``unit``
``unit_committed``     after its COMMIT or its savepoint's release: ``unit``
``unit_rolled_back``   after its rollback, to the savepoint or whole: ``unit``, ``exception`` or None
``unit_retried``       before the next attempt: ``unit`` (the lost one), ``exception``, ``delay_s`` (seconds)
``rule_violated``      once per violation: ``violation`` (the error or warning), ``code``
``session_leaked``     a session outlived its context: ``session``, ``where`` or None
=====================  ==========================================================================

What a receiver raises is logged, and changes nothing.
"""

from __future__ import annotations

from typing import Any

from blinker import NamedSignal, Namespace
from flask import Flask

__all__ = [
    "rule_violated",
    "session_leaked",
    "unit_began",
    "unit_committed",
    "unit_retried",
    "unit_rolled_back",
]

_signals = Namespace()

unit_began = _signals.signal("unit-began")
unit_committed = _signals.signal("unit-committed")
unit_rolled_back = _signals.signal("unit-rolled-back")
unit_retried = _signals.signal("unit-retried")
rule_violated = _signals.signal("rule-violated")
session_leaked = _signals.signal("session-leaked")


def tell(signal: NamedSignal, app: Flask, /, **details: Any) -> None:
    """Send a signal of an app."""
    try:
        signal.send(app, **details)
    except Exception:  # the work goes on, and contexts must end
        whose = f" for unit of work {details['unit'].label!r}" if "unit" in details else ""
        app.logger.exception("A receiver of %s failed%s.", signal.name.replace("-", "_"), whose)
