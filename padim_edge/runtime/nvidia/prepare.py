"""A camera's frame as prepare.cu reads it, and the launch that makes the backbone's input of it.

numpy alone: nothing here touches a device. `pack_preparation` computes once what frames of one
format, size and row pitch have in common; `Preparation.launch` then gives launches for addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.resize import block_side, filter_taps
from padim_edge.runtime.nvidia.launch import DEFAULT_SHARED_LIMIT, MOST_VALUES, PREPARE, Launch
from padim_edge.runtime.nvidia.smoothing import widest

_TILE_ROWS, _TILE_COLUMNS = 8, 32
# Of a block of pixels: its sums fit into 16 bits, and 32.
_MOST_ROWS, _MOST_PIXELS = 256, 65536
_SUMS = 16 * 1024  # bytes of shared memory for sums, where a row of blocks needs no more
_TABLES = ("row_taps", "row_first", "column_taps", "column_first")


@dataclass(frozen=True)
class Preparation:
    """What `prepare` reads beside the pixels of a frame.

    tables: int32, coefficients and first blocks of all planes, one after another.
    parameters: with offsets in bytes in place of addresses.
    function: the kernel for this type of pixels.
    nbytes: of the frame, from its first row to the end of the last one's pitch.
    """

    tables: NDArray[np.int32]
    parameters: NDArray[np.void]
    function: str
    shared_bytes: int
    nbytes: int

    def launch(self, tables: int, pixels: int, image: int) -> Launch:
        """Make the backbone's input of one frame.

        Args:
            tables: device address of ``tables``.
            pixels: that of the frame's first row.
            image: where uint8 [H, W, 3] RGB goes, which is written whole.
        """
        argument = self.parameters.copy()
        argument["image"] = image
        planes = argument["plane"]
        planes["pixels"] += np.uint64(pixels)
        for name in _TABLES:
            planes[name] += np.uint64(tables)
        tiles_across = -(-int(argument["width"]) // _TILE_COLUMNS)
        tiles_down = -(-int(argument["height"]) // _TILE_ROWS)
        return Launch(
            self.function,
            (tiles_across, tiles_down, 1),
            (256, 1, 1),
            self.shared_bytes,
            argument.tobytes(),
        )


def row_bytes(pixel_format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a row of such a frame, without gaps."""
    return int(np.prod(shape[1:])) * np.dtype(PIXEL_FORMATS[pixel_format].dtype).itemsize


def pack_preparation(
    preprocess: Preprocess,
    pixel_format: str,
    shape: tuple[int, ...],
    pitch: int,
    *,
    shared_limit: int = DEFAULT_SHARED_LIMIT,
) -> Preparation:
    """Pack what frames have in common.

    Args:
        preprocess: with ``reduce``.
        pixel_format: of the frames.
        shape: of their arrays, which fit the format.
        pitch: bytes from one row to the next, in which pixels follow one another without gaps.
        shared_limit: bytes of shared memory that a block can have.

    Raises:
        ImageError: such a frame does not cover the crop.
        PadimEdgeError: the kernel does not do this: there is no ``reduce``, or blocks are too
            large for it.
    """
    if not preprocess.reduce:
        raise PadimEdgeError("frames are prepared on the GPU where blocks are averaged first")
    form = PIXEL_FORMATS[pixel_format]
    dtype = np.dtype(form.dtype)
    # Of the planes the places alone are wanted: there is no memory behind this, nor is it touched.
    row = np.empty(shape[1:], dtype)
    array = as_strided(row, shape, (pitch, *row.strides), writeable=False)
    planes = form.planes(array)
    count = len(form.picks)

    parameters = np.zeros((), PREPARE)
    parameters["height"], parameters["width"] = preprocess.size
    parameters["planes"], parameters["values"] = len(planes), count
    parameters["white"] = form.white
    parameters["mix"][:, :count] = form.mix[:, :-1]
    parameters["mix"][:, MOST_VALUES] = form.mix[:, -1]
    geometry = preprocess.geometry(*reversed(form.size(array)))
    tables: list[NDArray[np.int32]] = []
    sizes = []
    for index, plane in enumerate(planes):
        packed = parameters["plane"][index]
        packed["pixels"] = plane.ctypes.data - array.ctypes.data
        picks = [channel for of, channel in form.picks if of == index]
        sizes.append(_pack_plane(packed, plane, picks, preprocess, geometry, tables))
    # Sums, means and what is filtered across serve one plane after another.
    sums, means, narrow = np.max(sizes, axis=0).tolist()
    parameters["means"] = sums
    parameters["narrow"] = sums + means
    parameters["mixed"] = sums + means + narrow
    shared_bytes = sums + means + narrow + _TILE_ROWS * _TILE_COLUMNS * count
    if shared_bytes > shared_limit:
        raise PadimEdgeError(
            f"a block needs {shared_bytes} bytes of shared memory and gets {shared_limit}"
        )
    function = f"prepare_{8 * dtype.itemsize}"
    everything = np.concatenate([table.ravel() for table in tables])
    return Preparation(everything, parameters, function, shared_bytes, shape[0] * pitch)


def _pack_plane(
    packed: NDArray[np.void],
    plane: NDArray[Any],
    picks: Sequence[int],
    preprocess: Preprocess,
    geometry: tuple[int, int, int, int],
    tables: list[NDArray[np.int32]],
) -> tuple[int, int, int]:
    """Fill in a plane's struct and add its tables.

    Returns:
        Bytes of shared memory for sums, means, and what is filtered across.
    """
    rows, columns, top, left = geometry
    height, width, channels = plane.shape
    block_height, block_width = block_side(height, rows), block_side(width, columns)
    if block_height > _MOST_ROWS or block_height * block_width > _MOST_PIXELS:
        raise PadimEdgeError(f"blocks of {block_height} x {block_width} pixels are too large")
    packed["pitch"] = plane.strides[0]
    packed["height"], packed["width"], packed["channels"] = height, width, channels
    packed["values"], packed["channel"][: len(picks)] = len(picks), picks
    packed["block_height"], packed["block_width"] = block_height, block_width

    most = []
    for name, length, target, start, size, tile in (
        ("row", height, rows, top, preprocess.size[0], _TILE_ROWS),
        ("column", width, columns, left, preprocess.size[1], _TILE_COLUMNS),
    ):
        taps, first = filter_taps(length, target, preprocess.interpolation)
        taps, first = taps[:, start : start + size], first[start : start + size]
        for key, table in (("taps", taps), ("first", first)):
            packed[f"{name}_{key}"] = sum(each.nbytes for each in tables)
            tables.append(table)
        packed[f"{name}_count"] = len(taps)
        most.append(widest(first, len(taps), tile))

    # Two words for every 4 bytes, of which up to 3 lie before the first pixel.
    stride = 2 * (-(-(most[1] * block_width * channels * plane.itemsize + 3) // 4))
    strip = min(max(1, _SUMS // (4 * stride)), most[0])
    packed["stride"], packed["strip"] = stride, strip
    values = len(picks)
    return 4 * stride * strip, most[0] * most[1] * values, most[0] * _TILE_COLUMNS * values
