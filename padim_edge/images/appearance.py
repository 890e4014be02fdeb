"""Appearance: what a prepared image looks like as a whole, in a few numbers that cost little.

A camera's light, focus or place changes before parts do. Seven numbers say which of them it was; a
fit keeps those of its photos, so that a live image can be held against them (`live.drift`).

    brightness     mean grey value, 0 to 255: light, exposure
    contrast       standard deviation of the grey values: light, haze, exposure
    sharpness      mean difference of neighbours, in units of the contrast: focus, motion, dirt
    red, blue      logarithm of the mean beside that of green: colour of the light, white balance
    across, down   shift against the photos' mean picture, per cent of its side: camera moved
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STATISTICS = ("brightness", "contrast", "sharpness", "red", "blue", "across", "down")
PROFILES = ("rows", "columns")

BINS = 56
"""Of a profile: means of the grey values of a strip of rows, or of columns."""

REACH = BINS // 8
"""Bins: the largest shift that is told from a larger one."""

PLAIN = 5
"""Of `STATISTICS`, those that an image has by itself; the others follow from its profiles."""

LOOK = PLAIN + 2 * BINS
"""Numbers that `look` gives."""

MOST = 512
"""Images whose values a file keeps: more tell nothing more of the light."""


def look(image: NDArray[np.uint8]) -> Array:
    """What is measured of one image: the first `PLAIN` statistics, then its two profiles.

    Args:
        image: prepared, uint8 [H, W, 3] RGB.

    Returns:
        float64 [`LOOK`]; takes some 0.25 ms at 224 x 224.
    """
    rows, columns = (max(1, side // 112) for side in image.shape[:2])
    thin = np.ascontiguousarray(image[::rows, ::columns]).astype(np.float32)
    # As products: means over an axis of three values take ten times as long.
    height, width = thin.shape[:2]
    flat = thin.reshape(-1, 3)
    red, green, blue = (np.ones(len(flat), np.float32) @ flat / len(flat)).tolist()
    grey = (flat @ np.full(3, 1 / 3, np.float32)).reshape(height, width)
    mean = float(grey.mean())
    contrast = float(grey.std())
    # Of neighbours in the image itself: what is out of focus loses its finest detail first.
    lines = image[:: 2 * rows, :, 1].astype(np.int16)
    standing = image[:, :: 2 * columns, 1].astype(np.int16)
    steps = _mean_step(lines[:, 1:], lines[:, :-1]) + _mean_step(standing[1:], standing[:-1])
    plain = [
        mean,
        contrast,
        steps / (contrast + 1.0),
        math.log((red + 1.0) / (green + 1.0)),
        math.log((blue + 1.0) / (green + 1.0)),
    ]
    return np.concatenate([plain, _binned(grey.mean(axis=1)), _binned(grey.mean(axis=0))])


def _mean_step(one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
    return int(np.abs(one - other).sum(dtype=np.int64)) / one.size


def _binned(line: NDArray[np.float32]) -> Array:
    """A line of any length as `BINS` means; of a shorter one, some values repeated."""
    edges = np.linspace(0, len(line), BINS + 1)
    starts = edges[:-1].astype(int)
    if len(line) < BINS:
        starts = np.minimum(starts, len(line) - 1)
        return np.asarray(line[starts], np.float64)
    widths = np.diff(np.append(starts, len(line)))
    return np.asarray(np.add.reduceat(line.astype(np.float64), starts) / widths)


def _shift(profile: Array, usual: Array) -> float:
    """By how much a profile lies further on than the usual one, in per cent of the side.

    Where the squared differences from the middle of the usual one are least, brightness aside; to
    a part of a bin by the parabola through its neighbours. At most `REACH` bins are looked for.
    """
    middle = usual[REACH:-REACH]
    differences = profile[_WINDOWS] - middle
    sums = differences.sum(axis=1)
    spread = np.einsum("ij,ij->i", differences, differences) - sums * sums / len(middle)
    place = int(spread.argmin())
    offset = 0.0
    if 0 < place < 2 * REACH:
        before, at, after = spread[place - 1 : place + 2].tolist()
        bend = before - 2 * at + after
        offset = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return 100.0 * (place - REACH + offset) / BINS


# Of a profile, for each shift that is tried, the bins that lie on the middle of the usual one then.
_WINDOWS = np.arange(2 * REACH + 1)[:, None] + np.arange(BINS - 2 * REACH)


@dataclass(frozen=True, eq=False)
class Appearance:
    """How the photos of a fit look.

    Attributes:
        values: sorted values of the photos, by the name of the statistic; those that are known.
        profiles: mean profiles [BINS] by name.
    """

    values: Mapping[str, tuple[float, ...]]
    profiles: Mapping[str, Array]

    @classmethod
    def of(cls, looks: Array) -> Appearance | None:
        """That of photos, of independent parts.

        The shift of each is that against the mean of all *others*, as a new image is none of them
        either: so values of photos and of a new image of the same kind are exchangeable.

        Args:
            looks: of each (`look`), [N, `LOOK`]; None is made of fewer than 2.
        """
        count = len(looks)
        if count < 2:
            return None
        total = looks.sum(axis=0)
        kept = looks[np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int))]
        rows = np.array([_all_of(one, (total - one) / (count - 1)) for one in kept])
        values = {
            name: tuple(float(f"{value:.6g}") for value in np.sort(column))
            for name, column in zip(STATISTICS, rows.T, strict=True)
        }
        mean = (total / count)[PLAIN:].reshape(2, BINS)
        return cls(values, dict(zip(PROFILES, mean, strict=True)))

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, float]:
        """The statistics of one prepared image, by name."""
        return dict(zip(STATISTICS, _all_of(look(image), self._mean).tolist(), strict=True))

    @functools.cached_property
    def _mean(self) -> Array:
        """Of the photos' looks, as far as it is needed."""
        return np.concatenate([np.zeros(PLAIN), *(self.profiles[name] for name in PROFILES)])

    def field(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """As `padim_edge.model.metadata.DetectorInfo` has it."""
        profiles = {
            name: tuple(float(f"{value:.7g}") for value in profile)
            for name, profile in self.profiles.items()
        }
        return (*self.values.items(), *profiles.items())

    @classmethod
    def from_field(cls, field: Sequence[tuple[str, tuple[float, ...]]]) -> Appearance | None:
        """From what `field` gave; None where there is none, or of a form that is not known here."""
        named = dict(field)
        profiles = {name: np.array(named.get(name, ())) for name in PROFILES}
        values = {name: tuple(sorted(named[name])) for name in STATISTICS if named.get(name)}
        if not values or any(len(profile) != BINS for profile in profiles.values()):
            return None
        return cls(values, profiles)


def _all_of(one: Array, mean: Array) -> Array:
    """All statistics of a look, against a mean one."""
    profiles = zip(one[PLAIN:].reshape(2, BINS), mean[PLAIN:].reshape(2, BINS), strict=True)
    down, across = (_shift(profile, usual) for profile, usual in profiles)
    return np.concatenate([one[:PLAIN], [across, down]])
