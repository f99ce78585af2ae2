"""What units cost where statements ride: the round trips of each, counted on the wire, and nothing lost by it."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask import render_template_string
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_uow import current_unit, transactional
from flask_uow.exceptions import RuleViolationError, UnitFailedError
from tests.database.conftest import Bench, MakeBench
from tests.faults.proxy import Proxy
from tests.models import Item

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)

Body = Callable[[Bench], object]


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A bench on which statements ride, in a run without as well."""
    return make_bench(UOW_RIDE=True)


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


TRIPS: list[tuple[Body, int]] = [
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
]
"""What is told to the server, and how many round trips it takes."""


def assert_trips(bench: Bench, proxy: Proxy, body: Body, trips: int) -> None:
    """Compare the round trips of each time but the first."""
    with bench.app.app_context(), transactional():
        bench.add(*(f"item-{number}" for number in range(20)))
    for number in range(7):  # psycopg 3 prepares what it meets for the sixth time
        with bench.app.test_request_context("/"):
            body(bench)
        sent = proxy.requests()
        if number:
            assert len(sent) == trips, sent
        bench.database.execute("DELETE FROM item WHERE name NOT LIKE 'item-%'")


@pytest.mark.parametrize(("body", "trips"), TRIPS)
def test_trips(make_proxied_bench: MakeBench, proxy: Proxy, body: Body, trips: int) -> None:
    """From the second execution of a text on, with the liveness check, on a connection that is pooled."""
    assert_trips(make_proxied_bench(UOW_RIDE=True), proxy, body, trips)


# ---- the label


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("POST /accounts/<int:id>", "POST /accounts/<int:id>"),
        ("it's 100 %; \\ naïve\n", "it?s 100 ?? ? na?ve?"),
        ("x" * 100, "x" * 100),
    ],
)
def test_the_server_knows_the_unit(bench: Bench, label: str, shown: str) -> None:
    """While a unit is in a transaction its session is called after it, in 63 bytes; the worker's name stays before."""
    with bench.app.app_context():
        with transactional(label=label):
            bench.add("item")
            (inside,) = bench.database.sessions()
        (after,) = bench.database.sessions()

    assert after.application_name.startswith("flask_uow:tests.models:")
    assert inside.application_name == f"{after.application_name}:{shown}"[:63]
    assert bench.committed() == ["item"]


def test_the_server_knows_the_outermost_unit(bench: Bench) -> None:
    """What is inside it is the same work; one that is rolled back takes no name with it."""
    with bench.app.app_context(), transactional(label="outer"):
        with pytest.raises(ValueError, match="no"), transactional(label="inner"):
            bench.add("item")
            raise ValueError("no")
        bench.add("later")
        (session,) = bench.database.sessions()

    assert session.application_name.endswith(":outer")


@pytest.mark.parametrize(
    "config",
    [
        {"UOW_LABEL_SERVER": False},
        {"SQLALCHEMY_ENGINE_OPTIONS": {"connect_args": {"application_name": "the app's own"}}},
    ],
)
def test_a_name_that_stays(make_bench: MakeBench, config: dict[str, object]) -> None:
    """Where it is not wanted, and where the app has given its connections a name."""
    bench = make_bench(UOW_RIDE=True, **config)
    with bench.app.app_context(), transactional():
        bench.add("item")
        (inside,) = bench.database.sessions()
    (after,) = bench.database.sessions()

    assert inside.application_name == after.application_name


def test_what_was_to_go_along_ends_with_its_unit(bench: Bench) -> None:
    """A unit whose only statement was refused before it was sent leaves nothing to the next one."""
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            bench.run_sql("DELETE FROM item")
        with transactional(label="next"):
            bench.add("item")
            (session,) = bench.database.sessions()

    assert session.application_name.endswith(":next")
    assert bench.committed() == ["item"]


# ---- reads without a transaction


def test_a_read_alone_is_not_idle_in_a_transaction(bench: Bench) -> None:
    """Between two reads the server is in none, and waits for nobody."""
    with bench.app.app_context():
        bench.run_sql("SELECT 1")
        bench.session.rollback()
        with transactional(read_only=True):
            bench.session.scalars(sa.select(Item)).all()
            (between,) = bench.database.sessions()
            bench.run_sql("SELECT 1")
            (inside,) = bench.database.sessions()

    assert (between.state, inside.state) == ("idle", "idle in transaction")


def test_a_read_alone_that_fails_ends_the_unit(bench: Bench) -> None:
    """As it would in a transaction: what comes after is refused, and a swallowed error is no success."""
    divided = sa.select(sa.literal(1) / (sa.func.count(Item.id) - sa.func.count(Item.id)))
    with bench.app.app_context():
        with pytest.raises(UnitFailedError), transactional(read_only=True):
            with pytest.raises(DBAPIError, match="division by zero"):
                bench.session.scalar(divided)
            with pytest.raises((DBAPIError, UnitFailedError)):
                bench.session.scalars(sa.select(Item)).all()
        with transactional(read_only=True):
            assert bench.session.scalars(sa.select(Item)).all() == []


def test_the_server_refuses_writes_of_a_unit_that_reads_alone(bench: Bench) -> None:
    """Also of what reaches past SQLAlchemy."""
    with bench.app.app_context(), pytest.raises(UnitFailedError), transactional(read_only=True):
        bench.session.scalars(sa.select(Item)).all()
        cursor = bench.session.connection().connection.cursor()
        with pytest.raises(Exception, match="read-only"):
            cursor.execute("INSERT INTO item (name) VALUES ('smuggled')")

    assert bench.committed() == []


def test_a_text_that_a_listener_has_changed_is_no_known_read(make_proxied_bench: MakeBench, proxy: Proxy) -> None:
    """What SQLAlchemy has compiled is not what is sent then."""
    bench = make_proxied_bench(UOW_RIDE=True)
    with bench.app.app_context():

        @sa.event.listens_for(bench.uow.engine, "before_cursor_execute", retval=True)
        def replace(connection: object, cursor: object, statement: str, values: object, *rest: object) -> object:
            return f"/* traced */ {statement}", values

        for _ in range(2):
            proxy.requests()
            one_select(bench)
            requests = proxy.requests()

    assert len(requests) == 2
    assert "BEGIN" in requests[0]


def test_a_role_that_is_stricter(make_proxied_bench: MakeBench, proxy: Proxy) -> None:
    """Where the server's own default is a snapshot for all, reads stay in a transaction."""
    bench = make_proxied_bench(UOW_RIDE=True)
    (role,) = bench.database.rows("SELECT current_user")[0]
    bench.database.execute(f"ALTER ROLE {role} SET default_transaction_isolation = 'repeatable read'")
    try:
        strict = make_proxied_bench(UOW_RIDE=True)
        with strict.app.app_context():
            one_select(strict)
            one_select(strict)
    finally:
        bench.database.execute(f"ALTER ROLE {role} RESET default_transaction_isolation")

    assert [request.split()[0] for request in proxy.requests()] == ["BEGIN", "COMMIT"] * 2


@pytest.mark.parametrize(
    "said",
    [
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET default_transaction_isolation = 'serializable'",
    ],
)
def test_a_session_that_is_stricter(bench: Bench, said: str) -> None:
    """Where a listener has made every transaction a snapshot, two reads of a unit see the same."""
    with bench.app.app_context():

        @sa.event.listens_for(bench.uow.engine, "connect")
        def tell(driver: Any, record: object) -> None:
            driver.cursor().execute(said)
            driver.commit()

        with transactional(read_only=True):
            before = bench.session.scalars(sa.select(Item)).all()
            bench.database.execute("INSERT INTO item (name) VALUES ('late')")
            assert bench.session.scalars(sa.select(Item)).all() == before == []
        with transactional():
            bench.add("later")

    assert bench.committed() == ["late", "later"]
