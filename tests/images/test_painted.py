"""Painted defects: only what the mask says changes, the same each time, on any photo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from padim_edge.images.painted import KINDS, SEEN, SIZES, paint


def photo(height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(3).integers(40, 200, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("kind", "size"), list(itertools.product(KINDS, SIZES)))
def test_what_changes_is_what_the_mask_marks(kind, size):
    before = photo()
    kept = before.copy()
    painted, mask = paint(before, kind, size, (1, 2))
    assert np.array_equal(before, kept)
    assert painted.dtype == np.uint8
    assert np.array_equal((painted != before).any(axis=2), mask)
    change = np.abs(painted.astype(float) - before)[mask].mean()
    assert change >= SEEN


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_that_are_stated(kind):
    """In the mean of many: of a patch and a stain the area of a disc; of a scratch the length."""
    size, side = 0.16, 200
    found = []
    for seed in range(40):
        _, mask = paint(photo(side, side), kind, size, (seed,))
        rows, columns = np.nonzero(mask)
        long = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
        found.append(long / 2 if kind == "scratch" else np.sqrt(4 / np.pi * mask.sum()))
    # Some reach over the border of the photo.
    assert 0.8 * size * side < np.median(found) < 1.15 * size * side


def test_a_seed_paints_the_same_and_another_something_else():
    one, again, other = (paint(photo(), "stain", 0.1, seed) for seed in ((1,), (1,), (2,)))
    assert np.array_equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])
    assert not np.array_equal(one[1], other[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("shape", [(50, 60), (1, 7), (3, 3)])
def test_a_photo_of_one_grey_gets_a_defect_too(kind, level, shape):
    painted, mask = paint(np.full((*shape, 3), level, np.uint8), kind, 0.08, (5,))
    assert mask.any()
    assert (painted[mask] != level).any()
    assert (painted[~mask] == level).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_photo_stays_grey(kind):
    grey = np.repeat(photo()[..., :1], 3, axis=2)
    painted, _ = paint(grey, kind, 0.16, (4,))
    assert (painted == painted[..., :1]).all()
