"""Pictures of the page: small JPEGs, with the heat map or without."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from PIL import Image

from padim_edge.detect.detector import Result
from padim_edge.detect.overlay import Scale, overlay
from padim_edge.errors import ImageError, UsageError
from padim_edge.images.frames import Frame
from padim_edge.live.board import Seen
from padim_edge.live.pictures import shrunk
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
        model: whose good images say where the colour scale begins, and what is white in its files.
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
        pixels = shrunk(picture, longest, model.bit_depth)
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
