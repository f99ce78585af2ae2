"""What must not be shown, in no form."""

from typing import Any

import pytest
import sqlalchemy as sa

from flask_uow._hiding import error_line, harmless, shown_url, shown_value, without_passwords


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


def test_error_line_commands_nothing() -> None:
    """A server or a driver may say anything; it becomes one line that a terminal and a log can show."""
    line = error_line(RuntimeError("gone\r\n\x1b[2J\u202eforged\ud800\0"), sa.make_url("sqlite://"))

    assert line == "gone ?[2J?forged??"


@pytest.mark.parametrize("text", ["://a:", "@", "password=", "password='"])
def test_hiding_takes_as_long_as_the_text(text: str) -> None:
    """A megabyte would take minutes if each beginning of a URL were tried to the end of its line."""
    assert without_passwords(text * 200_000 + "\nend").endswith("\nend")


class Speechless:
    """Has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5, "5"),
        ({"password": "pw"}, "{'password': ***}"),
        (sa.make_url("postgresql://bob:pw@host"), "'postgresql://bob:***@host'"),
        (10**5000, "<int that cannot be shown>"),
        ([Speechless()], "<list that cannot be shown>"),
        ("x" * 5000, "'" + "x" * 999 + "... (5,002 characters)"),
        ("x" * 990 + "://bob:" + "p" * 50 + "@host", "'" + "x" * 990 + "://bob:**... (1,007 characters)"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_a_value_is_shown_as_far_as_anybody_reads(value: object, shown: str) -> None:
    """Without passwords, which are hidden before anything is cut."""
    assert shown_value(value) == shown


def test_what_can_be_read_is_harmless() -> None:
    """Letters of any script, spaces and signs stay."""
    assert harmless("Bänk 你好 'a' \\ <b> €") == "Bänk 你好 'a' \\ <b> €"
