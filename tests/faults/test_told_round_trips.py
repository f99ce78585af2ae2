"""What ``Server-Timing`` tells of round trips is what the proxy has counted."""

import re
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.exc import DBAPIError

from flask_uow import current_unit, transactional
from flask_uow.exceptions import RuleViolationError
from tests.database.conftest import Bench, MakeBench
from tests.faults.proxy import Proxy
from tests.models import Item

pytestmark = [
    pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True),
    pytest.mark.parametrize("rides", [True, False], ids=["riding", "plain"]),
]

Body = Callable[[Bench], None]


def one_insert(bench: Bench) -> None:
    with transactional():
        bench.add("item")


def two_units(bench: Bench) -> None:
    one_insert(bench)
    with transactional(read_only=True, isolation="SERIALIZABLE"):
        bench.run_sql("SELECT 1")


def nothing(bench: Bench) -> None:
    with transactional():
        pass


def a_rollback(bench: Bench) -> None:
    with transactional():
        bench.add("item")
        current_unit.set_rollback_only()


def savepoints(bench: Bench) -> None:
    with transactional():
        bench.add("outer")
        with transactional():
            bench.add("inner")
        with pytest.raises(ValueError, match="no"), transactional():
            bench.add("undone")
            raise ValueError("no")
        with transactional(propagation="required"):
            bench.add("joined")


def a_savepoint_that_is_sent_late(bench: Bench) -> None:
    with transactional():
        connection = bench.session.connection()
        with transactional():
            connection.exec_driver_sql("SELECT 1")


def an_independent_unit(bench: Bench) -> None:
    with transactional():
        bench.add("outer")
        with transactional(propagation="requires_new"):
            bench.add("inner")


def a_read_outside_of_units(bench: Bench) -> None:
    bench.run_sql("SELECT 1")
    bench.session.rollback()


def many_rows(bench: Bench) -> None:
    with transactional():
        bench.session.execute(sa.insert(Item), [{"id": number, "name": str(number)} for number in range(7)])


def many_updates(bench: Bench) -> None:
    many_rows(bench)
    with transactional():
        update = sa.text("UPDATE item SET name = name || :more WHERE id = :id")
        bench.session.connection().execute(update, [{"id": number, "more": "!"} for number in range(5)])


def the_same_statement_often(bench: Bench) -> None:
    with transactional():
        for _ in range(12):
            bench.run_sql("SELECT 1")


def an_error_of_the_server(bench: Bench) -> None:
    with pytest.raises(DBAPIError, match="nowhere"), transactional():
        bench.run_sql("SELECT * FROM nowhere")


def a_failed_commit(bench: Bench) -> None:
    with pytest.raises(DBAPIError, match="deferred"), transactional():
        bench.run_sql("CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        bench.run_sql("INSERT INTO deferred VALUES (1), (1)")


def a_refused_statement(bench: Bench) -> None:
    with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
        bench.run_sql("SELECT 1")
        bench.run_sql("DELETE FROM item")


def a_commit_past_the_session(bench: Bench) -> None:
    with pytest.raises(RuleViolationError, match="UOW101"), transactional():
        bench.add("item")
        bench.session.connection().get_transaction().commit()  # type: ignore[union-attr]


def a_timeout(bench: Bench) -> None:
    with transactional(timeout=60):
        bench.add("item")


def two_timeouts(bench: Bench) -> None:
    a_timeout(bench)
    with transactional(timeout=90):
        bench.run_sql("SELECT 1")


def timeouts_inside_each_other(bench: Bench) -> None:
    with transactional(timeout=60):
        bench.add("item")
        with transactional(timeout=30):
            bench.add("inner")
        bench.add("later")


def a_confirmed_commit(bench: Bench) -> None:
    with transactional(confirm_commit=True):
        bench.add("item")


def autocommit(bench: Bench) -> None:
    with bench.uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("SELECT 1")


def a_transaction_by_hand(bench: Bench) -> None:
    with bench.uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in ("BEGIN", "SELECT 1", "COMMIT", "SELECT 2"):
            connection.exec_driver_sql(statement)


def a_value_that_the_driver_refuses(bench: Bench) -> None:
    with pytest.raises(DBAPIError, match="adapt"), transactional():
        bench.run_sql("SELECT 1")
        bench.session.execute(sa.text("SELECT :value"), {"value": object()})


def a_value_that_the_driver_refuses_at_once(bench: Bench) -> None:
    with pytest.raises(DBAPIError, match="adapt"), transactional():
        bench.session.execute(sa.text("SELECT :value"), {"value": object()})


@pytest.mark.parametrize(
    "body",
    [
        one_insert,
        two_units,
        nothing,
        a_rollback,
        savepoints,
        a_savepoint_that_is_sent_late,
        an_independent_unit,
        a_read_outside_of_units,
        many_rows,
        many_updates,
        the_same_statement_often,
        an_error_of_the_server,
        a_failed_commit,
        a_refused_statement,
        a_commit_past_the_session,
        a_timeout,
        two_timeouts,
        timeouts_inside_each_other,
        a_confirmed_commit,
        autocommit,
        a_transaction_by_hand,
        a_value_that_the_driver_refuses,
        a_value_that_the_driver_refuses_at_once,
    ],
)
@pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")
def test_the_header_tells_what_was_counted(
    make_proxied_bench: MakeBench, proxy: Proxy, body: Body, rides: bool
) -> None:
    """Whatever a request does, and however it ends."""
    bench = make_proxied_bench(UOW_SERVER_TIMING=True, UOW_RIDE=rides)
    _warm_up(bench, proxy)

    assert _told(bench.app, lambda: body(bench)) == len(proxy.requests())


def rows_from_a_cursor_on_the_server(bench: Bench) -> None:
    many_rows(bench)
    with transactional(read_only=True):
        rows = bench.session.execute(sa.select(Item).execution_options(yield_per=3))
        assert len(rows.all()) == 7


def a_cursor_on_the_server_that_is_left(bench: Bench) -> None:
    many_rows(bench)
    with transactional():
        rows = bench.session.execute(sa.text("SELECT * FROM item").execution_options(stream_results=True))
        rows.fetchone()
        rows.close()


def what_the_app_sends_itself(bench: Bench) -> None:
    with transactional():
        bench.add("item")
        driver = bench.session.connection().connection.dbapi_connection
        assert driver is not None
        cursor = driver.cursor()
        cursor.execute("SELECT 1")
        cursor.execute("SELECT 2")
        bench.run_sql("SELECT 3")
        cursor.execute("SELECT 4")


def what_is_never_sqlalchemys(bench: Bench) -> None:
    for _ in range(2):
        connection = bench.uow.engine.raw_connection()
        connection.cursor().execute("SELECT 1")
        connection.cursor().execute("SELECT 2")
        connection.close()


def what_is_sent_at_last(bench: Bench) -> None:
    driver = bench.session.connection().connection.dbapi_connection
    assert driver is not None
    for _ in range(2):
        driver.cursor().execute("SELECT 1")
    driver.commit()


def a_write_in_autocommit(bench: Bench) -> None:
    with bench.uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("INSERT INTO item (name) VALUES ('one')")
        connection.exec_driver_sql("INSERT INTO item (name) VALUES ('two')")
    one_insert(bench)


@pytest.mark.parametrize(
    "body",
    [
        rows_from_a_cursor_on_the_server,
        a_cursor_on_the_server_that_is_left,
        what_the_app_sends_itself,
        what_is_never_sqlalchemys,
        what_is_sent_at_last,
        a_write_in_autocommit,
    ],
)
@pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")
def test_what_passes_sqlalchemy_by(make_proxied_bench: MakeBench, proxy: Proxy, body: Body, rides: bool) -> None:
    """A connection on which statements ride counts by itself; of another the rest is told."""
    bench = make_proxied_bench(UOW_SERVER_TIMING=True, UOW_RIDE=rides)
    _warm_up(bench, proxy)

    told = _told(bench.app, lambda: body(bench))

    requests = proxy.requests()
    assert told == len(requests) or (not rides and told < len(requests))


def test_the_position_of_a_commit(make_proxied_bench: MakeBench, proxy: Proxy, rides: bool) -> None:
    """It is asked for after COMMIT, when SQLAlchemy has nothing more to say."""
    bench = make_proxied_bench(
        UOW_SERVER_TIMING=True,
        UOW_RIDE=rides,
        UOW_READER_URI="postgresql:///nowhere",
        UOW_READ_YOUR_WRITES="lsn",
        SECRET_KEY="a secret",
    )

    assert _told(bench.app, lambda: one_insert(bench)) == 3
    assert len(proxy.requests()) == (3 if rides else 4)


def test_the_whole_request(make_proxied_bench: MakeBench, proxy: Proxy, rides: bool) -> None:
    """With atomic requests, COMMIT comes after Flask's own last function."""
    bench = make_proxied_bench(UOW_SERVER_TIMING=True, UOW_ATOMIC_REQUESTS=True, UOW_RIDE=rides)

    assert _told(bench.app, lambda: bench.add("item")) == len(proxy.words()) == (2 if rides else 3)


def test_a_liveness_check(make_proxied_bench: MakeBench, proxy: Proxy, rides: bool) -> None:
    """SQLAlchemy's own is a round trip, and no other statement goes along with it."""
    options = {"pool_pre_ping": True}
    bench = make_proxied_bench(UOW_SERVER_TIMING=True, UOW_RIDE=rides, SQLALCHEMY_ENGINE_OPTIONS=options)

    assert _told(bench.app, lambda: one_insert(bench)) == len(proxy.requests()) == (3 if rides else 4)


def test_batches(database: object, make_proxied_bench: MakeBench, proxy: Proxy, rides: bool) -> None:
    """psycopg2 can be told to send several sets of parameters at once; psycopg always does."""
    modes = {"executemany_mode": "values_plus_batch", "executemany_batch_page_size": 2}
    options = modes if "psycopg2" in repr(database) else {}
    bench = make_proxied_bench(UOW_SERVER_TIMING=True, UOW_RIDE=rides, SQLALCHEMY_ENGINE_OPTIONS=options)

    assert _told(bench.app, lambda: many_updates(bench)) == len(proxy.requests())


def _warm_up(bench: Bench, proxy: Proxy) -> None:
    """Open the second connection as well."""
    with bench.app.app_context():
        engine = bench.uow.engine
        with engine.connect(), engine.connect():
            pass
    proxy.requests()


def _told(app: Flask, body: Callable[[], None]) -> int:
    def view() -> str:
        body()
        return "ok"

    app.add_url_rule("/", view_func=view)
    header = app.test_client().get("/").headers.get("Server-Timing", 'trips;desc="0 round trips"')
    found = re.search(r'trips;desc="(\d+) round trips?"', header)
    assert found, header
    return int(found[1])
