"""The body of a request, which another attempt at a unit has to read again."""

from __future__ import annotations

from typing import Any

from flask import Request


class Body:
    """What of the current request's body was read before a unit began.

    :param request: the request, None outside of one.
    """

    __slots__ = ("_positions", "_request", "_was_streamed")

    def __init__(self, request: Request | None) -> None:
        self._request = request
        self._was_streamed = request is None or _is_streamed(request)
        self._positions = {id(file): file.stream.tell() for file in _files(request)}

    def rewind(self) -> bool:
        """Let uploaded files be read from where the unit met them; JSON and forms Flask keeps itself.

        :return: whether the unit can read what it has read. What came off ``request.stream`` inside it is gone.
        """
        if self._request is None:
            return True
        for file in _files(self._request):
            file.stream.seek(self._positions.get(id(file), 0))
        return self._was_streamed or not _is_streamed(self._request)


def _is_streamed(request: Request) -> bool:
    """Whether bytes were taken off the stream that Flask has not kept."""
    touched = vars(request)
    if "stream" not in touched or "form" in touched or hasattr(request, "_cached_data"):
        return False
    return request.content_length != 0 and (
        request.content_length is not None or "wsgi.input_terminated" in touched["environ"]
    )


def _files(request: Request | None) -> list[Any]:
    files = vars(request).get("files") if request is not None else None
    return [file for _, file in files.items(multi=True)] if files else []
