"""The CUDA kernels, compiled for the CPU by a shim, against float64 numpy.

The reference works in raster order, with coarse maps repeated and constants as dense rows; tree
order is built by its own few lines. Tolerance 1e-5 for every format: the reference takes the
constants as they are stored, so only float32 arithmetic is left.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import multiprocessing
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from padim_edge.errors import PadimEdgeError
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import smoothing_matrix
from padim_edge.runtime.nvidia import launch, smoothing, whitening

KERNELS = Path(whitening.__file__).with_name("kernels.cu")
SHIM = Path(__file__).parents[1] / "support" / "cuda_shim"
TOLERANCE = 1e-5

# Layers as (channels, height, width), finest first as in a network.
SHAPES = {
    "one channel": [(1, 2, 2)],
    "one position": [(5, 1, 1)],
    "one level": [(37, 3, 5)],
    "three levels": [(18, 8, 8), (23, 4, 4), (59, 2, 2)],
    "four levels": [(1, 8, 8), (2, 4, 4), (3, 2, 2), (4, 1, 1)],
    "ratios 4 and 2": [(9, 16, 8), (17, 4, 2), (11, 2, 1)],
    "ratios 2 and 4": [(9, 8, 8), (3, 2, 2), (33, 1, 1)],
    "ratio 3": [(4, 6, 6), (9, 2, 2)],
    "two layers in a level": [(5, 4, 4), (6, 4, 4), (3, 2, 2)],
    "wide": [(82, 4, 4), (154, 2, 2), (314, 1, 1)],
}


class Cpu:
    """Launches kernels of the shim library."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.run.restype = ctypes.c_char_p

    def run(self, launch, *, descending=False, skipped_barrier=0):
        sizes = [(ctypes.c_uint * 3)(*size) for size in (launch.grid, launch.block)]
        error = self.library.run(
            launch.function.encode(),
            *sizes,
            ctypes.c_size_t(launch.shared_bytes),
            launch.argument,
            ctypes.c_size_t(len(launch.argument)),
            int(descending),
            skipped_barrier,
        )
        assert error is None, error.decode()


@pytest.fixture(scope="session")
def cpu(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler (g++ or clang++) on PATH")
    library = tmp_path_factory.mktemp("shim") / "kernels.so"
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    options += ["-Wno-unknown-pragmas", "-Wno-pass-failed", f'-DKERNELS="{KERNELS}"']
    # A fortified longjmp refuses to jump to another stack.
    options += ["-U_FORTIFY_SOURCE", "-o", str(library)]
    # A misaligned 16-byte load, a shift or an index out of range ends the process with a message.
    sanitizer = ["-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"]
    sanitizer += ["-fno-sanitize-recover=all"]
    sanitizer += ["-static-libubsan"] if compiler.endswith("g++") else ["-static-libsan"]
    command = [compiler, *options, str(SHIM / "run.cpp")]
    if subprocess.run([*command, *sanitizer], capture_output=True).returncode:
        subprocess.run(command, check=True)  # no sanitizer here, or an error to be shown
    return Cpu(library)


@dataclass(frozen=True)
class Model:
    """Means [d, h, w] and dense rows [h, w, d_l, columns of all levels to l], raster order."""

    pyramid: Pyramid
    means: list[np.ndarray]
    rows: list[np.ndarray]
    packed: packing.Whitening
    layers: list[Layer]


def tree_order(pyramid):
    """Per level (y, x) of each position: children of a position follow each other."""
    first = pyramid.levels[0]
    orders = [[(y, x) for y in range(first.height) for x in range(first.width)]]
    for coarse, fine in zip(pyramid.levels, pyramid.levels[1:], strict=False):
        r = fine.height // coarse.height
        orders.append(
            [(y * r + i, x * r + j) for y, x in orders[-1] for i in range(r) for j in range(r)]
        )
    return [tuple(np.array(order).T) for order in orders]


def stored(rows, format_):
    """Blocks of rows in a format, their scales, and the values that they stand for."""
    if format_ != "int8":
        return rows.astype(format_), None, rows.astype(format_).astype(np.float64)
    scales = (np.abs(rows).max(axis=-1) / 127).astype(np.float32)
    scales[scales == 0] = 1
    values = np.rint(rows / scales[..., None]).astype(np.int8)
    return values, scales, values * scales[..., None].astype(np.float64)


def make(shapes, format_, *, dense=False, seed=0, poison=False, spread=0.0, **cut):
    """A model with random rows; ``spread``: channels differ by up to 10^±spread."""
    rng = np.random.default_rng(seed)
    layers = [Layer(f"layer{i}", *shape) for i, shape in enumerate(shapes)]
    pyramid = (Pyramid.dense if dense else Pyramid.coarse_to_fine)(layers)
    factors = [10 ** rng.uniform(-spread, spread, level.channels) for level in pyramid.levels]
    means, rows, blocks, scales = [], [], {}, {}
    for index, (level, order) in enumerate(zip(pyramid.levels, tree_order(pyramid), strict=True)):
        h, w, d = level.height, level.width, level.channels
        means.append(rng.standard_normal((d, h, w)) * factors[index][:, None, None])
        means[-1] = means[-1].astype(np.float32)
        parts = []
        for other in range(index + 1):
            block = rng.standard_normal((h, w, d, pyramid.levels[other].channels)) / factors[other]
            if other == index:
                block = np.tril(block)
            values, scale, exact = stored(block, format_)
            parts.append(exact)
            if other == index and poison:
                above = np.triu(np.ones((d, d), bool), 1)
                values[..., above] = 127 if format_ == "int8" else np.nan
            blocks[index, other] = values[order]
            if scale is not None:
                scales[index, other] = scale[order]
        rows.append(np.concatenate(parts, axis=3))
    packed = packing.pack_whitening(pyramid, means, blocks, scales or None, **cut)
    ordered = [layer for level in pyramid.levels for layer in level.layers]
    return Model(pyramid, means, rows, packed, ordered)


def make_maps(model, count, seed=1, dtype=np.float32, spread_like=None):
    rng = np.random.default_rng(seed)
    maps = []
    for layer in model.layers:
        x = rng.standard_normal((count, layer.channels, layer.height, layer.width)) * 2
        maps.append(x.astype(dtype))
    if spread_like:  # about as large as the means of their channels
        for x, mean in zip(maps, model.means, strict=True):
            x *= np.abs(mean).max(axis=(1, 2))[:, None, None]
    return maps


def repeat(x, height):
    times = height // x.shape[-2]
    return x.repeat(times, axis=-2).repeat(times, axis=-1)


def expected(model, maps):
    """Squared distances of each level's own rows, [N, h, w], in float64."""
    remaining = list(maps)
    centred, results = [], []
    for index, level in enumerate(model.pyramid.levels):
        own = [repeat(remaining.pop(0).astype(np.float64), level.height) for _ in level.layers]
        centred.append(np.concatenate(own, axis=1) - model.means[index])
        z = np.concatenate([repeat(each, level.height) for each in centred], axis=1)
        whitened = np.einsum("hwdk,nkhw->nhwd", model.rows[index], z)
        results.append((whitened**2).sum(axis=3))
    return results


def launch(model, maps, squared, scores, **options):
    packed = model.packed
    addresses = packing.WhiteningAddresses(
        packed.lines.ctypes.data,
        packed.means.ctypes.data,
        packed.pixels.ctypes.data,
        [x.ctypes.data for x in maps],
        squared.ctypes.data,
        scores.ctypes.data,
    )
    half = maps[0].dtype == np.float16
    return packed.mahalanobis(len(maps[0]), addresses, half_maps=half, **options)


def distances(cpu, model, maps, *, descending=False, skipped_barrier=0, **options):
    """The kernel's result as it lies in memory, and per level [N, h, w]."""
    count = len(maps[0])
    squared = np.full((count, model.packed.squared_floats), np.nan, np.float32)
    scores = np.full(count, np.nan, np.float32)
    cpu.run(
        launch(model, maps, squared, scores, **options),
        descending=descending,
        skipped_barrier=skipped_barrier,
    )
    assert (scores == 0).all()
    results, start = [], 0
    for level, described in zip(
        model.pyramid.levels, model.packed.parameters["level"], strict=False
    ):
        parts = int(described["parts"])
        planes = squared[:, start : start + parts * level.positions]
        planes = planes.reshape(count, parts, level.height, level.width)
        results.append(planes.sum(axis=1, dtype=np.float64))
        start += parts * level.positions
    assert start == squared.shape[1]
    return squared, results


def assert_close(results, wanted):
    for result, want in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, want, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("format_", packing.FORMATS)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_distances(cpu, shapes, format_):
    model = make(shapes, format_)
    maps = make_maps(model, 1)
    up, results = distances(cpu, model, maps)
    assert_close(results, expected(model, maps))
    down, _ = distances(cpu, model, maps, descending=True)
    np.testing.assert_array_equal(up, down)


@pytest.mark.parametrize("format_", packing.FORMATS)
@pytest.mark.parametrize("count", [2, 3, 8, 9, 32])
def test_batches(cpu, format_, count):
    model = make([(17, 4, 4), (21, 2, 2), (37, 1, 1)], format_, strips_per_block=3, warps=2)
    assert (model.packed.parameters["level"]["parts"][:3] > 1).all()
    maps = make_maps(model, count, dtype=np.float16)
    up, results = distances(cpu, model, maps)
    assert_close(results, expected(model, maps))
    down, _ = distances(cpu, model, maps, descending=True)
    np.testing.assert_array_equal(up, down)


@pytest.mark.parametrize("format_", packing.FORMATS)
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


@pytest.mark.parametrize("format_", packing.FORMATS)
@pytest.mark.parametrize("name", ["three levels", "wide"])
def test_default_models_serve_8_frames_a_pass_on_every_device(name, format_):
    assert make(SHAPES[name], format_).packed.frames_per_pass(8) == 8


@pytest.mark.parametrize("format_", packing.FORMATS)
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


# --- smooth ---------------------------------------------------------------------------------


def smooth(cpu, model, squared, rows, columns, **options):
    packed = packing.pack_smoothing(model.pyramid, model.packed, rows, columns)
    count = len(squared)
    maps = np.full((count, len(rows), len(columns)), np.nan, np.float32)
    scores = np.zeros(count, np.float32)
    arrays = (packed.row_taps, packed.row_first, packed.column_taps, packed.column_first)
    addresses = packing.SmoothingAddresses(
        *(x.ctypes.data for x in (*arrays, squared, maps, scores))
    )
    cpu.run(packed.smooth(count, addresses), **options)
    return maps, scores


def score_maps(model, results, rows, columns):
    """The same from levels' distances, in float64 and with whole matrices."""
    finest = model.pyramid.height
    total = sum(repeat(np.asarray(x, np.float64), finest) for x in results)
    return rows @ np.sqrt(total) @ columns.T


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
    smoothing = packing.pack_smoothing(model.pyramid, model.packed, full, full)
    addresses = packing.SmoothingAddresses(*[0] * 7)
    with pytest.raises(PadimEdgeError, match=r"needs 53760 bytes .* gets 49152"):
        smoothing.smooth(1, addresses)
    assert smoothing.smooth(1, addresses, shared_limit=53760).shared_bytes == 53760


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="float64"):
        make([(1, 2, 2)], "float64")


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


# --- bounds ---------------------------------------------------------------------------------


class Guarded:
    """Copies of arrays that end, or begin, exactly at a page that must not be touched."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.kept = []

    def __call__(self, array):
        page = mmap.PAGESIZE
        size = max(array.nbytes, 1)
        pages = -(-size // page)
        region = mmap.mmap(-1, (pages + 2) * page)
        self.kept.append(region)
        base = np.frombuffer(region, np.uint8).ctypes.data
        for guard in (0, pages + 1):
            result = self.libc.mprotect(
                ctypes.c_void_p(base + guard * page), ctypes.c_size_t(page), 0
            )
            assert result == 0
        start = (pages + 1) * page - array.nbytes if self.at_end else page
        copy = np.frombuffer(region, array.dtype, array.size, start)
        copy[...] = array
        return copy


def run_guarded(cpu, name, format_, dtype, count, at_end, missing):
    """Both kernels among guard pages; ``missing``: the array whose last element is left out."""
    guard = Guarded(at_end)

    def at(key, array):
        flat = array.ravel()
        cut = 128 if key == "lines" else 1  # lines stay aligned
        return guard(flat[:-cut] if key == missing else flat).ctypes.data

    model = make(SHAPES[name], format_)
    packed = model.packed
    floats = np.float32
    squared = at("squared", np.zeros(count * packed.squared_floats, floats))
    scores = at("scores", np.zeros(count, floats))
    constants = (at(key, getattr(packed, key)) for key in ("lines", "means", "pixels"))
    maps = [at("maps", x) for x in make_maps(model, count, dtype=dtype)]
    addresses = packing.WhiteningAddresses(*constants, maps, squared, scores)
    cpu.run(packed.mahalanobis(count, addresses, half_maps=dtype == np.float16))

    h, w = model.pyramid.height, model.pyramid.width
    matrices = smoothing_matrix(4 * h, h, 2), smoothing_matrix(4 * w, w, 2)
    smoothing = packing.pack_smoothing(model.pyramid, packed, *matrices)
    keys = ("row_taps", "row_first", "column_taps", "column_first")
    taps = (at(key, getattr(smoothing, key)) for key in keys)
    out = at("map", np.zeros(count * 16 * h * w, floats))
    cpu.run(smoothing.smooth(count, packing.SmoothingAddresses(*taps, squared, out, scores)))


def run_quietly(*arguments):
    faulthandler.disable()  # a fault is expected here; its traceback is not
    run_guarded(*arguments)


def exit_code(*arguments):
    process = multiprocessing.get_context("fork").Process(target=run_quietly, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("format_", packing.FORMATS)
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_outside_the_arrays_is_touched(cpu, name, format_, at_end):
    assert exit_code(cpu, name, format_, np.float16, 3, at_end, None) == 0


ARRAYS = ("lines", "means", "pixels", "maps", "squared", "scores")
ARRAYS += ("row_taps", "row_first", "column_taps", "column_first", "map")


@pytest.mark.parametrize("missing", ARRAYS)
def test_a_touch_outside_would_be_seen(cpu, missing):
    code = exit_code(cpu, "three levels", "float16", np.float32, 3, True, missing)
    assert code == -signal.SIGSEGV
