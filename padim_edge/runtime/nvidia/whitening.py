"""Whitening constants in the order in which kernels.cu reads them, and the launch that uses them.

numpy alone: nothing here touches a device. `pack_whitening` brings the constants of a model into
arrays to be uploaded once; `Whitening.mahalanobis` then gives launches for device addresses.

Whitening constants become *lines* of 128 bytes: 16 bytes (a *chunk* of 4, 8 or 16 columns) of
each of 8 rows. Eight rows are a *strip*: one line per chunk of the coarser levels' columns
together, then one per chunk of the level's own columns as far as the diagonal reaches; beyond
it nothing is stored. The rows of a strip are those of a *family*, up to eight positions of a
level under one parent, row by row: row i of each sibling, then row i + 1. int8 is stored plus
128, each level's columns begin a new chunk, and a line of float32 scales, four per row, begins
the strip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.model.pyramid import Pyramid
from padim_edge.runtime.nvidia.launch import (
    DEFAULT_SHARED_LIMIT,
    FORMATS,
    FRAMES,
    MAHALANOBIS,
    MOST_LAYERS,
    MOST_LEVELS,
    Launch,
)

_LINE = 128
_STRIP = 8
_NONE = np.iinfo(np.int32).max
_PLACES = MOST_LAYERS * _STRIP * 8


@dataclass(frozen=True)
class WhiteningAddresses:
    """Device addresses: the uploaded arrays of `Whitening`, each layer's maps, and results.

    maps: one per layer, in the pyramid's order (level by level), [N, channels, height, width].
    squared: N x `Whitening.squared_floats` float32, written whole.
    scores: N float32, set to 0.
    """

    lines: int
    means: int
    pixels: int
    maps: Sequence[int]
    squared: int
    scores: int


@dataclass(frozen=True)
class Whitening:
    """What `mahalanobis` reads: three arrays to upload, and the parameters to read them by.

    lines: uint8 [lines, 128], the whitening constants. ``lines.nbytes`` is what one pass over
        up to eight frames reads from memory.
    means: float32, level by level, [position in tree order, channel].
    pixels: int32, the pixel that belongs to a position in tree order, for each level and for
        each layer of lower resolution than its level.
    squared_floats: floats per frame of the result: per level and part a plane in raster order.
    """

    lines: NDArray[np.uint8]
    means: NDArray[np.float32]
    pixels: NDArray[np.int32]
    squared_floats: int
    format: str
    warps: int
    parameters: NDArray[np.void]

    def frames_per_pass(self, frames: int, shared_limit: int = DEFAULT_SHARED_LIMIT) -> int:
        """Frames that share one reading of the constants, for a batch of ``frames``.

        Args:
            frames: N, at least 1.
            shared_limit: most bytes of shared memory per block, as the device reports it
                (MAX_SHARED_MEMORY_PER_BLOCK_OPTIN).

        Raises:
            PadimEdgeError: the vectors of one frame alone exceed ``shared_limit``.
        """
        fitting = [n for n in FRAMES if self._shared_bytes(n) <= shared_limit]
        if not fitting:
            raise PadimEdgeError(
                f"this model has too many channels for the kernels on this device: a block needs "
                f"{self._shared_bytes(1)} bytes of shared memory and gets {shared_limit}; "
                "fit with fewer --dims or choose --engine trt/graph, which needs no kernels"
            )
        # 9 frames are 2 passes of 5, not one of 8 and one of 1: as many passes, less idle work.
        passes = -(-frames // fitting[-1])
        return next(n for n in fitting if n * passes >= frames)

    def mahalanobis(
        self,
        frames: int,
        addresses: WhiteningAddresses,
        *,
        half_maps: bool = False,
        shared_limit: int = DEFAULT_SHARED_LIMIT,
    ) -> Launch:
        """Squared distances of every level.

        Args:
            frames: N, at least 1.
            addresses: of inputs and results.
            half_maps: the maps are float16, not float32.
            shared_limit: see `frames_per_pass`.
        """
        per_pass = self.frames_per_pass(frames, shared_limit)
        groups = -(-frames // per_pass)
        argument = self.parameters.copy()
        argument["weights"] = addresses.lines
        argument["means"] = addresses.means
        argument["pixels"] = addresses.pixels
        argument["squared"] = addresses.squared
        argument["scores"] = addresses.scores
        argument["frame"] = self.squared_floats
        argument["frames"] = frames
        argument["groups"] = groups
        argument["half_maps"] = half_maps
        used = argument["source"]["column"] != _NONE
        argument["source"]["maps"][used] = addresses.maps
        blocks = int(argument["level"]["blocks"].sum())
        return Launch(
            f"mahalanobis_{self.format}_{per_pass}",
            (blocks * groups, 1, 1),
            (32 * self.warps, 1, 1),
            self._shared_bytes(per_pass),
            argument.tobytes(),
        )

    def _shared_bytes(self, frames: int) -> int:
        columns = _columns(self.format)
        levels = self.parameters["level"]
        chunks = levels["coarse_lines"] + (levels["own_lines"] << levels["sibling_bits"])
        vectors = int(chunks.max()) * (columns * frames + 4) * 4
        sums = self.warps * frames * _STRIP * 4
        return _PLACES + max(vectors, sums)


def pack_whitening(
    pyramid: Pyramid,
    means: Sequence[NDArray[np.float32]],
    blocks: Mapping[tuple[int, int], NDArray[Any]],
    scales: Mapping[tuple[int, int], NDArray[np.float32]] | None = None,
    *,
    strips_per_block: int = 16,
    warps: int | None = None,
) -> Whitening:
    """Pack means and whitening constants of a model.

    Args:
        pyramid: levels and their layers.
        means: per level [d, h, w].
        blocks: (l, m) -> [P_l, d_l, d_m] in tree order, m <= l, float32, float16 or int8. What
            lies above the diagonal of (l, l) is not looked at.
        scales: (l, m) -> [P_l, d_l], for int8 alone.
        strips_per_block: how a family is cut. At 16, blocks of a large model read 100 kB: enough
            to repay gathering the vectors, little enough to leave no tail at the end.
        warps: of a block, 1 to 8; None for 4 where every family fits one block, else 8.

    Raises:
        PadimEdgeError: more levels or layers than the kernels take.
        ValueError: constants of another format.
    """
    layers = sum(len(level.layers) for level in pyramid.levels)
    if len(pyramid.levels) > MOST_LEVELS or layers > MOST_LAYERS:
        raise PadimEdgeError(
            f"{layers} layers in {len(pyramid.levels)} resolutions are too many for the kernels: "
            f"they take {MOST_LAYERS} in {MOST_LEVELS}; choose fewer --layers or "
            "--engine trt/graph, which needs no kernels"
        )
    format_ = str(blocks[0, 0].dtype)
    if format_ not in FORMATS:
        raise ValueError(f"constants are {format_}; the kernels take {', '.join(FORMATS)}")
    parameters = _parameters(pyramid, format_, strips_per_block)
    pixels = _pixels(pyramid, parameters)
    levels = parameters["level"]
    if warps is None:
        warps = 4 if levels["parts"].max() == 1 else 8
    families = levels["blocks"] // np.maximum(levels["parts"], 1)
    lines = np.empty((int(families @ levels["family_lines"]), _STRIP, 16), np.uint8)
    for index in range(len(pyramid.levels)):
        level = levels[index]
        first, count = int(level["first_line"]), int(families[index])
        here = lines[first : first + count * int(level["family_lines"])]
        _fill(here.reshape(count, -1, _STRIP, 16), level, index, blocks, scales)
    flat = [np.moveaxis(x, 0, 2).reshape(-1, x.shape[0]) for x in means]
    trees = [_tree(pyramid, index) for index in range(len(pyramid.levels))]
    ordered = [x[tree].ravel() for x, tree in zip(flat, trees, strict=True)]
    return Whitening(
        lines.reshape(-1, _LINE),
        np.concatenate(ordered).astype(np.float32, copy=False),
        pixels,
        int((levels["parts"].astype(np.int64) * levels["positions"]).sum()),
        format_,
        warps,
        parameters,
    )


def _columns(format_: str) -> int:
    """Columns of a chunk."""
    return 16 // np.dtype(format_).itemsize


def _parameters(pyramid: Pyramid, format_: str, strips_per_block: int) -> NDArray[np.void]:
    """All levels, and what there is not marked as such; without tables of pixels and sources."""
    parameters = np.zeros((), MAHALANOBIS)
    parameters["levels"] = len(pyramid.levels)
    parameters["source"]["column"] = _NONE
    parameters["level"]["start"] = _NONE
    parameters["level"]["below"] = 1
    for index in range(len(pyramid.levels)):
        _describe(pyramid, index, _columns(format_), format_ == "int8", parameters)
    _cut(parameters, strips_per_block)
    return parameters


def _describe(
    pyramid: Pyramid,
    index: int,
    columns: int,
    scaled: bool,
    parameters: NDArray[np.void],
) -> None:
    """Fill in a level, except how it is cut and where its tables lie."""
    level = parameters["level"][index]
    channels = [each.channels for each in pyramid.levels]
    positions = [each.positions for each in pyramid.levels]
    # Row slots of a strip must belong to the same sibling in every strip: 8 % siblings == 0.
    ratio = pyramid.ratios(index)[-1] if index else 1
    siblings = math.gcd(_STRIP, ratio * ratio)
    rows = _STRIP // siblings
    strips = -(-channels[index] // rows)
    start = 0
    for coarser in range(index):
        level["start"][coarser] = start
        start += channels[coarser]
        if scaled:
            start = -(-start // columns) * columns
    coarse_lines = -(-start // columns)
    own_lines = -(-channels[index] // columns)
    own = _own_lines(strips, rows, columns, channels[index])
    level["start"][index] = coarse_lines * columns
    level["below"][:index] = [positions[index] // positions[coarser] for coarser in range(index)]
    level["sibling_bits"] = siblings.bit_length() - 1
    level["strips"] = strips
    level["coarse_lines"] = coarse_lines
    level["own_lines"] = own_lines
    level["tread_bits"] = max(1, columns // rows).bit_length() - 1
    level["rise"] = max(1, rows // columns)
    level["family_lines"] = strips * (coarse_lines + scaled) + sum(own)
    level["channels"] = channels[index]
    level["column"] = sum(channels[:index])
    level["positions"] = positions[index]
    level["means"] = sum(c * p for c, p in zip(channels[:index], positions, strict=False))


def _cut(parameters: NDArray[np.void], strips_per_block: int) -> None:
    """Deal strips out to blocks; say where each level's constants and results lie."""
    line = squared = 0
    for level in parameters["level"][: int(parameters["levels"])]:
        families = int(level["positions"]) >> int(level["sibling_bits"])
        parts = -(-int(level["strips"]) // strips_per_block)
        level["parts"] = parts
        level["blocks"] = families * parts
        level["first_line"] = line
        level["squared"] = squared
        line += families * int(level["family_lines"])
        squared += parts * int(level["positions"])


def _own_lines(strips: int, rows: int, columns: int, channels: int) -> list[int]:
    """Lines of each strip that its rows, up to the diagonal, have in their own columns."""
    ends = [min((strip + 1) * rows, channels) for strip in range(strips)]
    return [-(-end // columns) for end in ends]


def _tree(pyramid: Pyramid, index: int) -> NDArray[np.int64]:
    """Raster numbers of a level's positions, in tree order."""
    level = pyramid.levels[index]
    raster = np.arange(level.positions, dtype=np.float32)  # exact up to 2^24 positions
    maps = raster.reshape(1, 1, level.height, level.width)
    return pyramid.to_tree(index, maps).ravel().astype(np.int64)


def _pixels(pyramid: Pyramid, parameters: NDArray[np.void]) -> NDArray[np.int32]:
    """Pixel tables; says in ``parameters`` where each starts, and fills in the layers."""
    tables: list[NDArray[np.int64]] = []
    length = slot = column = 0
    for index, level in enumerate(pyramid.levels):
        tree = _tree(pyramid, index)
        parameters["level"][index]["pixels"] = start = length
        tables.append(tree)
        length += len(tree)
        for layer in level.layers:
            source = parameters["source"][slot]
            source["pixels"] = start
            if (layer.height, layer.width) != (level.height, level.width):
                y, x = np.divmod(tree, level.width)
                times = level.height // layer.height
                tables.append(y // times * layer.width + x // times)
                source["pixels"] = length
                length += len(tree)
            source["plane"] = layer.height * layer.width
            source["frame"] = layer.channels * layer.height * layer.width
            source["column"] = column
            source["level"] = index
            column += layer.channels
            slot += 1
    # Sources that there are not, and their level, are skipped by the kernel.
    parameters["source"]["level"][slot:] = MOST_LEVELS
    return np.concatenate(tables).astype(np.int32)


def _fill(
    out: NDArray[np.uint8],
    level: np.void,
    index: int,
    blocks: Mapping[tuple[int, int], NDArray[Any]],
    scales: Mapping[tuple[int, int], NDArray[np.float32]] | None,
) -> None:
    """Write a level's lines, [families, lines of a family, 8, 16], strip by strip."""
    families = len(out)
    siblings = 1 << int(level["sibling_bits"])
    rows = _STRIP // siblings
    channels = int(level["channels"])
    dtype = blocks[index, index].dtype
    columns = 16 // dtype.itemsize
    coarse = int(level["coarse_lines"])
    width = (coarse + int(level["own_lines"])) * columns
    own = _own_lines(int(level["strips"]), rows, columns, channels)

    def of_family(values: NDArray[Any]) -> NDArray[Any]:
        """[P, d, ...] as [families, d, siblings, ...], without a copy."""
        family: NDArray[Any] = values.reshape(families, siblings, *values.shape[1:]).swapaxes(1, 2)
        return family

    whole = [of_family(blocks[index, coarser]) for coarser in range(index + 1)]
    line = 0
    for strip, own_lines in enumerate(own):
        first = strip * rows
        count = min(rows, channels - first)
        if scales is not None:
            header = np.zeros((families, rows, siblings, MOST_LEVELS), np.float32)
            for coarser in range(index + 1):
                scale = of_family(scales[index, coarser])
                header[:, :count, :, coarser] = scale[:, first : first + count]
            out[:, line] = header.view(np.uint8).reshape(families, _STRIP, 16)
            line += 1
        values = np.zeros((families, rows, siblings, width), dtype)
        for coarser, block in enumerate(whole[:index]):
            start = int(level["start"][coarser])
            values[:, :count, :, start : start + block.shape[3]] = block[:, first : first + count]
        start = int(level["start"][index])
        for row in range(count):
            end = first + row + 1  # the diagonal, and no further
            values[:, row, :, start : start + end] = whole[index][:, first + row, :, :end]
        lines = coarse + own_lines
        chunks = values.view(np.uint8).reshape(families, _STRIP, -1, 16)[:, :, :lines]
        target = out[:, line : line + lines]
        target[...] = chunks.swapaxes(1, 2)
        if scales is not None:
            target ^= 0x80  # plus 128, modulo 256
        line += lines
