"""Pictures of the page: small JPEGs, with the heat map or without."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.detector import Result
from padim_edge.detect.overlay import Scale, overlay
from padim_edge.errors import ImageError, UsageError
from padim_edge.images.decode import load_frame
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.board import Seen
from padim_edge.live.swap import ModelSlot

LIVE = 800
"""Pixels on the long side of the live picture."""

QUALITY = 80
"""Of every JPEG."""


def draw(
    seen: Seen, model: ModelSlot, longest: int, heat: bool, source: Frame | bytes | None = None
) -> bytes | None:
    """A frame as JPEG.

    Args:
        seen: the frame.
        model: whose good images say where the colour scale begins.
        longest: pixels on the long side, at most.
        heat: whether the score map is drawn over it, where there is one.
        source: the frame, or bytes of an image file, where that of ``seen`` is let go of.

    Returns:
        None if there is no picture: it could not be read, or is in the memory of a GPU.
    """
    picture = source if source is not None else seen.captured.picture
    if isinstance(picture, ImageError):
        return None
    try:
        pixels = _pixels(picture, longest)
    except (ImageError, UsageError):
        return None
    image = Image.fromarray(pixels)
    result = seen.outcome
    if heat and isinstance(result, Result) and np.isfinite(result.score_map).all():
        height, width = pixels.shape[:2]
        across, down = width / result.size[1], height / result.size[0]
        left, top, right, bottom = result.seen
        info = model.detector_info
        good = info.good_scores if info else (result.threshold,)
        image = overlay(
            pixels,
            result.score_map,
            (left * across, top * down, right * across, bottom * down),
            result.threshold,
            result.score,
            Scale.of(good, result.threshold).low,
            result.mask,
            caption=False,
        )
    written = io.BytesIO()
    image.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def _pixels(source: Frame | Path | bytes, longest: int) -> NDArray[np.uint8]:
    """RGB of at most this size: shrunk in the camera's own format, before colours are made.

    Raises:
        ImageError: it cannot be decoded.
        UsageError: it is in the memory of a GPU.
    """

    def shrink(height: int, width: int) -> int:
        return next(by for by in (8, 4, 2, 1) if by == 1 or max(height, width) >= by * longest)

    frame = source if isinstance(source, Frame) else load_frame(source, shrink)
    height, width = frame.size
    scale = min(1.0, longest / max(height, width))
    size = max(round(scale * height), 1), max(round(scale * width), 1)
    return Preprocess.whole(size)(frame)


class Drawn:
    """Pictures that were drawn, in bounded memory; in any thread.

    Args:
        most: bytes that are kept.
    """

    def __init__(self, most: int = 32 << 20) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()  # one picture is drawn at a time, whoever asks for how many

    def get(self, key: Hashable, make: Callable[[], bytes | None]) -> bytes | None:
        """The picture of this name, drawn by ``make`` unless it is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            picture = make()
            if picture is not None:
                self._kept[key] = picture
                self._size += len(picture)
            while self._size > self._most and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])
            return picture
