"""What is now: for readers in other threads, the page and the metrics."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from padim_edge.detect.detector import Result
from padim_edge.errors import ImageError
from padim_edge.live.album import Album, Pictures, kept
from padim_edge.live.event import Event
from padim_edge.live.latency import Latencies
from padim_edge.live.source import Captured
from padim_edge.live.swap import ModelSlot

POINTS = 600
"""Verdicts of a camera that are kept for its chart."""

MESSAGES = 100
"""Events that are no verdicts (a camera lost, a model swapped), of all cameras."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame that was dealt with: what observers of a watch are told, in the recorder's thread.

    Attributes:
        camera: its name.
        captured: the frame, its sequence counted over every reconnect.
        outcome: the result, why there is none, or None while the camera has no detector.
        event: recorded already; of a frame without a detector, one that is not.
        latency: seconds from exposure or arrival to the decision.
    """

    camera: str
    captured: Captured
    outcome: Result | ImageError | None
    event: Event
    latency: float


@dataclass(frozen=True)
class Point:
    """A verdict in a chart.

    Attributes:
        id: of its event.
        time: seconds since 1970, of the frame.
        score: may be no number.
        threshold: the one of then.
        is_anomalous: what was decided.
        latency: seconds.
    """

    id: str
    time: float
    score: float
    threshold: float
    is_anomalous: bool
    latency: float


@dataclass(eq=False)
class CameraStatus:
    """Counts of a camera, read by any thread; each is written by one alone, but for ``dropped``.

    Attributes:
        name: what events call it.
        address: without a password.
        model: holds its detector.
        policy: "latest" or "all".
        source: what its source does: "opening", what was opened, why it is lost, "ended".
        is_connected: whether frames may come.
        captured: frames that came from the source.
        lost: frames before they came to us, by the gaps of the source's count.
        dropped: frames that came and were not judged, because a newer one did (policy latest).
        judged: frames with a result.
        anomalous: of those.
        unreadable: frames that could not be judged.
        untaught: frames that came while there was no detector.
        latencies: of judged frames, from exposure or arrival to the decision.
        interval: of those since the last line of --stats.
    """

    name: str
    address: str
    model: ModelSlot
    policy: str
    source: str = "opening"
    is_connected: bool = False
    captured: int = 0
    lost: int = 0
    dropped: int = 0
    judged: int = 0
    anomalous: int = 0
    unreadable: int = 0
    untaught: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    interval: Latencies = field(default_factory=Latencies)
    began: float = field(default_factory=time.monotonic)
    _dropping: threading.Lock = field(default_factory=threading.Lock)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def rate(self) -> float:
        """Frames a second that came, over the last hundred; 0 if there were none for a while."""
        times = list(self._recent)
        if len(times) < 2:
            return 0.0
        seconds = max(time.monotonic(), times[-1]) - times[0]
        return len(times) / seconds if seconds else 0.0

    def drop(self) -> None:
        """Count a frame that is not judged; from any thread, for three of them do so."""
        with self._dropping:
            self.dropped += 1

    def arrived(self) -> None:
        """Count a frame that came from the source."""
        self.captured += 1
        self._recent.append(time.monotonic())

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; latencies in milliseconds."""
        return {
            "name": self.name,
            "address": self.address,
            "policy": self.policy,
            "source": self.source,
            "is_connected": self.is_connected,
            "model": str(self.model.path) if self.model.path else None,
            "threshold": self.model.threshold,
            "threshold_file": str(file) if (file := self.model.threshold_file) else None,
            "rate": round(self.rate, 2),
            **{name: getattr(self, name) for name in COUNTS},
            "latency_ms": {
                "p50": milliseconds(self.latencies.quantile(0.5)),
                "p99": milliseconds(self.latencies.quantile(0.99)),
                "longest": milliseconds(self.latencies.longest),
            },
        }


COUNTS = ("captured", "lost", "dropped", "judged", "anomalous", "unreadable", "untaught")
"""Of a `CameraStatus`."""


def milliseconds(seconds: float | None) -> float | None:
    """For JSON, to a hundredth."""
    return None if seconds is None else round(1e3 * seconds, 2)


class CameraNow:
    """What the board keeps of one camera; read it under `Board.reading`, or take copies.

    Attributes:
        status: its counts.
        newest: the frame that was last dealt with; None before the first.
        points: the last verdicts, oldest first.
        anomalies: the last anomalous frames, with their pictures.
    """

    def __init__(self, status: CameraStatus) -> None:
        self.status = status
        self.newest: Seen | None = None
        self.points: deque[Point] = deque(maxlen=POINTS)
        self.anomalies = Album()


class Board:
    """What is now. An observer of a watch; others read it in their own threads.

    Attributes:
        cameras: by name.
        version: grows with whatever is new.
        messages: the last events that are no verdicts, oldest first.
        drifts: those that said that a drift began which has not ended, by camera and statistic.
        sinks: gives the status of each sink, as plain values.

    Args:
        statuses: of the cameras.
        sinks: called for the status of each sink; in any thread.
    """

    def __init__(
        self,
        statuses: Sequence[CameraStatus],
        sinks: Callable[[], Sequence[dict[str, Any]]] = tuple,
    ) -> None:
        self.cameras = {status.name: CameraNow(status) for status in statuses}
        self.sinks = sinks
        self.messages: deque[Event] = deque(maxlen=MESSAGES)
        self.drifts: dict[tuple[str, str], Event] = {}
        self.version = 0
        self.reading = threading.Lock()
        albums = [camera.anomalies for camera in self.cameras.values()]
        self._pictures = Pictures(albums, self.reading, self._new)

    def __call__(self, seen: Seen) -> None:
        """Take note of a frame: an observer of `padim_edge.live.watch.Watch`."""
        camera = self.cameras[seen.camera]
        outcome = seen.outcome
        is_anomalous = isinstance(outcome, Result) and outcome.is_anomalous
        anomaly = kept(seen, camera.status.model.bit_depth) if is_anomalous else None
        with self.reading:
            camera.newest = seen
            if isinstance(outcome, Result):
                camera.points.append(
                    Point(
                        seen.event.id,
                        seen.captured.time,
                        outcome.score,
                        outcome.threshold,
                        outcome.is_anomalous,
                        seen.latency,
                    )
                )
            if anomaly is not None:
                camera.anomalies.add(anomaly)
                self._pictures.begin()
            self._new()

    def said(self, event: Event) -> None:
        """Take note of an event that is no verdict: of `Recorder.told`."""
        with self.reading:
            self.messages.append(event)
            record = event.record
            if record["kind"] == "drift" and "statistic" in record:
                drift = record["camera"], record["statistic"]
                self.drifts.pop(drift, None)
                if record["begins"]:
                    self.drifts[drift] = event
            self._new()

    def _new(self) -> None:
        self.version += 1

    def snapshot(self) -> dict[str, Any]:
        """Counts, source, latency of every camera, status of every sink: plain values."""
        return {
            "version": self.version,
            "time": time.time(),
            "cameras": [camera.status.to_json() for camera in self.cameras.values()],
            "sinks": list(self.sinks()),
        }
