"""Draws a timeline as SVG: the units, each connection with what was sent on it, the templates, and the violations.

Places are percentages of the width, so that a picture fills any page while its letters keep their size. Every text is
escaped. No script, and nothing that is fetched from somewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from .._timeline import Lane, Rendering, Sent, Span, Stretch, Timeline, UnitSpan
from ._words import milliseconds, short_statement, shown_breach, statement_line

STANDALONE_WIDTH = 960
LEGEND = (
    ("unit", "unit of work"),
    ("undone", "rolled back"),
    ("held", "connection held"),
    ("idle", "in transaction, idle"),
    ("begin", "BEGIN"),
    ("statement", "statement"),
    ("savepoint", "savepoint"),
    ("commit", "COMMIT"),
    ("rollback", "ROLLBACK"),
    ("template", "rendering"),
    ("breach", "rule violation"),
)
"""What there is to see, by the name of its colour."""

_LETTER = 6.6
"""How wide a letter is, in pixels, at most on average."""

_NARROW, _WIDE = 500, 980
"""How wide a page's picture is at least, in pixels, in a narrow window and in a wide one: a label is drawn where it
fits into that."""

_MARGIN = 0.6
_BAR = 20
_ROW = 24
_TRACK = 30
_CAPTION = 20

_LIGHT = """
--paper:#ffffff;--ink:#1d2433;--soft:#5d6779;--grid:#e6e9ef;--held:#e9ecf2;--idle:#fdf0c8;--stripe:#eccb72;
--idle-ink:#7a5600;--unit:#e1e5fc;--unit-line:#8a95ea;--undone:#fbe3e1;--undone-line:#e08d86;--statement:#2c6bd4;
--savepoint:#8250df;--begin:#0b8578;--commit:#1a7f4b;--rollback:#c93a31;--other:#7b8698;--template:#d7e3ee;
--template-line:#8fa9c2;--breach:#b3126b;--on:#ffffff;
"""
_DARK = """
--paper:#151a23;--ink:#e6eaf2;--soft:#9aa5b8;--grid:#28303d;--held:#28303d;--idle:#463812;--stripe:#7d6420;
--idle-ink:#f3d98f;--unit:#2b3263;--unit-line:#7480e0;--undone:#542624;--undone-line:#d07a73;--statement:#5b93ee;
--savepoint:#a884f3;--begin:#2bb3a3;--commit:#38a86c;--rollback:#e5645b;--other:#8a95a8;--template:#2a3a4a;
--template-line:#6f8ba6;--breach:#ff6bb5;--on:#0d1118;
"""
# The toolbar's own sheet speaks of everything inside it, and would decide over the letters.
STYLE = """
.uow-timeline{LIGHT display:block;background:var(--paper)!important}
.uow-timeline text{font:12px/1 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important;fill:var(--ink)}
.uow-timeline .caption{font-weight:600!important;stroke:var(--paper);stroke-width:4;paint-order:stroke}
.uow-timeline .soft,.uow-timeline .tick text{fill:var(--soft);font-weight:400!important}
.uow-timeline .tick text{font-size:11px!important}
.uow-timeline .tick line{stroke:var(--grid)}
@media (min-width:1240px){.uow-timeline .narrow{display:none}}
@media (max-width:1239px){.uow-timeline .wide{display:none}}
.uow-timeline .held{fill:var(--held)}
.uow-timeline .transaction{fill:var(--idle)}
.uow-timeline .idle text{fill:var(--idle-ink);font-size:11px!important}
.uow-timeline .unit rect{fill:var(--unit);stroke:var(--unit-line)}
.uow-timeline .undone rect{fill:var(--undone);stroke:var(--undone-line)}
.uow-timeline .template rect{fill:var(--template);stroke:var(--template-line)}
.uow-timeline .sent rect{stroke-width:1.5}
.uow-timeline .sent text{fill:var(--on);font-size:11px!important;font-weight:500!important}
.uow-timeline .sent .mark{fill:var(--begin);stroke:var(--paper);stroke-width:1}
.uow-timeline .statement rect{fill:var(--statement);stroke:var(--statement)}
.uow-timeline .savepoint rect{fill:var(--savepoint);stroke:var(--savepoint)}
.uow-timeline .begin rect{fill:var(--begin);stroke:var(--begin)}
.uow-timeline .commit rect{fill:var(--commit);stroke:var(--commit)}
.uow-timeline .rollback rect{fill:var(--rollback);stroke:var(--rollback)}
.uow-timeline .other rect{fill:var(--other);stroke:var(--other)}
.uow-timeline .key-held rect{fill:var(--held);stroke:var(--held)}
.uow-timeline .key-idle rect{fill:var(--idle);stroke:var(--stripe)}
.uow-timeline .key-breach rect{fill:var(--breach);stroke:var(--breach)}
.uow-timeline .failed rect{stroke:var(--breach);stroke-width:2.5}
.uow-timeline .bracket line{stroke:var(--savepoint);stroke-width:2}
.uow-timeline .bracket text{fill:var(--savepoint);font-size:11px!important}
.uow-timeline .bracket.undone line{stroke-dasharray:4 3}
.uow-timeline .breach line{stroke:var(--breach);stroke-width:1.5;stroke-dasharray:3 3}
.uow-timeline .breach circle{fill:var(--breach)}
.uow-timeline .breach text{fill:var(--breach);font-weight:700!important;font-size:11px!important}
.uow-timeline .breach .sign{fill:var(--on)}
""".replace("LIGHT", _LIGHT)
_STANDALONE_STYLE = f"{STYLE}@media (prefers-color-scheme:dark){{.uow-timeline{{{_DARK}}}}}"

_KEYS = {
    "undone": "unit undone",
    "held": "sent key-held",
    "idle": "sent key-idle",
    "breach": "sent key-breach",
    **{name: f"sent {name}" for name in ("begin", "statement", "savepoint", "commit", "rollback")},
}
_CLASSES = {
    Sent.STATEMENT: "statement",
    Sent.SAVEPOINT: "savepoint",
    Sent.BEGIN: "begin",
    Sent.COMMIT: "commit",
    Sent.ROLLBACK: "rollback",
}


@dataclass(frozen=True)
class Savepoint:
    """A savepoint, from its statement to the one that ends it.

    :param label: the unit's whose it is, or else its name.
    :param depth: how many are around it, from 0.
    """

    start: float
    end: float
    label: str
    depth: int
    is_undone: bool


Drawn = TypeVar("Drawn", UnitSpan, Savepoint, Rendering)


def picture(timeline: Timeline, *, is_standalone: bool = False) -> Markup:
    """Draw a timeline.

    :param timeline: one that is over.
    :param is_standalone: whether it is a file of its own, which has its style in it and follows the reader's scheme of
        colours; else the page has :data:`STYLE`.
    """
    drawing = _Drawing(timeline, is_standalone=is_standalone)
    body = Markup("").join(drawing.parts())
    size = Markup('width="100%" height="{}"').format(drawing.height)
    style = Markup("")
    if is_standalone:
        values = (STANDALONE_WIDTH, drawing.height)
        size = Markup('width="{0}" height="{1}" viewBox="0 0 {0} {1}"').format(*values)
        style = Markup("<style>{}</style><rect width='100%' height='100%' fill='var(--paper)'/>").format(
            Markup(_STANDALONE_STYLE)
        )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="uow-timeline" {} role="img" aria-label="{}">{}{}{}</svg>'
    ).format(size, f"Timeline of {timeline.request}", style, _STRIPES, body)


_STRIPES = Markup(
    '<defs><pattern id="uow-stripes" width="7" height="7" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line y2="7" stroke="var(--stripe)" stroke-width="3"/></pattern></defs>'
)

_BEGIN = Markup('<svg x="{}%" y="{}" overflow="visible"><path class="mark" d="M-5 -7h10l-5 8z"/></svg>')


class _Drawing:
    """One picture, drawn from top to bottom.

    :ivar height: in pixels; known when all parts are drawn.
    """

    def __init__(self, timeline: Timeline, *, is_standalone: bool) -> None:
        self._timeline = timeline
        self._is_standalone = is_standalone
        self._length = max(timeline.end - timeline.start, 1e-6)
        self._y = 24.0
        self._captions: list[Markup] = []
        self.height = 0

    def parts(self) -> Iterator[Markup]:
        """Yield the parts, what lies behind first."""
        if self._timeline.breaches:
            self._y += _CAPTION
        rows = [*self._units()]
        for number, lane in enumerate(self._timeline.lanes, start=1):
            rows += self._lane(lane, number)
        rows += self._templates()
        self.height = round(self._y + 2)
        parts = [*self._axis(), *rows, *self._breaches(), *self._captions]
        return iter([*parts, *self._legend()] if self._is_standalone else parts)

    # ---- rows

    def _axis(self) -> Iterator[Markup]:
        for moment in ticks(self._length):
            share = moment / self._length
            anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
            yield Markup(
                '<g class="tick"><line x1="{0}%" x2="{0}%" y1="20" y2="{1}"/>'
                '<text x="{0}%" y="13" text-anchor="{2}">{3}</text></g>'
            ).format(self._x(self._timeline.start + moment), self.height, anchor, f"{moment * 1000:g} ms")

    def _units(self) -> Iterator[Markup]:
        if not self._timeline.units:
            return
        self._caption("Units of work")
        placed = in_rows(self._timeline.units)
        for (unit, row), free_until in with_room(placed, self._timeline.end):
            label = unit.label if unit.attempt == 1 else f"{unit.label}, attempt {unit.attempt}"
            title = f"{label}: {unit.outcome or 'not ended'}, {milliseconds(unit.end - unit.start)}"
            name = "unit undone" if unit.outcome == "rolled back" else "unit"
            yield self._bar((unit.start, unit.end), self._y + row * _ROW, name, label, title, free_until)
        self._y += (1 + max(row for _, row in placed)) * _ROW + 6

    def _lane(self, lane: Lane, number: int) -> Iterator[Markup]:
        end = self._timeline.end
        held = sum(until - since for since, until in lane.holds)
        self._caption(f"Connection {number}", f"{lane.bind}, held {milliseconds(held)}")
        top = self._y
        for stretch in lane.holds:
            title = f"out of the pool for {milliseconds(stretch[1] - stretch[0])}"
            yield self._rect(stretch, top, _TRACK, "held", title)
        for stretch in lane.transactions(end):
            yield self._rect(stretch, top + 4, _TRACK - 8, "transaction", "in a transaction")
        for stretch in lane.idle(end):
            yield self._idle(stretch, top + 4)
        for span in list(lane.spans):
            yield self._span(span, top + (_TRACK - _BAR) / 2)
        self._y += _TRACK + 2
        brackets = list(savepoints(lane, end))
        for (bracket, _), free_until in with_room([(each, each.depth) for each in brackets], end):
            yield self._bracket(bracket, free_until)
        self._y += 22 * (1 + max((bracket.depth for bracket in brackets), default=-1)) + 6

    def _templates(self) -> Iterator[Markup]:
        if not self._timeline.renderings:
            return
        self._caption("Rendering")
        placed = [(rendering, 0) for rendering in self._timeline.renderings]
        for (rendering, _), free_until in with_room(placed, self._timeline.end):
            title = f"{rendering.template}: {milliseconds(rendering.end - rendering.start)}"
            stretch = (rendering.start, rendering.end)
            yield self._bar(stretch, self._y, "template", rendering.template, title, free_until)
        self._y += _ROW + 4

    def _breaches(self) -> Iterator[Markup]:
        free_from = 0.0
        for breach in sorted(self._timeline.breaches, key=lambda each: each.at):
            x = self._x(breach.at)
            is_free, is_last = x > free_from, x > 90
            free_from = x + 100 * 70 / _NARROW if is_free else free_from
            text = Markup('<text x="{}%" dx="{}" y="40" text-anchor="{}">{}</text>').format(
                x, -12 if is_last else 12, "end" if is_last else "start", breach.code
            )
            yield Markup(
                '<g class="breach"><title>{}</title><line x1="{}%" x2="{}%" y1="36" y2="{}"/>'
                '<circle cx="{}%" cy="36" r="8"/><text class="sign" x="{}%" y="40" text-anchor="middle">!</text>{}</g>'
            ).format(
                "\n".join(filter(None, [f"[{breach.code}] {shown_breach(breach)}", breach.where, breach.fix])),
                *(x, x, self.height - 4, x, x),
                text if is_free else "",
            )

    def _legend(self) -> Iterator[Markup]:
        """The meaning of the colours, below a picture of its own."""
        columns = 6
        step = (STANDALONE_WIDTH - 16) / columns
        for number, (name, text) in enumerate(LEGEND):
            x, y = 8 + number % columns * step, self.height + 14 + number // columns * 20
            yield Markup(
                '<g class="{}"><rect x="{}" y="{}" width="10" height="10" rx="2"/></g>'
                '<text class="soft" x="{}" y="{}">{}</text>'
            ).format(_KEYS.get(name, name), x, y, x + 16, y + 9, text)
        self.height += 22 + -(-len(LEGEND) // columns) * 20

    # ---- parts of rows

    def _caption(self, text: str, more: str = "") -> None:
        self._y += _CAPTION
        caption = Markup('<text class="caption" x="{}%" y="{}">{} <tspan class="soft" dx="4">{}</tspan></text>')
        self._captions.append(caption.format(_MARGIN, self._y - 6, text, more))

    def _bar(self, stretch: Stretch, y: float, name: str, label: str, title: str, free_until: float = 0.0) -> Markup:
        """A bar with a light ground.

        :param free_until: until when nothing stands to its right, where a label that is too long for it may go.
        """

        def text(page: int) -> Markup:
            inside = self._inside(stretch, y, label, page)
            if inside or len(label) * _LETTER + 8 > self._pixels((stretch[1], free_until), page):
                return inside
            return Markup('<text x="{}%" dx="6" y="{}">{}</text>').format(self._x(stretch[1]), y + 14, label)

        return Markup('<g class="{}"><title>{}</title>{}{}</g>').format(
            name, title, self._rect(stretch, y, _BAR), self._in_each_width(text)
        )

    def _span(self, span: Span, y: float) -> Markup:
        label = short_statement(span.text) if span.kind in (Sent.STATEMENT, Sent.SAVEPOINT) else span.text
        begin = Markup("")
        if span.begins and span.kind is not Sent.BEGIN:
            begin = Markup(
                '<svg x="{}%" y="{}" overflow="visible"><path class="mark" d="M-5 -7h10l-5 8z"/></svg>'
            ).format(self._x(span.start), y)
        name = f"sent {_CLASSES.get(span.kind, 'other')}{' failed' if span.error else ''}"
        stretch = (span.start, span.end)
        return Markup('<g class="{}"><title>{}</title>{}{}{}</g>').format(
            name,
            span_title(span),
            self._rect(stretch, y, _BAR),
            self._in_each_width(lambda page: self._inside(stretch, y, label, page)),
            begin,
        )

    def _idle(self, stretch: Stretch, y: float) -> Markup:
        text = milliseconds(stretch[1] - stretch[0])
        middle = self._x((stretch[0] + stretch[1]) / 2)

        def label(page: int) -> Markup:
            room = self._pixels(stretch, page) - 6
            fitting = next((each for each in (f"idle {text}", text) if len(each) * _LETTER < room), None)
            place = Markup('<text x="{}%" y="{}" text-anchor="middle">{}</text>')
            return place.format(middle, y + 15, fitting) if fitting else Markup("")

        stripes = Markup('<rect x="{}%" y="{}" width="{}%" height="3" fill="url(#uow-stripes)"/>').format(
            self._x(stretch[0]), y + _TRACK - 11, self._width(stretch)
        )
        return Markup('<g class="idle"><title>{}</title>{}{}</g>').format(
            f"idle in its transaction for {text}", stripes, self._in_each_width(label)
        )

    def _bracket(self, savepoint: Savepoint, free_until: float) -> Markup:
        y = self._y + savepoint.depth * 22
        start, end = self._x(savepoint.start), self._x(savepoint.end)
        lines = Markup("").join(
            Markup('<line x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(*line)
            for line in ((start, end, y + 5, y + 5), (start, start, y, y + 6), (end, end, y, y + 6))
        )

        def label(page: int) -> Markup:
            if len(savepoint.label) * _LETTER > self._pixels((savepoint.start, free_until), page):
                return Markup("")
            return Markup('<text x="{}%" y="{}">{}</text>').format(start, y + 18, savepoint.label)

        outcome = "rolled back to" if savepoint.is_undone else "released"
        title = f"savepoint of {savepoint.label}: {outcome} after {milliseconds(savepoint.end - savepoint.start)}"
        return Markup('<g class="bracket{}"><title>{}</title>{}{}</g>').format(
            " undone" if savepoint.is_undone else "", title, lines, self._in_each_width(label)
        )

    def _in_each_width(self, draw: Callable[[int], Markup]) -> Markup:
        """What a narrow window has room for, and a wide one.

        :param draw: draws a label for a picture that is so many pixels wide.
        """
        if self._is_standalone:
            return draw(STANDALONE_WIDTH)
        narrow, wide = draw(_NARROW), draw(_WIDE)
        if narrow == wide:
            return wide
        return Markup('<g class="narrow">{}</g><g class="wide">{}</g>').format(narrow, wide)

    def _inside(self, stretch: Stretch, y: float, label: str, page: int) -> Markup:
        """A label where it fits: whole, or its first word, or none."""
        pixels = self._pixels(stretch, page) - 8
        fitting = next((text for text in (label, label.partition(" ")[0]) if len(text) * _LETTER < pixels), None)
        if fitting is None:
            return Markup("")
        return Markup('<svg x="{}%" y="{}" width="{}%" height="{}"><text x="6" y="14">{}</text></svg>').format(
            self._x(stretch[0]), y, self._width(stretch), _BAR, fitting
        )

    def _rect(self, stretch: Stretch, y: float, height: float, name: str = "", title: str = "") -> Markup:
        titled = Markup("<title>{}</title>").format(title) if title else ""
        return Markup('<rect class="{}" x="{}%" y="{}" width="{}%" height="{}" rx="3">{}</rect>').format(
            name, self._x(stretch[0]), y, self._width(stretch), height, titled
        )

    # ---- places

    def _x(self, moment: float) -> float:
        share = min(max((moment - self._timeline.start) / self._length, 0.0), 1.0)
        return round(_MARGIN + share * (100 - 2 * _MARGIN), 3)

    def _width(self, stretch: Stretch) -> float:
        return round(self._x(stretch[1]) - self._x(stretch[0]), 3)

    def _pixels(self, stretch: Stretch, page: int) -> float:
        return self._width(stretch) / 100 * page


def ticks(length: float) -> list[float]:
    """Round moments from 0 to a length of time, about eight of them."""
    magnitude = 1e-6
    steps: Iterable[float] = (magnitude * 10**power * digit for power in range(12) for digit in (1, 2, 5))
    step = next(step for step in steps if length / step <= 8)
    return [number * step for number in range(int(length / step) + 1)]


def in_rows(units: list[UnitSpan]) -> list[tuple[UnitSpan, int]]:
    """Give each unit the first row in which it meets no other; what lies inside another comes below it."""
    ends: list[float] = []
    placed = []
    for unit in sorted(units, key=lambda each: each.start):
        row = max((row for row, end in enumerate(ends) if end > unit.start), default=-1) + 1
        ends[row : row + 1] = [unit.end]
        placed.append((unit, row))
    return placed


def with_room(placed: list[tuple[Drawn, int]], until: float) -> list[tuple[tuple[Drawn, int], float]]:
    """Give each thing in its row, and until when nothing stands to its right.

    :param placed: what lies in which row, in each row from left to right.
    :param until: the end of the picture.
    """
    starts: dict[int, float] = {}
    found = []
    for each, row in reversed(placed):
        found.append(((each, row), min(starts.get(row, until), until)))
        starts[row] = each.start
    return found[::-1]


def savepoints(lane: Lane, until: float) -> Iterator[Savepoint]:
    """The savepoints of a connection, as its statements tell."""
    open_ones: list[Span] = []
    for span in list(lane.spans):
        if span.kind is Sent.SAVEPOINT and span.text.startswith("SAVEPOINT "):
            open_ones.append(span)
        elif open_ones and (span.kind is Sent.SAVEPOINT or not span.is_in_transaction):
            kept = len(open_ones) - 1 if span.kind is Sent.SAVEPOINT else 0
            is_undone = not span.text.startswith(("RELEASE ", "COMMIT"))
            for depth, start in enumerate(open_ones[kept:], start=kept):
                yield Savepoint(start.start, span.end, span.unit or start.text.split()[1], depth, is_undone)
            del open_ones[kept:]
    for depth, start in enumerate(open_ones):
        yield Savepoint(start.start, until, start.text.split()[1], depth, is_undone=True)


def span_title(span: Span) -> str:
    """What is said of something that was sent, without its values."""
    lines = [statement_line(span.text), f"{milliseconds(span.end - span.start)}"]
    if span.begins and span.kind is not Sent.BEGIN:
        lines.append("BEGIN went ahead of it" if span.trips > 1 else "BEGIN rode in front of it")
    if not span.trips and span.kind is Sent.SAVEPOINT:
        lines.append("it took no round trip of its own")
    if span.unit:
        lines.append(f"in {span.unit}")
    if span.error:
        lines.append(f"ended in {span.error}")
    return "\n".join(lines)
