"""A session's transactions take SQLAlchemy's steps: whatever a listener does in one, comes out as it does there."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from flask_uow._session_transactions import shorten
from tests.models import Base, Item

FLUSHES = ("before_flush", "after_flush", "after_flush_postexec")
COMMITS = ("before_commit", "after_commit", "after_rollback", "after_soft_rollback")
TRANSACTIONS = ("after_transaction_create", "after_begin", "after_transaction_end")

PLACES = (1, 2, 3, 5, 8, 13, 21, 34)
OF_THIS_RUN = re.compile(r"method '_?\w+\(\)' (?=is already in progress|was running)| at 0x\w+")


def fail(session: Session) -> None:
    raise ZeroDivisionError


ACTIONS: dict[str, Callable[[Session], object]] = {
    "commit": Session.commit,
    "rollback": Session.rollback,
    "close": Session.close,
    "invalidate": Session.invalidate,
    "prepare": Session.prepare,
    "flush": Session.flush,
    "expunge": Session.expunge_all,
    "savepoint left open": Session.begin_nested,
    "savepoint": lambda session: session.begin_nested().commit(),
    "savepoint undone": lambda session: session.begin_nested().rollback(),
    "begin": Session.begin,
    "connect": Session.connection,
    "read": lambda session: session.scalars(sa.select(Item.name)).all(),
    "add": lambda session: session.add(Item(name="added")),
    "add and flush": lambda session: add_by_name(session, "added"),
    "add twice": lambda session: session.add_all([Item(name="added"), Item(name="added")]),
    "end the transaction": lambda session: of(session).rollback(),
    "close the transaction": lambda session: of(session).close(),
    "commit the transaction": lambda session: of(session).commit(),
    "fail": fail,
}


def of(session: Session) -> SessionTransaction:
    transaction = session.get_nested_transaction() or session.get_transaction()
    assert transaction is not None
    return transaction


def with_savepoints(url: str) -> sa.Engine:
    """An engine on which SQLite's transactions begin where SQLAlchemy says so, and keep constraints until COMMIT."""
    engine = sa.create_engine(url)

    @event.listens_for(engine, "connect")
    def take_over(dbapi_connection: Any, record: object) -> None:
        dbapi_connection.isolation_level = None
        dbapi_connection.execute("PRAGMA foreign_keys = ON")
        dbapi_connection.execute("PRAGMA synchronous = OFF")

    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def outcome(act: Callable[[Session], object], session: Session) -> str:
    """What became of it; which of SQLAlchemy's private methods was in progress is not told."""
    try:
        act(session)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the same on both sides
        return f"{type(error).__name__}: {OF_THIS_RUN.sub('', str(error))}"
    return "done"


def states(session: Session) -> list[str]:
    """Those of the rows that were ever added, and of its transactions, the innermost first."""
    found, transaction = [row_state(item) for item in session.info["added"]], session._transaction
    while transaction is not None:
        found.append(f"{transaction.origin.name} {transaction._state.name}")
        transaction = transaction._parent
    return found


def new_item(session: Session, name: str) -> Item:
    item = Item(name=name)
    session.info["added"].append(item)
    return item


def row_state(item: Item) -> str:
    row = sa.inspect(item)
    kinds = ("transient", "pending", "persistent", "deleted", "detached")
    return f"{next(kind for kind in kinds if getattr(row, kind))} {sorted(row.expired_attributes)}"


def add_by_name(session: Session, name: str) -> None:
    session.add(new_item(session, name))
    session.flush()


def in_savepoint(session: Session, name: str) -> None:
    with session.begin_nested():
        session.add(new_item(session, name))


def refer_to_nothing(session: Session) -> None:
    session.execute(sa.text("INSERT INTO reference (item) VALUES (4711)"))


PROGRAM: tuple[Callable[[Session], object], ...] = (
    lambda session: add_by_name(session, "flushed"),
    lambda session: in_savepoint(session, "in a savepoint"),
    lambda session: session.add(new_item(session, "left to the commit")),
    Session.commit,
    lambda session: add_by_name(session, "flushed"),  # is there already
    Session.commit,
    Session.rollback,
    refer_to_nothing,
    Session.commit,  # is refused by a constraint that waits for it
    Session.commit,
    Session.rollback,
    lambda session: in_savepoint(session, "in a savepoint of what is undone"),
    Session.rollback,
    lambda session: in_savepoint(session, "flushed"),  # is there already
    lambda session: add_by_name(session, "last"),
    Session.commit,
    Session.close,
)


class Run:
    """The program, run while a listener acts at one of the events.

    :param nth: at which of them; if even, objects expire with a COMMIT.
    :ivar seen: all that a user could see.
    """

    def __init__(self, database: Path, name: str, action: str, *, nth: int, is_shortened: bool) -> None:
        self.seen: list[object] = []
        self.left = nth
        self._name, self._action = name, ACTIONS[action]
        engine = with_savepoints(f"sqlite:///{database}")
        session = Session(engine, expire_on_commit=nth % 2 == 0, info={"added": []})
        if is_shortened:
            event.listen(session, "after_transaction_create", lambda session, transaction: shorten(transaction))
        for what in (*FLUSHES, *COMMITS, *TRANSACTIONS):
            event.listen(session, what, partial(self._note, what))
        for step in PROGRAM:
            self.seen += outcome(step, session), states(session)
        self.seen.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        session.close()
        with engine.connect() as other:
            self.seen.append(other.scalars(sa.select(Item.name).order_by(Item.id)).all())
        engine.dispose()

    def _note(self, what: str, session: Session, *_: object) -> None:
        self.seen += what, states(session)
        if what == self._name:
            self.left -= 1
            if self.left == 0:
                self._act(session)

    def _act(self, session: Session) -> None:
        if self._action is fail:
            fail(session)
        self.seen += outcome(self._action, session), states(session)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transactions") / "empty.sqlite"
    engine = sa.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine, [Item.__table__])  # type: ignore[list-item]
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE reference (item INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    engine.dispose()
    return path


@pytest.mark.parametrize("name", [*FLUSHES, *COMMITS, *TRANSACTIONS])
@pytest.mark.parametrize("action", ACTIONS)
def test_listeners_see_what_sqlalchemy_shows(empty_database: Path, tmp_path: Path, name: str, action: str) -> None:
    """Everywhere in a program that flushes, nests, fails and commits."""
    for nth in PLACES:
        ours, theirs = (
            Run(Path(copy(empty_database, tmp_path / f"{nth} {it}.sqlite")), name, action, nth=nth, is_shortened=it)
            for it in (True, False)
        )
        assert ours.seen == theirs.seen, f"at the {nth}. {name}"
        if ours.left > 0:
            break
    assert nth > 2
    assert ours.left > 0
