"""What a riding connection counts is what the proxy has counted, whatever it was that asked."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2
import pytest
import sqlalchemy as sa
from psycopg import sql
from psycopg.rows import dict_row
from psycopg2.extras import DictCursor, execute_values

from flask_uow._ride._psycopg import connect
from flask_uow._ride._psycopg2 import RidingConnection, riding_factory
from tests.databases import PostgreSQLDatabase
from tests.faults.proxy import LISTEN, Proxy

Work = Callable[[Any], object]
INSERT = "INSERT INTO t VALUES (%s)"


@pytest.fixture
def url(postgres: PostgreSQLDatabase, proxy: Proxy) -> str:
    """Where the proxy stands before a database with a table ``t``."""
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY)")
    url = sa.make_url(postgres.driverless_url).set(host=LISTEN, port=proxy.port)
    return url.render_as_string(hide_password=False)


@pytest.fixture(params=["", "-c default_transaction_read_only=on"], ids=["", "read-only"])
def options(request: pytest.FixtureRequest) -> str:
    """Start options."""
    return str(request.param)


@pytest.fixture
def old(url: str, options: str) -> Iterator[RidingConnection]:
    """One of psycopg2's."""
    with contextlib.closing(psycopg2.connect(url, options=options, connection_factory=riding_factory(None))) as riding:
        assert not options or riding.note_read_only_at_start()
        yield riding


@pytest.fixture
def new(url: str, options: str) -> Iterator[Any]:
    """One of psycopg's."""
    with contextlib.closing(connect([url], {"options": options})) as riding:
        assert not options or riding.note_read_only_at_start()
        yield riding


def told(riding: Any, proxy: Proxy, work: Work) -> tuple[int, list[str]]:
    """What a connection counts of some work, and what was asked."""
    proxy.requests()
    before = riding.trips
    work(riding)
    return riding.trips - before, proxy.requests()


def check(riding: Any, proxy: Proxy, work: Work) -> None:
    """Do some work twice, and compare."""
    for _ in range(2):
        count, requests = told(riding, proxy, work)
        assert count == len(requests), requests
        riding.rollback()


# ---- both


def transactions(riding: Any) -> None:
    cursor = riding.cursor()
    cursor.execute(INSERT, (1,))
    cursor.execute("SELECT 1")
    riding.rollback()
    cursor.execute("SET LOCAL statement_timeout = 1000")
    riding.commit()
    riding.commit()
    riding.rollback()


def a_savepoint(riding: Any) -> None:
    cursor = riding.cursor()
    for statement in ("SAVEPOINT a", "SELECT 1", "RELEASE SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO SAVEPOINT b"):
        cursor.execute(statement)
    riding.commit()


def a_harmless_read(riding: Any) -> None:
    for _ in range(2):
        riding.riders.harmless_query = "SELECT 1"
        riding.cursor().execute("SELECT 1")
    riding.commit()


def many_times(riding: Any) -> None:
    cursor = riding.cursor()
    for number in range(12):
        cursor.execute("SELECT %s", (number,))


def many_rows(riding: Any) -> None:
    cursor = riding.cursor()
    cursor.executemany(INSERT, [(1,), (2,), (3,)])
    cursor.executemany(INSERT, ((number,) for number in (4, 5)))
    cursor.executemany(INSERT, [])


def many_rows_of_which_one_is_refused(riding: Any) -> None:
    with contextlib.suppress(psycopg.Error, psycopg2.Error):
        riding.cursor().executemany(INSERT, [(1,), (2,), (1,), (3,)])


def errors(riding: Any) -> None:
    cursor = riding.cursor()
    for _ in range(3):
        with contextlib.suppress(psycopg.Error, psycopg2.Error):
            cursor.execute("SELECT * FROM nowhere")
    riding.rollback()
    with contextlib.suppress(psycopg.Error, psycopg2.Error):
        cursor.execute("SELECT 1 / 0")
    with contextlib.suppress(psycopg.Error, psycopg2.Error):
        riding.commit()


def what_the_driver_refuses(riding: Any) -> None:
    cursor = riding.cursor()
    for _ in range(2):
        for parameters in ((object(),), (1, 2, 3), ("\0",)):
            with contextlib.suppress(psycopg.Error, psycopg2.Error, TypeError, ValueError, IndexError):
                cursor.execute("SELECT %s", parameters)
        cursor.execute("SELECT %s", (1,))
    cursor.close()
    with contextlib.suppress(psycopg.InterfaceError, psycopg2.InterfaceError):
        cursor.execute("SELECT %s", (1,))


def in_autocommit(riding: Any) -> None:
    riding.autocommit = True
    cursor = riding.cursor()
    for statement in ("SELECT 1", "INSERT INTO t VALUES (7)", "DELETE FROM t", "VACUUM t"):
        cursor.execute(statement)
    cursor.executemany(INSERT, [(1,), (2,)])
    cursor.execute("DELETE FROM t")
    riding.autocommit = False
    cursor.execute("SELECT 1")
    riding.commit()


def a_cursor_on_the_server(riding: Any) -> None:
    cursor = riding.cursor("c")
    cursor.itersize = 3
    cursor.execute("SELECT * FROM generate_series(1, 20)")
    cursor.fetchone()
    cursor.fetchmany(2)
    rest = iter(cursor)  # the cursor itself from psycopg 3.3 on, before it what forgets a page with itself
    assert next(rest)
    assert len(list(rest)) == 16
    cursor.fetchall()
    cursor.close()


def a_cursor_on_the_server_that_moves(riding: Any) -> None:
    cursor = riding.cursor("c", scrollable=True)
    cursor.execute("SELECT * FROM generate_series(1, 20)")
    cursor.scroll(5)
    cursor.scroll(2, mode="absolute")
    assert cursor.fetchone()[0] == 3
    cursor.close()
    cursor.close()


def cursors_that_nobody_has_made(riding: Any) -> None:
    riding.cursor("nothing").close()
    riding.cursor().execute("DECLARE stolen CURSOR FOR SELECT 1")
    riding.cursor("stolen").close()


def a_cursor_that_outlives_its_transaction(riding: Any) -> None:
    cursor = riding.cursor("c", withhold=True)
    cursor.execute("SELECT 1")
    riding.commit()
    cursor.fetchone()
    cursor.close()


BOTH = [
    transactions,
    a_savepoint,
    a_harmless_read,
    many_times,
    many_rows,
    many_rows_of_which_one_is_refused,
    errors,
    what_the_driver_refuses,
    in_autocommit,
    a_cursor_on_the_server,
    a_cursor_on_the_server_that_moves,
    cursors_that_nobody_has_made,
    a_cursor_that_outlives_its_transaction,
]


# ---- psycopg2 alone


def copies(riding: Any) -> None:
    cursor = riding.cursor()
    cursor.copy_from(io.StringIO("1\n2\n"), "t")
    cursor.copy_to(io.StringIO(), "t")
    cursor.copy_expert("COPY t TO STDOUT", io.StringIO())
    with contextlib.suppress(psycopg2.Error):
        cursor.copy_from(io.StringIO("1\n"), "t")


def functions_and_batches(riding: Any) -> None:
    cursor = riding.cursor()
    cursor.callproc("now")
    execute_values(cursor, "INSERT INTO t VALUES %s", [(number,) for number in range(25)], page_size=10)


def rows_as_dictionaries(riding: Any) -> None:
    cursor = riding.cursor("c", cursor_factory=DictCursor)
    cursor.itersize = 2
    cursor.execute("SELECT * FROM generate_series(1, 5)")
    assert len(list(cursor)) == 5
    cursor.close()


def two_phases(riding: Any) -> None:
    riding.tpc_begin("it")
    riding.cursor().execute("SELECT 1")
    riding.tpc_commit()
    riding.tpc_begin("it")
    riding.cursor().execute("SELECT 1")
    riding.tpc_rollback()
    riding.tpc_begin("it")
    riding.cursor().execute("SELECT 1")
    riding.tpc_prepare()
    riding.tpc_rollback()
    riding.tpc_recover()


def what_the_session_is_told(riding: Any) -> None:
    riding.tpc_begin("it")
    riding.cursor().execute("SELECT 1")
    riding.set_client_encoding("LATIN1")
    riding.set_client_encoding("UTF8")
    riding.set_client_encoding("UTF8")
    riding.cursor().execute("SELECT 1")
    riding.reset()
    riding.set_session(isolation_level="SERIALIZABLE", autocommit=True)
    riding.cursor().execute("SELECT 1")
    riding.set_isolation_level(1)
    riding.cursor().execute("SELECT 1")


@pytest.mark.parametrize(
    "work", [*BOTH, copies, functions_and_batches, rows_as_dictionaries, two_phases, what_the_session_is_told]
)
def test_psycopg2(old: RidingConnection, proxy: Proxy, work: Work) -> None:
    """Each query is one."""
    check(old, proxy, work)


# ---- psycopg alone


def a_pipeline(riding: Any) -> None:
    cursor = riding.cursor()
    cursor.execute("SELECT 1")
    with riding.pipeline() as pipeline:
        cursor.execute(INSERT, (1,))
        pipeline.sync()
        cursor.execute(INSERT, (2,))
        with riding.pipeline():
            cursor.execute(INSERT, (3,))


def a_stream_and_a_copy(riding: Any) -> None:
    cursor = riding.cursor()
    with cursor.copy("COPY t FROM STDIN") as copy:
        copy.write_row((1,))
    list(cursor.stream("SELECT * FROM t"))
    with cursor.copy("COPY t TO STDOUT") as copy:
        list(copy)


def a_block(riding: Any) -> None:
    with riding.transaction():
        riding.execute("DELETE FROM t")
        riding.execute(INSERT, (1,))
        with contextlib.suppress(psycopg.Error), riding.transaction():
            riding.execute(INSERT, (1,))


def composed(riding: Any) -> None:
    riding.execute(sql.SQL("SELECT {}").format(sql.Literal(1)), binary=True)
    cursor = riding.cursor(row_factory=dict_row)
    cursor.execute("SELECT 1; SELECT 2")
    cursor.execute("SELECT 1 AS a", prepare=True)
    cursor.execute("CREATE TEMP TABLE u ON COMMIT DROP AS SELECT 1", prepare=True)


@pytest.mark.parametrize("work", [*BOTH, a_pipeline, a_stream_and_a_copy, a_block, composed])
def test_psycopg(new: Any, proxy: Proxy, work: Work) -> None:
    """Each flush is one."""
    check(new, proxy, work)


@pytest.mark.parametrize("work", [transactions, many_times, errors, what_the_driver_refuses])
def test_cursors_that_merge_parameters_themselves(url: str, proxy: Proxy, work: Work) -> None:
    """What waits is sent ahead of them."""
    arguments = {"cursor_factory": psycopg.ClientCursor}
    with contextlib.closing(connect([url], arguments)) as riding:
        check(riding, proxy, work)
        assert isinstance(riding.cursor(), psycopg.ClientCursor)
