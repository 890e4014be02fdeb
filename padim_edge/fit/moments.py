"""Moments: count, mean and centred products, which can be added up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


Blocks = dict[tuple[int, int], Array]
"""(level l, coarser or same level m) -> [P_l, d_l, d_m]: rows of level l, columns of level m."""


@dataclass(frozen=True)
class Moments:
    """Count, means [P_l, d_l] per level, and sums of centred products by block."""

    count: int
    means: list[Array]
    scatters: Blocks


def moments_of(features: Sequence[Array]) -> Moments:
    """Moments of one set of images.

    Args:
        features: per level [P_l, N, d_l], coarse to fine.
    """
    means = [x.mean(axis=1) for x in features]
    centred = [x - mean[:, None] for x, mean in zip(features, means, strict=True)]
    scatters = {}
    for level, fine in enumerate(centred):
        positions, count, channels = fine.shape
        for other, coarse in enumerate(centred[: level + 1]):
            parents = len(coarse)
            # The rows of all children of a parent in one product: few large ones, not many small.
            rows = fine.reshape(parents, -1, count, channels).transpose(0, 1, 3, 2)
            scatter = rows.reshape(parents, -1, count) @ coarse
            scatters[level, other] = scatter.reshape(positions, channels, -1)
    return Moments(features[0].shape[1], means, scatters)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets (Chan, Golub, LeVeque 1983), equal to one pass over both."""
    count = a.count + b.count
    shift = [y - x for x, y in zip(a.means, b.means, strict=True)]
    means = [x + delta * (b.count / count) for x, delta in zip(a.means, shift, strict=True)]
    weight = a.count * b.count / count
    scatters = {
        key: scatter + b.scatters[key] + weight * _outer(shift, *key)
        for key, scatter in a.scatters.items()
    }
    return Moments(count, means, scatters)


def without(union: Moments, part: Moments) -> Moments:
    """Moments of what `merge` made ``union`` of, beside ``part``."""
    count = union.count - part.count
    means = [
        x + (x - y) * (part.count / count) for x, y in zip(union.means, part.means, strict=True)
    ]
    shift = [y - x for x, y in zip(means, part.means, strict=True)]
    weight = count * part.count / union.count
    scatters = {
        key: scatter - part.scatters[key] - weight * _outer(shift, *key)
        for key, scatter in union.scatters.items()
    }
    return Moments(count, means, scatters)


def _outer(shift: list[Array], level: int, other: int) -> Array:
    """Products of a level's vectors with those of a coarser one above them, [P, d, d]."""
    times = len(shift[level]) // len(shift[other])
    product: Array = shift[level][:, :, None] * shift[other].repeat(times, axis=0)[:, None, :]
    return product


def empty_moments(count: int, means: list[Array]) -> Moments:
    """Moments to be filled run by run: ``means`` themselves, and scatters of the same layout."""
    scatters = {
        (level, other): np.empty((*mean.shape, coarse.shape[1]))
        for level, mean in enumerate(means)
        for other, coarse in enumerate(means[: level + 1])
    }
    return Moments(count, means, scatters)
