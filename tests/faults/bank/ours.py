"""The sample bank, with the ways of moving money that its own counter has no need of.

``gunicorn 'tests.faults.bank.ours:create_app()'`` serves it. :mod:`tests.faults.bank.by_hand` answers the same requests
without ``flask_uow``.
"""

import asyncio
import os
import time
from collections.abc import Iterator

from flask import Blueprint, Flask, Response, current_app, stream_with_context
from flask.typing import ResponseReturnValue
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from flask_uow import transactional
from sample import bank
from sample.bank import forms, services
from sample.bank.db import uow
from sample.bank.models import Transfer
from tests.faults.bank import terms
from tests.models import RIDES

blueprint = Blueprint("ways", __name__)


def create_app() -> Flask:
    """Build the bank, with a pool that is smaller than the threads of a worker are many."""
    pool_options = {**terms.POOL, "pool_timeout": terms.POOL_TIMEOUT_S}
    app = bank.create_app({"SQLALCHEMY_ENGINE_OPTIONS": pool_options, "UOW_RIDE": RIDES})
    app.register_blueprint(blueprint)
    return app


@blueprint.post("/serializable")
@transactional(isolation="SERIALIZABLE", retries=8)
def serializable() -> ResponseReturnValue:
    """Move money without a lock: the server says who was in the way."""
    form = forms.read_transfer()
    services.require_funds(form.source_id, form.amount_cents)
    movement = services.post("transfer", terms.amounts(form), form.memo)
    return terms.acknowledged(movement.id)


@blueprint.post("/confirmed")
@transactional(confirm_commit=True)
def confirmed() -> ResponseReturnValue:
    """Move money, and ask the server what became of a COMMIT that was lost."""
    return _transfer()


@blueprint.post("/nested")
@transactional
def nested() -> ResponseReturnValue:
    """Move money; an inner unit fails, and takes nothing with it but itself."""
    answer = _transfer()
    try:
        _enter_again(answer[0]["transfer_id"])
    except IntegrityError:
        current_app.logger.debug("The inner unit was undone.")
    return answer


@transactional
def _enter_again(transfer_id: int) -> None:
    uow.session.add(Transfer(id=0, kind="note"))
    uow.session.flush()
    uow.session.execute(insert(Transfer).values(id=transfer_id, kind="twice"))


@blueprint.post("/swallowed")
@transactional
def swallowed() -> ResponseReturnValue:
    """Move money; of what must not fail the order, the error is caught, in some orders, without a savepoint."""
    answer = _transfer()
    try:
        if answer[0]["transfer_id"] % terms.SWALLOWED == 0:
            uow.session.execute(insert(Transfer).values(id=answer[0]["transfer_id"], kind="twice"))
    except SQLAlchemyError:
        current_app.logger.warning("A note was not written.")
    return answer


@blueprint.post("/timed")
@transactional(timeout=terms.STATEMENT_TIMEOUT_S)
def timed() -> ResponseReturnValue:
    """Move money within a time."""
    return _transfer()


@blueprint.post("/async")
@transactional
async def asynchronous() -> ResponseReturnValue:
    """Move money in a coroutine."""
    await asyncio.sleep(0)
    return _transfer()


@blueprint.post("/streamed")
def streamed() -> Response:
    """Move money in several units while the answer is on its way: a line says which of them was done."""
    form = forms.read_transfer()

    def lines() -> Iterator[str]:
        for part in range(terms.PARTS):
            with transactional(label="part"):
                movement = services.transfer(form.source_id, form.target_id, form.amount_cents, f"{form.memo}/{part}")
            yield f"{form.memo}/{part}\n" if movement.id else ""

    return Response(stream_with_context(lines()), mimetype="text/plain")


@blueprint.post("/slow/<int:milliseconds>")
@transactional
def slow(milliseconds: int) -> ResponseReturnValue:
    """Have a connection for a time, and do nothing."""
    services.balance_cents(terms.FIRST_ACCOUNT)
    time.sleep(milliseconds / 1000)
    return {}


@blueprint.get("/pool")
def pool() -> ResponseReturnValue:
    """Tell which worker this is, and how many connections it has."""
    return terms.pool_state(os.getpid(), uow.engine)


def _transfer() -> tuple[dict[str, int], int]:
    form = forms.read_transfer()
    return terms.acknowledged(services.transfer(form.source_id, form.target_id, form.amount_cents, form.memo).id)
