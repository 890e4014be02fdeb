"""Bare frames: names of pixel formats elsewhere, and arrays of pixels without gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import UsageError
from padim_edge.images.formats import PIXEL_FORMATS, check_pixel_format

# Of GStreamer and of FFmpeg, in small letters.
OTHER_NAMES = {
    **{"gray8": "grey8", "gray": "grey8", "y800": "grey8", "mono8": "grey8"},
    **{"gray16_le": "grey16", "gray10_le16": "grey10", "gray16le": "grey16"},
    **{"yuy2": "yuyv", "yuyv422": "yuyv", "uyvy422": "uyvy", "yuv420p": "i420"},
    **{"rgbx": "rgba", "rgb0": "rgba", "bgrx": "bgra", "bgr0": "bgra"},
    **{"rgb24": "rgb", "bgr24": "bgr"},
}


def pixel_format(text: str) -> str:
    """Our name of a pixel format, by one of ours, GStreamer's or FFmpeg's, in any case.

    Raises:
        ValueError: there is none, with what is allowed.
    """
    name = OTHER_NAMES.get(text.lower(), text.lower())
    try:
        check_pixel_format(name)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return name


def shape_of(name: str, width: int, height: int) -> tuple[int, ...]:
    """The shape of the array of a frame.

    Raises:
        ValueError: there are no frames of this size in this format.
    """
    form = PIXEL_FORMATS[name]
    if (form.even[0] and height % 2) or (form.even[1] and width % 2):
        raise ValueError(f"{name} has {form.shape}; {width}x{height} was given")
    rows = height * 3 // 2 if form.thirds else height
    return (rows, width, *form.pixel[0])


def new_array(name: str, width: int, height: int) -> NDArray[Any]:
    """An array for a frame, without gaps."""
    return np.empty(shape_of(name, width, height), PIXEL_FORMATS[name].dtype)
