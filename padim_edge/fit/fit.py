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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from padim_edge.errors import (
    PadimEdgeError,
    UsageError,
)
from padim_edge.files import atomic_write
from padim_edge.fit.assemble import _model
from padim_edge.fit.features import OnError, _refuse, extract
from padim_edge.fit.ledoit_wolf import _ledoit_wolf, _scikit_learn
from padim_edge.fit.settings import Settings
from padim_edge.fit.state import _State
from padim_edge.fit.statistics import _statistics
from padim_edge.model.file import Model, read, write
from padim_edge.model.threshold import threshold_for
from padim_edge.progress import Progress, silent


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
        threshold_for(np.zeros(scores), rate)  # says how many are needed


# --- features ---------------------------------------------------------------------------------


# --- statistics -------------------------------------------------------------------------------


# --- Ledoit-Wolf ------------------------------------------------------------------------------


# --- the model --------------------------------------------------------------------------------


# --- saved moments ----------------------------------------------------------------------------
