"""The bank as it is usually written: Flask-SQLAlchemy, and each view commits, or rolls back and lets the error pass.

It has the models, the forms and the answers of the sample bank, the same small pool, and ``pool_pre_ping``, which is
the usual advice. What differs is who commits: nobody asks what became of a COMMIT, and an error that is caught is an
error that is forgotten.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Flask, Response, current_app, jsonify, stream_with_context
from flask.typing import ResponseReturnValue
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from werkzeug.exceptions import HTTPException

from sample.bank import answers, forms
from sample.bank.errors import BankError, CheckRefusedError, InsufficientFundsError, NotFoundError, SameAccountError
from sample.bank.models import CHECKS_ID, Account, Audit, Check, Entry, Transfer
from sample.bank.services import Slip
from tests.faults.bank import terms

db = SQLAlchemy()


def create_app() -> Flask:
    """Build the bank."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {**terms.POOL, "pool_pre_ping": True}
    db.init_app(app)
    app.json = answers.BankJSON(app)
    app.register_error_handler(BankError, answers.refused)
    app.register_error_handler(HTTPException, answers.failed)
    app.add_url_rule("/accounts/<int:account_id>", view_func=account)
    app.add_url_rule("/pool", view_func=pool)
    for path, view in WAYS.items():
        app.add_url_rule(path, view_func=view, methods=["POST"])
    return app


def account(account_id: int) -> ResponseReturnValue:
    """Show an account."""
    return {"id": account_id, "balance_cents": _balance_cents(account_id)}


def pool() -> ResponseReturnValue:
    """Tell which worker this is, and how many connections it has."""
    return terms.pool_state(os.getpid(), db.engine)


def transfer() -> ResponseReturnValue:
    """Write down what was asked for, and move money."""
    form = forms.read_transfer()
    _record("transfer", form.memo)
    try:
        answer = _transfer(form)
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return answer


def plain() -> ResponseReturnValue:
    """Move money."""
    try:
        answer = _transfer(forms.read_transfer())
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return answer


def serializable() -> ResponseReturnValue:
    """Move money without a lock: the server says who was in the way."""
    form = forms.read_transfer()
    try:
        db.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        _require_funds(form.source_id, form.amount_cents)
        movement = _post("transfer", terms.amounts(form), form.memo)
        answer = terms.acknowledged(movement.id)
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return answer


def nested() -> ResponseReturnValue:
    """Move money; an inner part fails, and takes nothing with it but itself."""
    try:
        answer = _transfer(forms.read_transfer())
        try:
            with db.session.begin_nested():
                db.session.add(Transfer(id=0, kind="note"))
                db.session.flush()
                db.session.execute(insert(Transfer).values(id=answer[0]["transfer_id"], kind="twice"))
        except IntegrityError:
            current_app.logger.debug("The inner part was undone.")
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return answer


def swallowed() -> ResponseReturnValue:
    """Move money; of what must not fail the order, the error is caught, in some orders, without a savepoint."""
    try:
        answer = _transfer(forms.read_transfer())
        try:
            if answer[0]["transfer_id"] % terms.SWALLOWED == 0:
                db.session.execute(insert(Transfer).values(id=answer[0]["transfer_id"], kind="twice"))
        except SQLAlchemyError:
            current_app.logger.warning("A note was not written.")
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return answer


def timed() -> ResponseReturnValue:
    """Move money within a time."""
    try:
        db.session.execute(text(f"SET LOCAL statement_timeout = {int(terms.STATEMENT_TIMEOUT_S * 1000)}"))
        answer = _transfer(forms.read_transfer())
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return answer


async def asynchronous() -> ResponseReturnValue:
    """Move money in a coroutine."""
    await asyncio.sleep(0)
    return plain()


def streamed() -> Response:
    """Move money in several transactions while the answer is on its way: a line says which of them was done."""
    form = forms.read_transfer()

    def lines() -> Iterator[str]:
        for part in range(terms.PARTS):
            memo = f"{form.memo}/{part}"
            try:
                _transfer(forms.TransferForm(form.source_id, form.target_id, form.amount_cents, memo))
                db.session.commit()
            except Exception:
                db.session.rollback()
                raise
            yield f"{memo}\n"

    return Response(stream_with_context(lines()), mimetype="text/plain")


def deposit() -> ResponseReturnValue:
    """Cash the checks that are good and hand back the others."""
    form = forms.read_deposit()
    _record("deposit", f"to {form.account_id}")
    try:
        _lock_accounts(form.account_id)
        checks = [_present(form.account_id, slip) for slip in sorted(form.slips, key=lambda slip: slip.number)]
        db.session.commit()
    except Exception:
        db.session.rollback()
        raise
    return jsonify(checks=checks), 201


def slow(milliseconds: int) -> ResponseReturnValue:
    """Have a connection for a time, and do nothing."""
    _balance_cents(terms.FIRST_ACCOUNT)
    time.sleep(milliseconds / 1000)
    return {}


WAYS: dict[str, Callable[..., Any]] = {
    "/transfers": transfer,
    "/deposits": deposit,
    "/serializable": serializable,
    "/confirmed": plain,
    "/nested": nested,
    "/swallowed": swallowed,
    "/timed": timed,
    "/async": asynchronous,
    "/streamed": streamed,
    "/slow/<int:milliseconds>": slow,
}


def _record(action: str, detail: str) -> None:
    db.session.add(Audit(action=action, detail=detail))
    db.session.commit()


def _transfer(form: forms.TransferForm) -> tuple[dict[str, int], int]:
    if form.source_id == form.target_id:
        raise SameAccountError("Choose two different accounts.", field="to")
    _lock_accounts(form.source_id, form.target_id)
    _require_funds(form.source_id, form.amount_cents)
    return terms.acknowledged(_post("transfer", terms.amounts(form), form.memo).id)


def _lock_accounts(*account_ids: int) -> None:
    statement = select(Account.id).where(Account.id.in_(account_ids)).order_by(Account.id).with_for_update()
    if len(db.session.scalars(statement).all()) < len(account_ids):
        raise NotFoundError("There is no such account.")


def _require_funds(account_id: int, amount_cents: int) -> None:
    if _balance_cents(account_id) < amount_cents:
        raise InsufficientFundsError("That is more than the account holds.", field="amount")


def _balance_cents(account_id: int) -> int:
    total = select(func.coalesce(func.sum(Entry.amount), 0)).where(Entry.account_id == account_id)
    return int(db.session.scalar(total) or 0)


def _post(kind: str, movements: Mapping[int, int], memo: str) -> Transfer:
    entries = [Entry(account_id=account_id, amount=amount) for account_id, amount in movements.items()]
    movement = Transfer(kind=kind, memo=memo, entries=entries)
    db.session.add(movement)
    db.session.flush()
    return movement


def _present(account_id: int, slip: Slip) -> dict[str, object]:
    try:
        with db.session.begin_nested():
            if not slip.amount_cents or slip.amount_cents < 0:
                raise CheckRefusedError("the amount is wrong")
            amounts = {CHECKS_ID: -slip.amount_cents, account_id: slip.amount_cents}
            movement = _post("check", amounts, f"Check {slip.number}")
            db.session.add(Check(number=slip.number, transfer=movement))
            db.session.flush()
            return {"number": slip.number, "transfer_id": movement.id}
    except CheckRefusedError as error:
        return {"number": slip.number, "transfer_id": None, "refused": error.message}
    except IntegrityError:
        return {"number": slip.number, "transfer_id": None, "refused": "it was cashed before"}
