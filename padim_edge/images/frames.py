"""Frames: what a camera gives, and where one comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import UsageError
from padim_edge.images.device_arrays import DeviceArray, device_array
from padim_edge.images.formats import PIXEL_FORMATS, PixelFormat, check_pixel_format, refusal
from padim_edge.images.stored_path import as_path


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame as it is, before anything is done to it.

    Attributes:
        pixels: of any size and strides, as ``pixel_format`` has them; never written to. Given as
            an array of another library in the memory of a GPU, they become a `DeviceArray`. An
            engine may read them as late as when the frame is judged: until then they must stay as
            they are.
        pixel_format: a name from `padim_edge.images.formats.PIXEL_FORMATS`.

    Raises:
        UsageError: there is no such format, or the pixels are not of it, or (of DLPack, which
            says so) on another GPU.
    """

    pixels: NDArray[Any] | DeviceArray
    pixel_format: str = "rgb"

    def __post_init__(self) -> None:
        check_pixel_format(self.pixel_format)
        on_device = device_array(self.pixels)
        if on_device is not None:
            object.__setattr__(self, "pixels", on_device)
        if not isinstance(self.layout, np.ndarray) or not self.format.fits(self.layout):
            raise UsageError(refusal(self.pixel_format, self.layout))

    @property
    def format(self) -> PixelFormat:
        """What ``pixel_format`` names."""
        return PIXEL_FORMATS[self.pixel_format]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the picture."""
        return self.format.size(self.layout)

    @property
    def layout(self) -> NDArray[Any]:
        """An array of the pixels' type, shape and strides, whose elements must not be touched."""
        return self.pixels.layout if isinstance(self.pixels, DeviceArray) else self.pixels

    def in_host_memory(self) -> NDArray[Any]:
        """The pixels.

        Raises:
            UsageError: they are in the memory of a GPU.
        """
        if isinstance(self.pixels, DeviceArray):
            raise UsageError(
                "a frame in the memory of a GPU is to be prepared on the CPU: bring it to the "
                "host (of torch, frame.cpu().numpy()), or choose the engine trt or ort-cuda, which "
                "take frames without gaps between pixels, if the model was fitted with --reduce"
            )
        return self.pixels


Picture = NDArray[Any] | DeviceArray | Image.Image | Frame | str | Path | bytes
"""A frame in any form that a detector takes: pixels, or an image file's path or bytes."""


@dataclass(frozen=True)
class Shot:
    """One frame of a source, not yet taken.

    Attributes:
        name: the path of a file; of a camera's frame a number or a time, in words.
        take: fetches it; called once, in any thread. Raises ImageError if that fails. Its pixels
            must stay as they are until the verdict: a camera that uses its buffer again copies.
    """

    name: Path | str
    take: Callable[[], Picture]


def files(paths: Iterable[Path]) -> Iterator[Shot]:
    """Image files as a source, in their order; each is decoded when it is prepared."""
    for path in paths:
        yield Shot(path, functools.partial(as_path, path))
