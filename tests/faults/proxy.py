"""A proxy in front of PostgreSQL that reads what its clients ask, counts it, and can lose a COMMIT, be slow or stall.

It is this file run as a process of its own: a driver that holds the GIL while it waits can then not keep it from
answering. It takes orders as lines of JSON on its standard input, answers each on its standard output, and ends when
the input does.

A request is what the client waits for: a simple query, or messages up to a Sync. Nothing is tampered with but COMMIT,
or what a test names in its place.
"""

import asyncio
import contextlib
import json
import re
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

LISTEN = "127.0.0.1"
REPLY_TIMEOUT_S = 10.0
# What stands in the place of a length's protocol version where a client asks for encryption.
TLS_REQUEST = 80877103
ENCRYPTION_REQUESTS = frozenset((TLS_REQUEST, 80877104))
# Messages of the extended protocol that are nothing before the Sync behind them.
BATCHED = b"PBDEC"
# What a server sends once: the number of its process, and a secret by which a statement is cancelled.
KEY = re.compile(rb"K\0\0\0\x0c....(....)(?=Z\0\0\0\x05I)", re.DOTALL)
KEY_OF_THE_PROXY = b"K\0\0\0\x0c\0\x7f\0\x01"
COMMIT = r"(?:^|;)\s*COMMIT\s*;?\s*$"


class Cut(StrEnum):
    """Where the connection of a COMMIT breaks."""

    BEFORE = "before it reaches the server"
    AFTER = "as soon as it is on its way"
    REPLY = "when the server has replied"


class Proxy:
    """The proxy as tests see it.

    :param process: the process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._one_at_a_time = threading.Lock()
        self.port = int(self._read()["port"])

    def cut(self, cut: Cut, *, times: int = 1, refuse: bool = False, statement: str = COMMIT) -> None:
        """Lose the connection of the next COMMIT.

        :param times: how many of the next ones.
        :param statement: what is lost in its place, as a regular expression.
        :param refuse: whether every connection that comes after the cut is refused, until :meth:`reset`.
        """
        self._ask(do="cut", where=cut, times=times, refuse=refuse, statement=statement)

    def cuts_left(self) -> int:
        """Return how many of the connections that were to be cut have not been yet."""
        return int(self._ask(do="count cuts")["left"])

    def hold(self, *, statement: str = COMMIT) -> None:
        """Keep the server's reply to the next COMMIT until :meth:`release`.

        :param statement: to what in its place, as a regular expression.
        """
        self._ask(do="hold", statement=statement)

    def disguise(self) -> None:
        """Give each new connection a number of the proxy's own for its server's process, as poolers do."""
        self._ask(do="disguise")

    def say(self, message: bytes) -> None:
        """Send every client something that the server has not said.

        :param message: of PostgreSQL's protocol.
        """
        self._ask(do="say", message=message.hex())

    def encrypt(self, certificate: Path) -> None:
        """Speak TLS with the clients that ask for it, from now on until :meth:`reset`.

        :param certificate: a file with it and its key.
        """
        self._ask(do="encrypt", certificate=str(certificate))

    def wait_for_reply(self) -> bool:
        """Return whether the reply that was to be kept has come, after waiting for it."""
        return bool(self._ask(do="wait")["has_come"])

    def release(self, *, after_s: float = 0.0) -> None:
        """Let the reply go.

        :param after_s: how much later; this call does not wait for it.
        """
        self._ask(do="release", after_s=after_s)

    def requests(self) -> list[str]:
        """Return what the clients have asked since the last call: one text for each round trip."""
        return list(self._ask(do="requests")["requests"])

    def words(self) -> list[str]:
        """Return the first word of each request since the last call."""
        return [request.split()[0].upper().rstrip(";") for request in self.requests()]

    def slow_down(self, delay_s: float) -> None:
        """Pass everything on later, in both directions, until :meth:`reset`.

        :param delay_s: how much later, in seconds.
        """
        self._ask(do="slow down", delay_s=delay_s)

    def stall(self) -> None:
        """Pass nothing on, in either direction, until :meth:`reset`."""
        self._ask(do="stall")

    def reset(self) -> None:
        """Forget every order and every request."""
        self._ask(do="reset")

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with self._one_at_a_time:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "The proxy has ended."
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def run_proxy(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy in front of a server.

    :param host: the server's.
    :param port: the server's.
    """
    command = [sys.executable, "-I", "-S", __file__, host, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Proxy(process)
        finally:
            process.terminate()


# From here on, what the process does.


class _Orders:
    """What is to be done with the next COMMITs, and what was asked so far."""

    def __init__(self) -> None:
        self.clients: set[_Peer] = set()
        self.flows = asyncio.Event()
        self.forget()

    def forget(self) -> None:
        self.flows.set()
        self.delay_s = 0.0
        self.cuts: list[Cut] = []
        self.statement = re.compile(COMMIT, re.IGNORECASE)
        self.refuses_after_cut = False
        self.refuses = False
        self.holds = self.disguises = False
        self.encryption: ssl.SSLContext | None = None
        self.has_come = asyncio.Event()
        self.is_released = asyncio.Event()
        self.requests: list[str] = []

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "cut":
                self.cuts = [Cut(order["where"])] * order["times"]
                self.refuses_after_cut = order["refuse"]
                self.statement = re.compile(order["statement"], re.IGNORECASE)
            case "hold":
                self.holds = True
                self.statement = re.compile(order["statement"], re.IGNORECASE)
            case "wait":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.has_come.wait(), REPLY_TIMEOUT_S)
                return {"has_come": self.has_come.is_set()}
            case "release":
                asyncio.get_running_loop().call_later(order["after_s"], self.is_released.set)
            case "count cuts":
                return {"left": len(self.cuts)}
            case "requests":
                requests, self.requests = self.requests, []
                return {"requests": requests}
            case _:
                self._obey_at_once(order)
        return {}

    def _obey_at_once(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "slow down":
                self.delay_s = order["delay_s"]
            case "stall":
                self.flows.clear()
            case "reset":
                self.is_released.set()
                self.forget()
            case _:
                self._obey_towards_clients(order)

    def _obey_towards_clients(self, order: dict[str, Any]) -> None:
        match order["do"]:
            case "disguise":
                self.disguises = True
            case "encrypt":
                self.encryption = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                self.encryption.load_cert_chain(order["certificate"])
            case "say":
                for client in self.clients:
                    client.writer.write(bytes.fromhex(order["message"]))

    async def wait_on_the_wire(self) -> None:
        """Be as slow as was ordered."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self.flows.wait()

    def take_cut(self) -> Cut | None:
        if not self.cuts:
            return None
        self.refuses = self.refuses_after_cut
        return self.cuts.pop()


class _Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        return cls(*await asyncio.open_connection(host, port))

    async def read_rest(self) -> None:
        while await self.reader.read(65536):
            pass


class _Conversation:
    """A client and the server, and what stands between them."""

    def __init__(self, orders: _Orders, client: _Peer, server: _Peer) -> None:
        self._orders = orders
        self._client = client
        self._server = server
        self._prepared: dict[bytes, str] = {}
        self._batch: list[str] = []
        self._reply_cut: Cut | None = None
        self._reply_hold: asyncio.Event | None = None

    async def run(self) -> None:
        await self._start()
        self._orders.clients.add(self._client)
        replies = asyncio.create_task(self._pass_replies())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._pass_requests()
        self._orders.clients.discard(self._client)
        self._client.writer.close()
        # What was sent is not to be lost with the connection: the server reads it, then finds the end.
        with contextlib.suppress(OSError):
            self._server.writer.write_eof()
        await replies
        self._server.writer.close()

    async def _start(self) -> None:
        while True:
            head = await self._client.reader.readexactly(8)
            length, code = struct.unpack("!II", head)
            body = await self._client.reader.readexactly(length - len(head))
            if code not in ENCRYPTION_REQUESTS:
                self._server.writer.write(head + body)
                return
            if code != TLS_REQUEST or self._orders.encryption is None:
                self._client.writer.write(b"N")
                continue
            self._client.writer.write(b"S")
            await self._client.writer.start_tls(self._orders.encryption)

    async def _pass_requests(self) -> None:
        waiting = b""
        while True:
            kind = await self._client.reader.readexactly(1)
            size = await self._client.reader.readexactly(4)
            body = await self._client.reader.readexactly(struct.unpack("!I", size)[0] - 4)
            waiting += kind + size + body
            if kind in BATCHED:
                self._note(kind, body)
                continue
            request = self._request(kind, body)
            if request is not None:
                self._orders.requests.append(request)
                if self._orders.statement.search(request) and await self._lose(waiting):
                    return
            await self._orders.wait_on_the_wire()
            self._server.writer.write(waiting)
            await self._server.writer.drain()
            waiting = b""

    def _note(self, kind: bytes, body: bytes) -> None:
        first, second, *_ = body.split(b"\0", 2)
        if kind == b"P":
            self._prepared[first] = second.decode()
            self._batch.append(f"PREPARE {second.decode()}")
        elif kind == b"B":
            text = self._prepared[second]
            if self._batch and self._batch[-1] == f"PREPARE {text}":
                self._batch.pop()
            self._batch.append(text)
        elif kind == b"C":
            self._batch.append("DEALLOCATE")

    def _request(self, kind: bytes, body: bytes) -> str | None:
        if kind == b"Q":
            return body.rstrip(b"\0").decode()
        if kind != b"S":
            return None
        request, self._batch = "; ".join(self._batch), []
        return request or "SYNC"

    async def _lose(self, commit: bytes) -> bool:
        """Do what is ordered for a COMMIT; return whether its connection is lost by that."""
        cut = self._orders.take_cut()
        if cut is Cut.BEFORE:
            return True
        if cut is Cut.AFTER:
            self._reply_cut = cut
            self._server.writer.write(commit)
            return True
        if cut is Cut.REPLY:
            self._reply_cut = cut
        elif self._orders.holds:
            self._orders.holds = False
            self._reply_hold = self._orders.is_released
        return False

    async def _pass_replies(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._server.reader.read(65536):
                if self._reply_cut is not None:
                    break
                if self._reply_hold is not None:
                    self._orders.has_come.set()
                    await self._reply_hold.wait()
                    self._reply_hold = None
                await self._orders.wait_on_the_wire()
                if self._orders.disguises:
                    data = KEY.sub(lambda match: KEY_OF_THE_PROXY + match[1], data)
                self._client.writer.write(data)
        self._client.writer.close()
        with contextlib.suppress(ConnectionError):
            await self._server.read_rest()


async def _serve(host: str, port: int) -> None:
    orders = _Orders()

    conversations: set[asyncio.Task[None] | None] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if orders.refuses:
            writer.close()
            return
        conversations.add(asyncio.current_task())  # the loop itself would forget it when its client is gone
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await _Conversation(orders, _Peer(reader, writer), await _Peer.connect(host, port)).run()
        writer.close()
        conversations.discard(asyncio.current_task())

    listener = await asyncio.start_server(converse, LISTEN, 0)
    _say({"port": listener.sockets[0].getsockname()[1]})
    orders_reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders_reader), sys.stdin)
    while line := await orders_reader.readline():
        _say(await orders.obey(json.loads(line)))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
