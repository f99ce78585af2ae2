"""What the books say: functions that only read, and return plain values for a page or for JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import contains_eager, joinedload, selectinload

from flask_uow import transactional
from sample.bank.db import uow
from sample.bank.errors import NotFoundError
from sample.bank.models import CASH_ID, CHECKS_ID, Account, Audit, Base, Customer, Entry, Transfer

STATEMENT_PAGE = 500


@dataclass(frozen=True)
class CustomerLine:
    """A customer in a list."""

    id: int
    name: str


@dataclass(frozen=True)
class AccountLine:
    """An account in a list."""

    id: int
    name: str
    balance_cents: int


@dataclass(frozen=True)
class CustomerReport:
    """A customer with all accounts."""

    id: int
    name: str
    email: str
    accounts: list[AccountLine]


@dataclass(frozen=True)
class EntryLine:
    """An entry as its account's statement shows it."""

    id: int
    at: datetime
    transfer_id: int
    kind: str
    memo: str
    amount_cents: int
    balance_cents: int


@dataclass(frozen=True)
class AccountReport:
    """An account, its owner, and its latest entries."""

    id: int
    name: str
    customer: CustomerLine
    balance_cents: int
    entries: list[EntryLine]


@dataclass(frozen=True)
class SideLine:
    """One side of a transfer."""

    account_id: int
    name: str
    amount_cents: int
    is_internal: bool


@dataclass(frozen=True)
class TransferReport:
    """A transfer with both its sides."""

    id: int
    kind: str
    memo: str
    at: datetime
    entries: list[SideLine]


@dataclass(frozen=True)
class AuditLine:
    """A line of the audit trail."""

    at: datetime
    action: str
    detail: str


@dataclass(frozen=True)
class LedgerReport:
    """The whole ledger in figures, and what is wrong with it."""

    customers: int
    accounts: int
    transfers: int
    entries: int
    owed_cents: int
    vault_cents: int
    clearing_cents: int
    sum_cents: int
    unbalanced: list[int]
    overdrawn: list[int]

    @property
    def is_sound(self) -> bool:
        """Whether every transfer adds up to zero and no customer's account is below it."""
        return not (self.sum_cents or self.unbalanced or self.overdrawn)


@transactional(propagation="required", read_only=True)
def customers(after_id: int = 0, limit: int = 20) -> list[CustomerLine]:
    """Return a page of customers, by number."""
    statement = select(Customer.id, Customer.name).where(Customer.id > after_id).order_by(Customer.id).limit(limit)
    return [CustomerLine(row.id, row.name) for row in uow.session.execute(statement)]


@transactional(propagation="required", read_only=True)
def customer(customer_id: int) -> CustomerReport:
    """Return one customer with the balances of all accounts."""
    found = uow.session.get(Customer, customer_id)
    if found is None:
        raise NotFoundError(f"There is no customer {customer_id}.")
    statement = (
        select(Account.id, Account.name, func.coalesce(func.sum(Entry.amount), 0).label("balance"))
        .outerjoin(Entry, Entry.account_id == Account.id)
        .where(Account.customer_id == customer_id)
        .group_by(Account.id, Account.name)
        .order_by(Account.id)
    )
    lines = [AccountLine(row.id, row.name, int(row.balance)) for row in uow.session.execute(statement)]
    return CustomerReport(found.id, found.name, found.email, lines)


@transactional(propagation="required", read_only=True)
def account(account_id: int, limit: int = 50) -> AccountReport:
    """Return a customer's account with its latest entries, the newest first."""
    found = _customers_account(account_id)
    balance = func.sum(Entry.amount).over(order_by=Entry.id).label("balance")
    statement = (
        select(Entry, balance)
        .where(Entry.account_id == account_id)
        .options(joinedload(Entry.transfer, innerjoin=True))
        .order_by(Entry.id.desc())
        .limit(limit)
    )
    lines = [_entry_line(entry, int(after)) for entry, after in uow.session.execute(statement)]
    owner = CustomerLine(found.customer.id, found.customer.name) if found.customer else CustomerLine(0, "")
    return AccountReport(found.id, found.name, owner, lines[0].balance_cents if lines else 0, lines)


@transactional(propagation="required", read_only=True)
def transfer(transfer_id: int) -> TransferReport:
    """Return one transfer with all its entries."""
    sides = selectinload(Transfer.entries).joinedload(Entry.account, innerjoin=True)
    found = uow.session.get(Transfer, transfer_id, options=[sides])
    if found is None:
        raise NotFoundError(f"There is no transfer {transfer_id}.")
    lines = [_side_line(entry) for entry in found.entries]
    return TransferReport(found.id, found.kind, found.memo, found.at, lines)


@transactional(propagation="required", read_only=True)
def audit_trail(limit: int = 50) -> list[AuditLine]:
    """Return the last lines of the audit trail, the newest first."""
    found = uow.session.scalars(select(Audit).order_by(Audit.id.desc()).limit(limit))
    return [AuditLine(line.at, line.action, line.detail) for line in found]


def statement_lines(account_id: int) -> Iterator[EntryLine]:
    """Yield all entries of an account, the oldest first.

    Each page of them is a unit of its own: somebody who downloads slowly occupies no teller, that is no connection.
    """
    last: EntryLine | None = None
    while page := _statement_page(account_id, last):
        yield from page
        last = page[-1]


@transactional(propagation="required", read_only=True)
def _statement_page(account_id: int, last: EntryLine | None) -> list[EntryLine]:
    statement = (
        select(Entry)
        .where(Entry.account_id == account_id, Entry.id > (last.id if last else 0))
        .options(joinedload(Entry.transfer, innerjoin=True))
        .order_by(Entry.id)
        .limit(STATEMENT_PAGE)
    )
    balance = last.balance_cents if last else 0
    lines = []
    for entry in uow.session.scalars(statement):
        balance += entry.amount
        lines.append(_entry_line(entry, balance))
    return lines


@transactional(propagation="required", read_only=True)
def ledger() -> LedgerReport:
    """Add up the whole ledger and name each transfer and account that is off."""
    totals = uow.session.execute(
        select(
            func.count().label("entries"),
            _sum(Account.customer_id.is_not(None)).label("owed"),
            _sum(Account.id == CASH_ID).label("vault"),
            _sum(Account.id == CHECKS_ID).label("clearing"),
        ).select_from(Entry.__table__.join(Account.__table__))
    ).one()
    owed, vault, clearing = int(totals.owed), int(totals.vault), int(totals.clearing)
    return LedgerReport(
        customers=_count(Customer),
        accounts=_count(Account),
        transfers=_count(Transfer),
        entries=totals.entries,
        owed_cents=owed,
        vault_cents=-vault,
        clearing_cents=-clearing,
        sum_cents=owed + vault + clearing,
        unbalanced=_unbalanced_transfers(),
        overdrawn=_overdrawn_accounts(),
    )


def _customers_account(account_id: int) -> Account:
    statement = (
        select(Account).join(Account.customer).where(Account.id == account_id).options(contains_eager(Account.customer))
    )
    found = uow.session.scalar(statement)
    if found is None:
        raise NotFoundError(f"There is no account {account_id}.")
    return found


def _entry_line(entry: Entry, balance_cents: int) -> EntryLine:
    movement = entry.transfer
    return EntryLine(entry.id, movement.at, movement.id, movement.kind, movement.memo, entry.amount, balance_cents)


def _side_line(entry: Entry) -> SideLine:
    return SideLine(entry.account_id, entry.account.name, entry.amount, entry.account.customer_id is None)


def _sum(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(Entry.amount).filter(condition), 0)


def _count(model: type[Base]) -> int:
    return uow.session.scalar(select(func.count()).select_from(model)) or 0


def _unbalanced_transfers() -> list[int]:
    balanced = select(Entry.transfer_id).group_by(Entry.transfer_id).having(func.sum(Entry.amount) == 0)
    return list(uow.session.scalars(select(Transfer.id).where(Transfer.id.not_in(balanced)).order_by(Transfer.id)))


def _overdrawn_accounts() -> list[int]:
    customers_entries = select(Entry.account_id).join(Entry.account).where(Account.customer_id.is_not(None))
    overdrawn = customers_entries.group_by(Entry.account_id).having(func.sum(Entry.amount) < 0)
    return list(uow.session.scalars(overdrawn.order_by(Entry.account_id)))
