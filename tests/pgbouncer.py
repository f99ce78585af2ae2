"""A PgBouncer in front of the run's server that lends its connections for one transaction each.

Debian's package is ``pgbouncer``. Where it is not installed its tests are skipped, unless ``UOW_TEST_PGBOUNCER`` says
``required``.
"""

import contextlib
import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa

from tests.throwaway_server import find_free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
VARIABLE = "UOW_TEST_PGBOUNCER"
DEADLINE_S = 30.0
LISTEN = "127.0.0.1"


@contextlib.contextmanager
def run_pgbouncer(url: str, folder: Path, **settings: object) -> Iterator[sa.URL]:
    """Run a PgBouncer, and yield the URL that it serves a database under; its server's others have their names there.

    :param url: of the database on its server.
    :param folder: one that nobody else uses; PgBouncer's log is written there.
    :param settings: of section ``[pgbouncer]``, besides what is set here.
    """
    if PROGRAM is None:
        why = "PgBouncer is not installed: apt-get install pgbouncer"
        if os.environ.get(VARIABLE) == "required":
            pytest.fail(why)
        pytest.skip(why)
    server = sa.make_url(url)
    served = server.set(host=LISTEN, port=find_free_port())
    file = folder / "pgbouncer.ini"
    file.write_text(_settings(server, served, settings))
    options = []
    if getpass.getuser() == "root":  # it refuses to run as root, and must read its settings as another
        options += ["-u", "nobody"]
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o011)
        file.chmod(0o644)
    with (folder / "log").open("wb") as log, subprocess.Popen([PROGRAM, *options, file], stderr=log) as process:
        try:
            _wait_until_it_answers(served)
            yield served
        finally:
            process.terminate()


def _settings(server: sa.URL, served: sa.URL, settings: dict[str, object]) -> str:
    own = {
        "listen_addr": LISTEN,
        "listen_port": served.port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        # Nothing that one client leaves behind is wiped for the next: that is a session's mode.
        "server_reset_query": "",
        # One after the other, so that a client meets another connection in each transaction.
        "server_round_robin": 1,
    }
    where = f"host={server.host} port={server.port} user={server.username} password={server.password}"
    lines = [f"{name} = {value}" for name, value in (own | settings).items()]
    return "\n".join(["[databases]", f"* = {where}", "[pgbouncer]", *lines, ""])


def _wait_until_it_answers(served: sa.URL) -> None:
    url = served.set(drivername="postgresql").render_as_string(hide_password=False)
    end = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(url).close()
            return
        assert time.monotonic() < end
        time.sleep(0.02)
