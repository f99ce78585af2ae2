"""What benchmarks print, and that they are run only when asked for."""

from collections.abc import Callable

import pytest


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], object]:
    """Print past pytest's capture."""

    def to_terminal(text: str) -> None:
        with capsys.disabled():
            print(text)  # noqa: T201  # a benchmark's result is what it prints

    return to_terminal
