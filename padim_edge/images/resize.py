"""Resizing a plane of a frame: means of whole blocks, then one of Pillow's antialiased filters.

Both are integer arithmetic, so that an implementation elsewhere can give the same bits.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from PIL import Image

from padim_edge.images.threads import ALONE, Threads

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
"""Pillow's filters by name. They widen with the scale, and so are antialiased."""

_BAND = 2_000_000  # bytes of a plane, at least: less is not worth another thread
_APART = 16  # see `filter_taps`
_STRIP = 400_000  # sums that are at work at one time, so that they stay in a core's cache


def resize(
    plane: NDArray[Any],
    size: tuple[int, int],
    interpolation: str,
    reduce: bool = False,
    white: int = 255,
    threads: Threads = ALONE,
) -> NDArray[np.uint8]:
    """Resize a plane.

    With ``reduce`` every block of values (see `block_side`) is replaced by its mean (see
    `block_means`), which leaves at least the size of the result; then the filter goes across what
    is left and down, in Pillow's arithmetic: coefficients of 22 bits, and a result of 8 bits
    after each. Without, it is Pillow's own resize, which from Pillow 13 on goes down first where
    it finds that faster, and so gives other bits there than Pillow 12.

    Args:
        plane: uint8 or uint16 [h, w, c] of any strides, c from 1 to 4.
        size: (H, W) of the result.
        interpolation: of `FILTERS`.
        reduce: whether blocks are averaged first.
        white: the value that becomes 255, 255 for uint8. So does what exceeds it.
        threads: those among which bands of rows are shared.

    Returns:
        uint8 [H, W, c]; perhaps ``plane`` itself, if that has this size and type.
    """
    height, width, channels = plane.shape
    resampling = FILTERS[interpolation]
    if not reduce or (height, width) == size:
        if plane.dtype != np.uint8:
            plane = block_means(plane, (1, 1), white)
        return _filtered(plane, size, resampling, (0, 0, width, height))
    rows, columns = size
    fy, fx = block_side(height, rows), block_side(width, columns)
    count = -(-height // fy)
    narrow = np.empty((count, columns, channels), np.uint8)

    def band(edges: tuple[int, int]) -> None:
        first, last = edges
        part = plane[first * fy : last * fy]
        if (fy, fx) != (1, 1) or plane.dtype != np.uint8:
            part = block_means(part, (fy, fx), white)
        box = (0, 0, width / fx, last - first)
        narrow[first:last] = _filtered(part, (last - first, columns), resampling, box)

    bands = min(threads.count, count, 1 + plane.nbytes // _BAND)
    edges = [count * i // bands for i in range(bands + 1)]
    threads.run(band, list(itertools.pairwise(edges)))
    return _filtered(narrow, size, resampling, (0, 0, columns, height / fy))


def block_side(length: int, target: int) -> int:
    """Values of a block in one direction: as many as leave at least ``target`` blocks."""
    return max(1, length // target)


def block_means(plane: NDArray[Any], block: tuple[int, int], white: int = 255) -> NDArray[np.uint8]:
    """Replace each block of a plane by its mean.

    Args:
        plane: uint8 or uint16 [h, w, c] of any strides.
        block: its (height, width); those at the lower and right edge hold what there is.
        white: the mean that becomes 255. So does what exceeds it.

    Returns:
        uint8 [ceil(h / height), ceil(w / width), c], of n values whose sum is s:
        floor((255 s + floor(n white / 2)) / (n white)), which rounds halves up.
    """
    height, width, channels = plane.shape
    fy, fx = block
    means = np.empty((-(-height // fy), -(-width // fx), channels), np.uint8)
    top = fy * fx * np.iinfo(plane.dtype).max
    kind = next(t for t in (np.uint16, np.uint32, np.uint64) if 2 * top <= np.iinfo(t).max)
    whole = height // fy
    step = min(max(1, _STRIP // (width * channels)), max(1, whole))
    scratch = np.empty((3, step * width * channels), kind)
    for first in range(0, whole, step):
        last = min(first + step, whole)
        _strip_means(plane[first * fy : last * fy], block, white, means[first:last], scratch)
    if height % fy:
        _strip_means(plane[whole * fy :], (height % fy, fx), white, means[whole:], scratch)
    return means


def _strip_means(
    strip: NDArray[Any],
    block: tuple[int, int],
    white: int,
    means: NDArray[np.uint8],
    scratch: NDArray[Any],
) -> None:
    """Fill ``means`` [n, ., c] with those of a strip of n blocks' height.

    Rows are added first, then their sums: both in runs along whole rows of memory, where NumPy is
    as fast as memory, which it is not on axes as short as a block is wide.
    """
    (fy, fx), (count, _, channels) = block, means.shape
    width = strip.shape[1]
    whole, rest = divmod(width, fx)
    sums, *others = scratch[:, : count * width * channels]
    rows = _by_rows(strip, count, fy)
    np.add.reduce(rows, axis=1, dtype=sums.dtype, out=sums.reshape(count, width * channels))
    if rest:
        right = sums.reshape(count, width, channels)[:, whole * fx :]
        last = right.sum(axis=1, dtype=sums.dtype, keepdims=True)
        _mean(last, fy * rest, white, means[:, whole:])
    runs = _running_sums(sums, fx, channels, others)
    item = runs.itemsize
    strides = width * channels * item, fx * channels * item, item
    _mean(as_strided(runs, (count, whole, channels), strides), fy * fx, white, means[:, :whole])


def _by_rows(strip: NDArray[Any], count: int, fy: int) -> NDArray[Any]:
    """A strip as [count, fy, all values of a row]; copied only if a row has gaps."""
    _, width, channels = strip.shape
    row, pixel, value = strip.strides
    dense = pixel == channels * strip.itemsize and (channels == 1 or value == strip.itemsize)
    if not dense:
        strip = np.ascontiguousarray(strip)
        row = strip.strides[0]
    shape = (count, fy, width * channels)
    return as_strided(strip, shape, (fy * row, row, strip.itemsize), writeable=False)


def _running_sums(
    values: NDArray[Any], length: int, step: int, scratch: list[NDArray[Any]]
) -> NDArray[Any]:
    """Sums of ``length`` values that are ``step`` apart, from each value on: by doubling."""
    sums, size = values, 1
    for digit, free in zip(f"{length:b}"[1:], itertools.cycle(scratch), strict=False):
        count = len(sums) - size * step
        sums = np.add(sums[:count], sums[size * step :], out=free[:count])
        size *= 2
        if digit == "1":
            sums = sums[: len(values) - size * step]
            sums += values[size * step :]
            size += 1
    return sums


def _mean(sums: NDArray[Any], count: int, white: int, means: NDArray[np.uint8]) -> None:
    for channel in range(means.shape[2]):  # or NumPy's inner loop would be as short as that axis
        own = sums[..., channel]
        if white == 255:
            means[..., channel] = (own + own.dtype.type(count // 2)) // own.dtype.type(count)
        else:
            values = (own.astype(np.uint64) * 255 + count * white // 2) // (count * white)
            means[..., channel] = np.minimum(values, 255)


def _filtered(
    plane: NDArray[np.uint8],
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float],
) -> NDArray[np.uint8]:
    """Resize what lies in ``box`` to ``size``: uint8 [h, w, c] to [H, W, c]."""
    height, width, channels = plane.shape
    if (height, width) == size and box == (0, 0, width, height):
        return plane
    if channels == 2:  # of Pillow's modes with two channels, each weighs the first by the second
        halves = [_filtered(plane[..., i : i + 1], size, resampling, box) for i in (0, 1)]
        return np.concatenate(halves, axis=2)
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
    data = np.ascontiguousarray(plane)
    image = Image.frombuffer(mode, (width, height), data, "raw", mode, 0, 1)
    resized = np.asarray(image.resize(size[::-1], resampling, box))
    return resized.reshape(*size, channels)


def filter_taps(
    length: int, target: int, interpolation: str
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The filter of `resize` along one direction, for implementations elsewhere.

    Asked of Pillow itself: in its mode of 32 bits, what it makes of a single point of 2^22 is that
    point's coefficient as its mode of 8 bits has it.

    Args:
        length: of the plane.
        target: to resize to.
        interpolation: of `FILTERS`.

    Returns:
        int32 [taps, target], coefficients times 2^22; and int32 [target], which mean of a block the
        first of each belongs to: ascending, and all taps are within.
    """
    block = block_side(length, target)
    count = -(-length // block)
    # Blocks are at most twice as many as what becomes of them, so that no filter reaches over
    # more than 13 of them: points 16 apart do not meet in any result.
    points = np.arange(count) % _APART == np.arange(_APART)[:, None]
    image = Image.fromarray(points.astype(np.int32) << 22)
    box = (0, 0, length / block, _APART)
    answers = np.asarray(image.resize((target, _APART), FILTERS[interpolation], box))
    middle = ((np.arange(target) + 0.5) * (length / block / target)).astype(np.int32)
    around = np.arange(-_APART // 2, _APART // 2, dtype=np.int32)
    window = np.take_along_axis(answers, (middle + around[:, None]) % _APART, axis=0)
    used = around[window.any(axis=1)]
    reach = min(int(used[-1] - used[0]) + 1, count)
    # At the edges all taps move inwards; what a filter would have beyond is zero in Pillow, too.
    first = np.clip(middle + used[0], 0, count - reach)
    position = first + np.arange(reach, dtype=np.int32)[:, None]
    taps = np.take_along_axis(answers, position % _APART, axis=0)
    taps[np.abs(position - middle) >= _APART // 2] = 0
    return taps, first
