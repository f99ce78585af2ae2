"""The benchmark of the peers works, and its peers make the round trips that they are said to make."""

from io import StringIO
from itertools import chain
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa
from rich.console import Console

from tests.benchmarks.peers.chart import draw
from tests.benchmarks.peers.demands import check
from tests.benchmarks.peers.measuring import Plan, Results, measure
from tests.benchmarks.peers.stacks import (
    FLASK_SQLALCHEMY,
    FLASK_SQLALCHEMY_PING,
    HAND,
    HAND_PING,
    HAND_TUNED,
    LITE,
    OURS,
    OURS_3,
    TXBOUND,
)
from tests.benchmarks.peers.tables import demands, tables
from tests.databases import Server

BARE = {
    "read": "3",
    "select": "3",
    "write": "3",
    "nested": "12",
    "exception": "7",
    "duplicate": "7",
    "reads-nested": "12",
    "render": "16",
    "strict": "4",
    "after-strict": "3",
}
PING = {
    "read": "4",
    "select": "4",
    "write": "4",
    "nested": "13",
    "exception": "8",
    "duplicate": "8",
    "reads-nested": "13",
    "render": "18",
    "strict": "6",
    "after-strict": "5",
}
TRIPS = {
    HAND: BARE,
    HAND_PING: PING,
    HAND_TUNED: BARE | {"read": "1", "render": "4"},
    FLASK_SQLALCHEMY: BARE,
    FLASK_SQLALCHEMY_PING: PING,
    LITE: BARE,
    "txbound": BARE,
}


@pytest.fixture(scope="module")
def results(postgresql_server: Server) -> Results:
    """What a quick run has measured."""
    return measure(sa.make_url(postgresql_server.database("psycopg2").driverless_url), Plan.quick(), lambda _: None)


def test_round_trips_of_the_peers(results: Results) -> None:
    """They are what the tables of the README compare ours with, on psycopg2; a peer that is not installed is named."""
    measured = {name: {view: str(each) for view, each in trips.items()} for name, trips in results.trips.items()}
    peers = TRIPS if TXBOUND not in results.missing else {name: TRIPS[name] for name in TRIPS if name != "txbound"}

    assert {name: measured[name] for name in peers} == peers


def test_all_is_measured_of_each(results: Results) -> None:
    """No stack is left out of a table, and ours is held against what is demanded on both drivers."""
    names = {stack.name for stack in results.stacks}

    assert {OURS, OURS_3} < names
    assert set(results.trips) == set(results.holding) == names
    assert all(set(loads) == names for loads in results.loads.values())
    assert {demand.what.partition(":")[0] for demand in check(results)} == {OURS, OURS_3}


def test_what_is_measured_is_printed_and_drawn(results: Results) -> None:
    """Each stack has its row in the tables, and its bar in a picture that fetches nothing."""
    console = Console(record=True, width=150, file=StringIO())
    for part in chain(tables(results), [demands(check(results))]):
        console.print(part)
    printed, svg = console.export_text(), draw(results)

    for stack in results.stacks:
        assert stack.name in printed
    for name in TRIPS:
        assert name in svg or name == "txbound"
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "url(" not in svg
