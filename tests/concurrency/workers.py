"""Workers of a real gunicorn, and a client of theirs."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.throwaway_server import find_free_port

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


@contextlib.contextmanager
def gunicorn(url: str, *options: str) -> Iterator[int]:
    """Run the app of :mod:`tests.concurrency.preloaded`, and yield the port.

    :param options: gunicorn's.
    """
    port = find_free_port()
    always = [f"--bind=127.0.0.1:{port}", "--no-control-socket", "--log-level=warning"]
    command = [sys.executable, "-m", "gunicorn", *options, *always, "tests.concurrency.preloaded:app"]
    environment = {**os.environ, "DATABASE_URL": url}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            wait_until_open(port)
            yield port
        finally:
            process.terminate()


def wait_until_open(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            connection.connect()
            connection.close()
            return
        threading.Event().wait(0.05)
    pytest.fail("gunicorn does not listen.")


def get(port: int, path: str) -> Any:
    """Get a path on a connection of its own, and return what it answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())
    finally:
        connection.close()
