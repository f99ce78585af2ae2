"""What rides goes through a PgBouncer in transaction mode as well, and nothing of it is left to its other clients."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from flask_uow import UnitOfWork, current_unit, transactional
from flask_uow.exceptions import UnitTimeoutError
from tests.database.conftest import Bench
from tests.databases import Database
from tests.faults import test_riding_units as units
from tests.faults.proxy import LISTEN, Cut, Proxy, run_proxy
from tests.faults.test_several_databases import Line
from tests.models import Item, create_tables, make_app, names
from tests.pgbouncer import run_pgbouncer

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)

DEADLINE_S = 30.0
READ_ONLY = "default_transaction_read_only"
# How PgBouncer meets the start option: it refuses it, or drops it.
STARTS = {"refuses": {}, "does not keep": {"ignore_startup_parameters": "options"}}
# What costs more than without a pooler: a BEGIN READ ONLY has its COMMIT.
READS: dict[units.Body, int] = {units.one_select: 2, units.two_selects: 3}
# What PgBouncer itself sets for each of its clients.
ITS_OWN = {"application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings"}
SESSION = """
    SELECT pg_backend_pid(),
           ARRAY(SELECT name FROM pg_settings WHERE source = 'session'),
           ARRAY(SELECT name FROM pg_prepared_statements) || ARRAY(SELECT name FROM pg_cursors),
           current_setting('application_name')
"""


@dataclass
class Pooled:
    """Benches whose apps reach their server through a PgBouncer.

    :param url: by which it is reached, through the proxy if there is one.
    :param log: PgBouncer's.
    :param size: how many connections it has to the server.
    """

    database: Database
    url: sa.URL
    log: Path
    size: int

    def make_bench(self, **config: Any) -> Bench:
        """A bench with statements that ride."""
        uow = UnitOfWork()
        url = self.url.render_as_string(hide_password=False)
        return Bench(
            make_app(self.database, uow, **{"SQLALCHEMY_DATABASE_URI": url, "UOW_RIDE": True} | config),
            uow,
            self.database,
        )

    def connect(self) -> Any:
        """Another client, in autocommit."""
        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg2.connect(url, application_name="other")
        connection.autocommit = True
        return connection

    def leftovers(self) -> list[tuple[set[str], list[str], str]]:
        """What another client finds in each of the server's sessions: settings, names, and what it is called."""
        found: dict[int, tuple[set[str], list[str], str]] = {}
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            for _ in range(3 * self.size):
                cursor.execute(SESSION)
                pid, settings, names, name = cursor.fetchone()
                found[pid] = (set(settings) - ITS_OWN, names, name)
        return list(found.values())

    def refusals(self) -> int:
        """How often PgBouncer has refused a start option."""
        return self.log.read_text().count("unsupported startup parameter: options=")


MakePooled = Callable[..., Pooled]


@pytest.fixture
def make_pooled(database: Database, tmp_path: Path) -> Iterator[MakePooled]:
    """A function that starts the test's PgBouncer, which lends its connections in turn."""
    running: list[Any] = []

    def make(start: str = "refuses", size: int = 3, url: str = database.url) -> Pooled:
        settings = STARTS[start] | {"default_pool_size": size, "min_pool_size": size}
        running.append(run_pgbouncer(url, tmp_path, **settings))
        return Pooled(database, running[-1].__enter__(), tmp_path / "log", size)

    yield make
    for pooler in running:
        pooler.__exit__(None, None, None)


def lend_all(pooled: Pooled) -> None:
    """Have PgBouncer open all of its connections."""
    clients = [pooled.connect() for _ in range(pooled.size)]
    try:
        for client in clients:
            client.cursor().execute("BEGIN")
        for client in clients:
            client.cursor().execute("ROLLBACK")
    finally:
        for client in clients:
            client.close()


@pytest.fixture(params=STARTS)
def pooled(request: pytest.FixtureRequest, make_pooled: MakePooled) -> Pooled:
    """A PgBouncer that has opened three connections."""
    pooled = make_pooled(request.param)
    lend_all(pooled)
    return pooled


@pytest.fixture
def pooler_proxy(pooled: Pooled) -> Iterator[Proxy]:
    """A proxy in front of it, which its apps use."""
    assert pooled.url.port is not None
    with run_proxy(LISTEN, pooled.url.port) as proxy:
        pooled.url = pooled.url.set(port=proxy.port)
        yield proxy


@pytest.mark.parametrize(("body", "trips"), [(body, READS.get(body, trips)) for body, trips in units.TRIPS])
def test_trips(pooled: Pooled, pooler_proxy: Proxy, body: units.Body, trips: int) -> None:
    """As many as to the server itself, but for reads that went without a transaction; nothing is left behind."""
    bench = pooled.make_bench()
    with bench.app.app_context(), transactional():
        bench.add(*(f"item-{number}" for number in range(20)))
    pooler_proxy.requests()
    for number in range(7):
        with bench.app.test_request_context("/"):
            body(bench)
        sent = pooler_proxy.requests()
        if number:
            assert len(sent) == trips, sent
        assert not [text for text in sent if text.upper().startswith("SET ")], "sessions are shared"
        bench.database.execute("DELETE FROM item WHERE name NOT LIKE 'item-%'")

    assert pooled.leftovers() == [(set(), [], "other")] * pooled.size


def test_the_log_says_once_what_is_lost(
    pooled: Pooled, database: Database, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    """And a refused connect is made again without the option, which is not tried a second time."""
    what = request.node.callspec.params["pooled"]
    with caplog.at_level(logging.INFO, logger="flask_uow"):
        bench = pooled.make_bench()
        with bench.app.app_context():
            engine = bench.uow.engine
            with engine.connect() as first, engine.connect() as second:
                drivers: list[Any] = [connection.connection.dbapi_connection for connection in (first, second)]
                assert [driver.is_read_only_at_start for driver in drivers] == [False, False]
                if database.backend == "psycopg":
                    assert [driver.prepare_threshold for driver in drivers] == [None, None]

    (record,) = (record for record in caplog.records if record.name == "flask_uow._ride")
    assert record.levelno == logging.INFO
    assert f"a pooler such as PgBouncer {what} the start option {READ_ONLY}" in record.message
    assert "fix: " in record.message
    assert str(pooled.url.password) not in record.message
    assert pooled.refusals() == (1 if what == "refuses" else 0)


def test_statements_are_prepared_where_the_application_says_so(pooled: Pooled, database: Database) -> None:
    """Newer versions of PgBouncer know prepared statements; psycopg2 prepares none."""
    own = {"prepare_threshold": 7} if database.backend == "psycopg" else {}
    bench = pooled.make_bench(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": own})
    with bench.app.app_context(), bench.uow.engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        assert {name: getattr(driver, name) for name in own} == own
        assert hasattr(driver, "prepare_threshold") is bool(own)


def test_what_the_first_session_says_is_not_believed(make_pooled: MakePooled, database: Database) -> None:
    """Sessions that start read-only by themselves look like the start option's, and any client may change them."""
    name = "uow_test_reader"
    database.execute(f"DROP ROLE IF EXISTS {name}")
    database.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'secret'")
    try:
        database.execute(f"ALTER ROLE {name} SET {READ_ONLY} TO on")
        url = sa.make_url(database.url).set(username=name, password="secret")
        pooled = make_pooled("does not keep", url=url.render_as_string(hide_password=False))
        lend_all(pooled)
        bench = pooled.make_bench()
        with bench.app.app_context():
            driver: Any
            with bench.uow.engine.connect() as connection:
                driver = connection.connection.dbapi_connection
                told = driver.info.parameter_status(READ_ONLY)
                assert (told, driver.is_read_only_at_start) == ("on", False)
            with closing(pooled.connect()) as other:
                for _ in range(pooled.size):
                    other.cursor().execute(f"SET {READ_ONLY} TO off")
            refuse_to_write(bench)
    finally:
        for session in database.sessions():
            database.kill(session.pid)
        database.execute(f"DROP ROLE {name}")


def refuse_to_write(bench: Bench) -> None:
    """A read-only unit calls what writes."""
    bench.database.execute(
        "CREATE FUNCTION add() RETURNS text LANGUAGE sql AS "
        "$$ INSERT INTO item (name) VALUES ('added') RETURNING name $$"
    )
    for _ in range(3):
        with pytest.raises(DBAPIError, match="read-only transaction"), transactional(read_only=True):
            bench.session.scalars(sa.select(Item)).all()
            bench.session.scalar(sa.text("SELECT add()"))
    assert bench.committed() == []


def test_a_read_only_unit_is_read_only(pooled: Pooled) -> None:
    """The server refuses what writes, whichever of its sessions serves."""
    bench = pooled.make_bench()
    with bench.app.app_context():
        refuse_to_write(bench)
    assert pooled.leftovers() == [(set(), [], "other")] * pooled.size


def test_autocommit_leaves_sessions_alone(pooled: Pooled, pooler_proxy: Proxy) -> None:
    """Writes in autocommit need no setting, which would be the next client's as well."""
    bench = pooled.make_bench()
    with bench.app.app_context():
        engine = bench.uow.engine.execution_options(isolation_level="AUTOCOMMIT")
        engine.connect().close()
        pooler_proxy.requests()
        for number in range(4):
            with engine.connect() as connection:
                connection.execute(sa.text(f"INSERT INTO item (name) VALUES ('text-{number}')"))
            with transactional():
                bench.add(f"unit-{number}")
    assert [text.split()[0].strip(";") for text in pooler_proxy.requests()] == ["INSERT", "BEGIN", "COMMIT"] * 4
    assert len(bench.committed()) == 8
    assert pooled.leftovers() == [(set(), [], "other")] * pooled.size


@pytest.mark.parametrize("start", STARTS)
def test_label_is_gone_with_its_transaction(make_pooled: MakePooled, start: str) -> None:
    """PgBouncer keeps each client's name: the unit's label is none of it."""
    pooled = make_pooled(start, size=1)
    bench = pooled.make_bench()

    def name() -> str:
        return str(bench.session.scalar(sa.text("SHOW application_name")))

    def commit() -> None:
        with transactional(label="work"):
            bench.add("committed")
            assert name().endswith(":work")

    def fail() -> None:
        with pytest.raises(ValueError, match="no"), transactional(label="work"):
            bench.add("inner")
            with pytest.raises(DBAPIError), transactional():
                bench.run_sql("SELECT * FROM nowhere")
            assert name().endswith(":work")
            raise ValueError("no")

    def drop() -> None:
        with transactional(label="work"):
            bench.add("dropped")
            current_unit.set_rollback_only()

    with bench.app.app_context():
        for body in (commit, fail, drop):
            body()
            assert pooled.leftovers() == [(set(), [], "other")]
            with bench.uow.engine.connect() as connection:
                assert str(connection.scalar(sa.text("SHOW application_name"))).count(":") == 2
    assert bench.committed() == ["committed"]


def test_deadline(pooled: Pooled) -> None:
    """The server ends a statement at its unit's deadline, and nobody else's."""
    bench = pooled.make_bench()
    with bench.app.app_context():
        for _ in range(pooled.size):
            with pytest.raises(UnitTimeoutError), transactional(timeout=0.2):
                bench.run_sql("SELECT pg_sleep(20)")
            with transactional():
                assert bench.session.scalar(sa.text("SHOW statement_timeout")) == "0"
    assert pooled.leftovers() == [(set(), [], "other")] * pooled.size


def test_rows_in_portions(pooled: Pooled) -> None:
    """A cursor on the server lives in its transaction's session."""
    bench = pooled.make_bench()
    with bench.app.app_context():
        with transactional():
            bench.add(*(f"item-{number:02}" for number in range(20)))
        for _ in range(pooled.size):
            with transactional(read_only=True):
                items = bench.session.scalars(sa.select(Item), execution_options={"yield_per": 6})
                assert len([item.name for item in items]) == 20
    assert pooled.leftovers() == [(set(), [], "other")] * pooled.size


def test_sessions_that_the_server_has_ended(pooled: Pooled, database: Database) -> None:
    """PgBouncer replaces them; the app's own connections live."""
    bench = pooled.make_bench()
    with bench.app.app_context():
        with transactional():
            bench.add("before")
        with bench.uow.engine.connect() as connection:
            before = connection.connection.dbapi_connection
        for session in database.sessions():
            database.kill(session.pid)
        lend_all_at_last(pooled)
        with transactional():
            bench.add("later")
        with bench.uow.engine.connect() as connection:
            assert connection.connection.dbapi_connection is before
    assert bench.committed() == ["before", "later"]


def lend_all_at_last(pooled: Pooled) -> None:
    """Have PgBouncer open its connections anew, where it may not have noticed yet that they are gone."""
    for _ in range(pooled.size + 1):
        try:
            return lend_all(pooled)
        except psycopg2.Error:
            continue
    return lend_all(pooled)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("start", STARTS)
def test_many_clients(make_pooled: MakePooled, start: str, size: int) -> None:
    """Each has its own name, level, deadline and savepoints, whichever session it gets."""
    pooled = make_pooled(start, size=size)
    bench = pooled.make_bench()
    clients, rounds = 6, 8
    ready = threading.Barrier(clients)

    def show(setting: str) -> str:
        return str(bench.session.scalar(sa.text(f"SHOW {setting}")))

    def write(client: int, number: int) -> None:
        name = f"{client}-{number}"
        level = ("READ COMMITTED", "REPEATABLE READ", None)[number % 3]
        timeout_s = 20 + 10 * client
        with transactional(label=name, isolation=level, timeout=timeout_s):
            bench.add(f"{name}-outer")
            with pytest.raises(ValueError, match="no"), transactional():
                bench.add(f"{name}-undone")
                raise ValueError("no")
            with pytest.raises(DBAPIError, match="unique"), transactional():
                bench.session.execute(sa.insert(Item).values(name=f"{name}-outer"))
            with transactional():
                bench.add(f"{name}-inner")
            assert show("application_name").endswith(f":{name}")
            assert show("transaction_isolation").upper() == (level or "READ COMMITTED")
            assert show("transaction_read_only") == "off"
            limit = "SELECT extract(epoch FROM CAST(current_setting('statement_timeout') AS interval))"
            assert timeout_s - 10 < float(bench.session.scalar(sa.text(limit))) <= timeout_s

    def read(client: int, number: int) -> None:
        with transactional(label="reads", read_only=True):
            mine = sa.select(sa.func.count(Item.id)).where(Item.name.startswith(f"{client}-"))
            assert bench.session.scalar(mine) == 2 * (number + 1)
            assert show("transaction_read_only") == "on"
            assert show("statement_timeout") == "0"

    def work(client: int) -> None:
        ready.wait(DEADLINE_S)
        for number in range(rounds):
            with bench.app.app_context():
                write(client, number)
                read(client, number)

    with ThreadPoolExecutor(clients) as threads:
        for result in [threads.submit(work, client) for client in range(clients)]:
            result.result(DEADLINE_S)

    wanted = [
        f"{client}-{number}-{what}"
        for client in range(clients)
        for number in range(rounds)
        for what in ("inner", "outer")
    ]
    assert bench.committed() == sorted(wanted)
    assert [what[:2] for what in pooled.leftovers()] == [(set(), [])] * size


def test_commit_whose_answer_is_lost(pooled: Pooled, pooler_proxy: Proxy) -> None:
    """Another session of the server knows what became of it."""
    bench = pooled.make_bench()
    with bench.app.app_context():
        with transactional():
            bench.add("before")
        pooler_proxy.cut(Cut.REPLY)
        with transactional(confirm_commit=True):
            bench.add("work")
    assert bench.committed() == ["before", "work"]


def test_two_databases(pooled: Pooled, database: Database, second_database: Database) -> None:
    """What one session of the server has prepared, another one commits."""
    create_tables(second_database)
    second = pooled.url.set(database=sa.make_url(second_database.url).database).render_as_string(hide_password=False)
    bench = pooled.make_bench(SQLALCHEMY_BINDS={"audit": second}, UOW_TWO_PHASE=True)
    with bench.app.app_context():
        for number in range(4):
            with transactional():
                bench.session.add(Line(name=f"line-{number}"))
                bench.add(f"item-{number}")
    assert bench.committed() == [f"item-{number}" for number in range(4)]
    assert names(second_database) == [f"line-{number}" for number in range(4)]
    assert database.rows("SELECT gid FROM pg_prepared_xacts") == []
