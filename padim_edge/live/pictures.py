"""A frame as a picture for people: JPEG."""

from __future__ import annotations

import io

from PIL import Image

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.decode import load_frame
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.source import Captured

QUALITY = 90


def to_jpeg(captured: Captured, longest: int | None = None, quality: int = QUALITY) -> bytes | None:
    """A frame as JPEG.

    Args:
        captured: a frame of any pixel format, or a file.
        longest: pixels of the longer side at most; None for all.
        quality: of the JPEG, up to 100.

    Returns:
        None if there is no picture: it could not be read, or is in the memory of a GPU.
    """
    picture = captured.picture
    if isinstance(picture, ImageError):
        return None
    try:
        frame = picture if isinstance(picture, Frame) else load_frame(picture)
        height, width = frame.size
        scale = min(1.0, (longest or max(height, width)) / max(height, width))
        size = max(round(scale * height), 1), max(round(scale * width), 1)
        pixels = Preprocess.whole(size)(frame)
    except (ImageError, UsageError):
        return None
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=quality)
    return written.getvalue()
