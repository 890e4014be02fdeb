"""Frames: what a camera gives, and where one comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import UsageError
from padim_edge.images.decode import load_image

PIXEL_FORMATS = ("rgb",)
"""What the pixels of a `Frame` can be: uint8 [h, w, 3], red first."""


@dataclass(frozen=True)
class Frame:
    """A frame as it is, before anything is done to it.

    Attributes:
        pixels: of any size and strides, as ``pixel_format`` has them.
        pixel_format: one of `PIXEL_FORMATS`.
    """

    pixels: NDArray[np.uint8]
    pixel_format: str = "rgb"

    def __post_init__(self) -> None:
        """Refuse a format that would be taken for another.

        Raises:
            UsageError: it is none of `PIXEL_FORMATS`.
        """
        if self.pixel_format not in PIXEL_FORMATS:
            raise UsageError(
                f"no pixel format {self.pixel_format!r}; allowed are {', '.join(PIXEL_FORMATS)}"
            )


Picture = NDArray[np.uint8] | Image.Image | Frame
"""A frame in any form that a detector takes; a bare array is RGB."""


@dataclass(frozen=True)
class Shot:
    """One frame of a source, not yet taken.

    Attributes:
        name: the path of a file; of a camera's frame a number or a time, in words.
        take: reads and decodes it; called once, in any thread. Raises ImageError if that fails.
    """

    name: Path | str
    take: Callable[[], Picture]


def files(paths: Iterable[Path]) -> Iterator[Shot]:
    """Image files as a source, in their order."""
    for path in paths:
        yield Shot(path, functools.partial(load_image, path))
