"""What a unit of work costs beside the same view written by hand, as ratios of CPU time measured in one run.

The views insert a row and answer with its key. Each app is served in rounds that alternate with the others', so that
a machine that slows down slows all of them; the least of many short rounds is what is compared. The clock is the
process's, which counts nanoseconds; the kernel tells user time alone only by its ticks, too coarse for a round. With a
database in memory the two are the same.
"""

import gc
import random
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session

from flask_uow import UnitOfWork, transactional
from tests.databases import PostgreSQLDatabase
from tests.models import Base, Item

ROUNDS = 150
REQUESTS_PER_ROUND = 40
IN_MEMORY = "sqlite://"

MakeApp = Callable[[str], Flask]
numbers = iter(range(10**9))


def new_item() -> Item:
    return Item(name=f"item {next(numbers)}")


def by_hand(url: str) -> Flask:
    """``with Session(engine) as s, s.begin()``."""
    app = Flask("by_hand")
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)

    @app.post("/")
    def create() -> dict[str, int]:
        with Session(engine) as session, session.begin():
            item = new_item()
            session.add(item)
            session.flush()
            return {"id": item.id}

    return app


def with_unit_of_work(url: str) -> Flask:
    """``@transactional``."""
    app = Flask("with_unit_of_work")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    uow = UnitOfWork(app)
    with app.app_context():
        Base.metadata.create_all(uow.engine)

    @app.post("/")
    @transactional
    def create() -> dict[str, int]:
        session = uow.session()
        item = new_item()
        session.add(item)
        session.flush()
        return {"id": item.id}

    return app


def with_flask_sqlalchemy(url: str) -> Flask:
    """``db.session.commit()``."""
    app = Flask("with_flask_sqlalchemy")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app)
    with app.app_context():
        Base.metadata.create_all(db.engine)

    @app.post("/")
    def create() -> dict[str, int]:
        item = new_item()
        db.session.add(item)
        db.session.commit()
        return {"id": item.id}

    return app


def measure(*apps: Flask) -> list[float]:
    """CPU time of one request to each app, in seconds."""
    clients = {app.name: app.test_client() for app in apps}
    best = dict.fromkeys(clients, float("inf"))
    gc.collect()
    gc.freeze()
    for _ in range(ROUNDS):
        for name in random.sample(list(clients), len(clients)):
            before = time.process_time()
            for _ in range(REQUESTS_PER_ROUND):
                assert clients[name].post("/").status_code == 200
            best[name] = min(best[name], (time.process_time() - before) / REQUESTS_PER_ROUND)
    gc.unfreeze()
    return list(best.values())


def ratios(url: str, say: Callable[[str], object]) -> tuple[float, float]:
    """Ours over by hand, and ours over Flask-SQLAlchemy."""
    hand, ours, peer = measure(by_hand(url), with_unit_of_work(url), with_flask_sqlalchemy(url))
    say(
        f"\nCPU of one request: by hand {hand * 1e6:.0f} us, ours {ours * 1e6:.0f} us ({ours / hand:.3f}), "
        f"Flask-SQLAlchemy {peer * 1e6:.0f} us (ours over it {ours / peer:.3f})"
    )
    return ours / hand, ours / peer


def test_cpu_on_sqlite_in_memory(say: Callable[[str], object]) -> None:
    """At most a twelfth more than by hand, and less than Flask-SQLAlchemy with a commit."""
    over_hand, over_peer = ratios(IN_MEMORY, say)

    assert over_hand <= 1.08
    assert over_peer < 1.0


def test_cpu_on_postgresql(postgres: PostgreSQLDatabase, tmp_path: Path, say: Callable[[str], object]) -> None:
    """At most a twentieth on a server, whose own time is no part of it."""
    over_hand, over_peer = ratios(postgres.url, say)

    assert over_hand <= 1.05
    assert over_peer < 1.0
