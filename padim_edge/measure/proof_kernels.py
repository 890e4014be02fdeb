"""The proof's lines on the kernels: scoring against a float64 judge, preparing against Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.proof_detectors import judge, make, random_maps, worst
from padim_edge.measure.proof_device import open_gpu
from padim_edge.measure.proof_line import CONSTANTS, Line, Sizes, Spec, line, rounded

TOLERANCE = 1e-5
"""Of the largest value: the judge takes the constants as stored, so only float32 sums are left."""

TIMED = (1, 8, 32)
"""Batch sizes whose times are told, if they were run."""


def scoring(sizes: Sizes, _folder: Path, network: str, preset: str) -> Iterator[Line]:
    """Distances and smoothing at every batch size, of maps in float32 and in float16."""
    for constants in CONSTANTS:
        yield _scored(sizes, network, preset, constants)


def _scored(sizes: Sizes, network: str, preset: str, constants: str) -> Line:
    model = make(Spec(network, preset, "float32", constants), sizes.image)
    counts = sizes.kernel_batches
    errors: dict[str, float] = {}
    for half in (True, False):  # what is timed is float32, which all our backbones give
        maps = random_maps(model, max(counts), half)
        wanted = judge(model, maps)
        with open_gpu() as gpu:
            found, seconds, nbytes = gpu.score(model, maps, counts, sizes.repeats)
            copy = gpu.copy_bandwidth()
        of_batch = [worst(one, wanted[: len(one[0])]) for one in found]
        errors["float16" if half else "float32"] = float(np.max(of_batch))
    largest = float(np.max(list(errors.values())))  # NaN stays NaN
    rate = nbytes / seconds[counts[0]][0]
    timed = [count for count in TIMED if count in seconds]
    times = {count: [rounded(1e6 * x) for x in seconds[count]] for count in timed}
    first, then = times.get(counts[0], (0.0, 0.0))
    return line(
        f"{network} {preset} {constants}",
        largest <= TOLERANCE,
        f"largest error {largest:.1e} at {len(counts)} batch sizes; distances {first:g} us, "
        f"{rate / 1e9:.1f} GB/s, {rate / copy:.2f} of a copy's; smoothing {then:g} us",
        errors={kind: rounded(error) for kind, error in errors.items()},
        microseconds={str(count): both for count, both in times.items()},
        bytes=nbytes,
        of_copy=rounded(rate / copy),
    )


# --- preparing ----------------------------------------------------------------------------------


def preparing(sizes: Sizes, _folder: Path) -> Iterator[Line]:
    """Every pixel format, large and small, bit for bit as Pillow and NumPy prepare it."""
    preprocess = Preprocess.whole((sizes.image, sizes.image))
    yield _against_pillow(preprocess, sizes.image)
    width, height = sizes.camera
    shapes = [(height, width), (sizes.image + 34, sizes.image + 50), (200, 2), (122, 246)]
    wrong: dict[str, int] = {}
    times: dict[str, float] = {}
    rates = []
    for name in PIXEL_FORMATS:
        frames = [_frame(name, *shape) for shape in shapes]
        with open_gpu() as gpu:
            images, seconds = gpu.prepare(preprocess, frames, sizes.repeats)
        wrong[name] = sum(
            int(np.count_nonzero(image != preprocess(frame)))
            for image, frame in zip(images, frames, strict=True)
        )
        times[name] = rounded(1e6 * seconds[0])
        rates.append(frames[0].layout.nbytes / seconds[0] / 1e9)
    bad = {name: count for name, count in wrong.items() if count}
    yield line(
        "prepare",
        not bad,
        f"{len(times)} pixel formats on {len(shapes)} sizes: {_bits(sum(bad.values()))}"
        f"{' of ' + ', '.join(bad) if bad else ''}; {width}x{height} in {min(times.values()):g} to "
        f"{max(times.values()):g} us, {min(rates):.1f} to {max(rates):.1f} GB/s",
        wrong=bad,
        microseconds=times,
    )


def _against_pillow(preprocess: Preprocess, side: int) -> Line:
    """What is less than twice as large is resized by Pillow alone: across, then down."""
    shapes = [(side * 3 // 2, side * 2 - 1), (side + 1, side // 2), (side * 2 - 1, side)]
    frames = [_frame("rgb", *shape) for shape in shapes]
    with open_gpu() as gpu:
        images, _ = gpu.prepare(preprocess, frames, 1)
    wrong = 0
    for image, frame in zip(images, frames, strict=True):
        photo = Image.fromarray(frame.in_host_memory())
        for size in ((side, photo.height), (side, side)):
            photo = photo.resize(size, Image.Resampling.BILINEAR)
        wrong += int(np.count_nonzero(image != np.asarray(photo)))
    return line(
        "resize", not wrong, f"{_bits(wrong)} as Pillow on {len(frames)} sizes", wrong=wrong
    )


def _bits(wrong: int) -> str:
    return f"{wrong} bytes are NOT the same" if wrong else "the same bits"


def _frame(pixel_format: str, height: int, width: int) -> Frame:
    """Random pixels; sides are made even where the format needs it."""
    form = PIXEL_FORMATS[pixel_format]
    height, width = height + height % 2 * form.even[0], width + width % 2 * form.even[1]
    shape = (height * 3 // 2 if form.thirds else height, width, *form.pixel[0])
    generator = np.random.default_rng(height)
    pixels: NDArray[Any] = generator.integers(0, form.white + 1, shape, dtype=form.dtype)
    return Frame(pixels, pixel_format)
