"""Evaluation: metrics of a detector on a test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from padim_edge.detect.detector import Detector
from padim_edge.detect.judging import OnError
from padim_edge.detect.metrics import Metrics, require_eval_extra
from padim_edge.detect.metrics import evaluate as measure
from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.batches import read_batches
from padim_edge.images.dataset import Sample
from padim_edge.images.decode import load_image
from padim_edge.progress import Progress, silent


def evaluate(
    detector: Detector,
    samples: Sequence[Sample],
    batch: int,
    on_error: OnError,
    progress: Progress = silent,
) -> Metrics:
    """Metrics of a detector on a test set.

    Masks go through the same geometry as the images, with nearest neighbours. An image whose
    file or mask cannot be read is left out, after ``on_error`` was told.

    Raises:
        PadimEdgeError: no good or no defective image is left, or a score is not finite.
    """
    require_eval_extra()  # now, not after the last image
    by_path = {sample.path: sample for sample in samples}
    preprocess = detector.detector_info.preprocess
    labels, scores, maps, masks = [], [], [], []
    done = 0
    for names, images in read_batches(list(by_path), preprocess, batch, on_error):
        for path, result in zip(names, detector.judge(images), strict=True):
            sample = by_path[path]
            mask = None
            if sample.mask:
                try:
                    mask = preprocess.mask(load_image(sample.mask))
                except ImageError as error:
                    on_error(sample.mask, error)
                    continue
            labels.append(sample.is_anomalous)
            scores.append(result.score)
            maps.append(result.score_map)
            masks.append(mask)
        done += len(names)
        progress("images", done, len(samples))
    if not maps:
        raise PadimEdgeError("no image of the test set could be read")
    return measure(
        np.array(labels),
        np.array(scores),
        detector.detector_info.threshold,
        masks,
        np.stack(maps),
    )
