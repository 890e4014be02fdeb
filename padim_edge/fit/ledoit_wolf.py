"""Ledoit-Wolf: the reference's named alternative to the sample covariance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from padim_edge.errors import (
    MissingDependencyError,
)
from padim_edge.fit import gaussian
from padim_edge.fit.features import Features
from padim_edge.fit.moments import Array, Blocks, Moments
from padim_edge.fit.settings import Settings
from padim_edge.fit.statistics import Statistics, _Constants, _in_threads, _rasters, _scores
from padim_edge.model.pyramid import Pyramid
from padim_edge.progress import Progress

FOLDS = 5


def _scikit_learn() -> Callable[[Array], tuple[Array, float]]:
    """scikit-learn's `ledoit_wolf`."""
    try:
        from sklearn.covariance import ledoit_wolf
    except ImportError as error:
        raise MissingDependencyError("--covariance ledoit-wolf", "scikit-learn", "eval") from error
    estimate: Callable[[Array], tuple[Array, float]] = ledoit_wolf
    return estimate


def _ledoit_wolf(
    features: Features, settings: Settings, threads: int, progress: Progress
) -> Statistics:
    """The reference's named alternative: shrinkage per position, dense, calibrated by K folds.

    Shrinkage depends on the data as a whole, so rows of coarse levels are no longer shared and
    the leave-one-out formula does not hold.
    """
    ledoit_wolf = _scikit_learn()

    def gaussian_of(samples: Array) -> tuple[Array, Blocks]:
        """Means [P, d] and whitening of samples [P, N, d]."""
        covariances = np.stack([ledoit_wolf(x)[0] for x in samples])
        mean = samples.mean(axis=1)
        # Two images' worth of scatter: whitening divides by count - 1 = 1.
        return mean, gaussian.whitening(Moments(2, [mean], {(0, 0): covariances}), 0.0)

    tree = features.pyramid
    pyramid = Pyramid.dense([layer for level in tree.levels for layer in level.layers])
    level = pyramid.levels[0]
    folds = np.arange(features.count) % min(FOLDS, features.count)
    order = tree.from_tree(np.arange(float(level.positions))[:, None]).reshape(-1).astype(int)
    raster = np.argsort(order)  # the raster position of each tree position
    whitening = _Constants(pyramid, settings.constants)
    means = np.empty((level.positions, level.channels))
    squared = np.empty((level.positions, features.count))
    finest = len(tree.levels) - 1

    def of(cells: slice) -> None:
        """Everything for a cell; cells touch disjoint parts of the arrays above."""
        parts = features.of(cells)
        positions = len(parts[-1])
        samples = np.concatenate([x.repeat(positions // len(x), axis=0) for x in parts], axis=2)
        places = raster[tree.positions_in(finest, cells)]
        mean, blocks = gaussian_of(samples)
        means[places] = mean
        for place, rows in zip(places, blocks[0, 0], strict=True):
            whitening.put(slice(place, place + 1), {(0, 0): rows[None]})
        for fold in range(folds.max() + 1):
            held_out = folds == fold
            mean, blocks = gaussian_of(samples[:, ~held_out])
            centred = [samples[:, held_out] - mean[:, None]]
            squared[np.ix_(places, held_out)] = gaussian.squared_distances(blocks, centred)

    cells = [slice(cell, cell + 1) for cell in range(tree.cells)]
    _in_threads(of, cells, tree.cells, threads, progress)
    return Statistics(
        pyramid,
        _rasters(pyramid, [means]),
        whitening.arrays,
        _scores(pyramid, squared, settings),
        f"{folds.max() + 1} folds over {features.count} images",
    )
