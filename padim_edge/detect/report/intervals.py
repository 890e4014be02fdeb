"""Intervals: how much the metrics of a test set depend on which images happen to be in it.

The bootstrap: the good images are drawn again with replacement, as many as there are, and so are
the defective ones (stratified); the metric is taken of what was drawn, `REPLICATES` times, and the
interval is that between the 2.5 % and the 97.5 % quantile of the results (Efron, "Nonparametric
standard errors and confidence intervals", 1981). Images are drawn, not pixels: pixels of one image
are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from padim_edge.detect.evaluation import Judged
from padim_edge.detect.metrics import PRO_LIMIT
from padim_edge.model.threshold import COVERAGE

Array = NDArray[np.float64]
Interval = tuple[float, float]

REPLICATES = 1000
SEED = 0

_BINS = 2048  # of pixel scores; the exact metric of bottle and that of its bins agree to 1e-4
_SAMPLE = 1_000_000  # pixels that the bins are chosen from
_AT_ONCE = 50  # replicates


def bootstrap(judged: Judged) -> dict[str, Interval]:
    """95 % intervals of metrics, by the names of `padim_edge.detect.metrics.Metrics`.

    And of ``average_precision``. Those of pixels are left out where no image has a mask.
    """
    return {name: between(values) for name, values in draws(judged).items()}


def between(values: Array) -> Interval:
    """The 95 % interval of what `draws` gives of a metric, or of a difference of two of them."""
    # A replicate without a single mask has no pixel metric.
    low, high = np.nanquantile(values, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
    return float(low), float(high)


def draws(judged: Judged, groups: NDArray[np.intp] | None = None) -> dict[str, Array]:
    """The metrics of `bootstrap` in each replicate, [REPLICATES].

    Which images a replicate has depends on labels and groups alone: of two detectors that judged
    the same images, the replicates are paired, and so are their differences.

    Args:
        judged: a test set.
        groups: [N], a number for each image; those of one label and number are drawn together,
            as several pictures of one part must be. None: each image by itself.
    """
    results: dict[str, list[Array]] = {}
    pixels = _pixel_histograms(judged)
    for weights in _drawn(judged.labels, groups):
        drawn = _image_metrics(weights, judged) | _pixel_metrics(weights, pixels)
        for name, values in drawn.items():
            results.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in results.items()}


def _drawn(labels: NDArray[np.bool_], groups: NDArray[np.intp] | None = None) -> Iterator[Array]:
    """How often each image was drawn: [some replicates, N]."""
    random = np.random.default_rng(SEED)
    groups = np.arange(len(labels)) if groups is None else groups
    kinds = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    members = [(own, *np.unique(groups[own], return_inverse=True)) for own in kinds]
    for start in range(0, REPLICATES, _AT_ONCE):
        weights = np.zeros((min(_AT_ONCE, REPLICATES - start), len(labels)))
        for own, known, of in members:
            count = len(known)
            drawn = random.multinomial(count, np.full(count, 1 / count), len(weights))
            weights[:, own] = drawn[:, of]
        yield weights


def _image_metrics(weights: Array, judged: Judged) -> dict[str, Array]:
    order = np.argsort(judged.scores)
    values, starts = np.unique(judged.scores[order], return_index=True)
    labels = judged.labels[order]
    negatives = np.add.reduceat(weights[:, order] * ~labels, starts, axis=1)
    positives = np.add.reduceat(weights[:, order] * labels, starts, axis=1)
    hits, false = _from_above(positives), _from_above(negatives)
    defective = positives.sum(axis=1)
    f1 = 2 * hits / (hits + false + defective[:, None])
    precision = hits / np.maximum(hits + false, 1)
    at = np.searchsorted(values, judged.threshold, side="right")
    nothing = np.zeros((len(weights), 1))  # is above the highest score
    return {
        "image_auroc": _area(negatives, positives),
        "average_precision": (positives * precision).sum(axis=1) / defective,
        "best_f1": f1.max(axis=1),
        "f1": np.append(f1, nothing, axis=1)[:, at],
        "precision": np.append(precision, nothing, axis=1)[:, at],
    }


_Histograms = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def _pixel_histograms(judged: Judged) -> _Histograms | None:
    """Of each image's normal pixels, defective ones, and these with 1 / size of their region.

    Each [N, bins]; None if no image has a mask.
    """
    from scipy.ndimage import label

    usable = [
        place
        for place, (defective, mask) in enumerate(zip(judged.labels, judged.masks, strict=True))
        if not defective or (mask is not None and mask.any())
    ]
    marked = [judged.maps[place][judged.masks[place]] for place in usable if judged.labels[place]]
    if not marked:
        return None
    step = -(-judged.maps.size // _SAMPLE)
    quantiles = np.linspace(0, 1, _BINS // 2)
    # Fine where defective pixels are, and where all are.
    edges = np.unique(
        np.concatenate(
            [
                np.quantile(judged.maps.reshape(-1)[::step], quantiles),
                np.quantile(np.concatenate(marked), quantiles),
            ]
        )
    )
    shape = 3, len(judged.samples), len(edges) + 1
    negatives, positives, overlap = np.zeros(shape, np.float32)  # 24 kB an image, a map has 200
    for place in usable:
        bins = np.searchsorted(edges, judged.maps[place])
        mask = judged.masks[place]
        if mask is None:
            mask = np.zeros(bins.shape, bool)
        negatives[place] = np.bincount(bins[~mask], minlength=len(edges) + 1)
        if not mask.any():
            continue
        regions = label(mask, structure=np.ones((3, 3)))[0][mask]
        weight = 1 / np.bincount(regions)[regions]
        positives[place] = np.bincount(bins[mask], minlength=len(edges) + 1)
        overlap[place] = np.bincount(bins[mask], weight, minlength=len(edges) + 1)
    return negatives, positives, overlap


def _pixel_metrics(weights: Array, pixels: _Histograms | None) -> dict[str, Array]:
    if pixels is None:
        return {}
    drawn = weights.astype(np.float32)
    negatives, positives, overlap = ((drawn @ one).astype(np.float64) for one in pixels)
    return {
        "pixel_auroc": _area(negatives, positives),
        "pro": _area(negatives, overlap, PRO_LIMIT),
    }


def _from_above(counts: Array) -> Array:
    """How many there are in each bin and those above it."""
    return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, ::-1])


def _area(negatives: Array, positives: Array, limit: float = 1.0) -> Array:
    """Areas under curves as `padim_edge.detect.metrics` takes them, of histograms [.., bins]."""
    after = _from_above(negatives)
    before = after - negatives
    end = limit * after[:, :1]
    rising = np.clip(end, before, after) - before
    areas = rising**2 / (2 * np.maximum(negatives, 1)) + np.maximum(end - after, 0)
    total = end[:, 0] * positives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((areas * positives).sum(axis=1) / total)
