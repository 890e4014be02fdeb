"""Outliers: photos among the good ones that are very unlike the others, and are perhaps not good.

What is asked of each is its leave-one-out score: what a detector says that was fitted on all the
others. Logarithms of such scores lie nearly symmetrically around their median, with a few good
photos far out. So a photo stands out whose logarithm lies more than `LIMIT` deviations above the
median, a deviation being 1.4826 times the median absolute one (the standard deviation of a normal
distribution), which up to half of the photos cannot move much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from padim_edge.fit.moments import Array

LIMIT = 4.0
"""Deviations. ResNet-18, good photos beyond it: 2 of 209 of MVTec AD bottle, at 4.2 and 4.9, where
all others end at 3.0; 0 of 28 hazelnuts; 1 of 300 magnetic tiles, at 4.1. Seven defective bottles
were put among the good ones, six times: 36 of the 42 lie beyond it, most between 5 and 7; the rest
score like good ones, and no limit finds them. Of sets of 10 to 200 scores drawn from normal
logarithms 1 to 4 in 100 have one beyond; drawn from those of the tiles, whose tail is longer, 11 to
39 in 100: less than one good photo in 80."""

LEAST = 10
"""Scores below which no photo is said to stand out: median and deviation are too uncertain."""

ROUNDS = 5
"""How often outliers are left out and the rest is looked at again, at most."""


@dataclass(frozen=True)
class Outlier:
    """A photo that stands out.

    Attributes:
        path: its file.
        score: under the fit of the others.
        deviations: how far the logarithm of its score lies above the median, see above.
    """

    path: Path
    score: float
    deviations: float

    def __str__(self) -> str:
        return f"{self.path} ({self.score:.1f}, {self.deviations:.1f} deviations)"


def find_outliers(paths: Sequence[Path], scores: Array, reference: Array) -> tuple[Outlier, ...]:
    """The photos that stand out, the worst first.

    Args:
        paths: [N].
        scores: their leave-one-out image scores, [N].
        reference: of all photos of the fit, one for each group of nearly equal ones, [M].
    """
    if len(reference) < LEAST:
        return ()
    tiny = np.finfo(np.float64).tiny
    usual = np.log(np.maximum(reference, tiny))
    median = np.median(usual)
    deviation = 1.4826 * np.median(np.abs(usual - median))
    if not deviation > 0:
        return ()
    deviations = (np.log(np.maximum(scores, tiny)) - median) / deviation
    worst = np.argsort(-deviations, kind="stable")
    return tuple(
        Outlier(paths[place], float(scores[place]), float(deviations[place]))
        for place in worst
        if deviations[place] > LIMIT
    )
