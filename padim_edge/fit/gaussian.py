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

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.moments import Array, Blocks, Moments


class NotPositiveDefiniteError(PadimEdgeError):
    """A covariance has no Cholesky factor."""


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
        NotPositiveDefiniteError: a covariance is not, or is not finite.
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


def dense_whitening(covariances: Array) -> Blocks:
    """The only block of `whitening` of covariances [P, d, d] that are known already.

    Raises:
        NotPositiveDefiniteError: one is not, or is not finite.
    """
    # Two images' worth of scatter: whitening divides by count - 1 = 1.
    means = [np.empty(covariances.shape[:2])]  # of which it takes the shape alone
    return whitening(Moments(2, means, {(0, 0): covariances}), 0.0)


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
        raise NotPositiveDefiniteError(
            "a covariance is not positive definite: the features hold NaN, infinity or constant "
            "values; check the backbone's weights, or give a larger --eps "
            "(of a whitened preset, --shrinkage)"
        )
    # LAPACK's general inverse; a triangular solve is not batched in numpy.
    inverse: Array = np.tril(np.linalg.inv(factors))
    return inverse


def squared_distances(blocks: Blocks, centred: Sequence[Array]) -> Array:
    """|W z|^2, levels added up at the finest one.

    Args:
        blocks: whitening blocks.
        centred: per level [P_l, N, d_l], features minus their means; at least one level.

    Returns:
        [P of the finest level, N].
    """
    return _added_up(np.einsum("pcn,pcn->pn", w, w) for w in _whitened(blocks, centred))


def inner_products(blocks: Blocks, centred: Sequence[Array]) -> Array:
    """(W z_i) (W z_j) of all pairs, as :func:`squared_distances`: [P of the finest level, N, N]."""
    return _added_up(w.transpose(0, 2, 1) @ w for w in _whitened(blocks, centred))


def _whitened(blocks: Blocks, centred: Sequence[Array]) -> Iterator[Array]:
    """W z, level by level: [P_l, d_l, N]."""
    for level, own in enumerate(centred):
        positions, count, channels = own.shape
        whitened = np.zeros((positions, channels, count))
        for other, z in enumerate(centred[: level + 1]):
            whitened += _times(blocks[level, other], z.transpose(0, 2, 1))
        yield whitened


def _added_up(levels: Iterable[Array]) -> Array:
    """The sum over levels, coarse to fine, at every position of the finest one."""
    first, *others = levels
    for level in others:
        first = level + first.repeat(len(level) // len(first), axis=0)
    return first


def leave_out_eps(eps: float, count: int, left_out: int = 1) -> float:
    """The regulariser under which distances of images left out must be taken: eps / a.

    Leaving k of N images out multiplies the covariance by a = (N-1)/(N-k-1) before a part of rank
    k is taken away; eps I is not multiplied, so it is divided beforehand.
    """
    return eps * (count - left_out - 1) / (count - 1)


def leave_one_out(squared: Array, count: int) -> Array:
    """Squared distances of training images as if each had been left out of its own fit.

    With q the squared distance under `leave_out_eps`, a = (N-1)/(N-2), c = N/(N-1)^2:
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


def leave_group_out(products: Array, count: int) -> Array:
    """Squared distances of k training images as if all k had been left out of the fit.

    With m = N - k, z the centred images and Z all k of them as columns, the rest has

        mean' = mean - Z 1 / m                        so  x_i - mean' = Z K e_i
        Sigma' = a (B - c Z K Z^T)                    with K = I + 1 1^T / m
        B = S + (eps / a) I,  a = (N-1)/(m-1),  c = 1/(N-1)

    and by Woodbury, with Q = Z^T inv(B) Z, M_i^2 = [K Q inv(I - c K Q) K]_ii / a. K has the root
    R = I + r 1 1^T; with G = R Q R = V diag(g) V^T this is |R V|_ij^2 g_j / (1 - c g_j), summed
    over j. For k = 1 it is `leave_one_out`.

    Args:
        products: Q under `leave_out_eps` of k, [P, k, k].
        count: N, the images of the fit, those left out among them; at least k + 2.

    Returns:
        [P, k].
    """
    size = products.shape[-1]
    rest = count - size
    a, c = (count - 1) / (rest - 1), 1 / (count - 1)
    root = np.eye(size) + ((1 + size / rest) ** 0.5 - 1) / size
    values, vectors = np.linalg.eigh(root @ products @ root)
    # c g < 1, and g >= 0; rounding alone could pass either.
    values = np.maximum(values, 0.0)
    terms = values / np.maximum(1.0 - c * values, np.finfo(np.float64).eps)
    left_out: Array = ((root @ vectors) ** 2 @ terms[:, :, None])[..., 0] / a
    return left_out
