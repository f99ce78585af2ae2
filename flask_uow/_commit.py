"""How COMMIT is sent: to each database of a transaction in a known order, so that it can be said what is in.

One transaction of a session may span several databases. Each commits for itself, in the order in which the app's
configuration names them. If one fails after another has committed, the unit was committed in part, which is an error
of its own that names them. ``UOW_TWO_PHASE`` closes that gap for PostgreSQL, see :mod:`flask_uow._two_phase`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ._outcome import LostCommit, Mark, Outcome
from ._state import STATE_KEY, AppState, Link, SessionState
from .exceptions import PartialCommitError

COMMIT = "_uow_commit"
"""Where a dialect that is watched has its own way to commit."""


def learn_marks(state: SessionState) -> None:
    """Learn by what the servers will know what is about to be committed, if the unit wants to know its outcome.

    What only read in a unit that might have written is not asked for, and stays in doubt; so does what has written
    nothing in ``SERIALIZABLE``, for the server knows nothing of it later.
    """
    assert state.unit is not None
    if not state.wrote:
        return
    links = [link for link in state.links if link.connection.dialect.name == "postgresql"]
    marks = {link.connection.engine: Mark.of(link.connection) for link in links}
    if state.unit.is_serializable:
        marks = {engine: mark for engine, mark in marks.items() if mark is not None}
    state.lost_commit = LostCommit(marks)


def send_commit(link: Link) -> None:
    """Commit on one connection; where the answer is lost, ask what became of it if the unit wants to know.

    :raises Exception: the driver's, if the server has not committed or may not have.
    """
    state, connection = link.state, link.connection
    dialect: Any = connection.dialect
    commit: Callable[[Any], None] = dialect._uow_commit
    state.sent_commit = True
    try:
        if state.work is None:
            commit(connection.connection)
        else:
            run_locked(link, commit, connection.connection)
    except BaseException as error:
        if isinstance(error, dialect.loaded_dbapi.Error) and not is_lost(link, error):
            raise  # the server has refused
        if not is_lost(link, error) or not state.survives_lost_commit(link.connection.engine):
            _note_commit(link, is_known=False)
            raise
        # The server has committed, and SQLAlchemy may go on as if it had said so.
        link.connection.connection.invalidate(error)
    link.was_committed = True
    _note_commit(link)


def _note_commit(link: Link, *, is_known: bool = True) -> None:
    if link.state.readers is not None and link.state.wrote:
        link.state.readers.note_commit(link, is_known=is_known)


def run_locked(link: Link, function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Run what speaks to the server while no other thread can take the connection back.

    :raises RuleViolationError: if the connection was taken back before.
    """
    assert link.state.work is not None

    def run() -> None:
        if link.status() is None:
            raise link.state.use_after_end()
        function(*arguments, **options)

    link.state.work.run(run)


def is_lost(link: Link, error: BaseException) -> bool:
    """Whether an error of the driver says that the connection is gone."""
    dialect = link.connection.dialect
    return isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(error, link.dbapi_connection, None)


# ---- several databases


def commit_in_order(links: list[Link]) -> None:
    """Commit each of several databases; those that fail after another one has committed are named.

    :param links: as :func:`in_order` gives them.
    :raises sqlalchemy.exc.DBAPIError: if the first one fails; then none is committed.
    :raises PartialCommitError: if a later one does.
    """
    for link in links:
        try:
            send_commit(link)
        except BaseException as error:
            raised = as_sqlalchemys(link, error)
            if not any(each.was_committed for each in links):
                raise raised from error
            partial = committed_in_part(links, unknown=[link] if _is_in_doubt(link, raised) else [])
            if isinstance(error, Exception):
                raise partial from raised
            error.add_note(partial.what)
            raise


def in_order(state: SessionState) -> list[Link]:
    """The connections that a session commits itself: those of the app's binds in their order, then all others."""
    places = {id(engine): place for place, engine in enumerate(_app_state(state).engines.values())}
    links = [link for link in state.links if not link.is_lent]
    return sorted(links, key=lambda link: places.get(id(link.connection.engine), len(places)))


def bind_name(link: Link) -> str:
    """The bind's name, or that of the database where another library owns the engine."""
    engine = link.connection.engine
    names = (name for name, each in _app_state(link.state).engines.items() if each is engine)
    return next(names, engine.url.database or engine.name)


def as_sqlalchemys(link: Link, error: BaseException) -> BaseException:
    """An error of the driver as SQLAlchemy would raise it, had it sent the statement itself on this connection."""
    dialect = link.connection.dialect
    if not isinstance(error, dialect.loaded_dbapi.Error):
        return error
    was_lost = is_lost(link, error)
    if was_lost:
        link.connection.invalidate(error)
    return sa.exc.DBAPIError.instance(
        None, None, error, dialect.loaded_dbapi.Error, connection_invalidated=was_lost, dialect=dialect
    )


def committed_in_part(links: list[Link], *, unknown: list[Link], fix: str | None = None) -> PartialCommitError:
    """The error that says which databases have committed.

    :param links: all of them.
    :param unknown: those of which nobody knows.
    """
    committed = tuple(bind_name(link) for link in links if link.was_committed)
    doubtful = tuple(bind_name(link) for link in unknown)
    lost = tuple(bind_name(link) for link in links if not link.was_committed and link not in unknown)
    unit = links[0].state.unit
    parts = [f"in: {', '.join(committed)}"]
    parts += [f"out: {', '.join(lost)}"] if lost else []
    parts += [f"not known: {', '.join(doubtful)}"] if doubtful else []
    return PartialCommitError(
        f"{f'Unit of work {unit.label!r}' if unit else 'session.commit()'} was committed in part ({'; '.join(parts)}).",
        unit.where if unit else None,
        fix or "Mend the rest by hand. With UOW_TWO_PHASE = True, PostgreSQL databases commit all or none.",
        committed,
        lost,
        doubtful,
    )


def _is_in_doubt(link: Link, error: BaseException) -> bool:
    """Whether the server may have committed: it did not say no, and did not answer when it was asked."""
    if not isinstance(error, sa.exc.DBAPIError):
        return True  # an interrupt, before which nobody was asked
    if not error.connection_invalidated:
        return False
    lost = link.state.lost_commit
    return lost is None or lost.outcome is Outcome.UNKNOWN


def _app_state(state: SessionState) -> AppState:
    app_state: AppState = state.app.extensions[STATE_KEY]
    return app_state
