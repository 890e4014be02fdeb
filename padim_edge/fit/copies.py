"""Copies: photos that are there twice, pixel by pixel or nearly, found while they are read.

Leave-one-out asks what a detector says of a part that it has not seen. Where the same part was
photographed twice it has: a threshold from such scores promises a false-alarm rate that it does
not keep. So equal photos count once, and of nearly equal ones the whole group is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.model.metadata import DIGITS

GRID = 32
"""Rows and columns of the small picture by which photos are compared."""

NEAR = 0.2
"""Photos this close, in units of the usual distance of two of them, show the same part.

Of real sets: photos stored again (JPEG of quality 75, two thirds of the size), with noise of 4 grey
levels or at another exposure lie within 0.15; photos of different bottles, hazelnuts and pieces of
cloth are 0.25 apart and more. What 0.2 finds among 300 magnetic tiles are exposures of one tile.
"""

STILL = 0.01 * (3 * GRID**2) ** 0.5
"""Small pictures this close are of one scene that stood still, with a camera's noise: where most
photos are, the usual distance says nothing. Noise of 4 grey levels moves bottles and hazelnuts by
.006 to .010 times that root; two different bottles, the most alike of 80, are .023 apart, hazelnuts
and magnetic tiles .11. For frames of a live camera; files may differ by less and be meant."""

SAMPLE = 512
"""Photos among which the usual distance is measured, at most."""

DIGEST = 32
"""Bytes of a digest."""

ROWS = 256
"""Photos that are compared with all later ones at a time."""


@dataclass(frozen=True)
class Signature:
    """By what a prepared photo is known again.

    Attributes:
        digest: of its pixels.
        small: its small picture, float32 [3 x GRID x GRID].
    """

    digest: bytes
    small: NDArray[np.float32]

    @classmethod
    def of(cls, image: NDArray[np.uint8]) -> Signature:
        """That of a photo, uint8 [H, W, 3]."""
        return cls(hashlib.sha256(image.tobytes()).digest(), small(image))


class Copies:
    """Takes prepared photos as they come, and says which of them are there already.

    Attributes:
        digests: of the photos that are new, in their order: uint8 [32] each.
        found: (copy, the photo that it equals; None if that is of an earlier fit), as they came.

    Args:
        earlier: digests of photos of earlier fits.
        known: the same, `shortened`, as a detector's file has them.
    """

    def __init__(self, earlier: Iterable[bytes] = (), known: Container[str] = ()) -> None:
        self._first: dict[bytes, Path | None] = dict.fromkeys(earlier)
        self._known = known
        self._small: list[NDArray[np.float32]] = []
        self.digests: list[bytes] = []
        self.found: list[tuple[Path, Path | None]] = []

    def new(self, paths: Sequence[Path], images: NDArray[np.uint8]) -> list[int]:
        """Which of some photos, uint8 [n, H, W, 3], are no copies: their places, in order."""
        return self.take(paths, map(Signature.of, images))

    def take(self, paths: Sequence[Path], signatures: Iterable[Signature]) -> list[int]:
        """The same of photos that were looked at elsewhere."""
        places = []
        for place, (path, signature) in enumerate(zip(paths, signatures, strict=True)):
            digest = signature.digest
            if digest in self._first or shortened(digest) in self._known:
                self.found.append((path, self._first.get(digest)))
                continue
            self._first[digest] = path
            self.digests.append(digest)
            self._small.append(signature.small)
            places.append(place)
        return places

    def groups(self) -> NDArray[np.intp]:
        """The group of each new photo, [N]: nearly equal ones share a number.

        Groups are numbered from 0 as their first photos came.
        """
        return group_near(np.stack(self._small)) if self._small else np.zeros(0, np.intp)


def shortened(digest: bytes) -> str:
    """A digest as a detector's file has it."""
    return digest.hex()[:DIGITS]


def small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A photo as a few numbers that neither noise nor compression nor exposure change much."""
    rows, columns = (np.linspace(0, side, GRID + 1).astype(int)[:-1] for side in image.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows), columns, axis=1)
    height, width = (
        np.diff(np.append(edges, side))
        for edges, side in zip((rows, columns), image.shape, strict=False)
    )
    means = sums / (height[:, None, None] * width[None, :, None])
    means -= means.mean()
    # One grey level more, or noise would be all that is left of an even picture.
    scaled: NDArray[np.float32] = (means / (means.std() + 1.0)).ravel().astype(np.float32)
    return scaled


def group_near(points: NDArray[np.float32], least: float = 0.0) -> NDArray[np.intp]:
    """Put points that are much closer to each other than is usual into groups.

    Two points within `NEAR` times the lower quartile of all distances are in one group, and so is
    whoever is that close to one of its members: frames of a video are a chain. The lower one,
    because where parts come in two poses or colours the upper one is the distance between those,
    beside which all of one kind are alike. Of a set of which half of the points or more are one
    group the quartile is its own size; nothing is found in it then.

    Args:
        points: [N, k].
        least: points this close are in one group, whatever is usual.

    Returns:
        The group of each, [N], numbered from 0 by their first members.
    """
    count = len(points)
    points = points - points.mean(axis=0)  # squares of float32 lose less
    squares = np.einsum("nk,nk->n", points, points)
    some = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int))
    between = _squared(points[some], squares[some], points[some], squares[some])
    pairs = between[np.triu_indices(len(some), 1)]
    usual = float(np.quantile(pairs, 0.25, method="higher")) if pairs.size else 0.0
    limit = max(NEAR**2 * usual, least**2)
    first = np.arange(count)
    for start in range(0, count, ROWS):
        rows = slice(start, start + ROWS)
        # Each pair once.
        later = slice(start, None)
        close = _squared(points[rows], squares[rows], points[later], squares[later]) < limit
        one, other = np.nonzero(close)
        _join(first, start + one, start + other)
    return np.unique(first, return_inverse=True)[1].astype(np.intp)


def _squared(
    a: NDArray[np.float32],
    a_squares: NDArray[np.float32],
    b: NDArray[np.float32],
    b_squares: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Squared distances of all a from all b."""
    squared: NDArray[np.float32] = a_squares[:, None] + b_squares[None] - 2 * a @ b.T
    return squared


def _join(first: NDArray[np.intp], one: NDArray[np.intp], other: NDArray[np.intp]) -> None:
    """Make one group of the groups of each pair.

    Args:
        first: of each point, the first member of its group, [N]; changed.
        one: points, [pairs].
        other: their partners.
    """
    while True:
        a, b = first[one], first[other]
        apart = a != b
        if not apart.any():
            return
        # Each group takes the first of those that it touches, then whoever followed it follows on.
        one, other, a, b = one[apart], other[apart], a[apart], b[apart]
        np.minimum.at(first, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(first, following := first[first]):
            first[:] = following
