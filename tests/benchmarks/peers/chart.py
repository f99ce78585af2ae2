"""What was measured, as a picture for the front page: how many requests each stack answers in a second."""

from collections.abc import Iterator

from markupsafe import Markup

from tests.benchmarks.peers.measuring import Cell, Results
from tests.benchmarks.peers.stacks import NOT_RIDING, OURS

WIDTH = 960
MARGIN = 16
TOP = 56
LABELS = 270
ROW = 22
BAR = 16
HEAD = 40
GAP = 20
NUMBERS = 120
"""What is left for the numbers behind the longest bar, in pixels."""

STYLE = """
svg{--paper:#ffffff;--ink:#1d2433;--soft:#5d6779;--bar:#b6bfcd;--ours:#2c6bd4;background:var(--paper)}
@media (prefers-color-scheme:dark){svg{--paper:#151a23;--ink:#e6eaf2;--soft:#9aa5b8;--bar:#4a5568;--ours:#5b93ee}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.title{font-size:16px;font-weight:600}.head{font-weight:600}.soft{fill:var(--soft)}
rect{fill:var(--bar)}.ours rect{fill:var(--ours)}.ours text{font-weight:600}.paper{fill:var(--paper)}
"""


def draw(results: Results) -> str:
    """Draw, as SVG, the slowest wire and the fastest one, each with the fewest threads and the most.

    :return: the text of a file.
    """
    cells = _shown(results)
    names = [stack.name for stack in results.stacks if not stack.name.endswith(NOT_RIDING)]
    height = TOP + len(cells) * (HEAD + len(names) * ROW + GAP)
    panels = Markup("").join(_panel(results, cell, names, number) for number, cell in enumerate(cells))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' role="img"><title>{title}</title><style>{style}</style><rect class="paper" width="100%" height="100%"/>'
        '<text class="title" x="{margin}" y="34">{title}</text>{panels}</svg>\n'
    ).format(
        width=WIDTH,
        height=height,
        margin=MARGIN,
        style=Markup(STYLE),
        title="Requests per second, and how often each waits for the server",
        panels=panels,
    )


def _shown(results: Results) -> list[Cell]:
    latencies = sorted({cell.latency_s for cell in results.loads if cell.latency_s})
    threads = sorted({cell.threads for cell in results.loads})
    corners = dict.fromkeys([(latencies[0], threads[0]), (latencies[-1], threads[-1])])
    return [Cell(*corner, view) for corner in corners for view in ("read", "write")]


def _panel(results: Results, cell: Cell, names: list[str], number: int) -> Markup:
    y = TOP + number * (HEAD + len(names) * ROW + GAP)
    what = "one SELECT, read-only" if cell.view == "read" else "one INSERT"
    threads = "1 thread" if cell.threads == 1 else f"{cell.threads} threads"
    head = Markup('<text class="head" x="{}" y="{}">{}<tspan class="soft">{}</tspan></text>').format(
        MARGIN, y + 22, what, f", {threads}, {cell.latency_s * 1e3:g} ms to the server"
    )
    return head + Markup("").join(_bars(results, cell, names, y + HEAD))


def _bars(results: Results, cell: Cell, names: list[str], y: int) -> Iterator[Markup]:
    rates = {name: results.loads[cell][name].rate.median for name in names}
    scale = (WIDTH - LABELS - NUMBERS - 2 * MARGIN) / max(rates.values())
    for number, (name, rate) in enumerate(rates.items()):
        top, length = y + number * ROW, round(rate * scale, 1)
        trips = results.trips[name][cell.view]
        yield Markup(
            '<g class="{}"><text x="{}" y="{}" text-anchor="end">{}</text>'
            '<rect x="{}" y="{}" width="{}" height="{}" rx="2"/><text x="{}" y="{}">{}</text></g>'
        ).format(
            "ours" if name.startswith(OURS) else "peer",
            LABELS,
            top + 13,
            name,
            LABELS + 8,
            top,
            length,
            BAR,
            LABELS + 14 + length,
            top + 13,
            f"{rate:.0f}, {trips} {'trip' if str(trips) == '1' else 'trips'}",
        )
