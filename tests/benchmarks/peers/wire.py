"""A wire in front of a server: what comes back on it comes later by a fixed time, however much it is.

It is this file run as a process of its own. All of the latency is put on the way back, which is the same for a client
that waits, and half of the work: two cores have to serve, to answer, and to delay. It reads nothing of what it carries,
so that it costs little; the counting proxy of the faults reads each message, and its timer counts whole milliseconds.
The process takes orders as lines of JSON on its standard input, answers each, and ends when the input does.
"""

import contextlib
import json
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTEN = "127.0.0.1"
CALIBRATING_S = 0.2
ROUNDS = 3


@dataclass(frozen=True)
class Latency:
    """What a wire adds.

    :param delay_s: what the process waits, in seconds.
    :param added_s: by how much a round trip is longer for it, in seconds: the median.
    :param direct_s: how long it is without the wire.
    """

    delay_s: float
    added_s: float
    direct_s: float


@dataclass(frozen=True)
class Used:
    """What the process has done.

    :param cpu_s: its CPU time, in seconds.
    :param carried: the pieces that it has carried: two for a round trip, as a rule.
    """

    cpu_s: float
    carried: int

    def since(self, before: "Used") -> "Used":
        """Return what has been done between."""
        return Used(self.cpu_s - before.cpu_s, self.carried - before.carried)


class Wire:
    """The wire as the benchmark sees it.

    :param process: the process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._read()["port"])

    def set_delay(self, delay_s: float) -> None:
        """Delay from now on.

        :param delay_s: by which time, in seconds.
        """
        self._ask(delay_s=delay_s)

    def used(self) -> "Used":
        """Return what the process has done so far."""
        return Used(**self._ask())

    def calibrate(self, latency_s: float, ask: Callable[[], object], ask_directly: Callable[[], object]) -> "Latency":
        """Find and set the delay with which a round trip takes just so much longer than without the wire.

        :param latency_s: how much, in seconds; the process's own time is part of it.
        :param ask: makes a round trip over the wire.
        :param ask_directly: makes the same one past it.
        """
        direct_s = _median_s(ask_directly)
        delay_s = added_s = 0.0
        for _ in range(ROUNDS):
            delay_s = max(delay_s + latency_s - added_s, 0.0)
            self.set_delay(delay_s)
            added_s = _median_s(ask) - direct_s
        return Latency(delay_s, added_s, direct_s)

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "The wire has ended."
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def run_wire(host: str, port: int) -> Iterator[Wire]:
    """Run a wire to a server.

    :param host: the server's.
    :param port: the server's.
    """
    command = [sys.executable, "-I", "-S", __file__, host, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Wire(process)
        finally:
            process.terminate()


def _median_s(ask: Callable[[], object]) -> float:
    times: list[float] = []
    while sum(times) < CALIBRATING_S:
        begun = time.perf_counter()
        ask()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


# From here on, what the process does.


class _Carrier:
    """Carries what comes in on one socket to the other one of its pair."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server((LISTEN, 0))
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(sys.stdin, select.EPOLLIN)
        self._ends: dict[int, _End] = {}
        # In the order of their times, since all are delayed alike.
        self._delayed: deque[tuple[float, _End, bytes]] = deque()
        self._delay_s = 0.0
        self._carried = 0
        self.port = int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Carry, until the orders end."""
        while True:
            wait_s = max(self._delayed[0][0] - time.perf_counter(), 0.0) if self._delayed else None
            # An epoll's own timeout counts milliseconds.
            select.select([self._epoll], (), (), wait_s)
            now = time.perf_counter()
            while self._delayed and self._delayed[0][0] <= now:
                self._send(*self._delayed.popleft()[1:])
            for number, _ in self._epoll.poll(0):
                if number == sys.stdin.fileno():
                    if not self._obey():
                        return
                elif number == self._listener.fileno():
                    self._accept()
                elif number in self._ends:  # else its other end has just gone
                    self._carry(self._ends[number], now)

    def _obey(self) -> bool:
        line = sys.stdin.readline()
        if line:
            self._delay_s = json.loads(line).get("delay_s", self._delay_s)
            _say(cpu_s=time.process_time(), carried=self._carried)
        return bool(line)

    def _accept(self) -> None:
        client = _End(self._listener.accept()[0], is_client=True)
        client.other = _End(socket.create_connection(self._server), is_client=False)
        client.other.other = client
        for end in (client, client.other):
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends[end.socket.fileno()] = end
            self._epoll.register(end.socket, select.EPOLLIN)

    def _carry(self, source: "_End", now: float) -> None:
        try:
            data = source.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._close(source)
        elif source.is_client or not self._delay_s:
            self._send(source.other, data)
        else:
            self._delayed.append((now + self._delay_s, source.other, data))

    def _send(self, target: "_End", data: bytes) -> None:
        self._carried += 1
        # What is delayed may come when its client has gone.
        with contextlib.suppress(OSError):
            target.socket.sendall(data)

    def _close(self, end: "_End") -> None:
        for each in (end, end.other):
            del self._ends[each.socket.fileno()]
            each.socket.close()


class _End:
    """One of the two sockets of a connection."""

    other: "_End"

    def __init__(self, connected: socket.socket, *, is_client: bool) -> None:
        self.socket = connected
        self.is_client = is_client


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # The kernel may wake a process later by 50 us, to save power.
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")
    carrier = _Carrier((sys.argv[1], int(sys.argv[2])))
    _say(port=carrier.port)
    carrier.run()
