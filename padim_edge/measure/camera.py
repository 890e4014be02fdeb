"""A camera for benchmarks: frames of a size and a pixel format, never twice the same memory."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import UsageError
from padim_edge.images.decode import MAX_PIXELS, load_image
from padim_edge.images.formats import PIXEL_FORMATS, check_pixel_format
from padim_edge.images.synthetic import make_dataset
from padim_edge.system import available_memory, last_cache

MIB = 2**20


@dataclass(frozen=True)
class Camera:
    """What a camera is set to.

    Attributes:
        width: of its frames, in pixels.
        height: the same.
        pixel_format: from `padim_edge.images.formats.PIXEL_FORMATS`.

    Raises:
        UsageError: there is no such format, or it has no frames of this size.
    """

    width: int
    height: int
    pixel_format: str = "bgr"

    def __post_init__(self) -> None:
        check_pixel_format(self.pixel_format)
        if not 0 < self.width * self.height <= MAX_PIXELS:
            raise UsageError(
                f"--frame {self.width}x{self.height}: 1 to {MAX_PIXELS:,} pixels are allowed"
            )
        rows, columns = PIXEL_FORMATS[self.pixel_format].even
        if (rows and self.height % 2) or (columns and self.width % 2):
            sides = " and ".join(["width"] * columns + ["height"] * rows)
            raise UsageError(
                f"--frame {self.width}x{self.height}: in {self.pixel_format} {sides} must be even"
            )

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.pixel_format}"

    def frames(self) -> list[NDArray[Any]]:
        """Frames of a synthetic photo, enlarged and moved about, each in a buffer of its own.

        Together they are at least twice the last cache, so that none of them is in a cache when
        its turn comes: no more than a frame that a camera has just written. They take an eighth
        of the available memory at most, but are two at least.

        Returns:
            Arrays as ``pixel_format`` has them.
        """
        layout = PIXEL_FORMATS[self.pixel_format]
        rows = self.height * 3 // 2 if layout.thirds else self.height
        photo = np.asarray(_photo().resize((self.width, rows), Image.Resampling.BICUBIC))
        # Its bytes, whatever they mean in this format: no time depends on colours.
        channels = layout.pixel[0]
        array = photo[..., np.arange(*channels) % 3] if channels else photo[..., 1]
        if layout.white != 255:
            array = (array.astype(np.uint32) * layout.white // 255).astype(layout.dtype)
        array = np.ascontiguousarray(array)
        size = min(max(64 * MIB, 2 * last_cache()), available_memory() // 8)
        count = max(2, -(-size // array.nbytes))
        return [np.roll(array, 2 * place, axis=1) for place in range(count)]


def parse_camera(text: str, pixel_format: str) -> Camera:
    """The camera of "1920x1080": width x height.

    Raises:
        UsageError: the text is no such size, or as `Camera`.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})x([0-9]{1,6})\s*", text.lower())
    if not match:
        raise UsageError(
            f"--frame {text}: width x height in pixels are needed, as a camera has them: 1920x1080"
        )
    return Camera(int(match[1]), int(match[2]), pixel_format)


def _photo() -> Image.Image:
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name), train=1, good=0, per_defect=0)
        return load_image(Path(name) / "train" / "good" / "000.png")
