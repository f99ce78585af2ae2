"""What a signal's handler raises, at a place that is chosen: Python runs such handlers nearly everywhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

IsDue = Callable[[FrameType, str, object], bool]


@contextmanager
def struck(error: BaseException, is_due: IsDue) -> Iterator[None]:
    """Raise an error in this thread, once.

    :param is_due: whether it is to be raised here; gets what a profiler gets.
    """

    def strike(frame: FrameType, event: str, argument: object) -> None:
        if is_due(frame, event, argument):
            sys.setprofile(None)
            raise error

    sys.setprofile(strike)
    try:
        yield
    finally:
        sys.setprofile(None)
