"""What there is to see: every view is one read-only unit of work."""

import csv
import io
from collections.abc import Iterator

from flask import Blueprint, Response, stream_with_context
from flask.typing import ResponseReturnValue

from flask_uow import transactional
from sample.bank import forms, outbox, reports
from sample.bank.answers import answer
from sample.bank.money import format_cents

blueprint = Blueprint("pages", __name__)


@blueprint.get("/")
@transactional(read_only=True)
def home() -> ResponseReturnValue:
    """Tell the story of the bank and list its customers."""
    return answer("home.html", customers=reports.customers(forms.read_start()))


@blueprint.get("/customers/<id:customer_id>")
@transactional(read_only=True)
def customer(customer_id: int) -> ResponseReturnValue:
    """Show a customer and the balance of each account."""
    return answer("customer.html", customer=reports.customer(customer_id))


@blueprint.get("/accounts/<id:account_id>")
@transactional(read_only=True)
def account(account_id: int) -> ResponseReturnValue:
    """Show an account and its latest entries."""
    return answer("account.html", account=reports.account(account_id))


@blueprint.get("/accounts/<id:account_id>/statement.csv")
@transactional(read_only=True)
def statement(account_id: int) -> Response:
    """Stream all entries of an account."""
    reports.account(account_id, limit=1)  # an unknown account is a 404, which nobody can say once the stream has begun
    disposition = {"Content-Disposition": f'attachment; filename="statement-{account_id}.csv"'}
    return Response(stream_with_context(_csv(account_id)), mimetype="text/csv", headers=disposition)


@blueprint.get("/transfers/<id:transfer_id>")
@transactional(read_only=True)
def transfer(transfer_id: int) -> ResponseReturnValue:
    """Show both sides of a transfer."""
    return answer("transfer.html", transfer=reports.transfer(transfer_id))


@blueprint.get("/audit")
@transactional(read_only=True)
def audit() -> ResponseReturnValue:
    """Show what was asked for last, done or refused."""
    return answer("audit.html", lines=reports.audit_trail())


@blueprint.get("/outbox")
def mails() -> ResponseReturnValue:
    """Show the e-mails that went out after a commit."""
    return answer("outbox.html", mails=outbox.latest())


def _csv(account_id: int) -> Iterator[str]:
    yield _csv_line("date", "transfer", "kind", "memo", "amount", "balance")
    for line in reports.statement_lines(account_id):
        amount, balance = format_cents(line.amount_cents, ""), format_cents(line.balance_cents, "")
        yield _csv_line(line.at.isoformat(), line.transfer_id, line.kind, _harmless(line.memo), amount, balance)


def _csv_line(*fields: object) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(fields)
    return buffer.getvalue()


def _harmless(text: str) -> str:
    """Keep a spreadsheet from taking a memo for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
