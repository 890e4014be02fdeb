"""Whitening: from moments to the constants of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.fit import gaussian
from padim_edge.fit.moments import Array, Blocks, Moments
from padim_edge.model import graph
from padim_edge.model.pyramid import Pyramid


@dataclass(frozen=True)
class Gaussians:
    """A Gaussian at every position, as the graph holds it.

    Attributes:
        pyramid: the levels as they are stored.
        means: per level [1, d, h, w] float32.
        whitening: stored constants, "i.j" and "i.j.scale", as `padim_edge.model.names` has them.
    """

    pyramid: Pyramid
    means: list[NDArray[np.float32]]
    whitening: dict[str, NDArray[Any]]


class Whitening:
    """Takes moments, keeps means and whitening; float64 exists for a run of cells alone.

    Args:
        pyramid: levels of the moments.
        constants: "float16", "float32" or "int8": how the whitening is stored.
        eps: added to the diagonal of the covariance.
    """

    def __init__(self, pyramid: Pyramid, constants: str, eps: float) -> None:
        self._pyramid = pyramid
        self._constants = constants
        self._eps = eps
        self._means = [np.empty((level.positions, level.channels)) for level in pyramid.levels]
        self._stored: dict[str, NDArray[Any]] = {}
        for index, level in enumerate(pyramid.levels):
            for other, coarse in enumerate(pyramid.levels[: index + 1]):
                one = np.zeros((1, level.channels, coarse.channels))
                for suffix, values in graph.store(one, constants).items():
                    shape = (level.positions, *values.shape[1:])
                    self._stored[f"{index}.{other}{suffix}"] = np.empty(shape, values.dtype)

    def __call__(self, cells: slice, moments: Moments) -> None:
        """Whiten a run of cells."""
        self.put(cells, moments.means, gaussian.whitening(moments, self._eps))

    def put(self, cells: slice | NDArray[np.intp], means: list[Array], blocks: Blocks) -> None:
        """Store what was whitened elsewhere; raises as `graph.check_rows` and `graph.store`.

        Args:
            cells: a run of them; or, where there is one level alone, any of its positions.
            means: per level [P, d].
            blocks: of the whitening.
        """
        for index, mean in enumerate(means):
            self._means[index][self._place(index, cells)] = mean
        for (index, other), rows in blocks.items():
            place = self._place(index, cells)
            if other == index:  # rows of others may be anything: channels need not be correlated
                graph.check_rows(rows, self._constants)
            for suffix, values in graph.store(rows, self._constants).items():
                self._stored[f"{index}.{other}{suffix}"][place] = values

    def _place(self, index: int, cells: slice | NDArray[np.intp]) -> slice | NDArray[np.intp]:
        return self._pyramid.positions_in(index, cells) if isinstance(cells, slice) else cells

    def gaussians(self) -> Gaussians:
        """What has been taken; the constants themselves, not a copy."""
        means = [
            self._pyramid.from_tree(mean, index)[None].astype(np.float32)
            for index, mean in enumerate(self._means)
        ]
        return Gaussians(self._pyramid, means, self._stored)
