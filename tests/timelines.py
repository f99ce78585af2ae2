"""The timelines of an app's requests, kept for a test."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flask import Flask, Response
from flask.typing import ResponseReturnValue

from flask_uow._recording import OBSERVERS_KEY
from flask_uow._timeline import Lane, Timeline


@dataclass
class Kept:
    """Wants every timeline of an app.

    :ivar timelines: those of the requests that are over.
    """

    timelines: list[Timeline] = field(default_factory=list)

    def is_wanted(self, app: Flask) -> bool:
        return True

    def finish(self, timeline: Timeline, response: Response) -> None:
        self.timelines.append(timeline)


def keep_timelines(app: Flask) -> list[Timeline]:
    """Return a list that fills with the timelines of an app that has not served a request yet."""
    kept = Kept()
    app.extensions.setdefault(OBSERVERS_KEY, []).append(kept)
    return kept.timelines


def timeline_of(app: Flask, view: Callable[[], ResponseReturnValue | None]) -> Timeline:
    """Return the timeline of the app's first request, for which the view works."""
    timelines = keep_timelines(app)
    app.add_url_rule("/", view_func=answering(view))
    app.test_client().get("/")
    (timeline,) = timelines
    return timeline


def answering(view: Callable[[], ResponseReturnValue | None]) -> Callable[[], ResponseReturnValue]:
    """Return a view that answers with a page if it has nothing to say itself."""
    return lambda: view() or "<!doctype html><html><body>ok</body></html>"


def sent(lane: Lane) -> list[str]:
    """Return the first word of all that was sent on a connection."""
    return [span.text.split()[0].upper() for span in lane.spans if span.kind != "connect"]
