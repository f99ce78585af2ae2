"""``flask bank``."""

from tests.sample.banks import ADA, Bank


def test_init_can_be_run_again(bank: Bank) -> None:
    """What is there already stays as it is."""
    assert bank.run("init") == "The bank is open.\n"
    assert bank.count("customer") == 3
    assert bank.count("account") == 8


def test_seed_adds_customers_to_those_that_are_there(bank: Bank) -> None:
    """In batches, each committed by itself, under names of their own."""
    output = bank.run("seed", "--customers", "250")

    assert output.endswith("250 customers came in; the bank has 253.\n")
    assert bank.count("customer") == 253
    assert len(bank.database.rows("SELECT DISTINCT email FROM customer")) == 253


def test_seed_refuses_a_number_that_makes_no_sense(bank: Bank) -> None:
    result = bank.app.test_cli_runner().invoke(args=["bank", "seed", "--customers", "0"])

    assert result.exit_code == 2
    assert "0 is not in the range" in result.output


def test_check_prints_the_figures(bank: Bank) -> None:
    bank.order("/deposits", account=ADA, checks=[{"number": "1", "amount_cents": 500}])

    lines = bank.run("check").splitlines()

    assert lines[:2] == ["customers 3, accounts 8", "transfers 4, entries 8"]
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "customers own $1,436.33",
        "in the vault $1,431.33",
        "checks in clearing $5.00",
        "sum of all entries $0.00",
        "The books are in order.",
    ]


def test_check_finds_a_transfer_that_is_off(bank: Bank) -> None:
    """One side changed, one side gone, no side at all: each is named, and the status is 1."""
    bank.database.execute("UPDATE entry SET amount = amount + 1 WHERE transfer_id = 1 AND account_id = 1001")
    bank.database.execute("DELETE FROM entry WHERE transfer_id = 2 AND account_id = 999")
    bank.database.execute("DELETE FROM entry WHERE transfer_id = 3")

    result = bank.app.test_cli_runner().invoke(args=["bank", "check"])

    assert result.exit_code == 1
    assert [line for line in result.output.splitlines() if "does not" in line] == [
        f"transfer {number} does not add up to zero" for number in (1, 2, 3)
    ]


def test_check_finds_an_account_below_zero(bank: Bank) -> None:
    """The sum may be zero, and a customer's account overdrawn all the same."""
    bank.database.execute("UPDATE entry SET amount = -amount WHERE transfer_id = 1")

    result = bank.app.test_cli_runner().invoke(args=["bank", "check"])

    assert result.exit_code == 1
    assert "account 1001 is overdrawn" in result.output
