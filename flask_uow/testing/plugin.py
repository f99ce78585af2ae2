"""The pytest plugin: fixtures, a mark, options; it says what is to be done, and other modules do it.

pytest imports it in every run of whoever has this package installed, so that Flask and SQLAlchemy are imported by the
first fixture that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from . import CommitHooks, Isolation, Trace
    from ._left_open import Checkouts

_ISOLATION = "uow_isolation"
_LEAKS = "uow_leak_check"
_VIOLATIONS = "uow_fail_on_violations"

_TOO_LATE = (
    "The test was not isolated: it has asked for the fixture 'app' when it had begun, by getfixturevalue().\n"
    "  fix:   Mark it with uow_isolation, or take 'app' as an argument."
)
_has_failed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that a project may set in its ini file."""
    parser.addini(_ISOLATION, "undo what each test that uses the fixture 'app' does in its databases", "bool", False)
    parser.addini(_LEAKS, "fail a test that leaves a database connection out of its pool", "bool", True)
    parser.addini(_VIOLATIONS, "fail a test in which a rule of flask_uow was broken", "bool", False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    config.addinivalue_line(
        "markers",
        f"{_ISOLATION}(on=True, sequences=False): undo what the test does in the databases of the fixture 'app'",
    )
    config.addinivalue_line("markers", "uow_violations(*codes): the test breaks these rules of flask_uow on purpose")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test has failed: what it then leaves behind is no news."""
    report = yield
    item.stash[_has_failed] = item.stash.get(_has_failed, False) or report.failed
    return report


@pytest.fixture
def uow_isolation(request: pytest.FixtureRequest) -> Isolation:
    """The test's isolation: what it does in the databases of the fixture ``app`` is undone when it has ended."""
    isolation: Isolation | None = request.getfixturevalue("_uow_around").isolation
    if isolation is None:
        pytest.fail(
            "uow_isolation: ask for it as an argument of the test or of a fixture, or by the mark of that name."
        )
    return isolation


@pytest.fixture
def uow_trace(request: pytest.FixtureRequest, _uow_around: Any) -> Iterator[Trace]:
    """Units, statements and violations of the fixture ``app``, in order."""
    from . import traced

    with traced(request.getfixturevalue("app")) as trace:
        yield trace


@pytest.fixture
def uow_commit_hooks(request: pytest.FixtureRequest, _uow_around: Any) -> Iterator[CommitHooks]:
    """The ``after_commit`` hooks of the fixture ``app``: collected, and run by ``uow_commit_hooks.run()``."""
    from . import collected

    with collected(request.getfixturevalue("app")) as hooks:
        yield hooks


@pytest.fixture(autouse=True)
def _uow_around(request: pytest.FixtureRequest) -> Iterator[_Around]:
    """What is done around a test before any of its other fixtures that need no larger scope."""
    around = _Around(request.node)
    is_isolated = _is_isolated(request)
    if not is_isolated and ("app" not in request.fixturenames or "flask_uow._state" not in sys.modules):
        yield around
        if _came_too_late(request):
            pytest.fail(_TOO_LATE, pytrace=False)
        return
    app = request.getfixturevalue("app")
    with ExitStack() as stack:
        if is_isolated or _has_unit_of_work(app):
            around.enter(stack, app, is_isolated=is_isolated)
        yield around
        problems = around.problems()
    if problems and not request.node.stash.get(_has_failed, False):
        pytest.fail("\n".join(problems), pytrace=False)


class _Around:
    """What watches one test.

    :ivar isolation: its isolation, None if it has none.
    """

    def __init__(self, node: pytest.Item) -> None:
        self._node = node
        self.isolation: Isolation | None = None
        self._checkouts: Checkouts | None = None
        self._violations: list[Any] = []

    def enter(self, stack: ExitStack, app: Any, *, is_isolated: bool) -> None:
        """Begin."""
        from .. import signals
        from . import isolated, real_app
        from ._left_open import checkouts

        if is_isolated:
            mark = self._node.get_closest_marker(_ISOLATION)
            self.isolation = stack.enter_context(isolated(app, sequences=bool(mark and mark.kwargs.get("sequences"))))
        if self._node.config.getini(_LEAKS):
            self._checkouts = stack.enter_context(checkouts(app))
        if self._node.config.getini(_VIOLATIONS):
            stack.enter_context(signals.rule_violated.connected_to(self._note_violation, real_app(app)))

    def problems(self) -> list[str]:
        """What the test is to fail for, although it did not fail by itself."""
        found = [str(error) for error in self.isolation.errors] if self.isolation else []
        found += self._checkouts.left() if self._checkouts else []
        meant = {code for mark in self._node.iter_markers("uow_violations") for code in mark.args}
        return found + [str(each) for each in self._violations if each.code not in meant]

    def _note_violation(self, sender: Any, code: str, violation: Any) -> None:
        self._violations.append(violation)


def _is_isolated(request: pytest.FixtureRequest) -> bool:
    mark = request.node.get_closest_marker(_ISOLATION)
    if mark is not None:
        return bool(mark.kwargs.get("on", True))
    if _ISOLATION in request.fixturenames:
        return True
    return bool(request.config.getini(_ISOLATION)) and "app" in request.fixturenames


def _came_too_late(request: pytest.FixtureRequest) -> bool:
    """Whether a test that was to be isolated has asked for its app when it had begun."""
    is_wanted = request.config.getini(_ISOLATION) and request.node.get_closest_marker(_ISOLATION) is None
    is_asked_for = "app" in request.fixturenames and "flask_uow._state" in sys.modules
    return bool(is_wanted and is_asked_for and not request.node.stash.get(_has_failed, False))


def _has_unit_of_work(app: Any) -> bool:
    from .._state import STATE_KEY

    return STATE_KEY in getattr(app, "extensions", ())
