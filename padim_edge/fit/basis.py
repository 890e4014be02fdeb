"""Basis: the directions and the scale in which the whitened presets look at pooled features.

With S_p the covariance of the pooled features at a position (N - 1) and C its mean over all
positions, C = V diag(w) V^T,

    Q = V / sqrt(w + .001 mean(w))         of the d largest w

makes the pooled covariance Q^T C Q the identity. A position's own covariance is shrunk towards it,

    Sigma_p = (1 - alpha) Q^T S_p Q + alpha I = (1 - alpha) (Q^T S_p Q + eps I)
    eps     = alpha / (1 - alpha)

and the factor 1 - alpha, common to all positions and images, is left out: everything after the
projection y = Q^T (x - mean) is the fit of one ordinary level with that eps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from padim_edge.errors import PadimEdgeError
from padim_edge.fit.features import Features, store
from padim_edge.fit.moments import Array
from padim_edge.fit.shrinkage import likeliest
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.progress import Progress, silent

RIDGE = 1e-3
"""Of the mean eigenvalue: what no direction's variance is taken to be below."""


SAMPLES = 4
"""Positions x (images - 1), times this many a channel, that a basis should be made of. With fewer a
left-out image has bent the basis towards itself, and scores lower than a new one: ResNet-18 (384
channels) on MVTec AD bottle, 12 photos at 64 x 64 (0.5 a channel): all new good photos exceeded a
threshold for a rate of .08; 12 at 224 x 224 (5.6): .07 of them."""


@dataclass(frozen=True)
class Basis:
    """From pooled features x to directions^T x + offset.

    Attributes:
        directions: Q, [C, d].
        offset: [d], such that the mean over images and positions becomes 0: float16 maps of some
            engines keep more digits of small numbers.
        shrinkage: alpha; 0 before it is chosen.
        images: that the directions were made of; None in moments that a version saved which did
            not say.
    """

    directions: Array
    offset: Array
    shrinkage: float = 0.0
    images: int | None = None

    @property
    def eps(self) -> float:
        """What is added to the diagonal of a position's covariance."""
        return self.shrinkage / (1 - self.shrinkage)

    def __call__(self, features: Features, head: Layer) -> Features:
        """Pooled features, projected image by image; in float64, stored as float32."""
        (pooled,) = features.levels
        (projected,) = store([(*pooled.shape[:2], head.channels)])
        for image in range(features.count):
            projected[image] = pooled[image].astype(np.float64) @ self.directions + self.offset
        pyramid = Pyramid.coarse_to_fine([head])
        return dataclasses.replace(features, pyramid=pyramid, levels=[projected])


def images_for(pooled: Layer) -> int:
    """How many images a basis of a pooled layer should be made of; see `SAMPLES`."""
    return math.ceil(SAMPLES * pooled.channels / (pooled.height * pooled.width)) + 1


def described(basis: Basis, wanted: int, known: int) -> str:
    """What scores that are left out in a basis are worth, in words.

    Args:
        basis: that the scores were made in.
        wanted: images that it should be made of, see `images_for`.
        known: images of the fit that made it and of all updates since: not more than these.
    """
    if basis.images is None and known >= wanted:
        return "given the basis of an earlier fit, whose moments do not say of how many images"
    if (basis.images or known) >= wanted:
        return "given the basis"
    most = f"{basis.images}" if basis.images else f"at most {known}"
    return (
        f"given the basis of {most} images, which are too few and make the threshold too low: "
        f"fit {wanted} or more at once, without moments of fewer, or take --preset reference"
    )


def find_basis(
    pooled: Features,
    head: Layer,
    shrinkage: float | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Basis:
    """The basis for a set of images.

    Args:
        pooled: features of one level.
        head: what is to be made of them.
        shrinkage: alpha; None for the likeliest.
        threads: of the search for alpha; 0 for all cores.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: the images do not differ.
    """
    basis = principal(pooled, head.channels)
    alpha = shrinkage or likeliest(basis(pooled, head), threads, progress)
    return dataclasses.replace(basis, shrinkage=alpha)


def principal(features: Features, dims: int) -> Basis:
    """The directions in which images vary most, each scaled by how much they vary.

    Args:
        features: pooled, of one level.
        dims: d, how many to keep.

    Raises:
        PadimEdgeError: the images do not differ.
    """
    mean, covariance = within_positions(features)
    values, vectors = np.linalg.eigh(covariance)
    floor = RIDGE * float(values.mean())
    if not floor > 0:
        raise PadimEdgeError(
            "the images do not differ in what the backbone sees: give photos of different parts, "
            "or other weights"
        )
    largest = slice(None, -dims - 1, -1)
    scales = np.sqrt(np.maximum(values[largest], 0.0) + floor)
    directions = np.ascontiguousarray(vectors[:, largest] / scales)
    return Basis(directions, -mean @ directions, images=features.count)


def within_positions(features: Features) -> tuple[Array, Array]:
    """Mean over images and positions [C], and mean over positions of the covariance [C, C].

    A run of cells at a time, in float64.
    """
    (level,) = features.pyramid.levels
    total = np.zeros(level.channels)
    scatter = np.zeros((level.channels, level.channels))
    for cells in features.chunks():
        (own,) = features.of(cells)
        means = own.mean(axis=1)
        total += means.sum(axis=0)
        centred = (own - means[:, None]).reshape(-1, level.channels)
        scatter += centred.T @ centred
    positions = level.positions
    return total / positions, scatter / (positions * (features.count - 1))
