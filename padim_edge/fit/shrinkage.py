"""Shrinkage: how much of the pooled covariance a position's own needs, told by the images alone.

The weight alpha in Sigma_p = (1 - alpha) S_p + alpha I is that under which every image is most
likely to the Gaussians of all others. With a = (N-1)/(N-2), c = N/(N-1)^2 and A = (1 - alpha) a,
leaving an image out makes Sigma_p into A (B - c z z^T) with B = S_p + (alpha / A) I. So, with
q = z^T inv(B) z,

    -2 log likelihood = d log(2 pi A) + log det B + log(1 - c q) + (N/(N-1))^2 q / (A (1 - c q))

All of them follow from one eigendecomposition a position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from padim_edge.fit.features import Features
from padim_edge.fit.gaussian import leave_one_out
from padim_edge.fit.moments import Array
from padim_edge.fit.runs import in_threads
from padim_edge.progress import Progress, silent

CANDIDATES = (.001, .002, .003, .005, .01, .02, .03, .05, .1, .2, .3, .5, .7, .9)  # fmt: skip
"""Steps of some half: between two neighbours the AUROC does not change."""


def likeliest(features: Features, threads: int = 0, progress: Progress = silent) -> float:
    """The one of `CANDIDATES` with the largest leave-one-out likelihood.

    Of nearly equal images the first alone: the others would be likely whatever is chosen.

    Args:
        features: of one level, in the basis in which the pooled covariance is the identity; of at
            least 3 different images.
        threads: runs of positions at a time; 0 for all cores.
        progress: called as work goes on.
    """
    firsts = features.firsts()
    found = np.empty((features.pyramid.cells, len(CANDIDATES)))

    def of(cells: slice) -> None:
        (own,) = features.of(cells)
        found[cells] = leave_one_out_likelihoods(own[:, firsts], CANDIDATES).mean(axis=1)

    in_threads(of, list(features.chunks()), features.pyramid.cells, threads, progress, "shrinkage")
    return CANDIDATES[int(found.mean(axis=0).argmax())]


def leave_one_out_likelihoods(features: Array, alphas: tuple[float, ...]) -> Array:
    """Log likelihoods of images, each under the Gaussian of all others at its position.

    Args:
        features: [P, N, d].
        alphas: K numbers between 0 and 1.

    Returns:
        [P, N, K].
    """
    _, count, dims = features.shape
    centred = features - features.mean(axis=1, keepdims=True)
    turned = centred.transpose(0, 2, 1)
    # The smaller of the two products has all eigenvalues that are not 0.
    few = count < dims
    values, vectors = np.linalg.eigh(centred @ turned if few else turned @ centred)
    values = np.maximum(values, 0.0)  # rounding alone could bring them below
    squares = vectors**2 * values[:, None] if few else (centred @ vectors) ** 2
    values /= count - 1
    result = np.empty((*features.shape[:2], len(alphas)))
    c = count / (count - 1) ** 2
    for index, alpha in enumerate(alphas):
        weight = (1 - alpha) * (count - 1) / (count - 2)
        eps = alpha / weight
        q = (squares / (values + eps)[:, None]).sum(axis=2)
        log_det = np.log(values + eps).sum(axis=1) + (dims - values.shape[1]) * np.log(eps)
        distances = leave_one_out(q, count) / (1 - alpha)
        constant: NDArray[np.float64] = dims * np.log(2 * np.pi * weight) + log_det
        result[:, :, index] = -0.5 * (constant[:, None] + np.log1p(-c * q) + distances)
    return result
