"""The smoothing kernel, compiled for the CPU by a shim, against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_kernels import (
    SHAPES,
    TOLERANCE,
    assert_close,
    distances,
    expected,
    make,
    make_maps,
    score_maps,
    smooth,
)

from padim_edge.errors import PadimEdgeError
from padim_edge.model.smoothing import smoothing_matrix
from padim_edge.runtime.nvidia.smoothing import SmoothingAddresses, pack_smoothing


def random_band(rng, size, positions):
    dense = rng.uniform(0.1, 1, (size, positions))
    centre = np.arange(size)[:, None] * positions / size
    return dense * (np.abs(np.arange(positions) - centre) < 2)


@pytest.mark.parametrize("name", ["three levels", "one position", "ratios 4 and 2", "one level"])
@pytest.mark.parametrize("matrix", ["blur", "band", "full"])
def test_smooth(cpu, name, matrix):
    model = make(SHAPES[name], "float32", strips_per_block=2)  # up to six parts
    h, w = model.pyramid.height, model.pyramid.width
    rng = np.random.default_rng(2)
    sizes = {"blur": (h * 4, w * 4), "band": (h * 3 + 1, w * 40 + 3), "full": (17, 5)}[matrix]
    if matrix == "blur":
        rows, columns = (smoothing_matrix(n, m, 1.5) for n, m in zip(sizes, (h, w), strict=True))
    elif matrix == "band":
        rows, columns = (random_band(rng, n, m) for n, m in zip(sizes, (h, w), strict=True))
    else:
        rows, columns = (rng.uniform(0, 1, (n, m)) for n, m in zip(sizes, (h, w), strict=True))
    squared, results = distances(cpu, model, make_maps(model, 3))
    maps, scores = smooth(cpu, model, squared, rows, columns)
    wanted = score_maps(model, results, rows, columns)
    np.testing.assert_allclose(maps, wanted, rtol=TOLERANCE, atol=0)
    np.testing.assert_array_equal(scores, maps.max(axis=(1, 2)))
    again = smooth(cpu, model, squared, rows, columns, descending=True)
    np.testing.assert_array_equal(maps, again[0])
    np.testing.assert_array_equal(scores, again[1])


def test_nothing_is_found_where_nothing_is_judged(cpu):
    model = make(SHAPES["three levels"], "float32")
    h, w = model.pyramid.height, model.pyramid.width
    rng = np.random.default_rng(3)
    rows, columns = (smoothing_matrix(4 * n, n, 1.5) for n in (h, w))
    squared, _ = distances(cpu, model, make_maps(model, 3))
    maps, _ = smooth(cpu, model, squared, rows, columns)
    for share in (0.5, 0.02):
        judged = (rng.random(maps.shape[1:]) < share).astype(np.uint8)
        found, scores = smooth(cpu, model, squared, rows, columns, judged)
        np.testing.assert_array_equal(found, maps * judged)
        np.testing.assert_array_equal(scores, (maps * judged).max(axis=(1, 2)))
    squared[:] = np.nan
    found, scores = smooth(cpu, model, squared, rows, columns, judged)
    assert (np.isnan(found) == judged.astype(bool)).all()
    assert np.isnan(scores).all()


def test_default_model_at_its_full_size(cpu):
    """ResNet-18 with 100 channels, 224 x 224 pixels: every block and tile there is."""
    model = make([(18, 56, 56), (23, 28, 28), (59, 14, 14)], "float16")
    rows = columns = smoothing_matrix(224, 56, 4)
    layer_maps = make_maps(model, 1)
    squared, results = distances(cpu, model, layer_maps)
    wanted = expected(model, layer_maps)
    assert_close(results, wanted)
    maps, scores = smooth(cpu, model, squared, rows, columns)
    np.testing.assert_allclose(
        maps, score_maps(model, wanted, rows, columns), rtol=TOLERANCE, atol=0
    )
    assert scores[0] == maps.max()


@pytest.mark.parametrize("sign", [1, -1])
def test_score_of_a_frame_with_nan_is_nan(cpu, sign):
    model = make(SHAPES["three levels"], "float32")
    rows = columns = smoothing_matrix(32, 8, 2)
    squared, _ = distances(cpu, model, make_maps(model, 3))
    maps, scores = smooth(cpu, model, squared, rows, columns)
    squared[1, 5] = np.copysign(np.nan, sign)  # on x86 it is the negative one that arises
    poisoned, poisoned_scores = smooth(cpu, model, squared, rows, columns)
    np.testing.assert_array_equal(maps[[0, 2]], poisoned[[0, 2]])
    np.testing.assert_array_equal(scores[[0, 2]], poisoned_scores[[0, 2]])
    assert np.isnan(poisoned_scores[1])
    assert np.isnan(poisoned[1]).any()


def test_a_smoothing_too_wide_is_refused():
    model = make([(1, 112, 112)], "float32")
    full = np.ones((112, 112))
    smoothing = pack_smoothing(model.pyramid, model.packed, full, full)
    addresses = SmoothingAddresses(*[0] * 7)
    with pytest.raises(PadimEdgeError, match=r"needs 53760 bytes .* gets 49152"):
        smoothing.smooth(1, addresses)
    assert smoothing.smooth(1, addresses, shared_limit=53760).shared_bytes == 53760


def test_negative_sums_are_clamped(cpu):
    model = make([(1, 2, 2)], "float32")
    squared = np.array([[-1e-3, 4, 9, 16]], np.float32)
    maps, scores = smooth(cpu, model, squared, np.eye(2), np.eye(2))
    np.testing.assert_array_equal(maps, [[[0, 2], [3, 4]]])
    assert scores[0] == 4


@pytest.mark.parametrize("barrier", [1, 2])
def test_every_barrier_of_smooth_is_needed(cpu, barrier):
    model = make(SHAPES["three levels"], "float32")
    rows = columns = smoothing_matrix(32, 8, 2)
    squared, _ = distances(cpu, model, make_maps(model, 1))
    good, _ = smooth(cpu, model, squared, rows, columns)
    orders = [
        smooth(cpu, model, squared, rows, columns, descending=order, skipped_barrier=barrier)[0]
        for order in (False, True)
    ]
    assert not all(np.array_equal(good, bad, equal_nan=True) for bad in orders)
