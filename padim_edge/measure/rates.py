"""What this machine achieves: bytes per second of reading, operations per second of convolving."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from padim_edge.measure.devices import GIB, Device
from padim_edge.runtime.graphs import open_graph
from padim_edge.system import available_cores, available_memory, last_cache, whole_memory

if TYPE_CHECKING:
    from padim_edge.runtime.graphs import Graph

MIB = 2**20

_SHAPE = (1, 256, 28, 28)


def measure_machine(threads: int = 0) -> Device:
    """This machine's processor: best of several, in 1 to 2 seconds.

    Bandwidth is that of reading, by as many threads as cores, 512 MiB or twice the last cache, but
    no more than an eighth of the available memory; the rate is that of a 3 x 3 convolution of 256
    channels in ONNX Runtime. Both are achieved rates, no upper bounds.

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
    x = np.ones(_SHAPE, np.float32)
    with convolution(threads) as graph:
        operations = 2 * x.size * _SHAPE[1] * 9
        rate = operations / _best(lambda: graph.run({"x": x}))
    return Device("this machine", whole_memory(), bandwidth, rate, rate, "measured", note=note)


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


def convolution(threads: int) -> Graph:
    """The convolution that stands for all arithmetic, from ``x`` of `_SHAPE`."""
    channels = _SHAPE[1]
    kernel = numpy_helper.from_array(np.ones((channels, channels, 3, 3), np.float32), "kernel")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1])],
        "rate",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, _SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, _SHAPE)],
        [kernel],
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
