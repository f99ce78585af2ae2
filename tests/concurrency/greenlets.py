"""An app for a process that gevent has patched, and what its greenlets do: ``python -m tests.concurrency.greenlets``.

``python -m tests.concurrency.greenlets WHAT URL [late] [waits]``: what is patched, and when, is the point, so that it
is done before anything else is imported, or after with ``late``; with ``waits``, psycopg2 is told to wait for gevent.
"""

import sys

if "late" not in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import json
import time
from typing import Any

import gevent
import psycopg2.extensions
import sqlalchemy as sa
from flask import Flask
from gevent.socket import wait_read, wait_write

from flask_uow import UnitOfWork, current_unit, transactional
from tests.models import Item

uow = UnitOfWork()
GREENLETS = 8
NAP_S = 0.2


def wait(connection: Any) -> None:
    """Let other greenlets run while psycopg2 waits, as the package psycogreen does."""
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        (wait_read if state == psycopg2.extensions.POLL_READ else wait_write)(connection.fileno())


def make_app(url: str) -> Flask:
    """Make the app; the tables are there already."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": GREENLETS + 1})
    uow.init_app(app)

    @app.get("/<name>")
    @transactional
    def view(name: str) -> dict[str, Any]:
        session = uow.session()
        session.add(Item(name=name))
        session.execute(sa.text("SELECT pg_sleep(:nap)"), {"nap": NAP_S})
        assert uow.session() is session
        assert current_unit.session is session
        assert current_unit.depth == 1
        if name.endswith("bad"):
            raise ValueError(name)
        return {"session": id(session)}

    return app


def requests(app: Flask) -> dict[str, Any]:
    """Serve requests in greenlets that take turns; every other one fails."""
    app.test_client().get("/warm")

    def serve(number: int) -> int:
        return app.test_client().get(f"/item{number}{'bad' if number % 2 else ''}").status_code

    begun = time.monotonic()
    greenlets = [gevent.spawn(serve, number) for number in range(GREENLETS)]
    gevent.joinall(greenlets)
    return {"seconds": time.monotonic() - begun, "statuses": [greenlet.value for greenlet in greenlets]}


def timeouts(app: Flask) -> dict[str, Any]:
    """Let gevent's Timeout, which is no Exception, cut units short: in a statement, between two, and in a savepoint."""
    ends: list[str] = []
    for where in ("statement", "between", "savepoint"):
        with app.app_context():
            try:
                with gevent.Timeout(NAP_S), transactional():
                    uow.session.add(Item(name=where))
                    uow.session.flush()
                    if where == "between":
                        gevent.sleep(10)
                    with transactional():
                        uow.session.add(Item(name=f"inner {where}"))
                        uow.session.flush()
                        uow.session.execute(sa.text("SELECT pg_sleep(10)"))
            except gevent.Timeout:
                ends.append("timeout")
            with transactional() as unit:
                uow.session.add(Item(name=f"after {where}"))
                ends.append(f"depth {unit.depth}")
    return {"ends": ends}


def deaths(app: Flask) -> dict[str, Any]:
    """Take a listener's connection out of the pool when it was notified, and again when the server has ended it."""

    def take() -> tuple[int, Any]:
        with uow.engine.connect() as connection:
            return connection.scalar(sa.text("SELECT pg_backend_pid()")) or 0, connection.connection.driver_connection

    with app.app_context():
        with uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("LISTEN news")
            with uow.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
                other.exec_driver_sql("NOTIFY news")
        listener, driver = take()
        is_left_alone = take()[0] == listener
        with uow.engine.connect(), uow.engine.connect() as other:  # the pool gives what came back last
            other.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": listener})
        taken = [take()[0] for _ in range(3)]
    return {"is_left_alone": is_left_alone, "is_replaced": listener not in taken, "is_closed": bool(driver.closed)}


def main(what: str, url: str) -> None:
    """Do it, and print what came of it and what is left."""
    if "late" in sys.argv:
        from gevent import monkey

        monkey.patch_all()
    if "waits" in sys.argv:
        psycopg2.extensions.set_wait_callback(wait)
    app = make_app(url)
    came = {"requests": requests, "timeouts": timeouts, "deaths": deaths}[what](app)
    with app.app_context():
        pool = uow.engine.pool
        assert isinstance(pool, sa.QueuePool)
        came["checked_out"] = pool.checkedout()
    sys.stdout.write(json.dumps(came))


if __name__ == "__main__":
    main(*sys.argv[1:3])
