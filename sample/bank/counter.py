"""The counter, where money moves: every order is one unit of work, whatever happens in it.

A view writes the audit trail before its own unit has used the database. That line has a unit of its own and stays,
even where the order itself is refused and rolled back.
"""

from flask import Blueprint, render_template, request, url_for
from flask.typing import ResponseReturnValue

from flask_uow import transactional
from sample.bank import audit, forms, services
from sample.bank.answers import done
from sample.bank.money import format_cents
from sample.bank.services import Receipt

blueprint = Blueprint("counter", __name__)


@blueprint.get("/transfers/new")
def transfer_form() -> str:
    """Show an empty transfer form, or one that a link has begun to fill in."""
    return render_template("transfer_form.html", typed=request.args)


@blueprint.post("/transfers")
@transactional
def transfer() -> ResponseReturnValue:
    """Move money between two accounts."""
    form = forms.read_transfer()
    amount = format_cents(form.amount_cents)
    audit.record("transfer", f"{amount} from {form.source_id} to {form.target_id}: {form.memo}")
    movement = services.transfer(form.source_id, form.target_id, form.amount_cents, form.memo)
    message = f"Transferred {amount} to account {form.target_id}."
    location = url_for("pages.transfer", transfer_id=movement.id)
    return done(location, [("good", message)], transfer_id=movement.id, amount_cents=form.amount_cents)


@blueprint.get("/withdrawals/new")
def withdrawal_form() -> str:
    """Show a withdrawal form."""
    return render_template("withdrawal_form.html", typed=request.args)


@blueprint.post("/withdrawals")
@transactional
def withdraw() -> ResponseReturnValue:
    """Pay out cash."""
    form = forms.read_withdrawal()
    amount = format_cents(form.amount_cents)
    audit.record("withdrawal", f"{amount} from {form.account_id}")
    movement = services.withdraw(form.account_id, form.amount_cents)
    location = url_for("pages.account", account_id=form.account_id)
    message = f"Here is your cash: {amount}."
    return done(location, [("good", message)], transfer_id=movement.id, amount_cents=form.amount_cents)


@blueprint.get("/deposits/new")
def deposit_form() -> str:
    """Show a deposit form with room for three checks."""
    return render_template("deposit_form.html", typed=request.args)


@blueprint.post("/deposits")
@transactional
def deposit() -> ResponseReturnValue:
    """Cash the checks that are good and hand back the others."""
    form = forms.read_deposit()
    audit.record("deposit", f"to {form.account_id}: {', '.join(slip.number for slip in form.slips)}")
    receipts = services.deposit(form.account_id, form.slips)
    location = url_for("pages.account", account_id=form.account_id)
    return done(location, [_message(receipt) for receipt in receipts], checks=receipts)


def _message(receipt: Receipt) -> tuple[str, str]:
    if receipt.refused:
        return "bad", f"Check {receipt.number} is handed back: {receipt.refused}."
    return "good", f"Check {receipt.number} is cashed: {format_cents(receipt.amount_cents or 0)}."
