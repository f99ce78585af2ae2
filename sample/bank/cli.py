"""``flask bank``: set up the bank, fill it with customers, and check its books."""

import click
from flask.cli import AppGroup

from flask_uow import transactional
from sample.bank import reports, services
from sample.bank.db import uow
from sample.bank.models import CASH_ID, CHECKS_ID, Account, Base, Customer
from sample.bank.money import format_cents

BATCH = 100

FIRST_NAMES = ["Ada", "Alan", "Barbara", "Charles", "Donald", "Edgar", "Frances", "Grace", "Jim", "Margaret"]
LAST_NAMES = ["Baker", "Carter", "Fisher", "Gardener", "Mason", "Miller", "Porter", "Smith", "Taylor", "Weaver"]

bank_commands = AppGroup("bank", help="Run the sample bank.")


@bank_commands.command("init")
@transactional
def init() -> None:
    """Create the tables and the bank's own accounts, where they are missing."""
    Base.metadata.create_all(uow.session.connection())
    for account_id, name in {CASH_ID: "Vault", CHECKS_ID: "Checks in clearing"}.items():
        if uow.session.get(Account, account_id) is None:
            uow.session.add(Account(id=account_id, name=name))
    click.echo("The bank is open.")


@bank_commands.command("seed")
@click.option("--customers", default=20, show_default=True, type=click.IntRange(1, 1_000_000), help="How many to add.")
def seed(customers: int) -> None:
    """Add customers with an opening balance, a hundred in each unit of work."""
    known = reports.ledger().customers
    with click.progressbar(length=customers, label="Opening accounts") as progress:
        for start in range(0, customers, BATCH):
            numbers = range(known + start, known + min(start + BATCH, customers))
            services.open_customers([_customer(n) for n in numbers], [_opening_cents(n) for n in numbers])
            progress.update(len(numbers))
    click.echo(f"{customers} customers came in; the bank has {known + customers}.")


@bank_commands.command("check")
def check() -> None:
    """Add up the ledger; exit with status 1 and say what is wrong if it does not come to zero."""
    ledger = reports.ledger()
    click.echo(f"customers {ledger.customers}, accounts {ledger.accounts}")
    click.echo(f"transfers {ledger.transfers}, entries {ledger.entries}")
    click.echo(f"customers own       {format_cents(ledger.owed_cents):>20}")
    click.echo(f"in the vault        {format_cents(ledger.vault_cents):>20}")
    click.echo(f"checks in clearing  {format_cents(ledger.clearing_cents):>20}")
    click.echo(f"sum of all entries  {format_cents(ledger.sum_cents):>20}")
    for transfer_id in ledger.unbalanced:
        click.echo(f"transfer {transfer_id} does not add up to zero", err=True)
    for account_id in ledger.overdrawn:
        click.echo(f"account {account_id} is overdrawn", err=True)
    if not ledger.is_sound:
        raise click.exceptions.Exit(1)
    click.echo("The books are in order.")


def _customer(number: int) -> Customer:
    first = FIRST_NAMES[number % len(FIRST_NAMES)]
    last = LAST_NAMES[number // len(FIRST_NAMES) % len(LAST_NAMES)]
    return Customer(name=f"{first} {last}", email=f"{first}.{last}.{number + 1}@example.com".lower())


def _opening_cents(number: int) -> int:
    """Return an opening balance between $100 and $5,100, the same at every run."""
    return 100_00 + number * 377_11 % 5_000_00
