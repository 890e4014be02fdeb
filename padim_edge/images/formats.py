"""Pixel formats: what lies where in a camera's array, and how it becomes RGB.

A format takes an array apart into planes, each of which is resized on its own; colours are made of
what comes out, on few pixels. Both are linear, so that their order matters to rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import UsageError

Planes = Sequence[NDArray[Any]]

BIT_DEPTHS = (10, 12, 14, 16)
"""Bits that grey values of two bytes may have; the others are zero."""


@dataclass(frozen=True)
class PixelFormat:
    """How the array of a frame is to be read.

    Attributes:
        shape: of the array, in words.
        planes: takes the array apart into views [h, w, c], each of a resolution of its own.
        picks: (plane, channel) of each value that a colour is made of, plane by plane.
        mix: int32 [3, values + 1], in 16-bit fixed point: red, green and blue are its product
            with those values and 1, rounded (halves up) and clipped.
        dtype: of the array.
        white: the value that is white.
        pixel: what the array's shape may have after rows and columns.
        even: whether (rows, columns) of the picture must be even.
        thirds: whether the last third of the rows is colour, and not picture.
        gapless: whether rows must follow one another in memory, because colour does not keep to
            them.
    """

    shape: str
    planes: Callable[[NDArray[Any]], Planes]
    picks: tuple[tuple[int, int], ...]
    mix: NDArray[np.int32]
    dtype: type[np.generic] = np.uint8
    white: int = 255
    pixel: tuple[tuple[int, ...], ...] = ((),)
    even: tuple[bool, bool] = (False, False)
    thirds: bool = False
    gapless: bool = False

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether an array has this dtype and shape, and at least one pixel."""
        if array.dtype != self.dtype or array.ndim < 2 or array.shape[2:] not in self.pixel:
            return False
        if not array.size or (self.thirds and array.shape[0] % 3):
            return False
        if self.gapless and not array.flags.c_contiguous:
            return False
        height, width = self.size(array)
        return not (self.even[0] and height % 2) and not (self.even[1] and width % 2)

    def size(self, array: NDArray[Any]) -> tuple[int, int]:
        """(h, w) of the picture in an array that fits."""
        rows, columns = array.shape[:2]
        return (rows // 3 * 2 if self.thirds else rows), columns

    def to_rgb(self, planes: Planes) -> NDArray[np.uint8]:
        """Make a new uint8 [H, W, 3] of the planes, each resized to uint8 [H, W, c]."""
        values = [planes[plane][..., channel] for plane, channel in self.picks]
        rgb = np.empty((*values[0].shape, 3), np.uint8)
        for colour, (*shares, constant) in enumerate(self.mix.tolist()):
            if _WHOLE in shares and not constant and sum(map(abs, shares)) == _WHOLE:
                rgb[..., colour] = values[shares.index(_WHOLE)]
                continue
            mixed = np.full(values[0].shape, constant + _WHOLE // 2, np.int32)
            for share, value in zip(shares, values, strict=True):
                if share:
                    mixed += np.multiply(value, share, dtype=np.int32)
            rgb[..., colour] = np.clip(mixed >> 16, 0, 255)
        return rgb


_WHOLE = 1 << 16  # a share of one


def _mix(*rows: Sequence[float]) -> NDArray[np.int32]:
    return np.round(np.array(rows) * _WHOLE).astype(np.int32)


def _interleaved(channels: int, *rgb: int) -> PixelFormat:
    """Channels side by side, of which ``rgb`` are red, green and blue; a fourth is ignored."""
    return PixelFormat(
        f"[h, w, {channels}]",
        planes=lambda array: [array],
        picks=tuple((0, channel) for channel in rgb),
        mix=_mix((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)),
        pixel=((channels,),),
    )


def _grey(bits: int) -> PixelFormat:
    """One value a pixel, in the lowest bits."""
    return PixelFormat(
        "[h, w]",
        planes=lambda array: [array.reshape(*array.shape[:2], 1)],
        picks=((0, 0),),
        mix=_mix(*[(1, 0)] * 3),
        dtype=np.uint8 if bits == 8 else np.uint16,
        white=2**bits - 1,
        pixel=((), (1,)),
    )


def _bayer(cell: str) -> PixelFormat:
    """One colour a pixel, in cells of 2 x 2; a cell becomes one pixel before it is resized."""

    def planes(array: NDArray[Any]) -> Planes:
        height, width = array.shape
        return [array[row::2].reshape(height // 2, width // 2, 2) for row in (0, 1)]

    rows = [[(colour == one) / cell.count(one) for colour in cell] for one in "rgb"]
    return PixelFormat(
        "[h, w], h and w even",
        planes,
        picks=((0, 0), (0, 1), (1, 0), (1, 1)),
        mix=_mix(*[(*row, 0) for row in rows]),
        even=(True, True),
    )


LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}
"""Weights of red and of blue in luma: ITU-R BT.601-7, section 2.5.1, and BT.709-6, item 3.2."""


def yuv_mix(standard: str, full: bool) -> NDArray[np.int32]:
    """The conversion of 8-bit YUV to RGB, in 16-bit fixed point.

    Args:
        standard: of `LUMA`.
        full: whether luma and chroma use all of 0 to 255; if not, they use 16 to 235 and 240.

    Returns:
        int32 [3, 4]: what red, green and blue have of Y, U, V and 1.
    """
    red, blue = LUMA[standard]
    green = 1 - red - blue
    luma, chroma, black = (1.0, 1.0, 0) if full else (255 / 219, 255 / 224, 16)
    shares = _mix(
        [luma, 0, 2 * (1 - red) * chroma],
        [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
        [luma, 2 * (1 - blue) * chroma, 0],
    )
    return np.column_stack([shares, -(shares @ np.array([black, 128, 128], np.int32))])


def _yuv(layout: str, standard: str, full: bool) -> PixelFormat:
    shape, planes, picks, rules = _LAYOUTS[layout]
    return PixelFormat(shape, planes, picks, yuv_mix(standard, full), **rules)


def _nv12(array: NDArray[Any]) -> Planes:
    height, width = array.shape[0] // 3 * 2, array.shape[1]
    return [array[:height, :, None], array[height:].reshape(height // 2, width // 2, 2)]


def _i420(array: NDArray[Any]) -> Planes:
    height, width = array.shape[0] // 3 * 2, array.shape[1]
    u, v = array[height:].reshape(2, height // 2, width // 2, 1)
    return [array[:height, :, None], u, v]


def _packed(array: NDArray[Any]) -> Planes:
    height, width, _ = array.shape
    return [array, array.reshape(height, width // 2, 4)]


# Shape in words, planes, (plane, channel) of Y, U and V, and what else the format says.
_LAYOUTS: dict[
    str, tuple[str, Callable[[NDArray[Any]], Planes], tuple[tuple[int, int], ...], Any]
] = {
    "nv12": (
        "[h * 3 / 2, w], h and w even",
        _nv12,
        ((0, 0), (1, 0), (1, 1)),
        {"even": (True, True), "thirds": True},
    ),
    "i420": (
        "[h * 3 / 2, w], h and w even, without gaps",
        _i420,
        ((0, 0), (1, 0), (2, 0)),
        {"even": (True, True), "thirds": True, "gapless": True},
    ),
    "yuyv": (
        "[h, w, 2], w even",
        _packed,
        ((0, 0), (1, 1), (1, 3)),
        {"even": (False, True), "pixel": ((2,),)},
    ),
    "uyvy": (
        "[h, w, 2], w even",
        _packed,
        ((0, 1), (1, 0), (1, 2)),
        {"even": (False, True), "pixel": ((2,),)},
    ),
}

_PLAIN = {
    "rgb": _interleaved(3, 0, 1, 2),
    "bgr": _interleaved(3, 2, 1, 0),
    "rgba": _interleaved(4, 0, 1, 2),
    "bgra": _interleaved(4, 2, 1, 0),
    **{f"grey{bits}": _grey(bits) for bits in (8, *BIT_DEPTHS)},
    **{f"bayer-{cell}": _bayer(cell) for cell in ("rggb", "bggr", "grbg", "gbrg")},
    **{layout: _yuv(layout, "601", False) for layout in _LAYOUTS},
}

PIXEL_FORMATS: dict[str, PixelFormat] = {
    **_PLAIN,
    **{f"{layout}-full": _yuv(layout, "601", True) for layout in _LAYOUTS},
    **{f"{layout}-709": _yuv(layout, "709", False) for layout in _LAYOUTS},
    **{f"{layout}-709-full": _yuv(layout, "709", True) for layout in _LAYOUTS},
}
"""Name -> format. Those of YUV are BT.601 in limited range, unless their name says otherwise."""


def check_pixel_format(name: str) -> None:
    """Refuse a name that no format has.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PIXEL_FORMATS:
        raise UsageError(
            f"no pixel format {name!r}; allowed are {', '.join(_PLAIN)}; and of the last "
            f"{len(_LAYOUTS)}, which are BT.601 in limited range, those with -full, -709 and "
            "-709-full"
        )


def refusal(name: str, array: object) -> str:
    """Why an array is not of a format, in one line with what helps."""
    wanted = PIXEL_FORMATS[name]
    expected = f"pixels in {name} are {np.dtype(wanted.dtype)} {wanted.shape}"
    if not isinstance(array, np.ndarray):
        return f"a frame is a {type(array).__name__}; {expected}, in a NumPy array"
    given = f"a frame is an array of {array.dtype} {list(array.shape)}; {expected}"
    if array.ndim == 4:
        return f"{given}: give frames one by one, or a list of them to batch()"
    if array.dtype.kind == "f":
        return (
            f"{given}: what is white in floating-point numbers is unclear; if it is 1.0, give "
            "(frame * 255).round().astype(numpy.uint8)"
        )
    others = [other for other, form in _PLAIN.items() if form.fits(array)]
    if others:
        return f"{given}: if these are {' or '.join(others)}, say so by pixel_format"
    return given
