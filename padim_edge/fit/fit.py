"""Fit: from embedding.onnx and good images to padim.onnx, in bounded memory and without torch.

1. `extract`     images through the graph; selected maps go to a store, in tree order
2. `_statistics` cell by cell: moments, whitening, leave-one-out distances of the same images
3. `_calibrate`  leave-one-out score maps, their maxima, the threshold
4. the graph, with everything as constants, written at once or not at all

Selected maps are small (0.34 MB an image for ResNet-18, 1.8 MB for WideResNet-50-2) because
nothing is repeated to the finest resolution; past `STORE_IN_MEMORY` bytes they go to a temporary
file. Everything after that needs only a few cells at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from padim_edge.errors import (
    ImageError,
    MissingDependencyError,
    ModelError,
    PadimEdgeError,
    UsageError,
)
from padim_edge.files import atomic_write
from padim_edge.fit import gaussian
from padim_edge.fit.gaussian import Array, Moments
from padim_edge.images.preprocess import Preprocess, read_batches
from padim_edge.model import graph
from padim_edge.model.file import FEATURES, DetectorInfo, Model, read, write
from padim_edge.model.pyramid import Pyramid
from padim_edge.progress import Progress, silent
from padim_edge.runtime.engines import open_graph
from padim_edge.system import available_cores

DEFAULT_FALSE_ALARM_RATE = 0.01
EPS = 0.01
SIGMA = 4.0
FOLDS = 5
BATCH = 8
STORE_IN_MEMORY = 512 * 2**20
CHUNK_BYTES = 16 * 2**20

OnError = Callable[[Path, ImageError], None]


def _refuse(_path: Path, error: ImageError) -> None:
    """No image is forgiven."""
    raise error


@dataclass(frozen=True)
class Settings:
    """How to fit. None for ``false_alarm_rate``: 1 %, or the lowest that the images allow."""

    preprocess: Preprocess
    covariance: str = "sample"
    constants: str = "float16"
    eps: float = EPS
    sigma: float = SIGMA
    false_alarm_rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted.

        Raises:
            UsageError: an unknown name or a number out of range.
        """
        if self.covariance not in ("sample", "ledoit-wolf"):
            raise UsageError(f"--covariance {self.covariance}: choose sample or ledoit-wolf")
        if self.constants not in graph.CONSTANTS:
            raise UsageError(f"--constants {self.constants}: choose {', '.join(graph.CONSTANTS)}")
        if not 0 <= self.eps < np.inf:
            raise UsageError(f"--eps {self.eps}: a finite number that is not negative is needed")
        if not 0 <= self.sigma <= 64:
            raise UsageError(f"--sigma {self.sigma}: choose 0 to 64 pixels")
        rate = self.false_alarm_rate
        if rate is not None and not 1e-6 <= rate < 1:
            raise UsageError(f"--false-alarm-rate {rate}: a number from 1e-6 to below 1 is needed")


@dataclass(frozen=True)
class Fitted:
    """What a fit made: the model, its bytes on disk, seconds by stage."""

    model: Model
    size: int
    new_images: int
    seconds_features: float
    seconds_statistics: float


def fit_detector(
    embedding_path: str | Path,
    images: Sequence[Path],
    output: str | Path,
    settings: Settings,
    *,
    update: Path | None = None,
    save_moments: Path | None = None,
    threads: int = 0,
    on_error: OnError = _refuse,
    progress: Progress = silent,
) -> Fitted:
    """Fit a detector on good images and write it.

    Args:
        embedding_path: a file made by export.
        images: good images.
        output: the file to write.
        settings: how to fit.
        update: saved moments of earlier images to go on from.
        save_moments: where to save the moments of all images, for a later ``update``.
        threads: of ONNX Runtime; 0 for all cores.
        on_error: called for each image that cannot be read, which is then left out; it may
            raise, and does unless told otherwise.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: too few images, unreadable files, features that are not finite, ...;
            nothing is written then.
    """
    embedding = read(embedding_path, "embedding")
    if settings.preprocess.size != embedding.backbone_info.image_size:
        raise UsageError(
            f"the preprocessing gives {settings.preprocess.size}, the graph takes "
            f"{embedding.backbone_info.image_size}"
        )
    earlier = _State.load(update, embedding, settings) if update else None
    if settings.covariance == "ledoit-wolf" and (update or save_moments):
        raise UsageError(
            "--covariance ledoit-wolf has no moments to save or update: fit all images together"
        )
    _check_count(len(images), earlier, settings)
    _check_distinct(embedding=Path(embedding_path), output=Path(output), moments=save_moments)
    if settings.covariance == "ledoit-wolf":
        _scikit_learn()
    with contextlib.ExitStack() as files:
        # Closed, and so renamed, in reverse: the moments only once the model is in its place.
        # Otherwise an update that failed between the two would count its images twice when
        # repeated.
        state_stream = files.enter_context(atomic_write(save_moments)) if save_moments else None
        stream = files.enter_context(atomic_write(output))
        start = time.perf_counter()
        features = extract(embedding, images, settings.preprocess, threads, on_error, progress)
        extracted = time.perf_counter()
        _check_count(features.count, earlier, settings)
        if settings.covariance == "sample":
            statistics = _statistics(
                features, settings, earlier, bool(save_moments), threads, progress
            )
        else:
            statistics = _ledoit_wolf(features, settings, threads, progress)
        model = _model(embedding, features.count, statistics, settings, earlier)
        size = write(stream, model)
        finished = time.perf_counter()
        if state_stream and statistics.moments:
            scores = np.concatenate([earlier.scores if earlier else [], statistics.scores])
            state = _State(embedding.sha256, settings, statistics.moments, scores)
            state.save(state_stream)
    return Fitted(model, size, features.count, extracted - start, finished - extracted)


def _check_distinct(**files: Path | None) -> None:
    """Refuse to write one file over another."""
    places = [path.resolve() for path in files.values() if path]
    if len(set(places)) < len(places):
        raise UsageError(
            f"{', '.join(files)} must be different files; {', '.join(map(str, places))} were given"
        )


def _check_count(count: int, earlier: _State | None, settings: Settings) -> None:
    """Refuse a number of images that cannot give a covariance or the threshold asked for."""
    scores = count + (len(earlier.scores) if earlier else 0)
    if count < 1 or scores < 3:
        raise PadimEdgeError(
            f"{count} usable image{'s' * (count != 1)} given: a fit needs at least 3 good images, "
            "and 30 or more to be worth something"
        )
    rate = settings.false_alarm_rate
    if rate is not None:
        gaussian.threshold(np.zeros(scores), rate)  # says how many are needed


# --- features ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Selected maps of all images in tree order: per level [N, cells, per cell x d] float32."""

    pyramid: Pyramid
    levels: list[NDArray[np.float32]]
    count: int

    def chunks(self) -> Iterator[slice]:
        """Runs of cells whose blocks and features take some `CHUNK_BYTES` in float64."""
        levels = self.pyramid.levels
        known = np.cumsum([level.channels for level in levels])
        values = sum(
            self.pyramid.positions_per_cell(index) * level.channels * (int(width) + self.count)
            for (index, level), width in zip(enumerate(levels), known, strict=True)
        )
        step = max(1, CHUNK_BYTES // (8 * values))
        for start in range(0, self.pyramid.cells, step):
            yield slice(start, min(start + step, self.pyramid.cells))

    def of(self, cells: slice) -> list[Array]:
        """Features of some cells, per level [P, N, d] float64."""
        result = []
        for index, level in enumerate(self.pyramid.levels):
            values = self.levels[index][: self.count, cells]
            split = values.reshape(self.count, -1, level.channels)
            result.append(np.ascontiguousarray(split.transpose(1, 0, 2), dtype=np.float64))
        return result


def extract(
    embedding: Model,
    images: Sequence[Path],
    preprocess: Preprocess,
    threads: int = 0,
    on_error: OnError = _refuse,
    progress: Progress = silent,
) -> Features:
    """Run images through the backbone and keep the selected maps.

    Raises:
        PadimEdgeError: an image cannot be read and ``on_error`` does not forgive it, or the
            features are not finite.
    """
    pyramid = Pyramid.coarse_to_fine(embedding.backbone_info.pyramid_layers())
    shapes = [
        (len(images), pyramid.cells, pyramid.positions_per_cell(index) * level.channels)
        for index, level in enumerate(pyramid.levels)
    ]
    levels = _store(shapes)
    count = 0
    names = embedding.feature_names()
    data = graph.subgraph(embedding.proto, ["image"], names).SerializeToString()
    progress("features", 0, len(images))
    with open_graph(data, threads) as runner:
        for _, batch in read_batches(images, preprocess, BATCH, on_error):
            maps = dict(zip(names, runner.run({"image": batch}, names), strict=True))
            for index, level in enumerate(pyramid.levels):
                own = np.concatenate(
                    [maps[FEATURES + layer.name] for layer in level.layers], axis=1
                )
                if not np.isfinite(own).all():
                    raise PadimEdgeError(
                        f"the backbone gives NaN or infinity at {level.name}: check its weights"
                    )
                levels[index][count : count + len(batch)] = pyramid.to_tree(index, own)
            count += len(batch)
            progress("features", count, len(images))
    return Features(pyramid, levels, count)


def _store(shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Arrays in memory, or in a temporary file that vanishes with them."""
    sizes = [4 * int(np.prod(shape)) for shape in shapes]
    if sum(sizes) <= STORE_IN_MEMORY:
        return [np.empty(shape, dtype=np.float32) for shape in shapes]
    arrays: list[NDArray[np.float32]] = []
    for shape, size in zip(shapes, sizes, strict=True):
        with tempfile.TemporaryFile(prefix="padim-edge-") as file:
            try:
                # A full disk must be an error here, not a crash when a page is written.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise PadimEdgeError(
                    f"no room for {sum(sizes) / 1e9:.1f} GB of features in "
                    f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a larger disk"
                ) from error
            arrays.append(np.memmap(file, dtype=np.float32, mode="r+", shape=shape))
    return arrays


# --- statistics -------------------------------------------------------------------------------


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

    kept = gaussian.empty_moments(total, means) if keep else None

    def of(cells: slice) -> None:
        """Everything for a run of cells; runs touch disjoint parts of the arrays above."""
        own = features.of(cells)
        stats = gaussian.moments(own)
        if earlier:
            stats = gaussian.merge(earlier.part(features, cells), stats)
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
    rows = gaussian.smoothing_matrix(height, pyramid.height, settings.sigma)
    columns = gaussian.smoothing_matrix(width, pyramid.width, settings.sigma)
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

    def put(self, cells: slice, blocks: gaussian.Blocks) -> None:
        """Store the blocks of some cells."""
        for (index, other), rows in blocks.items():
            place = self.pyramid.positions_in(index, cells)
            for suffix, values in graph.store(rows, self.constants).items():
                self.arrays[f"{index}.{other}{suffix}"][place] = values


# --- Ledoit-Wolf ------------------------------------------------------------------------------


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

    def gaussian_of(samples: Array) -> tuple[Array, gaussian.Blocks]:
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


# --- the model --------------------------------------------------------------------------------


def _model(
    embedding: Model,
    count: int,
    statistics: Statistics,
    settings: Settings,
    earlier: _State | None,
) -> Model:
    """padim.onnx in memory."""
    scores = statistics.scores
    calibration = statistics.calibration
    if earlier:
        scores = np.concatenate([earlier.scores, scores])
        calibration += f", and {len(earlier.scores)} earlier ones as scored in their own fit"
    rate = settings.false_alarm_rate
    if rate is None:
        rate = max(DEFAULT_FALSE_ALARM_RATE, gaussian.smallest_false_alarm_rate(len(scores)))
    detector_info = DetectorInfo(
        preprocess=settings.preprocess,
        covariance=settings.covariance,
        eps=settings.eps if settings.covariance == "sample" else 0.0,
        sigma=settings.sigma,
        constants=settings.constants,
        images=count + (earlier.moments.count if earlier else 0),
        threshold=gaussian.threshold(scores, rate),
        false_alarm_rate=rate,
        calibration=calibration,
        good_scores=tuple(float(score) for score in np.sort(scores)),
    )
    pyramid = statistics.pyramid
    parts = [
        graph.distances(pyramid, statistics.means, statistics.whitening),
        graph.smoothing(pyramid, settings.preprocess.size, settings.sigma),
    ]
    proto = graph.detector(embedding.proto, embedding.backbone_info, parts)
    return Model(proto, embedding.backbone_info, detector_info)


# --- saved moments ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What a later fit needs to go on: moments, held-out scores, and under what they were made."""

    embedding_sha256: str
    settings: Settings
    moments: Moments
    scores: Array

    def part(self, features: Features, cells: slice) -> Moments:
        """The moments of some cells."""
        where = [
            features.pyramid.positions_in(i, cells) for i in range(len(features.pyramid.levels))
        ]
        return Moments(
            self.moments.count,
            [mean[place] for mean, place in zip(self.moments.means, where, strict=True)],
            {key: scatter[where[key[0]]] for key, scatter in self.moments.scatters.items()},
        )

    def save(self, stream: BinaryIO) -> None:
        """Write as .npz without pickles."""
        arrays: dict[str, Any] = {f"mean.{i}": m for i, m in enumerate(self.moments.means)}
        arrays |= {f"scatter.{i}.{j}": s for (i, j), s in self.moments.scatters.items()}
        header = json.dumps(
            {"count": self.moments.count, **_identity(self.embedding_sha256, self.settings)}
        )
        arrays["header"] = np.frombuffer(header.encode(), dtype=np.uint8)
        np.savez(stream, scores=self.scores, **arrays)

    @classmethod
    def load(cls, path: Path, embedding: Model, settings: Settings) -> _State:
        """Read moments saved for the same embedding and settings.

        Raises:
            PadimEdgeError: the file cannot be read, is damaged or is of another fit.
        """
        pyramid = embedding.pyramid()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(bytes(arrays["header"]))
                count = header.pop("count")
                wanted = _identity(embedding.sha256, settings)
                different = [key for key in wanted if header.get(key) != wanted[key]]
                if different:
                    raise UsageError(
                        f"{path} was saved with another {' and '.join(different)}: fit with the "
                        "same, or fit all images together"
                    )

                def part(name: str, *shape: int) -> Array:
                    """An array of float64 of this shape, finite."""
                    values: Array = arrays[name]
                    if values.dtype != np.float64 or values.shape != shape:
                        raise ValueError(f"{name} has a wrong type or shape")
                    if not np.isfinite(values).all():
                        raise ValueError(f"{name} holds NaN or infinity")
                    return values

                levels = pyramid.levels
                means = [
                    part(f"mean.{i}", level.positions, level.channels)
                    for i, level in enumerate(levels)
                ]
                scatters = {
                    (i, j): part(
                        f"scatter.{i}.{j}", level.positions, level.channels, levels[j].channels
                    )
                    for i, level in enumerate(levels)
                    for j in range(i + 1)
                }
                scores = part("scores", count)
        except UsageError:
            raise
        except OSError as error:
            raise PadimEdgeError(
                f"cannot read the moments {path}: {error.strerror or error}"
            ) from error
        except Exception as error:  # zipfile, numpy and json each have their own for damage
            raise ModelError(
                f"{path} is not a file of moments of this embedding, or it is damaged: save one "
                "with padim-edge fit --save-moments"
            ) from error
        return cls(embedding.sha256, settings, Moments(count, means, scatters), scores)


def _identity(embedding_sha256: str, settings: Settings) -> dict[str, Any]:
    """What two fits must share for their moments to be added."""
    return {
        "embedding": embedding_sha256,
        "preprocess": settings.preprocess.to_json(),
        "eps": settings.eps,
        "sigma": settings.sigma,
    }
