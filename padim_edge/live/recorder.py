"""The recorder: every event gets its id, is written durably, and is told to who listens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from padim_edge.detect.detector import Result
from padim_edge.detect.judging import Verdict
from padim_edge.errors import ImageError, PadimEdgeError, first_line
from padim_edge.live.board import CameraStatus, Seen, milliseconds
from padim_edge.live.event import Event
from padim_edge.live.pictures import to_jpeg
from padim_edge.live.source import Captured

WAITING = 8
"""Judged frames that wait to be recorded, at most; the judge waits then. Each holds its pixels."""

TOGETHER = 64
"""Events that are written at once, at most."""

PAUSES = (0.1, 0.4, 1.5)
"""Seconds between tries to write events down. After the last they are let go, counted, and said:
a full disk must not stop the judging, which the coil of a PLC waits for. From then on each is tried
once, until one can be written: the disk is full for hours, and the judge waits for the recorder."""


class Store(Protocol):
    """Where events are kept until they are delivered; see `padim_edge.live.spool.Spool`."""

    def append(self, events: Sequence[Event], keys: Sequence[str] = ()) -> Sequence[Event]:
        """Keep them, and that these keys were judged, durably; all of it or nothing.

        Returns:
            What the store has to say itself.

        Raises:
            PadimEdgeError: they are not kept.
        """


@dataclass(frozen=True, eq=False)
class Judged:
    """A frame on its way to the recorder.

    Attributes:
        status: of its camera.
        captured: the frame.
        outcome: what became of it; None for a frame without a detector.
        latency: seconds from exposure or arrival to the decision.
        model: the name of the detector's file.
    """

    status: CameraStatus
    captured: Captured
    outcome: Result | ImageError | None
    latency: float
    model: str | None


@dataclass(frozen=True, eq=False)
class _Said:
    """An event that is no verdict, without an id yet."""

    kind: str
    camera: str
    message: str
    fields: dict[str, Any]
    time: float = field(default_factory=time.time)


class Recorder:
    """Writes events down, in a thread of its own, in the order in which they come.

    An event is recorded once the store has it; observers are told after that.

    Attributes:
        observers: told of each frame, in this thread.
        told: told of each event that is no verdict, in this thread.
        failed: what ended it before its time.
        on_failure: called in the recorder's thread when an event cannot be recorded.

    Args:
        store: where events are kept durably; None if they are not.
        lines: is given each event as a line of JSON, such as a function that writes it to stdout.
        pictures: whether events of anomalous frames have a JPEG, for a sink that wants one of each.
    """

    def __init__(
        self,
        store: Store | None = None,
        lines: Callable[[str], None] | None = None,
        pictures: bool = False,
    ) -> None:
        self.observers: list[Callable[[Seen], None]] = []
        self.told: list[Callable[[Event], None]] = []
        self.failed: Exception | None = None
        self.on_failure: Callable[[Exception], None] = lambda _: None
        self._store, self._lines, self._pictures = store, lines, pictures
        self._began = datetime.now(timezone.utc)
        self._number = 0
        self._entries: deque[Judged | _Said] = deque()
        self._frames = 0
        self._busy = False
        self._changed = threading.Condition()
        self._closed = False
        self._complaint = ""
        self._lost = 0
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="padim-edge-recorder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, judged: Judged) -> bool:
        """Hand on a frame; waits while too many are under way. False if nothing is recorded."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames < WAITING or self._is_over())
            if self._is_over():
                return False
            self._frames += 1
            self._entries.append(judged)
            self._changed.notify_all()
            return True

    def say(self, kind: str, camera: str, message: str, **fields: Any) -> None:
        """Record an event that is no verdict, of a camera, or of all (""). Never waits."""
        with self._changed:
            self._entries.append(_Said(kind, camera, message, fields))
            self._changed.notify_all()

    def idle(self, timeout: float | None = None) -> bool:
        """Wait until all that came is recorded; whether it is, or never will be."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._entries or self._busy) or self.failed is not None, timeout
            )

    def close(self, timeout: float | None = None) -> bool:
        """Record what there is, and end; whether it has ended in time. Twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._hurry.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _is_over(self) -> bool:
        return self._closed or self.failed is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closed)
                if not self._entries:
                    break
                self._busy = True
                entries = [
                    self._entries.popleft() for _ in range(min(len(self._entries), TOGETHER))
                ]
            try:
                self._record(entries)
            except Exception as error:  # a full disk, a reader of stdout that is gone
                with self._changed:
                    self.failed = error
                    self._changed.notify_all()
                self.on_failure(error)
                return
            with self._changed:
                self._frames -= sum(isinstance(entry, Judged) for entry in entries)
                self._busy = False
                self._changed.notify_all()
        if self._lost:  # it cannot be recorded either, but people can be told
            self._tell(self.told, self._event(self._of_lost()))

    def _record(self, entries: Sequence[Judged | _Said]) -> None:
        made = [(entry, self._event(entry)) for entry in entries]
        recorded = [
            event for entry, event in made if isinstance(entry, _Said) or entry.outcome is not None
        ]
        keys = [
            key
            for entry in entries
            if isinstance(entry, Judged) and entry.outcome is not None
            for key in entry.captured.keys
        ]
        if self._store is not None and recorded:
            self._keep(self._store, recorded, keys)
        if self._lines is not None:
            for event in recorded:
                self._lines(event.to_json())
        for entry, event in made:
            if isinstance(entry, Judged):
                self._count(entry)
                seen = Seen(entry.status.name, entry.captured, entry.outcome, event, entry.latency)
                self._tell(self.observers, seen)
            else:
                self._tell(self.told, event)

    def _keep(self, store: Store, events: Sequence[Event], keys: Sequence[str]) -> None:
        for pause in (*(() if self._lost else PAUSES), None):
            try:
                notices = store.append(events, keys)
            except PadimEdgeError as error:
                if pause is None:
                    if not self._lost:
                        self._tell(self.told, self._event(_Said("watch", "", str(error), {})))
                    self._lost += len(events)
                else:
                    self._hurry.wait(pause)
                continue
            for notice in notices:
                self._tell(self.told, notice)
            if self._lost:
                lost = self._of_lost()
                self.say(lost.kind, lost.camera, lost.message)
                self._lost = 0
            return

    def _of_lost(self) -> _Said:
        message = f"{self._lost} events could not be recorded, and are lost"
        return _Said("watch", "", message, {})

    def _tell(self, listeners: Sequence[Callable[[Any], None]], news: Seen | Event) -> None:
        """Tell all; one that fails is said, once in a row, and stops nobody."""
        for listener in list(listeners):
            try:
                listener(news)
            except Exception as error:
                self._complain(getattr(listener, "__qualname__", type(listener).__name__), error)

    def _complain(self, name: str, error: Exception) -> None:
        """Say that something beside judging failed, once in a row."""
        complaint = f"{type(error).__name__}: {first_line(error)}"
        if complaint != self._complaint:
            self._complaint = complaint
            self.say("watch", "", f"this should not happen: {name} failed ({complaint})")

    @staticmethod
    def _count(entry: Judged) -> None:
        status, outcome = entry.status, entry.outcome
        if outcome is None:
            status.untaught += 1
        elif isinstance(outcome, ImageError):
            status.unreadable += 1
        else:
            status.judged += 1
            status.anomalous += outcome.is_anomalous
            status.latencies.add(entry.latency)
            status.interval.add(entry.latency)

    def _event(self, entry: Judged | _Said) -> Event:
        self._number += 1
        name = f"{self._began:%Y%m%dT%H%M%S.%fZ}-{self._number:010d}"
        if isinstance(entry, _Said):
            record = {
                "id": name,
                "time": entry.time,
                "camera": entry.camera,
                "kind": entry.kind,
                "message": entry.message,
                **entry.fields,
            }
            return Event(name, record)
        captured, outcome = entry.captured, entry.outcome
        kind = "frame"
        details: dict[str, Any] = {}
        if outcome is not None:
            kind = "error" if isinstance(outcome, ImageError) else "verdict"
            path = captured.picture if isinstance(captured.picture, Path) else None
            details = Verdict(path or captured.name, outcome).to_json()
            if not details.get("name", "-"):
                del details["name"]
        if entry.model is not None:
            details["model"] = entry.model
        record = {
            "id": name,
            "time": captured.time,
            "camera": entry.status.name,
            "kind": kind,
            "sequence": captured.sequence,
            **details,
            "latency_ms": milliseconds(entry.latency),
        }
        picture = None
        if self._pictures and isinstance(outcome, Result) and outcome.is_anomalous:
            try:
                picture = to_jpeg(captured.picture, entry.status.model.bit_depth)
            except Exception as error:  # whatever an encoder raises: the event goes without one
                self._complain("making a picture", error)
        return Event(name, record, picture)
