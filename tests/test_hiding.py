"""What must not be shown, in no form."""

from typing import Any

import pytest
import sqlalchemy as sa

from flask_uow._hiding import error_line, shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bob:pw@host:5/db", "postgresql://bob:***@host:5/db"),
        ("postgresql:///db?user=bob&password=pw", "postgresql:///db?password=***&user=bob"),
        ("postgresql:///db?sslpassword=pw&sslmode=require", "postgresql:///db?sslmode=require&sslpassword=***"),
        ("sqlite:///bank.sqlite", "sqlite:///bank.sqlite"),
    ],
)
def test_shown_url(url: str, shown: str) -> None:
    """No URL shows a password, wherever it stands."""
    assert shown_url(sa.make_url(url)) == shown


@pytest.mark.parametrize(
    "message",
    [
        "password 'p w'",
        "dsn: host=h password='p w' user=u",
        "dsn: {'password': 'p w'}",
        "postgresql://u:p%20w@h/d",
        "postgresql://u:p+w@h/d",
        "token=p+w",
        "first\nsecond password=p%20w",
        "postgresql://u:secret p w@h/d",
        "postgresql://u:a@p w@h/d",
        "kwargs: password=b'p w'",
    ],
)
def test_error_line_hides_the_password(message: str) -> None:
    """A driver's message is one line, and no form of the password is in it."""
    line = error_line(RuntimeError(message), sa.make_url("postgresql://u:p%20w@h/d?sslpassword=p+w"))

    assert not any(secret in line for secret in ("p w", "p%20w", "p+w"))
    assert "\n" not in line


def test_error_line_of_an_error_without_text() -> None:
    """An error that says nothing is named by its class."""
    assert error_line(TimeoutError(), sa.make_url("sqlite://")) == "TimeoutError"


@pytest.mark.parametrize("value", [["pw", "other"], "pw"])
def test_error_line_with_repeated_secrets(value: Any) -> None:
    """A secret that stands in the URL more than once is hidden in each of its values."""
    url = sa.URL.create("postgresql", query={"password": value})

    assert error_line(RuntimeError("pw other"), url).startswith("***")
