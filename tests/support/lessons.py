"""A teacher over a real slot, and frames for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.images.frames import Frame
from padim_edge.live.board import Seen
from padim_edge.live.event import Event
from padim_edge.live.source import Captured
from padim_edge.live.swap import ModelSlot
from padim_edge.live.teach import Teacher

_numbers = itertools.count()


def opened(path: Path) -> Detector:
    """As a watch opens a detector here."""
    return Detector(path, "ort", threads=1)


def captured(picture: Any, number: int | None = None) -> Captured:
    """A frame of a camera: of a file, or of pixels."""
    if isinstance(picture, str | Path):
        picture = np.asarray(Image.open(picture).convert("RGB"))
    frame = picture if isinstance(picture, Frame) else Frame(picture)
    number = next(_numbers) if number is None else number
    return Captured(frame, number, 1000.0 + number)


def seen(slot: ModelSlot, picture: Any, camera: str = "camera") -> Seen:
    """A frame that was judged, as an observer is told of it."""
    frame = captured(picture)
    with slot.using() as detector:
        outcome = detector(frame.picture) if detector else None
    event = Event(f"e{frame.sequence}", {"kind": "verdict"})
    return Seen(camera, frame, outcome, event, 0.01)


@contextmanager
def teaching(folder: Path, embedding: Path, **options: Any) -> Iterator[tuple[Teacher, ModelSlot]]:
    """A teacher with a slot of its own."""
    slot = ModelSlot(opened)
    options = {"threads": 1, "every": 0.0} | options
    try:
        with Teacher(folder, embedding, slot, **options) as teacher:
            yield teacher, slot
    finally:
        slot.close()
