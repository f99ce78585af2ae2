"""What the bank refuses; raised inside a unit of work, each of them rolls it back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sample.bank.services import Receipt


class BankError(Exception):
    """A refusal with a message for the customer, and the field of the form that it is about."""

    status: ClassVar[int] = 422
    code: ClassVar[str] = "refused"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InputError(BankError):
    """Something is missing from the form, or cannot be read."""

    status = 400
    code = "bad-input"


class NotFoundError(BankError):
    """There is no such customer, account or transfer."""

    status = 404
    code = "not-found"


class SameAccountError(BankError):
    """A transfer from an account to itself."""

    code = "same-account"


class InsufficientFundsError(BankError):
    """The account does not hold what should leave it."""

    code = "insufficient-funds"


class CheckRefusedError(BankError):
    """One check cannot be cashed."""

    code = "check-refused"


class DepositRefusedError(BankError):
    """Not one check of a deposit could be cashed."""

    code = "deposit-refused"

    def __init__(self, receipts: Sequence["Receipt"]) -> None:
        super().__init__("None of the checks could be cashed.")
        self.receipts = receipts
