"""Evaluation: metrics of a detector on a test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.detect.judging import judge
from padim_edge.detect.metrics import Metrics, compute_metrics, require_eval_extra
from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.batches import OnError
from padim_edge.images.dataset import Sample
from padim_edge.images.frames import files
from padim_edge.images.masks import load_masks
from padim_edge.progress import Progress, silent


def evaluate_detector(
    detector: Detector,
    samples: Sequence[Sample],
    batch: int,
    on_error: OnError,
    progress: Progress = silent,
) -> Metrics:
    """Metrics of a detector on a test set.

    Masks go through the same geometry as the images, with nearest neighbours. An image whose
    file or mask cannot be read is left out, after ``on_error`` was told.

    Args:
        detector: an open detector.
        samples: the test set.
        batch: images per run of the engine.
        on_error: told of each file that cannot be used; may raise to stop.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: no good or no defective image is left, or a score is not finite.
    """
    require_eval_extra()  # now, not after the last image
    preprocess = detector.detector_info.preprocess
    labels, scores, maps, masks = [], [], [], []
    verdicts = judge(detector, files(sample.path for sample in samples), batch)
    for done, (sample, verdict) in enumerate(zip(samples, verdicts, strict=True), start=1):
        progress("images", done, len(samples))
        if isinstance(verdict.outcome, ImageError):
            on_error(sample.path, verdict.outcome)
            continue
        try:
            mask = (
                preprocess.mask(Image.fromarray(load_masks(sample.masks))) if sample.masks else None
            )
        except ImageError as error:
            on_error(sample.path, error)
            continue
        labels.append(sample.is_anomalous)
        scores.append(verdict.outcome.score)
        maps.append(verdict.outcome.score_map)
        masks.append(mask)
    if not maps:
        raise PadimEdgeError("no image of the test set could be read")
    return compute_metrics(
        np.array(labels),
        np.array(scores),
        detector.detector_info.threshold,
        masks,
        np.stack(maps),
    )
