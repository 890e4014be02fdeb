"""Held out: what a detector says of its own images, each as if it had been left out of the fit.

Nearly equal ones (`copies`) are left out together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padim_edge.fit import gaussian
from padim_edge.fit.moments import Array, Moments, moments_of, without
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.smoothing import Smoothing
from padim_edge.model.threshold import pixel_score

LARGE = 32
"""Images of a group from which on it costs less to fit the others anew: products of all pairs, and
their eigenvectors, then cost more than one factorisation."""


class HeldOut:
    """Takes features and moments, keeps exact leave-one-out distances of the features' images.

    Args:
        pyramid: the levels.
        groups: [N], a number for each image; those of one number are left out together. No group
            holds all but one of ``total``.
        total: images in the moments, these and earlier ones.
        eps: added to the diagonal of the covariance in the fit.
    """

    def __init__(self, pyramid: Pyramid, groups: NDArray[np.intp], total: int, eps: float) -> None:
        self._pyramid = pyramid
        self._total = total
        self._eps = eps
        self._squared = np.empty((pyramid.levels[-1].positions, len(groups)))
        sizes = np.bincount(groups, minlength=1)
        self._alone = np.flatnonzero(sizes[groups] == 1)
        # Members of the groups of each size.
        self._together = {
            int(size): [np.flatnonzero(groups == group) for group in np.flatnonzero(sizes == size)]
            for size in np.unique(sizes[sizes > 1])
        }

    def __call__(self, cells: slice, features: Sequence[Array], moments: Moments) -> None:
        """Distances at a run of cells; features per level [P, N, d]."""
        squared = self._squared[self._pyramid.positions_in(len(self._pyramid.levels) - 1, cells)]
        centred = _centred(features, moments)
        if self._alone.size:
            blocks = gaussian.whitening(moments, self._leave_out_eps(1))
            alone = [z[:, self._alone] for z in centred] if self._together else centred
            q = gaussian.squared_distances(blocks, alone)
            squared[:, self._alone] = gaussian.leave_one_out(q, self._total)
        for size, groups in self._together.items():
            if size > LARGE:
                for own in groups:
                    squared[:, own] = self._refitted([x[:, own] for x in features], moments)
                continue
            blocks = gaussian.whitening(moments, self._leave_out_eps(size))
            for own in groups:
                products = gaussian.inner_products(blocks, [z[:, own] for z in centred])
                squared[:, own] = gaussian.leave_group_out(products, self._total)

    def _leave_out_eps(self, size: int) -> float:
        return gaussian.leave_out_eps(self._eps, self._total, size)

    def _refitted(self, features: Sequence[Array], moments: Moments) -> Array:
        """Squared distances [P, k] of some images under the fit of all others."""
        rest = without(moments, moments_of(features))
        blocks = gaussian.whitening(rest, self._eps)
        return gaussian.squared_distances(blocks, _centred(features, rest))

    def maps(self, smoothing: Smoothing) -> ScoreMaps:
        """Score maps of the features' images."""
        return ScoreMaps(self._pyramid, self._squared, smoothing)


@dataclass(frozen=True)
class ScoreMaps:
    """Score maps of N images of a fit, made when they are asked for.

    Attributes:
        pyramid: the levels.
        squared: squared distances [P in tree order, N].
        smoothing: from distances to a score map.
    """

    pyramid: Pyramid
    squared: Array
    smoothing: Smoothing

    def __call__(self, place: int) -> Array:
        """That of an image, float64 [H, W]."""
        one = self.squared[:, place : place + 1]
        (distances,) = np.sqrt(self.pyramid.from_tree(one))
        return self.smoothing(distances)

    def scores(self) -> tuple[Array, Array]:
        """Image scores and pixel scores, [N] each."""
        return map_scores(self.pyramid, self.squared, self.smoothing)


def _centred(features: Sequence[Array], moments: Moments) -> list[Array]:
    return [x - mean[:, None] for x, mean in zip(features, moments.means, strict=True)]


RUN = 64
"""Images whose score maps are made from one copy of their distances."""


def map_scores(pyramid: Pyramid, squared: Array, smoothing: Smoothing) -> tuple[Array, Array]:
    """Image and pixel scores [N] from squared distances [P in tree order, N].

    By way of the score maps, as the graph's last stage makes them.
    """
    judged = ... if smoothing.judged is None else smoothing.judged
    scores = []
    for start in range(0, squared.shape[1], RUN):
        distances = np.sqrt(pyramid.from_tree(squared[:, start : start + RUN]))
        maps = map(smoothing, distances)
        scores += [(one.max(), pixel_score(one[judged])) for one in maps]
    image, pixel = np.array(scores).T
    return image, pixel
