"""What is served: one set of views, of which each stack makes requests in its own way.

A view's body gets the session, and a function that runs another function in a savepoint.
"""

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from flask import render_template_string
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from tests.models import Base, Item

SEEDS = 10
ISOLATION = "SERIALIZABLE"
TIMEOUT_S = 5
RENDERING_S = 0.020
ROWS = "{% for item in items %}<li>{{ item.id }} {{ item.name }}{{ pause() }}</li>{% endfor %}"

AnySession = Session | scoped_session[Any]
Work = Callable[[], object]
Nest = Callable[[AnySession, Work], object]
Body = Callable[[AnySession, Nest], Any]

_numbers = itertools.count()


@dataclass(frozen=True)
class View:
    """A view.

    :param title: what it does.
    :param body: what it does in its transaction; the answer is made of what it returns.
    :param is_read_only: whether its stack may be told so.
    :param is_strict: whether its transaction is to be SERIALIZABLE and its statements are to end in time.
    :param render: makes the answer, when the transaction has been committed.
    :param after: the view to request just before, on the same connection.
    """

    title: str
    body: Body
    is_read_only: bool = False
    is_strict: bool = False
    render: Callable[[Any], Any] | None = None
    after: str | None = None


def prepare(engine: sa.Engine) -> None:
    """Make the table, and the rows that are read, where there are none."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        if session.scalar(sa.select(sa.func.count()).select_from(Item)) == 0:
            session.add_all([Item(name=f"seed {number}") for number in range(SEEDS)])


def _insert(session: AnySession) -> dict[str, int]:
    item = Item(name=f"item {next(_numbers)}")
    session.add(item)
    session.flush()
    return {"id": item.id}


def _select(session: AnySession) -> dict[str, str]:
    return {"name": session.scalars(sa.select(Item).where(Item.name == "seed 0")).one().name}


def _select_one(session: AnySession, _: Nest) -> dict[str, str]:
    return _select(session)


def _insert_one(session: AnySession, _: Nest) -> dict[str, int]:
    return _insert(session)


def _insert_nested(session: AnySession, nest: Nest) -> dict[str, int]:
    answer = _insert(session)
    for _ in range(3):
        nest(session, lambda: _insert(session))
    return answer


def _insert_around_exception(session: AnySession, nest: Nest) -> dict[str, int]:
    def fail() -> None:
        _insert(session)
        raise ValueError("a mistake of the view")

    _insert(session)
    with suppress(ValueError):
        nest(session, fail)
    return _insert(session)


def _insert_around_duplicate(session: AnySession, nest: Nest) -> dict[str, int]:
    def repeat() -> None:
        session.add(Item(name="seed 0"))
        session.flush()

    _insert(session)
    with suppress(IntegrityError):
        nest(session, repeat)
    return _insert(session)


def _select_nested(session: AnySession, nest: Nest) -> dict[str, int]:
    for _ in range(3):
        nest(session, lambda: _select(session))
    return _insert(session)


def _select_ten(session: AnySession, _: Nest) -> list[Item]:
    items = list(session.scalars(sa.select(Item).order_by(Item.id).limit(SEEDS)))
    _insert(session)
    return items


def _render(items: list[Item]) -> str:
    return render_template_string(ROWS, items=items, pause=str)


def _render_slowly(items: list[Item]) -> str:
    def pause() -> str:
        time.sleep(RENDERING_S / SEEDS)
        return ""

    return render_template_string(ROWS, items=items, pause=pause)


VIEWS = {
    "read": View("one SELECT, read-only", _select_one, is_read_only=True),
    "select": View("one SELECT in a unit that may write", _select_one),
    "write": View("one INSERT", _insert_one),
    "nested": View("one INSERT, three nested units with one INSERT each", _insert_nested),
    "exception": View("INSERT, nested unit that raises, INSERT", _insert_around_exception),
    "duplicate": View("INSERT, nested unit with a duplicate key, INSERT", _insert_around_duplicate),
    "reads-nested": View("three nested units with one SELECT each, INSERT", _select_nested),
    "render": View("SELECT of ten, INSERT, commit, a template renders the ten", _select_ten, render=_render),
    "render-slowly": View("the same, and the template takes 20 ms", _select_ten, render=_render_slowly),
    "strict": View("SERIALIZABLE and a statement timeout on one INSERT", _insert_one, is_strict=True),
    "after-strict": View("the same connection's next plain INSERT", _insert_one, after="strict"),
}
"""By the name of its path. Strict ones come last: what they leave on a connection costs some drivers trips later."""
