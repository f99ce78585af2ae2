"""Amounts as people type them."""

import pytest

from sample.bank.money import format_cents, parse_cents


@pytest.mark.parametrize(
    ("text", "cents"),
    [("12", 1200), ("12.5", 1250), ("12,50", 1250), (" $0.01 ", 1), ("999999999.99", 99_999_999_999)],
)
def test_an_amount_is_read_to_the_cent(text: str, cents: int) -> None:
    """Point or comma, with or without cents."""
    assert parse_cents(text) == cents


NO_AMOUNTS = ["", "x", "-1", "+1", "1e3", "1,234", "1.234", "1 2", "\u0663", "1_0", "nan", "9" * 5000]


@pytest.mark.parametrize("text", NO_AMOUNTS, ids=lambda text: text[:10])
def test_anything_else_is_no_amount(text: str) -> None:
    """What could be read in two ways is not read at all."""
    with pytest.raises(ValueError, match="is not an amount"):
        parse_cents(text)


@pytest.mark.parametrize(
    ("cents", "text"), [(0, "$0.00"), (5, "$0.05"), (-5, "-$0.05"), (123456789, "$1,234,567.89"), (-100, "-$1.00")]
)
def test_cents_are_written_as_dollars(cents: int, text: str) -> None:
    """The sign stands before the currency."""
    assert format_cents(cents) == text
