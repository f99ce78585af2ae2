"""The transactions of a session under guard: SQLAlchemy's own steps to a commit, by fewer calls.

SQLAlchemy wraps each step in two functions that watch the transaction's state, and each state that it expects next in a
generator: for a flush and its COMMIT, a third of what a unit of work costs over the same by hand. The steps and their
order are the same here, and as long as they last, what would change the state is refused as SQLAlchemy refuses it.
"""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.orm import session as orm_session

_IS_KNOWN = sa.__version__.startswith(("2.0.", "2.1."))
"""Whether the steps are those of this SQLAlchemy; where they may not be, it takes them itself."""

_State: Any = getattr(orm_session, "SessionTransactionState", None)
_Next: Any = getattr(orm_session, "_StateChangeStates", None)
_prepare: Any = unwrap(getattr(orm.SessionTransaction, "_prepare_impl", None))  # type: ignore[arg-type]
_close: Any = unwrap(orm.SessionTransaction.close)
_OF_FLUSH = orm.SessionTransactionOrigin.SUBTRANSACTION


def shorten(transaction: SessionTransaction) -> None:
    """Let a transaction that has just begun be committed by fewer calls."""
    if _IS_KNOWN:
        transaction.__class__ = _FlushTransaction if transaction.origin is _OF_FLUSH else _Transaction


class _Transaction(orm.SessionTransaction):
    """A session's own transaction, or one of its savepoints."""

    def commit(self, _to_root: bool = False) -> None:
        session = self.session
        if self._state is not _State.ACTIVE or self._next_state is not _Next.ANY or session.twophase:
            super().commit(_to_root)
            return
        try:
            self._current_fn, self._next_state = orm.SessionTransaction.commit, _Next.CHANGE_IN_PROGRESS
            _prepare(self)
            for _, transaction, ends_here, _ in set(self._connections.values()):
                if ends_here:
                    transaction.commit()
            self._state = _State.COMMITTED
            session.dispatch.after_commit(session)
            self._remove_snapshot()
            _close(self)
        finally:
            self._current_fn, self._next_state = None, _Next.ANY
        if _to_root and self._parent is not None:
            self._parent.commit(_to_root=True)


class _FlushTransaction(orm.SessionTransaction):
    """That of a flush, which has no connection of its own, and nothing to commit."""

    def commit(self, _to_root: bool = False) -> None:
        session = self.session
        if _to_root or session._transaction is not self or self._state is not _State.ACTIVE:
            super().commit(_to_root)
            return
        session._transaction = self._parent
        self._state = _State.CLOSED
        session.dispatch.after_transaction_end(session, self)
