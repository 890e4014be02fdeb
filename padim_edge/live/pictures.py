"""A frame as a picture for people: JPEG."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.decode import load_frame
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess

QUALITY = 90


def to_jpeg(picture: Frame | Path | bytes | ImageError) -> bytes | None:
    """A frame in full as JPEG.

    Args:
        picture: a frame of any pixel format; an image file, or its bytes.

    Returns:
        None if there is no picture: it could not be read, or is in the memory of a GPU.
    """
    if isinstance(picture, ImageError):
        return None
    try:
        frame = picture if isinstance(picture, Frame) else load_frame(picture)
        pixels = Preprocess.whole(frame.size)(frame)
    except (ImageError, UsageError):
        return None
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=QUALITY)
    return written.getvalue()
