"""The collector for Prometheus: what a scrape says of the boards, and that every parser understands it."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from flask import Flask, current_app
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import DuplicateTimeseries
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_uow import UnitOfWork, stats, transactional
from flask_uow._rules import RULES
from flask_uow.contrib.prometheus import UnitOfWorkCollector
from flask_uow.stats import Boards, Counts, LabelCounts, State, Worker
from tests.contrib.boards import BOARDS, COUNTS, ENDED, OTHER, OWN, POOL
from tests.models import Item

Sample = tuple[str, frozenset[tuple[str, str]]]
Publish = Callable[[Boards], None]

ODD = 'GET /"\\\n\r\t{a="b"} ü\u2028 1 2'


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put boards where the collector finds them."""

    def put(boards: Boards) -> None:
        monkeypatch.setattr(stats, "read_boards", lambda app=None: boards)

    put(BOARDS)
    return put


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry with the collector of an app that has done nothing, and has no UnitOfWork yet."""
    registry = CollectorRegistry()
    registry.register(UnitOfWorkCollector(Flask("bank")))
    return registry


def scraped(registry: CollectorRegistry) -> dict[Sample, float]:
    """Return what a scrape says, as Prometheus's own parser reads it; a series that comes twice is a failure."""
    return _samples(_parsed(_text(registry)))


def _text(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def _parsed(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def _strictly_parsed(registry: CollectorRegistry) -> list[Metric]:
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    return list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


def _samples(families: Iterable[Metric]) -> dict[Sample, float]:
    found: dict[Sample, float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(samples: dict[Sample, float], name: str, **labels: str) -> float | None:
    """Return one of the values, None if it is missing."""
    return samples.get((name, frozenset(labels.items())))


def published(*labels: LabelCounts) -> Boards:
    """Make the boards of one worker that has counted nothing but labels."""
    return Boards((replace(OWN, counts=Counts(labels=labels)),))


# ---- what the numbers are


def test_counters_are_those_of_all_workers_living_and_ended(publish: Publish, registry: CollectorRegistry) -> None:
    """So that they do not fall when a worker is replaced by another one."""
    samples = scraped(registry)

    assert value(samples, "flask_uow_units_begun_total") == 11_100
    assert value(samples, "flask_uow_units_total", outcome="committed") == 9980
    assert value(samples, "flask_uow_units_total", outcome="rolled_back") == 10
    assert value(samples, "flask_uow_units_total", outcome="failed") == 5
    assert value(samples, "flask_uow_units_retried_total") == 3
    assert value(samples, "flask_uow_sessions_opened_total") == 60
    assert value(samples, "flask_uow_sessions_closed_total") == 50
    assert value(samples, "flask_uow_sessions_leaked_total") == 2
    assert value(samples, "flask_uow_statements_total") == 77_700
    assert value(samples, "flask_uow_workers_ended_total") == 2
    assert value(samples, "flask_uow_workers") == 2


def test_no_counter_falls_when_a_worker_ends(publish: Publish, registry: CollectorRegistry) -> None:
    """What it has counted is with the ended ones then."""
    before = scraped(registry)
    publish(Boards((OTHER,), replace(ENDED, workers=3, counts=ENDED.counts + OWN.counts)))
    after = scraped(registry)

    counters = [key for key in before if key[0].endswith(("_total", "_bucket", "_sum", "_count"))]
    assert len(counters) > 50
    assert [key for key in counters if after[key] < before[key]] == []


def test_each_rule_has_a_series_from_the_beginning(publish: Publish, registry: CollectorRegistry) -> None:
    """A first violation is then a rise, and seen by an alert."""
    samples = scraped(registry)

    codes = {dict(labels)["code"] for name, labels in samples if name == "flask_uow_rule_violations_total"}
    assert codes == set(RULES)
    assert value(samples, "flask_uow_rule_violations_total", code="UOW103") == 44
    assert value(samples, "flask_uow_rule_violations_total", code="UOW201") == 1
    assert value(samples, "flask_uow_rule_violations_total", code="UOW101") == 0


def test_histograms_are_cumulative(publish: Publish, registry: CollectorRegistry) -> None:
    """Each bucket holds the ones before it, the last one all."""
    samples = scraped(registry)

    bounds = {"0.001": 5, "0.0025": 5, "0.005": 12, "0.01": 12, "60.0": 12, "+Inf": 13}
    for bound, count in bounds.items():
        assert value(samples, "flask_uow_unit_seconds_bucket", le=bound) == count, bound
    assert value(samples, "flask_uow_unit_seconds_count") == 13
    assert value(samples, "flask_uow_unit_seconds_sum") == 90.5
    assert value(samples, "flask_uow_connection_held_seconds_bucket", le="60.0") == 2
    assert value(samples, "flask_uow_connection_held_seconds_count") == 3
    assert value(samples, "flask_uow_connection_held_seconds_sum") == 61.0
    assert value(samples, "flask_uow_idle_in_transaction_seconds_count") == 1
    assert value(samples, "flask_uow_idle_in_transaction_seconds_sum") == 0.0005


def test_places_of_one_label_are_one_series(publish: Publish, registry: CollectorRegistry) -> None:
    """But not the outermost and the inner units, whose statements and seconds are the outer ones' as well."""
    samples = scraped(registry)

    outermost = {"label": "transfer", "nesting": "outermost"}
    inner = {"label": "transfer", "nesting": "inner"}
    assert value(samples, "flask_uow_label_units_total", **outermost) == 10
    assert value(samples, "flask_uow_label_units_total", **inner) == 3
    assert value(samples, "flask_uow_label_errors_total", **outermost) == 1
    assert value(samples, "flask_uow_label_errors_total", **inner) == 2
    assert value(samples, "flask_uow_label_seconds_total", **outermost) == 4.0
    assert value(samples, "flask_uow_label_seconds_total", **inner) == 0.25
    assert value(samples, "flask_uow_label_statements_total", **outermost) == 20
    assert value(samples, "flask_uow_label_statements_total", **inner) == 5
    assert value(samples, "flask_uow_label_worst_seconds", **outermost) == 0.75
    assert value(samples, "flask_uow_label_worst_seconds", **inner) == 0.125


def test_pools_are_added_up_by_bind(publish: Publish, registry: CollectorRegistry) -> None:
    """But for the longest wait, which is one wait."""
    samples = scraped(registry)

    assert value(samples, "flask_uow_pool_size", bind="default") == 10
    assert value(samples, "flask_uow_pool_checked_out", bind="default") == 8
    assert value(samples, "flask_uow_pool_overflow", bind="default") == 4
    assert value(samples, "flask_uow_pool_limit", bind="default") == 30
    assert value(samples, "flask_uow_pool_waiting", bind="default") == 2
    assert value(samples, "flask_uow_pool_timeouts", bind="default") == 8
    assert value(samples, "flask_uow_pool_longest_wait_seconds", bind="default") == 3.5


def test_what_a_pool_does_not_know_is_missing(publish: Publish, registry: CollectorRegistry) -> None:
    """A pool without a limit has none, and one that counts nothing says nothing: neither is 0."""
    unlimited = replace(POOL, max_overflow=-1)
    silent = stats.PoolSnapshot(bind="files", class_name="NullPool", process_pid=1)
    publish(Boards((replace(OWN, pools=(unlimited, silent)), replace(OTHER, pools=(POOL,)))))

    samples = scraped(registry)

    assert value(samples, "flask_uow_pool_checked_out", bind="default") == 14
    assert value(samples, "flask_uow_pool_limit", bind="default") is None
    assert [labels for _, labels in samples if ("bind", "files") in labels] == []


def test_what_lives_now_is_counted_by_state(publish: Publish, registry: CollectorRegistry) -> None:
    """Transactions of units, and connections outside of units; the innermost unit says what its transaction does."""
    samples = scraped(registry)

    units = {
        dict(labels)["state"]: count for (name, labels), count in samples.items() if name == "flask_uow_live_units"
    }
    assert {state for state, count in units.items() if count} == {State.IDLE, State.RUNNING}
    assert units[State.IDLE] == units[State.RUNNING] == 1
    assert units[State.WAITING] == 0
    assert value(samples, "flask_uow_live_connections", state=State.IDLE) == 1
    assert value(samples, "flask_uow_live_connections", state=State.HELD) == 1
    assert value(samples, "flask_uow_live_connections", state=State.LEAKED) == 0


def test_a_state_of_another_version_is_counted_too(publish: Publish, registry: CollectorRegistry) -> None:
    """While a release is rolled out, workers of both publish."""
    publish(Boards((replace(OWN, live=(replace(OWN.live[0], state="dreaming"),)),)))

    assert value(scraped(registry), "flask_uow_live_units", state="dreaming") == 1


def test_the_oldest_are_found(publish: Publish, registry: CollectorRegistry) -> None:
    """The oldest unit, and whoever idles longest in a transaction, in a unit or not; 0 where there is none."""
    samples = scraped(registry)
    publish(Boards((replace(OWN, live=()),)))
    calm = scraped(registry)

    assert value(samples, "flask_uow_oldest_unit_seconds") == 9.0
    assert value(samples, "flask_uow_oldest_idle_in_transaction_seconds") == 30.0
    assert value(calm, "flask_uow_oldest_unit_seconds") == 0.0
    assert value(calm, "flask_uow_oldest_idle_in_transaction_seconds") == 0.0


def test_what_found_no_room_is_told(publish: Publish, registry: CollectorRegistry) -> None:
    """Labels that are missing are no labels without units."""
    samples = scraped(registry)

    assert value(samples, "flask_uow_untold", what="labels") == 11
    assert value(samples, "flask_uow_untold", what="units") == 0


# ---- how it is written


def test_both_formats_say_the_same(publish: Publish, registry: CollectorRegistry) -> None:
    """OpenMetrics is stricter: names, units, buckets and the order of the lines are checked by its parser."""
    families = _strictly_parsed(registry)
    samples = _samples(families)

    assert len(samples) > 100
    assert samples == scraped(registry)
    assert {family.name for family in families if family.unit == "seconds"} == {
        family.name for family in families if family.name.endswith("_seconds")
    }


def test_empty_boards_are_a_scrape_too(publish: Publish, registry: CollectorRegistry) -> None:
    """Before anything was published, the counters are 0."""
    publish(Boards(()))

    samples = _samples(_strictly_parsed(registry))

    assert value(samples, "flask_uow_units_begun_total") == 0
    assert value(samples, "flask_uow_unit_seconds_count") == 0
    assert value(samples, "flask_uow_unit_seconds_bucket", le="+Inf") == 0
    assert value(samples, "flask_uow_workers") == 0


def test_a_metric_has_a_help_and_the_names_are_prometheuss(publish: Publish, registry: CollectorRegistry) -> None:
    """Counters end in ``_total``, base units are seconds, each family comes once."""
    families = _parsed(_text(registry))

    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert family.documentation.endswith((".", ")")), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.name.startswith("flask_uow_"), family.name
        assert (family.type == "counter") == all(sample.name.endswith("_total") for sample in family.samples)


def test_an_odd_label_stays_what_it_is(publish: Publish, registry: CollectorRegistry) -> None:
    """Quotes, line ends and backslashes forge neither a line nor a label, in both formats."""
    publish(published(LabelCounts(ODD, None, False, count=7), LabelCounts("\\n", None, False, count=8)))

    text = _text(registry)

    for samples in (scraped(registry), _samples(_strictly_parsed(registry))):
        assert value(samples, "flask_uow_label_units_total", label=ODD, nesting="outermost") == 7
        assert value(samples, "flask_uow_label_units_total", label="\\n", nesting="outermost") == 8
    assert all(line.startswith(("#", "flask_uow_")) for line in text.split("\n") if line)


# ---- how it is used


def test_registering_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with a registry that wants descriptions; and a second collector is refused by its names."""
    asked: list[object] = []
    monkeypatch.setattr(stats, "read_boards", asked.append)
    registry = CollectorRegistry(auto_describe=True)

    registry.register(UnitOfWorkCollector(Flask("bank")))

    assert asked == []
    with pytest.raises(DuplicateTimeseries, match="flask_uow_units_begun"):
        registry.register(UnitOfWorkCollector(Flask("bank")))


def test_what_is_described_is_what_is_collected(publish: Publish) -> None:
    """So that a scrape may ask for some names only."""
    collector = UnitOfWorkCollector(Flask("bank"))
    registry = CollectorRegistry()
    registry.register(collector)

    described = [(family.name, family.type, family.documentation) for family in collector.describe()]

    assert described == [(family.name, family.type, family.documentation) for family in collector.collect()]
    restricted = registry.restricted_registry(["flask_uow_units_begun_total"])
    assert [sample.value for family in restricted.collect() for sample in family.samples] == [11_100]


def test_the_app_that_is_read_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was given as ``current_app``, and read outside of any context, in another thread."""
    asked: list[object] = []

    def read(app: Flask | None = None) -> Boards:
        asked.append(app)
        return BOARDS

    monkeypatch.setattr(stats, "read_boards", read)
    app = Flask("bank")
    with app.app_context():
        collector = UnitOfWorkCollector(current_app)
    thread = threading.Thread(target=lambda: list(collector.collect()))
    thread.start()
    thread.join(timeout=10)

    assert len(asked) == 1
    assert asked[0] is app


def test_a_scrape_sends_no_statement(app: Flask, uow: UnitOfWork) -> None:
    """Neither to a database nor by a connection that it would have to open."""
    registry = CollectorRegistry()
    registry.register(UnitOfWorkCollector(app))

    _text(registry)

    with app.app_context():
        assert "Connections in pool: 0" in uow.engine.pool.status()


def test_it_is_served_beside_the_app(publish: Publish, registry: CollectorRegistry) -> None:
    """As its docstring says."""
    app = Flask("bank")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": make_wsgi_app(registry)})  # type: ignore[method-assign]

    response = app.test_client().get("/metrics")

    assert response.status_code == 200
    assert "flask_uow_units_begun_total 11100.0\n" in response.text


def test_the_units_of_this_process_are_in_its_scrape(app: Flask, uow: UnitOfWork) -> None:
    """From the units to the scrape, with nothing made by hand between."""
    registry = CollectorRegistry()
    registry.register(UnitOfWorkCollector(app))

    @app.post("/items")
    @transactional
    def add() -> str:
        uow.session.add(Item(name="one"))
        return _text(registry)

    inside = _samples(_parsed(app.test_client().post("/items").text))
    after = scraped(registry)

    assert value(inside, "flask_uow_units_begun_total") == 1
    assert value(inside, "flask_uow_units_total", outcome="committed") == 0
    assert sum(count for (name, _), count in inside.items() if name == "flask_uow_live_units") == 1
    assert value(after, "flask_uow_units_total", outcome="committed") == 1
    assert value(after, "flask_uow_label_units_total", label="POST /items", nesting="outermost") == 1
    assert value(after, "flask_uow_unit_seconds_count") == 1
    assert (value(after, "flask_uow_statements_total") or 0) >= 1
    assert sum(count for (name, _), count in after.items() if name == "flask_uow_live_units") == 0
    assert value(after, "flask_uow_workers") == 1
    assert value(after, "flask_uow_pool_checked_out", bind="default") == 0


def test_a_password_is_in_no_scrape(publish: Publish, registry: CollectorRegistry) -> None:
    """Binds are named, never their URLs; places are none of the labels."""
    samples = scraped(registry)

    assert COUNTS.labels[0].where is not None
    assert {name for _, labels in samples for name, _ in labels} == {
        "bind", "code", "label", "le", "nesting", "outcome", "state", "what",
    }  # fmt: skip
    assert not any("bank.py" in text for _, labels in samples for _, text in labels)


def test_a_rule_of_another_version_has_a_series(publish: Publish, registry: CollectorRegistry) -> None:
    """Its worker was started before the others were updated."""
    publish(Boards((Worker(1, "bank", OWN.started_at, Counts(rules={"UOW999": 2})),)))

    assert value(scraped(registry), "flask_uow_rule_violations_total", code="UOW999") == 2


def test_what_found_no_room_is_added_up(publish: Publish, registry: CollectorRegistry) -> None:
    """Over all workers."""
    workers = (Worker(pid, "bank", OWN.started_at, Counts(), untold={"labels": pid}) for pid in (1, 2))
    publish(Boards(tuple(workers)))

    assert value(scraped(registry), "flask_uow_untold", what="labels") == 3


def test_a_worker_without_counters_is_counted(publish: Publish, registry: CollectorRegistry) -> None:
    """One that has just begun."""
    publish(Boards((Worker(1, "bank", OWN.started_at, Counts()),)))

    assert value(scraped(registry), "flask_uow_workers") == 1
