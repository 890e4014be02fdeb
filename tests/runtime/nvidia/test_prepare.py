"""The kernel that prepares frames, compiled for the CPU by a shim, against `Preprocess`.

Bit for bit, for every pixel format. That `Preprocess` is right is the business of
tests/images/test_resize.py and test_formats.py.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import itertools
import multiprocessing
import signal

import numpy as np
import pytest
from cpu_kernels import SHARED, frame_of, prepared
from guarded import Guarded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.formats import PIXEL_FORMATS
from padim_edge.images.preprocess import Preprocess
from padim_edge.images.resize import FILTERS
from padim_edge.runtime.nvidia.prepare import pack_preparation, row_bytes

SMALL = Preprocess.whole((24, 40))
CROPPED = Preprocess((20, 35), (27, 41), True, "bilinear", True)
DEFAULT = Preprocess.whole((224, 224))


def check(cpu, preprocess, frame):
    expected = preprocess(frame)
    np.testing.assert_array_equal(prepared(cpu, preprocess, frame), expected)
    np.testing.assert_array_equal(prepared(cpu, preprocess, frame, descending=True), expected)


@pytest.mark.parametrize("preprocess", [SMALL, CROPPED], ids=["whole", "crop"])
@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_every_format_and_odd_sizes(cpu, pixel_format, preprocess):
    sizes = [(1, 1), (24, 40), (27, 41), (25, 83), (3, 400), (400, 3), (131, 97)]
    for seed, (height, width) in enumerate(sizes):
        check(cpu, preprocess, frame_of(pixel_format, height, width, seed % 3 * 6, seed))


@pytest.mark.parametrize("pixel_format", ["bgr", "rgba", "grey12", "bayer-gbrg", "nv12", "uyvy"])
@pytest.mark.parametrize("size", [(1080, 1920), (5000, 3), (3, 5000), (224, 224)])
def test_the_default_at_full_size(cpu, pixel_format, size):
    check(cpu, DEFAULT, frame_of(pixel_format, *size))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("resize", [40, (33, 52)])
def test_every_filter_and_crop(cpu, interpolation, resize):
    preprocess = Preprocess((31, 39), resize, True, interpolation, True)
    for pixel_format, size in itertools.product(["rgb", "i420"], [(70, 90), (301, 120), (17, 19)]):
        check(cpu, preprocess, frame_of(pixel_format, *size))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pixel_format=st.sampled_from(sorted(PIXEL_FORMATS)),
    height=st.integers(1, 256),  # or a block could be too large
    width=st.integers(1, 300),
    gap=st.integers(0, 9),
    size=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    interpolation=st.sampled_from(sorted(FILTERS)),
)
def test_any_frame(cpu, pixel_format, height, width, gap, size, interpolation):
    preprocess = Preprocess.whole(size, interpolation)
    frame = frame_of(pixel_format, height, width, gap)
    np.testing.assert_array_equal(prepared(cpu, preprocess, frame), preprocess(frame))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_extremes(cpu, pixel_format, value):
    """The largest sums there are: blocks of 250 x 250 pixels, all black or all white."""
    frame = frame_of(pixel_format, 750, 750)
    frame.pixels[...] = value * (257 if frame.pixels.dtype == np.uint16 else 1)
    check(cpu, Preprocess.whole((3, 3), "lanczos"), frame)


def test_rows_that_are_summed_at_one_time(cpu):
    """As many as shared memory for sums has, one at least; in one strip, or several."""
    strips = set()
    for width in (50, 900, 9000):
        frame = frame_of("bgr", 120, width)
        packed = pack_preparation(
            SMALL, "bgr", frame.pixels.shape, frame.pixels.strides[0], shared_limit=SHARED
        )
        strips.add(int(packed.parameters["plane"]["strip"][0]))
        check(cpu, SMALL, frame)
    assert min(strips) == 1
    assert len(strips) == 3


def test_reads_nothing_but_pixels_and_writes_nothing_but_the_image(cpu):
    for pixel_format, at_end in itertools.product(PIXEL_FORMATS, (True, False)):
        assert exit_code(cpu, pixel_format, at_end, None) == 0, pixel_format
    for missing in ("pixels", "tables", "image"):
        assert exit_code(cpu, "bgr", True, missing) == -signal.SIGSEGV


def exit_code(*arguments):
    process = multiprocessing.get_context("fork").Process(target=run_guarded, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def run_guarded(cpu, pixel_format, at_end, missing):
    """Between pages that must not be touched; ``missing``: whose last element is left out."""
    faulthandler.disable()  # a fault is expected here; its traceback is not
    guard = Guarded(at_end)

    def at(name, array):
        return guard(array.ravel()[: -1 if name == missing else None]).ctypes.data

    for width in (33, 34, 64):
        frame = frame_of(pixel_format, 50, width)
        shape = frame.pixels.shape
        packed = pack_preparation(SMALL, pixel_format, shape, row_bytes(pixel_format, shape))
        image = np.zeros((*SMALL.size, 3), np.uint8)
        pixels = at("pixels", np.ascontiguousarray(frame.pixels))
        cpu.run(packed.launch(at("tables", packed.tables), pixels, at("image", image)))


@pytest.mark.parametrize("barrier", range(1, 12))
def test_every_barrier_is_needed(cpu, barrier):
    """Two planes, each in two strips with two barriers and one more at its end, and the last."""
    preprocess = Preprocess.whole((8, 32))
    frame = frame_of("nv12", 52, 900)
    packed = pack_preparation(preprocess, "nv12", frame.pixels.shape, 900)
    assert packed.parameters["plane"]["strip"][:2].tolist() == [8, 8]
    good = preprocess(frame)

    def bad(descending):
        image = np.zeros_like(good)
        tables = packed.tables.ctypes.data
        launch = packed.launch(tables, frame.pixels.ctypes.data, image.ctypes.data)
        cpu.run(launch, descending=descending, skipped_barrier=barrier)
        return image

    orders = [bad(descending) for descending in (False, True)]
    assert not all(np.array_equal(good, image) for image in orders)


def test_what_the_kernel_does_not_do_is_refused():
    for preprocess, shape, reason in (
        (dataclasses.replace(SMALL, reduce=False), (50, 50, 3), "blocks are averaged first"),
        (Preprocess.whole((1, 1)), (300, 300, 3), "blocks of 300 x 300 pixels are too large"),
        (SMALL, (24, 40_000, 3), "bytes of shared memory and gets 49152"),
    ):
        with pytest.raises(PadimEdgeError, match=reason):
            pack_preparation(preprocess, "rgb", shape, 3 * shape[1])
    with pytest.raises(ImageError, match="less than 32x64"):
        pack_preparation(Preprocess((32, 64), 40, True, reduce=True), "grey8", (50, 50), 50)


def test_packing_needs_no_memory_of_a_frames_size():
    shape = (100_000, 100_000, 3)
    packed = pack_preparation(Preprocess.whole((1024, 1024)), "rgb", shape, 300_000)
    assert packed.nbytes == 3 * 10**10
    assert packed.tables.nbytes < 100_000
    assert len(packed.launch(1, 2, 3).argument) < 500
