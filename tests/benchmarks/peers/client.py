"""Requests to an app in this process: what a WSGI server calls, without one and without sockets."""

from collections.abc import Iterable
from typing import Any
from wsgiref.types import WSGIEnvironment

from flask import Flask
from werkzeug.test import EnvironBuilder


class Client:
    """Makes GET requests, and insists that they are answered well.

    :param app: the app.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._environments: dict[str, WSGIEnvironment] = {}

    def get(self, name: str) -> None:
        """Request a view.

        :param name: the name of its path.
        :raises RuntimeError: if it is answered with anything but 200.
        """
        if name not in self._environments:
            self._environments[name] = EnvironBuilder(path=f"/{name}").get_environ()
        answer: list[str] = []

        def start(status: str, headers: object, exc_info: object = None) -> Any:
            answer.append(status)

        body: Iterable[bytes] = self._app(self._environments[name].copy(), start)
        try:
            text = b"".join(body)
        finally:
            if hasattr(body, "close"):
                body.close()
        if answer != ["200 OK"]:
            raise RuntimeError(f"/{name} was answered with {answer}: {text[:300]!r}")
