"""Two-phase commit over several PostgreSQL databases: ``UOW_TWO_PHASE``.

Of the databases in which a unit has written, the first one decides. All others prepare their part; then the first one
commits as usual, and with that the unit is committed; then the others carry it out. So the decision has a record, the
status of the first one's transaction, and whoever finds a prepared part can ask: its name tells the database that
decides and the transaction's id there.

A unit that has written in one database only is committed as if there were no other.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, NamedTuple

import sqlalchemy as sa

from ._application_name import as_part, name_prefix
from ._commit import as_sqlalchemys, bind_name, commit_in_order, committed_in_part, send_commit
from ._drivers import run_after_prepare, run_alone, sqlstate
from ._outcome import DEADLINE_S, POLL_S, LostCommit, Mark, Outcome, own_connection
from ._state import Link, SessionState
from .exceptions import CommitOutcomeUnknownError, UnitOptionsError

_NO_SUCH_TRANSACTION = "42704"
_IN_THE_FUTURE = "22023"
"""What a standby that was promoted since says of a transaction that it has not got."""


class PreparedName(NamedTuple):
    """What a prepared part of a unit is called on its server.

    :ivar prefix: the app's, as in the names of its connections.
    :ivar decider: the bind whose commit decides.
    :ivar xid: the id of the transaction there.
    :ivar bind: the bind of this part.
    :ivar token: what makes it unlike all others.
    """

    prefix: str
    decider: str
    xid: str
    bind: str
    token: str

    def __str__(self) -> str:
        return f"{self.prefix}{self.decider}:{self.xid}:{self.bind}:{self.token}"

    @classmethod
    def read(cls, text: str) -> PreparedName | None:
        """The parts of a name, None if it is no unit's."""
        parts = text.split(":")
        if len(parts) != 6 or not parts[3].isdecimal():
            return None
        return cls(f"{parts[0]}:{parts[1]}:", *parts[2:])


def commit_by_two_phases(state: SessionState, links: list[Link]) -> None:
    """Commit several databases, all or none.

    :param links: as :func:`~flask_uow._commit.in_order` gives them.
    :raises UnitOptionsError: if one of them is not PostgreSQL.
    :raises sqlalchemy.exc.DBAPIError: if one refuses; then none is committed.
    :raises CommitOutcomeUnknownError: if nobody knows of the one that decides; then the others stay prepared.
    :raises PartialCommitError: if one cannot be reached to carry out what was decided; then it stays prepared.
    """
    marks = {link: _mark(link) for link in links}
    writers = [link for link in links if marks[link] is not None]
    if len(writers) < 2:
        commit_in_order(writers)
    else:
        decider, *others = writers
        known = {link: mark for link, mark in marks.items() if mark is not None}
        names = dict(_names(decider, known[decider].xid, others))
        _decide(state, decider, known, names)
        _carry_out(writers, names)
    for link in links:
        if marks[link] is None:
            with suppress(link.connection.dialect.loaded_dbapi.Error):
                send_commit(link)
            link.was_committed = True  # it had nothing to lose


def _mark(link: Link) -> Mark | None:
    if link.connection.dialect.name != "postgresql":
        unit = link.state.unit
        raise UnitOptionsError(
            f"UOW_TWO_PHASE cannot commit {bind_name(link)!r}, which is no PostgreSQL database.",
            unit.where if unit else None,
            "Write to it in a unit of its own.",
        )
    return Mark.of(link.connection) if link.was_begun else None


def _names(decider: Link, xid: str, others: list[Link]) -> Iterator[tuple[Link, PreparedName]]:
    prefix, by = name_prefix(decider.state.app.name), as_part(bind_name(decider))
    for link in others:
        yield link, PreparedName(prefix, by, xid, as_part(bind_name(link)), secrets.token_hex(4))


def _decide(state: SessionState, decider: Link, marks: dict[Link, Mark], names: dict[Link, PreparedName]) -> None:
    """Prepare all others, and commit the one that decides; if that fails, roll back what was prepared."""
    link, begun = decider, []
    try:
        for link, name in names.items():
            begun.append(link)
            _prepare(link, name)
        link = decider
        state.lost_commit = LostCommit({decider.connection.engine: marks[decider]})
        send_commit(decider)
    except BaseException as error:  # raised again, as it is or as SQLAlchemy's
        raised = as_sqlalchemys(link, error)
        if state.sent_commit and _is_in_doubt(state, raised):
            unknown = _unknown(decider, marks[decider].xid, names)
            if isinstance(error, Exception):
                raise unknown from raised
            error.add_note(str(unknown))  # an interrupt goes on as it is
            raise
        left = [names[link] for link in begun if not _conclude(link, names[link], to_undo=marks[link])]
        if left:
            raised.add_note(f"flask_uow: still prepared, and to be rolled back by hand: {', '.join(map(str, left))}")
        raise raised from (None if raised is error else error)


def _prepare(link: Link, name: PreparedName) -> None:
    with closing(link.dbapi_connection.cursor()) as cursor:
        cursor.execute(f"PREPARE TRANSACTION {_literal(name)}")
    link.was_begun = False  # the server has put it aside, and the connection is in none


def _is_in_doubt(state: SessionState, error: BaseException) -> bool:
    """Whether the one that decides may have committed: it has not said no, and nobody else can."""
    if isinstance(error, sa.exc.DBAPIError) and not error.connection_invalidated:
        return False
    return state.lost_commit is None or state.lost_commit.outcome is not Outcome.ABORTED


def _unknown(decider: Link, xid: str, names: dict[Link, PreparedName]) -> CommitOutcomeUnknownError:
    unit = decider.state.unit
    who = f"Unit of work {unit.label!r}" if unit else "session.commit()"
    return CommitOutcomeUnknownError(
        f"{who} may or may not have been committed: {bind_name(decider)!r}, which decides, was lost in its COMMIT. "
        f"Prepared and waiting: {', '.join(map(str, names.values()))}.",
        unit.where if unit else None,
        f"Ask it for pg_xact_status('{xid}'), and COMMIT PREPARED or ROLLBACK PREPARED the others; "
        "flask db-session-stats lists them and says which.",
        xid,
    )


def _carry_out(writers: list[Link], names: dict[Link, PreparedName]) -> None:
    for link, name in names.items():
        link.was_committed = _conclude(link, name)
    left = [link for link in names if not link.was_committed]
    if left:
        commands = "; ".join(f"COMMIT PREPARED {_literal(names[link])} in {bind_name(link)!r}" for link in left)
        raise committed_in_part(writers, unknown=left, fix=f"It was decided, and is still prepared: {commands}.")


def _conclude(link: Link, name: PreparedName, *, to_undo: Mark | None = None) -> bool:
    """Commit what was prepared, on its own connection or, where that is lost, on any other.

    :param to_undo: the mark of what is to be rolled back instead, and may not have been prepared.
    :return: whether it was done; a rollback of what was never prepared is.
    """
    dialect, engine = link.connection.dialect, link.connection.engine
    statement = f"{'ROLLBACK' if to_undo else 'COMMIT'} PREPARED {_literal(name)}"
    was_sent = is_running = False
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            if not was_sent and link.dbapi_connection is not None:
                run_after_prepare(dialect.driver, link.dbapi_connection, statement)
            else:
                with own_connection(engine) as connection:
                    is_running = to_undo is not None and _is_running(connection.dbapi_connection, to_undo)
                    run_alone(connection.dbapi_connection, statement)
        except (dialect.loaded_dbapi.Error, sa.exc.SQLAlchemyError) as error:
            if sqlstate(error) == _NO_SUCH_TRANSACTION and not is_running:
                return was_sent or to_undo is not None
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)
        else:
            return True
        was_sent = True


def _is_running(dbapi_connection: Any, mark: Mark) -> bool:
    """Whether a server that has lost its client may still be about to prepare what that has asked for."""
    try:
        status = run_alone(dbapi_connection, f"SELECT pg_xact_status('{mark.xid}')", is_question=True)
    except Exception as error:
        if sqlstate(error) == _IN_THE_FUTURE:
            return False
        raise
    return bool(status == "in progress")


def _literal(name: PreparedName) -> str:
    return "'" + str(name).replace("'", "''") + "'"
