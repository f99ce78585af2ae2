"""What is noticed of habits that cost: rules UOW104 to UOW110.

None of them harms what is in the database; each takes a round trip too many, or a connection that somebody else waits
for. So they warn by default, and ask for nothing that is not there already: a clock, and what SQLAlchemy knows.

The rules are the examples and the "best practices" of SIP-99A.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import Flask, has_request_context, request
from sqlalchemy.orm import InstanceState

from ._callsite import CallSite
from ._drivers import TransactionStatus
from ._outcome import transaction_id
from ._rules import report_at_teardown, report_now, violation
from ._state import Link, SessionState, has_pending

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_PREPROCESS = Flask.preprocess_request.__code__
_DISPATCH = Flask.dispatch_request.__code__
_FULL_DISPATCH = Flask.full_dispatch_request.__code__
_current_request: Callable[[], object] = request._get_current_object  # type: ignore[attr-defined]
_OPEN = (TransactionStatus.IN_TRANSACTION, TransactionStatus.IN_ERROR)

MAX_INSERTS = 1000
"""How many inserted objects are enough for UOW106; a longer import is none that deletes what it wrote."""


def notice(state: SessionState, code: str, site: CallSite | None = None, **details: str) -> None:
    """Warn of a violation, or raise it, as the rule's mode says.

    :param site: the line to blame; the application's current line if None.
    :raises RuleViolationError: in mode ``error``.
    """
    report_now(state.app, state.rules, violation(code, site, **details))


def notice_commit(session: Session, state: SessionState) -> None:
    """UOW104: a commit by hand, outside a unit, of nothing."""
    has_sent = state.wrote and session.in_transaction()  # and not in one that has ended
    if has_sent or not state.rules.is_on("UOW104") or has_pending(session):
        return
    if not any(map(has_written_unseen, state.links)):
        notice(state, "UOW104")


def has_written_unseen(link: Link) -> bool:
    """Whether the transaction has written unseen: before it was met, by a raw cursor, or in a function.

    PostgreSQL is asked, a round trip; SQLite's driver counts the rows.
    """
    name, dbapi_connection = link.connection.dialect.name, link.pooled.dbapi_connection
    if name == "sqlite" and not link.has_past and dbapi_connection is not None:
        return bool(dbapi_connection.total_changes != link.changes_before)
    status = link.status()
    if name == "postgresql" and status is TransactionStatus.IN_TRANSACTION:
        return transaction_id(link.connection) is not None
    return link.has_past and status is not TransactionStatus.IDLE


def notice_merge(session: Session, state: SessionState, entity: object) -> None:
    """UOW105: merging what is persistent here already."""
    if state.rules.is_on("UOW105"):
        inspected: Any = sa.inspect(entity, raiseerr=False)
        if isinstance(inspected, InstanceState) and inspected.persistent and inspected.session is session:
            notice(state, "UOW105", entity=_shown(inspected))


def note_end(state: SessionState) -> None:
    """The transaction before has ended: what it inserted was committed, or is no more."""
    if state.sent_commit:
        inspected = [sa.inspect(entity) for entity in state.inserted]
        if state.committed is None or len(state.committed) > MAX_INSERTS:
            state.committed = set()  # a context that lives so long is no request
        state.committed.update(each.key for each in inspected if each.key is not None and not each.was_deleted)
    state.inserted = []


def notice_delete(state: SessionState, entity: object) -> None:
    """UOW106: deleting a row that this context has inserted and committed."""
    if state.committed and state.rules.is_on("UOW106"):
        inspected: Any = sa.inspect(entity, raiseerr=False)
        if isinstance(inspected, InstanceState) and inspected.key in state.committed:
            notice(state, "UOW106", entity=_shown(inspected))


def is_before_view() -> bool:
    """Whether a ``before_request`` function runs, as the innermost of what Flask has called.

    A unit that it ends, a user's last visit that is noted say, is none after which the view reads on (UOW107).
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _PREPROCESS or frame.f_code is _DISPATCH:
            return frame.f_code is _PREPROCESS
        frame = frame.f_back
    return False


def notice_begin(state: SessionState) -> None:
    """UOW107: a request reads on after its view's unit was committed."""
    if state.last_commit is None or not state.rules.is_on("UOW107"):
        return
    label, of_request = state.last_commit
    if has_request_context() and _current_request() is of_request and not _is_looked_back_on():
        notice(state, "UOW107", label=label)


def _is_looked_back_on() -> bool:
    """Whether a test looks at what a request has done that is over, in the context that its client has kept."""
    if "werkzeug.debug.preserve_context" not in request.environ:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FULL_DISPATCH:
            return False
        frame = frame.f_back
    return True


def notice_length(state: SessionState, label: str, site: CallSite | None, seconds: float, *, may_raise: bool) -> None:
    """UOW108: a unit that took too long.

    :param site: where the unit is.
    :param seconds: how long it took.
    :param may_raise: whether it can still be refused.
    :raises RuleViolationError: in mode ``error``, if it may.
    """
    limit = f"{state.settings.max_unit_s:g}"
    error = violation("UOW108", site, label=label, seconds=f"{seconds:.1f}", limit=limit)
    (report_now if may_raise else report_at_teardown)(state.app, state.rules, error)


def notice_idle(link: Link, *, may_raise: bool = True) -> None:
    """UOW109: the server has waited for the client, with the transaction open.

    :param may_raise: whether what comes next can still be refused.
    :raises RuleViolationError: in mode ``error``, if it may.
    """
    state = link.state
    seconds = time.monotonic() - link.idle_since
    if seconds > state.settings.max_idle_s and link.status() in _OPEN:
        link.idle_since = math.inf  # it is noticed once
        who = f"Unit of work {state.unit.label!r}" if state.unit else "A session outside a unit of work"
        limit = f"{state.settings.max_idle_s:g}"
        error = violation("UOW109", who=who, seconds=f"{seconds:.1f}", limit=limit)
        (report_now if may_raise else report_at_teardown)(state.app, state.rules, error)


def _shown(inspected: Any) -> str:
    identity = ", ".join(map(str, inspected.identity or ()))
    return f"{inspected.class_.__name__}({identity})"
