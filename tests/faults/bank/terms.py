"""What both banks and those who go there have agreed on."""

from typing import Any

from sqlalchemy import Engine, QueuePool

from sample.bank.forms import TransferForm

FIRST_ACCOUNT = 1001
POOL = {"pool_size": 2, "max_overflow": 1}
"""One less than a worker's threads."""
POOL_TIMEOUT_S = 1.0
STATEMENT_TIMEOUT_S = 0.3
PARTS = 3
"""How many units a streamed answer has."""
SWALLOWED = 4
"""One of so many orders meets an error that is caught."""


def amounts(form: TransferForm) -> dict[int, int]:
    """What a transfer adds to each account."""
    return {form.source_id: -form.amount_cents, form.target_id: form.amount_cents}


def acknowledged(transfer_id: int) -> tuple[dict[str, int], int]:
    """The answer to an order that is carried out if the unit is."""
    return {"transfer_id": transfer_id}, 201


def pool_state(pid: int, engine: Engine) -> dict[str, Any]:
    """What a worker says of its connections."""
    assert isinstance(engine.pool, QueuePool)
    return {"pid": pid, "checked_out": engine.pool.checkedout(), "checked_in": engine.pool.checkedin()}
