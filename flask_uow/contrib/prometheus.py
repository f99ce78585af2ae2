"""Prometheus: one scrape of any worker shows all of them, because each reads what all have published.

The counters include the workers that have ended, so that they do not fall when a server recycles its workers. No folder
of ``prometheus_client``'s multiprocess mode is needed, and no database is asked. What is measured stands in
``docs/metrics.rst``.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask
from prometheus_client import core
from prometheus_client.registry import Collector
from werkzeug.local import LocalProxy

from .. import stats
from ._metrics import DISTRIBUTIONS, METRICS, Distribution, Kind, Metric, Reading, buckets

__all__ = ["UnitOfWorkCollector"]


class UnitOfWorkCollector(Collector):
    """Collects what all workers of an app on this host have published.

    .. code-block:: python

        registry = CollectorRegistry()
        registry.register(UnitOfWorkCollector(app))
        app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/metrics": make_wsgi_app(registry)})

    The middleware is Werkzeug's, the rest is ``prometheus_client``'s. A view does as well, where requests pass through
    authentication, say: ``return Response(generate_latest(registry), mimetype="text/plain")``.

    Two apps in one process need a registry each.

    :param app: the app; it need not have served anything yet.
    """

    def __init__(self, app: Flask) -> None:
        self._app: Flask = app._get_current_object() if isinstance(app, LocalProxy) else app

    def describe(self) -> Iterator[core.Metric]:
        """Give the metrics without values, so that to register the collector reads nothing."""
        yield from map(_family, METRICS)
        yield from map(_histogram, DISTRIBUTIONS)

    def collect(self) -> Iterator[core.Metric]:
        """Read the boards, and give the metrics with what they say."""
        reading = Reading.of(stats.read_boards(self._app))
        for metric in METRICS:
            family = _family(metric)
            for labels, value in metric.read(reading).items():
                family.add_metric(labels, value)
            yield family
        for distribution in DISTRIBUTIONS:
            histogram = distribution.read(reading.totals)
            filled = _histogram(distribution)
            filled.add_metric((), buckets(histogram), histogram.total_seconds)
            yield filled


def _family(metric: Metric) -> core.CounterMetricFamily | core.GaugeMetricFamily:
    kind = core.CounterMetricFamily if metric.kind is Kind.COUNTER else core.GaugeMetricFamily
    return kind(metric.name, metric.meaning, labels=metric.labels, unit=metric.unit)


def _histogram(distribution: Distribution) -> core.HistogramMetricFamily:
    return core.HistogramMetricFamily(distribution.name, distribution.meaning, unit="seconds")
