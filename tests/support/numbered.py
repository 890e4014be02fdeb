"""Pictures that carry their number in squares: order and identity of frames can be asserted."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from padim_edge.images.frames import Frame

SIDE = 16
"""Of a square: blocks of video codecs keep it clean."""

BITS = 16
"""Squares in a row: the number, its lowest bit first; below them its complement, so that a picture
of two frames is none."""

WIDTH, HEIGHT = SIDE * BITS, SIDE * 4


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """A picture, uint8 [h, w, 3] RGB, of a number."""
    picture = np.full((height, width, 3), (90, 120, 60), np.uint8)
    for place in range(BITS):
        bit = number >> place & 1
        columns = slice(place * SIDE, (place + 1) * SIDE)
        picture[:SIDE, columns] = 235 * bit + 10 * (not bit)
        picture[SIDE : 2 * SIDE, columns] = 235 * (not bit) + 10 * bit
    return picture


def grey_of(frame: Frame) -> NDArray[np.float64]:
    """The picture of a frame as grey levels [h, w]: what it is is the business of formats.py."""
    pixels = frame.in_host_memory()
    height, width = frame.size
    planes = frame.format.planes(pixels)
    repeated = [
        plane.repeat(height // plane.shape[0], 0).repeat(width // plane.shape[1], 1)
        for plane in planes
    ]
    if frame.format.white != 255:
        repeated = [plane * (255 / frame.format.white) for plane in repeated]
    rgb = frame.format.to_rgb([plane.round().astype(np.uint8) for plane in repeated])
    grey: NDArray[np.float64] = rgb.mean(2)
    return grey


def number_of(frame: Frame) -> int:
    """The number in a frame.

    Raises:
        AssertionError: it is not one whole picture.
    """
    grey = grey_of(frame)
    number = 0
    for place in range(BITS):
        columns = slice(place * SIDE + 3, (place + 1) * SIDE - 3)
        one = grey[3 : SIDE - 3, columns].mean() > 128
        other = grey[SIDE + 3 : 2 * SIDE - 3, columns].mean() > 128
        assert one != other, f"square {place} is of two frames"
        number |= int(one) << place
    return number


def write_video(
    path: Path | str,
    numbers: Iterable[int],
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rate: int = 25,
    gop: int = 10,
    container: str | None = None,
) -> None:
    """A video file of numbered pictures."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.gop_size = gop
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "12"}
        stream.time_base = Fraction(1, rate)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            frame.pts = place
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
