"""The pyramid of feature maps: which levels there are and in what order positions are kept.

Levels run from coarse to fine. Every position of a level lies in one position of the next
coarser level, so positions are kept in *tree order*: by position of the coarsest level (a
*cell*, row by row), then by child within it, then by child of that child. In tree order the
descendants of a position are neighbours, hence repeating a coarse map, adding a level's result
to the finer one and grouping the rows of a level under its parents are all plain reshapes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """The selected channels of one layer of the backbone: ``channels`` maps of h x w pixels."""

    name: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Level:
    """Layers that share one resolution (coarser ones among them are repeated up to it)."""

    layers: tuple[Layer, ...]
    height: int
    width: int

    @property
    def name(self) -> str:
        """Names of the layers, joined by '+'."""
        return "+".join(layer.name for layer in self.layers)

    @property
    def channels(self) -> int:
        """Channels of all layers of the level."""
        return sum(layer.channels for layer in self.layers)

    @property
    def positions(self) -> int:
        """Number of positions, height x width."""
        return self.height * self.width


@dataclass(frozen=True)
class Pyramid:
    """Levels from coarse to fine, each resolution an integer multiple of the one before."""

    levels: tuple[Level, ...]

    @classmethod
    def coarse_to_fine(cls, layers: Sequence[Layer]) -> Pyramid:
        """Order layers from coarse to fine; equal resolutions make one level.

        Raises:
            UsageError: a resolution is not an integer multiple of the next coarser one.
        """
        used = [layer for layer in layers if layer.channels]
        shapes = sorted({(layer.height, layer.width) for layer in used})
        levels = tuple(
            Level(tuple(layer for layer in used if (layer.height, layer.width) == shape), *shape)
            for shape in shapes
        )
        for coarse, fine in itertools.pairwise(levels):
            _ratio((coarse.height, coarse.width), (fine.height, fine.width))
        return cls(levels)

    @classmethod
    def dense(cls, layers: Sequence[Layer]) -> Pyramid:
        """One level at the finest resolution, coarser layers repeated: the classical form."""
        ordered = cls.coarse_to_fine(layers)
        finest = ordered.levels[-1]
        every = tuple(layer for level in ordered.levels for layer in level.layers)
        return cls((Level(every, finest.height, finest.width),))

    @property
    def cells(self) -> int:
        """Number of positions of the coarsest level."""
        return self.levels[0].positions

    @property
    def height(self) -> int:
        """Rows of the finest level, and so of the distance map."""
        return self.levels[-1].height

    @property
    def width(self) -> int:
        """Columns of the finest level, and so of the distance map."""
        return self.levels[-1].width

    def ratios(self, level: int) -> list[int]:
        """Side lengths by which a cell is divided on the way down to ``level``."""
        steps = self.levels[: level + 1]
        return [fine.height // coarse.height for coarse, fine in itertools.pairwise(steps)]

    def positions_per_cell(self, level: int) -> int:
        """Positions of ``level`` in one cell."""
        return math.prod(ratio * ratio for ratio in self.ratios(level))

    def positions_in(self, level: int, cells: slice) -> slice:
        """The positions of ``level``, in tree order, that lie in a run of cells."""
        per_cell = self.positions_per_cell(level)
        return slice(cells.start * per_cell, cells.stop * per_cell)

    def to_tree(self, level: int, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring maps of a level into tree order.

        Args:
            level: index of the level.
            maps: [N, d, h, w].

        Returns:
            [N, cells, positions per cell x d], a copy; within a cell by position, then channel.
        """
        count, channels = maps.shape[:2]
        ratios = self.ratios(level)
        coarsest = self.levels[0]
        split = maps.reshape(count, channels, coarsest.height, *ratios, coarsest.width, *ratios)
        steps = len(ratios)
        rows, columns = 2, 3 + steps
        order = [rows, columns]
        for step in range(1, steps + 1):
            order += [rows + step, columns + step]
        tree = split.transpose(0, *order, 1)
        return np.ascontiguousarray(tree).reshape(count, self.cells, -1)

    def from_tree(self, values: NDArray[np.float64], level: int = -1) -> NDArray[np.float64]:
        """Bring values [positions in tree order, K] of a level (the finest) back to [K, h, w]."""
        own = self.levels[level]
        ratios = self.ratios(self.levels.index(own))
        coarsest = self.levels[0]
        sides = [side for ratio in ratios for side in (ratio, ratio)]
        tree = values.reshape(coarsest.height, coarsest.width, *sides, -1)
        last = tree.ndim - 1
        maps = tree.transpose(last, *range(0, last, 2), *range(1, last, 2))
        raster: NDArray[np.float64] = maps.reshape(-1, own.height, own.width)
        return raster

    def raster_places(self) -> NDArray[np.intp]:
        """For each position of the finest level in tree order, its place row by row."""
        positions = self.levels[-1].positions
        of_raster = self.from_tree(np.arange(float(positions))[:, None]).reshape(-1)
        return np.argsort(of_raster.astype(np.intp))


def _ratio(coarse: tuple[int, int], fine: tuple[int, int]) -> int:
    """Integer by which a coarse resolution is divided, the same for rows and columns."""
    ratio = fine[0] // coarse[0]
    if (coarse[0] * ratio, coarse[1] * ratio) != fine:
        raise UsageError(
            f"layers of {coarse[0]} x {coarse[1]} and {fine[0]} x {fine[1]} pixels cannot be "
            "combined: each resolution must be an integer multiple of the coarser one; "
            "choose other --layers or an --image-size in multiples of 32"
        )
    return ratio
