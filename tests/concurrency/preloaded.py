"""An app that has used its database before gunicorn forks: what ``--preload`` is known for."""

import os
from typing import Any

import sqlalchemy as sa
from flask import Flask, request

from flask_uow import UnitOfWork, transactional
from tests.models import Item

BACKEND = sa.text("SELECT pg_backend_pid()")

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
uow = UnitOfWork(app)

# As an app does that reads its settings from the database; the session stays open on purpose.
context = app.app_context()
context.push()
masters_backend = uow.session.scalar(BACKEND)


@app.get("/<name>")
@transactional
def view(name: str) -> dict[str, Any]:
    """Add a row, wait as long as is asked for, and say who did it where."""
    uow.session.add(Item(name=name))
    uow.session.execute(sa.text("SELECT pg_sleep(:nap)"), {"nap": request.args.get("nap", 0.0, float)})
    return {"worker": os.getpid(), "backend": uow.session.scalar(BACKEND), "master": masters_backend}
