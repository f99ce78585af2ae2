"""A request whose unit is tried again: its body is read once more, or the client hears why not."""

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import request

from flask_uow import transactional
from flask_uow.exceptions import UnitOptionsError
from tests.database.conftest import Bench, MakeBench
from tests.faults.test_retry import Attempts, lose

pytestmark = pytest.mark.parametrize("database", ["psycopg2", "psycopg"], indirect=True)


@pytest.fixture
def attempts() -> Attempts:
    """Nothing attempted yet."""
    return Attempts()


@pytest.fixture
def contested(bench: Bench) -> Bench:
    """A bench with the row that is contested."""
    bench.database.execute("INSERT INTO item (name) VALUES ('contested')")
    return bench


def serve(bench: Bench, attempts: Attempts, read: Callable[[], Any], *, before: bool = False) -> list[Any]:
    """Serve a view that reads its body in each attempt, and loses the first; give what the attempts have read.

    :param before: whether the body is read by the view, before the unit begins.
    """
    bodies: list[Any] = []

    @transactional(isolation="REPEATABLE READ", retries=2)
    def write(body: Any) -> str:
        number = attempts.begin()
        bodies.append(body if before else read())
        if number == 1:
            lose(bench)
        bench.add("kept")
        return "value"

    @bench.app.post("/")
    def view() -> str:
        return write(read() if before else None)

    return bodies


def read_file_and_form() -> tuple[bytes, str]:
    return request.files["check"].read(), request.form["account"]


def read_stream(size: int = -1) -> bytes:
    return request.stream.read(size)


def read_data() -> bytes:
    return request.get_data()


BODY: dict[str, Any] = {"json": {"amount": 5}}
REPEATABLE = {
    "json": (lambda: request.json, BODY, {"amount": 5}),
    "data": (read_data, BODY, b'{"amount": 5}'),
    "form": (lambda: request.form["amount"], {"data": {"amount": "5"}}, "5"),
    "values": (lambda: dict(request.values), {"data": {"amount": "5"}}, {"amount": "5"}),
    "file": (
        read_file_and_form,
        {"data": {"check": (io.BytesIO(b"a scan"), "check.png"), "account": "1001"}},
        (b"a scan", "1001"),
    ),
    "nothing": (read_stream, {}, b""),
    "data, then the stream": (lambda: (request.get_data(), request.stream.read())[0], BODY, b'{"amount": 5}'),
}
GONE: dict[str, Callable[[], Any]] = {
    "the stream": read_stream,
    "a part of the stream": lambda: read_stream(3),
    "data that is not kept": lambda: request.get_data(cache=False),
}


@pytest.mark.parametrize("case", REPEATABLE)
def test_each_attempt_reads_the_same_body(contested: Bench, attempts: Attempts, case: str) -> None:
    """What Flask keeps is there; uploaded files are read from their beginning again."""
    read, sent, expected = REPEATABLE[case]
    if case == "file":
        sent = {"data": {"check": (io.BytesIO(b"a scan"), "check.png"), "account": "1001"}}
    bodies = serve(contested, attempts, read)

    assert contested.app.test_client().post("/", **sent).text == "value"

    assert attempts.numbers == [1, 2]
    assert bodies == [expected, expected]
    assert contested.committed() == ["contested", "kept"]


class Input:
    """A body with no more than WSGI asks for, as gunicorn's has it."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int | None = None) -> bytes:
        return self._file.read(size)

    def readline(self, size: int | None = None) -> bytes:
        return self._file.readline(size)

    def readlines(self, hint: int = -1) -> list[bytes]:
        return self._file.readlines(hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


def test_a_server_need_give_no_more_than_wsgi_asks_for(contested: Bench, attempts: Attempts) -> None:
    """``readinto`` is not among it."""
    bodies = serve(contested, attempts, lambda: request.json)
    given = {"wsgi.input": Input(b'{"amount": 5}'), "CONTENT_LENGTH": "13"}

    answer = contested.app.test_client().post("/", content_type="application/json", environ_overrides=given)

    assert answer.text == "value"
    assert bodies == [{"amount": 5}, {"amount": 5}]


def test_a_servers_stream_takes_keywords_as_it_does_by_itself(contested: Bench) -> None:
    """A server that ends the body itself gives its own stream, gunicorn say."""

    @contested.app.post("/")
    @transactional(retries=2)
    def view() -> bytes:
        stream: Any = request.stream
        return bytes(stream.read(size=3) + stream.readline(size=2))

    given = {"wsgi.input": Input(b"abcdefg"), "wsgi.input_terminated": True}

    assert contested.app.test_client().post("/", environ_overrides=given).data == b"abcde"


def test_files_of_one_name_are_read_again(contested: Bench, attempts: Attempts) -> None:
    """Each from its beginning."""
    files = [(io.BytesIO(b"first"), "1.png"), (io.BytesIO(b"second"), "2.png")]
    bodies = serve(contested, attempts, lambda: [file.read() for file in request.files.getlist("check")])

    assert contested.app.test_client().post("/", data={"check": files}).text == "value"

    assert bodies == [[b"first", b"second"]] * 2


def test_a_file_is_read_on_from_where_the_unit_met_it(contested: Bench, attempts: Attempts) -> None:
    """A view that has read the first line before its unit finds the second in each attempt."""
    bodies: list[bytes] = []

    @transactional(isolation="REPEATABLE READ", retries=2)
    def write() -> str:
        number = attempts.begin()
        bodies.append(request.files["check"].read())
        if number == 1:
            lose(contested)
        return "value"

    @contested.app.post("/")
    def view() -> str:
        request.files["check"].readline()
        return write()

    contested.app.test_client().post("/", data={"check": (io.BytesIO(b"first\nsecond"), "check.csv")})

    assert bodies == [b"second", b"second"]


@pytest.mark.parametrize("case", GONE)
def test_a_stream_that_is_gone_is_an_error_before_the_second_attempt(
    contested: Bench, attempts: Attempts, case: str
) -> None:
    """The client hears it instead of a unit that has worked on half a body; what was lost is its cause."""
    serve(contested, attempts, GONE[case])

    with pytest.raises(UnitOptionsError, match=r"cannot be tried again: it has read request\.stream") as caught:
        contested.app.test_client().post("/", **BODY)

    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)
    assert attempts.numbers == [1]
    assert attempts.hooks == ["rolled back 1"]
    assert contested.committed() == ["contested"]


@pytest.mark.parametrize("case", GONE)
def test_a_stream_that_was_read_before_the_unit_is_not_its_business(
    contested: Bench, attempts: Attempts, case: str
) -> None:
    """The unit has been given what it needs."""
    bodies = serve(contested, attempts, GONE[case], before=True)

    assert contested.app.test_client().post("/", **BODY).text == "value"

    assert attempts.numbers == [1, 2]
    assert bodies[0] == bodies[1]


def test_a_body_is_read_after_any_number_of_units(contested: Bench) -> None:
    """A view that calls a function for each row of a file, say: none of them makes the body dearer to read."""

    @transactional(retries=1)
    def nothing() -> None: ...

    @contested.app.post("/")
    def view() -> bytes:
        for _ in range(sys.getrecursionlimit()):
            nothing()
        return request.get_data()

    assert contested.app.test_client().post("/", data=b"body").data == b"body"


@pytest.mark.parametrize("part", ["first", "rest"])
def test_what_an_earlier_unit_has_read_is_not_the_next_ones_business(
    contested: Bench, attempts: Attempts, part: str
) -> None:
    """Of several units in one request, each answers for what itself has taken off the stream."""
    taken: list[bytes] = []

    @transactional(retries=1)
    def earlier() -> None:
        taken.append(request.stream.read(3))

    bodies = serve(contested, attempts, lambda: request.stream.read() if part == "rest" else b"")
    contested.app.before_request(earlier)
    client = contested.app.test_client()

    def post() -> str:
        return client.post("/", data=b"123456", content_type="application/octet-stream").text

    if part == "first":
        assert post() == "value"
        assert (taken, bodies) == ([b"123"], [b"", b""])
    else:
        with pytest.raises(UnitOptionsError, match="cannot be tried again"):
            post()


# ---- what of a body is gone


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda: (request.form, request.stream.read()), id="a stream after a form that is none"),
        pytest.param(lambda: (request.form, request.get_data(cache=False)), id="data that is not kept"),
        pytest.param(lambda: list(request.stream), id="lines"),
        pytest.param(lambda: request.stream.readline(4), id="a line"),
    ],
)
def test_what_no_attempt_could_read_again_is_no_empty_body(
    contested: Bench, attempts: Attempts, read: Callable[[], Any]
) -> None:
    """The second attempt would work on nothing, and commit that."""
    bodies = serve(contested, attempts, read)

    with pytest.raises(UnitOptionsError, match="cannot be tried again"):
        contested.app.test_client().post("/", data=b"123456\n", content_type="application/octet-stream")

    assert len(bodies) == 1
    assert contested.committed() == ["contested"]


@pytest.mark.parametrize("is_terminated", [False, True], ids=["Werkzeug's", "the server's own"])
@pytest.mark.parametrize(
    "read",
    [
        pytest.param(list, id="all lines"),
        pytest.param(next, id="next"),
        pytest.param(lambda stream: stream.readline(), id="readline"),
        pytest.param(lambda stream: stream.readlines(), id="readlines"),
        pytest.param(lambda stream: getattr(stream, "read1", stream.read)(4), id="read1"),
        pytest.param(lambda stream: getattr(stream, "readall", stream.read)(), id="readall"),
        pytest.param(lambda stream: stream.readinto(bytearray(4)), id="readinto"),
        pytest.param(lambda stream: io.TextIOWrapper(stream).read(), id="text"),
    ],
)
def test_a_stream_that_was_met_before_the_unit_is_counted(
    contested: Bench, attempts: Attempts, read: Callable[[Any], Any], *, is_terminated: bool
) -> None:
    """By whichever of its methods it is read."""
    contested.app.before_request(lambda: request.stream and None)
    bodies = serve(contested, attempts, lambda: read(request.stream))
    body = {"wsgi.input": io.BytesIO(b"123456\n")} | ({"wsgi.input_terminated": True} if is_terminated else {})

    with pytest.raises(UnitOptionsError, match="cannot be tried again"):
        contested.app.test_client().post("/", content_length=7, environ_overrides=body)

    assert len(bodies) == 1
    assert contested.committed() == ["contested"]


def test_a_stream_that_was_begun_before_the_unit_is_not_read_on_twice(contested: Bench, attempts: Attempts) -> None:
    """Its rest is gone as well."""
    contested.app.before_request(lambda: request.stream.read(2) and None)
    serve(contested, attempts, read_stream)

    with pytest.raises(UnitOptionsError, match="cannot be tried again"):
        contested.app.test_client().post("/", data=b"123456", content_type="application/octet-stream")

    assert contested.committed() == ["contested"]


@pytest.mark.parametrize("closed", ["before", "inside"])
def test_a_file_that_is_closed_is_no_error_of_its_own(contested: Bench, attempts: Attempts, closed: str) -> None:
    """Before the unit it does not matter; inside, another attempt could not read it."""

    def close() -> None:
        request.files["check"].close()

    if closed == "before":
        contested.app.before_request(close)
    serve(contested, attempts, close)

    def post() -> int:
        data = {"check": (io.BytesIO(b"scan"), "check.txt")}
        return contested.app.test_client().post("/", data=data).status_code

    if closed == "before":
        assert post() == 200
        assert contested.committed() == ["contested", "kept"]
    else:
        with pytest.raises(UnitOptionsError, match="closed an uploaded file"):
            post()
        assert contested.committed() == ["contested"]


def test_a_handler_of_all_errors_does_not_keep_a_request_from_being_tried_again(
    make_bench: MakeBench, attempts: Attempts
) -> None:
    """The conflict is no answer to the client as long as there is an attempt left."""
    bench = make_bench(UOW_ATOMIC_REQUESTS=True, UOW_RETRIES=2, TESTING=False)
    bench.database.execute("INSERT INTO item (name) VALUES ('contested')")
    handled = []

    @bench.app.errorhandler(Exception)
    def sorry(error: Exception) -> tuple[str, int]:
        handled.append(error)
        return "sorry", 500

    @bench.app.post("/<int:losses>")
    def view(losses: int) -> str:
        bench.run_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if attempts.begin() <= losses:
            lose(bench)
        return "fine"

    client = bench.app.test_client()

    assert client.post("/2").status_code == 200
    assert handled == []
    assert client.post("/9").status_code == 500
    assert attempts.numbers == [1, 2, 3, 1, 2, 3]
