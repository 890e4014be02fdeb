"""Bare graphs on a GPU, for a fit there, on a machine without one.

Real are pycuda, our host code and TensorRT's Python bindings; not real are the driver and what
computes the graph, which is ONNX Runtime on the CPU.
"""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fake_gpu import enter, images
from fake_tensorrt import FakeTensorRT, install

from padim_edge.errors import PadimEdgeError
from padim_edge.model.file import read
from padim_edge.model.graph import subgraph
from padim_edge.runtime.graphs import open_graph


def check_maps(graph: Any, data: bytes, model: Any) -> None:
    """The graph gives what the CPU gives, whatever the batch, and arrays of the caller's own."""
    names = model.feature_names()
    with open_graph(data, "ort") as cpu:
        for count in (1, 3, 34):
            batch = images(model, count)
            expected = cpu.run({"image": batch}, names)
            found = graph.run({"image": batch}, names)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.max())
        kept = [values.copy() for values in found]
        graph.run({"image": images(model, 3) // 2}, names)
        for before, after in zip(kept, found, strict=True):
            np.testing.assert_array_equal(before, after)
        assert len(graph.run({"image": batch})) == len(names)


def backbone(path: str) -> tuple[Any, bytes]:
    model = read(path, "embedding")
    proto = subgraph(model.proto, ["image"], model.feature_names())
    return model, proto.SerializeToString()


def check_trt(folder: str, path: str) -> None:
    device = enter(folder)
    world = install(folder, "bare", FakeTensorRT(device).answers())
    model, data = backbone(path)
    graph = open_graph(data, "trt")
    assert f"tensorrt {world.__version__}" in graph.describe()
    check_maps(graph, data, model)
    graph.close()
    graph.close()
    assert device.owned() == {}
    with pytest.raises(PadimEdgeError, match="closed"):
        graph.run({"image": images(model, 1)})


def test_trt(trt: ProcessPoolExecutor, folder: str, embedding_file: Any) -> None:
    trt.submit(check_trt, folder, str(embedding_file)).result(timeout=300)


def open_and_run(path: str) -> None:
    model, data = backbone(path)
    with open_graph(data, "trt") as graph:
        graph.run({"image": images(model, 1)})


def check_trt_that_fails(folder: str, path: str) -> None:
    device = enter(folder)
    for name, answer in {
        "ICudaEngine.create_execution_context": None,
        "IExecutionContext.set_tensor_address": False,
        "IExecutionContext.execute_async_v3": False,
    }.items():
        install(folder, f"{name} bare", FakeTensorRT(device).answers() | {name: answer})
        with pytest.raises(PadimEdgeError, match="TensorRT"):
            open_and_run(path)
        gc.collect()  # the error's traceback holds what it came through
        assert device.owned() == {}, name


def test_trt_that_fails_leaves_nothing(
    trt: ProcessPoolExecutor, folder: str, embedding_file: Any
) -> None:
    trt.submit(check_trt_that_fails, folder, str(embedding_file)).result(timeout=300)


def check_ort_cuda(folder: str, path: str) -> None:
    import onnxruntime

    device = enter(folder)
    model, data = backbone(path)

    def start(graph: bytes, _: Any) -> Any:
        return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    with mock.patch("padim_edge.runtime.nvidia.ort_cuda.start_session", start):
        graph = open_graph(data, "ort-cuda")
    assert "CUDA on" in graph.describe()
    check_maps(graph, data, model)
    graph.close()
    graph.close()
    assert device.owned() == {}
    with pytest.raises(PadimEdgeError, match="closed"):
        graph.run({"image": images(model, 1)})
    with pytest.raises(PadimEdgeError, match="without CUDAExecutionProvider"):
        open_graph(data, "ort-cuda")
    assert device.owned() == {}


def test_ort_cuda(gpu: ProcessPoolExecutor, folder: str, embedding_file: Any) -> None:
    gpu.submit(check_ort_cuda, folder, str(embedding_file)).result(timeout=300)
