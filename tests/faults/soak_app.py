"""What the soak asks for: an app with a view, a stream or a command for each way in which a request can end."""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response, abort, current_app, request, stream_with_context
from flask.cli import ScriptInfo

from flask_uow import UnitOfWork, current_unit, stats, transactional
from tests.databases import Database
from tests.models import Item, create_tables

DEADLINE_S = 15.0
TAKEN = "taken"
ONE = sa.text("SELECT 1")
CUT = sa.text("SELECT pg_terminate_backend(pg_backend_pid())")
SLEEP = sa.text("SELECT pg_sleep(60)")
REFUSE = sa.text("DO $$ BEGIN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END $$")

uow = UnitOfWork()
numbers = itertools.count()
hooks: Counter[str] = Counter()


class Interrupt(BaseException):
    """What is no Exception, as an exit or a greenlet's timeout."""


def make_app(database: Database, folder: Path) -> Flask:
    """Make the app, with a second pool that is full at once.

    :param folder: where its board lies.
    """
    create_tables(database)
    database.execute(f"INSERT INTO item (name) VALUES ('{TAKEN}')")
    narrow = {"url": database.url, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=database.url, SQLALCHEMY_BINDS={"narrow": narrow}, UOW_STATS_DIR=str(folder)
    )
    uow.init_app(app)
    for kind in KINDS:
        app.add_url_rule(f"/{kind.name}", kind.name, kind.view, methods=["POST"])
    app.cli.command("write")(write)
    return app


def add(kind: str) -> None:
    """Add a row of a kind, and send it."""
    uow.session.add(Item(name=f"{kind} {next(numbers)}"))
    uow.session.flush()


# ---- how a kind is asked for; each returns the status


def post(app: Flask, name: str) -> int:
    """Post, and read all of the answer."""
    with app.test_client().post(f"/{name}") as response:
        response.get_data()
        return response.status_code


def post_half(app: Flask, name: str) -> int:
    """Post a body that ends before it is whole."""
    announced = {"CONTENT_LENGTH": "8"}
    return app.test_client().post(f"/{name}", input_stream=BytesIO(b"half"), environ_overrides=announced).status_code


def leave(app: Flask, name: str) -> int:
    """Post, and go away after the first piece of the answer."""
    with app.test_client().post(f"/{name}") as response:
        next(response.iter_encoded())
        return response.status_code


def be_interrupted(app: Flask, name: str) -> int:
    """Post, and see what no server would answer."""
    with suppress(Interrupt):
        return post(app, name)
    return 0


def run(app: Flask, name: str) -> int:
    """Run the command of this name."""
    app.cli.main([name], obj=ScriptInfo(create_app=lambda: app), standalone_mode=False)
    return 0


# ---- what is asked for


@transactional(read_only=True)
def read() -> str:
    uow.session.execute(sa.select(Item.name).where(Item.name == TAKEN))
    return "read"


@transactional
def write() -> str:
    add("write")
    return "written"


def read_by_hand() -> str:
    return f"{uow.session.scalar(ONE)}, without a unit"


def write_by_hand() -> str:
    add("write_by_hand")
    uow.session.commit()
    return "committed, without a unit"


def forget() -> str:
    add("forget")
    return "never committed"


@transactional
def commit_inside() -> str:
    add("commit_inside")
    uow.session.commit()
    return "refused"


@transactional
def fail() -> str:
    add("fail")
    raise ValueError("no")


@transactional
def refuse() -> str:
    add("refuse")
    abort(409)


@transactional
def interrupt() -> str:
    add("interrupt")
    raise Interrupt


@transactional(rollback_on_status=400)
def veto() -> tuple[str, int]:
    add("veto")
    return "no", 422


@transactional(no_rollback_for=(KeyError,))
def keep() -> str:
    add("keep")
    raise KeyError("kept all the same")


@transactional
async def wait() -> str:
    add("wait")
    await asyncio.sleep(0)
    add("wait")
    return "awaited"


@transactional
async def wait_and_fail() -> str:
    add("wait_and_fail")
    await asyncio.sleep(0)
    raise ValueError("no")


def stream() -> Response:
    def pieces() -> Iterator[str]:
        for _ in range(3):
            with transactional(label="piece"):
                add("stream")
            yield "piece"

    return Response(stream_with_context(pieces()))


def left_stream() -> Response:
    def pieces() -> Iterator[str]:
        with transactional(label="piece"):
            add("left_stream")
        yield "piece"
        uow.session.execute(ONE)
        yield "with a transaction open"

    return Response(stream_with_context(pieces()))


@transactional
def half_body() -> str:
    add("half_body")
    return f"{len(request.get_data())} bytes"


@transactional
def cut() -> str:
    add("cut")
    uow.session.execute(CUT)
    return "never"


def cut_by_hand() -> str:
    uow.session.execute(CUT)
    return "never"


@transactional
def nest() -> str:
    add("nest")
    with suppress(ValueError), transactional(label="inner"):
        add("nest")
        raise ValueError("undone")
    with transactional(label="inner"):
        add("nest")
    return "two are kept"


@transactional
def join() -> str:
    add("join")
    with suppress(ValueError), transactional(propagation="required", label="joined"):
        raise ValueError("fails all")
    return "never"


@transactional
def audit() -> str:
    add("audit")
    with transactional(propagation="requires_new", label="of its own"):
        add("audit")
    raise ValueError("no")


@transactional
def suspend() -> str:
    add("suspend")
    with transactional(propagation="not_supported"):
        uow.session.execute(ONE)
    return "written"


@transactional(retries=2)
def retry() -> str:
    add("retry")
    if current_unit.attempt == 1:
        uow.session.execute(REFUSE)
    return "at the second attempt"


@transactional(retries=1)
def give_up() -> str:
    uow.session.execute(REFUSE)
    return "never"


@transactional(timeout=0.02)
def overrun() -> str:
    add("overrun")
    uow.session.execute(SLEEP)
    return "never"


@transactional
def wait_in_vain() -> str:
    engine = uow.get_engine("narrow")
    with engine.connect():
        uow.session.execute(ONE, bind_arguments={"bind": engine})
    return "never"


@transactional
def go_past() -> str:
    add("go_past")
    with closing(uow.session.connection().connection.cursor()) as cursor:
        cursor.execute("INSERT INTO item (name) VALUES (%s)", [f"go_past {next(numbers)}"])
    return "written"


def take_by_hand() -> str:
    with uow.engine.begin() as connection:
        connection.execute(sa.insert(Item).values(name=f"take_by_hand {next(numbers)}"))
    return "written"


@transactional
def swallow() -> str:
    add("swallow")
    with suppress(sa.exc.IntegrityError):
        uow.session.add(Item(name=TAKEN))
        uow.session.flush()
    return "never"


@transactional
def give_back() -> str:
    add("give_back")
    current_unit.set_rollback_only()
    return "nothing is kept"


@transactional
def hook() -> str:
    current_unit.before_commit(lambda: add("hook"))
    current_unit.after_commit(lambda: hooks.update(["hook"]))
    return "hooked"


def employ() -> str:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # of the proxy

    def work() -> None:
        with app.app_context(), transactional(label="of a thread"):
            add("employ")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE_S)
    return "written by another thread"


def look() -> str:
    return f"{len(stats.snapshot().workers)} workers"


# ---- what each leaves behind


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    :param view: what is asked for; the kind has its name.
    :param answer: the status that is right; 0 where there is none.
    :param leaves: how many rows, attempts of units by their end, and violations one request adds.
    :param ask: how it is asked for.
    :param weight: how often it comes, beside the others.
    """

    view: Callable[..., Any]
    answer: int
    leaves: Counter[str] = field(default_factory=Counter)
    ask: Callable[[Flask, str], int] = post
    weight: int = 4

    @property
    def name(self) -> str:
        """What it is called, in its path and in its rows."""
        return self.view.__name__


def _of(**leaves: int) -> Counter[str]:
    return Counter(leaves)


LOST = _of(rolled_back=1)
ROW = _of(rows=1, committed=1)

KINDS = (
    Kind(read, 200, _of(committed=1), weight=8),
    Kind(write, 200, ROW, weight=8),
    Kind(write, 0, ROW, ask=run),
    Kind(read_by_hand, 200),
    Kind(write_by_hand, 200, _of(rows=1)),
    Kind(forget, 200, _of(UOW103=1)),
    Kind(commit_inside, 500, _of(rolled_back=1, UOW101=1)),
    Kind(fail, 500, LOST),
    Kind(refuse, 409, LOST),
    Kind(interrupt, 0, LOST, ask=be_interrupted),
    Kind(veto, 422, LOST),
    Kind(keep, 500, ROW),
    Kind(wait, 200, _of(rows=2, committed=1)),
    Kind(wait_and_fail, 500, LOST),
    Kind(stream, 200, _of(rows=3, committed=3)),
    Kind(left_stream, 200, ROW, ask=leave),
    Kind(half_body, 400, LOST, ask=post_half),
    Kind(cut, 500, LOST, weight=1),
    Kind(cut_by_hand, 500, weight=1),
    Kind(nest, 200, _of(rows=2, committed=1)),
    Kind(join, 500, _of(failed=1)),
    Kind(audit, 500, _of(rows=1, committed=1, rolled_back=1)),
    Kind(suspend, 200, ROW),
    Kind(retry, 200, _of(rows=1, committed=1, rolled_back=1, retried=1)),
    Kind(give_up, 500, _of(rolled_back=2, retried=1)),
    Kind(overrun, 500, LOST, weight=1),
    Kind(wait_in_vain, 503, LOST, weight=1),
    Kind(go_past, 200, _of(rows=2, committed=1)),
    Kind(take_by_hand, 200, _of(rows=1)),
    Kind(swallow, 500, _of(failed=1)),
    Kind(give_back, 200, LOST),
    Kind(hook, 200, _of(rows=1, committed=1, hooks=1)),
    Kind(employ, 200, ROW),
    Kind(look, 200, weight=1),
)
