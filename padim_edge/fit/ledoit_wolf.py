"""Ledoit-Wolf: the reference's named alternative to the sample covariance.

Shrinkage per position depends on the data as a whole, so rows of coarse levels are no longer
shared and the leave-one-out formula does not hold: the whitening is dense, the scores are those of
folds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from padim_edge.errors import MissingDependencyError, PadimEdgeError
from padim_edge.fit import gaussian
from padim_edge.fit.features import Features
from padim_edge.fit.held_out import ScoreMaps
from padim_edge.fit.moments import Array, Blocks
from padim_edge.fit.runs import in_threads
from padim_edge.fit.settings import Settings
from padim_edge.fit.statistics import Statistics
from padim_edge.fit.whitening import Whitening
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.smoothing import Smoothing
from padim_edge.progress import Progress

FOLDS = 5

Estimator = Callable[[Array], tuple[Array, float]]


def estimator() -> Estimator:
    """scikit-learn's `ledoit_wolf`: samples [N, d] -> covariance [d, d] and shrinkage.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.covariance import ledoit_wolf
    except ImportError as error:
        raise MissingDependencyError("--covariance ledoit-wolf", "scikit-learn", "eval") from error
    estimate: Estimator = ledoit_wolf
    return estimate


def ledoit_wolf_statistics(
    features: Features,
    settings: Settings,
    smoothing: Smoothing,
    threads: int,
    progress: Progress,
) -> Statistics:
    """Shrunk covariances, whitened densely; scores by folds.

    Args:
        features: of the images.
        settings: how to fit.
        smoothing: from distances to score maps.
        threads: cells at a time; 0 for all cores.
        progress: called as work goes on.
    """
    tree = features.pyramid
    pyramid = Pyramid.dense([layer for level in tree.levels for layer in level.layers])
    positions = pyramid.levels[0].positions
    # Nearly equal images in one fold.
    folds = features.groups % min(FOLDS, features.groups.max() + 1)
    raster = tree.raster_places()
    whitening = Whitening(pyramid, settings.constants, 0.0)
    squared = np.empty((positions, features.count))
    finest = len(tree.levels) - 1
    ledoit_wolf = estimator()

    def of(cells: slice) -> None:
        """Everything for a cell; cells touch disjoint parts of the arrays above."""
        samples = _repeated(features.of(cells))
        places = raster[tree.positions_in(finest, cells)]
        mean, blocks = _gaussian(ledoit_wolf, samples)
        whitening.put(places, [mean], blocks)
        for fold in range(folds.max() + 1):
            held_out = folds == fold
            mean, blocks = _gaussian(ledoit_wolf, samples[:, ~held_out])
            centred = [samples[:, held_out] - mean[:, None]]
            squared[np.ix_(places, held_out)] = gaussian.squared_distances(blocks, centred)

    cells = [slice(cell, cell + 1) for cell in range(tree.cells)]
    in_threads(of, cells, tree.cells, threads, progress)
    maps = ScoreMaps(pyramid, squared, smoothing)
    return Statistics(
        whitening.gaussians(),
        *maps.scores(),
        f"{folds.max() + 1} folds over {features.described()}",
        maps,
    )


def _repeated(parts: list[Array]) -> Array:
    """All levels at the finest one: per level [P, N, d] -> [P of the finest, N, d of all]."""
    positions = len(parts[-1])
    return np.concatenate([x.repeat(positions // len(x), axis=0) for x in parts], axis=2)


def _gaussian(estimate: Estimator, samples: Array) -> tuple[Array, Blocks]:
    """Means [P, d] and whitening of samples [P, N, d].

    Raises:
        PadimEdgeError: somewhere the samples are all the same.
    """
    covariances = np.stack([estimate(x)[0] for x in samples])
    try:
        return samples.mean(axis=1), gaussian.dense_whitening(covariances)
    except gaussian.NotPositiveDefiniteError as error:
        raise PadimEdgeError(
            "the features are the same in all photos somewhere, as before a background that was "
            "made black, and --covariance ledoit-wolf adds nothing there: give --covariance sample"
        ) from error
