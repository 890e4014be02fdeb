"""What the tests of images share."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import ImageError
from padim_edge.images.decode import load_image

silent = pytest.mark.filterwarnings("error")
FORMATS = ["png", "jpg", "bmp", "tif", "webp", "gif", "ppm"]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pixels(image: Image.Image) -> list[list[list[int]]]:
    assert image.mode == "RGB"
    rows: list[list[list[int]]] = np.asarray(image).tolist()
    return rows


def failure(path: str | Path) -> str:
    """The message that a file is refused with: one line that begins with the path."""
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows, 1)),
            chunk(b"IEND", b""),
        ]
    )


def grey_tiff(width: int, height: int, bits: int, body: bytes) -> bytes:
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(body))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    body += b"\0" * (len(body) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return head + struct.pack("<H", len(tags)) + directory + b"\0\0\0\0"


def upright() -> NDArray[np.uint8]:
    """24 x 40 in eight even blocks, which JPEG keeps nearly as they are."""
    return np.kron(noise(3, 5, seed=1), np.ones((8, 8, 1), np.uint8))


# The EXIF standard's words: where the stored row 0 and column 0 lie in the upright image.
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda u: u,  # top, left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u.swapaxes(0, 1)[::-1],  # right, top
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],  # left, bottom
}
