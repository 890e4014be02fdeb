"""Calibrating anew: other thresholds for a detector that stays as it is.

Scores of more good images join those of the fit; defective ones show what each false-alarm rate
costs. Means and whitening are not touched, so nothing has to be fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError
from padim_edge.fit.calibrate import calibrate
from padim_edge.fit.copies import Copies, shortened
from padim_edge.images.batches import OnError, read_batches, refuse
from padim_edge.model.file import Model
from padim_edge.model.metadata import DetectorInfo
from padim_edge.model.threshold import (
    pixel_score,
    rate_interval,
    share_interval,
    smallest_false_alarm_rate,
    threshold_for,
)
from padim_edge.progress import Progress, silent

BATCH = 8
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Of the table, as far as the images allow them."""

POINTS = 100
"""Of a curve."""


@dataclass(frozen=True)
class Photos:
    """Scores of photos that are neither in the fit nor nearly equal to one another.

    Attributes:
        scores: image scores, [N].
        pixel_scores: of the same, [N].
        digests: of what the graph was given, as files have them.
        known: photos that the detector rests on already, or that are there twice: not among the N.
        near: photos that are nearly equal to others: not among the N.
    """

    scores: NDArray[np.float64]
    pixel_scores: NDArray[np.float64]
    digests: tuple[str, ...]
    known: tuple[Path, ...]
    near: int


NO_PHOTOS = Photos(np.empty(0), np.empty(0), (), (), 0)


def score_photos(
    detector: Detector,
    paths: Sequence[Path],
    on_error: OnError = refuse,
    progress: Progress = silent,
    stage: str = "photos",
    others: Photos | None = None,
) -> Photos:
    """Judge photos, each part of them once.

    Args:
        detector: an open detector.
        paths: the photos.
        on_error: told of each that cannot be read, which is left out; may raise to stop.
        progress: called as work goes on.
        stage: what it is told that this is.
        others: photos that are known, too, beside those that the detector rests on.
    """
    copies = Copies(known={*detector.detector_info.digests, *(others.digests if others else ())})
    judged = ... if detector.roi is None else detector.roi
    scores: list[tuple[float, float]] = []
    done = 0
    for files, images in read_batches(paths, detector.detector_info.preprocess, BATCH, on_error):
        done += len(files)
        progress(stage, done, len(paths))
        new = copies.new(files, images)
        if new:
            results = detector.judge(images[new])
            scores += ((one.score, pixel_score(one.score_map[judged])) for one in results)
    if not np.isfinite(np.array(scores)).all():
        raise PadimEdgeError("a photo's score is NaN or infinity: the detector is damaged")
    firsts = np.unique(copies.groups(), return_index=True)[1]
    image, pixel = np.array(scores).reshape(-1, 2)[firsts].T
    return Photos(
        image,
        pixel,
        tuple(map(shortened, copies.digests)),
        tuple(copy for copy, _ in copies.found),
        len(scores) - len(firsts),
    )


@dataclass(frozen=True)
class Row:
    """What a false-alarm rate means.

    Attributes:
        false_alarm_rate: share of good images that may exceed the threshold.
        true_rate: where the share of all good images lies that do, at 95 %.
        threshold: the score.
        recall: share of the defective images that exceed it; None without any.
        true_recall: where the share of all such defective images lies, at 95 %; None without any.
    """

    false_alarm_rate: float
    true_rate: tuple[float, float]
    threshold: float
    recall: float | None
    true_recall: tuple[float, float] | None


@dataclass(frozen=True)
class Calibrated:
    """A detector with other thresholds.

    Attributes:
        model: to be written.
        rows: false-alarm rates that so many good images allow, ascending.
        exceeded: of the new good images, how many exceeded the threshold that the file had.
    """

    model: Model
    rows: tuple[Row, ...]
    exceeded: int

    @property
    def info(self) -> DetectorInfo:
        """The metadata, with the thresholds."""
        assert self.model.detector_info is not None
        return self.model.detector_info

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        info = self.info
        return {
            "threshold": info.threshold,
            "pixel_threshold": info.pixel_threshold,
            "false_alarm_rate": info.false_alarm_rate,
            "true_rate": list(rate_interval(len(info.good_scores), info.false_alarm_rate)),
            "good": len(info.good_scores),
            "new_good_above_the_old_threshold": self.exceeded,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def recalibrate(
    model: Model,
    false_alarm_rate: float | None = None,
    good: Photos = NO_PHOTOS,
    bad: Photos = NO_PHOTOS,
) -> Calibrated:
    """Set the thresholds of a detector anew.

    Args:
        model: the detector, as read.
        false_alarm_rate: None for the one that it has.
        good: more good photos, whose scores join those of the fit. They are as good as
            leave-one-out: neither has seen the image that it scores.
        bad: defective ones, which set nothing.

    Raises:
        PadimEdgeError: there are too few good images for the rate.
    """
    info = model.detector_info
    if info is None:
        raise PadimEdgeError("this is no detector: only one made by padim-edge fit has thresholds")
    how, count = info.calibration, len(good.scores)
    if count:
        how = f"{how}, and {count} photos that are not in the fit"
    scores = np.concatenate([info.good_scores, good.scores])
    # Of a file from before there were pixel scores they stay unknown.
    pixels = np.concatenate([info.good_pixel_scores, good.pixel_scores])
    rate = info.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
    made = calibrate(scores, pixels if info.good_pixel_scores else pixels[:0], rate, how)
    new_info = dataclasses.replace(
        info,
        **made.fields(),
        digests=info.digests + good.digests,
    )
    smallest = smallest_false_alarm_rate(len(scores))
    listed = sorted({rate, *(one for one in RATES if one >= smallest)})
    return Calibrated(
        dataclasses.replace(model, detector_info=new_info),
        tuple(_row(scores, one, bad) for one in listed),
        int((good.scores > info.threshold).sum()),
    )


def recall_curve(info: DetectorInfo, bad: Photos) -> list[Row]:
    """Recall by false-alarm rate, at up to `POINTS` of the rates that a detector's scores allow."""
    scores = np.array(info.good_scores)
    count = len(scores) + 1
    above = np.unique(np.geomspace(1, len(scores), POINTS).astype(int))
    return [_row(scores, float(one) / count, bad) for one in above]


def _row(scores: NDArray[np.float64], rate: float, bad: Photos) -> Row:
    threshold = threshold_for(scores, rate)
    count = len(bad.scores)
    hits = int((bad.scores > threshold).sum())
    return Row(
        rate,
        rate_interval(len(scores), rate),
        threshold,
        hits / count if count else None,
        share_interval(hits, count) if count else None,
    )
