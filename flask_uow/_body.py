"""The body of a request, which another attempt at a unit has to read again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from flask import Request

_READING = frozenset(("read", "read1", "readall", "readinto", "readinto1", "readline", "readlines"))
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class Body:
    """What of the current request's body was read before a unit began.

    :param request: the request, None outside of one.
    """

    __slots__ = ("_positions", "_request", "_stream", "_taken")

    def __init__(self, request: Request | None) -> None:
        self._request = request
        self._positions: dict[int, int | None] = {}
        self._stream: _CountedStream | None = None
        if request is None:
            return
        self._stream = _counted(request)
        self._taken = self._stream.taken
        for file in _files(request):
            self._positions[id(file)] = None  # a closed one, which the unit cannot have read
            with contextlib.suppress(ValueError, OSError):
                self._positions[id(file)] = file.stream.tell()

    def rewind(self) -> bool:
        """Let uploaded files be read from where the unit met them; JSON and forms Flask keeps itself.

        :return: whether the unit can read what it has read. What came off ``request.stream`` inside it is gone, and
            so is a file that it has closed.
        """
        if self._request is None:
            return True
        for file in _files(self._request):
            position = self._positions.get(id(file), 0)
            try:
                file.stream.seek(position) if position is not None else None
            except (ValueError, OSError):
                return False
        return self._stream is None or self._stream.taken == self._taken or self._was_kept(self._request)

    def _was_kept(self, request: Request) -> bool:
        """Whether Flask has kept the bytes that were taken off the stream: as data, or as a form that it has parsed."""
        was_parsed = "form" in vars(request) and request.mimetype in _FORMS
        return was_parsed or hasattr(request, "_cached_data")


class _CountedStream:
    """A request's stream that counts what is taken off it, by whichever of its methods; servers' have not the same."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.taken = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)
        return partial(self._read_by, found) if name in _READING else found

    def __iter__(self) -> Iterator[bytes]:
        return map(self._take, self._stream)

    def __next__(self) -> Any:
        return self._take(next(self._stream))

    def _read_by(self, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self._take(read(*arguments, **options))

    def _take(self, taken: Any) -> Any:
        """Count bytes, lines, or the number of bytes that are in the caller's buffer."""
        if isinstance(taken, list):
            self.taken += sum(map(len, taken))
        else:
            self.taken += len(taken) if isinstance(taken, bytes) else int(taken or 0)
        return taken


def _counted(request: Request) -> _CountedStream:
    """Put the counting in the stream's place, where Flask and the app look for it; once for all units of a request."""
    touched = vars(request)
    place, name = (touched, "stream") if "stream" in touched else (request.environ, "wsgi.input")
    stream = place[name]
    if not isinstance(stream, _CountedStream):
        stream = place[name] = _CountedStream(stream)
    return stream


def _files(request: Request) -> list[Any]:
    files = vars(request).get("files")
    return [file for _, file in files.items(multi=True)] if files else []
