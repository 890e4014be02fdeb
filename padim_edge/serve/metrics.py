"""What Prometheus is told."""

from __future__ import annotations

import time

from padim_edge.errors import MissingDependencyError

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
except ImportError as error:
    raise MissingDependencyError("serving", "prometheus_client", "serve") from error
try:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError("serving", "starlette", "serve") from error

GONE = 499
"""The code of a request whose client did not wait for the answer, as nginx has it."""


class Metrics:
    """Counters of one service.

    Attributes:
        batch: images of a run of the engine, by model.
        bodies: bytes of bodies and answers in memory.
        judged: images judged, by model and decision.
        queue: images that wait or are judged, by model.
        reloads: by model and what came of it.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "padim_edge_requests",
            "Requests answered; 499: the client went away before.",
            ("endpoint", "model", "code"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "padim_edge_request_seconds",
            "From the first byte of a request's body to the last of the answer.",
            ("endpoint", "model"),
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=self._registry,
        )
        self.batch = Histogram(
            "padim_edge_batch_images",
            "Images of a run of the engine.",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self._registry,
        )
        self.queue = Gauge(
            "padim_edge_queue_images",
            "Images that are being decoded, wait, or are judged.",
            ("model",),
            registry=self._registry,
        )
        self.bodies = Gauge(
            "padim_edge_bodies_bytes", "Bodies and answers in memory.", registry=self._registry
        )
        self.judged = Counter(
            "padim_edge_judged", "Images judged.", ("model", "decision"), registry=self._registry
        )
        self.reloads = Counter(
            "padim_edge_reloads",
            "Files loaded again.",
            ("model", "result"),
            registry=self._registry,
        )

    def answer(self) -> Response:
        """All of them, as Prometheus reads it."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def counted(self, app: ASGIApp) -> ASGIApp:
        """An application whose requests are counted."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            begun, code = time.perf_counter(), GONE

            async def sending(message: Message) -> None:
                nonlocal code
                if message["type"] == "http.response.start":
                    code = message["status"]
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                # Set by the router, and of a few values: a label must not be the client's choice.
                endpoint = getattr(scope.get("endpoint"), "__name__", "unknown").strip("_")
                model = scope.get("padim_edge_model", "")
                self._requests.labels(endpoint, model, code).inc()
                self._seconds.labels(endpoint, model).observe(time.perf_counter() - begun)

        return counting
