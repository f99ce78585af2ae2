"""One answer, two forms: a page for people, JSON for programs that ask for it."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from flask import flash, jsonify, redirect, render_template, request
from flask.json.provider import DefaultJSONProvider
from flask.typing import ResponseReturnValue
from flask.wrappers import Response
from werkzeug.exceptions import HTTPException

from flask_uow.exceptions import CommitOutcomeUnknownError
from sample.bank.errors import BankError, DepositRefusedError

FORMS = {
    "counter.transfer": "transfer_form.html",
    "counter.deposit": "deposit_form.html",
    "counter.withdraw": "withdrawal_form.html",
}


class BankJSON(DefaultJSONProvider):
    """JSON that writes times as ISO 8601 and keeps the order of the fields."""

    sort_keys = False

    @staticmethod
    def default(o: Any) -> Any:
        """Write what JSON has no type for."""
        return o.isoformat() if isinstance(o, datetime) else DefaultJSONProvider.default(o)


def wants_json() -> bool:
    """Tell whether the client asked for JSON, or sent it."""
    accepted = request.accept_mimetypes
    return request.is_json or accepted["application/json"] > accepted["text/html"]


def answer(template: str, **data: Any) -> ResponseReturnValue:
    """Answer a question with a page, or with the same data as JSON."""
    return jsonify(data) if wants_json() else render_template(template, **data)


def done(location: str, messages: list[tuple[str, str]], **data: Any) -> ResponseReturnValue:
    """Answer an order that was carried out: 201 for programs; people go on to a page that shows the messages."""
    if wants_json():
        return jsonify(data), 201, {"Location": location}
    for category, message in messages:
        flash(message, category)
    return redirect(location, 303)


def refused(error: BankError) -> ResponseReturnValue:
    """Answer what the bank refuses: the form once more, as it was filled in, or JSON."""
    receipts = error.receipts if isinstance(error, DepositRefusedError) else []
    if wants_json():
        details = {"code": error.code, "message": error.message, "field": error.field}
        checks = {"checks": [asdict(receipt) for receipt in receipts]} if receipts else {}
        return jsonify(error=details, **checks), error.status
    template = FORMS.get(request.endpoint or "", "error.html")
    page = render_template(
        template, error=error, receipts=receipts, typed=request.form, title="That did not work", message=error.message
    )
    return page, error.status


def unknown(error: CommitOutcomeUnknownError) -> ResponseReturnValue:
    """Answer an order of which nobody knows whether it was carried out: it must not be given again unseen."""
    message = "The connection to the books was lost. Look at the account: the order may have been carried out."
    if wants_json():
        return jsonify(error={"code": "outcome-unknown", "message": message, "field": None}), 500
    return render_template("error.html", title="We do not know whether that worked", message=message), 500


def failed(error: HTTPException) -> ResponseReturnValue:
    """Answer what Flask refuses, in the form that was asked for."""
    headers = [header for header in error.get_headers() if header[0] != "Content-Type"]
    if wants_json():
        details = {"code": error.name.lower().replace(" ", "-"), "message": error.description, "field": None}
        return jsonify(error=details), error.code or 500, headers
    page = render_template("error.html", title=error.name, message=error.description)
    return page, error.code or 500, headers


def vary_on_accept(response: Response) -> Response:
    """Tell caches that the same address has a page and a JSON form."""
    response.vary.add("Accept")
    return response
