"""What a watch does, as metrics that Prometheus asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from padim_edge.detect.detector import Result
from padim_edge.errors import MissingDependencyError, UsageError
from padim_edge.live.addresses import Address, parse
from padim_edge.live.board import COUNTS, CameraStatus, Seen
from padim_edge.live.event import Event
from padim_edge.live.sinks import METRICS
from padim_edge.web.answers import HANDLERS
from padim_edge.web.limits import Limits

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from padim_edge.web.server import Server
except ModuleNotFoundError as error:
    raise MissingDependencyError("metrics", "starlette", "live") from error

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingDependencyError("metrics", "prometheus_client", "live") from error

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Bounds of the histogram of latencies; the sixth is a frame at 30 a second."""

LIMITS = Limits(connections=64, body_bytes=0)
"""Of who asks, a few programs: one that is slow, or opens many connections, holds no thread."""

_PATHS = ("/metrics", "/")

_WHAT = {
    "captured": "Frames that came from the source",
    "lost": "Frames that were lost before they came, by the source's own count",
    "dropped": "Frames that a newer one overtook (policy latest)",
    "judged": "Frames with a verdict",
    "anomalous": "Frames that were judged anomalous",
    "unreadable": "Frames that could not be judged",
    "untaught": "Frames that came while there was no detector",
}


class Metrics:
    """Metrics of one watch, in a registry of their own.

    An observer of the watch (call it with each `Seen`) for what must be counted frame by frame;
    what others count is read when somebody asks.

    Args:
        statuses: of the cameras.
        sinks: gives the status of each sink, as `padim_edge.live.delivery.Deliveries` does.
    """

    def __init__(
        self,
        statuses: Sequence[CameraStatus],
        sinks: Callable[[], Sequence[dict[str, Any]]] = tuple,
    ) -> None:
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry}
        self._latency = Histogram(
            "padim_edge_latency_seconds",
            "From exposure or arrival of a frame to its verdict",
            ("camera",),
            buckets=_SECONDS,
            **common,
        )
        self._score = Gauge(
            "padim_edge_score", "Score of the newest verdict", ("camera",), **common
        )
        self._threshold = Gauge(
            "padim_edge_threshold", "Threshold of the newest verdict", ("camera",), **common
        )
        self._newest = Gauge(
            "padim_edge_verdict_timestamp_seconds",
            "When the newest verdict was made, in seconds since 1970",
            ("camera",),
            **common,
        )
        self._events = Counter(
            "padim_edge_events",
            "Events that are no verdicts, by kind: source, model, drift, watch",
            ("camera", "kind"),
            **common,
        )
        for status in statuses:  # a series that is not there yet cannot be watched
            self._latency.labels(status.name)
            for kind in ("source", "model", "drift"):
                self._events.labels(status.name, kind)
        self._registry.register(_Asked(statuses, sinks))

    def __call__(self, seen: Seen) -> None:
        """Take note of a frame: an observer of `padim_edge.live.watch.Watch`."""
        outcome = seen.outcome
        if isinstance(outcome, Result):
            self._latency.labels(seen.camera).observe(max(seen.latency, 0.0))
            self._score.labels(seen.camera).set(outcome.score)
            self._threshold.labels(seen.camera).set(outcome.threshold)
            self._newest.labels(seen.camera).set(time.time())

    def said(self, event: Event) -> None:
        """Take note of an event that is no verdict: of `Recorder.told`."""
        self._events.labels(event.record["camera"], event.record["kind"]).inc()

    def page(self) -> Response:
        """What Prometheus reads; from any thread."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def server(self, address: str, limits: Limits = LIMITS) -> Server:
        """What answers under an address, such as ``prometheus://0.0.0.0:9464``, once it is started.

        Anybody who reaches it can read the metrics: they hold no pictures.

        Args:
            address: where.
            limits: of clients.

        Raises:
            UsageError: the address makes no sense.
        """
        parsed = check(address)

        async def page(_: Request) -> Response:
            return self.page()

        routes = [Route(path, page) for path in _PATHS]
        app = Starlette(routes=routes, exception_handlers=HANDLERS)
        return Server(app, parsed.host, parsed.port or 0, limits=limits, open_paths=_PATHS)


def check(address: str) -> Address:
    """An address of metrics, taken apart.

    Raises:
        UsageError: it makes no sense.
    """
    parsed = parse(address, "metrics", (METRICS,))
    parsed.check_options(())
    if not parsed.host or parsed.port is None or parsed.path.strip("/"):
        raise UsageError(f"{parsed}: name where to listen, like prometheus://127.0.0.1:9464")
    return parsed


class _Asked(Collector):
    """What cameras and sinks count themselves, read when it is asked for."""

    def __init__(
        self,
        statuses: Sequence[CameraStatus],
        sinks: Callable[[], Sequence[dict[str, Any]]],
    ) -> None:
        self._statuses, self._sinks = statuses, sinks

    def collect(self) -> Iterator[Metric]:
        for name in COUNTS:
            family = CounterMetricFamily(
                f"padim_edge_frames_{name}", _WHAT[name], labels=["camera"]
            )
            for status in self._statuses:
                family.add_metric([status.name], getattr(status, name))
            yield family
        connected = GaugeMetricFamily(
            "padim_edge_source_connected", "Whether frames may come", labels=["camera"]
        )
        rate = GaugeMetricFamily(
            "padim_edge_frame_rate", "Frames a second, over the last hundred", labels=["camera"]
        )
        for status in self._statuses:
            connected.add_metric([status.name], status.is_connected)
            rate.add_metric([status.name], status.rate)
        yield connected
        yield rate
        sinks = self._sinks()
        working = GaugeMetricFamily(
            "padim_edge_sink_working", "Whether a sink takes events", labels=["sink"]
        )
        backlog = GaugeMetricFamily(
            "padim_edge_sink_backlog", "Events that wait for a sink", labels=["sink"]
        )
        for sink in sinks:
            working.add_metric([sink["address"]], sink["state"] == "delivering")
            backlog.add_metric([sink["address"]], sink["backlog"])
        yield working
        yield backlog
        for name, what in (
            ("delivered", "Events that a sink took"),
            ("dropped", "Events that a sink never got, because the spool was full"),
            ("rejected", "Events that a sink refused for good"),
        ):
            family = CounterMetricFamily(f"padim_edge_sink_{name}", what, labels=["sink"])
            for sink in sinks:
                family.add_metric([sink["address"]], sink[name])
            yield family
