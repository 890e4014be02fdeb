"""Heads beyond the presets: what was tried to find defects better, or to show them sharper.

    python benchmarks/further.py EMBEDDING FOLDER... [--work FOLDER] [--only 'NAME;...']
        [--resamples 1000] [--stop-after SECONDS]

EMBEDDING is of `padim-edge export --dims all`, with layers of 1/4, 1/8 and 1/16 of the image. Each
FOLDER is a data set. Every head of `HEADS` is fitted on all of train/good and judged on all of
test, in NumPy, on features that are computed once; Gaussians, left-out distances, shrinkage and
metrics are the product's own. No head chooses anything by looking at a test set.

Intervals: 95 % of a bootstrap of the test photos, good and defective ones each among themselves,
the same draws for all heads, so that differences are paired. It takes pixel metrics from histograms
of the maps (within .0005 of the exact ones, which the table gives).

What is in --work (features as float16, results a file each, in a folder for each embedding and set,
by their bytes) is not made again, so a long run can be made in pieces. One thread is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import photos_digest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from padim_edge.detect.metrics import PRO_LIMIT, compute_metrics
from padim_edge.export.channels import choose
from padim_edge.files import atomic_write
from padim_edge.fit import gaussian
from padim_edge.fit.basis import RIDGE
from padim_edge.fit.chosen import SEED
from padim_edge.fit.copies import Copies, Signature
from padim_edge.fit.features import BATCH, Backbone, Features
from padim_edge.fit.held_out import HeldOut
from padim_edge.fit.moments import moments_of
from padim_edge.fit.shrinkage import CANDIDATES, leave_one_out_likelihoods
from padim_edge.images.batches import read_batches, refuse
from padim_edge.images.dataset import test_samples, train_images
from padim_edge.images.masks import load_masks
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import Model, read
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import smoothing_matrix

Array = NDArray[Any]
SIGMA = 4.0
EPS = 0.01  # of the paper's head
FINE, MIDDLE, COARSE = 0, 1, 2  # places of the layers
BOTH, ALL = (MIDDLE, COARSE), (FINE, MIDDLE, COARSE)

# --------------------------------------------------------------------------------- the photos


class Photos:
    """A data set through a backbone.

    Attributes:
        labels: bool [n], of the test photos.
        masks: bool [n, H, W].
        groups: of nearly equal training photos, [N].
        size: of the score maps.
    """

    def __init__(self, embedding: Model, folder: Path, work: Path) -> None:
        self._embedding, self._work = embedding, work
        self.info = embedding.backbone_info
        self.size = self.info.image_size
        self.preprocess = Preprocess.whole(self.size)
        self._train_files, samples = train_images(folder), test_samples(folder)
        self._files = {"test": [sample.path for sample in samples]}
        self.labels = np.array([sample.is_anomalous for sample in samples])
        self.masks = np.zeros((len(samples), *self.size), bool)
        for mask, sample in zip(self.masks, samples, strict=True):
            if sample.masks:
                marked = load_masks(sample.masks, sample.path)
                mask[:] = self.preprocess.mask(Image.fromarray(marked))
        copies, kept = Copies(), []
        for files, images in read_batches(self._train_files, self.preprocess, BATCH, refuse):
            kept += [files[place] for place in copies.take(files, map(Signature.of, images))]
        self._files["train"], self.groups = kept, copies.groups()

    def __call__(self, which: str, layer: int, change: str = "") -> Array:
        """Maps of a layer, float32 [photos, C, h, w]; ``change`` is of `CHANGES`."""
        path = self._work / f"{which}{change and '-'}{change}-{layer}.npy"
        if not path.exists():
            for place, maps in enumerate(self._extract(which, change)):
                own = path.with_name(path.name.replace(f"-{layer}.", f"-{place}."))
                with atomic_write(own) as stream:
                    np.save(stream, maps)
        stored: Array = np.load(path)
        if len(stored) != len(self._files[which]):
            raise SystemExit(
                f"{path} is of {len(stored)} photos, and there are {len(self._files[which])}: "
                "delete it"
            )
        return stored.astype(np.float32)

    def _extract(self, which: str, change: str) -> list[Array]:
        made: list[list[Array]] = [[] for _ in self.info.layers]
        with Backbone(self._embedding, "ort", threads=1) as backbone:
            for _, images in read_batches(self._files[which], self.preprocess, BATCH, refuse):
                changed = CHANGES[change](images) if change else images
                for own, level, tree in zip(
                    made, backbone.pyramid.levels[::-1], backbone(changed)[::-1], strict=True
                ):
                    index = backbone.pyramid.levels.index(level)
                    flat = tree.reshape(len(tree), -1, level.channels).transpose(1, 0, 2)
                    maps = backbone.pyramid.from_tree(flat.reshape(len(flat), -1), index)
                    shape = (len(tree), level.channels, level.height, level.width)
                    own.append(maps.reshape(shape).astype(np.float16))
        return [np.concatenate(own) for own in made]


def _moved(rows: int, columns: int) -> Callable[[Array], Array]:
    """Images [n, H, W, 3] shifted; what comes in at a border repeats it."""
    pads = ((0, 0), *((max(by, 0), max(-by, 0)) for by in (rows, columns)), (0, 0))

    def move(images: Array) -> Array:
        height, width = images.shape[1:3]
        top, left = max(-rows, 0), max(-columns, 0)
        padded = np.pad(images, pads, "edge")
        return np.ascontiguousarray(padded[:, top : top + height, left : left + width])

    return move


def _lit(factor: float) -> Callable[[Array], Array]:
    return lambda images: (images * factor).round().clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Array], Array]] = {
    "flip": lambda images: np.ascontiguousarray(images[:, :, ::-1]),
    "up": _moved(-4, 0),
    "down": _moved(4, 0),
    "left": _moved(0, -4),
    "right": _moved(0, 4),
    "darker": _lit(0.9),
    "lighter": _lit(1.1),
}

# ------------------------------------------------------------------------------- from maps to maps


@dataclass
class Maps:
    """Something at each position of a grid, of training and of test photos.

    Attributes:
        train, test: float32 [photos, d, h, w].
    """

    train: Array
    test: Array

    def each(self, change: Callable[[Array], Array]) -> Maps:
        """Both changed."""
        return Maps(change(self.train), change(self.test))


@dataclass
class Distances:
    """What a head says.

    Attributes:
        train: distances of training photos that were left out of the fit, [N, h, w].
        test: distances of test photos, [n, h, w].
        values: constants at all positions together.
    """

    train: Array
    test: Array
    values: int = 0

    def each(self, change: Callable[[Array], Array]) -> Distances:
        """Both changed."""
        return dataclasses.replace(self, train=change(self.train), test=change(self.test))


@dataclass
class Judged:
    """Score maps [n, H, W] and image scores [n] of the test photos."""

    maps: Array
    scores: Array
    values: int


def resized(maps: Array, rows: Array, columns: Array | None = None) -> Array:
    """[..., h, w] by a matrix of its rows and one of its columns, or the same one."""
    result: Array = rows @ maps @ (rows if columns is None else columns).T
    return result


def averaged(maps: Array, grid: int, wide: bool = True) -> Array:
    """[photos, C, h, w] averaged as `padim_edge.model.pooling` does it, no finer than the grid.

    Args:
        maps: of one layer.
        grid: positions a side.
        wide: over some three positions of the grid a side; else over one.
    """
    size = maps.shape[2]
    steps = max(size // grid, 1)
    reach = (2 * steps + steps % 2 - steps) // 2 if wide else 0
    first = np.arange(size // steps)[:, None] * steps
    pixel = np.arange(size)
    matrix = ((pixel >= first - reach) & (pixel < first + steps + reach)).astype(np.float32)
    return resized(maps, matrix / matrix.sum(axis=1, keepdims=True))


def onto(maps: Array, grid: int) -> Array:
    """Resized up to the grid, bilinear."""
    return resized(maps, smoothing_matrix(grid, maps.shape[2], 0).astype(np.float32))


def repeated(maps: Array, grid: int) -> Array:
    """Repeated up to the grid."""
    times = grid // maps.shape[2]
    return maps.repeat(times, axis=2).repeat(times, axis=3)


def turned(matrix: Array, maps: Array) -> Array:
    """Matrix [C, d] ^T times maps [photos, C, h, w]."""
    flat: Array = matrix.T.astype(np.float32) @ maps.reshape(*maps.shape[:2], -1)
    return flat.reshape(len(maps), -1, *maps.shape[2:])


def directions(covariance: Array, dims: int) -> Array:
    """Q of `padim_edge.fit.basis`, [C, d], of a pooled covariance."""
    values, vectors = np.linalg.eigh(covariance)
    chosen = slice(None, -dims - 1, -1)
    scales = np.sqrt(values[chosen].clip(0) + RIDGE * values.mean())
    result: Array = vectors[:, chosen] / scales
    return result


def within(
    left: Sequence[Array], right: Sequence[Array], grid: int, up: Callable[[Array, int], Array]
) -> Array:
    """Mean over positions of the covariance within them of two lists of maps.

    Args:
        left: [N, C, h, w] each; resized to the grid, one after the other.
        right: the same.
        grid: positions a side.
        up: how they are resized; a linear function.
    """
    total = 0.0
    means = [[maps.mean(axis=0) for maps in side] for side in (left, right)]
    for photo in range(len(left[0])):
        one, other = (
            np.concatenate(
                [
                    up((maps[photo] - mean)[None], grid)[0].reshape(maps.shape[1], -1)
                    for maps, mean in zip(side, own, strict=True)
                ]
            )
            for side, own in zip((left, right), means, strict=True)
        )
        total = total + (one @ other.T).astype(np.float64)
    result: Array = np.asarray(total) / (grid * grid * (len(left[0]) - 1))
    return result


def whitened(layers: Sequence[Maps], grid: int, dims: int) -> Maps:
    """Principal directions of layers [photos, C, h, w], on a grid; no layer is finer than it."""
    trains = [layer.train for layer in layers]
    basis = directions(within(trains, trains, grid, onto), dims)
    starts = np.cumsum([0, *(maps.shape[1] for maps in trains)])
    # Projecting and resizing commute.
    parts = [
        layer.each(lambda maps, own=basis[start:stop]: onto(turned(own, maps), grid))  # type: ignore[misc]
        for layer, start, stop in zip(layers, starts, starts[1:], strict=False)
    ]
    summed = Maps(
        np.sum([part.train for part in parts], axis=0),
        np.sum([part.test for part in parts], axis=0),
    )
    mean = summed.train.mean(axis=0)
    return summed.each(lambda maps: maps - mean)


def beyond(coarse: Sequence[Maps], fine: Maps, dims: int) -> Maps:
    """Principal directions of a layer's maps, of what coarser whitened ones do not predict."""
    grid = fine.train.shape[2]
    trains = [maps.train for maps in coarse]
    # Within positions, the coarser ones together have the identity for covariance.
    slopes = within([fine.train], trains, grid, repeated)

    def rest(own: Array, others: Sequence[Array]) -> Array:
        known = np.concatenate([repeated(other, grid) for other in others], axis=1)
        return own - turned(slopes.T, known)

    new = Maps(rest(fine.train, trains), rest(fine.test, [maps.test for maps in coarse]))
    return whitened([new], grid, dims)


# --------------------------------------------------------------------------------------- Gaussians


def tree(levels: Sequence[Maps], groups: Array) -> tuple[Features, Features]:
    """Training and test photos as the product's fit takes them; levels coarse to fine."""
    named = [Layer(str(place), *maps.train.shape[1:]) for place, maps in enumerate(levels)]
    pyramid = Pyramid.coarse_to_fine(named)
    train = [pyramid.to_tree(place, maps.train) for place, maps in enumerate(levels)]
    test = [pyramid.to_tree(place, maps.test) for place, maps in enumerate(levels)]
    return (
        Features(pyramid, train, len(groups), groups=groups),
        Features(pyramid, test, len(test[0])),
    )


def likeliest(train: Features, keep: int = 1) -> float:
    """Alpha as `padim_edge.fit.shrinkage` chooses it; of several levels, at some finest positions.

    Args:
        train: of one level or several.
        keep: each so manyeth position.
    """
    found = []
    for cells in train.chunks():
        levels = train.of(cells)
        finest = len(levels[-1])
        whole = [level.repeat(finest // len(level), axis=0)[::keep] for level in levels]
        dense = np.concatenate(whole, axis=2)[:, train.firsts()]
        found.append(leave_one_out_likelihoods(dense, CANDIDATES).mean(axis=1))
    return CANDIDATES[int(np.concatenate(found).mean(axis=0).argmax())]


def gaussians(
    levels: Sequence[Maps], groups: Array, eps: float | None = None, added: Sequence[Array] = ()
) -> Distances:
    """Distances under a Gaussian at each position, those of training photos by leaving them out.

    Args:
        levels: coarse to fine.
        groups: [N] of the training photos.
        eps: added to the diagonal; None for that of the likeliest alpha.
        added: more training photos of a single level, [M, d, h, w], that are not left out, copies
            of those that are; the distances of the training photos are then not exact.
    """
    train, test = tree(levels, groups)
    pyramid = train.pyramid
    if eps is None:
        alpha = likeliest(train, 1 if len(levels) == 1 else 3)
        eps = alpha / (1 - alpha)
    more = (
        tree([Maps(np.concatenate(added), levels[0].test)], np.arange(sum(map(len, added))))[0]
        if added
        else None
    )
    parts = []
    held_out = HeldOut(pyramid, groups, len(groups), eps)
    for cells in train.chunks():
        own = train.of(cells)
        moments = moments_of(own)
        held_out(cells, own, moments)
        if more:
            moments = moments_of([np.concatenate([own[0], more.of(cells)[0]], axis=1)])
        blocks = gaussian.whitening(moments, eps)
        z = [x - mean[:, None] for x, mean in zip(test.of(cells), moments.means, strict=True)]
        parts.append(gaussian.squared_distances(blocks, z))
    squared = np.concatenate(parts)
    dims = np.cumsum([level.channels for level in pyramid.levels])
    values = sum(
        level.positions * level.channels * int(width)
        for level, width in zip(pyramid.levels, dims, strict=True)
    )
    left_out = held_out.maps(None).squared  # type: ignore[arg-type]
    return Distances(
        np.sqrt(pyramid.from_tree(left_out)), np.sqrt(pyramid.from_tree(squared)), values
    )


# ------------------------------------------------------------------------------------------ judging


def smooth(distances: Array, size: tuple[int, int], sigma: float = SIGMA) -> Array:
    """Score maps [n, H, W] of distances [n, h, w]."""
    matrices = map(smoothing_matrix, size, distances.shape[1:], (sigma, sigma))
    return resized(distances, *matrices).astype(np.float32)


def top(maps: Array) -> Array:
    """Image scores."""
    result: Array = maps.max(axis=(1, 2)).astype(np.float64)
    return result


class Heads:
    """Everything that heads of one data set share."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos
        self.groups = photos.groups
        self.size = photos.size
        self.grids = [shape[0] for shape in photos.info.layer_shapes]
        self.on_grid = functools.cache(self._on_grid)

    def judge(self, distances: Distances, sigma: float = SIGMA) -> Judged:
        """Smoothed, and the maximum."""
        maps = smooth(distances.test, self.size, sigma)
        return Judged(maps, top(maps), distances.values)

    def raw(self, layer: int) -> Maps:
        """A layer as it is."""
        return Maps(self.photos("train", layer), self.photos("test", layer))

    def layers(self, places: Sequence[int], grid: int, wide: Sequence[int] = ALL) -> list[Maps]:
        """Layers averaged for a grid, those of ``wide`` over neighbouring positions, too."""
        return [
            self.raw(place).each(lambda maps, own=place in wide: averaged(maps, grid, own))  # type: ignore[misc]
            for place in places
        ]

    def drawn(self, dims: Sequence[int]) -> Distances:
        """The paper's head on channels that are drawn."""
        info = self.photos.info
        chosen, _ = choose(info.layer_channels, tuple(dims), None, SEED, 100)
        own = dataclasses.replace(info, channels=chosen).selected()
        levels = [
            self.raw(place).each(lambda maps, some=list(some): maps[:, some])  # type: ignore[misc]
            for place, some in enumerate(own)
        ]
        return gaussians(levels[::-1], self.groups, EPS)

    @functools.cached_property
    def reference(self) -> Distances:
        """The paper's head."""
        return self.drawn((100,))

    @functools.cached_property
    def small_reference(self) -> Distances:
        """The paper's head with fewer channels of the finest layer."""
        return self.drawn((6, 28, 66))

    @functools.cached_property
    def y14(self) -> Maps:
        """Features of `whitened`."""
        return whitened(self.layers(BOTH, self.grids[COARSE]), self.grids[COARSE], 100)

    @functools.cached_property
    def coarse(self) -> Distances:
        """The head of `whitened`."""
        return gaussians([self.y14], self.groups)

    @functools.cached_property
    def fine(self) -> Distances:
        """The head of `whitened-fine`."""
        return self.on_grid(BOTH, self.grids[MIDDLE], 128)

    def _on_grid(
        self, places: Sequence[int], grid: int, dims: int, wide: Sequence[int] = ALL
    ) -> Distances:
        """Another choice of layers, grid, directions, and of the layers to average widely."""
        layers = self.layers(places, grid, wide)
        channels = sum(layer.train.shape[1] for layer in layers)
        return gaussians([whitened(layers, grid, min(dims, channels))], self.groups)

    def sharp(self, dims: int, places: Sequence[int] = BOTH) -> Distances:
        """On the grid of `whitened-fine`, nothing averaged."""
        return self.on_grid(places, self.grids[MIDDLE], dims, ())

    # ---- maps

    def powers(self, power: float) -> Judged:
        """Smoothed as powers of the distances."""
        maps = smooth(self.coarse.test**power, self.size) ** (1 / power)
        return Judged(maps, top(maps), self.coarse.values)

    def scaled(self, distances: Distances, centred: bool = False) -> Judged:
        """Distances by what good photos, left out, have at a position."""
        mean = distances.train.mean(axis=0)
        if centred:
            spread = distances.train.std(axis=0)
            return self.judge(distances.each(lambda own: (own - mean) / spread))
        return self.judge(distances.each(lambda own: own / mean))

    def sharpened(self) -> Judged:
        """Twice the map less what a Gaussian of one cell makes of it."""
        blurred = ndimage.gaussian_filter(self.coarse.test, (0, 1, 1))
        return self.judge(dataclasses.replace(self.coarse, test=2 * self.coarse.test - blurred))

    def eroded(self, distances: Distances) -> Judged:
        """Each position the least of its 3 x 3; scores from before."""
        least = ndimage.minimum_filter(distances.test, (1, 3, 3))
        return Judged(smooth(least, self.size), self.judge(distances).scores, distances.values)

    # ---- pyramids

    def pyramid(self, dims: Sequence[int], wide: bool = False, apart: bool = True) -> Judged:
        """Principal directions of each layer, coarse to fine; ``apart``: of what is new in it."""
        levels: list[Maps] = []
        for place, own in zip((COARSE, MIDDLE, FINE), dims, strict=True):
            grid = self.grids[place]
            (layer,) = self.layers((place,), grid, ALL if wide else ())
            own = min(own, layer.train.shape[1])
            new = beyond(levels, layer, own) if apart and levels else whitened([layer], grid, own)
            levels.append(new)
        return self.judge(gaussians(levels, self.groups))

    def upon(self, place: int, dims: int) -> Judged:
        """`whitened`, and below it what is new in a finer layer."""
        (layer,) = self.layers((place,), self.grids[place], ())
        levels = [self.y14, beyond([self.y14], layer, dims)]
        return self.judge(gaussians(levels, self.groups))

    # ---- statistics

    def regions(self, by_kind: bool, count: int = 4) -> Judged:
        """A basis for each of some regions of positions."""
        grid = self.grids[COARSE]
        layers = self.layers(BOTH, grid)
        joined = Maps(
            np.concatenate([layer.train for layer in layers], axis=1),
            np.concatenate([layer.test for layer in layers], axis=1),
        )
        mean, spread = joined.train.mean(axis=0), joined.train.std(axis=(0, 2, 3))
        joined = joined.each(lambda maps: maps - mean)
        channels = len(mean)
        if by_kind:
            points = mean.reshape(channels, -1).T / spread
            region = nearest_of(points, count).reshape(grid, grid)
        else:
            half = np.arange(grid) * 2 // grid
            region = 2 * half[:, None] + half
        made = joined.each(lambda maps: np.zeros_like(maps[:, :100]))
        for one in np.unique(region):
            own = region == one
            flat = joined.train[:, :, own].transpose(0, 2, 1).reshape(-1, channels)
            basis = directions(flat.T @ flat / (own.sum() * (len(joined.train) - 1)), 100)
            made.train[:, :, own] = basis.T @ joined.train[:, :, own]
            made.test[:, :, own] = basis.T @ joined.test[:, :, own]
        return self.judge(gaussians([made], self.groups))

    def poses(self, count: int, whole: bool) -> Judged:
        """Several means with one covariance, at each position or of whole photos."""
        train, test = tree([self.y14], self.groups)
        alpha = likeliest(train)
        x = np.concatenate([train.of(cells)[0] for cells in train.chunks()])  # [P, N, d]
        y = np.concatenate([test.of(cells)[0] for cells in test.chunks()])
        if whole:
            flat = x.transpose(1, 0, 2).reshape(x.shape[1], -1)
            own = np.tile(nearest_of(flat, count), (len(x), 1))
        else:
            own = np.stack([nearest_of(points, count) for points in x])
        members = (own[:, :, None] == np.arange(count)).astype(np.float64)  # [P, N, K]
        sizes = members.sum(axis=1)
        means = members.transpose(0, 2, 1) @ x / np.maximum(sizes, 1)[:, :, None]
        rest = x - members @ means
        moments = moments_of([rest])
        moments = dataclasses.replace(moments, count=x.shape[1] - count + 1)
        blocks = gaussian.whitening(moments, alpha / (1 - alpha))
        each = np.stack(
            [
                np.where(
                    sizes[:, k, None] > 0,
                    gaussian.squared_distances(blocks, [y - means[:, k, None]]),
                    np.inf,
                )
                for k in range(count)
            ]
        )
        if whole:
            best = np.sqrt(each).mean(axis=1).argmin(axis=0)
            squared = each[best, :, np.arange(y.shape[1])].T
        else:
            squared = each.min(axis=0)
        maps = np.sqrt(train.pyramid.from_tree(np.ascontiguousarray(squared)))
        return self.judge(Distances(maps[:0], maps, self.coarse.values))  # nothing is left out

    def augmented(self, changes: Sequence[str]) -> Judged:
        """Changed copies among the training photos; basis and alpha of the photos themselves."""
        grid = self.grids[COARSE]
        layers = self.layers(BOTH, grid)
        added = []
        for change in changes:
            both = [
                Maps(layer.train, averaged(self.photos("train", place, change), grid))
                for place, layer in zip(BOTH, layers, strict=True)
            ]
            added.append(whitened(both, grid, 100).test)
        return self.judge(gaussians([self.y14], self.groups, added=added))

    def by_position(self) -> Judged:
        """As many directions as a position's covariance has in effect, 100 in the mean."""
        grid = self.grids[COARSE]
        layers = self.layers(BOTH, grid)
        channels = sum(self.photos.info.layer_channels[1:])
        y = whitened(layers, grid, channels)
        values = y.train.var(axis=0)
        effective = values.sum(axis=0) ** 2 / (values**2).sum(axis=0)
        dims = (100 * effective / effective.mean()).round().clip(20, channels).astype(int)
        alpha = likeliest(tree([self.y14], self.groups)[0])
        # A channel that is 0 in all photos adds nothing to any distance.
        some = y.each(lambda maps: maps * (np.arange(channels)[:, None, None] < dims))
        made = gaussians([some], self.groups, alpha / (1 - alpha))
        return self.scaled(dataclasses.replace(made, values=int((dims**2).sum())))

    # ---- two heads

    def level(self, distances: Distances) -> tuple[Array, Array]:
        """Score maps, and scores, in units of the median score of left-out training photos."""
        usual = float(np.median(top(smooth(distances.train, self.size))))
        maps = smooth(distances.test, self.size) / usual
        return maps, top(maps)

    def together(
        self,
        one: Distances,
        other: Distances,
        how: Callable[[Array, Array], Array],
        own_score: bool = False,
    ) -> Judged:
        """A map of two heads' maps; its maximum, or with ``own_score`` that of the first."""
        (first, score), (second, _) = self.level(one), self.level(other)
        maps = how(first, second).astype(np.float32)
        return Judged(maps, score if own_score else top(maps), one.values + other.values)


def nearest_of(points: Array, count: int) -> Array:
    """Which of some means each point [n, d] is nearest to; k-means from far points, [n]."""
    centre = points.mean(axis=0)
    chosen = [int(((points - centre) ** 2).sum(axis=1).argmin())]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    draw = np.random.default_rng(0)
    while len(chosen) < count:  # k-means++
        total = distance.sum()
        chosen.append(int(draw.choice(len(points), p=distance / total)) if total > 0 else 0)
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    means = points[chosen].astype(np.float64)
    for _ in range(10):
        squares = (means**2).sum(axis=1) - 2 * points @ means.T
        own = squares.argmin(axis=1)
        for k in np.unique(own):
            means[k] = points[own == k].mean(axis=0)
    return np.asarray(own)


def guided(coarse: Array, fine: Array) -> Array:
    """A coarse map with the detail of a fine one."""
    detail: Array = fine / ndimage.gaussian_filter(fine, (0, 16, 16))
    return coarse * detail


Head = Callable[[Heads], Judged]
SHIFTS = ("up", "down", "left", "right")
LIGHTS = ("darker", "lighter")
TWO: dict[str, Callable[[Array, Array], Array]] = {
    "mean": lambda a, b: (a + b) / 2,
    "geometric mean": lambda a, b: np.sqrt(a * b),
    "root of squares": np.hypot,
    "smaller": np.minimum,
    "larger": np.maximum,
    "guided": guided,
    "second": lambda _, b: b,
}


HEADS: dict[str, Head] = {
    "reference": lambda h: h.judge(h.reference),
    "reference 6,28,66": lambda h: h.judge(h.small_reference),
    "whitened": lambda h: h.judge(h.coarse),
    "whitened-fine": lambda h: h.judge(h.fine),
    # Maps, at no cost.
    "whitened, sigma 0": lambda h: h.judge(h.coarse, 0),
    "whitened, sigma 2": lambda h: h.judge(h.coarse, 2),
    "whitened, sigma 8": lambda h: h.judge(h.coarse, 8),
    "whitened, squares smoothed": lambda h: h.powers(2),
    "whitened, 4th powers smoothed": lambda h: h.powers(4),
    "whitened, a scale each position": lambda h: h.scaled(h.coarse),
    "whitened, a z-score each position": lambda h: h.scaled(h.coarse, centred=True),
    "whitened-fine, a scale each position": lambda h: h.scaled(h.fine),
    "reference, a scale each position": lambda h: h.scaled(h.reference),
    "whitened, sharpened": lambda h: h.sharpened(),
    "whitened, eroded": lambda h: h.eroded(h.coarse),
    "whitened-fine, eroded": lambda h: h.eroded(h.fine),
    # Features.
    "28, not averaged, d 128": lambda h: h.judge(h.sharp(128)),
    "28, not averaged, d 64": lambda h: h.judge(h.sharp(64)),
    "14 with layer1, d 100": lambda h: h.judge(h.on_grid(ALL, h.grids[2], 100)),
    "28 with layer1, d 128": lambda h: h.judge(h.on_grid(ALL, h.grids[1], 128)),
    "56 with layer1, d 64": lambda h: h.judge(h.on_grid(ALL, h.grids[0], 64)),
    "56 without layer1, d 64": lambda h: h.judge(h.on_grid(BOTH, h.grids[0], 64)),
    # Coarse to fine.
    "pyramid 59,23,18": lambda h: h.pyramid((59, 23, 18)),
    "pyramid 59,23,18, layers by themselves": lambda h: h.pyramid((59, 23, 18), apart=False),
    "pyramid 59,23,18, averaged": lambda h: h.pyramid((59, 23, 18), wide=True),
    "pyramid 66,28,6": lambda h: h.pyramid((66, 28, 6)),
    "pyramid 100,48,16": lambda h: h.pyramid((100, 48, 16)),
    "whitened + layer2, 16 at 28": lambda h: h.upon(MIDDLE, 16),
    "whitened + layer1, 16 at 56": lambda h: h.upon(FINE, 16),
    # Statistics.
    "basis by 4 kinds of positions": lambda h: h.regions(by_kind=True),
    "basis by quarters": lambda h: h.regions(by_kind=False),
    "all directions": lambda h: h.judge(h.on_grid(BOTH, h.grids[2], 10_000)),
    "d by position, scaled": lambda h: h.by_position(),
    "2 means a position": lambda h: h.poses(2, whole=False),
    "4 means a position": lambda h: h.poses(4, whole=False),
    "2 poses": lambda h: h.poses(2, whole=True),
    "4 poses": lambda h: h.poses(4, whole=True),
    "augmented: flips": lambda h: h.augmented(("flip",)),
    "augmented: shifts": lambda h: h.augmented(SHIFTS),
    "augmented: light": lambda h: h.augmented(LIGHTS),
    "augmented: all": lambda h: h.augmented(("flip", *SHIFTS, *LIGHTS)),
    # Two heads.
    **{
        f"whitened, reference: {name}": lambda h, how=how: h.together(h.coarse, h.reference, how)  # type: ignore[misc]
        for name, how in TWO.items()
        if name != "second"
    },
    "score whitened, map reference": lambda h: h.together(
        h.coarse, h.reference, TWO["second"], own_score=True
    ),
    "whitened, reference 6,28,66: mean": lambda h: h.together(
        h.coarse, h.small_reference, TWO["mean"]
    ),
    "whitened, whitened-fine: mean": lambda h: h.together(h.coarse, h.fine, TWO["mean"]),
    "whitened-fine, reference: mean": lambda h: h.together(h.fine, h.reference, TWO["mean"]),
    # Added when the tiles had shown that averaging costs PRO and gives image AUROC.
    "28, not averaged, d 32": lambda h: h.judge(h.sharp(32)),
    "28 with layer1, not averaged, d 64": lambda h: h.judge(h.sharp(64, ALL)),
    "28 with layer1, not averaged, d 128": lambda h: h.judge(h.sharp(128, ALL)),
    "28, layer3 averaged, d 64": lambda h: h.judge(h.on_grid(BOTH, h.grids[1], 64, (COARSE,))),
    "28, layer3 averaged, d 128": lambda h: h.judge(h.on_grid(BOTH, h.grids[1], 128, (COARSE,))),
    "28, layer2 averaged, d 64": lambda h: h.judge(h.on_grid(BOTH, h.grids[1], 64, (MIDDLE,))),
    "28, layer2 averaged, d 128": lambda h: h.judge(h.on_grid(BOTH, h.grids[1], 128, (MIDDLE,))),
    **{
        f"whitened, 28 not averaged d 64: {name}": lambda h, how=how: h.together(  # type: ignore[misc]
            h.coarse, h.sharp(64), how
        )
        for name, how in TWO.items()
        if name in ("mean", "geometric mean", "smaller")
    },
    # Added when all sets had been seen: bottle wants positions as fine as the paper's.
    **{
        f"56 with layer1, not averaged, d {dims}": lambda h, dims=dims: h.judge(  # type: ignore[misc]
            h.on_grid(ALL, h.grids[0], dims, ())
        )
        for dims in (32, 48, 64)
    },
    "56 without layer1, not averaged, d 64": lambda h: h.judge(h.on_grid(BOTH, h.grids[0], 64, ())),
    "28 with layer1, layer3 averaged, d 128": lambda h: h.judge(
        h.on_grid(ALL, h.grids[1], 128, (COARSE,))
    ),
    "28, not averaged, d 128, sigma 2": lambda h: h.judge(h.sharp(128), 2),
}

# ------------------------------------------------------------------------------------ the bootstrap


def resampled(photos: Photos, judged: Judged, resamples: int, name: str) -> Array:
    """Image AUROC, pixel AUROC and PRO of draws of the test photos, [resamples, 3]."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    weights = np.zeros((resamples, len(photos.labels)))
    for kind in (photos.labels, ~photos.labels):
        places = np.flatnonzero(kind)
        weights[:, places] = draw.multinomial(
            len(places), np.full(len(places), 1 / len(places)), resamples
        )
    bad, good = judged.scores[photos.labels], judged.scores[~photos.labels]
    pairs = (bad[:, None] > good) + (bad[:, None] == good) / 2
    auroc = np.einsum(
        "ri,rj,ij->r", weights[:, photos.labels], weights[:, ~photos.labels], pairs, optimize=True
    ) / (len(bad) * len(good))
    pixel, pro = pixel_areas(photos.labels, photos.masks, judged.maps, weights)
    return np.stack([auroc, pixel, pro], axis=1)


BINS = 2000


def pixel_areas(labels: Array, masks: Array, maps: Array, weights: Array) -> tuple[Array, Array]:
    """Pixel AUROC and PRO, from histograms of each photo's pixels.

    Args:
        labels: bool [n].
        masks: bool [n, H, W].
        maps: [n, H, W].
        weights: [K, n], how often each photo counts.

    Returns:
        [K] each.
    """
    usable = np.flatnonzero(~labels | masks.any(axis=(1, 2)))
    some = np.random.default_rng(0).choice(maps[usable][~masks[usable]], 200_000)
    # Fine where few good pixels lie: PRO looks there.
    rates = np.concatenate([np.geomspace(1e-5, 0.05, BINS // 2), np.linspace(0.05, 1, BINS // 2)])
    edges = np.unique(np.quantile(some, 1 - rates))
    shape = (len(usable), len(edges) + 1)
    negative, positive, overlap = (np.zeros(shape) for _ in range(3))
    for row, place in enumerate(usable):
        mask = masks[place]
        bins = np.searchsorted(edges, maps[place])
        negative[row] = np.bincount(bins[~mask], minlength=shape[1])
        regions = ndimage.label(mask, np.ones((3, 3)))[0][mask]
        if regions.size:
            positive[row] = np.bincount(bins[mask], minlength=shape[1])
            each = 1 / np.bincount(regions)[regions]
            overlap[row] = np.bincount(bins[mask], each, minlength=shape[1])
    fpr, tpr, pro = (
        (weights[:, usable] @ counts)[:, ::-1].cumsum(axis=1)
        for counts in (negative, positive, overlap)
    )
    return tuple(  # type: ignore[return-value]
        np.array([_area(x / x[-1], y / y[-1], limit) for x, y in zip(fpr, curve, strict=True)])
        for curve, limit in ((tpr, 1.0), (pro, PRO_LIMIT))
    )


def _area(x: Array, y: Array, limit: float) -> float:
    x, y = np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
    stop = int(np.searchsorted(x, limit))
    end = float(np.interp(limit, x, y))
    return float(np.trapezoid([*y[:stop], end], [*x[:stop], limit]) / limit)


# ------------------------------------------------------------------------------------------ the run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embedding", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("further"), help="features and results")
    parser.add_argument("--only", help="heads, with ; between them; all by default")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds")
    options = parser.parse_args()
    wanted = [name.strip() for name in options.only.split(";")] if options.only else list(HEADS)
    unknown = [name for name in wanted if name not in HEADS]
    if unknown:
        raise SystemExit(f"--only {'; '.join(unknown)}: choose among {'; '.join(HEADS)}")
    embedding = read(options.embedding, "embedding")
    works = [_work(options.work, embedding, folder) for folder in options.folders]
    start = time.monotonic()
    for folder, work in zip(options.folders, works, strict=True):
        missing = [name for name in wanted if _kept(work, name, options.resamples) is None]
        if not missing:
            continue
        if time.monotonic() - start > options.stop_after:
            break
        work.mkdir(parents=True, exist_ok=True)
        photos = Photos(embedding, folder, work)
        heads = Heads(photos)
        for name in missing:
            if time.monotonic() - start > options.stop_after:
                break
            began = time.monotonic()
            judged = HEADS[name](heads)
            masks = list(photos.masks)
            exact = compute_metrics(photos.labels, judged.scores, 0.0, masks, judged.maps)
            with atomic_write(_file(work, name)) as stream:
                np.savez(
                    stream,
                    exact=np.array([exact.image_auroc, exact.pixel_auroc, exact.pro], float),
                    drawn=resampled(photos, judged, options.resamples, folder.name),
                    values=np.array(judged.values),
                )
            print(folder.name, name, f"{time.monotonic() - began:.1f} s", flush=True)
    for work in works:
        print(table(work, wanted, options.resamples))


def _work(root: Path, embedding: Model, folder: Path) -> Path:
    """Where everything of an embedding and a data set is, whatever else bears their names."""
    digest = hashlib.sha256(f"{embedding.sha256} {photos_digest(folder)}".encode()).hexdigest()[:12]
    return root / f"{embedding.backbone_info.backbone}-{folder.name}-{digest}"


def _file(work: Path, name: str) -> Path:
    return work / f"{''.join(c if c.isalnum() else '-' for c in name)}.npz"


def _kept(work: Path, name: str, resamples: int) -> dict[str, Array] | None:
    """Results of a head, if they are there, of so many draws."""
    path = _file(work, name)
    if not path.exists():
        return None
    with np.load(path) as stored:
        found = dict(stored)
    return found if len(found["drawn"]) == resamples else None


def table(work: Path, names: Sequence[str], resamples: int) -> str:
    """Figures of one set, and how far image AUROC is from `whitened`, and PRO from `reference`."""
    found = ((name, _kept(work, name, resamples)) for name in names)
    made = {name: own for name, own in found if own is not None}
    lines = [
        f"{work.name}",
        "",
        "| head | image AUROC | pixel AUROC | PRO | MB | image AUROC - whitened "
        "| PRO - reference |",
        "|---|---|---|---|---|---|---|",
    ]
    bases = [("whitened", 0), ("reference", 2)]
    for name, own in made.items():
        cells = [f"{value:.4f}" for value in own["exact"]]
        cells.append(f"{2e-6 * own['values']:.1f}")
        for base, metric in bases:
            if base not in made:
                cells.append("-")
                continue
            other = made[base]
            low, high = np.quantile(
                own["drawn"][:, metric] - other["drawn"][:, metric], (0.025, 0.975)
            )
            difference = own["exact"][metric] - other["exact"][metric]
            cells.append(f"{difference:+.4f} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
