"""The bank: an application factory that wires the database, the pages, the counter and the commands together."""

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException

from flask_uow.exceptions import CommitOutcomeUnknownError
from sample import mistakes
from sample.bank import answers, counter, money, pages
from sample.bank.cli import bank_commands
from sample.bank.db import uow
from sample.bank.errors import BankError
from sample.bank.forms import IdConverter


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Build the bank; ``DATABASE_URL`` names its database, else it is a SQLite file in the instance folder."""
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=os.environ.get("DATABASE_URL") or _sqlite_file(app),
        SECRET_KEY=os.environ.get("SECRET_KEY", "dev"),  # signs nothing but the messages shown after a redirect
        MAX_CONTENT_LENGTH=64 * 1024,
        UOW_MAX_UNIT_SECONDS=1.0,  # a bank that answers at once can be stricter than the defaults
        UOW_MAX_IDLE_SECONDS=0.5,
        BANK_OUTBOX=os.environ.get("BANK_OUTBOX") or os.path.join(app.instance_path, "outbox.jsonl"),
    )
    app.config.update(config or {})
    app.logger.setLevel(logging.INFO)
    uow.init_app(app)

    app.json = answers.BankJSON(app)
    app.url_map.converters["id"] = IdConverter
    app.add_template_filter(money.format_cents, "money")
    app.register_error_handler(BankError, answers.refused)
    app.register_error_handler(CommitOutcomeUnknownError, answers.unknown)
    app.register_error_handler(HTTPException, answers.failed)
    app.after_request(answers.vary_on_accept)
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(counter.blueprint)
    app.register_blueprint(mistakes.blueprint)
    app.cli.add_command(bank_commands)
    if app.debug and find_spec("flask_debugtoolbar"):
        _show_units(app)
    return app


def _show_units(app: Flask) -> None:
    """Draw each request's units, connections and statements, in a panel of Flask-DebugToolbar."""
    from flask_debugtoolbar import DebugToolbarExtension

    panels = ["timer.TimerDebugPanel", "headers.HeaderDebugPanel", "request_vars.RequestVarsDebugPanel"]
    app.config["DEBUG_TB_PANELS"] = [
        "flask_uow.contrib.debugtoolbar.UnitOfWorkPanel",
        *(f"flask_debugtoolbar.panels.{panel}" for panel in panels),
    ]
    DebugToolbarExtension(app)


def _sqlite_file(app: Flask) -> str:
    """Return the URL of the bank's own SQLite file, in a folder that exists."""
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'bank.sqlite'}"
