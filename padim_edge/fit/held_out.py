"""Held out: what a detector says of its own images, each as if it had been left out of the fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from padim_edge.fit import gaussian
from padim_edge.fit.moments import Array, Moments
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.smoothing import Smoothing


class HeldOut:
    """Takes features and moments, keeps exact leave-one-out distances of the features' images.

    Args:
        pyramid: the levels.
        count: images to be left out, one at a time.
        total: images in the moments, these and earlier ones.
        eps: added to the diagonal of the covariance in the fit.
    """

    def __init__(self, pyramid: Pyramid, count: int, total: int, eps: float) -> None:
        self._pyramid = pyramid
        self._total = total
        self._eps = gaussian.leave_one_out_eps(eps, total)
        self._squared = np.empty((pyramid.levels[-1].positions, count))

    def __call__(self, cells: slice, features: Sequence[Array], moments: Moments) -> None:
        """Distances at a run of cells; features per level [P, N, d]."""
        blocks = gaussian.whitening(moments, self._eps)
        centred = [x - mean[:, None] for x, mean in zip(features, moments.means, strict=True)]
        q = gaussian.squared_distances(blocks, centred)
        finest = self._pyramid.positions_in(len(self._pyramid.levels) - 1, cells)
        self._squared[finest] = gaussian.leave_one_out(q, self._total)

    def scores(self, smoothing: Smoothing) -> Array:
        """Image scores, [N]."""
        return image_scores(self._pyramid, self._squared, smoothing)


def image_scores(pyramid: Pyramid, squared: Array, smoothing: Smoothing) -> Array:
    """Image scores [N] from squared distances [P in tree order, N]: the graph's last stage."""
    return np.array([smoothing(one).max() for one in np.sqrt(pyramid.from_tree(squared))])
