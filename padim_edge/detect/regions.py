"""Regions: where a frame is anomalous, in pixels of the frame itself.

Two thresholds, as in edge detection (Canny's hysteresis): a region is a connected part of the score
map above the pixel threshold in which some pixel exceeds the image's threshold, too. So there is a
region if and only if the frame is anomalous (and its score a number), as often falsely as the
false-alarm rate says, and its outline is that of the defect and not of its summit.

Own code, because what labels connected parts elsewhere (SciPy, OpenCV) is larger than all that a
device installs beside an engine.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; right and bottom are the first that are outside."""


@dataclass(frozen=True)
class Region:
    """A connected part of a frame that is anomalous.

    Attributes:
        box: (left, top, right, bottom), the whole pixels of the frame that it touches; right and
            bottom are the first outside of it.
        area: in pixels of the frame.
        score: its highest.
        peak: (x, y) of that, in pixels of the frame: 0.5, 0.5 is the middle of the first.
        centroid: (x, y), the mean of its points.
    """

    box: tuple[int, int, int, int]
    area: int
    score: float
    peak: tuple[float, float]
    centroid: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values; positions to a hundredth of a pixel."""
        return {
            "box": list(self.box),
            "area": self.area,
            "score": self.score,
            "peak": [round(one, 2) for one in self.peak],
            "centroid": [round(one, 2) for one in self.centroid],
        }


def labelled(
    score_map: NDArray[np.float32], threshold: float, pixel_threshold: float
) -> NDArray[np.intp]:
    """Number the parts of a map that are anomalous.

    Args:
        score_map: [H, W].
        threshold: of the image.
        pixel_threshold: of its pixels; if it is 0 or above ``threshold``, that takes its place.

    Returns:
        [H, W]: 0 where nothing is, else the number of the part, from 1 on in the order of their
        first pixels. Pixels that touch by a corner are connected.
    """
    limit = min(pixel_threshold or threshold, threshold)
    labels = np.zeros(score_map.shape, np.intp)
    # As `Detector` compares; NaN exceeds nothing.
    if not float(score_map.max(initial=0)) > threshold:
        return labels
    # In float32 a score just above a limit may be none: NumPy rounds the limit to the map's type.
    marked = score_map.astype(np.float64) > limit
    numbers, counts = _connected(marked)
    of_pixels = np.repeat(numbers, counts)
    highest = np.zeros(len(numbers))
    np.maximum.at(highest, of_pixels, score_map[marked])
    kept = np.flatnonzero(highest > threshold)
    renumbered = np.zeros(len(numbers), np.intp)
    renumbered[kept] = np.arange(1, len(kept) + 1)
    labels[marked] = renumbered[of_pixels]
    return labels


def _connected(marked: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Label runs: pixels marked side by side in a row, taken row by row.

    Returns:
        The number of each run's part, that of its first run; and how many pixels each run has.
    """
    edges = np.diff(np.pad(marked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]  # the first pixel after the run
    # In the row above, runs that touch [start, end) are those that end at or after its start and
    # start at or before its end: neighbours in the list, found by keys that ascend through it.
    stride = marked.shape[1] + 2
    above = (rows - 1) * stride
    first = np.searchsorted(rows * stride + ends, above + starts)
    last = np.searchsorted(rows * stride + starts, above + ends, side="right")
    root = list(range(len(rows)))

    def find(one: int) -> int:
        while root[one] != one:
            root[one] = root[root[one]]
            one = root[one]
        return one

    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for other in range(low, high):
            one, two = sorted((find(run), find(other)))
            root[two] = one
    return np.array([find(run) for run in range(len(root))], np.intp), ends - starts


def regions_of(
    score_map: NDArray[np.float32], labels: NDArray[np.intp], seen: Box, size: tuple[int, int]
) -> tuple[Region, ...]:
    """The parts of a map as regions of its frame, the highest score first.

    Args:
        score_map: [H, W].
        labels: [H, W], as of `labelled`.
        seen: the part of the frame that the map covers, in pixels of the frame.
        size: (h, w) of the frame.
    """
    left, top, right, bottom = seen
    across, down = (right - left) / labels.shape[1], (bottom - top) / labels.shape[0]
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns]
    # Each part's pixels side by side, in their order: one pass for all parts, not one for each.
    order = np.argsort(numbers, kind="stable")
    rows, columns, numbers = rows[order], columns[order], numbers[order]
    scores = score_map[rows, columns]
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    found = []
    for begin, end in itertools.pairwise(borders):
        if begin == end:  # there is none at all
            break
        x, y, of_part = columns[begin:end], rows[begin:end], scores[begin:end]
        highest = int(of_part.argmax())
        box = (
            max(0, math.floor(left + float(x.min()) * across + _HAIR)),
            max(0, math.floor(top + float(y[0]) * down + _HAIR)),
            min(size[1], math.ceil(left + float(x.max() + 1) * across - _HAIR)),
            min(size[0], math.ceil(top + float(y[-1] + 1) * down - _HAIR)),
        )
        found.append(
            Region(
                box,
                max(1, round(len(x) * across * down)),
                float(of_part[highest]),
                (
                    left + (float(x[highest]) + 0.5) * across,
                    top + (float(y[highest]) + 0.5) * down,
                ),
                (left + (float(x.mean()) + 0.5) * across, top + (float(y.mean()) + 0.5) * down),
            )
        )
    return tuple(sorted(found, key=lambda region: -region.score))


_HAIR = 1e-6
"""Of a pixel: what rounding may add to a border, and no pixel is touched for."""
