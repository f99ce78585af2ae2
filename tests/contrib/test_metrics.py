"""The table of metrics, and the page that explains it: neither has what the other lacks."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]
from flask import Flask
from prometheus_client.metrics_core import Metric

from flask_uow import UnitOfWork
from flask_uow._rules import RULES
from flask_uow._unit_log import log_unit
from flask_uow.contrib._metrics import DISTRIBUTIONS, METRICS, STATES, Reading
from flask_uow.contrib.opentelemetry import instrument_name, uninstrument
from flask_uow.contrib.prometheus import UnitOfWorkCollector
from tests.contrib.boards import BOARDS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.rst").read_text()


@pytest.fixture(scope="module")
def document() -> Any:
    """The page as docutils reads it; a mistake in it is an error."""
    return core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})


def test_every_metric_is_on_the_page(document: Any) -> None:
    """With the type, the labels and the meaning that a scrape gives it."""
    described = {_name(family): family for family in UnitOfWorkCollector(Flask("bank")).describe()}
    labels = {metric.name: metric.labels for metric in METRICS}

    rows = _table(document, "metric")

    assert [name for name, *_ in rows] == list(described)
    for name, type_, names, meaning in rows:
        family = described[name]
        assert type_ == family.type, name
        assert names == (", ".join(labels.get(family.name, ())) or "none"), name
        assert meaning == family.documentation, name


def test_every_label_and_its_values_are_on_the_page(document: Any) -> None:
    """As far as they are known before an app is."""
    rows = dict(_table(document, "label"))
    values = {label: set(_quoted(text)) for label, text in rows.items()}
    reading = Reading.of(BOARDS)
    read: dict[str, set[str]] = {}
    for metric in METRICS:
        for key in metric.read(reading):
            for label, value in zip(metric.labels, key, strict=True):
                read.setdefault(label, set()).add(value)

    assert set(rows) == {label for metric in METRICS for label in metric.labels}
    assert values["state"] == set(STATES)
    assert read["code"] == set(RULES)
    for label in ("outcome", "nesting", "state", "what"):
        assert read[label] <= values[label], label


def test_the_lines_of_the_page_work(document: Any) -> None:
    """Each block of Python runs with an app."""
    app = Flask("bank")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    UnitOfWork(app)

    for block in document.findall(nodes.literal_block):
        if "python" in block["classes"]:
            exec(block.astext(), {"app": app})

    assert "flask_uow_units_begun_total" in app.test_client().get("/metrics").text
    uninstrument(app)


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    """Under the names of a scrape."""
    series = set(re.findall(r"\bflask_uow_\w+", PAGE))

    known = {_name(family) for family in UnitOfWorkCollector(Flask("bank")).describe()}
    assert series - known == {"flask_uow_unit_seconds_bucket"}


def test_the_instruments_that_are_named_exist() -> None:
    """With dots."""
    named = set(re.findall(r"``(flask_uow\.[a-z_.]+)``", PAGE)) - {"flask_uow.unit.bucket"}

    assert named
    assert named <= {instrument_name(metric.name) for metric in (*METRICS, *DISTRIBUTIONS)}


def test_the_line_of_the_log_is_the_codes(caplog: pytest.LogCaptureFixture) -> None:
    """And so are the names of the fields."""

    class IntegrityError(Exception):
        sqlstate = "23505"

    log_unit(
        label="POST /transfers",
        where="bank/transfers.py:41 in transfer",
        attempt=1,
        seconds=0.0121,
        statements=3,
        outcome="rolled_back",
        error=IntegrityError(),
    )

    (record,) = caplog.records
    assert f"    {record.getMessage()}\n" in PAGE
    assert record.levelno == logging.WARNING
    assert sorted(re.findall(r"``(uow_\w+)``", PAGE)) == sorted(
        name for name in vars(record) if name.startswith("uow_")
    )


def _name(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def _quoted(text: str) -> list[str]:
    """Return what stands between quotes, which docutils shows without them: what lies between commas and colons."""
    return [part.strip() for part in re.split(r"[,;:]| or ", text)]


def _table(document: Any, first_head: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this head, without the ends of lines."""
    for table in document.findall(nodes.table):
        head, *rows = [
            [entry.astext().replace("\n", " ") for entry in row.children] for row in table.findall(nodes.row)
        ]
        if head[0] == first_head:
            return rows
    raise AssertionError(f"There is no table whose first column is {first_head!r}.")
