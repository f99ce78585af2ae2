"""Lists a timeline as HTML: what was noticed and how to mend it, and every step with its start and duration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from markupsafe import Markup

from .._timeline import Breach, Sent, Span, Timeline
from ._picture import _CLASSES, LEGEND
from ._words import milliseconds, plural, shown_breach, statement_line

_SHORTEST_IDLE_S = 0.001


class Row(NamedTuple):
    """A line of the table.

    :param name: the class of what it is about, which is its colour.
    :param what: what kind of thing it is.
    :param text: the statement, the template, the label.
    :param unit: in which unit.
    :param trips: round trips; None where the question makes no sense.
    """

    start: float
    duration: float | None
    name: str
    what: str
    text: str
    unit: str = ""
    trips: int | None = None


def legend(timeline: Timeline) -> Markup:
    """What the colours mean that the picture has."""
    present = {row.name for row in rows(timeline)} | {"held" for lane in timeline.lanes if lane.holds}
    present |= {"begin" for lane in timeline.lanes for span in lane.spans if span.begins}
    present |= {"idle" for lane in timeline.lanes if any(lane.idle(timeline.end))}
    entries = (
        Markup('<li><i class="uow-key {}"></i>{}</li>').format(name, text) for name, text in LEGEND if name in present
    )
    return Markup('<ul class="uow-legend">{}</ul>').format(Markup("").join(entries))


def figures(timeline: Timeline) -> Markup:
    """The header's figures, large."""
    values = (
        (milliseconds(timeline.end - timeline.start), "request"),
        (milliseconds(timeline.unit_s), f"in {plural(timeline.unit_count, 'unit')}"),
        (milliseconds(timeline.sql_s), "waiting for SQL"),
        (milliseconds(timeline.idle_s), "idle in transaction"),
        (str(timeline.trips), "round trip" + "s" * (timeline.trips != 1)),
    )
    entries = (Markup("<li><b>{}</b> {}</li>").format(value, what) for value, what in values)
    return Markup('<ul class="uow-figures">{}</ul>').format(Markup("").join(entries))


def violations(breaches: list[Breach], title: str) -> Markup:
    """What was noticed, where, and how to mend it."""
    if not breaches:
        return Markup("")
    entries = (
        Markup("<li><b>{}</b> {}<dl>{}{}</dl></li>").format(
            breach.code, shown_breach(breach), _detail("where", breach.where), _detail("fix", breach.fix)
        )
        for breach in breaches
    )
    return Markup('<h4>{}</h4><ul class="uow-violations">{}</ul>').format(title, Markup("").join(entries))


def table(timeline: Timeline) -> Markup:
    """Every step, in order."""
    line = Markup(
        '<tr class="{0}"><td>{1}</td><td>{2}</td><td>{3}</td>'
        '<td><i class="uow-key {0}"></i>{4}</td><td>{5}{6}</td></tr>'
    )
    lines = (
        line.format(
            row.name,
            milliseconds(row.start - timeline.start),
            "" if row.duration is None else milliseconds(row.duration),
            "" if row.trips is None else row.trips,
            row.what,
            row.text,
            Markup(" <small>in {}</small>").format(row.unit) if row.unit else "",
        )
        for row in sorted(rows(timeline), key=lambda each: each.start)
    )
    heads = Markup("").join(Markup("<th>{}</th>").format(head) for head in ("start", "took", "trips", "", "step"))
    return Markup('<table class="uow-steps"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(
        heads, Markup("").join(lines)
    )


def rows(timeline: Timeline) -> Iterator[Row]:
    """The table's lines, in no order."""
    for unit in timeline.units:
        name = "undone" if unit.outcome == "rolled back" else "unit"
        kind = "unit inside" if unit.depth > 1 else "unit"
        mode = ", read-only" if unit.read_only else ""
        attempt = f", attempt {unit.attempt}" if unit.attempt > 1 else ""
        text = f"{unit.label}{mode}{attempt}: {unit.outcome or 'not ended'}"
        yield Row(unit.start, unit.end - unit.start, name, kind, text)
    for number, lane in enumerate(timeline.lanes, start=1):
        place = f", connection {number}" if len(timeline.lanes) > 1 else ""
        for span in lane.spans:
            yield _row_of_span(span, place)
        for start, end in lane.idle(timeline.end):
            if end - start >= _SHORTEST_IDLE_S:
                yield Row(start, end - start, "idle", f"idle{place}", "in its transaction")
    for rendering in timeline.renderings:
        duration = rendering.end - rendering.start
        yield Row(rendering.start, duration, "template", "rendering", rendering.template)
    for breach in timeline.breaches:
        yield Row(breach.at, None, "breach", breach.code, shown_breach(breach))


def _row_of_span(span: Span, place: str) -> Row:
    ahead = "BEGIN; " if span.begins and span.kind is not Sent.BEGIN else ""
    error = f" ({span.error})" if span.error else ""
    return Row(
        span.start,
        span.end - span.start,
        _CLASSES.get(span.kind, "other"),
        f"{span.kind}{place}",
        f"{ahead}{statement_line(span.text)}{error}",
        span.unit or "",
        span.trips,
    )


def _detail(name: str, text: str | None) -> Markup:
    return Markup("<dt>{}</dt><dd>{}</dd>").format(name, text) if text else Markup("")
