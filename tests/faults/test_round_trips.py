"""What a unit costs where no statement rides: the requests that it sends to PostgreSQL, counted on the wire."""

import pytest
import sqlalchemy as sa
from flask import render_template_string

from flask_uow import current_unit, transactional
from flask_uow._transactional import Options
from tests.database.conftest import Bench, MakeBench
from tests.faults.proxy import Proxy
from tests.models import Item

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)

ONE_INSERT = ["BEGIN", "INSERT", "COMMIT"]


@pytest.fixture
def proxied_bench(make_proxied_bench: MakeBench) -> Bench:
    """A bench behind the proxy whose statements do not ride."""
    return make_proxied_bench(UOW_RIDE=False)


def test_one_insert(proxied_bench: Bench, proxy: Proxy) -> None:
    """A unit that writes one row sends what a hand-written transaction does; the liveness check sends nothing."""
    for number in range(3):
        with proxied_bench.app.app_context(), transactional():
            proxied_bench.add(f"item {number}")

        assert proxy.words() == ONE_INSERT


def test_an_empty_unit(proxied_bench: Bench, proxy: Proxy) -> None:
    """A unit without a statement sends nothing, whatever is in it and around it."""

    @transactional
    def view() -> str:
        with transactional():
            pass
        with transactional(propagation="required"):
            pass
        current_unit.after_commit(lambda: None)
        return "ok"

    proxied_bench.app.add_url_rule("/", view_func=view)

    assert proxied_bench.app.test_client().get("/").text == "ok"
    assert proxy.requests() == []


def test_a_request_without_the_session(proxied_bench: Bench, proxy: Proxy) -> None:
    """An app context that never asks for anything sends nothing when it ends."""
    with proxied_bench.app.app_context():
        proxied_bench.uow.session()

    assert proxy.requests() == []


def test_a_savepoint(proxied_bench: Bench, proxy: Proxy) -> None:
    """A nested unit costs two requests more, one that only joins costs none."""
    with proxied_bench.app.app_context(), transactional():
        proxied_bench.add("outer")
        with transactional():
            proxied_bench.add("inner")
        with transactional(propagation="required"):
            proxied_bench.add("joined")

    assert proxy.words() == ["BEGIN", "INSERT", "SAVEPOINT", "INSERT", "RELEASE", "INSERT", "COMMIT"]


def test_a_savepoint_that_is_rolled_back(proxied_bench: Bench, proxy: Proxy) -> None:
    """It costs two requests as well, and the outer unit none for it."""
    with proxied_bench.app.app_context(), transactional():
        proxied_bench.add("outer")
        with pytest.raises(ValueError, match="no"), transactional():
            proxied_bench.add("inner")
            raise ValueError("no")

    assert proxy.words() == ["BEGIN", "INSERT", "SAVEPOINT", "INSERT", "ROLLBACK", "COMMIT"]


def test_a_unit_that_is_rolled_back(proxied_bench: Bench, proxy: Proxy) -> None:
    """One ROLLBACK, and nothing at the end of the context or when the connection goes back."""
    with pytest.raises(ValueError, match="no"), proxied_bench.app.app_context(), transactional():
        proxied_bench.add("item")
        raise ValueError("no")

    assert proxy.words() == ["BEGIN", "INSERT", "ROLLBACK"]


def test_many_rows_in_one_flush(proxied_bench: Bench, proxy: Proxy) -> None:
    """They are one request, as SQLAlchemy makes them."""
    with proxied_bench.app.app_context(), transactional():
        proxied_bench.add(*(f"item {number}" for number in range(20)))

    assert proxy.words() == ONE_INSERT


def test_a_template_that_renders_what_was_committed(proxied_bench: Bench, proxy: Proxy) -> None:
    """It reads the unit's objects without a new transaction, while the connection is in the pool."""

    @transactional
    def write() -> list[Item]:
        items = [Item(name=name) for name in ("a", "b", "c")]
        proxied_bench.session.add_all(items)
        return items

    @proxied_bench.app.get("/")
    def view() -> str:
        items = write()
        assert proxied_bench.checked_out == 0
        return render_template_string("{% for item in items %}{{ item.id }}{{ item.name }} {% endfor %}", items=items)

    assert proxied_bench.app.test_client().get("/").text == "1a 2b 3c "
    assert proxy.words() == ONE_INSERT


@pytest.mark.parametrize(
    "options",
    [
        {"read_only": True},
        {"isolation": "SERIALIZABLE"},
        {"read_only": True, "isolation": "SERIALIZABLE", "deferrable": True},
        {"read_only": True, "confirm_commit": True},
        {"retries": 3},
    ],
    ids=str,
)
def test_options_that_cost_nothing(proxied_bench: Bench, proxy: Proxy, options: Options) -> None:
    """Read-only units and isolation levels are said with BEGIN; a unit that only reads has nothing to confirm."""

    @transactional(**options)
    def read() -> int:
        return int(proxied_bench.session.scalar(sa.text("SELECT 41 + 1")) or 0)

    with proxied_bench.app.app_context():
        assert read() == 42

    assert proxy.words() == ["BEGIN", "SELECT", "COMMIT"]


def test_a_timeout(proxied_bench: Bench, proxy: Proxy) -> None:
    """The server has to be told: one request more."""
    with proxied_bench.app.app_context(), transactional(timeout=60):
        proxied_bench.add("item")

    assert proxy.words() == ["BEGIN", "SELECT", "INSERT", "COMMIT"]


def test_retries_of_an_inner_unit(proxied_bench: Bench, proxy: Proxy) -> None:
    """They count on the outermost one alone, so that nothing is asked for them; no more where nothing came before."""

    @transactional(retries=3)
    def inner() -> None:
        proxied_bench.add("inner")

    @transactional(retries=3)
    def outer() -> None:
        proxied_bench.add("outer")
        inner()

    with proxied_bench.app.app_context():
        outer()

    assert proxy.words() == ["BEGIN", "INSERT", "SAVEPOINT", "INSERT", "RELEASE", "COMMIT"]


def test_confirm_commit(proxied_bench: Bench, proxy: Proxy) -> None:
    """The transaction's id is asked for just before COMMIT, after the last flush: one request more."""
    with proxied_bench.app.app_context(), transactional(confirm_commit=True):
        proxied_bench.session.add(Item(name="item"))

    requests = proxy.requests()
    assert [request.split()[0] for request in requests] == ["BEGIN", "INSERT", "SELECT", "COMMIT"]
    assert "pg_current_xact_id_if_assigned" in requests[2]


def test_confirm_commit_where_nothing_was_written(proxied_bench: Bench, proxy: Proxy) -> None:
    """Then nothing is asked; an empty unit sends nothing still."""
    with proxied_bench.app.app_context():
        with transactional(confirm_commit=True):
            pass
        with transactional(confirm_commit=True):
            proxied_bench.run_sql("SELECT 1")

    assert proxy.words() == ["BEGIN", "SELECT", "COMMIT"]


def test_confirm_commit_of_an_inner_unit(proxied_bench: Bench, proxy: Proxy) -> None:
    """A savepoint has no COMMIT that could be lost."""
    with proxied_bench.app.app_context(), transactional():
        with transactional(confirm_commit=True):
            proxied_bench.add("item")

    assert proxy.words() == ["BEGIN", "SAVEPOINT", "INSERT", "RELEASE", "COMMIT"]


def test_a_read_before_the_unit(proxied_bench: Bench, proxy: Proxy) -> None:
    """Its transaction is the unit's: one BEGIN, one COMMIT."""
    with proxied_bench.app.app_context():
        proxied_bench.run_sql("SELECT 1")
        with transactional():
            proxied_bench.add("item")

    assert proxy.words() == ["BEGIN", "SELECT", "INSERT", "COMMIT"]


def test_an_independent_unit(proxied_bench: Bench, proxy: Proxy) -> None:
    """It pays for a transaction of its own, and the outer one pays as before."""
    with proxied_bench.app.app_context():
        proxied_bench.uow.engine.connect().close()
        with transactional():
            with transactional(propagation="requires_new"):
                proxied_bench.add("inner")
            assert proxy.words() == ONE_INSERT
            proxied_bench.add("outer")

    assert proxy.words() == ONE_INSERT


def test_pre_ping_where_it_is_asked_for(make_proxied_bench: MakeBench, proxy: Proxy) -> None:
    """SQLAlchemy's own liveness check is one request more at each checkout, and nobody's but who configures it."""
    bench = make_proxied_bench(UOW_RIDE=False, SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True})
    with bench.app.app_context(), transactional():
        bench.add("item")

    assert len(proxy.requests()) == len(ONE_INSERT) + 1
