"""A unit's deadline, as PostgreSQL keeps it: no statement runs past it, and no session idles past it.

The server counts from each statement's start, so it is told again when a statement comes so late that it would count
twice what is left. Limits that the role or the database has already stay, where they are lower.
"""

from __future__ import annotations

import math
import time
from contextlib import closing

from ._commit import as_sqlalchemys
from ._state import Link

_MOST_MS = 2**31 - 1
"""As long as the server's limits can be; 25 days."""

SLACK_S = 1.0
"""How much later the server ends a session that idles: the unit is to meet its own deadline first, if it lives."""

_LIMIT = (
    "SELECT set_config(name, CAST(CAST(least("
    "nullif(extract(epoch FROM CAST(current_setting(name) AS interval)) * 1000, 0), ms) AS bigint) AS text), true) "
    "FROM (VALUES {limits}) AS limits (name, ms)"
)
_LIFT = ("SET LOCAL statement_timeout TO DEFAULT", "SET LOCAL idle_in_transaction_session_timeout TO DEFAULT")


def limit_time(link: Link, remaining_s: float | None, *, is_outermost: bool) -> None:
    """Tell a connection's server how long the rest of the transaction may last; other databases cannot be told.

    :param remaining_s: seconds, None for as long as it likes.
    :param is_outermost: whether the transaction ends with the unit; else the session must outlive it.
    :raises sqlalchemy.exc.DBAPIError: if it does not take that: the transaction has failed, or the connection is lost.
    """
    if link.connection.dialect.name != "postgresql" or link.dbapi_connection is None:
        return
    statements: list[str] = []
    if link.limit_s is not None and (remaining_s is None or remaining_s > link.limit_s):
        statements += _LIFT
    if remaining_s is not None:
        limits = {"statement_timeout": remaining_s}
        if is_outermost:
            limits["idle_in_transaction_session_timeout"] = remaining_s + SLACK_S
        limits_ms = {name: math.ceil(min(seconds * 1000, _MOST_MS)) for name, seconds in limits.items()}
        values = ", ".join(f"('{name}', {limit_ms})" for name, limit_ms in limits_ms.items())
        statements.append(_LIMIT.format(limits=values))
    link.limit_s = remaining_s
    if link.riders is not None:
        link.riders.add(statements)
    elif statements:
        _send(link, statements)


def limit_again(link: Link, remaining_s: float, *, is_outermost: bool) -> None:
    """The same before a statement, if the server would let it run for twice as long as the unit has left."""
    if link.limit_s is not None and link.limit_s > 2 * remaining_s:
        limit_time(link, remaining_s, is_outermost=is_outermost)


def _send(link: Link, statements: list[str]) -> None:
    try:
        with closing(link.dbapi_connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)
    except link.connection.dialect.loaded_dbapi.Error as error:
        raised = as_sqlalchemys(link, error)
        link.state.note_error(raised)
        raise raised from error
    if not link.was_begun:
        link.was_begun, link.idle_since = True, time.monotonic()
        link.state.tell_rest()
