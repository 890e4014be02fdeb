"""Upsampling and smoothing as one small matrix per axis: score map = A D A^T."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padim_edge.model.pyramid import Pyramid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Smoothing:
    """From a distance map [h, w] to a score map [H, W].

    Attributes:
        rows: [H, h] float64.
        columns: [W, w] float64.
        judged: bool [H, W], where the map is not 0 whatever was found (`padim_edge.images.roi`);
            None for everywhere.
    """

    rows: Array
    columns: Array
    judged: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        pyramid: Pyramid,
        image_size: tuple[int, int],
        sigma: float,
        judged: NDArray[np.bool_] | None = None,
        border: str = "reflect",
    ) -> Smoothing:
        """The matrices for the finest level of a pyramid.

        Args:
            pyramid: the levels.
            image_size: (H, W) of the score map.
            sigma: of the Gaussian, in pixels of the score map; 0 for none.
            judged: bool [H, W]; None for everywhere.
            border: of the filter, as of `smoothing_matrix`.
        """
        height, width = image_size
        return cls(
            smoothing_matrix(height, pyramid.height, sigma, border),
            smoothing_matrix(width, pyramid.width, sigma, border),
            judged,
        )

    def __call__(self, distances: Array) -> Array:
        """Score maps [..., H, W] of distance maps [..., h, w]."""
        smoothed: Array = self.rows @ distances @ self.columns.T
        return smoothed if self.judged is None else np.where(self.judged, smoothed, 0)


def smoothing_matrix(size: int, positions: int, sigma: float, border: str = "reflect") -> Array:
    """One axis of upsampling and smoothing as a matrix A, so that score map = A D A^T.

    Bilinear resizing (align_corners=False) followed by a Gaussian filter as SciPy defines it
    (truncated at 4 sigma; at the border "reflect" repeats the last pixel, "mirror" does not). Both
    are linear and separable.

    Args:
        size: pixels of the score map along this axis.
        positions: pixels of the distance map along this axis.
        sigma: of the Gaussian, in pixels of the score map; 0 for none.
        border: "reflect" or "mirror".

    Returns:
        [size, positions].
    """
    centres = (np.arange(size) + 0.5) * positions / size - 0.5
    # Border pixels lie outside the outermost centres: torch clamps the source coordinate.
    centres = centres.clip(0, positions - 1)
    below = np.floor(centres).astype(int)
    above = np.minimum(below + 1, positions - 1)
    fraction = centres - below
    bilinear = np.zeros((size, positions))
    np.add.at(bilinear, (np.arange(size), below), 1 - fraction)
    np.add.at(bilinear, (np.arange(size), above), fraction)
    if sigma == 0:
        return bilinear
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # Again and again if need be: d c b a | a b c d, and e d c b | a b c d e.
    repeated = 1 if border == "reflect" else 0
    period = max(1, 2 * (size - 1 + repeated))
    source = (np.arange(size)[:, None] + offsets) % period
    source = np.minimum(source, period - repeated - source)
    gaussian = np.zeros((size, size))
    np.add.at(gaussian, (np.arange(size)[:, None], source), weights)
    smoothing: Array = gaussian @ bilinear
    return smoothing
