"""A day at the sample's bank, told in JSON: ``python -m tests.environments.bank_day``, with any flags of Python's.

It asserts nothing, so that it says the same with ``-O``.
"""

import json
import logging
import os
import sys
from typing import Any

from flask_uow import stats
from sample.bank import create_app
from sample.bank.db import uow

ADA, ALAN = 1001, 1003
CHECKS = [{"number": "7", "amount_cents": 9}, {"number": "7", "amount_cents": 5}]
ORDERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/transfers", {"from": ADA, "to": ALAN, "amount_cents": 1250}),
    ("/transfers", {"from": ADA, "to": ALAN, "amount_cents": 99_999_00}),
    ("/transfers", {"from": ADA, "to": 9999, "amount_cents": 1}),
    ("/deposits", {"account": ADA, "checks": CHECKS}),
    ("/withdrawals", {"account": ADA, "amount_cents": 20_00}),
    *((f"/mistakes/{name}", {}) for name in ("commit-by-hand", "rollback-by-hand", "forget-to-commit")),
)


def main() -> None:
    """Open the bank, hand in the orders, and tell what was answered, what is left and what was counted."""
    logging.disable()
    # A machine that stalls breaks no rule.
    app = create_app({"BANK_OUTBOX": os.devnull, "UOW_MAX_UNIT_SECONDS": 60.0, "UOW_MAX_IDLE_SECONDS": 60.0})
    run, client = app.test_cli_runner().invoke, app.test_client()
    told: list[object] = [run(args=["bank", *command]).exit_code for command in (["init"], ["seed", "--customers=3"])]
    for path, body in ORDERS:
        answer = client.post(path, json=body, headers={"Accept": "application/json"})
        told.append([path, answer.status_code])
    told.append(client.get(f"/accounts/{ADA}/statement.csv").text.count("\n"))
    told.append(run(args=["bank", "check"]).output.splitlines())
    told.append(run(args=["db-session-stats"]).exit_code)
    (worker,) = stats.read_boards(app).workers
    units = worker.counts.units
    told.append({"committed": units.committed, "rolled back": units.rolled_back, "rules": worker.counts.rules})
    told.append(sum(pool.checked_out or 0 for pool in worker.pools))
    with app.app_context():
        uow.engine.dispose()  # what is in the pool would be called unclosed, as it is at the end of any program
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
