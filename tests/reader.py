"""What a reader of the pages does: types their commands, starts their servers, sends their requests."""

import argparse
import contextlib
import http.client
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Request:
    """What a curl line asks for, and the status that its comment promises, if it has one."""

    method: str
    path: str
    headers: dict[str, str]
    body: str | None
    is_failing: bool
    status: int | None


def run(command: list[str], folder: Path, python: str | None = None, **variables: str) -> str:
    """Run a command of Python's, and return what it prints.

    :param command: a module that Python has, or ``python``, and its arguments.
    :param folder: the one in which it is typed.
    :param python: an interpreter that has the package installed, instead of the one that runs the tests.
    :param variables: the environment's, besides what it has; with an interpreter of its own, all that it has.
    """
    return _start(command, folder, python, variables).communicate(timeout=TIMEOUT_S)[0]


@contextlib.contextmanager
def serving(
    command: list[str], folder: Path, port: int, python: str | None = None, **variables: str
) -> Iterator[list[str]]:
    """Start a ``flask run``, wait until it answers, and end it; the list has then what it has printed."""
    printed: list[str] = []
    process = _start([*command, "--port", str(port)], folder, python, variables)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S).close()
                break
            except OSError:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline, "The page's server does not answer."
                time.sleep(0.05)
        yield printed
    finally:
        process.terminate()
        printed.append(process.communicate(timeout=TIMEOUT_S)[0])


def _start(command: list[str], folder: Path, python: str | None, variables: dict[str, str]) -> "subprocess.Popen[str]":
    module, *arguments = command
    words = [python or sys.executable, *([] if module == "python" else ["-m", module]), *arguments]
    inherited = {} if python else {**os.environ, "PYTHONPATH": str(ROOT)}
    environment = {**inherited, "NO_COLOR": "1", **variables}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=folder, env=environment, **pipes)


def parse_curl(line: str, variables: dict[str, str] | None = None) -> Request:
    """Read a curl line; a status may stand at the beginning of its comment."""
    for name, value in (variables or {}).items():
        line = line.replace(f"${name}", value)
    parser = argparse.ArgumentParser()
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="data", action="append", default=[])
    parser.add_argument("-f", dest="is_failing", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("url")
    curl, *words = shlex.split(line, comments=True)
    assert curl == "curl"
    typed = parser.parse_args(words)
    body = typed.json or "&".join(typed.data) or None
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if typed.data else {}
    headers |= {"Content-Type": "application/json", "Accept": "application/json"} if typed.json else {}
    headers |= dict(header.split(": ", 1) for header in typed.headers)
    status = re.search(r" # (\d{3}): ", line)
    return Request(
        typed.method or ("POST" if body else "GET"),
        typed.url.removeprefix("http://127.0.0.1:5000"),
        headers,
        body,
        typed.is_failing,
        int(status[1]) if status else None,
    )


def curl(port: int, request: Request) -> str:
    """Return what curl would print."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        body = response.read().decode()
    if request.is_failing and response.status >= 400:
        return f"curl: (22) The requested URL returned error: {response.status}"
    return body.rstrip("\n")
