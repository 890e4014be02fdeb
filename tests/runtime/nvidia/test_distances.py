"""The distance kernel, compiled for the CPU by a shim, against float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_kernels import (
    SHAPES,
    assert_close,
    distances,
    expected,
    launch,
    make,
    make_maps,
)

from padim_edge.errors import PadimEdgeError
from padim_edge.runtime.nvidia.launch import FORMATS


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_distances(cpu, shapes, format_):
    model = make(shapes, format_)
    maps = make_maps(model, 1)
    up, results = distances(cpu, model, maps)
    assert_close(results, expected(model, maps))
    down, _ = distances(cpu, model, maps, descending=True)
    np.testing.assert_array_equal(up, down)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("count", [2, 3, 8, 9, 32])
def test_batches(cpu, format_, count):
    model = make([(17, 4, 4), (21, 2, 2), (37, 1, 1)], format_, strips_per_block=3, warps=2)
    assert (model.packed.parameters["level"]["parts"][:3] > 1).all()
    maps = make_maps(model, count, dtype=np.float16)
    up, results = distances(cpu, model, maps)
    assert_close(results, expected(model, maps))
    down, _ = distances(cpu, model, maps, descending=True)
    np.testing.assert_array_equal(up, down)


@pytest.mark.parametrize("format_", FORMATS)
def test_dense_form_with_a_coarser_layer(cpu, format_):
    model = make([(5, 4, 6), (6, 2, 3), (18, 4, 6)], format_, dense=True)
    maps = make_maps(model, 3)
    assert_close(distances(cpu, model, maps)[1], expected(model, maps))


def test_wide_model_in_a_batch(cpu):
    model = make(SHAPES["wide"], "float16")
    maps = make_maps(model, 8)
    assert_close(distances(cpu, model, maps)[1], expected(model, maps))


def test_huge_and_tiny_values(cpu):
    model = make([(6, 4, 4), (9, 2, 2)], "float32", spread=18)
    maps = make_maps(model, 2, spread_like=True)
    sizes = np.concatenate([np.abs(x).ravel() for x in maps])
    assert sizes.max() > 1e14
    assert sizes.min() < 1e-14
    assert_close(distances(cpu, model, maps)[1], expected(model, maps))


def test_fewer_frames_share_a_pass_where_shared_memory_is_short(cpu):
    model = make(SHAPES["three levels"], "float16")
    maps = make_maps(model, 8)
    ample = launch(model, maps, np.empty(1), np.empty(1))
    assert ample.function == "mahalanobis_float16_8"
    limit = ample.shared_bytes - 1
    assert model.packed.frames_per_pass(8, limit) == 4
    _, results = distances(cpu, model, maps, shared_limit=limit)
    assert_close(results, expected(model, maps))
    with pytest.raises(PadimEdgeError, match="gets 100;"):
        model.packed.frames_per_pass(1, 100)


@pytest.mark.parametrize(
    ("count", "per_pass"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 8), (16, 8), (32, 8)]
)
def test_frames_per_pass(count, per_pass):
    assert make(SHAPES["one level"], "float16").packed.frames_per_pass(count) == per_pass


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["three levels", "wide"])
def test_default_models_serve_8_frames_a_pass_on_every_device(name, format_):
    assert make(SHAPES[name], format_).packed.frames_per_pass(8) == 8


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["three levels", "ratios 4 and 2"])
def test_above_the_diagonal_nothing_is_stored(name, format_):
    clean = make(SHAPES[name], format_).packed.lines
    poisoned = make(SHAPES[name], format_, poison=True).packed.lines
    np.testing.assert_array_equal(clean, poisoned)


def test_size_of_the_constants():
    """The default WideResNet at one of its 196 cells: within 3 % of the triangles themselves."""
    model = make(SHAPES["wide"], "float16")
    d = (314, 154, 82)
    triangles = [d[i] * sum(d[:i]) + d[i] * (d[i] + 1) // 2 for i in range(3)]
    least = 2 * (triangles[0] + 4 * triangles[1] + 16 * triangles[2])
    assert least < model.packed.lines.nbytes < 1.03 * least


@pytest.mark.parametrize("count", [3, 9])
def test_nan_stays_in_its_frame_and_below_its_position(cpu, count):
    model = make(SHAPES["three levels"], "float16")
    maps = make_maps(model, count)
    clean, _ = distances(cpu, model, maps)
    maps[1][2, 4, 1, 3] = np.nan  # of the middle level
    poisoned, results = distances(cpu, model, maps)
    others = np.arange(count) != 2
    np.testing.assert_array_equal(clean[others], poisoned[others])
    below = [np.zeros(x.shape[1:], bool) for x in results]
    below[1][1, 3] = below[2][2:4, 6:8] = True
    for result, nan in zip(results, below, strict=True):
        np.testing.assert_array_equal(np.isnan(result[2]), nan)


def test_too_many_layers_are_refused():
    with pytest.raises(PadimEdgeError, match="9 layers in 1 resolutions are too many"):
        make([(1, 2, 2)] * 9, "float32")
    with pytest.raises(PadimEdgeError, match="5 layers in 5 resolutions"):
        make([(1, 2**i, 2**i) for i in range(5)], "float32")


@pytest.mark.parametrize("barrier", [1, 2, 3, 4])
def test_every_barrier_of_mahalanobis_is_needed(cpu, barrier):
    """So a missing one would be seen: this proves the shim, not the kernel."""
    # One warp has two strips here: the only case in which the third barrier matters.
    model = make(SHAPES["ratios 4 and 2"], "float16", warps=8)
    maps = make_maps(model, 1)
    good, _ = distances(cpu, model, maps)
    orders = [
        distances(cpu, model, maps, descending=order, skipped_barrier=barrier)[0]
        for order in (False, True)
    ]
    assert not all(np.array_equal(good, bad, equal_nan=True) for bad in orders)


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="float64"):
        make([(1, 2, 2)], "float64")
