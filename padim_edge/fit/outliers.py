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

LIMIT = 4.5
"""Deviations. ResNet-18, MVTec AD bottle: of 209 good photos one lies beyond it, at 4.9; a second,
at 4.2, is unlike the rest, too, which end at 3. Seven defective ones put among them lie at 4.8 to
6.8. Of 28 good hazelnuts and 300 good magnetic tiles none lies beyond. Of sets of 10 to 200 scores
drawn from those of good bottles (without these two) and tiles, 0 to 11 of 100 have one beyond."""

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
