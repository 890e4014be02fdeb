"""A source that gives what a test says, when it says so."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from padim_edge.images.frames import Frame
from padim_edge.live.board import Seen
from padim_edge.live.event import Event
from padim_edge.live.recorder import Recorder
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.swap import ModelSlot
from padim_edge.live.watch import Camera, Watch

DEADLINE = 60.0
"""Seconds after which a test has failed, however slow the machine is."""

END = object()
"""In a script: there are no more frames, without an error."""


class Scripted:
    """Gives what is put into it: frames' pixels, an exception to raise, `END`.

    Frames are numbered from 0 by each `Scripted`, as a camera that is opened again does.
    """

    def __init__(self, script: Sequence[Any] = (), is_live: bool = True) -> None:
        self.address = "scripted:"
        self.is_live = is_live
        self._script: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for step in script:
            self._script.put(step)

    def put(self, step: Any) -> None:
        self._script.put(step)

    def describe(self) -> str:
        return "scripted frames"

    def __iter__(self) -> Iterator[Captured]:
        number = 0
        while (step := self._script.get()) is not END:
            if isinstance(step, Exception) and isinstance(step, SourceError):
                raise step
            if isinstance(step, int):  # frames that were lost on the way
                number += step
                continue
            picture = step if isinstance(step, Exception | Path) else Frame(step)
            yield Captured(picture, number, time.time())
            number += 1

    def close(self) -> None:
        self._script.put(END)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames no two of which score alike."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]


@dataclass
class Kept:
    """What a watch recorded.

    Attributes:
        seen: every frame that was dealt with.
        said: every other event.
        events: all that were recorded, in order.
    """

    seen: list[Seen] = field(default_factory=list)
    said: list[Event] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def append(self, events: Sequence[Event], _keys: Sequence[str] = ()) -> Sequence[Event]:
        """A store of the recorder's."""
        self.events.extend(events)
        return ()

    def messages(self, kind: str) -> list[str]:
        return [event.record["message"] for event in self.said if event.record["kind"] == kind]

    def sequences(self, camera: str = "camera") -> list[int]:
        return [seen.captured.sequence for seen in self.seen if seen.camera == camera]


def watching(cameras: Sequence[Camera], **options: Any) -> tuple[Watch, Kept]:
    """A watch, and what it will have recorded."""
    kept = Kept()
    recorder = Recorder(kept)
    recorder.observers.append(kept.seen.append)
    recorder.told.append(kept.said.append)
    return Watch(cameras, recorder, **options), kept


def camera(
    slot: ModelSlot, *sources: Any, name: str = "camera", policy: str | None = None
) -> Camera:
    """A camera whose source is another one each time that it is opened; an exception is raised."""
    left = list(sources)

    def open_next() -> Any:
        source = left.pop(0)
        if isinstance(source, Exception):
            raise source
        return source

    return Camera(name, open_next, "scripted:", slot, policy)


def wait_for(condition: Any, what: str = "what was waited for") -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.005)
