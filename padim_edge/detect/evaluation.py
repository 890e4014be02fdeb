"""Evaluation: metrics of a detector on a test set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.detector import Detector
from padim_edge.detect.judging import Verdict, judge
from padim_edge.detect.metrics import Metrics, compute_metrics, require_eval_extra
from padim_edge.errors import ImageError, PadimEdgeError, listed
from padim_edge.images.batches import OnError
from padim_edge.images.dataset import Sample
from padim_edge.images.frames import files
from padim_edge.images.masks import load_masks
from padim_edge.progress import Progress, silent


@dataclass(frozen=True)
class Judged:
    """What a detector says of a test set, of N images that could be read.

    Attributes:
        samples: the images, [N].
        labels: bool [N], True for a defective one.
        scores: float64 [N].
        maps: float32 [N, H, W].
        masks: [N], bool [H, W] or None, of the pixels of the maps.
        threshold: that they were judged by.
    """

    samples: list[Sample]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]
    maps: NDArray[np.float32]
    masks: list[NDArray[np.bool_] | None]
    threshold: float

    def metrics(self) -> Metrics:
        """How well it agrees with what is known; raises as `compute_metrics`."""
        return compute_metrics(self.labels, self.scores, self.threshold, self.masks, self.maps)


def evaluate_detector(
    detector: Detector,
    samples: Sequence[Sample],
    batch: int,
    on_error: OnError,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda _: None,
) -> Metrics:
    """Metrics of a detector on a test set; arguments and errors are those of `judge_samples`.

    Raises:
        PadimEdgeError: no good or no defective image is left, or a score is not finite.
    """
    return judge_samples(detector, samples, batch, on_error, progress, warn).metrics()


def judge_samples(
    detector: Detector,
    samples: Sequence[Sample],
    batch: int,
    on_error: OnError,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda _: None,
    verdicts: Iterable[Verdict] | None = None,
) -> Judged:
    """Judge a test set, and bring its masks to the pixels of the maps.

    Masks go through the same geometry as the images, with nearest neighbours. An image whose
    file or mask cannot be read is left out, after ``on_error`` was told.

    Args:
        detector: an open detector.
        samples: the test set.
        batch: images per run of the engine.
        on_error: told of each file that cannot be used; may raise to stop.
        progress: called as work goes on.
        warn: takes a sentence about masks that seem to be wrong.
        verdicts: of the samples, in their order, where others judge them; the detector is not
            asked then.

    Raises:
        PadimEdgeError: no image is left, or the mask of a good image marks something.
        MissingDependencyError: what the metrics need is not installed.
    """
    require_eval_extra()  # now, not after the last image
    kept, scores, maps, masks = [], [], [], []
    checks = _MaskChecks()
    if verdicts is None:
        verdicts = judge(detector, files(sample.path for sample in samples), batch)
    for done, (sample, verdict) in enumerate(zip(samples, verdicts, strict=True), start=1):
        progress("images", done, len(samples))
        if isinstance(verdict.outcome, ImageError):
            on_error(sample.path, verdict.outcome)
            continue
        try:
            marked = load_masks(sample.masks, sample.path) if sample.masks else None
        except ImageError as error:
            on_error(sample.path, error)
            continue
        if marked is not None:
            checks(sample, marked)
        kept.append(sample)
        scores.append(verdict.outcome.score)
        maps.append(verdict.outcome.score_map)
        masks.append(None if marked is None else _judged(detector, marked))
    if not maps:
        raise PadimEdgeError("no image of the test set could be read")
    checks.conclude(warn)
    labels = np.array([sample.is_anomalous for sample in kept])
    return Judged(kept, labels, np.array(scores), np.stack(maps), masks, detector.threshold)


def _judged(detector: Detector, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What a mask marks of the score map, where that is judged."""
    seen = detector.detector_info.preprocess.mask(Image.fromarray(marked))
    return seen if detector.roi is None else seen & detector.roi


class _MaskChecks:
    """Looks at masks as they come, for what no metric shows."""

    def __init__(self) -> None:
        self._masks = 0
        self._large: list[str] = []
        self._empty: list[str] = []

    def __call__(self, sample: Sample, marked: NDArray[np.bool_]) -> None:
        """Look at what the masks of a sample mark together.

        Raises:
            PadimEdgeError: it is a good one, and they mark something.
        """
        names = ", ".join(map(str, sample.masks))
        if not sample.is_anomalous:
            if marked.any():
                raise PadimEdgeError(
                    f"{sample.path} is labelled good, and {names} marks a defect in it: correct "
                    "the label or the mask"
                )
            return
        self._masks += 1
        if not marked.any():
            self._empty.append(names)
        elif marked.mean() > 0.5:
            self._large.append(names)

    def conclude(self, warn: Callable[[str], None]) -> None:
        """Say what was seen."""
        if self._empty:
            warn(f"{len(self._empty)} mask(s) mark nothing: {listed(self._empty)}")
        if self._large:
            all_of_them = 2 * len(self._large) > self._masks
            warn(
                f"{len(self._large)} of {self._masks} masks mark more than half of their image"
                f"{', so they seem to be inverted (what is not black is marked)' * all_of_them}: "
                f"{listed(self._large)}"
            )
