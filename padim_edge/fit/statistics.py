"""Statistics: from features to constants of the graph and leave-one-out scores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from padim_edge.fit import gaussian
from padim_edge.fit.features import Features
from padim_edge.fit.moments import Array, Blocks, Moments, empty_moments, merge, moments_of
from padim_edge.fit.settings import Settings
from padim_edge.fit.state import _State
from padim_edge.model import graph
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.smoothing import smoothing_matrix
from padim_edge.progress import Progress
from padim_edge.system import available_cores


@dataclass(frozen=True)
class Statistics:
    """Constants of the graph and scores of the new images as if each had been left out.

    Attributes:
        pyramid: levels as they are stored.
        means: per level [1, d, h, w] float32.
        whitening: stored constants, "i.j" and "i.j.scale".
        scores: held-out image scores of the new images, [N].
        calibration: how they were made.
        moments: of all images, if they were to be kept.
    """

    pyramid: Pyramid
    means: list[NDArray[np.float32]]
    whitening: dict[str, NDArray[Any]]
    scores: Array
    calibration: str
    moments: Moments | None = None


def _statistics(
    features: Features,
    settings: Settings,
    earlier: _State | None,
    keep: bool,
    threads: int,
    progress: Progress,
) -> Statistics:
    """Moments, whitening and exact leave-one-out distances, a run of cells at a time."""
    pyramid = features.pyramid
    total = features.count + (earlier.moments.count if earlier else 0)
    loo_eps = gaussian.leave_one_out_eps(settings.eps, total)
    whitening = _Constants(pyramid, settings.constants)
    means = [np.empty((level.positions, level.channels)) for level in pyramid.levels]
    squared = np.empty((pyramid.levels[-1].positions, features.count))

    kept = empty_moments(total, means) if keep else None

    def of(cells: slice) -> None:
        """Everything for a run of cells; runs touch disjoint parts of the arrays above."""
        own = features.of(cells)
        stats = moments_of(own)
        if earlier:
            stats = merge(earlier.part(features, cells), stats)
        whitening.put(cells, gaussian.whitening(stats, settings.eps))
        for index, mean in enumerate(stats.means):
            means[index][pyramid.positions_in(index, cells)] = mean
        blocks = gaussian.whitening(stats, loo_eps)
        centred = [x - mean[:, None] for x, mean in zip(own, stats.means, strict=True)]
        q = gaussian.squared_distances(blocks, centred)
        finest = pyramid.positions_in(len(pyramid.levels) - 1, cells)
        squared[finest] = gaussian.leave_one_out(q, total)
        if kept:
            for (index, other), scatter in stats.scatters.items():
                kept.scatters[index, other][pyramid.positions_in(index, cells)] = scatter

    _in_threads(of, list(features.chunks()), pyramid.cells, threads, progress)
    return Statistics(
        pyramid,
        _rasters(pyramid, means),
        whitening.arrays,
        _scores(pyramid, squared, settings),
        f"exact leave-one-out over {features.count} images",
        kept,
    )


def _in_threads(
    task: Callable[[slice], None], runs: list[slice], cells: int, threads: int, progress: Progress
) -> None:
    """Do a task for each run of cells, one thread per core, each with a single BLAS thread.

    The matrices are small: BLAS threads would spend their time waiting for one another.
    """
    progress("statistics", 0, cells)
    with threadpool_limits(1), ThreadPoolExecutor(threads or available_cores()) as pool:
        try:
            for run, _ in zip(runs, pool.map(task, runs), strict=True):
                progress("statistics", run.stop, cells)
        finally:
            pool.shutdown(cancel_futures=True)


def _rasters(pyramid: Pyramid, means: list[Array]) -> list[NDArray[np.float32]]:
    """Means in tree order [P, d] as maps [1, d, h, w]."""
    return [
        pyramid.from_tree(mean, index)[None].astype(np.float32) for index, mean in enumerate(means)
    ]


def _scores(pyramid: Pyramid, squared: Array, settings: Settings) -> Array:
    """Image scores [N] from squared distances [P in tree order, N]: the graph's last stage."""
    height, width = settings.preprocess.size
    rows = smoothing_matrix(height, pyramid.height, settings.sigma)
    columns = smoothing_matrix(width, pyramid.width, settings.sigma)
    maps = np.sqrt(pyramid.from_tree(squared))
    return np.array([(rows @ one @ columns.T).max() for one in maps])


class _Constants:
    """Whitening in its stored precision, filled run by run so that float64 never adds up."""

    def __init__(self, pyramid: Pyramid, constants: str) -> None:
        self.pyramid = pyramid
        self.constants = constants
        self.arrays: dict[str, NDArray[Any]] = {}
        for index, level in enumerate(pyramid.levels):
            for other, coarse in enumerate(pyramid.levels[: index + 1]):
                one = np.zeros((1, level.channels, coarse.channels))
                for suffix, values in graph.store(one, constants).items():
                    shape = (level.positions, *values.shape[1:])
                    self.arrays[f"{index}.{other}{suffix}"] = np.empty(shape, dtype=values.dtype)

    def put(self, cells: slice, blocks: Blocks) -> None:
        """Store the blocks of some cells."""
        for (index, other), rows in blocks.items():
            place = self.pyramid.positions_in(index, cells)
            for suffix, values in graph.store(rows, self.constants).items():
                self.arrays[f"{index}.{other}{suffix}"][place] = values
