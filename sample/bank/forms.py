"""What a request asks for, read from a form or from JSON; what cannot be read is an ``InputError``.

A form writes amounts in dollars (``amount=12.50``), JSON in cents (``"amount_cents": 1250``); both understand both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flask import request
from werkzeug.routing import IntegerConverter

from sample.bank.errors import InputError
from sample.bank.models import MAX_AMOUNT_CENTS
from sample.bank.money import format_cents, parse_cents
from sample.bank.services import Slip

MAX_ID_DIGITS = 18
MAX_CHECKS = 20


class IdConverter(IntegerConverter):
    """A key in a URL, as long as a ``BIGINT`` holds it."""

    regex = rf"[0-9]{{1,{MAX_ID_DIGITS}}}"


@dataclass(frozen=True)
class TransferForm:
    """A filled-in transfer form."""

    source_id: int
    target_id: int
    amount_cents: int
    memo: str


@dataclass(frozen=True)
class WithdrawalForm:
    """A filled-in withdrawal form."""

    account_id: int
    amount_cents: int


@dataclass(frozen=True)
class DepositForm:
    """A filled-in deposit form."""

    account_id: int
    slips: list[Slip]


def read_transfer() -> TransferForm:
    """Read the body of ``POST /transfers``."""
    data = _body()
    return TransferForm(_key(data, "from"), _key(data, "to"), _amount(data), _text(data, "memo", 140, ""))


def read_withdrawal() -> WithdrawalForm:
    """Read the body of ``POST /withdrawals``."""
    data = _body()
    return WithdrawalForm(_key(data, "account"), _amount(data))


def read_deposit() -> DepositForm:
    """Read the body of ``POST /deposits``: empty lines of the form are left out, unreadable amounts are not."""
    data = _body()
    slips = [Slip(_text(check, "number", 20), _cents(check)) for check in _checks(data) if any(check.values())]
    if not 0 < len(slips) <= MAX_CHECKS:
        raise InputError(f"Hand in between 1 and {MAX_CHECKS} checks.", field="number")
    return DepositForm(_key(data, "account"), slips)


def read_start() -> int:
    """Return the number after which a list goes on: ``?after=20``."""
    return _key(request.args, "after") if "after" in request.args else 0


def _body() -> Mapping[str, Any]:
    if not request.is_json:
        return request.form
    try:
        data = request.get_json(silent=True)
    except RecursionError:
        data = None
    if not isinstance(data, dict):
        raise InputError("The body is not a JSON object.")
    return data


def _checks(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not request.is_json:
        lines = zip(request.form.getlist("number"), request.form.getlist("amount"), strict=False)
        return [{"number": number.strip(), "amount": amount.strip()} for number, amount in lines]
    checks = data.get("checks")
    if not isinstance(checks, list) or not all(isinstance(check, dict) for check in checks):
        raise InputError('"checks" must be a list of objects.', field="checks")
    return checks


def _text(data: Mapping[str, Any], name: str, max_length: int, default: str | None = None) -> str:
    value = data.get(name, default)
    if value is None:
        raise InputError(f'The field "{name}" is missing.', field=name)
    if not isinstance(value, str):
        raise InputError(f'The field "{name}" must be text.', field=name)
    text = " ".join(value.split())
    if not text and default is None:
        raise InputError(f'Fill in the field "{name}".', field=name)
    if len(text) > max_length or not text.isprintable():
        raise InputError(f'The field "{name}" takes at most {max_length} printable characters.', field=name)
    return text


def _key(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    text = str(value) if type(value) is int and abs(value) < 10**MAX_ID_DIGITS else _text(data, name, MAX_ID_DIGITS)
    if not (text.isascii() and text.isdigit()):
        raise InputError(f'The field "{name}" must be a number, such as 1001.', field=name)
    return int(text)


def _amount(data: Mapping[str, Any]) -> int:
    if "amount" not in data and "amount_cents" not in data:
        raise InputError('The field "amount" is missing.', field="amount")
    cents = _cents(data)
    if cents is None or not 0 < cents <= MAX_AMOUNT_CENTS:
        limit = format_cents(MAX_AMOUNT_CENTS)
        raise InputError(f"The amount must be a number between 0.01 and {limit}, such as 12.50.", field="amount")
    return cents


def _cents(data: Mapping[str, Any]) -> int | None:
    cents = data.get("amount_cents")
    if type(cents) is int:
        return cents
    try:
        return parse_cents(data.get("amount") or "")
    except (ValueError, AttributeError):
        return None
