"""A program that forks in the middle of transactions: ``python -m tests.concurrency.forking PLACE URL``.

For each thing that a child may do it opens a transaction, forks, waits for the child, and commits. It prints the
children's exit statuses as JSON; what the parent has committed is in the database.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, transactional
from flask_uow.exceptions import UnitOfWorkError
from tests.models import Item

CHILD_FAILED = 99
BACKEND = sa.text("SELECT pg_backend_pid()")

uow = UnitOfWork()
parents_backends: set[int] = set()
ChildsPart = Callable[[Session], object]


def make_app(url: str) -> Flask:
    """Make the app; the tables are there already."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    uow.init_app(app)
    return app


def fork(child: Callable[[], object]) -> int:
    """Run ``child`` in a forked process, which leaves as a program leaves, and return its exit status."""
    pid = os.fork()
    if pid == 0:
        run_child(child)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_child(child: Callable[[], object]) -> NoReturn:
    """End the process: at once when ``child`` has done its part, and as a program ends when it raises SystemExit."""
    try:
        child()
    except Exception:  # noqa: BLE001 - whatever it is, the parent is to hear of it
        traceback.print_exc()
        os._exit(CHILD_FAILED)
    os._exit(0)


# ---- what a child may do while its parent's transaction is open; ``session`` is the parent's


def use_own_session(session: Session) -> None:
    """Work in a session of its own, with a unit, on a backend of its own."""
    assert uow.session() is not session
    with transactional():
        uow.session.add(Item(name="child"))
        assert uow.session.scalar(BACKEND) not in parents_backends


def exit_at_once(session: Session) -> None:
    """Leave through the parent's blocks, and let the interpreter finalize."""
    sys.exit(0)


def remove(session: Session) -> None:
    """Remove the registry's session."""
    uow.session.remove()


def close(session: Session) -> None:
    """Close the parent's session: refused inside a unit, harmless outside."""
    with contextlib.suppress(UnitOfWorkError):
        session.close()


def roll_back(session: Session) -> None:
    """Roll the parent's session back."""
    with contextlib.suppress(UnitOfWorkError):
        session.rollback()


def invalidate(session: Session) -> None:
    """Invalidate the parent's session, which would close its socket."""
    with contextlib.suppress(UnitOfWorkError):
        session.invalidate()


def commit(session: Session) -> None:
    """Commit the parent's session: that is an error which says what to do, or the guard's in a unit."""
    with pytest.raises(UnitOfWorkError, match=r"parent process was used after a fork|UOW101"):
        session.commit()


def execute(session: Session) -> None:
    """Use the parent's session: that is an error which says what to do."""
    with pytest.raises(
        UnitOfWorkError, match=r"(?s)parent process was used after a fork.*Use uow.session in the child"
    ):
        session.execute(sa.text("SELECT 1"))


def collect(session: Session) -> None:
    """Drop every reference and collect the garbage."""
    del session
    gc.collect()


def dispose(session: Session) -> None:
    """Dispose of the engine, as advice for forking servers has it."""
    uow.engine.dispose()


PARTS: dict[str, ChildsPart] = {
    part.__name__: part
    for part in (use_own_session, exit_at_once, remove, close, roll_back, invalidate, commit, execute, collect, dispose)
}


# ---- where the parent is when it forks


def in_a_unit(name: str, part: ChildsPart) -> int:
    """Fork inside a unit."""
    with transactional() as unit:
        parents_backends.add(unit.session.scalar(BACKEND))
        unit.session.add(Item(name=name))
        unit.session.flush()
        return fork(lambda: part(unit.session))


def in_a_savepoint(name: str, part: ChildsPart) -> int:
    """Fork inside two units."""
    with transactional():
        return in_a_unit(name, part)


def in_a_block(name: str, part: ChildsPart) -> int:
    """Fork without a unit, in a block of the session's own."""
    with uow.session() as session:
        parents_backends.add(session.scalar(BACKEND))
        session.add(Item(name=name))
        session.flush()
        status = fork(lambda: part(session))
        session.commit()
    return status


def in_a_unit_by_multiprocessing(name: str, part: ChildsPart) -> int:
    """Let ``multiprocessing`` fork inside a unit; its child leaves past the finalizers."""
    with transactional() as unit:
        parents_backends.add(unit.session.scalar(BACKEND))
        unit.session.add(Item(name=name))
        unit.session.flush()
        process = multiprocessing.get_context("fork").Process(target=part, args=(unit.session,))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def with_a_connection(name: str, part: ChildsPart) -> int:
    """Fork with a connection of the engine checked out by hand, and a session that has nothing to do with it."""
    with uow.engine.begin() as connection:
        parents_backends.add(connection.scalar(BACKEND))
        connection.execute(sa.insert(Item).values(name=name))
        session = uow.session()
        return fork(lambda: part(session))


PLACES: dict[str, Callable[[str, ChildsPart], int]] = {
    place.__name__: place
    for place in (in_a_unit, in_a_unit_by_multiprocessing, in_a_savepoint, in_a_block, with_a_connection)
}


def main(place: str, url: str) -> None:
    """Let a child do each of its parts."""
    app = make_app(url)
    statuses = {}
    for name, part in PARTS.items():
        if place == "with_a_connection" and part in (commit, execute):
            continue  # the session is the child's own then
        with app.app_context():
            statuses[name] = PLACES[place](name, part)
    assert len(parents_backends) == 1, "A child has cost its parent the connection."
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    main(*sys.argv[1:])
