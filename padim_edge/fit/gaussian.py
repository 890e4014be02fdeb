"""The Gaussian at every position: moments, coarse-to-fine whitening, exact leave-one-out.

All in float64 and batched over positions in tree order (see `padim_edge.model.pyramid`). The list
``features`` holds one array [P_l, N, d_l] per level, coarse to fine; P_l is a multiple of every
coarser P_m, and position p of level l lies in position p // (P_l / P_m) of level m. Any run of
whole cells can be treated alone, which is what keeps memory bounded.

With Sigma = L L^T (Cholesky) and W = inv(L), the squared Mahalanobis distance of a centred
vector z is |W z|^2. Channels are ordered coarse to fine, so a row of W that belongs to a coarse
level depends on coarse channels alone and is shared by all positions below: it is computed, and
stored, once where it lives. The result equals the dense inverse to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError

Array = NDArray[np.float64]
Blocks = dict[tuple[int, int], Array]
"""(level l, coarser or same level m) -> [P_l, d_l, d_m]: rows of level l, columns of level m."""


@dataclass(frozen=True)
class Moments:
    """Count, means [P_l, d_l] per level, and sums of centred products by block."""

    count: int
    means: list[Array]
    scatters: Blocks


def moments(features: Sequence[Array]) -> Moments:
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
    scatters = {}
    for (level, other), scatter in a.scatters.items():
        times = len(shift[level]) // len(shift[other])
        outer = shift[level][:, :, None] * shift[other].repeat(times, axis=0)[:, None, :]
        scatters[level, other] = scatter + b.scatters[level, other] + weight * outer
    return Moments(count, means, scatters)


def empty_moments(count: int, means: list[Array]) -> Moments:
    """Moments to be filled run by run: ``means`` themselves, and scatters of the same layout."""
    scatters = {
        (level, other): np.empty((*mean.shape, coarse.shape[1]))
        for level, mean in enumerate(means)
        for other, coarse in enumerate(means[: level + 1])
    }
    return Moments(count, means, scatters)


def whitening(stats: Moments, eps: float) -> Blocks:
    """Rows of inv(cholesky(cov + eps I)), each at the level where it lives.

    The covariance is unbiased (``np.cov``). With S its blocks and W those of the result, coarser
    levels first, level l follows from

        L_lm = sum over k <= m of S_lk W_mk^T                     for every m < l
        W_ll = inv(chol(S_ll + eps I - sum over m of L_lm L_lm^T))
        W_lm = -sum over m <= k < l of W_ll L_lk W_km             for every m < l

    Returns:
        Blocks of W; the diagonal ones are lower triangular.

    Raises:
        PadimEdgeError: a covariance is not positive definite or not finite.
    """
    scale = 1.0 / (stats.count - 1)
    W: Blocks = {}
    for level, mean in enumerate(stats.means):
        own = stats.scatters[level, level] * scale
        own[:, range(mean.shape[1]), range(mean.shape[1])] += eps
        factors: list[Array] = []
        for m in range(level):
            factor = np.zeros_like(stats.scatters[level, m])
            for k in range(m + 1):
                factor += _times(stats.scatters[level, k], W[m, k].transpose(0, 2, 1))
            factors.append(factor * scale)
            own -= factors[m] @ factors[m].transpose(0, 2, 1)
        inverse = _inverse_cholesky(own)
        W[level, level] = inverse
        whitened = [inverse @ factor for factor in factors]
        for m in range(level):
            W[level, m] = np.zeros_like(factors[m])
            for k in range(m, level):
                W[level, m] -= _times(whitened[k], W[k, m])
    return W


def _times(fine: Array, coarse: Array) -> Array:
    """[P_l, d_l, a] times [P_m, a, b] of the parent: all children of a parent in one product."""
    product = fine.reshape(len(coarse), -1, fine.shape[2]) @ coarse
    return product.reshape(*fine.shape[:2], -1)


def _inverse_cholesky(matrices: Array) -> Array:
    """inv(L) for matrices L L^T, [P, d, d], lower triangular."""
    try:
        factors = np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        factors = np.full(1, np.nan)
    if not np.isfinite(factors).all():
        raise PadimEdgeError(
            "a covariance is not positive definite: the features hold NaN, infinity or constant "
            "values; check the backbone's weights, or give a larger --eps"
        )
    # LAPACK's general inverse; a triangular solve is not batched in numpy.
    inverse: Array = np.tril(np.linalg.inv(factors))
    return inverse


def squared_distances(blocks: Blocks, centred: Sequence[Array]) -> Array:
    """|W z|^2, levels added up at the finest one.

    Args:
        blocks: whitening blocks.
        centred: per level [P_l, N, d_l], features minus their means.

    Returns:
        [P of the finest level, N].
    """
    total: Array | None = None
    for level, own in enumerate(centred):
        positions, count, channels = own.shape
        whitened = np.zeros((positions, channels, count))
        for other, z in enumerate(centred[: level + 1]):
            whitened += _times(blocks[level, other], z.transpose(0, 2, 1))
        squares = np.einsum("pcn,pcn->pn", whitened, whitened)
        if total is not None:
            squares += total.repeat(positions // len(total), axis=0)
        total = squares
    if total is None:
        raise ValueError("at least one level is needed")
    return total


def leave_one_out_eps(eps: float, count: int) -> float:
    """The regulariser under which `leave_one_out` distances must be taken: eps / a.

    Leaving one of N images out multiplies the covariance by a = (N-1)/(N-2) before a rank-one
    part is taken away; eps I is not multiplied, so it is divided beforehand.
    """
    return eps * (count - 2) / (count - 1)


def leave_one_out(squared: Array, count: int) -> Array:
    """Squared distances of training images as if each had been left out of its own fit.

    With q the squared distance under `leave_one_out_eps`, a = (N-1)/(N-2), c = N/(N-1)^2:
    (N/(N-1))^2 q / (a (1 - c q)), by the Sherman-Morrison formula; exact.

    Args:
        squared: q, any shape.
        count: N, the images of the fit, the one left out among them; at least 3.
    """
    a = (count - 1) / (count - 2)
    c = count / (count - 1) ** 2
    # c q < 1 for every image of the fit; rounding alone could bring it to 1.
    rest = np.maximum(1.0 - c * squared, np.finfo(np.float64).eps)
    left_out: Array = (count / (count - 1)) ** 2 * squared / (a * rest)
    return left_out


def smoothing_matrix(size: int, positions: int, sigma: float) -> Array:
    """One axis of upsampling and smoothing as a matrix A, so that score map = A D A^T.

    Bilinear resizing (align_corners=False) followed by a Gaussian filter as SciPy defines it
    (reflect at the borders, truncated at 4 sigma). Both are linear and separable.

    Args:
        size: pixels of the score map along this axis.
        positions: pixels of the distance map along this axis.
        sigma: of the Gaussian, in pixels of the score map; 0 for none.

    Returns:
        [size, positions].
    """
    centres = (np.arange(size) + 0.5) * positions / size - 0.5
    # Border pixels lie outside the outermost centres: torch clamps the source coordinate.
    centres = centres.clip(0, positions - 1)
    below = np.floor(centres).astype(int)
    above = np.minimum(below + 1, positions - 1)
    fraction = centres - below
    bilinear = np.zeros((size, positions))
    np.add.at(bilinear, (np.arange(size), below), 1 - fraction)
    np.add.at(bilinear, (np.arange(size), above), fraction)
    if sigma == 0:
        return bilinear
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # "reflect" mirrors about the border's edge, again and again if need be: d c b a | a b c d
    source = (np.arange(size)[:, None] + offsets) % (2 * size)
    source = np.minimum(source, 2 * size - 1 - source)
    gaussian = np.zeros((size, size))
    np.add.at(gaussian, (np.arange(size)[:, None], source), weights)
    smoothing: Array = gaussian @ bilinear
    return smoothing


def smallest_false_alarm_rate(count: int) -> float:
    """The lowest false-alarm rate that ``count`` leave-one-out scores can promise."""
    return 1.0 / (count + 1)


def images_needed(false_alarm_rate: float) -> int:
    """How many good images a threshold for this false-alarm rate needs."""
    count = max(1, math.floor(1 / false_alarm_rate) - 2)
    while _rank(false_alarm_rate, count) > count:
        count += 1
    return count


def threshold(scores: Sequence[float] | Array, false_alarm_rate: float) -> float:
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


def percentile(scores: Sequence[float] | Array, score: float) -> float:
    """Per cent of the good images' leave-one-out scores that lie at or below ``score``."""
    ordered = np.asarray(scores, dtype=np.float64)
    return float(100.0 * np.count_nonzero(ordered <= score) / len(ordered))
