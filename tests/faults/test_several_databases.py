"""One unit over several databases: the order of their commits, and what is said when one fails after another."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy import orm

from flask_uow import UnitOfWork, _commit, _outcome, _two_phase, current_unit, signals, stats, transactional
from flask_uow.exceptions import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    PartialCommitError,
    UnitFailedError,
    UnitOptionsError,
)
from tests.databases import Database
from tests.faults.interrupts import interrupting_commit
from tests.faults.proxy import LISTEN, Cut, Proxy
from tests.models import Item, checked_out, create_tables, make_app, names

on_postgresql = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


class Base(orm.DeclarativeBase):
    """Of the second database's models."""

    metadata = sa.MetaData(info={"bind_key": "audit"})


class Line(Base):
    """A row of the second database, in a table of the same name; its name is checked when the unit commits."""

    __tablename__ = "item"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column()


@dataclass
class Pair:
    """An app with two databases, the second one's bind called ``audit``."""

    app: Flask
    uow: UnitOfWork
    first: Database
    second: Database

    def write(self, *, to: str = "both", **options: Any) -> None:
        """One unit that writes a row to each."""
        with self.app.app_context(), transactional(**options):
            if to != "first":
                self.uow.session.add(Line(name="second"))
                self.uow.session.flush()  # the second one is taken first
            if to != "second":
                self.uow.session.add(Item(name="first"))

    def committed(self) -> list[str]:
        """The names in both."""
        return names(self.first) + names(self.second)

    def prepared(self) -> list[str]:
        """The names of what is left prepared in either."""
        return [gid for (gid,) in self.first.rows("SELECT gid FROM pg_prepared_xacts ORDER BY gid")]


MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(database: Database, second_database: Database, proxy: Proxy) -> Iterator[MakePair]:
    """A function that makes a pair; the binds that it names lie behind the proxy."""
    made = []

    def make(*behind_proxy: str, **config: Any) -> Pair:
        def url(name: str, of: Database) -> str:
            if name not in behind_proxy:
                return of.url
            return sa.make_url(of.url).set(host=LISTEN, port=proxy.port).render_as_string(hide_password=False)

        create_tables(second_database)
        uow = UnitOfWork()
        config = {"SQLALCHEMY_BINDS": {"audit": url("audit", second_database)}} | config
        app = make_app(database, uow, SQLALCHEMY_DATABASE_URI=url("default", database), **config)
        made.append(Pair(app, uow, database, second_database))
        return made[-1]

    yield make
    proxy.reset()
    for pair in made:
        if pair.first.is_postgresql:
            for gid, place in pair.first.rows("SELECT gid, database FROM pg_prepared_xacts"):
                of = pair.first if pair.first.url.endswith(place) else pair.second
                conclude(of, f"ROLLBACK PREPARED '{gid}'")
        assert checked_out(pair.app) == 0
        for each in (pair.first, pair.second):
            # A COMMIT whose answer was lost may still be under way.
            each.execute(
                "BEGIN; LOCK TABLE item; DELETE FROM item; COMMIT" if each.is_postgresql else "DELETE FROM item"
            )
        pair.write()
        assert pair.committed() == ["first", "second"]


def conclude(database: Database, statement: str) -> None:
    """Run what no transaction may hold."""
    connection = database.connect()
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def defer_refusal(database: Database) -> None:
    """Let the database refuse every row when its transaction commits."""
    database.execute("CREATE FUNCTION refuse() RETURNS trigger AS 'BEGIN RAISE ''refused''; END' LANGUAGE plpgsql")
    database.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )


def accept(database: Database) -> None:
    """Take that back."""
    database.execute("DROP TRIGGER refuse ON item")
    database.execute("DROP FUNCTION refuse()")


@pytest.fixture
def soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers are asked for a moment only."""
    monkeypatch.setattr(_outcome, "DEADLINE_S", 0.1)
    monkeypatch.setattr(_two_phase, "DEADLINE_S", 0.1)


class Heard:
    """What a unit's hooks and signals say of its end."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self) -> None:
        current_unit.after_commit(lambda: self.said.append("committed"))
        current_unit.after_rollback(lambda: self.said.append("rolled back"))


# ---- one after the other


def test_one_unit_commits_both(make_pair: MakePair) -> None:
    """And an exception undoes both."""
    pair = make_pair()
    pair.write()

    with pytest.raises(ValueError, match="no"), pair.app.app_context(), transactional():
        pair.uow.session.add_all([Item(name="undone"), Line(name="undone")])
        pair.uow.session.flush()
        raise ValueError("no")

    assert pair.committed() == ["first", "second"]


@on_postgresql
def test_they_commit_in_the_order_of_their_configuration(make_pair: MakePair, proxy: Proxy) -> None:
    """The default one first, however often: while it has not committed, the one that the unit met first has not."""
    pair = make_pair("default")
    for _ in range(8):
        proxy.cut(Cut.BEFORE)
        with pytest.raises(CommitOutcomeUnknownError):
            pair.write()
        assert pair.committed() == []


@on_postgresql
def test_the_first_that_fails_leaves_nothing(make_pair: MakePair) -> None:
    """Its error leaves the unit unchanged, and both are rolled back."""
    pair = make_pair()
    defer_refusal(pair.first)

    with pytest.raises(sa.exc.DBAPIError, match="refused"):
        pair.write()

    assert pair.committed() == []
    accept(pair.first)


@on_postgresql
def test_a_second_that_fails_is_named_with_the_first(make_pair: MakePair) -> None:
    """The first has committed and cannot be taken back: the error says which is in and which is out."""
    pair = make_pair()
    defer_refusal(pair.second)
    heard = Heard()
    told = []

    def receive(sender: Flask, **details: object) -> None:
        told.append(details)

    with (
        signals.unit_committed.connected_to(receive, pair.app),
        signals.unit_rolled_back.connected_to(receive, pair.app),
        pytest.raises(PartialCommitError, match=r"committed in part \(in: default; out: audit\)") as caught,
        pair.app.app_context(),
    ):

        @transactional(retries=3)
        def write() -> None:
            heard()
            pair.uow.session.add_all([Line(name="second"), Item(name="first")])

        write()

    error = caught.value
    assert isinstance(error, UnitFailedError)
    assert (error.committed, error.lost, error.unknown) == (("default",), ("audit",), ())
    assert isinstance(error.__cause__, sa.exc.DBAPIError)
    assert "test_several_databases.py" in str(error.where)
    assert pickle.loads(pickle.dumps(error)).committed == ("default",)
    assert pair.committed() == ["first"]
    assert heard.said == []
    assert told == []
    accept(pair.second)


@on_postgresql
@pytest.mark.parametrize("two_phase", [False, True], ids=["", "two phases"])
@pytest.mark.parametrize("rides", [True, False], ids=["", "not riding"])
@pytest.mark.parametrize("model", [Item, Line], ids=["first", "second"])
def test_an_error_that_a_listener_to_the_commit_swallows_in_either(
    make_pair: MakePair, model: type, rides: bool, two_phase: bool
) -> None:
    """It is known before anything is committed, so that nothing is."""
    pair = make_pair(UOW_RIDE=rides, UOW_TWO_PHASE=two_phase)

    def fail_unseen(session: orm.Session, _: object) -> None:
        with pytest.raises(sa.exc.DBAPIError, match="division"):
            session.connection(bind_arguments={"mapper": model}).exec_driver_sql("SELECT 1 / 0")

    sa.event.listen(pair.uow.session, "after_flush", fail_unseen, once=True)
    with pytest.raises(UnitFailedError, match="swallowed") as caught, pair.app.app_context(), transactional():
        pair.uow.session.add_all([Item(name="first"), Line(name="second")])

    assert isinstance(caught.value.__cause__, sa.exc.DBAPIError)
    assert pair.committed() == []


@on_postgresql
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_a_second_that_is_lost_is_not_known(make_pair: MakePair, proxy: Proxy, cut: Cut) -> None:
    """Its COMMIT may have happened or not."""
    pair = make_pair("audit")
    pair.write(to="first")
    proxy.cut(cut)

    with pytest.raises(PartialCommitError, match=r"in: default; not known: audit") as caught:
        with pair.app.app_context(), transactional():
            pair.uow.session.add_all([Item(name="another"), Line(name="second")])

    assert caught.value.unknown == ("audit",)
    assert names(pair.first) == ["another", "first"]


@on_postgresql
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_a_second_that_is_lost_is_asked_for(make_pair: MakePair, proxy: Proxy, cut: Cut) -> None:
    """With ``confirm_commit`` the server says what became of it."""
    pair = make_pair("audit")
    proxy.cut(cut)

    if cut is Cut.BEFORE:
        with pytest.raises(PartialCommitError, match=r"in: default; out: audit"):
            pair.write(confirm_commit=True)
        assert pair.committed() == ["first"]
    else:
        pair.write(confirm_commit=True)
        assert pair.committed() == ["first", "second"]


@on_postgresql
@pytest.mark.parametrize("confirm_commit", [False, True])
def test_an_interrupt_in_the_second_goes_on_and_says_what_is_in(
    make_pair: MakePair, proxy: Proxy, *, confirm_commit: bool
) -> None:
    """Nobody may take it for an error that can be handled; its note names what is in and what is not known."""
    pair = make_pair("audit")

    with interrupting_commit(proxy, KeyboardInterrupt("in the middle of COMMIT")):
        with pytest.raises(KeyboardInterrupt) as caught:
            pair.write(confirm_commit=confirm_commit)

    (note,) = caught.value.__notes__
    assert note.endswith("was committed in part (in: default; not known: audit).")
    assert pair.committed() == ["first", "second"]


@on_postgresql
def test_what_is_known_of_the_first_says_nothing_of_the_second(
    make_pair: MakePair, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was lost, and is known to be in; the second is interrupted before its server has answered."""
    pair = make_pair("default")
    proxy.cut(Cut.REPLY)
    send = _commit.send_commit

    def interrupt_second(link: Any) -> None:
        send(link)
        if _commit.bind_name(link) == "audit":
            link.was_committed = False
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_commit, "send_commit", interrupt_second)
        with pytest.raises(KeyboardInterrupt) as caught:
            pair.write(confirm_commit=True)

    (note,) = caught.value.__notes__
    assert note.endswith("was committed in part (in: default; not known: audit).")
    assert pair.committed() == ["first", "second"]


@on_postgresql
def test_a_second_that_cannot_be_asked_is_not_known(
    make_pair: MakePair, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server has not said that it did not commit, and nobody is told so."""
    monkeypatch.setattr(_outcome, "DEADLINE_S", 0.1)
    pair = make_pair("audit")
    proxy.cut(Cut.REPLY, refuse=True)

    with pytest.raises(PartialCommitError, match=r"in: default; not known: audit"):
        pair.write(confirm_commit=True)

    assert pair.committed() == ["first", "second"]


@on_postgresql
def test_a_commit_by_hand_outside_a_unit_says_it_too(make_pair: MakePair) -> None:
    """The session's own commit spans both as well."""
    pair = make_pair()
    defer_refusal(pair.second)

    with pair.app.app_context():
        pair.uow.session.add_all([Line(name="second"), Item(name="first")])
        with pytest.raises(PartialCommitError, match=r"session.commit\(\) was committed in part"):
            pair.uow.session.commit()
        pair.uow.session.rollback()

    assert pair.committed() == ["first"]
    accept(pair.second)


# ---- two phases


@on_postgresql
def test_two_phases_commit_both(make_pair: MakePair, proxy: Proxy) -> None:
    """The second prepares, the first decides, the second carries it out."""
    pair = make_pair("default", "audit", UOW_TWO_PHASE=True)
    pair.write()
    pair.first.execute("DELETE FROM item")
    pair.second.execute("DELETE FROM item")
    proxy.requests()

    pair.write()

    sent = [request for request in proxy.requests() if "COMMIT" in request or "PREPARE TRANSACTION" in request]
    assert [" ".join(request.split()[:2]).rstrip(";") for request in sent] == [
        "PREPARE TRANSACTION",
        "COMMIT",
        "COMMIT PREPARED",
    ]
    assert pair.committed() == ["first", "second"]
    assert pair.prepared() == []


@on_postgresql
def test_what_writes_in_one_database_needs_one_phase(make_pair: MakePair, proxy: Proxy) -> None:
    """The other has read, and has nothing to lose."""
    pair = make_pair("default", "audit", UOW_TWO_PHASE=True)
    with pair.app.app_context(), transactional():
        pair.uow.session.execute(sa.select(Item)).all()
        pair.uow.session.add(Line(name="second"))

    assert not [request for request in proxy.requests() if "PREPARE" in request]
    assert pair.committed() == ["second"]


@on_postgresql
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_what_only_read_may_be_lost(make_pair: MakePair, proxy: Proxy, cut: Cut) -> None:
    """It had nothing to commit, so that the unit was committed, and its hooks run."""
    pair = make_pair("audit", UOW_TWO_PHASE=True)
    heard = Heard()
    with pair.app.app_context():
        with transactional():
            heard()
            pair.uow.session.add(Item(name="first"))
            pair.uow.session.execute(sa.select(Line)).all()
            proxy.cut(cut)

    assert pair.committed() == ["first"]
    assert heard.said == ["committed"]


@on_postgresql
@pytest.mark.parametrize("which", ["first", "second"])
def test_either_may_refuse_and_neither_is_in(make_pair: MakePair, which: str) -> None:
    """The error is the database's own, nothing stays prepared, and the unit may be tried again."""
    pair = make_pair(UOW_TWO_PHASE=True)
    heard = Heard()
    defer_refusal(getattr(pair, which))

    with pytest.raises(sa.exc.DBAPIError, match="refused"), pair.app.app_context(), transactional():
        heard()
        pair.uow.session.add_all([Line(name="second"), Item(name="first")])

    assert pair.committed() == []
    assert pair.prepared() == []
    assert heard.said == ["rolled back"]
    accept(getattr(pair, which))


@on_postgresql
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_a_lost_prepare_undoes_both(make_pair: MakePair, proxy: Proxy, cut: Cut) -> None:
    """Whether it has happened or not: it is rolled back on another connection."""
    pair = make_pair("audit", UOW_TWO_PHASE=True)
    proxy.cut(cut, statement="PREPARE TRANSACTION")

    with pytest.raises(sa.exc.OperationalError):
        pair.write()

    assert pair.committed() == []
    assert pair.prepared() == []


@on_postgresql
def test_a_prepare_that_outlasts_its_client_is_undone(make_pair: MakePair, proxy: Proxy) -> None:
    """The server does not notice that nobody waits any more, and goes on with what it was told."""
    pair = make_pair("audit", UOW_TWO_PHASE=True)
    pair.second.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END' LANGUAGE plpgsql"
    )
    pair.second.execute(
        "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    proxy.cut(Cut.AFTER, statement="PREPARE TRANSACTION")

    with pytest.raises(sa.exc.OperationalError) as caught:
        pair.write()

    assert pair.second.sessions() == []
    assert pair.prepared() == []
    assert pair.committed() == []
    assert not hasattr(caught.value, "__notes__")


@on_postgresql
def test_a_server_that_has_not_got_a_transaction_prepares_none(database: Database) -> None:
    """A standby that was promoted since, say."""
    with closing(database.connect()) as connection:
        assert not _two_phase._is_running(connection, _outcome.Mark(str(1 << 40), "another"))


@on_postgresql
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_a_lost_decision_is_asked_for(make_pair: MakePair, proxy: Proxy, cut: Cut) -> None:
    """The one that decides says whether it has committed, and the other follows."""
    pair = make_pair("default", UOW_TWO_PHASE=True)
    proxy.cut(cut)

    if cut is Cut.BEFORE:
        with pytest.raises(sa.exc.OperationalError):
            pair.write()
    else:
        pair.write()

    assert pair.committed() == ([] if cut is Cut.BEFORE else ["first", "second"])
    assert pair.prepared() == []


@on_postgresql
@pytest.mark.usefixtures("soon_given_up")
def test_a_decision_that_nobody_knows_leaves_the_other_prepared(make_pair: MakePair, proxy: Proxy) -> None:
    """It is named in the error, and in the statistics, which can ask later."""
    pair = make_pair("default", UOW_TWO_PHASE=True)
    heard = Heard()
    proxy.cut(Cut.AFTER, refuse=True)

    with pytest.raises(CommitOutcomeUnknownError, match="Prepared and waiting") as caught, pair.app.app_context():
        with transactional():
            heard()
            pair.uow.session.add_all([Line(name="second"), Item(name="first")])

    (gid,) = pair.prepared()
    assert gid in str(caught.value)
    assert caught.value.xid is not None
    assert heard.said == []
    proxy.reset()
    with pair.app.app_context():
        by_bind = {database.binds: database.prepared for database in stats.snapshot().databases}
    assert by_bind["default",] == ()
    (left,) = by_bind["audit",]
    assert (left.name, left.decided_by, left.outcome) == (gid, "default", "committed")
    assert left.command == f"COMMIT PREPARED '{gid}'"
    conclude(pair.second, left.command)
    assert pair.committed() == ["first", "second"]


@on_postgresql
def test_an_interrupt_in_the_decision_goes_on_and_leaves_the_other_prepared(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may take it for an error that can be handled; its note names what waits."""
    pair = make_pair(UOW_TWO_PHASE=True)

    def interrupt(link: Any) -> None:
        link.state.sent_commit = True
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_two_phase, "send_commit", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            pair.write()

    (gid,) = pair.prepared()
    assert gid in caught.value.__notes__[0]
    assert pair.committed() == []


@on_postgresql
@pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower())
def test_what_was_decided_is_carried_out_on_another_connection(make_pair: MakePair, proxy: Proxy, cut: Cut) -> None:
    """The part's own connection is lost, with or without its answer."""
    pair = make_pair("audit", UOW_TWO_PHASE=True)
    heard = Heard()
    proxy.cut(cut, statement="COMMIT PREPARED")

    with pair.app.app_context(), transactional():
        heard()
        pair.uow.session.add_all([Line(name="second"), Item(name="first")])

    assert pair.committed() == ["first", "second"]
    assert pair.prepared() == []
    assert heard.said == ["committed"]


@on_postgresql
@pytest.mark.usefixtures("soon_given_up")
def test_what_cannot_be_carried_out_stays_prepared_and_is_said(make_pair: MakePair, proxy: Proxy) -> None:
    """The first is in; the error has the command for the second."""
    pair = make_pair("audit", UOW_TWO_PHASE=True)
    proxy.cut(Cut.BEFORE, refuse=True, statement="COMMIT PREPARED")

    with pytest.raises(PartialCommitError, match="not known: audit") as caught:
        pair.write()

    (gid,) = pair.prepared()
    assert f"COMMIT PREPARED '{gid}' in 'audit'" in str(caught.value)
    assert pair.committed() == ["first"]
    proxy.reset()
    conclude(pair.second, f"COMMIT PREPARED '{gid}'")
    assert pair.committed() == ["first", "second"]


KILLED = """
    import os, signal, sys
    import sqlalchemy as sa
    from flask import Flask
    from sqlalchemy import orm
    from flask_uow import UnitOfWork, _commit, _two_phase, transactional
    from tests.faults.test_several_databases import Item, Line

    app = Flask("tests.models")
    app.config.update(SQLALCHEMY_DATABASE_URI=sys.argv[1], SQLALCHEMY_BINDS={"audit": sys.argv[2]}, UOW_TWO_PHASE=True)
    uow = UnitOfWork(app)

    def die(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[3] == "prepared":
        _two_phase.send_commit = die
    else:
        _two_phase._conclude = die
    with app.app_context(), transactional():
        uow.session.add_all([Item(name="first"), Line(name="second")])
"""


@on_postgresql
@pytest.mark.parametrize("when", ["prepared", "decided"])
def test_a_killed_process_leaves_a_question_that_can_be_answered(make_pair: MakePair, when: str) -> None:
    """Killed between the phases: the statistics show what is left, and what its decider says of it."""
    pair = make_pair(UOW_TWO_PHASE=True)

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), pair.first.url, pair.second.url, when],
        timeout=60,
        check=False,
        cwd=os.getcwd(),
    )

    assert done.returncode == -signal.SIGKILL
    with pair.app.app_context():
        (left,) = [each for database in stats.snapshot().databases for each in database.prepared]
    assert left.bind == "audit"
    assert left.decided_by == "default"
    assert left.age_seconds is not None
    assert left.age_seconds < 60
    printed = pair.app.test_cli_runner().invoke(args=["db-session-stats"], terminal_width=200).output
    assert "left prepared (1)" in printed
    assert left.name[:30] in printed
    if when == "prepared":
        assert left.outcome in ("aborted", "in progress")  # until the server notices that its client has gone
        conclude(pair.second, f"ROLLBACK PREPARED '{left.name}'")
        assert pair.committed() == []
    else:
        assert left.outcome == "committed"
        assert left.command is not None
        conclude(pair.second, left.command)
        assert pair.committed() == ["first", "second"]
    printed = pair.app.test_cli_runner().invoke(args=["db-session-stats"]).output
    assert "prepared" not in printed


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_two_phases_are_refused_where_they_cannot_be(make_pair: MakePair) -> None:
    """SQLite prepares nothing, which is said before the first request."""
    with pytest.raises(ConfigurationError, match=r"UOW_TWO_PHASE = True: .* is no PostgreSQL database"):
        make_pair(UOW_TWO_PHASE=True)


def test_sqlalchemys_own_two_phases_are_refused() -> None:
    """They would prepare where one database is enough, and past the guard."""
    with pytest.raises(ConfigurationError, match="UOW_TWO_PHASE"):
        UnitOfWork(session_options={"twophase": True})


@on_postgresql
def test_two_phases_with_another_kind_of_database_are_refused_before_the_commit(
    make_pair: MakePair, tmp_path: Any
) -> None:
    """An owner's sessions may reach databases that nobody has configured."""
    pair = make_pair(UOW_TWO_PHASE=True)
    other = sa.create_engine(f"sqlite:///{tmp_path}/other.sqlite")
    Item.metadata.create_all(other)

    with pytest.raises(UnitOptionsError, match="no PostgreSQL database"), pair.app.app_context(), transactional():
        pair.uow.session.add(Line(name="second"))
        pair.uow.session.execute(sa.insert(Item).values(name="other"), bind_arguments={"bind": other})
    other.dispose()

    assert pair.committed() == []


@on_postgresql
def test_a_prepared_part_has_a_name_that_is_no_sql(make_pair: MakePair, second_database: Database) -> None:
    """Whatever the app and the databases are called; the unit's label is not in it."""
    odd = "au'dit\\'; DROP TABLE item; --"
    pair = make_pair(SQLALCHEMY_BINDS={"audit": second_database.url, odd: second_database.url}, UOW_TWO_PHASE=True)
    pair.app.name = "o'brien\\"

    with pair.app.app_context(), transactional(label=odd):
        engine = pair.uow.get_engine(odd)
        pair.uow.session.execute(sa.text("INSERT INTO item VALUES (7, 'odd')"), bind_arguments={"bind": engine})
        pair.uow.session.execute(sa.text("INSERT INTO item VALUES (7, 'first')"))

    assert names(pair.first) + names(pair.second) == ["first", "odd"]
    assert pair.prepared() == []
