"""Read-only units on a real standby: where each runs, what it sees there, and what happens when there is none."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, Request, Response, session
from flask.sessions import SecureCookieSessionInterface
from flask.testing import FlaskClient
from sqlalchemy import orm

from flask_uow import Unit, UnitOfWork, _reader, current_unit, stats, transactional
from flask_uow._state import Link
from flask_uow.exceptions import ConfigurationError, RuleViolationError, UnitOptionsError
from tests.databases import PostgreSQLDatabase, SQLiteDatabase
from tests.faults.interrupts import interrupting_commit
from tests.faults.proxy import LISTEN, Cut, Proxy, run_proxy
from tests.models import RIDES, Item, checked_out, make_app, names
from tests.replicas import DEADLINE_S, Replicated, await_that, replicated, run_replicated
from tests.throwaway_server import find_free_port, throwaway_server

WHERE = sa.text("SELECT pg_is_in_recovery()")
ASK_PRIMARY = "pg_current_wal_insert_lsn"


@dataclass(frozen=True)
class Servers:
    """The run's primary and standby, and a proxy in front of each."""

    primary: sa.URL
    standby: sa.URL
    before_primary: Proxy
    before_standby: Proxy


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """A primary, its standby, and their proxies."""
    with (
        run_replicated() as (primary, standby),
        run_proxy(str(primary.host), int(primary.port or 0)) as before_primary,
        run_proxy(str(standby.host), int(standby.port or 0)) as before_standby,
    ):
        yield Servers(primary, standby, before_primary, before_standby)


@pytest.fixture(params=["psycopg2", "psycopg"])
def both(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Replicated]:
    """Empty tables on both, seen past the proxies."""
    both = replicated(servers.primary, servers.standby, request.param)
    servers.before_primary.reset()
    servers.before_standby.reset()
    yield both
    servers.before_primary.reset()
    servers.before_standby.reset()
    both.standby.execute("SELECT pg_wal_replay_resume()")


@dataclass(frozen=True)
class Bench:
    """An app whose read-only units run on a standby."""

    app: Flask
    uow: UnitOfWork
    both: Replicated
    servers: Servers

    def is_on_standby(self) -> bool:
        """Where the code that runs now has its session."""
        return bool(self.uow.session.scalar(WHERE))

    def read(self, **options: Any) -> bool:
        """Whether a read-only unit runs on the standby."""
        with transactional(read_only=True, **options):
            return self.is_on_standby()

    def add(self, name: str) -> None:
        """Write in a unit."""
        with transactional():
            self.uow.session.add(Item(name=name))

    def warm_up(self) -> None:
        """Put a connection of each engine into its pool, and forget what was sent for it."""
        with self.app.app_context():
            for engine in self.uow.engines.values():
                engine.connect().close()
        self.servers.before_primary.reset()
        self.servers.before_standby.reset()

    def sent(self) -> tuple[list[str], list[str]]:
        """The first words of what the primary and the standby were asked since the last call."""
        return self.servers.before_primary.words(), self.servers.before_standby.words()


MakeBench = Callable[..., Bench]


def through(proxy: Proxy, database: PostgreSQLDatabase) -> str:
    """The URL of a database behind its proxy."""
    url = sa.make_url(database.url).set(host=LISTEN, port=proxy.port)
    return url.render_as_string(hide_password=False)


def nowhere(database: PostgreSQLDatabase) -> str:
    """A URL at which nothing listens."""
    url = sa.make_url(database.url).set(port=find_free_port())
    return url.render_as_string(hide_password=False)


@pytest.fixture
def make_bench(both: Replicated, servers: Servers) -> MakeBench:
    """A function that makes a bench with configuration keys, behind the proxies."""

    def make(**config: object) -> Bench:
        uow = UnitOfWork()
        keys = {
            "SQLALCHEMY_DATABASE_URI": through(servers.before_primary, both.primary),
            "UOW_READER_URI": through(servers.before_standby, both.standby),
            "SECRET_KEY": "a secret",
        }
        app = make_app(both.primary, uow, **(keys | config))
        both.catch_up()
        bench = Bench(app, uow, both, servers)

        @app.post("/items/<name>")
        def write(name: str) -> str:
            bench.add(name)
            return "written"

        @app.get("/items")
        @transactional(read_only=True)
        def read() -> dict[str, object]:
            found = uow.session.scalars(sa.select(Item.name).order_by(Item.name)).all()
            return {"names": list(found), "is_on_standby": bench.is_on_standby()}

        return bench

    return make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A bench with one reader."""
    return make_bench()


def look(client: FlaskClient) -> tuple[list[str], bool]:
    """What a browser reads, and whether from the standby."""
    answer = client.get("/items").get_json()
    return answer["names"], answer["is_on_standby"]


# ---- where a unit runs


def test_only_read_only_units_run_on_the_reader(bench: Bench) -> None:
    """Whatever may write, and what is outside of units, stays on the primary."""
    with bench.app.app_context():
        assert not bench.is_on_standby()
        assert bench.read()
        assert not bench.is_on_standby()
        with transactional():
            assert not bench.is_on_standby()
        with transactional(propagation="supports", read_only=True):
            assert not bench.is_on_standby()


def test_a_read_only_unit_inside_a_writing_one_reads_what_that_wrote(bench: Bench) -> None:
    """It is on the same connection; an independent one is on the reader, and does not see it."""
    with bench.app.app_context(), transactional():
        bench.uow.session.add(Item(name="new"))
        for propagation in ("nested", "required"):
            with transactional(read_only=True, propagation=propagation):
                assert bench.uow.session.scalars(sa.select(Item.name)).all() == ["new"]
        with transactional(read_only=True, propagation="requires_new"):
            assert bench.uow.session.scalars(sa.select(Item.name)).all() == []
            assert bench.is_on_standby()


def test_units_inside_a_reading_one(bench: Bench) -> None:
    """They are on the reader too, but for an independent one that writes."""
    with bench.app.app_context(), transactional(read_only=True):
        with transactional(read_only=True):
            assert bench.is_on_standby()
        with transactional(propagation="requires_new"):
            bench.uow.session.add(Item(name="new"))
            assert not bench.is_on_standby()
        with transactional(propagation="not_supported"):
            assert not bench.is_on_standby()
        assert bench.is_on_standby()

    assert names(bench.both.primary) == ["new"]


@pytest.mark.parametrize(
    ("options", "is_on_standby"),
    [
        ({"timeout": 60}, True),
        ({"isolation": "REPEATABLE READ"}, True),
        ({"isolation": "READ COMMITTED", "timeout": 60}, True),
        ({"isolation": "SERIALIZABLE"}, False),
        ({"isolation": "SERIALIZABLE", "deferrable": True}, False),
        ({"confirm_commit": True}, True),
    ],
    ids=str,
)
def test_options_hold_on_a_reader(bench: Bench, options: dict[str, Any], is_on_standby: bool) -> None:
    """A standby refuses ``SERIALIZABLE``, so the primary runs it."""
    with bench.app.app_context(), transactional(read_only=True, **options):
        level = str(options.get("isolation") or "read committed").lower()
        assert bench.uow.session.scalar(sa.text("SHOW transaction_isolation")) == level
        assert bench.uow.session.scalar(sa.text("SHOW transaction_read_only")) == "on"
        timeout = bench.uow.session.scalar(sa.text("SELECT current_setting('statement_timeout')::interval <> '0'"))
        assert timeout is ("timeout" in options)
        assert bench.is_on_standby() is is_on_standby


def test_a_read_before_the_unit_does_not_keep_it_on_the_primary(bench: Bench) -> None:
    """Its transaction is ended, as for any read-only unit."""
    with bench.app.app_context():
        bench.uow.session.execute(sa.select(Item))
        assert bench.read()


def test_writes_are_refused(bench: Bench) -> None:
    """By the rule what is seen to write, by the server what is not."""
    with bench.app.app_context():
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            bench.uow.session.execute(sa.insert(Item).values(name="new"))
        with pytest.raises(sa.exc.DBAPIError, match="recovery"), transactional(read_only=True):
            bench.uow.session.execute(sa.text("SELECT txid_current()"))
        assert not bench.is_on_standby()


@pytest.mark.parametrize("rides", [True, False])
def test_what_a_reader_costs(make_bench: MakeBench, rides: bool) -> None:
    """What a unit costs anywhere; the primary is asked nothing."""
    bench = make_bench(UOW_RIDE=rides)
    bench.warm_up()
    with bench.app.app_context():
        with transactional(read_only=True):
            assert bench.uow.session.scalars(sa.select(Item)).all() == []
        assert bench.sent() == ([], ["SELECT"] if rides else ["BEGIN", "SELECT", "COMMIT"])

        assert bench.read()
        assert bench.sent() == ([], ["BEGIN", "COMMIT"] if rides else ["BEGIN", "SELECT", "COMMIT"])


@pytest.mark.parametrize("is_bound", [False, True])
def test_binds_beside_a_reader(make_bench: MakeBench, both: Replicated, is_bound: bool) -> None:
    """Only the default database has readers, also where a class names it."""
    bench = make_bench(SQLALCHEMY_BINDS={"log": both.primary.url})
    clause = {"bind_key": "default"} if is_bound else {}
    table = sa.Table("item", sa.MetaData(), sa.Column("name"), info=clause)
    logged = sa.Table("item", sa.MetaData(), sa.Column("name"), info={"bind_key": "log"})
    with bench.app.app_context(), transactional(read_only=True):
        assert bench.uow.session.scalar(sa.select(sa.func.pg_is_in_recovery()).select_from(table)) is None
        bench.both.pause()
        bench.both.primary.execute("INSERT INTO item (name) VALUES ('new')")
        assert bench.uow.session.scalars(sa.select(table.c.name)).all() == []
        assert bench.uow.session.scalars(sa.select(logged.c.name)).all() == ["new"]


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_a_write_to_a_bind_keeps_nobody_from_the_reader(make_bench: MakeBench, both: Replicated, mode: str) -> None:
    """The reader has no copy of it to be late with."""
    bench = make_bench(SQLALCHEMY_BINDS={"log": both.primary.url}, UOW_READ_YOUR_WRITES=mode)
    logged = sa.Table("item", sa.MetaData(), sa.Column("name"), info={"bind_key": "log"})
    bench.both.pause()
    with bench.app.app_context():
        with transactional():
            bench.uow.session.execute(sa.insert(logged).values(name="new"))
        assert bench.read()


def test_two_phases_beside_a_reader(make_bench: MakeBench, both: Replicated) -> None:
    """A unit that reads in two databases ends on the standby as well."""
    bench = make_bench(SQLALCHEMY_BINDS={"log": both.primary.url}, UOW_TWO_PHASE=True)
    logged = sa.Table("item", sa.MetaData(), sa.Column("name"), info={"bind_key": "log"})
    with bench.app.app_context(), transactional(read_only=True) as unit:
        assert bench.is_on_standby()
        assert bench.uow.session.scalars(sa.select(logged.c.name)).all() == []

    assert unit.was_committed


# ---- what it sees


def test_a_reader_may_be_late(bench: Bench) -> None:
    """Switched off, a browser may miss what it has just written."""
    bench.both.pause()
    client = bench.app.test_client()

    client.post("/items/new")

    assert look(client) == ([], True)
    bench.both.resume()
    assert look(client) == (["new"], True)


def test_a_writing_unit_reads_fresh_rows(bench: Bench) -> None:
    """What a late reader has loaded is loaded again from the primary before it is changed."""
    bench.both.primary.execute("INSERT INTO item (name) VALUES ('old')")
    bench.both.catch_up()
    bench.both.pause()
    bench.both.primary.execute("UPDATE item SET name = 'newer'")
    with bench.app.app_context():
        with transactional(read_only=True):
            item = bench.uow.session.scalars(sa.select(Item)).one()
            assert item.name == "old"
        assert item.name == "old"
        with transactional():
            assert item.name == "newer"
            item.name += "!"

    assert names(bench.both.primary) == ["newer!"]


# ---- reading what was written: by its position


def test_lsn_reads_from_the_primary_until_the_reader_has_come(make_bench: MakeBench) -> None:
    """Only the browser that wrote; another one takes what is there."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn")
    writer, other = bench.app.test_client(), bench.app.test_client()
    bench.both.pause()

    writer.post("/items/new")

    assert look(writer) == (["new"], False)
    assert look(other) == ([], True)
    assert look(writer) == (["new"], False)
    assert writer.get("/items").headers["Vary"] == "Cookie"
    bench.both.resume()
    assert look(writer) == (["new"], True)


@pytest.mark.parametrize("rides", [True, False])
def test_what_lsn_costs(make_bench: MakeBench, rides: bool) -> None:
    """One question after the COMMIT, one to each connection that has not come as far, and then none."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_RIDE=rides)
    bench.warm_up()
    client = bench.app.test_client()
    # The names need no transaction; of the other statement that is not known.
    reading = ["SELECT", "BEGIN", "COMMIT"] if rides else ["BEGIN", "SELECT", "SELECT", "COMMIT"]

    look(client)
    assert bench.sent() == ([], reading)

    client.post("/items/new")
    assert bench.sent() == (["BEGIN", *([] if rides else ["INSERT"]), "COMMIT", "SELECT"], [])

    bench.both.catch_up()
    look(client)
    assert bench.sent() == ([], ["SELECT", *reading] if rides else ["BEGIN", "SELECT", "SELECT", "SELECT", "COMMIT"])
    look(client)
    assert bench.sent() == ([], reading)


@pytest.mark.parametrize(("rides", "count"), [(True, 3), (False, 6)])
def test_what_lsn_costs_a_snapshot(make_bench: MakeBench, rides: bool, count: int) -> None:
    """It is taken after the question; a driver that has begun for that begins again."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_RIDE=rides)
    bench.warm_up()
    with bench.app.app_context():
        bench.add("new")
        bench.both.catch_up()
        bench.sent()
        assert bench.read(isolation="REPEATABLE READ")

    primary, standby = bench.sent()
    assert primary == []
    assert len(standby) == count


def test_the_same_server_again(make_bench: MakeBench, both: Replicated) -> None:
    """A reader that is no standby, or none any more, has always come far enough."""
    bench = make_bench(UOW_READER_URI=both.primary.url, UOW_READ_YOUR_WRITES="lsn")
    with bench.app.app_context():
        bench.add("new")
        with transactional(read_only=True):
            assert bench.uow.session.connection().engine is bench.uow.get_engine("reader")
            assert bench.uow.session.scalars(sa.select(Item.name)).all() == ["new"]


@pytest.mark.parametrize("rides", [True, False])
def test_what_an_isolated_write_costs(make_bench: MakeBench, rides: bool) -> None:
    """The question comes on the same connection; where nothing rides, psycopg2 takes its level back by a statement."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_RIDE=rides)
    bench.warm_up()
    with bench.app.app_context(), transactional(isolation="SERIALIZABLE"):
        bench.uow.session.add(Item(name="new"))

    if rides:
        assert bench.sent() == (["BEGIN", "COMMIT", "SELECT"], [])
    else:
        taken_back = ["SET"] if bench.both.primary.backend == "psycopg2" else []
        assert bench.sent() == (["BEGIN", "INSERT", "COMMIT", "SELECT", *taken_back], [])


@pytest.mark.parametrize(("rides", "counts"), [(True, [3, 4, 3]), (False, [3, 5, 4])])
def test_what_server_timing_counts(make_bench: MakeBench, rides: bool, counts: list[int]) -> None:
    """The question to a reader; the one after COMMIT, which SQLAlchemy does not see, only where statements ride."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_SERVER_TIMING=True, UOW_RIDE=rides)
    bench.warm_up()
    client = bench.app.test_client()

    told = [client.post("/items/new").headers["Server-Timing"]]
    bench.both.catch_up()
    told += [client.get("/items").headers["Server-Timing"] for _ in range(2)]

    assert [int(each.partition('desc="')[2].split()[0]) for each in told] == counts


def test_a_unit_that_wrote_nothing_asks_nothing(make_bench: MakeBench) -> None:
    """Nor does one that was rolled back; a commit by hand outside of units is one."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_RULES="off")

    @bench.app.post("/nothing")
    def nothing() -> str:
        with transactional():
            bench.is_on_standby()
        with pytest.raises(ValueError, match="no"), transactional():
            bench.uow.session.execute(sa.insert(Item).values(name="new"))
            raise ValueError("no")
        return "" if _reader.WRITTEN in session else "nothing"

    @bench.app.post("/by-hand")
    def by_hand() -> str:
        bench.uow.session.add(Item(name="new"))
        bench.uow.session.commit()
        return "written" if _reader.WRITTEN in session else ""

    client = bench.app.test_client()
    assert client.post("/nothing").text == "nothing"
    assert client.post("/by-hand").text == "written"


def test_what_was_written_earlier_in_the_same_request(make_bench: MakeBench) -> None:
    """It is known before the cookie is sent."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn")
    bench.both.pause()

    @bench.app.post("/both")
    def both() -> list[str]:
        bench.add("new")
        with transactional(read_only=True):
            return list(bench.uow.session.scalars(sa.select(Item.name)))

    assert bench.app.test_client().post("/both").get_json() == ["new"]


def test_atomic_requests_carry_the_cookie(make_bench: MakeBench) -> None:
    """Their COMMIT comes after the last ``after_request`` function, when the response has its cookie already."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_ATOMIC_REQUESTS={"POST"})

    @bench.app.after_request
    def note(response: Response) -> Response:
        session["noted"] = True
        response.set_cookie("another", "one")
        return response

    bench.both.pause()
    client = bench.app.test_client()

    cookies = client.post("/items/new").headers.getlist("Set-Cookie")

    assert [cookie.partition("=")[0] for cookie in cookies] == ["another", "session"]
    assert look(client) == (["new"], False)
    with client.session_transaction() as cookie:
        assert cookie["noted"]


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_without_a_request_the_app_context_remembers(make_bench: MakeBench, mode: str) -> None:
    """A command reads what it has written; another context knows nothing of it."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode)
    bench.both.pause()
    with bench.app.app_context():
        assert bench.read()
        bench.add("new")
        assert not bench.read()
        with bench.app.app_context():
            assert bench.read()


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_snapshot_is_taken_after_the_question(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, isolation: str, timeout: float | None
) -> None:
    """What the reader replays between its answer and the first statement is seen, whatever the isolation."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn")
    renew = Unit.renew_snapshot

    def add_and_renew(unit: Unit, link: Link) -> None:
        bench.both.primary.execute("INSERT INTO item (name) VALUES ('meanwhile')")
        bench.both.catch_up()
        renew(unit, link)

    with bench.app.app_context():
        bench.add("new")
        bench.both.catch_up()
        monkeypatch.setattr(Unit, "renew_snapshot", add_and_renew)
        with transactional(read_only=True, isolation=isolation, timeout=timeout):
            assert bench.is_on_standby()
            assert bench.uow.session.scalars(sa.select(Item.name)).all() == ["new", "meanwhile"]
            limit = bench.uow.session.scalar(sa.text("SELECT current_setting('statement_timeout')::interval <> '0'"))
            assert limit is (timeout is not None)
            assert bench.uow.session.scalar(sa.text("SHOW transaction_isolation")) == isolation.lower()


def test_a_position_that_cannot_be_learnt(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    """What is committed stays so, and the time of it is taken."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn")
    bench.both.pause()
    bench.servers.before_primary.cut(Cut.BEFORE, statement=ASK_PRIMARY)
    client = bench.app.test_client()

    assert client.post("/items/new").text == "written"

    assert "The position of a COMMIT could not be learnt" in caplog.text
    assert names(bench.both.primary) == ["new"]
    with client.session_transaction() as cookie:
        assert isinstance(cookie[_reader.WRITTEN], float)
    assert look(client) == (["new"], False)


@pytest.mark.parametrize("rides", [True, False])
def test_a_reader_that_is_lost_when_it_is_asked(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture, rides: bool
) -> None:
    """How far it has come nobody knows, and the unit runs on the primary."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn", UOW_RIDE=rides)
    bench.warm_up()
    bench.servers.before_standby.cut(Cut.BEFORE, statement="pg_last_wal_replay_lsn")
    with bench.app.app_context():
        bench.add("new")
        with transactional(read_only=True) as unit:
            assert not bench.is_on_standby()
        assert unit.was_committed

    assert len(warnings(caplog)) == 1
    assert checked_out(bench.app) == 0


@pytest.mark.parametrize("mode", ["lsn", "time"])
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_a_commit_of_which_nobody_knows(make_bench: MakeBench, mode: str, cut: Cut) -> None:
    """Who then looks whether the work is there looks on the primary."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode, UOW_READ_YOUR_WRITES_SECONDS=1000, TESTING=False)
    client = bench.app.test_client()
    bench.both.pause()
    bench.servers.before_primary.cut(cut)

    assert client.post("/items/new").status_code == 500

    kept = [] if cut is Cut.BEFORE else ["new"]
    await_that(lambda: names(bench.both.primary) == kept)  # a server may still be at it when its client is gone
    assert look(client) == (kept, False)


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_a_commit_that_is_interrupted(make_bench: MakeBench, mode: str) -> None:
    """Nor does anybody know of that one, and who goes on after it reads from the primary."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode, UOW_READ_YOUR_WRITES_SECONDS=1000)
    bench.both.pause()
    with bench.app.app_context():
        with (
            interrupting_commit(bench.servers.before_primary, KeyboardInterrupt("in the middle of COMMIT")),
            pytest.raises(KeyboardInterrupt, match="in the middle of COMMIT"),
        ):
            bench.add("new")
        with transactional(read_only=True):
            assert not bench.is_on_standby()
            assert bench.uow.session.scalars(sa.select(Item.name)).all() == ["new"]


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_a_commit_that_is_lost_and_confirmed(make_bench: MakeBench, mode: str) -> None:
    """The connection that could tell its position is gone, and its time is taken."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode, UOW_READ_YOUR_WRITES_SECONDS=1000)
    bench.both.pause()
    bench.servers.before_primary.cut(Cut.REPLY)
    with bench.app.app_context():
        with transactional(confirm_commit=True) as unit:
            bench.uow.session.add(Item(name="new"))
        assert unit.was_committed
        assert not bench.read()


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_a_commit_that_is_refused(make_bench: MakeBench, mode: str) -> None:
    """It has written nothing."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode)
    bench.both.primary.execute(
        "ALTER TABLE item DROP CONSTRAINT item_name_key, ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
    )
    bench.both.primary.execute("INSERT INTO item (name) VALUES ('new')")
    bench.both.catch_up()
    client = bench.app.test_client()

    with pytest.raises(sa.exc.IntegrityError, match="item_name_key"):
        client.post("/items/new")

    assert look(client) == (["new"], True)


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_a_session_that_is_emptied_for_who_logs_in(make_bench: MakeBench, mode: str) -> None:
    """What the same request has written is not forgotten; who logs out leaves no cookie."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode, UOW_READ_YOUR_WRITES_SECONDS=1000)
    client = bench.app.test_client()
    bench.both.pause()

    @bench.app.post("/register/<name>")
    def register(name: str) -> str:
        bench.add(name)
        session.clear()
        session["user"] = name
        return str(bench.read())

    @bench.app.post("/leave")
    def leave() -> str:
        bench.add("farewell")
        session.clear()
        return "left"

    assert client.post("/register/new").text == "False"
    assert look(client) == (["new"], False)
    client.post("/leave")
    assert client.get_cookie("session") is None


def test_two_browsers_under_one_app_context(make_bench: MakeBench) -> None:
    """A test's own context, which its requests share: what one has written is nothing to the other."""
    bench = make_bench(UOW_READ_YOUR_WRITES="time", UOW_READ_YOUR_WRITES_SECONDS=1000)
    writer, other = bench.app.test_client(), bench.app.test_client()
    bench.both.pause()

    with bench.app.app_context():
        writer.post("/items/new")
        assert look(writer) == (["new"], False)
        assert look(other) == ([], True)


# ---- by its time


def test_time_reads_from_the_primary_for_a_time(make_bench: MakeBench) -> None:
    """However far the reader has come."""
    bench = make_bench(UOW_READ_YOUR_WRITES="time", UOW_READ_YOUR_WRITES_SECONDS=1000)
    bench.warm_up()
    client = bench.app.test_client()
    assert look(client) == ([], True)
    bench.sent()

    client.post("/items/new")
    assert bench.sent() == (["BEGIN", "COMMIT"] if RIDES else ["BEGIN", "INSERT", "COMMIT"], [])
    bench.both.catch_up()
    assert look(client) == (["new"], False)

    with client.session_transaction() as cookie:
        cookie[_reader.WRITTEN] -= 1001
    assert look(client) == (["new"], True)


def test_without_a_session(make_bench: MakeBench) -> None:
    """Where the app's own interface opens none, no key would help."""

    class NoSessions(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Request) -> None:
            return None

    bench = make_bench(UOW_READ_YOUR_WRITES="time")
    bench.app.session_interface = NoSessions()

    with pytest.raises(ConfigurationError, match=r"(?s)has opened none for this request\..*session_interface"):
        bench.app.test_client().get("/items")


@pytest.mark.parametrize("mode", ["lsn", "time"])
def test_without_a_secret_key(make_bench: MakeBench, mode: str) -> None:
    """Nothing could be remembered: who reads hears so, who writes does not; the key may come after ``init_app``."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode, SECRET_KEY=None)
    client = bench.app.test_client()

    assert client.post("/items/new").text == "written"
    with pytest.raises(ConfigurationError, match=rf"UOW_READ_YOUR_WRITES = '{mode}': .* no secret key") as caught:
        client.get("/items")
    assert "SECRET_KEY" in str(caught.value.fix)

    bench.app.secret_key = "late"
    bench.both.catch_up()
    assert look(client) == (["new"], True)


# ---- readers that are lost


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was warned of."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_readers_take_turns(make_bench: MakeBench, both: Replicated, servers: Servers) -> None:
    """From context to context; in one context all units see the same one."""
    uris = f"{through(servers.before_standby, both.standby)}, {both.standby.url}"
    bench = make_bench(UOW_READER_URI=uris)
    bench.warm_up()

    asked = []
    for _ in range(4):
        with bench.app.app_context():
            for _ in range(2):
                assert bench.read()
        asked.append(len(servers.before_standby.words()))

    assert asked == ([4, 0, 4, 0] if RIDES else [6, 0, 6, 0])


def test_one_reader_is_down(make_bench: MakeBench, both: Replicated, caplog: pytest.LogCaptureFixture) -> None:
    """The next one serves; it is said once."""
    bench = make_bench(UOW_READER_URI=[nowhere(both.standby), both.standby.url])
    for _ in range(3):
        with bench.app.app_context():
            assert bench.read()

    (warning,) = warnings(caplog)
    assert warning.startswith("The reader 'reader' cannot be reached; until it can, its units run on the next one, or")
    assert "refused" in warning
    assert str(sa.make_url(both.standby.url).password) not in warning


def test_all_readers_are_down(make_bench: MakeBench, both: Replicated, caplog: pytest.LogCaptureFixture) -> None:
    """The primary serves; each outage is said once, and what comes after it too."""
    bench = make_bench(UOW_READER_URI=[nowhere(both.standby), nowhere(both.standby)])
    for _ in range(3):
        with bench.app.app_context():
            assert not bench.read()

    assert [warning.split("'")[1] for warning in warnings(caplog)] == ["reader", "reader2"]


def test_a_reader_comes_back(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After an outage it is tried again from time to time."""
    caplog.set_level(logging.INFO)
    proxy = bench.servers.before_standby
    proxy.cut(Cut.BEFORE, statement="SELECT", refuse=True)
    with bench.app.app_context():
        assert not bench.read()
        proxy.reset()
        assert not bench.read()
        monkeypatch.setattr(_reader, "RETRY_S", 0.0)
        bench.app.extensions["uow_state"].readers._readers[0]._try_again_s = 0.0
        assert bench.read()
        monkeypatch.undo()
        assert bench.read()
        assert bench.read()

    assert caplog.messages.count("The reader 'reader' can be reached again.") == 1
    assert len(warnings(caplog)) == 1


def test_one_unit_at_a_time_tries_a_lost_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for an answer, the others go on; where that does not come, the next one tries later."""
    reader = _reader.Reader(Flask("bank"), "reader", sa.create_engine("postgresql+psycopg2://nowhere/bank"))
    now_s = time.monotonic()
    monkeypatch.setattr(_reader, "time", SimpleNamespace(monotonic=lambda: now_s))
    reader.note_lost(ConnectionRefusedError("refused"))

    tried = []
    for later_s in (0.0, _reader.RETRY_S, _reader.RETRY_S, 2 * _reader.RETRY_S, 2 * _reader.RETRY_S):
        monkeypatch.setattr(_reader, "time", SimpleNamespace(monotonic=lambda s=now_s + later_s: s))
        tried.append(reader.is_to_be_tried())

    assert tried == [False, True, False, True, False]


def test_a_server_that_is_stopped(make_bench: MakeBench, both: Replicated, servers: Servers) -> None:
    """Nobody sees an error."""
    url = servers.primary.set(drivername="postgresql").render_as_string(hide_password=False)
    with throwaway_server(standby_of=url) as standby:
        uri = sa.make_url(standby).set(drivername=sa.make_url(both.primary.url).drivername)
        bench = make_bench(UOW_READER_URI=uri)
        with bench.app.app_context():
            assert bench.read()
    with bench.app.app_context():
        assert not bench.read()
        assert not bench.read()


@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"isolation": "REPEATABLE READ"}], ids=str)
def test_lost_at_the_first_statement(bench: Bench, caplog: pytest.LogCaptureFixture, options: dict[str, Any]) -> None:
    """Nothing was read yet, so the unit goes on on the primary, with its options."""
    bench.warm_up()
    bench.servers.before_standby.cut(Cut.BEFORE, statement="BEGIN|SELECT")
    with bench.app.app_context():
        with transactional(read_only=True, **options) as unit:
            assert not bench.is_on_standby()
            assert bench.uow.session.scalar(sa.text("SHOW transaction_read_only")) == "on"
            if "isolation" in options:
                assert bench.uow.session.scalar(sa.text("SHOW transaction_isolation")) == "repeatable read"
        assert unit.was_committed

    assert len(warnings(caplog)) == 1


def test_several_are_lost_at_the_first_statement(
    make_bench: MakeBench, both: Replicated, servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other, down to the primary."""
    bench = make_bench(UOW_READER_URI=[through(servers.before_standby, both.standby)] * 2)
    bench.warm_up()
    bench.servers.before_standby.cut(Cut.BEFORE, times=2, statement="BEGIN")
    with bench.app.app_context(), transactional(read_only=True):
        assert not bench.is_on_standby()

    assert [warning.split("'")[1] for warning in warnings(caplog)] == ["reader", "reader2"]


@pytest.mark.parametrize(
    "read",
    [
        lambda session: session.get(Item, 1),
        lambda session: session.query(Item).all(),
        lambda session: session.execute(sa.select(Item)).all(),
        lambda session: session.scalars(sa.text("SELECT 1")).all(),
    ],
    ids=["get", "query", "execute", "scalars"],
)
def test_whatever_reads_first(bench: Bench, read: Callable[[orm.Session], object]) -> None:
    """All ways of a session to read lead the same way."""
    bench.warm_up()
    bench.servers.before_standby.cut(Cut.BEFORE, statement="BEGIN|SELECT")
    with bench.app.app_context(), transactional(read_only=True):
        read(bench.uow.session())
        assert not bench.is_on_standby()


def test_lost_later(bench: Bench) -> None:
    """What was read cannot be read again for the body: the error goes up."""
    with bench.app.app_context():
        with pytest.raises(sa.exc.OperationalError), transactional(read_only=True):
            assert bench.is_on_standby()
            bench.servers.before_standby.cut(Cut.BEFORE, statement="SELECT")
            bench.is_on_standby()
        assert bench.read()


def test_lost_inside_a_savepoint(bench: Bench) -> None:
    """The savepoint was an answer."""
    with bench.app.app_context():
        with pytest.raises(sa.exc.OperationalError), transactional(read_only=True), transactional(read_only=True):
            bench.servers.before_standby.cut(Cut.BEFORE, statement="SELECT")
            bench.is_on_standby()
        assert bench.read()


def test_another_attempt_runs_on_the_primary(bench: Bench) -> None:
    """What only reads can be done again, where retries allow it."""
    seen = []

    @transactional(read_only=True, retries=1)
    def read() -> str:
        seen.append(bench.is_on_standby())
        if len(seen) == 1:
            bench.servers.before_standby.cut(Cut.BEFORE, statement="SELECT")
        bench.is_on_standby()
        return "read"

    with bench.app.app_context():
        assert read() == "read"

    assert seen == [True, False]


@contextmanager
def impatient(standby: PostgreSQLDatabase) -> Iterator[None]:
    """Let a standby, which serves the tests after this one as well, wait for no query that is in its way."""
    standby.execute("ALTER SYSTEM SET max_standby_streaming_delay = 0")
    standby.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        standby.execute("ALTER SYSTEM RESET max_standby_streaming_delay")
        standby.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_conflict_with_recovery(bench: Bench, is_idle: bool) -> None:
    """A standby that cancels a statement, or a session that idles, is left for the primary by the next attempt."""
    both, seen = bench.both, []
    both.primary.execute("INSERT INTO item (name) SELECT i::text FROM generate_series(1, 1000) AS i")
    both.catch_up()

    def provoke() -> None:
        both.primary.execute("DELETE FROM item")
        both.primary.execute("VACUUM item")
        both.catch_up()

    @transactional(read_only=True, isolation="REPEATABLE READ", retries=1)
    def read() -> None:
        seen.append((bench.is_on_standby(), bench.uow.session.scalar(sa.select(sa.func.count()).select_from(Item))))
        if len(seen) == 1 and is_idle:
            provoke()
        elif len(seen) == 1:
            with beside(provoke, both.standby):
                bench.uow.session.execute(sa.text("SELECT pg_sleep(10)"))
        bench.is_on_standby()

    with impatient(both.standby), bench.app.app_context():
        read()

    assert seen == [(True, 1000), (False, 0)]


def test_a_pool_that_is_busy(make_bench: MakeBench) -> None:
    """Is no lost reader: who waits too long for it hears so, and the session works on."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1})
    with bench.app.app_context():
        with bench.uow.get_engine("reader").connect():
            with pytest.raises(sa.exc.TimeoutError), transactional(read_only=True):
                pass
            bench.add("new")
        assert bench.read()


# ---- pools and the command


def test_a_reader_is_an_engine(make_bench: MakeBench, both: Replicated) -> None:
    """Of the same options as the primary's, with a name of its own."""
    options = {"pool_size": 3, "connect_args": {"connect_timeout": 7}}
    bench = make_bench(UOW_READER_URI=[both.standby.url] * 2, SQLALCHEMY_ENGINE_OPTIONS=options)
    with bench.app.app_context():
        assert list(bench.uow.engines) == ["default", "reader", "reader2"]
        assert bench.uow.get_engine("reader").pool.size() == 3  # type: ignore[attr-defined]
        with bench.uow.get_engine("reader2").connect() as connection:
            assert connection.scalar(WHERE)
            name = connection.scalar(sa.text("SHOW application_name"))
    assert str(name).startswith(f"flask_uow:{bench.app.name}:")


def test_the_command_shows_readers(bench: Bench) -> None:
    """Their pool, and which unit holds a connection of it."""
    with bench.app.app_context(), transactional(read_only=True, label="reading"):
        bench.is_on_standby()
        seen = stats.snapshot(bench.app)

    primary, standby = seen.databases
    assert (primary.binds, standby.binds) == (("default",), ("reader",))
    assert [(each.unit, each.state) for each in standby.sessions] == [("reading", "idle in transaction")]
    assert primary.sessions == ()
    ((pool, in_use),) = [(each.bind, each.checked_out) for worker in seen.workers for each in worker.pools]
    assert (pool, in_use) == ("reader", 1)


def test_a_unit_that_went_elsewhere_holds_what_it_has_now(make_bench: MakeBench) -> None:
    """Nothing of the reader's is said to be held any more."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn")
    bench.both.pause()
    with bench.app.app_context():
        bench.add("new")
        with transactional(read_only=True, label="reading"):
            assert not bench.is_on_standby()
            seen = stats.snapshot(bench.app)

    primary, standby = seen.databases
    assert [(each.unit, each.state) for each in primary.sessions] == [("reading", "idle in transaction")]
    assert [(each.unit, each.state) for each in standby.sessions] == [(None, "idle")]


def test_units_that_hold_all_of_a_readers_pool(make_bench: MakeBench) -> None:
    """One more goes on to the primary, instead of waiting for itself."""
    bench = make_bench(SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0})
    with bench.app.app_context(), transactional(read_only=True):
        assert bench.is_on_standby()
        with transactional(read_only=True, propagation="requires_new"):
            assert not bench.is_on_standby()
            with pytest.raises(UnitOptionsError, match="hold all 1 connections"):
                with transactional(propagation="requires_new"):
                    pass


# ---- other engines


def test_engines_of_somebody_else(both: Replicated) -> None:
    """They choose by themselves: the unit is there already when its session is asked for its engine."""
    primary, standby = sa.create_engine(both.primary.url), sa.create_engine(both.standby.url)

    class Reading(orm.Session):
        def get_bind(self, *args: Any, **options: Any) -> sa.Engine:
            return standby if current_unit and current_unit.read_only else primary

    app = Flask(__name__)
    uow = UnitOfWork(app, sessionmaker=orm.sessionmaker(class_=Reading))
    with app.app_context():
        with transactional(read_only=True):
            assert uow.session.scalar(WHERE)
        with transactional():
            assert not uow.session.scalar(WHERE)
    primary.dispose()
    standby.dispose()


def test_a_session_that_is_bound_to_another_database(both: Replicated) -> None:
    """The reader is no copy of that."""
    other = sa.create_engine(both.primary.url)
    uow = UnitOfWork(session_options={"bind": other})
    app = make_app(both.primary, uow, UOW_READER_URI=both.standby.url)
    with app.app_context(), transactional(read_only=True):
        assert not uow.session.scalar(WHERE)
    other.dispose()


@pytest.mark.parametrize("mode", ["off", "time"])
def test_a_file_that_is_read_by_another_engine(tmp_path: Path, mode: str) -> None:
    """Any database can have readers; SQLite's file, a second pool."""
    database = SQLiteDatabase(tmp_path / "bank.db")
    uow = UnitOfWork()
    app = make_app(database, uow, UOW_READER_URI=database.url, UOW_READ_YOUR_WRITES=mode)
    engines = []

    def read() -> list[str]:
        engines.append(uow.session.connection().engine)
        return list(uow.session.scalars(sa.select(Item.name)))

    with app.app_context():
        with transactional(read_only=True):
            assert read() == []
        with transactional():
            uow.session.add(Item(name="new"))
        with transactional(read_only=True):
            assert read() == ["new"]
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            uow.session.execute(sa.insert(Item).values(name="no"))
        assert engines == [uow.get_engine("reader"), uow.get_engine("reader" if mode == "off" else "default")]


@contextmanager
def beside(function: Callable[[], None], standby: PostgreSQLDatabase) -> Iterator[None]:
    """Run it in a thread as soon as a statement sleeps on the standby, and wait for it."""

    def run() -> None:
        await_that(lambda: any("pg_sleep" in each.query for each in standby.sessions()))
        function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)


FOREIGN = ["x", "", True, False, None, [1], {"a": 1}, -1, 0, 2**200, 10**3000, -0.5, 1e300, float("nan"), float("inf")]


@pytest.mark.parametrize("mode", ["lsn", "time"])
@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda value: repr(value)[:12])
def test_a_cookie_of_somebody_else(make_bench: MakeBench, mode: str, foreign: object) -> None:
    """Whatever an app with the same key has put there: it is read as nothing worse than a need for the primary."""
    bench = make_bench(UOW_READ_YOUR_WRITES=mode)
    client = bench.app.test_client()
    with client.session_transaction() as cookie:
        cookie[_reader.WRITTEN] = foreign

    names, is_on_standby = look(client)

    is_position = mode == "lsn" and isinstance(foreign, int) and foreign > 1
    assert (names, is_on_standby) == ([], not is_position)
    client.post("/items/new")
    with client.session_transaction() as cookie:
        assert isinstance(cookie[_reader.WRITTEN], int if mode == "lsn" else float)


def test_a_cookie_that_was_tampered_with(make_bench: MakeBench) -> None:
    """Flask's signature no longer fits, so that there is no session: the reader serves, as for any other client."""
    bench = make_bench(UOW_READ_YOUR_WRITES="lsn")
    client = bench.app.test_client()
    client.post("/items/new")
    bench.both.catch_up()
    client.set_cookie("session", "eyJfdW93X3dyaXR0ZW4iOjF9.forged.signature" + "x" * 3000)

    assert look(client) == (["new"], True)
