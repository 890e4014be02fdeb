"""A page over a board that a test writes on, and what a viewer of it gets."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from padim_edge.detect.calibration import Row
from padim_edge.detect.detector import Detector
from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.decode import load_frame
from padim_edge.live.board import Board, CameraStatus, Seen
from padim_edge.live.event import Event
from padim_edge.live.page.teaching import Lesson
from padim_edge.live.source import Captured
from padim_edge.live.swap import ModelSlot

SCRIPT = "<script>alert('\"&amp;')</script>"


class Line:
    """Cameras of one real detector, whose frames a test shows to a board.

    Attributes:
        board: what is now.
        slot: the detector.
    """

    def __init__(self, model: Path, names: tuple[str, ...], sinks: Any = tuple) -> None:
        self.slot = ModelSlot(lambda path: Detector(path, "ort", 1), model)
        statuses = [
            CameraStatus(name, "rtsp://10.0.0.7/line", self.slot, "latest") for name in names
        ]
        for status in statuses:
            status.source, status.is_connected = "96 x 96, 8 frames a second", True
        self.board = Board(statuses, sinks)
        self.number = 0

    def show(
        self, photo: Path | None, camera: str | None = None, name: str = "", error: str = ""
    ) -> Seen:
        """Judge a photo, and note it; None for a frame that could not be read."""
        camera = camera or next(iter(self.board.cameras))
        status = self.board.cameras[camera].status
        self.number += 1
        picture = load_frame(photo) if photo else ImageError(error)
        captured = Captured(picture, self.number, time.time(), name)
        outcome: Any = picture
        status.arrived()
        if photo:
            with self.slot.using() as detector:
                outcome = detector(picture)
            status.judged += 1
            status.anomalous += outcome.is_anomalous
            status.latencies.add(0.02)
        seen = Seen(camera, captured, outcome, Event(f"e{self.number:06d}", {}), 0.02)
        self.board(seen)
        return seen

    def say(self, kind: str, message: str, camera: str = "", **fields: Any) -> None:
        self.number += 1
        record = {"time": time.time(), "camera": camera, "kind": kind, "message": message}
        record |= fields
        self.board.said(Event(f"e{self.number:06d}", record))


@dataclass
class Pupil:
    """Teaches nothing, and knows what it was asked for."""

    now: Lesson = field(default_factory=Lesson)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    refuses: str = ""
    found: list[Row] = field(default_factory=list)

    def lesson(self) -> Lesson:
        return self.now

    def _asked(self, *what: Any) -> None:
        if self.refuses:
            raise PadimEdgeError(self.refuses)
        self.asked.append(what)

    def take(self, on: bool) -> None:
        self._asked("take", on)
        self.now = replace(self.now, is_taking=on)

    def fit(self) -> None:
        self._asked("fit")

    def was_good(self, event: str) -> None:
        self._asked("good", event)

    def was_bad(self, event: str) -> None:
        self._asked("bad", event)

    def take_back(self, event: str) -> None:
        self._asked("take back", event)

    def recall(self) -> list[Row]:
        self._asked("recall")
        return self.found

    def leave_out(self, part: str) -> None:
        self._asked("leave out", part)

    def undo(self, step: int | None = None) -> None:
        self._asked("undo", step)

    def roll_back(self, version: str) -> None:
        self._asked("roll back", version)


class Viewer:
    """One that takes parts of the stream."""

    def __init__(self, url: str, camera: str = "", heat: bool = True) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        named = f"&camera={quote(camera)}" if camera else ""
        self._connection.request("GET", f"/api/live?heat={int(heat)}{named}")
        self.response = self._connection.getresponse()

    def part(self) -> tuple[dict[str, Any], bytes]:
        """The next one: what it says, and its JPEG."""
        told = json.loads(self.response.readline())
        return told, self.response.read(told["bytes"])

    def parts(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        while True:
            yield self.part()

    def close(self) -> None:
        self.response.close()
        self._connection.close()
