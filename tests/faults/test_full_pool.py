"""A pool that stays full: 503 in time, a line that names who has the connections, and nothing to mend afterwards."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from flask import Response
from werkzeug.exceptions import ServiceUnavailable

from flask_uow import transactional
from flask_uow._board import LIVE_KIND
from flask_uow._state import STATE_KEY
from tests.database.conftest import Bench, MakeBench
from tests.databases import Database
from tests.models import checked_out

DEADLINE_S = 15.0
TIMEOUT_S = 0.3
SLACK_S = 1.0
ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": TIMEOUT_S}


@pytest.fixture
def full(make_bench: MakeBench) -> Bench:
    """A bench whose pool has one connection."""
    return make_bench(SQLALCHEMY_ENGINE_OPTIONS=ONE)


@contextmanager
def held(bench: Bench) -> Iterator[None]:
    """While a view of another thread has the connection."""
    has_it, may_end = threading.Event(), threading.Event()

    @bench.app.get("/slow")
    @transactional
    def slow() -> str:
        bench.session.execute(sa.text("SELECT 1"))
        has_it.set()
        assert may_end.wait(DEADLINE_S)
        return "ended"

    @bench.app.get("/")
    @transactional
    def quick() -> str:
        bench.session.execute(sa.text("SELECT 1"))
        return "served"

    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(bench.app.test_client().get, "/slow")
        assert has_it.wait(DEADLINE_S)
        try:
            yield
        finally:
            may_end.set()
        assert answer.result(DEADLINE_S).text == "ended"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of full pools."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("pool full")]


def test_a_full_pool_is_answered_in_time(full: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """With 503 and Retry-After; the line says who holds the connection, for how long, and where."""
    client = full.app.test_client()
    with held(full):
        began = time.monotonic()
        refused = client.get("/")
        took_s = time.monotonic() - began
    served = client.get("/")

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert TIMEOUT_S <= took_s < TIMEOUT_S + SLACK_S
    assert served.text == "served"
    (line,) = lines(caplog)
    assert re.fullmatch(
        r'pool full bind=default refused=1 held_by="GET /slow for 0\.\d s, idle in transaction, '
        r'\S*test_full_pool\.py:\d+ in slow"',
        line,
    )
    assert checked_out(full.app) == 0


def test_the_line_is_a_record_too(full: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """For formatters that write JSON."""
    with held(full):
        full.app.test_client().get("/")

    (record,) = [each for each in caplog.records if getattr(each, "uow_event", None) == "pool_full"]
    values = vars(record)
    assert record.name == "flask_uow"
    assert record.levelno == logging.WARNING
    assert (values["uow_bind"], values["uow_refused"]) == ("default", 1)
    assert len(values["uow_held_by"]) == 1


def test_many_who_wait_in_vain_are_told_of_in_one_line(full: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The next one counts them."""

    def ask(_: int) -> int:
        return full.app.test_client().get("/").status_code

    with held(full), ThreadPoolExecutor(4) as threads:
        statuses = [*threads.map(ask, range(4))]
        after_one_line = len(lines(caplog))
        time.sleep(1.0)
        ask(0)

    assert statuses == [503] * 4
    assert after_one_line == 1
    assert [re.findall(r"refused=\d", line) for line in lines(caplog)] == [["refused=1"], ["refused=4"]]


def test_each_pool_has_a_line_of_its_own(
    make_bench: MakeBench, second_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """What was said of one is nothing about another."""
    one = ONE | {"pool_timeout": 0.02}
    other = {"url": second_database.url, **one}
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS=one, SQLALCHEMY_BINDS={"other": other})
    with bench.app.app_context():
        for engine in bench.uow.engines.values():
            with engine.connect(), pytest.raises(sa.exc.TimeoutError):
                engine.connect()

    first, second = lines(caplog)
    assert " bind=default " in first
    assert " bind=other " in second


def test_the_apps_own_page_may_say_itself_when_to_come_again(full: Bench) -> None:
    """Its ``Retry-After`` stays."""

    @full.app.errorhandler(503)
    def later(error: ServiceUnavailable) -> Response:
        return Response("later", 503, {"Retry-After": "7"})

    with held(full):
        assert full.app.test_client().get("/").headers["Retry-After"] == "7"


def test_a_connection_taken_by_hand_is_named(full: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """By the line that took it."""
    with full.app.app_context():
        connection = full.uow.engine.connect()
        with pytest.raises(sa.exc.TimeoutError), transactional():
            full.session.execute(sa.text("SELECT 1"))
        connection.close()

    (line,) = lines(caplog)
    assert "in test_a_connection_taken_by_hand_is_named" in line


def test_the_apps_own_page_is_shown(full: Bench) -> None:
    """For 503; Retry-After is put on it."""

    @full.app.errorhandler(503)
    def busy(error: ServiceUnavailable) -> tuple[str, int]:
        return "Come again.", 503

    with held(full):
        refused = full.app.test_client().get("/")

    assert (refused.text, refused.status_code, refused.headers["Retry-After"]) == ("Come again.", 503, "1")


@pytest.mark.parametrize("is_registered_late", [False, True])
def test_the_apps_own_handler_of_the_error_stays(make_bench: MakeBench, is_registered_late: bool) -> None:
    """Whenever it was registered."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS=ONE)
    app = bench.app

    def handle(error: sa.exc.TimeoutError) -> Response:
        return Response("mine", 500)

    if is_registered_late:
        app.register_error_handler(sa.exc.TimeoutError, handle)
    else:
        app.error_handler_spec[None][None][sa.exc.TimeoutError] = handle
    with held(bench):
        refused = app.test_client().get("/")

    assert (refused.text, refused.status_code) == ("mine", 500)


def test_another_error_of_that_class_is_none_of_a_pool(bench: Bench) -> None:
    """It is raised as it is."""

    @bench.app.get("/")
    @transactional
    def view() -> str:
        raise sa.exc.TimeoutError("of something else")

    with pytest.raises(sa.exc.TimeoutError, match="of something else"):
        bench.app.test_client().get("/")


def test_without_statistics_nobody_knows_who_holds_it(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    """The answer is the same."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS=ONE, UOW_STATS=False)
    with held(bench):
        assert bench.app.test_client().get("/").status_code == 503

    assert ["UOW_STATS is off" in line for line in lines(caplog)] == [True]


def test_a_board_that_makes_no_sense_costs_the_line_its_names_alone(
    full: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is the pool's, and not an error about who is in it."""
    with held(full):
        board = full.app.extensions[STATE_KEY].board
        for live in board.homes.values():
            board.words[live.at - 1 + LIVE_KIND] = 99
        assert full.app.test_client().get("/").status_code == 503

    assert ["the board could not be read" in line for line in lines(caplog)] == [True]


def test_many_more_clients_than_connections_are_all_served(make_bench: MakeBench) -> None:
    """None is refused, none waits for ever, and each connection comes back; in which order they are is the queue's."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 5, "max_overflow": 0, "pool_timeout": DEADLINE_S})
    clients, requests = 200, 3

    @bench.app.get("/")
    @transactional
    def view() -> str:
        bench.session.execute(sa.text("SELECT 1"))
        time.sleep(0.002)
        return "served"

    def ask(_: int) -> list[int]:
        client = bench.app.test_client()
        return [client.get("/").status_code for _ in range(requests)]

    with ThreadPoolExecutor(clients) as threads:
        statuses = list(threads.map(ask, range(clients), timeout=4 * DEADLINE_S))

    assert statuses == [[200] * requests] * clients
    assert checked_out(bench.app) == 0


def test_a_client_does_not_learn_who_holds_the_connections(full: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Neither from the page nor from a header; the log names them."""
    with held(full):
        refused = full.app.test_client().get("/")

    told = refused.get_data(as_text=True) + str(refused.headers)
    assert "/slow" in lines(caplog)[0]
    assert not any(name in told for name in ("slow", "test_full_pool", "default", "QueuePool", "sqlalche", "held"))
