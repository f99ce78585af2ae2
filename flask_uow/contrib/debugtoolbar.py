"""A panel for Flask-DebugToolbar: the request's timeline as a picture, and what to mend.

.. code-block:: python

    app.config["DEBUG_TB_PANELS"] = [..., "flask_uow.contrib.debugtoolbar.UnitOfWorkPanel"]

The toolbar writes its panels while Flask's ``after_request`` functions run, and a unit that is the whole request ends
after them. So the panel writes a mark in its place, which becomes the picture when the response is ready.

The toolbar is a light page in any scheme of colours, and so is the panel in it.
"""

from __future__ import annotations

import gzip
import re
import secrets
from collections import deque
from typing import Any

from flask import Flask, Response, request
from flask_debugtoolbar.panels import DebugPanel
from markupsafe import Markup

from .. import signals
from .._recording import OBSERVERS_KEY, find_timeline
from .._timeline import Breach, Timeline, clock
from ..exceptions import RuleViolationError, RuleWarning
from ._listing import figures, legend, table, violations
from ._picture import STYLE, picture
from ._words import milliseconds, plural

__all__ = ["UnitOfWorkPanel"]

_PANEL_KEY = "uow_panel"
_MARKS_KEY = "flask_uow.marks"
_MOST_KEPT = 20
_UNFIT = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What neither UTF-8 nor XML has a place for: a file's name that is no Unicode, in a label, say."""

_PAGE_STYLE = """
#flDebug .uow{color:#1d2433;padding:4px 0 24px;max-width:1600px}
#flDebug .uow *{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
#flDebug .uow .uow-card{background:#fff;border:1px solid #d5d9e2;border-radius:8px;padding:10px 8px 8px;margin:8px 0}
#flDebug .uow h4{font-size:15px;font-weight:600;margin:18px 0 6px}
#flDebug .uow ul{list-style:none}
#flDebug .uow li{margin:0}
#flDebug .uow .uow-figures{display:flex;flex-wrap:wrap;gap:2px 28px;margin-top:12px}
#flDebug .uow .uow-figures li,#flDebug .uow .uow-legend li{color:#5d6779}
#flDebug .uow .uow-figures b{font-size:19px;font-weight:600;color:#1d2433}
#flDebug .uow .uow-legend{display:flex;flex-wrap:wrap;gap:2px 16px;padding:8px 6px 2px}
#flDebug .uow .uow-key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
#flDebug .uow .uow-key.unit{background:#e1e5fc;box-shadow:inset 0 0 0 1px #8a95ea}
#flDebug .uow .uow-key.undone{background:#fbe3e1;box-shadow:inset 0 0 0 1px #e08d86}
#flDebug .uow .uow-key.held{background:#dfe3eb}
#flDebug .uow .uow-key.idle{background:#f6d878}
#flDebug .uow .uow-key.begin{background:#0b8578}
#flDebug .uow .uow-key.statement{background:#2c6bd4}
#flDebug .uow .uow-key.savepoint{background:#8250df}
#flDebug .uow .uow-key.commit{background:#1a7f4b}
#flDebug .uow .uow-key.rollback{background:#c93a31}
#flDebug .uow .uow-key.other{background:#7b8698}
#flDebug .uow .uow-key.template{background:#d7e3ee;box-shadow:inset 0 0 0 1px #8fa9c2}
#flDebug .uow .uow-key.breach{background:#b3126b;border-radius:50%}
#flDebug .uow .uow-violations li{background:#fdf1f7;border-left:4px solid #b3126b;border-radius:4px;padding:8px 12px}
#flDebug .uow .uow-violations li+li{margin-top:6px}
#flDebug .uow .uow-violations li,#flDebug .uow .uow-violations b{font-size:13px}
#flDebug .uow .uow-violations b{color:#b3126b;margin-right:6px}
#flDebug .uow .uow-violations dl{display:grid;grid-template-columns:max-content 1fr;gap:0 12px;margin-top:4px}
#flDebug .uow .uow-violations dt{color:#5d6779;margin:0}
#flDebug .uow .uow-violations dd{margin:0;overflow-wrap:anywhere}
#flDebug .uow table.uow-steps{display:table;border:1px solid #d5d9e2;border-radius:8px;border-collapse:separate;
border-spacing:0;margin:0}
#flDebug .uow .uow-steps th{font-size:12px;font-weight:600;color:#5d6779;padding:6px 8px}
#flDebug .uow .uow-steps td{padding:4px 8px;border-top:1px solid #e6e9ef;font-variant-numeric:tabular-nums}
#flDebug .uow .uow-steps td:nth-child(-n+4){white-space:nowrap}
#flDebug .uow .uow-steps td:nth-child(-n+3),#flDebug .uow .uow-steps th:nth-child(-n+3){text-align:right}
#flDebug .uow .uow-steps td:nth-child(5){width:100%;overflow-wrap:anywhere}
#flDebug .uow .uow-steps tr:is(.statement,.savepoint,.commit,.rollback,.begin,.other) td:nth-child(5){
font-family:ui-monospace,Consolas,Menlo,"DejaVu Sans Mono",monospace}
#flDebug .uow .uow-steps small{color:#5d6779;white-space:nowrap;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
"""


class UnitOfWorkPanel(DebugPanel):
    """The timeline of the request that the page came from."""

    name = "UnitOfWork"
    has_content = True

    @classmethod
    def init_app(cls, app: Flask) -> None:
        """Ask for the timelines of an app; before or after its ``UnitOfWork``."""
        if _PANEL_KEY not in app.extensions:
            observer = app.extensions[_PANEL_KEY] = _PanelObserver(app)
            app.extensions.setdefault(OBSERVERS_KEY, []).append(observer)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._marks = _Marks()

    def process_request(self, request: Any) -> None:
        """Leave the marks where the observer finds them."""
        request.environ[_MARKS_KEY] = self._marks

    def nav_title(self) -> str:
        """What the toolbar calls it."""
        return "Units of work"

    def nav_subtitle(self) -> str:
        """Where ``1 unit, 7 trips, 12 ms`` will stand."""
        return self._marks.subtitle if find_timeline() is not None else "nothing recorded"

    def title(self) -> str:
        """The page's head."""
        return "Units of work"

    def url(self) -> str:
        """It has no page of its own."""
        return ""

    def content(self) -> str:
        """Where the page will stand."""
        if find_timeline() is not None:
            return self._marks.content
        return "<p>Nothing was recorded: call UnitOfWork(app), or init_app(app), and switch app.debug on.</p>"


class _Marks:
    """What stands in a response until it is ready; nobody can have guessed it."""

    def __init__(self) -> None:
        token = secrets.token_hex(16)
        self.subtitle = f"uow-subtitle-{token}"
        self.content = f"<!--uow-content-{token}-->"


class _PanelObserver:
    """Puts the picture into responses, and keeps what is noticed after them for the next."""

    def __init__(self, app: Flask) -> None:
        self._late: deque[Breach] = deque(maxlen=_MOST_KEPT)
        self._app = app

    def is_wanted(self, app: Flask) -> bool:
        """Only in debug, as the toolbar itself."""
        if app.debug:
            signals.rule_violated.connect(self._violated, app)
        return app.debug

    def finish(self, timeline: Timeline, response: Response) -> None:
        """Put the picture in the place of the panel's mark."""
        marks: _Marks | None = request.environ.get(_MARKS_KEY)
        if marks is None or not response.is_sequence:
            return
        is_zipped = "gzip" in response.headers.get("Content-Encoding", "")
        body = gzip.decompress(response.get_data()) if is_zipped else response.get_data()
        if marks.content.encode() not in body:
            return
        late = [self._late.popleft() for _ in range(len(self._late))]
        body = body.replace(marks.subtitle.encode(), subtitle(timeline).encode())
        body = body.replace(marks.content.encode(), page(timeline, late).encode())
        response.set_data(gzip.compress(body) if is_zipped else body)

    def _violated(self, sender: Any, code: str, violation: RuleViolationError | RuleWarning) -> None:
        if find_timeline() is None:
            self._late.append(Breach(code, clock(), violation.what, violation.where, violation.fix))


def subtitle(timeline: Timeline) -> str:
    """What the toolbar shows of a request before its panel is opened."""
    parts = [plural(timeline.unit_count, "unit"), plural(timeline.trips, "trip"), milliseconds(timeline.unit_s)]
    if timeline.breaches:
        parts.append(plural(len(timeline.breaches), "violation"))
    return ", ".join(parts)


def page(timeline: Timeline, late: list[Breach]) -> Markup:
    """The panel's page.

    :param late: violations that were found when an earlier response was on its way.
    """
    text = Markup('<div class="uow"><style>{}</style>{}{}<div class="uow-card">{}{}</div>{}{}{}</div>').format(
        Markup(STYLE + _PAGE_STYLE),
        figures(timeline),
        violations(timeline.breaches, "Rule violations"),
        picture(timeline),
        legend(timeline),
        violations(late, "Noticed after an earlier response, when its context ended"),
        Markup("<h4>Steps</h4>"),
        table(timeline),
    )
    return Markup(_UNFIT.sub("?", text))  # a part of markup for a part of it
