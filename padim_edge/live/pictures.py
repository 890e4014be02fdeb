"""A frame as a picture for people: JPEG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from padim_edge.errors import ImageError, UsageError
from padim_edge.images.decode import load_frame
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess

QUALITY = 90

JPEG_SIDE = 65_500
"""Pixels on a side that JPEG's encoder takes (libjpeg's JPEG_MAX_DIMENSION)."""


def to_jpeg(
    picture: Frame | Path | bytes | ImageError,
    bit_depth: int | None = None,
    longest: int = JPEG_SIDE,
) -> bytes | None:
    """A frame as JPEG.

    Args:
        picture: a frame of any pixel format; an image file, or its bytes.
        bit_depth: of grey values of 16 bits in a file, as the detector was fitted.
        longest: pixels on the long side, at most.

    Returns:
        None if there is no picture: it could not be read, or is in the memory of a GPU.
    """
    if isinstance(picture, ImageError):
        return None
    try:
        pixels = shrunk(picture, longest, bit_depth)
    except (ImageError, UsageError):
        return None
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def is_within(jpeg: bytes, longest: int) -> bool:
    """Whether a picture of `to_jpeg` has so many pixels on its long side at most.

    Its head says it; nothing is decoded.
    """
    return max(JpegImageFile(io.BytesIO(jpeg)).size) <= longest


def shrunk(
    picture: Frame | Path | bytes, longest: int, bit_depth: int | None = None
) -> NDArray[np.uint8]:
    """RGB of at most this size: shrunk in the camera's own format, before colours are made.

    Args:
        picture: as of `to_jpeg`.
        longest: pixels on the long side, at most.
        bit_depth: as of `to_jpeg`.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ImageError: it cannot be decoded.
        UsageError: it is in the memory of a GPU.
    """

    def shrink(height: int, width: int) -> int:
        return next(by for by in (8, 4, 2, 1) if by == 1 or max(height, width) >= by * longest)

    frame = picture if isinstance(picture, Frame) else load_frame(picture, shrink, bit_depth)
    height, width = frame.size
    scale = min(1.0, longest / max(height, width))
    size = max(round(scale * height), 1), max(round(scale * width), 1)
    return Preprocess.whole(size)(frame)
