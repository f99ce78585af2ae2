"""The bank with views that get stuck: one sleeps in its unit, one waits for its row, one leaks a connection.

They write down when they have come to the place where they stay, so that the ages that are shown can be compared.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask

from flask_uow import transactional
from sample.bank import create_app as create_bank
from sample.bank import services
from sample.bank.db import uow

NAP_S = 60.0
leaked: list[Any] = []


def create_app() -> Flask:
    """The bank, with three more views."""
    app = create_bank()
    app.add_url_rule("/naps/<int:account>", view_func=nap, methods=["POST"])
    app.add_url_rule("/waits/<int:account>", view_func=wait, methods=["POST"])
    app.add_url_rule("/leaks", view_func=leak, methods=["POST"])
    app.add_url_rule("/statements", view_func=statement, methods=["POST"])
    return app


@transactional
def nap(account: int) -> dict[str, int]:
    """Sleep with a row locked."""
    services.lock_accounts(account)
    note("nap")
    time.sleep(NAP_S)
    return {}


@transactional
def wait(account: int) -> dict[str, int]:
    """Wait for that row."""
    note("wait")
    uow.session.execute(sa.text("UPDATE account SET name = name WHERE id = :id"), {"id": account})
    return {}


def leak() -> dict[str, int]:
    """Leave a connection in a transaction behind."""
    connection = uow.engine.connect()
    connection.execute(sa.text("SELECT 1"))
    note("leak")
    leaked.append(connection)
    return {}


@transactional
def statement() -> dict[str, int]:
    """Run a statement that takes long."""
    note("statement")
    uow.session.execute(sa.text("SELECT pg_sleep(:nap_s)"), {"nap_s": NAP_S})
    return {}


def note(name: str) -> None:
    """Write down the time, and who does it."""
    path = Path(os.environ["STUCK_NOTES"]) / name
    path.with_suffix(".new").write_text(json.dumps({"at": time.time(), "pid": os.getpid()}))
    path.with_suffix(".new").rename(path)
