"""Values that somebody may give where another was wanted: of every type, at every end of its range."""

import datetime
import decimal
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

VARIABLE = "UOW_TEST_FUZZ"
EXAMPLES = int(os.environ.get(VARIABLE, "40"))
SECRET = "s3cret"

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=VARIABLE not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""As many examples as ``UOW_TEST_FUZZ`` says, other ones each time then; else the same ones each time."""


class Speechless:
    """Has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class OddPath:
    """Says that it is a path, and is none."""

    def __fspath__(self) -> str:
        return 5  # type: ignore[return-value]


async def coroutine_function(*arguments: object) -> None:
    """Nobody awaits it."""


def generator_function(*arguments: object) -> Any:
    """Nobody reads it."""
    yield


NUMBERS = [0, 1, -1, 2, 99, 600, 2**31, 2**63, 10**400, -(10**400), 10**5000, -(10**5000), sys.maxsize]
REALS = [0.0, -0.0, 0.5, -1.5, 5e-324, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "\0", "\n", "\x1b[31m", "\ud800", "\udc80", "on", "5", "'; DROP TABLE item;--", "\\", "x" * 5000]
URLS = [
    f"postgresql://bob:{SECRET}@host:port/bank",
    f"postgresql+asyncpg://bob:{SECRET}@host/bank",
    f"prostgesql://host/bank?password={SECRET}",
    f"sqlite:///bank.db?timeout=soon&password={SECRET}",
    "sqlite:///a\0b/bank.db",
    "sqlite:///" + "d" * 300 + "/bank.db",
    "sqlite+json://",
    "sqlite+a+b://",
    "://" * 5000,
]


def refusal_of(action: Callable[[], object], *kinds: type[Exception]) -> Exception | None:
    """What an action was refused by, if by one of these kinds; None if it was done."""
    try:
        action()
    except kinds as error:
        return error
    return None


def odd_values() -> st.SearchStrategy[Any]:
    """Anything; what cannot be compared, shown or ended is among it."""
    plain = (
        st.none()
        | st.booleans()
        | st.sampled_from(NUMBERS)
        | st.integers()
        | st.sampled_from(REALS)
        | st.floats()
        | st.sampled_from([*TEXTS, *URLS])
        | st.text(st.characters(codec=None), max_size=20)
        | st.binary(max_size=10)
        | st.sampled_from([decimal.Decimal(1), 1j, datetime.timedelta(seconds=1), Path("/"), os.curdir.encode()])
        | st.sampled_from(
            [Speechless(), OddPath(), object(), int, ValueError, ValueError("no"), sa.URL.create("sqlite")]
        )
        | st.sampled_from([coroutine_function, generator_function, print, Ellipsis, NotImplemented])
        | st.builds(itertools.count)
    )
    hashable = st.none() | st.integers() | st.text(max_size=8)
    return (
        plain
        | st.lists(plain, max_size=3)
        | st.lists(plain, max_size=3).map(tuple)
        | st.sets(hashable, max_size=3)
        | st.dictionaries(hashable, plain, max_size=3)
        | st.just({"password": SECRET})
    )
