"""What blocks a gevent worker: looked for where an engine is first used, and warned of.

gevent lets greenlets take turns where the standard library waits, once it is patched. A driver in C waits past it, and
what was made before the patch keeps to threads. Neither is wrong in the database; both stop every greenlet at once.
"""

from __future__ import annotations

import select
import sys
import threading
import warnings
from typing import Any

from ._callsite import application_stacklevel

_local_at_import = threading.local


def warn_of_what_blocks(driver: str) -> None:
    """Warn, if gevent has patched this process and not all that it should have.

    :param driver: SQLAlchemy's name of the engine's driver.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return
    if _local_at_import is not threading.local:
        _warn(
            "flask_uow was imported before gevent had patched the standard library: its locks and SQLAlchemy's are "
            "those of threads.",
            "Call gevent.monkey.patch_all() first; with gunicorn --preload, at the top of its configuration file.",
        )
    if driver == "psycopg2" and _has_no_wait_callback():
        _warn(
            "psycopg2 waits for PostgreSQL without gevent: every greenlet of this process waits with it.",
            "Call psycogreen.gevent.patch_psycopg() at start, or use psycopg 3.",
        )


def poll_at_once() -> Any:
    """A new ``select.poll``, as the system has it: gevent's goes once around its loop for each question.

    :raises AttributeError: if the system has none.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("select"):
        return select.poll()
    return monkey.get_original("select", "poll")()


def _has_no_wait_callback() -> bool:
    from psycopg2.extensions import get_wait_callback

    return get_wait_callback() is None


def _warn(what: str, fix: str) -> None:
    warnings.warn(f"{what}\n  fix:   {fix}", RuntimeWarning, stacklevel=application_stacklevel())
