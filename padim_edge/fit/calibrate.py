"""Calibrate: from held-out scores of good images to the thresholds. Needs no images and no fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.moments import Array
from padim_edge.fit.settings import DEFAULT_FALSE_ALARM_RATE
from padim_edge.model.threshold import smallest_false_alarm_rate, threshold_for


@dataclass(frozen=True)
class Calibration:
    """When to raise an alarm.

    Attributes:
        threshold: a frame whose score exceeds it is anomalous.
        pixel_threshold: a pixel of such a frame whose score exceeds it may be; 0 if unknown.
        false_alarm_rate: the rate it was set for.
        how: how the scores were made, in words.
        good_scores: image scores of good images, sorted.
        good_pixel_scores: pixel scores of the same, sorted; none if unknown.
    """

    threshold: float
    pixel_threshold: float
    false_alarm_rate: float
    how: str
    good_scores: tuple[float, ...]
    good_pixel_scores: tuple[float, ...]

    def fields(self) -> dict[str, Any]:
        """The same under the names that `padim_edge.model.metadata.DetectorInfo` has for them."""
        return {
            "threshold": self.threshold,
            "pixel_threshold": self.pixel_threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "calibration": self.how,
            "good_scores": self.good_scores,
            "good_pixel_scores": self.good_pixel_scores,
        }


def calibrate(
    scores: Array, pixel_scores: Array, false_alarm_rate: float | None, how: str
) -> Calibration:
    """Set the thresholds.

    Args:
        scores: image scores of good images that are not in the fit, or as if they were not, [N].
        pixel_scores: of the same (`padim_edge.model.threshold.pixel_score`), [N]; empty if some are
            unknown, and there is no pixel threshold then.
        false_alarm_rate: share of good images that may exceed it; None for 1 %, or for the lowest
            that so many scores can promise.
        how: how the scores were made, in words.

    Raises:
        PadimEdgeError: there are too few scores for this rate, or nothing but zeros.
    """
    rate = false_alarm_rate
    if rate is None:
        rate = max(DEFAULT_FALSE_ALARM_RATE, smallest_false_alarm_rate(len(scores)))
    threshold = threshold_for(scores, rate)
    if not threshold > 0:
        raise PadimEdgeError(
            f"the threshold would be {threshold:g} and every frame an anomaly: the images do not "
            "differ in what the backbone sees; give photos of different parts, or other weights"
        )
    return Calibration(
        threshold,
        threshold_for(pixel_scores, rate) if len(pixel_scores) else 0.0,
        rate,
        how,
        _sorted(scores),
        _sorted(pixel_scores),
    )


def _sorted(scores: Array) -> tuple[float, ...]:
    return tuple(float(score) for score in np.sort(scores))
