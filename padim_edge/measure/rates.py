"""What this machine achieves: bytes read and operations of convolving, per second."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from padim_edge.measure.devices import GIB, Device
from padim_edge.runtime.graphs import open_graph
from padim_edge.system import available_cores, available_memory, last_cache, whole_memory

if TYPE_CHECKING:
    from padim_edge.runtime.graphs import Graph

MIB = 2**20

_SHAPE = (1, 256, 28, 28)


def measure_machine(threads: int = 0) -> Device:
    """This machine's processor: best of several, in 2 to 3 seconds.

    Bandwidth is that of reading, by as many threads as cores, 512 MiB or twice the last cache, but
    no more than an eighth of the available memory; the rates are those of a 3 x 3 convolution of
    256 channels in ONNX Runtime, in float32 and in int8. All are achieved rates, no upper bounds.

    Args:
        threads: to measure with; 0 for all cores.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    threads = threads or available_cores()
    size, note = _reading()
    array = np.empty(size // 8, np.int64)
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        # Written once: memory that never was is read from one page.
        list(pool.map(lambda part: part.fill(1), parts))
        bandwidth = array.nbytes / _best(lambda: list(pool.map(np.bitwise_or.reduce, parts)))
    array, parts = array[:0].copy(), []
    whole, int8 = (_rate(kind, threads) for kind in (np.float32, np.uint8))
    return Device(
        "this machine", whole_memory(), bandwidth, whole, whole, int8, "measured", note=note
    )


def _rate(kind: type[np.float32 | np.uint8], threads: int) -> float:
    """Operations per second of the convolution."""
    x = np.ones(_SHAPE, kind)
    with convolution(threads, kind) as graph:
        return 2 * x.size * _SHAPE[1] * 9 / _best(lambda: graph.run({"x": x}))


def _reading() -> tuple[int, str | None]:
    """Bytes to read for a bandwidth, and a note if they are too few for memory to be measured."""
    cache = last_cache()
    size = min(max(GIB // 2, 2 * cache), available_memory() // 8)
    least = max(64 * MIB, 2 * cache)
    if size >= least:
        return size, None
    largest = f"the last cache ({cache // MIB} MiB)" if cache else "a cache may be"
    return size, (
        f"the array that was read ({size // MIB} MiB) is not much larger than {largest}: the "
        "bandwidth may be partly the cache's"
    )


def convolution(threads: int, kind: type[np.float32 | np.uint8] = np.float32) -> Graph:
    """The convolution that stands for all arithmetic, from ``x`` of `_SHAPE` to ``y``.

    Of uint8 it is that of an int8 backbone ``--for cpu``: Q/DQ nodes around it, int8 weights with a
    scale per channel.
    """
    channels = _SHAPE[1]
    shape = (channels, channels, 3, 3)
    conv = functools.partial(helper.make_node, "Conv", pads=[1, 1, 1, 1])
    constants: dict[str, NDArray[Any]]
    if kind is np.float32:
        nodes = [conv(["x", "kernel"], ["y"])]
        constants = {"kernel": np.ones(shape, kind)}
    else:
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["wide"]),
            helper.make_node("DequantizeLinear", ["kernel", "scales", "zeros"], ["taps"], axis=0),
            conv(["wide", "taps"], ["sum"]),
            helper.make_node("QuantizeLinear", ["sum", "scale", "zero"], ["y"]),
        ]
        constants = {
            "kernel": np.ones(shape, np.int8),
            "scales": np.full(channels, 1e-3, np.float32),
            "zeros": np.zeros(channels, np.int8),
            "scale": np.array(0.1, np.float32),
            "zero": np.array(0, np.uint8),
        }
    of = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        nodes,
        "rate",
        [helper.make_tensor_value_info("x", of, _SHAPE)],
        [helper.make_tensor_value_info("y", of, _SHAPE)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return open_graph(proto.SerializeToString(), "ort", threads)


def _best(call: Callable[[], object], budget: float = 0.4) -> float:
    """Seconds of the fastest call, of as many as fit into a budget and 3 at least."""
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < budget:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
