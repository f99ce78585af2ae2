"""What a teller does: each function is one unit of work, or part of its caller's.

``propagation="required"`` joins the unit of the view that calls. ``cash_check`` is nested, a savepoint: a check that is
refused takes nothing with it but itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import joinedload

from flask_uow import current_unit, transactional
from sample.bank import outbox
from sample.bank.db import uow
from sample.bank.errors import (
    CheckRefusedError,
    DepositRefusedError,
    InsufficientFundsError,
    NotFoundError,
    SameAccountError,
)
from sample.bank.models import CASH_ID, CHECKS_ID, MAX_AMOUNT_CENTS, Account, Check, Customer, Entry, Transfer
from sample.bank.money import format_cents


@dataclass(frozen=True)
class Slip:
    """A check as it lies on the counter; ``amount_cents`` is ``None`` where nobody can read it."""

    number: str
    amount_cents: int | None


@dataclass(frozen=True)
class Receipt:
    """What became of one check: the transfer that it made, or the reason why it was handed back."""

    number: str
    amount_cents: int | None
    transfer_id: int | None = None
    refused: str | None = None


@transactional(propagation="required")
def transfer(source_id: int, target_id: int, amount_cents: int, memo: str = "") -> Transfer:
    """Move money from one customer's account to another's."""
    if source_id == target_id:
        raise SameAccountError("Choose two different accounts.", field="to")
    accounts = lock_accounts(source_id, target_id)
    require_funds(source_id, amount_cents)
    movement = post("transfer", {source_id: -amount_cents, target_id: amount_cents}, memo)
    _notify(accounts[source_id], f"You sent {format_cents(amount_cents)} to account {target_id}.")
    _notify(accounts[target_id], f"You received {format_cents(amount_cents)} from account {source_id}.")
    return movement


@transactional(propagation="required")
def withdraw(account_id: int, amount_cents: int) -> Transfer:
    """Pay out cash."""
    accounts = lock_accounts(account_id)
    require_funds(account_id, amount_cents)
    movement = post("withdrawal", {account_id: -amount_cents, CASH_ID: amount_cents}, "Cash")
    _notify(accounts[account_id], f"You withdrew {format_cents(amount_cents)} from account {account_id}.")
    return movement


@transactional(propagation="required")
def deposit(account_id: int, slips: Iterable[Slip]) -> list[Receipt]:
    """Cash checks one by one and hand back the bad ones; with none left, the deposit is refused."""
    accounts = lock_accounts(account_id)
    # In one order for everybody: two deposits of the same checks wait for each other, but never both at once.
    receipts = [_present(account_id, slip) for slip in sorted(slips, key=lambda slip: slip.number)]
    cashed = [receipt.amount_cents or 0 for receipt in receipts if not receipt.refused]
    if not cashed:
        raise DepositRefusedError(receipts)
    _notify(accounts[account_id], f"You deposited {format_cents(sum(cashed))} in account {account_id}.")
    return receipts


@transactional
def cash_check(account_id: int, slip: Slip) -> Transfer:
    """Credit one check, in a savepoint of its own."""
    if slip.amount_cents is None or not 0 < slip.amount_cents <= MAX_AMOUNT_CENTS:
        raise CheckRefusedError(f"the amount must be between $0.01 and {format_cents(MAX_AMOUNT_CENTS)}")
    movement = post("check", {CHECKS_ID: -slip.amount_cents, account_id: slip.amount_cents}, f"Check {slip.number}")
    uow.session.add(Check(number=slip.number, transfer=movement))
    uow.session.flush()
    return movement


@transactional(propagation="required")
def open_customers(customers: Sequence[Customer], opening_cents: Sequence[int]) -> None:
    """Give each new customer a current account with an opening balance, and a savings account."""
    for customer, amount_cents in zip(customers, opening_cents, strict=True):
        current, savings = Account(name="Current"), Account(name="Savings")
        customer.accounts = [current, savings]
        entries = [Entry(account_id=CASH_ID, amount=-amount_cents), Entry(account=current, amount=amount_cents)]
        uow.session.add_all([customer, Transfer(kind="opening", memo="Opening balance", entries=entries)])


def lock_accounts(*account_ids: int) -> dict[int, Account]:
    """Lock customers' accounts until the unit ends, in the order of their numbers, so that no two units deadlock."""
    statement = (
        select(Account)
        .join(Account.customer)
        .where(Account.id.in_(account_ids))
        .options(joinedload(Account.customer, innerjoin=True))
        .order_by(Account.id)
        .with_for_update(of=Account)
    )
    accounts = {account.id: account for account in uow.session.scalars(statement)}
    for account_id in account_ids:
        if account_id not in accounts:
            raise NotFoundError(f"There is no account {account_id}.")
    return accounts


def post(kind: str, amounts: Mapping[int, int], memo: str) -> Transfer:
    """Enter a movement into the books: what it adds to each account, in all zero."""
    entries = [Entry(account_id=account_id, amount=amount) for account_id, amount in amounts.items()]
    movement = Transfer(kind=kind, memo=memo, entries=entries)
    uow.session.add(movement)
    uow.session.flush()
    return movement


def balance_cents(account_id: int) -> int:
    """Return the sum of an account's entries."""
    total = select(func.coalesce(func.sum(Entry.amount), 0)).where(Entry.account_id == account_id)
    return int(uow.session.scalar(total) or 0)


def require_funds(account_id: int, amount_cents: int) -> None:
    """Refuse to take more from an account than it holds."""
    balance = balance_cents(account_id)
    if balance < amount_cents:
        raise InsufficientFundsError(
            f"Account {account_id} holds {format_cents(balance)}; {format_cents(amount_cents)} is more than that.",
            field="amount",
        )


def _present(account_id: int, slip: Slip) -> Receipt:
    try:
        movement = cash_check(account_id, slip)
    except CheckRefusedError as error:
        return Receipt(slip.number, slip.amount_cents, refused=error.message)
    except IntegrityError:
        return Receipt(slip.number, slip.amount_cents, refused="it was cashed before")
    return Receipt(slip.number, slip.amount_cents, transfer_id=movement.id)


def _notify(account: Account, subject: str) -> None:
    if account.customer is not None:
        current_unit.after_commit(partial(outbox.send, account.customer.email, subject))
