"""The ledger: every movement of money is a transfer whose entries add up to zero.

Amounts are whole cents. An account has no balance column: its balance is the sum of its entries, so the two can never
disagree, and the bank's own accounts, which take part in every deposit and withdrawal, are never a row that all
tellers queue for. A customer's account is locked before its entries are added up (see ``services.lock_accounts``).
"""

from datetime import UTC, datetime
from typing import Annotated

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

MAX_AMOUNT_CENTS = 1_000_000_00
"""The most that one movement may carry: far from what a ``BIGINT`` holds, even after a billion movements."""

CASH_ID = 999
CHECKS_ID = 1000
"""The bank's own accounts: the vault and the checks on their way to other banks. Customers' accounts start at 1001."""

Id = Annotated[int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)]
Cents = Annotated[int, mapped_column(BigInteger)]


def utc_now() -> datetime:
    """Return the time that goes into the books: UTC, without a zone, the same on every database."""
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)


class Base(DeclarativeBase):
    """What all tables of the bank have in common."""


class Customer(Base):
    """A person who banks here."""

    __tablename__ = "customer"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(String(80))
    email: Mapped[str] = mapped_column(String(120))
    accounts: Mapped[list["Account"]] = relationship(back_populates="customer", lazy="raise")


class Account(Base):
    """A customer's account, or one of the bank's own, which has no customer."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), Identity(start=CHECKS_ID + 1), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(40))
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customer.id"), index=True)
    customer: Mapped[Customer | None] = relationship(back_populates="accounts", lazy="raise")


class Transfer(Base):
    """One movement of money between accounts."""

    __tablename__ = "transfer"

    id: Mapped[Id]
    kind: Mapped[str] = mapped_column(String(20))
    memo: Mapped[str] = mapped_column(String(140), default="")
    at: Mapped[datetime] = mapped_column(default=utc_now)
    entries: Mapped[list["Entry"]] = relationship(back_populates="transfer", lazy="raise", order_by="Entry.id")


class Entry(Base):
    """One side of a transfer: what it adds to an account, or takes from it."""

    __tablename__ = "entry"
    __table_args__ = (CheckConstraint("amount <> 0", name="entry_moves_something"),)

    id: Mapped[Id]
    transfer_id: Mapped[int] = mapped_column(ForeignKey("transfer.id"), index=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    amount: Mapped[Cents]
    transfer: Mapped[Transfer] = relationship(back_populates="entries", lazy="raise")
    account: Mapped[Account] = relationship(lazy="raise")


class Check(Base):
    """A check that was cashed; its number is unique, so that none is cashed twice."""

    __tablename__ = "check"

    id: Mapped[Id]
    number: Mapped[str] = mapped_column(String(20), unique=True)
    transfer_id: Mapped[int] = mapped_column(ForeignKey("transfer.id"), unique=True)
    transfer: Mapped[Transfer] = relationship(lazy="raise")


class Audit(Base):
    """What somebody asked for at the counter, whether or not it was done."""

    __tablename__ = "audit"

    id: Mapped[Id]
    action: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(String(600))
    at: Mapped[datetime] = mapped_column(default=utc_now)
