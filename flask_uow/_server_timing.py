"""The ``Server-Timing`` header: what a request's database work took, for a browser's network panel.

=========  ==================================================================================
metric     what it is
=========  ==================================================================================
``unit``   how long a unit of work was active
``sql``    how long the client waited for a database
``idle``   how long a connection sat idle in its transaction
``trips``  how many round trips that took, as a description: a duration would be shown as one
=========  ==================================================================================

Durations are in milliseconds. It says what is known when the headers go: a body that is streamed comes after that. A
response for which no unit was begun and nothing was sent has no such header. No text of a statement is ever in it.
"""

from __future__ import annotations

from flask import Flask, Response

from ._timeline import Timeline

HEADER = "Server-Timing"
_BEGINS = "unit;dur="


class ServerTiming:
    """Puts the header on responses.

    :param setting: ``UOW_SERVER_TIMING``; None for what ``app.debug`` says.
    """

    def __init__(self, setting: bool | None) -> None:
        self._setting = setting

    def is_wanted(self, app: Flask) -> bool:
        """Whether the app wants the header."""
        return app.debug if self._setting is None else self._setting

    def finish(self, timeline: Timeline, response: Response) -> None:
        """Add to what the app says itself; a response that is used again loses what was said of the request before."""
        if not timeline.is_empty:
            of_the_app = [value for value in response.headers.getlist(HEADER) if not value.startswith(_BEGINS)]
            response.headers.setlist(HEADER, [*of_the_app, header_value(timeline)])


def header_value(timeline: Timeline) -> str:
    """The header's text for a timeline that is over."""
    trips = f"{timeline.trips} round trip{'s' * (timeline.trips != 1)}"
    durations = {"unit": timeline.unit_s, "sql": timeline.sql_s, "idle": timeline.idle_s}
    metrics = [f"{name};dur={seconds * 1000:.1f}" for name, seconds in durations.items()]
    return ", ".join([*metrics, f'trips;desc="{trips}"'])
