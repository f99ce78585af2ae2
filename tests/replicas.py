"""A primary and its streaming standby, whose replay a test can pause."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from tests.databases import PostgreSQLDatabase
from tests.models import create_tables
from tests.throwaway_server import throwaway_server

DEADLINE_S = 15.0


@dataclass(frozen=True)
class Replicated:
    """One database on a primary, and its copy on a standby."""

    primary: PostgreSQLDatabase
    standby: PostgreSQLDatabase

    def catch_up(self) -> None:
        """Wait until the standby has replayed all that the primary has written."""
        ((position,),) = self.primary.rows("SELECT pg_current_wal_insert_lsn()::text")
        await_that(lambda: self.standby.rows("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position) == [(True,)])

    def pause(self) -> None:
        """Let the standby replay nothing more."""
        self.standby.execute("SELECT pg_wal_replay_pause()")
        await_that(lambda: self.standby.rows("SELECT pg_get_wal_replay_pause_state()") == [("paused",)])

    def resume(self) -> None:
        """Let it replay what has come meanwhile, and wait for that."""
        self.standby.execute("SELECT pg_wal_replay_resume()")
        self.catch_up()


@contextlib.contextmanager
def run_replicated() -> Iterator[tuple[sa.URL, sa.URL]]:
    """Start a primary and its standby, and yield their URLs."""
    with throwaway_server() as primary, throwaway_server(standby_of=primary) as standby:
        yield sa.make_url(primary), sa.make_url(standby)


def replicated(primary: sa.URL, standby: sa.URL, backend: str) -> Replicated:
    """The two databases for one of the drivers, with empty tables on both."""
    both = Replicated(PostgreSQLDatabase(primary, backend), PostgreSQLDatabase(standby, backend))
    both.standby.execute("SELECT pg_wal_replay_resume()")
    both.primary.clear()
    create_tables(both.primary)
    both.catch_up()
    return both


def await_that(question: Callable[[], bool]) -> None:
    """Ask again and again until the answer is yes."""
    end = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < end
        time.sleep(0.005)
