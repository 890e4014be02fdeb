"""The threshold: from scores of good images to a limit with a known false-alarm rate."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError

Array = NDArray[np.float64]


def smallest_false_alarm_rate(count: int) -> float:
    """The lowest false-alarm rate that ``count`` leave-one-out scores can promise."""
    return 1.0 / (count + 1)


def images_needed(false_alarm_rate: float) -> int:
    """How many good images a threshold for this false-alarm rate needs."""
    count = max(1, math.floor(1 / false_alarm_rate) - 2)
    while _rank(false_alarm_rate, count) > count:
        count += 1
    return count


def threshold_for(scores: Sequence[float] | Array, false_alarm_rate: float) -> float:
    """The ceil((1 - alpha)(N + 1))-th smallest of N leave-one-out scores (split conformal rule).

    An unseen good image exceeds it with probability of about alpha.

    Raises:
        PadimEdgeError: too few scores for this rate.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    rank = _rank(false_alarm_rate, len(ordered))
    if rank > len(ordered):
        raise PadimEdgeError(
            f"{len(ordered)} images are too few for a false-alarm rate of {false_alarm_rate:g}: "
            f"give at least {images_needed(false_alarm_rate)} images, or a rate of "
            f"{math.ceil(smallest_false_alarm_rate(len(ordered)) * 1000) / 1000:g} or more"
        )
    return float(ordered[rank - 1])


def _rank(false_alarm_rate: float, count: int) -> int:
    # 1 - 0.01 and the like are a hair off in binary; the hair must not cost a rank.
    return max(1, math.ceil((1 - false_alarm_rate) * (count + 1) - 1e-9))


def percentile(scores: Sequence[float], score: float) -> float:
    """Per cent of the good images' leave-one-out scores that lie at or below ``score``.

    Args:
        scores: sorted, as files hold them.
        score: of a frame; at or above what is no number lies nothing.
    """
    # By bisection: an array made of them for every frame took as long as half the call's rest.
    below = 0 if math.isnan(score) else bisect.bisect_right(scores, score)
    return 100.0 * below / len(scores)
