"""What was measured, as a picture for the front page: how many requests each stack answers in a second.

A block of bars for each kind of wire, reads on the left and writes on the right of the stacks' common names.
"""

from collections.abc import Iterator

from markupsafe import Markup

from tests.benchmarks.peers.measuring import Cell, Results, wire_of
from tests.benchmarks.peers.stacks import NOT_RIDING, OURS

WIDTH = 990
MARGIN = 16
TOP = 58
LABELS = 330
COLUMN = (WIDTH - LABELS - MARGIN) // 2
NUMBERS = 112
"""What is left for the numbers behind the longest bar, in pixels."""

ROW = 22
BAR = 16
HEAD = 52
GAP = 22
VIEWS = {"read": "one SELECT, read-only", "write": "one INSERT"}

STYLE = """
svg{--paper:#ffffff;--ink:#1d2433;--soft:#5d6779;--bar:#b6bfcd;--ours:#2c6bd4}
@media (prefers-color-scheme:dark){svg{--paper:#151a23;--ink:#e6eaf2;--soft:#9aa5b8;--bar:#4a5568;--ours:#5b93ee}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.title{font-size:16px;font-weight:600}.head{font-weight:600}.soft{fill:var(--soft)}
rect{fill:var(--bar)}.ours rect{fill:var(--ours)}.ours text{font-weight:600}.paper{fill:var(--paper)}
"""


def draw(results: Results) -> str:
    """Draw, as SVG, the fastest wire with the fewest threads and the slowest with the most.

    :return: the text of a file.
    """
    blocks = _shown(results)
    names = [stack.name for stack in results.stacks if not stack.name.endswith(NOT_RIDING)]
    block_height = HEAD + len(names) * ROW + GAP
    drawn = (_block(results, *block, names, TOP + number * block_height) for number, block in enumerate(blocks))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' role="img"><title>{title}</title><style>{style}</style><rect class="paper" width="100%" height="100%"/>'
        '<text class="title" x="{margin}" y="34">{title}</text>{blocks}</svg>\n'
    ).format(
        width=WIDTH,
        height=TOP + len(blocks) * block_height,
        margin=MARGIN,
        style=Markup(STYLE),
        title="Requests per second, and how often each waits for the server",
        blocks=Markup("").join(drawn),
    )


def _shown(results: Results) -> list[tuple[float, int]]:
    latencies = sorted({cell.latency_s for cell in results.loads if cell.latency_s})
    threads = sorted({cell.threads for cell in results.loads})
    return list(dict.fromkeys([(latencies[0], threads[0]), (latencies[-1], threads[-1])]))


def _block(results: Results, latency_s: float, threads: int, names: list[str], y: int) -> Markup:
    head = Markup('<text class="head" x="{}" y="{}">{}</text>').format(MARGIN, y + 20, wire_of(latency_s, threads))
    columns = Markup("").join(
        _column(results, Cell(latency_s, threads, view), names, LABELS + number * COLUMN, y)
        for number, view in enumerate(VIEWS)
    )
    labels = Markup("").join(
        Markup('<g class="{}"><text x="{}" y="{}" text-anchor="end">{}</text></g>').format(
            _class(name), LABELS - 10, y + HEAD + number * ROW + 13, name
        )
        for number, name in enumerate(names)
    )
    return head + labels + columns


def _column(results: Results, cell: Cell, names: list[str], x: int, y: int) -> Markup:
    head = Markup('<text class="soft" x="{}" y="{}">{}</text>').format(x, y + 42, VIEWS[cell.view])
    return head + Markup("").join(_bars(results, cell, names, x, y + HEAD))


def _bars(results: Results, cell: Cell, names: list[str], x: int, y: int) -> Iterator[Markup]:
    rates = {name: results.loads[cell][name].rate.median for name in names}
    scale = (COLUMN - NUMBERS) / max(rates.values())
    for number, (name, rate) in enumerate(rates.items()):
        top, length = y + number * ROW, round(rate * scale, 1)
        trips = results.trips[name][cell.view]
        told = f"{rate:.0f}, {trips} {'trip' if str(trips) == '1' else 'trips'}"
        bar = '<g class="{}"><rect x="{}" y="{}" width="{}" height="{}" rx="2"/><text x="{}" y="{}">{}</text></g>'
        yield Markup(bar).format(_class(name), x, top, length, BAR, x + length + 6, top + 13, told)


def _class(name: str) -> str:
    return "ours" if name.startswith(OURS) else "peer"
