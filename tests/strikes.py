"""What a signal's handler or another thread does, at a place that is chosen: Python lets them have a turn anywhere."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import sqlalchemy as sa

import flask_uow

STEP = int(os.environ.get("UOW_TEST_STEP", "3"))
"""One place in so many is tried; .ci/run sets 1."""

FOLDER = os.path.dirname(flask_uow.__file__) + os.sep
SQLALCHEMY = os.path.dirname(sa.__file__) + os.sep
POOLS = (FOLDER + "_pool.py", os.path.join(SQLALCHEMY, "pool", ""), os.path.join(SQLALCHEMY, "util", "queue.py"))
"""Who is stopped in a pool's queue keeps all others from it, and an interrupt there may cost it a place."""

IsDue = Callable[[FrameType, str, object], bool]


class Place:
    """One of the places at which Python runs the handlers of signals, and changes from one thread to another.

    That is where a function begins, and where a built-in one returns.

    :param number: the first, the second, and so on, of those that are come by.
    :param folders: those whose files count.
    :ivar where: which that was, empty before.
    """

    def __init__(self, number: int, folders: tuple[str, ...] = (FOLDER,)) -> None:
        self._left = number
        self._folders = folders
        self.where = ""

    def is_here(self, frame: FrameType, event: str, argument: object) -> bool:
        """Whether this is the place."""
        code = frame.f_code
        name = code.co_filename
        if event not in ("call", "c_return") or not name.startswith(self._folders) or name.startswith(POOLS):
            return False
        if code.co_name == "__del__":
            return False  # of which Python lets nothing out
        self._left -= 1
        if not self._left:
            self.where = f"{os.path.relpath(name, FOLDER)}:{frame.f_lineno} {code.co_qualname} ({event})"
        return not self._left


@contextmanager
def met(is_due: IsDue, act: Callable[[], None]) -> Iterator[None]:
    """Let something happen in this thread, once.

    :param is_due: whether it is to happen here; gets what a profiler gets.
    """

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if is_due(frame, event, argument):
            sys.setprofile(None)
            act()

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextmanager
def struck(error: BaseException, is_due: IsDue) -> Iterator[None]:
    """Raise an error in this thread, once.

    :param is_due: whether it is to be raised here; gets what a profiler gets.
    """

    def strike() -> None:
        raise error

    with met(is_due, strike):
        yield
