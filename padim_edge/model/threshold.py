"""Thresholds: from scores of good images to limits with a known false-alarm rate.

Two numbers of a score map have one each. The image score, its maximum, decides; the pixel score
says from where on a part of a map that is anomalous belongs to what is seen in it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError

Array = NDArray[np.float64]

SPECK = 0.005
"""Share of a map's pixels that may exceed the pixel threshold in a good frame: see `pixel_score`.

Of bottle, hazelnut and magnetic tiles, masks from 0.4 to 0.8 % overlap the true ones best (IoU .50,
.29, .07; without, .30, .13, .05).
"""

COVERAGE = 0.95
"""Of the intervals: how many in a hundred hold the true rate."""


def pixel_score(score_map: NDArray[np.floating[Any]]) -> float:
    """The score that no more than `SPECK` of the pixels of a map exceed; of those that are judged.

    Where a good frame is conspicuous at all, it mostly is so in a speck, which sets the image's
    threshold. The edges of a defect lie below that, and still above what larger parts of good
    frames reach.
    """
    place = int(SPECK * score_map.size) + 1
    return float(np.partition(score_map, -place, axis=None)[-place])


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


def rate_interval(count: int, false_alarm_rate: float) -> tuple[float, float]:
    """Where the true false-alarm rate of a threshold lies, with a probability of `COVERAGE`.

    Of N good images that are independent draws, the share of all good images above their r-th
    smallest score is distributed as Beta(N + 1 - r, r) (order statistics of a uniform sample).

    Args:
        count: N, the scores that the threshold was set from.
        false_alarm_rate: what it was set for, from which r follows.
    """
    rank = _rank(false_alarm_rate, count)
    above = count + 1 - rank
    rest = (1 - COVERAGE) / 2
    return _beta_quantile(above, rank, rest), _beta_quantile(above, rank, 1 - rest)


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Where a share lies of which ``hits`` of ``count`` were seen (Clopper and Pearson, 1934)."""
    rest = (1 - COVERAGE) / 2
    low = _beta_quantile(hits, count - hits + 1, rest) if hits else 0.0
    high = _beta_quantile(hits + 1, count - hits, 1 - rest) if hits < count else 1.0
    return low, high


def _beta_quantile(a: int, b: int, probability: float) -> float:
    """Of Beta(a, b) with whole parameters: x at which Binomial(a + b - 1, x) >= a has it."""
    count = a + b - 1
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, count + 1)))])
    hits = np.arange(a, count + 1)
    ways = factorials[count] - factorials[hits] - factorials[count - hits]
    low, high = 0.0, 1.0
    for _ in range(60):  # to the last bit of a share of 1e-2
        x = (low + high) / 2
        at_least = np.exp(ways + hits * math.log(x) + (count - hits) * math.log1p(-x)).sum()
        low, high = (x, high) if at_least < probability else (low, x)
    return (low + high) / 2


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
