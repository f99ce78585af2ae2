"""Measure all of it, print it, draw it, and say whether what is demanded is met: the exit status says so too."""

import argparse
import sys
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from tests.benchmarks.peers.chart import draw
from tests.benchmarks.peers.demands import check
from tests.benchmarks.peers.measuring import Plan, measure
from tests.benchmarks.peers.tables import demands, tables
from tests.databases import run_server

WIDTH = 150


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark.

    :param arguments: of the command.
    :return: 1 if something that is demanded is not met.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few requests of each, and no word on what is demanded")
    parser.add_argument("--chart", type=Path, help="the SVG file to draw")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    progress = Console(stderr=True, style="dim")
    with run_server() as server:
        database = sa.make_url(server.database("psycopg2").driverless_url)
        results = measure(database, Plan.quick() if options.quick else Plan(), progress.print)
    for part in tables(results):
        console.print(part)
    if options.chart:
        options.chart.write_text(draw(results), encoding="utf-8")
    if options.quick:
        return 0
    checked = check(results)
    console.print(demands(checked))
    return 0 if all(demand.is_met for demand in checked) else 1


if __name__ == "__main__":
    sys.exit(main())
