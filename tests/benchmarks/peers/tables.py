"""What was measured, as tables for a terminal."""

import os
from collections.abc import Iterator

from rich.table import Table

from tests.benchmarks.peers.demands import HAND_OF_DRIVER, PEER_OF_DRIVER, Demand
from tests.benchmarks.peers.measuring import TIMED_VIEWS, Cell, Results, wire_of
from tests.benchmarks.peers.trips import COUNTED_VIEWS
from tests.benchmarks.peers.views import VIEWS


def tables(results: Results) -> Iterator[Table | str]:
    """Give all of it."""
    yield from (f"{name}: not installed, not measured (pip install 'flask_uow[bench]')" for name in results.missing)
    yield _trips(results)
    yield from (f"{name}: {VIEWS[name].title}" for name in COUNTED_VIEWS)
    yield from _confirmation(results)
    yield _cpu(results)
    yield _holding(results)
    for latency_s, threads in sorted({(cell.latency_s, cell.threads) for cell in results.loads}):
        yield _loads(results, latency_s, threads)
    yield from _wires(results)
    cores = os.cpu_count()
    yield f"The machine's load was {results.load:.1f} before, on {cores} cores: a busy one's times tell little."


def demands(checked: list[Demand]) -> Table:
    """Give what is demanded, and whether it is met."""
    table = Table("demand", title="What has to be shown", title_justify="left")
    for column in ("measured", "wanted", ""):
        table.add_column(column, justify="right")
    for demand in checked:
        bound = f"{'at most' if demand.is_most else 'at least'} {demand.wanted:g}"
        met = "[green]met[/]" if demand.is_met else "[red]not met[/]"
        table.add_row(demand.what, f"{demand.measured:.3g}", bound, met)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _trips(results: Results) -> Table:
    table = _table("Round trips of a request", *COUNTED_VIEWS)
    for name, trips in results.trips.items():
        table.add_row(name, *map(str, trips.values()))
    return table


def _confirmation(results: Results) -> Iterator[str]:
    if not results.waits:
        return
    odd = [
        f"{name}, {view}: {wait} as time over latency, {results.trips[name][view]} counted"
        for name, waits in results.waits.items()
        for view, wait in waits.items()
        if not results.trips[name][view].least <= wait.least <= results.trips[name][view].most
    ]
    yield from odd or ["Each of these is confirmed as time over latency, on a wire of 20 ms."]


def _cpu(results: Results) -> Table:
    heads = [head for database, view in results.cpu for head in (f"{view}, {database}", "by hand = 1")]
    table = _table("CPU time of a request in us, the server's not counted", *heads)
    for stack in results.stacks:
        row = []
        for figures in results.cpu.values():
            if stack.name in figures:
                mine = figures[stack.name]
                row += [f"{mine.median * 1e6:.0f}", f"{mine.over(figures[HAND_OF_DRIVER[stack.driver]]):.2f}"]
            else:
                row += ["", ""]
        table.add_row(stack.name, *row)
    return table


def _holding(results: Results) -> Table:
    table = _table("A request that commits and then renders for 20 ms", "holds its connection for")
    for name, part in results.holding.items():
        table.add_row(name, f"{part:.0%}")
    return table


def _loads(results: Results, latency_s: float, threads: int) -> Table:
    heads = [head for view in TIMED_VIEWS for head in (f"{view}s/s", "peer = 1", "median, ms", "95 %, ms")]
    table = _table(wire_of(latency_s, threads), *heads)
    for stack in results.stacks:
        row = []
        for view in TIMED_VIEWS:
            loads = results.loads[Cell(latency_s, threads, view)]
            mine = loads[stack.name]
            ratio = mine.rate.over(loads[PEER_OF_DRIVER[stack.driver]].rate)
            times = (f"{mine.percentile_s(percent) * 1e3:.2f}" for percent in (50, 95))
            row += [f"{mine.rate.median:.0f}", f"{ratio:.2f}", *times]
        table.add_row(stack.name, *row)
    table.caption = "peer: Flask-SQLAlchemy with pool_pre_ping, on the same driver"
    return table


def _wires(results: Results) -> Iterator[str]:
    for latency_s, cost in results.wires.items():
        added, direct = cost.latency.added_s * 1e3, cost.latency.direct_s * 1e3
        share, trip_us = cost.used.cpu_s / cost.elapsed_s, 2e6 * cost.used.cpu_s / max(cost.used.carried, 1)
        yield (
            f"The wire of {latency_s * 1e3:g} ms: a round trip took {added:.3f} ms longer than the {direct:.3f} ms "
            f"without it; its process used {share:.0%} of a core, {trip_us:.0f} us for each round trip."
        )
