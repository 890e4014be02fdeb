"""The kernels, compiled for the CPU by a shim, read and write nothing outside their arrays."""

from __future__ import annotations

import faulthandler
import multiprocessing
import signal

import numpy as np
import pytest
from cpu_kernels import SHAPES, make, make_maps
from guarded import Guarded

from padim_edge.model.smoothing import smoothing_matrix
from padim_edge.runtime.nvidia.launch import FORMATS
from padim_edge.runtime.nvidia.smoothing import SmoothingAddresses, pack_smoothing
from padim_edge.runtime.nvidia.whitening import WhiteningAddresses


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
    addresses = WhiteningAddresses(*constants, maps, squared, scores)
    cpu.run(packed.mahalanobis(count, addresses, half_maps=dtype == np.float16))

    h, w = model.pyramid.height, model.pyramid.width
    matrices = smoothing_matrix(4 * h, h, 2), smoothing_matrix(4 * w, w, 2)
    smoothing = pack_smoothing(model.pyramid, packed, *matrices)
    keys = ("row_taps", "row_first", "column_taps", "column_first")
    taps = (at(key, getattr(smoothing, key)) for key in keys)
    out = at("map", np.zeros(count * 16 * h * w, floats))
    cpu.run(smoothing.smooth(count, SmoothingAddresses(*taps, squared, out, scores)))


def run_quietly(*arguments):
    faulthandler.disable()  # a fault is expected here; its traceback is not
    run_guarded(*arguments)


def exit_code(*arguments):
    process = multiprocessing.get_context("fork").Process(target=run_quietly, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_outside_the_arrays_is_touched(cpu, name, format_, at_end):
    assert exit_code(cpu, name, format_, np.float16, 3, at_end, None) == 0


ARRAYS = ("lines", "means", "pixels", "maps", "squared", "scores")
ARRAYS += ("row_taps", "row_first", "column_taps", "column_first", "map")


@pytest.mark.parametrize("missing", ARRAYS)
def test_a_touch_outside_would_be_seen(cpu, missing):
    code = exit_code(cpu, "three levels", "float16", np.float32, 3, True, missing)
    assert code == -signal.SIGSEGV
