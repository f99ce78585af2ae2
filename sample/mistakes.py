"""The mistakes that SIP-99A and SIP-99B describe, each behind a button, each with the rule that catches it.

A mistake is a function that does the wrong thing on purpose. It runs in an app context of its own, so that what is
only found when a context ends is found before the page is written. None of them leaves anything in the database.
"""

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from time import sleep
from typing import Any

from flask import Blueprint, Flask, abort, current_app
from flask.typing import ResponseReturnValue
from sqlalchemy import func, select, text

from flask_uow import signals, transactional
from flask_uow.exceptions import RuleViolationError, RuleWarning
from sample.bank.answers import answer
from sample.bank.db import uow
from sample.bank.models import Audit, Customer

blueprint = Blueprint("mistakes", __name__, url_prefix="/mistakes")


@dataclass(frozen=True)
class Mistake:
    """A mistake as a page shows it."""

    slug: str
    code: str
    origin: str
    lesson: str
    line: str
    source: str


@dataclass(frozen=True)
class Caught:
    """What the rule said: as an error, or as a warning."""

    code: str
    what: str
    where: str | None
    fix: str | None
    raised: bool


MISTAKES: dict[str, tuple[Mistake, Callable[[], None]]] = {}

_caught: ContextVar[list[RuleViolationError | RuleWarning] | None] = ContextVar("_caught", default=None)


@blueprint.get("/")
def index() -> ResponseReturnValue:
    """List the mistakes."""
    return answer("mistakes.html", mistakes=[mistake for mistake, _ in MISTAKES.values()])


@blueprint.post("/<slug>")
def make(slug: str) -> ResponseReturnValue:
    """Make one mistake and show what caught it."""
    if slug not in MISTAKES:
        abort(404)
    mistake, function = MISTAKES[slug]
    return answer("mistake.html", mistake=mistake, caught=_catch(function))


def _catch(function: Callable[[], None]) -> Caught | None:
    seen: list[RuleViolationError | RuleWarning] = []
    token = _caught.set(seen)
    try:
        with current_app.app_context():
            function()
    except RuleViolationError as error:
        return Caught(error.code, error.what, error.where, error.fix, raised=True)
    finally:
        _caught.reset(token)
    return next((Caught(found.code, found.what, found.where, found.fix, raised=False) for found in seen), None)


@signals.rule_violated.connect
def _note(_app: Flask, violation: RuleViolationError | RuleWarning, **_: Any) -> None:
    seen = _caught.get()
    if seen is not None:
        seen.append(violation)


def mistake(code: str, origin: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Put a function on the list: which rule catches it, and who described it first."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        lines, number = inspect.getsourcelines(function)
        source = "".join(line for line in lines[1:] if not line.strip().startswith('"""'))
        slug = function.__name__.replace("_", "-")
        lesson = inspect.getdoc(function) or ""
        MISTAKES[slug] = Mistake(slug, code, origin, lesson, f"sample/mistakes.py:{number + 1}", source), function
        return function

    return register


# UOW1xx: mistakes inside and around a unit of work


@mistake("UOW101", "SIP-99B")
@transactional
def commit_by_hand() -> None:
    """A function commits in the middle of its caller's unit: the second half may still fail, the first is written."""
    uow.session.add(Audit(action="mistake", detail="half of it"))
    uow.session.commit()
    uow.session.add(Audit(action="mistake", detail="the other half"))


@mistake("UOW101", "SIP-99B")
@transactional
def begin_by_hand() -> None:
    """A function opens a transaction of its own where one is open already."""
    with uow.session.begin():
        uow.session.add(Audit(action="mistake", detail="begun by hand"))


@mistake("UOW101", "SIP-99B")
@transactional
def commit_as_text() -> None:
    """A statement ends the transaction behind the session's back."""
    uow.session.add(Audit(action="mistake", detail="written"))
    uow.session.execute(text("COMMIT"))


@mistake("UOW102", "SIP-99B")
@transactional
def rollback_by_hand() -> None:
    """A function rolls back what its caller wrote; the caller does not know, and goes on."""
    uow.session.add(Audit(action="mistake", detail="lost"))
    uow.session.rollback()


@mistake("UOW102", "SIP-99B")
@transactional
def close_by_hand() -> None:
    """A function tidies up a session that is not its own."""
    uow.session.add(Audit(action="mistake", detail="lost"))
    uow.session.close()


@mistake("UOW103", "SIP-99A")
def forget_to_commit() -> None:
    """A function writes outside a unit, and nobody commits: the request looks fine, the row is gone."""
    uow.session.add(Audit(action="mistake", detail="never written"))
    uow.session.flush()


@mistake("UOW104", "SIP-99A")
def commit_nothing() -> None:
    """A function commits after it has only read, to be on the safe side: a round trip for nothing."""
    uow.session.scalars(select(Customer)).first()
    uow.session.commit()


@mistake("UOW105", "SIP-99A")
@transactional
def merge_what_is_there() -> None:
    """A function merges an object that it has loaded itself; the session knows it already."""
    customer = uow.session.scalars(select(Customer).limit(1)).one()
    uow.session.merge(customer)


@mistake("UOW106", "SIP-99A")
def commit_and_delete() -> None:
    """A function commits a row to get its key, and deletes it later: other requests have seen what never was."""
    draft = Audit(action="mistake", detail="a draft")
    with transactional():
        uow.session.add(draft)
    with transactional():
        uow.session.delete(draft)


@mistake("UOW107", "best practices")
def read_on_after_the_unit() -> None:
    """A page loads what it shows after its unit has ended: another transaction, and maybe another truth."""
    with transactional():
        customer = uow.session.scalars(select(Customer).limit(1)).one()
    uow.session.refresh(customer)


@mistake("UOW108", "best practices")
@transactional
def take_long() -> None:
    """A unit waits for something that is no work of the database."""
    sleep(current_app.config["UOW_MAX_UNIT_SECONDS"] + 0.1)


@mistake("UOW109", "best practices")
@transactional
def idle_in_a_transaction() -> None:
    """A function asks another service in the middle of its unit, and the server waits with it, locks and all."""
    uow.session.scalars(select(Customer)).first()
    sleep(current_app.config["UOW_MAX_IDLE_SECONDS"] + 0.1)
    uow.session.scalars(select(Customer)).first()


@mistake("UOW110", "pools")
@transactional
def take_a_second_connection() -> None:
    """A unit that holds a connection asks the pool for another: when all threads do, each waits for the others."""
    uow.session.scalars(select(Customer)).first()
    with uow.engine.connect() as connection:
        connection.scalar(select(func.count(Customer.id)))


@mistake("UOW111", "reads")
@transactional(read_only=True)
def write_in_a_read_only_unit() -> None:
    """A function that says it only reads writes all the same."""
    uow.session.add(Audit(action="mistake", detail="not written"))
    uow.session.flush()


# UOW2xx: mistakes with sessions


@mistake("UOW201", "scoped sessions")
def use_the_session_in_a_plain_thread() -> None:
    """A thread without an app context uses the session: nobody would give its connection back."""

    def count_customers() -> int | None:
        return uow.session.scalar(select(func.count(Customer.id)))

    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(count_customers).result()


@mistake("UOW202", "leaks")
def keep_a_session() -> None:
    """A function keeps the session of a context that has ended, and goes on: nobody gives its connection back."""
    with current_app.app_context():
        session = uow.session()
    session.scalars(select(Customer)).first()


@mistake("UOW203", "scoped sessions")
def interleave_two_tasks() -> None:
    """Two tasks of an async view begin a unit each, in one session: each would commit what is the other's."""

    async def read_a_customer() -> None:
        with transactional():
            uow.session.scalars(select(Customer)).first()
            await asyncio.sleep(0)

    async def view() -> None:
        await asyncio.gather(read_a_customer(), read_a_customer())

    asyncio.run(view())
