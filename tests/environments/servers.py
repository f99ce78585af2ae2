"""Servers as they are started in production, and a client of theirs."""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.throwaway_server import find_free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
APP = "tests.environments.served:app"

Command = list[str]
"""What follows the interpreter; ``{port}`` stands for the port."""


def _gunicorn(*options: str) -> Command:
    always = ["--bind=127.0.0.1:{port}", "--no-control-socket", "--log-level=warning", "--workers=2"]
    return ["-m", "gunicorn", *always, *options, APP]


def _uwsgi(*options: str) -> Command:
    always = ["--http-socket=127.0.0.1:{port}", f"--module={APP}", "--need-app", "--master", "--processes=2"]
    ends = ["--die-on-term", "--worker-reload-mercy=10", "--disable-logging"]
    return ["-c", "import pyuwsgi, sys; pyuwsgi.run(sys.argv[1:])", *always, *ends, *options]


SERVERS = {
    "gunicorn sync": _gunicorn("--worker-class=sync"),
    "gunicorn sync preloaded": _gunicorn("--worker-class=sync", "--preload"),
    "gunicorn gthread": _gunicorn("--worker-class=gthread", "--threads=4"),
    "gunicorn gthread preloaded": _gunicorn("--worker-class=gthread", "--threads=4", "--preload"),
    "gunicorn gevent": _gunicorn("--worker-class=gevent"),
    "uwsgi": _uwsgi(),
    "uwsgi with threads": _uwsgi("--threads=4"),
    "uwsgi that tells of its forks": _uwsgi("--threads=4", "--py-call-uwsgi-fork-hooks"),
    "uwsgi lazy": _uwsgi("--lazy-apps"),
    "waitress": ["-m", "waitress", "--listen=127.0.0.1:{port}", "--threads=4", APP],
    "flask": ["-m", "flask", "--app", APP, "run", "--port={port}"],
}
if sys.version_info < (3, 13):  # with which no worker of uWSGI's survives that, whatever it serves: unbit/uwsgi#2710
    SERVERS["uwsgi that tells of its forks in its old way"] = _uwsgi("--threads=4", "--py-call-osafterfork")
FORK_LATE = {name for name in SERVERS if "preloaded" in name or (name.startswith("uwsgi") and "lazy" not in name)}
"""Those that fork after they have imported the app."""


@contextlib.contextmanager
def serving(command: Command, **environment: str) -> Iterator[int]:
    """Run a server, yield its port, and let it end as an operator does.

    :param environment: variables besides those of this process.
    """
    port = find_free_port()
    arguments = [argument.format(port=port) for argument in command]
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}) as process:
        try:
            _wait_until_open(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


def _wait_until_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE_S):
            return
        time.sleep(0.05)
    pytest.fail("The server does not listen.")


def post(port: int, path: str) -> tuple[int, str]:
    """Post nothing on a connection of its own, and return the status and the text of the answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)) as connection:
        connection.request("POST", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
