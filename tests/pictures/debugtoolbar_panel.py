"""Draw the README's picture of the panel: a deposit at the sample bank, on a real server.

Run it from the top of the source tree: ``python -m tests.pictures.debugtoolbar_panel docs/debugtoolbar-panel.svg``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from flask import Flask, render_template
from sqlalchemy.engine import make_url

from flask_uow import transactional
from flask_uow._timeline import Timeline
from flask_uow.contrib._picture import picture
from flask_uow.exceptions import RuleWarning
from sample.bank import create_app, reports, services
from sample.bank.services import Slip
from tests.throwaway_server import throwaway_server
from tests.timelines import keep_timelines

ACCOUNT = 1001
WAIT_S = 0.006
WARM_UP = 3


def main(target: str) -> None:
    """Open the bank, deposit checks until nothing is slow for being the first, and write the picture of the last.

    :param target: the SVG file to write.
    """
    with throwaway_server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ["DATABASE_URL"] = make_url(server).render_as_string(hide_password=False)
        timelines = deposit(open_bank(Path(folder) / "outbox.jsonl"))
    Path(target).parent.mkdir(exist_ok=True)
    Path(target).write_text(picture(timelines[-1], is_standalone=True), encoding="utf-8")


def open_bank(outbox: Path) -> Flask:
    """Open a bank that waits for nobody in a transaction, and takes checks by mail.

    :param outbox: where its mails go.
    """
    app = create_app({"BANK_OUTBOX": str(outbox), "UOW_MAX_IDLE_SECONDS": WAIT_S * 0.8})
    for arguments in (["init"], ["seed", "--customers", "3"]):
        app.test_cli_runner().invoke(args=["bank", *arguments])
    visits = iter(range(100))

    @transactional(label="cash_checks")
    def cash_checks(visit: int) -> None:
        slips = [Slip(f"{visit}-1", 1000), Slip(f"{visit}-1", 1000), Slip(f"{visit}-2", 2500)]
        services.deposit(ACCOUNT, slips)
        time.sleep(WAIT_S)  # for another bank, say

    @app.post("/mail")
    def mail() -> str:
        cash_checks(next(visits))
        with transactional(read_only=True, label="account"):
            account = reports.account(ACCOUNT)
        return render_template("account.html", account=account)

    return app


def deposit(app: Flask) -> list[Timeline]:
    """Return the timelines of some deposits."""
    timelines = keep_timelines(app)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        for _ in range(WARM_UP + 1):
            app.test_client().post("/mail")
    return timelines


if __name__ == "__main__":
    main(*sys.argv[1:])
