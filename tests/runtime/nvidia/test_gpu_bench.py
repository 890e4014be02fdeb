"""`padim-edge bench` on the GPU engines, over the fake driver."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fake_gpu
import jsonschema
import pytest
from fake_gpu import cpu_engine, enter
from fake_tensorrt import FakeTensorRT, install
from helpers import in_process
from wheels import interpreter

from padim_edge.runtime.engines import ENGINES

SCHEMA = Path(__file__).parents[3] / "docs" / "bench.schema.json"


def run_benchmark(folder: str, path: str, engines: str) -> dict[str, Any]:
    """The command on engines that stand on a fake device; returns its JSON."""
    device = enter(folder)
    from padim_edge.measure import bench

    # Its child process would have no fake driver.
    bench.measure_start = lambda *_: (1.0, 10**8)
    bench.BLOCK = 2
    file = Path(folder) / f"{engines.replace('/', '-')}-{os.getpid()}.json"
    in_process(
        *("bench", path, "--engine", engines, "--batch", "1,2", "--calls", 10, "--frame", "90x80"),
        *("--json", file, "--plot", file.with_suffix(".svg")),
    ).worked()
    assert device.owned() == {}
    return json.loads(file.read_text())


def check_bench(folder: str, path: str) -> dict[str, Any]:
    device = enter(folder)
    from padim_edge.runtime.nvidia import ort_cuda

    ort_cuda.OrtCudaEngine = cpu_engine(device)
    assert ENGINES["ort-cuda"] == "padim_edge.runtime.nvidia.ort_cuda:OrtCudaEngine"
    return run_benchmark(folder, path, "ort-cuda,ort")


def test_bench(folder: str, detectors: dict[str, str]) -> None:
    with interpreter(fake_gpu.pycuda()) as pool:
        report = pool.submit(check_bench, folder, detectors["float16"]).result(timeout=300)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
    gpu, cpu = report["engines"]
    assert (gpu["name"], cpu["name"]) == ("ort-cuda", "ort")
    assert gpu["device"]["device"] == "Fake GPU (sm_87)"
    assert gpu["device"]["memory_bytes"] > 0
    assert cpu["device"] is None
    for result, other in zip(gpu["results"], cpu["results"], strict=True):
        (mine,), (theirs,) = result["frames"], other["frames"]
        assert theirs["on_device"] is None
        assert mine["on_device"]["prepare"] > 0
        size = 90 * 80 * 3 * result["batch"]
        assert mine["on_device"]["bandwidth"] == pytest.approx(
            1e3 * size / mine["on_device"]["prepare"]
        )
        assert list(result["stages"]) == [
            "upload", "backbone", "distances", "smoothing", "download",
        ]  # fmt: skip
        assert (result["bare"], result["ratio"], result["to_first"]) == (None, None, None)
        for one in (*result["frames"], *other["frames"]):
            assert one["camera"] == {"width": 90, "height": 80, "pixel_format": "bgr"}
        assert result["frames"][0]["ratio"] is None
        assert other["ratio"] == other["graph"]["p50"] / other["bare"]["p50"]
        assert other["to_first"] == other["graph"]["p50"] / result["graph"]["p50"]
        assert other["kernel"] is None
        kernel = result["kernel"]
        seconds = result["stages"]["distances"]["p50"] / 1e3
        assert kernel["bytes"] == gpu["device"]["constants_bytes"] > 0
        assert kernel["bandwidth"] == pytest.approx(kernel["bytes"] / seconds)
        share = kernel["bandwidth"] / gpu["device"]["copy_bandwidth"]
        assert kernel["of_copy"] == pytest.approx(share)


def check_bench_of_tensorrt(folder: str, path: str) -> dict[str, Any]:
    install(folder, "bench", FakeTensorRT(enter(folder)).answers())
    return run_benchmark(folder, path, "trt/graph")


def test_bench_of_tensorrt_without_our_kernels(
    trt: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    task = trt.submit(check_bench_of_tensorrt, folder, detectors["float16"])
    report = task.result(timeout=300)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
    (engine,) = report["engines"]
    assert engine["name"] == "trt/graph"
    assert "for the whole graph" in engine["description"]
    assert list(engine["results"][0]["stages"]) == ["upload", "graph", "download"]
    assert engine["results"][0]["kernel"] is None
