"""What units cost where statements ride: the round trips of each, counted on the wire, and nothing lost by it."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import render_template_string
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_uow import current_unit, transactional
from tests.database.conftest import Bench, MakeBench
from tests.faults.proxy import Proxy
from tests.models import Item

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)

Body = Callable[[Bench], object]


def one_select(bench: Bench) -> None:
    with transactional(read_only=True):
        bench.session.scalars(sa.select(Item)).all()


def one_select_that_may_write(bench: Bench) -> None:
    with transactional():
        bench.session.scalars(sa.select(Item)).all()


def one_insert(bench: Bench) -> None:
    with transactional():
        bench.add("item")


def nested_inserts(bench: Bench) -> None:
    with transactional():
        bench.add("outer")
        for name in ("a", "b", "c"):
            with transactional():
                bench.add(name)


def nested_failure(bench: Bench) -> None:
    with transactional():
        bench.add("outer")
        with pytest.raises(ValueError, match="no"), transactional():
            bench.add("inner")
            raise ValueError("no")
        bench.add("later")


def nested_duplicate(bench: Bench) -> None:
    with transactional():
        bench.session.add(Item(id=1000, name="outer"))
        bench.session.flush()
        with pytest.raises(IntegrityError), transactional():
            bench.session.execute(sa.insert(Item).values(id=1000, name="inner"))
        bench.session.execute(sa.insert(Item).values(id=1001, name="later"))


def nested_selects(bench: Bench) -> None:
    with transactional():
        for _ in range(3):
            with transactional():
                bench.session.scalars(sa.select(Item)).all()
        bench.add("item")


def options(bench: Bench) -> None:
    with transactional(isolation="SERIALIZABLE", timeout=30):
        bench.add("item")


def options_and_then_none(bench: Bench) -> None:
    options(bench)
    with transactional():
        bench.add("next")


def rendering(bench: Bench) -> None:
    @transactional
    def write() -> list[Item]:
        items = list(bench.session.scalars(sa.select(Item).limit(10)))
        bench.add("new")
        return items

    items = write()
    shown = render_template_string("{% for item in items %}{{ item.name }} {% endfor %}", items=items)
    assert len(shown.split()) == 10


def empty(bench: Bench) -> None:
    with transactional(), transactional(), transactional(propagation="required"):
        pass
    with transactional(read_only=True, isolation="SERIALIZABLE", timeout=30):
        pass


def rolled_back(bench: Bench) -> None:
    with transactional():
        bench.add("item")
        current_unit.set_rollback_only()


def refused(bench: Bench) -> None:
    with pytest.raises(DBAPIError, match="nowhere"), transactional():
        bench.run_sql("SELECT * FROM nowhere")


def two_selects(bench: Bench) -> None:
    with transactional(read_only=True):
        bench.session.scalars(sa.select(Item)).all()
        bench.session.scalar(sa.select(sa.func.count(Item.id)))


def unknown_function(bench: Bench) -> None:
    with transactional(read_only=True):
        bench.session.scalar(sa.select(sa.func.set_config("app.tenant", "7", True)))
        assert bench.session.scalar(sa.text("SELECT current_setting('app.tenant')")) == "7"


def snapshot(bench: Bench) -> None:
    with transactional(read_only=True, isolation="REPEATABLE READ"):
        bench.session.scalars(sa.select(Item)).all()


def snapshot_with_a_deadline(bench: Bench) -> None:
    with transactional(read_only=True, timeout=30):
        bench.session.scalars(sa.select(Item)).all()


def read_only_inside(bench: Bench) -> None:
    with transactional():
        bench.add("item")
        with transactional(read_only=True):
            bench.session.scalars(sa.select(Item)).all()


def confirmed(bench: Bench) -> None:
    with transactional(confirm_commit=True):
        bench.add("item")


def read_before(bench: Bench) -> None:
    bench.run_sql("SELECT 1")
    with transactional():
        bench.add("item")


def independent(bench: Bench) -> None:
    with transactional():
        bench.add("outer")
        with transactional(propagation="requires_new"):
            bench.add("inner")


def timeout_inside(bench: Bench) -> None:
    with transactional():
        bench.add("outer")
        with transactional(timeout=30):
            bench.add("inner")
        bench.add("later")


@pytest.mark.parametrize(
    ("body", "trips"),
    [
        (one_select, 1),
        (one_select_that_may_write, 2),
        (one_insert, 2),
        (nested_inserts, 5),
        (nested_failure, 4),
        (nested_duplicate, 4),
        (nested_selects, 5),
        (options, 2),
        (options_and_then_none, 4),
        (rendering, 3),
        (empty, 0),
        (rolled_back, 2),
        (refused, 2),
        (two_selects, 2),
        (unknown_function, 3),
        (snapshot, 2),
        (snapshot_with_a_deadline, 2),
        (read_only_inside, 3),
        (confirmed, 3),
        (read_before, 3),
        (independent, 4),
        (timeout_inside, 4),
    ],
)
def test_trips(make_proxied_bench: MakeBench, proxy: Proxy, body: Body, trips: int) -> None:
    """From the second execution of a text on, with the liveness check, on a connection that is pooled."""
    bench = make_proxied_bench(UOW_RIDE=True)
    with bench.app.app_context(), transactional():
        bench.add(*(f"item-{number}" for number in range(20)))
    for number in range(7):  # psycopg 3 prepares what it meets for the sixth time
        with bench.app.test_request_context("/"):
            body(bench)
        sent = proxy.requests()
        if number:
            assert len(sent) == trips, sent
        bench.database.execute("DELETE FROM item WHERE name NOT LIKE 'item-%'")
