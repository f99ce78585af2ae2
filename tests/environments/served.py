"""An app for servers of every kind, which tells who has answered; ``USED`` lets it use its database at its import."""

import os
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response, request, stream_with_context

from flask_uow import UnitOfWork, transactional
from tests.models import Item

BACKEND = sa.text("SELECT pg_backend_pid()")
NAP = sa.text("SELECT pg_sleep(:nap)")

app = Flask("served")
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
uow = UnitOfWork(app)
importers_backend = None

if os.environ.get("USED"):
    # As an app does that reads its settings from the database: the connection stays in the pool, and a server may fork.
    with app.app_context():
        importers_backend = uow.session.scalar(BACKEND)


def identify() -> dict[str, Any]:
    """Tell which process answers, over which backend, and over which the app was imported."""
    return {"worker": os.getpid(), "backend": uow.session.scalar(BACKEND), "importer": importers_backend}


@app.post("/keep/<name>")
@transactional
def keep(name: str) -> dict[str, Any]:
    """Add a row, wait as long as is asked for, and keep it."""
    uow.session.add(Item(name=name))
    uow.session.execute(NAP, {"nap": request.args.get("nap", 0.0, float)})
    return identify()


@app.post("/lose/<name>")
@transactional
def lose(name: str) -> dict[str, Any]:
    """Add a row, and fail."""
    uow.session.add(Item(name=name))
    uow.session.flush()
    raise ValueError(name)


@app.post("/stream/<name>")
def stream(name: str) -> Response:
    """Add a row while the body is made."""

    def body() -> Iterator[str]:
        with transactional(label="streamed"):
            uow.session.add(Item(name=name))
            uow.session.flush()
        yield "streamed"

    return Response(stream_with_context(body()))
