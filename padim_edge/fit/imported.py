"""Imported: the Gaussians of another program's fit become those of a detector of ours.

They are given at every position of the finest layer, all channels together, as the paper has them.
Where a coarse layer's channels were repeated below each of its positions, as most do, their means
and covariances are the same there, and what is kept is what a fit of ours keeps: each row once, at
its own level. Where they are not (interpolated, or estimated one by one), they stay dense.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ModelError, UsageError
from padim_edge.fit import gaussian
from padim_edge.fit.assemble import assemble
from padim_edge.fit.calibrate import Calibration
from padim_edge.fit.foreign import Arrays, read_arrays
from padim_edge.fit.moments import Array, Moments
from padim_edge.fit.runs import in_threads
from padim_edge.fit.settings import Settings
from padim_edge.fit.whitening import Gaussians, Whitening
from padim_edge.model.file import Model
from padim_edge.model.metadata import BackboneInfo
from padim_edge.model.pyramid import Pyramid
from padim_edge.model.smoothing import Smoothing
from padim_edge.progress import Progress, silent

SAME = 1e-4
"""Of the largest variance at a position: values of a repeated channel that differ by less are one.
Programs that keep inverses in float32 lose as much on the way."""


@dataclass(frozen=True)
class Foreign:
    """Gaussians as another program has them.

    Attributes:
        program: whose.
        mean: [d, P], positions row by row.
        matrices: [P, d, d]: covariances, or their inverses.
        inverse: whether they are inverses.
        channels: places in the concatenation of all layers, [d], if the file says them.
        border: of its Gaussian filter, as SciPy calls it.
        sigma: of that, in pixels of the score map, unless it was told otherwise.
        preprocess: how it prepares images, unless it was told otherwise: a preset of
            `padim_edge.images.preprocess.Preprocess.choose`.
    """

    program: str
    mean: NDArray[Any]
    matrices: NDArray[Any]
    inverse: bool
    channels: tuple[int, ...] | None
    border: str = "reflect"
    sigma: float = 4.0
    preprocess: str = "whole"

    def at(self, positions: NDArray[np.intp], order: list[int]) -> tuple[Array, Array]:
        """Means [p, d] and covariances [p, d, d] of some positions, channels in another order."""
        matrices: NDArray[Any] = self.matrices[positions].astype(np.float64)
        if self.inverse:
            try:
                matrices = np.linalg.inv(matrices)
            except np.linalg.LinAlgError:
                raise ModelError("its inverse covariances cannot be inverted") from None
        symmetric: Array = (matrices + matrices.transpose(0, 2, 1)) / 2
        mean: Array = self.mean[:, positions].T[:, order].astype(np.float64)
        return mean, symmetric[:, order][:, :, order]


def read_foreign(path: Path) -> Foreign:
    """The Gaussians in a file of anomalib, of AnomaVision or of the reference implementation.

    Raises:
        ModelError: it cannot be read, or holds none that are known.
    """
    arrays = read_arrays(path)
    found = _anomalib(arrays) or _anomavision(arrays) or _reference(arrays)
    if found is None:
        names = ", ".join(f"{name} {list(one.shape)}" for name, one in list(arrays.items())[:6])
        raise ModelError(
            f"{path} holds no Gaussians of anomalib's PaDiM, of AnomaVision's or of the reference "
            f"implementation ([mean, cov]); it holds {names or 'no arrays'}"
        )
    d, positions = found.mean.shape
    if found.matrices.shape != (positions, d, d):
        raise ModelError(
            f"{path}: means {list(found.mean.shape)} and covariances {list(found.matrices.shape)} "
            "do not fit together"
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.matrices).all()):
        raise ModelError(f"{path}: its means or covariances hold NaN or infinity")
    return found


def _named(arrays: Arrays, name: str, ndim: int) -> NDArray[Any] | None:
    """The array whose name ends so."""
    found = (one for key, one in arrays.items() if f".{key}".endswith(f".{name}"))
    return next((one for one in found if one.ndim == ndim), None)


def _channels(index: NDArray[Any] | None) -> tuple[int, ...] | None:
    return None if index is None else tuple(int(one) for one in index)


def _anomalib(arrays: Arrays) -> Foreign | None:
    mean = _named(arrays, "gaussian.mean", 2)
    inverse = _named(arrays, "gaussian.inv_covariance", 3)
    if mean is None or inverse is None:
        return None
    channels = _channels(_named(arrays, "idx", 1))
    return Foreign("anomalib", mean, inverse, True, channels, border="mirror")


def _anomavision(arrays: Arrays) -> Foreign | None:
    """A whole model or its state, and the smaller file with its statistics alone."""
    for names in (("_mean_flat", "_cov_inv_flat"), ("mean", "cov_inv")):
        mean, inverse = (_named(arrays, name, at) for name, at in zip(names, (2, 3), strict=True))
        if mean is not None and inverse is not None:  # its means are [P, d]
            channels = _channels(_named(arrays, "channel_indices", 1))
            return Foreign("AnomaVision", mean.T, inverse, True, channels, sigma=0.0)
    return None


def _reference(arrays: Arrays) -> Foreign | None:
    mean, covariance = arrays.get("0"), arrays.get("1")
    if mean is None or covariance is None or (mean.ndim, covariance.ndim) != (2, 3):
        return None
    matrices = covariance.transpose(2, 0, 1)
    name = "the reference implementation"
    return Foreign(name, mean, matrices, False, None, preprocess="reference")


def import_gaussians(
    foreign: Foreign,
    embedding: Model,
    settings: Settings,
    calibration: Calibration,
    threads: int = 0,
    progress: Progress = silent,
) -> tuple[Model, bool]:
    """A detector of foreign Gaussians.

    Args:
        foreign: the Gaussians.
        embedding: the backbone that they were made with, and its chosen channels.
        settings: preprocessing, sigma and constants; nothing is estimated.
        calibration: the threshold.
        threads: positions at a time; 0 for all cores.
        progress: called as work goes on.

    Returns:
        The model, to be written, and whether its whitening is dense.

    Raises:
        UsageError: the embedding has other channels or positions.
        ModelError: a covariance is not positive definite.
    """
    info = embedding.backbone_info
    tree = embedding.pyramid()
    finest = tree.levels[-1]
    order = _order(foreign, info, tree)
    if foreign.mean.shape[1] != finest.positions:
        raise UsageError(
            f"the Gaussians are at {foreign.mean.shape[1]} positions, the embedding has "
            f"{finest.height} x {finest.width}: export with the --image-size and layers of the "
            "other program"
        )
    raster = tree.raster_places()

    def whitened(pyramid: Pyramid, dense: bool) -> Gaussians | None:
        """In this form; None if it is not theirs, which any cell may say."""
        whitening = Whitening(pyramid, settings.constants, 0.0)
        fits = True

        def of(cells: slice) -> None:
            nonlocal fits
            if not fits:
                return
            places = raster[tree.positions_in(len(tree.levels) - 1, cells)]
            mean, covariance = foreign.at(places, order)
            if dense:
                whitening.put(places, [mean], gaussian.dense_whitening(covariance))
            elif _is_coarse_to_fine(mean, covariance, tree):
                whitening(cells, _by_level(mean, covariance, tree))
            else:
                fits = False

        def named(cells: slice) -> None:
            try:
                of(cells)
            except gaussian.NotPositiveDefiniteError as error:
                raise ModelError(
                    f"{foreign.program}'s covariances are not positive definite at some position: "
                    "the file is damaged, or that fit added nothing to their diagonal; fit there "
                    "again with something added (the paper has 0.01), or here from its photos"
                ) from error

        runs = [slice(cell, cell + 1) for cell in range(tree.cells)]
        in_threads(named, runs, tree.cells, threads, progress)
        return whitening.gaussians() if fits else None

    gaussians = whitened(tree, dense=False)
    dense = gaussians is None
    if gaussians is None:
        gaussians = whitened(Pyramid.dense(info.pyramid_layers()), dense=True)
    assert gaussians is not None  # dense they always are
    size, sigma = settings.preprocess.size, settings.sigma
    smoothing = Smoothing.of(tree, size, sigma, border=foreign.border)
    model = assemble(embedding, gaussians, calibration, smoothing, settings, 0)
    if dense and model.detector_info:
        info_of_dense = dataclasses.replace(model.detector_info, covariance="dense")
        model = dataclasses.replace(model, detector_info=info_of_dense)
    return model, dense


def _order(foreign: Foreign, info: BackboneInfo, tree: Pyramid) -> list[int]:
    """For each channel of the levels, coarse to fine: its place among the foreign ones."""
    theirs = foreign.channels or info.channels
    if sorted(theirs) != sorted(info.channels) or len(theirs) != foreign.mean.shape[0]:
        raise UsageError(
            f"the Gaussians are of {foreign.mean.shape[0]} channels, and the embedding has "
            f"{len(info.channels)}{' others' * (foreign.channels is not None)}: export one with "
            "the same, by --channels FILE with the numbers in it"
        )
    place = {channel: at for at, channel in enumerate(theirs)}
    starts = np.cumsum([0, *info.layer_channels])
    chosen = {
        name: [place[int(low) + channel] for channel in channels]
        for name, low, channels in zip(info.layers, starts, info.selected(), strict=False)
    }
    return [one for level in tree.levels for layer in level.layers for one in chosen[layer.name]]


def _blocks(tree: Pyramid) -> Iterator[tuple[int, slice, int]]:
    """Per level: its number, its channels, and positions of the finest level below one of it."""
    start = 0
    finest = len(tree.levels) - 1
    for index, level in enumerate(tree.levels):
        below = tree.positions_per_cell(finest) // tree.positions_per_cell(index)
        yield index, slice(start, start + level.channels), below
        start += level.channels


def _is_coarse_to_fine(mean: Array, covariance: Array, tree: Pyramid) -> bool:
    """Whether repeated channels have the same Gaussian wherever they are repeated, in a cell."""
    largest = np.diagonal(covariance, axis1=1, axis2=2).max()
    for _, own, below in _blocks(tree):
        rows = covariance[:, own, : own.stop].reshape(len(mean), -1)
        for values, scale in ((mean[:, own], np.sqrt(max(largest, 0))), (rows, largest)):
            groups = values.reshape(-1, below, values.shape[1])
            if np.abs(groups - groups[:, :1]).max() > SAME * scale:
                return False
    return True


def _by_level(mean: Array, covariance: Array, tree: Pyramid) -> Moments:
    """Of one cell: each level's rows once, the average of where they are repeated."""
    means: list[Array] = []
    scatters = {}
    columns: list[slice] = []
    for index, own, below in _blocks(tree):
        columns.append(own)
        means.append(mean[:, own].reshape(-1, below, mean[:, own].shape[1]).mean(axis=1))
        for other, across in enumerate(columns):
            block = covariance[:, own, across]
            scatters[index, other] = block.reshape(-1, below, *block.shape[1:]).mean(axis=1)
    return Moments(2, means, scatters)
