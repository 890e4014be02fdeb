"""The watch: frames of cameras are captured, judged and recorded, each in threads of their own.

source -> capture thread -> queue, by camera -> judge thread -> queue -> recorder thread
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from padim_edge.errors import UsageError
from padim_edge.live.board import CameraStatus, Seen, milliseconds
from padim_edge.live.capture import Camera, Capture, Frame
from padim_edge.live.judge import Judge
from padim_edge.live.latency import Latencies
from padim_edge.live.queues import FrameQueue, check_policy
from padim_edge.live.recorder import Recorder
from padim_edge.live.swap import ModelSlot
from padim_edge.live.systemd import Notifier

__all__ = ["Camera", "Observer", "Watch"]

Observer = Callable[[Seen], None]
"""Told of each frame, in the recorder's thread, once its event is recorded."""

POLL = 1.0
"""Seconds between looks at the files of models."""

PATIENCE = 5.0
"""Seconds that a source has to end in once it is closed."""


class Watch:
    """Captures, judges and records until it is stopped, or the last source has ended.

    Attributes:
        statuses: of the cameras, by name.

    Args:
        cameras: at least one, of different names.
        recorder: what is told of every event; the watch starts and closes it.
        batch: frames of cameras of one model that are judged in one run, at most. Frames are not
            waited for.
        count: frames of all cameras after which it ends by itself; None for no end.
        notifier: what the service manager is told.
        stats: seconds between lines of counts; 0 for none.
        tell: is given those lines.

    Raises:
        UsageError: no camera, two of one name, or no such policy.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        recorder: Recorder,
        *,
        batch: int = 1,
        count: int | None = None,
        notifier: Notifier | None = None,
        stats: float = 0.0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        names = [camera.name for camera in cameras]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"cameras are named {', '.join(names) or '-'}: each needs its own")
        for camera in cameras:
            check_policy(camera.policy)
        self._cameras, self._recorder = tuple(cameras), recorder
        self._notifier = notifier or Notifier({})
        self._stats, self._tell = stats, tell
        self.statuses = {
            camera.name: CameraStatus(
                camera.name, camera.address, camera.model, camera.policy or "latest"
            )
            for camera in cameras
        }
        # put() of a SimpleQueue is the one of its kind that a signal handler may call.
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._queue: FrameQueue[Frame] = FrameQueue(len(names))
        self._captures = [
            Capture(
                number,
                camera,
                self.statuses[camera.name],
                self._queue,
                self.say,
                lambda: self._orders.put("source ended"),
            )
            for number, camera in enumerate(cameras)
        ]
        self._judge = Judge(
            self._queue,
            recorder,
            batch,
            count,
            self.say,
            self._notifier.alive,
            lambda: self._orders.put("end"),
        )
        recorder.on_failure = lambda _: self._orders.put("end")
        self._stops = 0
        self._reloading = threading.Event()
        self._ended = threading.Event()

    @property
    def observers(self) -> list[Observer]:
        """Told of each frame, in the recorder's thread; append before `run`."""
        return self._recorder.observers

    def stop(self) -> None:
        """End `run`, in any thread or signal handler; returns at once.

        A second call ends it without waiting for what hangs.
        """
        self._orders.put("stop")

    def reload(self) -> None:
        """Open the followed files of all models again, in any thread or signal handler."""
        self._orders.put("reload")

    def say(self, kind: str, camera: str | None, message: str, **fields: Any) -> None:
        """Make an event, in any thread.

        Args:
            kind: "source", "model", "drift" or "watch".
            camera: its name; None or "" for all of them.
            message: for people.
            fields: what else is in the record.
        """
        self._recorder.say(kind, camera or "", message, **fields)

    def run(self) -> None:
        """Watch until `stop`, or until all sources have ended; all is recorded when it returns.

        Raises:
            PadimEdgeError: a source can never be read, an engine fails again and again, or
                events cannot be recorded.
        """
        models = threading.Thread(target=self._follow, name="padim-edge-models", daemon=True)
        with self._listening():
            self._recorder.start()
            self.say("watch", "", "begins")
            self._judge.start()
            for capture in self._captures:
                capture.start()
            models.start()
            self._notifier.ready()
            try:
                self._wait()
            finally:
                self._ended.set()  # before that is said: nothing is ready any more
                self._notifier.stopping()
                self._wind_up()
        for error in (
            self._recorder.failed,
            self._judge.failed,
            *(capture.failed for capture in self._captures),
        ):
            if error is not None:
                raise error

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """What slots have to say becomes events of their cameras."""

        def listener(camera: Camera) -> Callable[[str, Path], None]:
            return lambda message, path: self.say("model", camera.name, message, model=path.name)

        listeners = [(camera.model, listener(camera)) for camera in self._cameras]
        for slot, told in listeners:
            slot.listeners.append(told)
        try:
            yield
        finally:
            for slot, told in listeners:
                slot.listeners.remove(told)

    def _wait(self) -> None:
        """Do what is ordered, until the end is."""
        every = self._stats or 10.0
        next_line = time.monotonic() + every
        while True:
            try:
                order = self._orders.get(timeout=max(next_line - time.monotonic(), 0.0))
            except queue.Empty:
                next_line += every
                self._report()
                continue
            if order in ("stop", "end"):
                self._stops += order == "stop"  # a second one waits for nothing
                return
            if order == "reload":
                self._reloading.set()
            elif any(capture.failed for capture in self._captures) or all(
                capture.join(0.0) or self.statuses[camera.name].source == "ended"
                for camera, capture in zip(self._cameras, self._captures, strict=True)
            ):
                return

    def _wind_up(self) -> None:
        """Stop capturing; judge what waits, or drop it; record it all."""
        self._judge.give_up()
        for capture in self._captures:
            capture.stop()
        deadline = time.monotonic() + PATIENCE
        for number, (camera, capture) in enumerate(zip(self._cameras, self._captures, strict=True)):
            if not self._patiently(capture.join, deadline):
                self.say("source", camera.name, "does not end, and is left behind")
            status = self.statuses[camera.name]
            if status.policy == "latest" and status.source != "ended":
                for frame in self._queue.drop(number):
                    frame.release()
                    status.drop()
        self._queue.close()
        self._patiently(self._judge.join)
        self._patiently(self._recorder.idle)
        for status in self.statuses.values():
            self.say("watch", status.name, f"ends: {summary(status)}", **counts(status))
        self._patiently(self._recorder.close)

    def _patiently(self, wait: Callable[[float], bool], deadline: float = float("inf")) -> bool:
        """Wait for the end of a thread, unless `stop` was called a second time; whether it came."""
        while True:
            if wait(0.05):
                return True
            with contextlib.suppress(queue.Empty):
                while True:
                    self._stops += self._orders.get_nowait() == "stop"
            if self._stops > 1 or time.monotonic() >= deadline:
                return False

    def _follow(self) -> None:
        """Look at the files of models again and again, in its own thread: opening takes long."""
        slots: list[ModelSlot] = list(dict.fromkeys(camera.model for camera in self._cameras))
        while not self._ended.is_set():
            now = self._reloading.wait(POLL)
            if self._ended.is_set():
                return
            if now:
                self._reloading.clear()
                self._notifier.reloading()
            for slot in slots:
                slot.poll(now)
            if now and not self._ended.is_set():
                self._notifier.ready()

    def _report(self) -> None:
        """Counts for the service manager, and the line of --stats."""
        lines = []
        for status in self.statuses.values():
            latencies = status.interval
            if self._stats:
                latencies = Latencies()
                latencies.take(status.interval)
            lines.append(f"{status.name}: {status.rate:.1f} frames/s, {summary(status, latencies)}")
        if self._stats:
            with contextlib.suppress(OSError):  # who read them has gone
                for line in lines:
                    self._tell(line)
        self._notifier.status("; ".join(lines))


def summary(status: CameraStatus, latencies: Latencies | None = None) -> str:
    """Counts and latency of a camera, in words."""
    latencies = latencies or status.latencies
    parts = [f"{status.judged} judged, {status.anomalous} anomalous"]
    for name in ("unreadable", "untaught", "dropped", "lost"):
        if count := getattr(status, name):
            parts.append(f"{count} {name}")
    if latencies.count:
        p50, p99 = (milliseconds(latencies.quantile(share)) for share in (0.5, 0.99))
        parts.append(f"latency p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return ", ".join(parts)


def counts(status: CameraStatus) -> dict[str, Any]:
    """Counts and latency of a camera, for the record of an event."""
    known = status.to_json()
    return {name: known[name] for name in ("captured", "judged", "anomalous", "unreadable")} | {
        name: known[name] for name in ("dropped", "lost", "untaught", "latency_ms")
    }
