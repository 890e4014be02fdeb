"""The CUDA kernels on the CPU, compiled by the shim, models for them and what they should give.

The reference works in raster order, with coarse maps repeated and constants as dense rows; tree
order is built by its own few lines.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.runtime import nvidia
from padim_edge.runtime.nvidia.prepare import pack_preparation, row_bytes
from padim_edge.runtime.nvidia.smoothing import SmoothingAddresses, pack_smoothing
from padim_edge.runtime.nvidia.whitening import Whitening, WhiteningAddresses, pack_whitening

KERNELS = Path(nvidia.__file__).parent  # the folder of the .cu files
SHIM = Path(__file__).parent / "cuda_shim"
LIBRARY = "kernels.so"
SHARED = 100 * 1024  # bytes that a block of the preparing kernel may have
TOLERANCE = 1e-5  # the reference takes the constants as stored: only float32 arithmetic is left

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


def build(folder):
    """Compile the kernels into a folder; skips without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler (g++ or clang++) on PATH")
    library = folder / LIBRARY
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    options += ["-Wno-unknown-pragmas", "-Wno-pass-failed", f"-I{KERNELS}"]
    # A fortified longjmp refuses to jump to another stack.
    options += ["-U_FORTIFY_SOURCE", "-o", str(library)]
    # A misaligned 16-byte load, a shift or an index out of range ends the process with a message.
    sanitizer = ["-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"]
    sanitizer += ["-fno-sanitize-recover=all"]
    sanitizer += ["-static-libubsan"] if compiler.endswith("g++") else ["-static-libsan"]
    command = [compiler, *options, str(SHIM / "run.cpp")]
    if subprocess.run([*command, *sanitizer], capture_output=True).returncode:
        subprocess.run(command, check=True)  # no sanitizer here, or an error to be shown


@dataclass(frozen=True)
class Model:
    """Means [d, h, w] and dense rows [h, w, d_l, columns of all levels to l], raster order."""

    pyramid: Pyramid
    means: list[np.ndarray]
    rows: list[np.ndarray]
    packed: Whitening
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
    packed = pack_whitening(pyramid, means, blocks, scales or None, **cut)
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
    addresses = WhiteningAddresses(
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


def smooth(cpu, model, squared, rows, columns, judged=None, **options):
    packed = pack_smoothing(model.pyramid, model.packed, rows, columns)
    count = len(squared)
    maps = np.full((count, len(rows), len(columns)), np.nan, np.float32)
    scores = np.zeros(count, np.float32)
    arrays = (packed.row_taps, packed.row_first, packed.column_taps, packed.column_first)
    given = (*arrays, squared, maps, scores, *([] if judged is None else [judged]))
    addresses = SmoothingAddresses(*(x.ctypes.data for x in given))
    cpu.run(packed.smooth(count, addresses), **options)
    return maps, scores


def score_maps(model, results, rows, columns):
    """The same from levels' distances, in float64 and with whole matrices."""
    finest = model.pyramid.height
    total = sum(repeat(np.asarray(x, np.float64), finest) for x in results)
    return rows @ np.sqrt(total) @ columns.T


def frame_of(pixel_format, height, width, gap=0, seed=0):
    """Random pixels in which rows are ``gap`` bytes apart; sizes are made even where they must."""
    form = PIXEL_FORMATS[pixel_format]
    height += height % 2 * form.even[0]
    width += width % 2 * form.even[1]
    shape = (height * 3 // 2 if form.thirds else height, width, *form.pixel[0])
    dtype = np.dtype(form.dtype)
    pitch = row_bytes(pixel_format, shape) + (
        0 if form.gapless else gap // dtype.itemsize * dtype.itemsize
    )
    memory = np.random.default_rng(seed).integers(0, 256, shape[0] * pitch, dtype=np.uint8)
    inner = np.empty(shape[1:], dtype).strides
    return Frame(np.ndarray(shape, dtype, memory, strides=(pitch, *inner)), pixel_format)


def prepared(cpu, preprocess, frame, **order):
    pixels = frame.pixels
    preparation = pack_preparation(
        preprocess, frame.pixel_format, pixels.shape, pixels.strides[0], shared_limit=SHARED
    )
    image = np.full((*preprocess.size, 3), 85, np.uint8)
    tables = preparation.tables.ctypes.data
    cpu.run(preparation.launch(tables, pixels.ctypes.data, image.ctypes.data), **order)
    return image
