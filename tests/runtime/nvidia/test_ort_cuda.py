"""Engine `ort-cuda` from image to score, against engine `ort`, on a machine without a GPU.

Real are pycuda, our host code and the kernels (compiled for the CPU). Not real are the driver
(`native/fake_cuda.cpp`) and what computes the backbone, which is ONNX Runtime on the CPU.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import pytest
from fake_gpu import FLOAT16, FLOAT32, compare, cpu_engine, enter, model

from padim_edge.errors import PadimEdgeError
from padim_edge.runtime.probe import remedy


def check_parity(folder: str, path: str, half: bool) -> None:
    from padim_edge.model.file import read

    device = enter(folder)
    model = read(path, "padim")
    engine = cpu_engine(device, half)(model)
    assert ("float16" if half else "float32") in engine.describe()
    compare(engine, model, (1, 3, 9, 34), FLOAT16 if half else FLOAT32)
    engine.close()
    assert device.owned() == {}


@pytest.mark.parametrize("half", [False, True], ids=["float32 maps", "float16 maps"])
@pytest.mark.parametrize(
    "constants", ["float32", "float16", "int8", "dense", "whitened", "whitened-fine", "roi"]
)
def test_parity(
    gpu: ProcessPoolExecutor, folder: str, detectors: dict[str, str], constants: str, half: bool
) -> None:
    if constants not in detectors:
        pytest.skip("the dense form needs scikit-learn")
    gpu.submit(check_parity, folder, detectors[constants], half).result(timeout=300)


def check_fewer_frames_a_pass(folder: str, path: str) -> None:
    from padim_edge.model.file import read

    device = enter(folder)
    device.set("shared", 0)  # what every device has is all there is
    try:
        model = read(path, "padim")
        engine = cpu_engine(device)(model)
        compare(engine, model, (8,), FLOAT32)
        engine.close()
    finally:
        device.set("shared", 100 * 1024)


def test_a_device_with_little_shared_memory(
    gpu: ProcessPoolExecutor, folder: str, detectors: dict[str, str]
) -> None:
    gpu.submit(check_fewer_frames_a_pass, folder, detectors["float32"]).result(timeout=300)


# --- a provider that is not there, or does not start ---------------------------------------------


@contextlib.contextmanager
def listed(preload: Any = lambda: None) -> Iterator[None]:
    """ONNX Runtime lists the CUDA provider, and starts the CPU's in its place."""
    import onnxruntime

    real = onnxruntime.InferenceSession
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with (
        mock.patch("onnxruntime.get_available_providers", return_value=providers),
        mock.patch(
            "onnxruntime.InferenceSession",
            lambda graph, *_, **__: real(graph, providers=providers[1:]),
        ),
        mock.patch("onnxruntime.preload_dlls", preload, create=True),
    ):
        yield


def error_of(folder: str) -> str:
    from padim_edge.runtime.nvidia.ort_cuda import OrtCudaEngine

    with pytest.raises(PadimEdgeError) as caught:
        OrtCudaEngine(model(folder))
    return str(caught.value)


def check_fix(folder: str, machine: str, cuda: int, fix: str) -> None:
    device = enter(folder)
    device.set("cuda", cuda)
    try:
        with mock.patch("platform.machine", return_value=machine):
            errors = {"without CUDAExecutionProvider": error_of(folder)}
            with listed():
                errors["lists CUDAExecutionProvider and starts CPU"] = error_of(folder)
            for words, error in errors.items():
                assert words in error
                assert error.endswith(fix)
                assert remedy(error) == (fix[5:] if fix.startswith("run  ") else "")
    finally:
        device.set("cuda", 13000)


UNINSTALL = "run  pip uninstall -y onnxruntime onnxruntime-gpu; "


@pytest.mark.parametrize(
    ("machine", "cuda", "fix"),
    [
        ("x86_64", 12060, f"{UNINSTALL}pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'"),
        ("x86_64", 13020, f"{UNINSTALL}pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        ("aarch64", 12060, "onnxruntime-gpu is on PyPI for no Jetson: choose --engine trt"),
        ("aarch64", 13020, "onnxruntime-gpu is on PyPI for no Jetson: choose --engine trt"),
    ],
)
def test_the_fix_is_for_this_machine(
    gpu: ProcessPoolExecutor, folder: str, machine: str, cuda: int, fix: str
) -> None:
    gpu.submit(check_fix, folder, machine, cuda, fix).result(timeout=300)


def check_without_onnxruntime(folder: str, machine: str) -> str:
    enter(folder)
    name = "padim_edge.runtime.nvidia.ort_cuda"
    with (
        mock.patch.dict(sys.modules, {"onnxruntime": None}),
        mock.patch("platform.machine", return_value=machine),
    ):
        sys.modules.pop(name, None)
        with pytest.raises(PadimEdgeError) as caught:
            __import__(name)
        return str(caught.value)


@pytest.mark.parametrize(
    ("machine", "fix"),
    [("x86_64", r"run  pip install 'padim-edge\[gpu\]'"), ("aarch64", "choose --engine trt")],
)
def test_without_onnxruntime(gpu: ProcessPoolExecutor, folder: str, machine: str, fix: str) -> None:
    error = gpu.submit(check_without_onnxruntime, folder, machine).result(timeout=300)
    assert re.search(f"{fix}$", error)


def check_stdout(folder: str) -> str:
    enter(folder)

    def preload() -> None:
        print("Failed to load libcublasLt.so.13: no such file")
        print("Please follow https://onnxruntime.ai")

    with contextlib.redirect_stdout(io.StringIO()) as stdout, listed(preload):
        error = error_of(folder)
    assert not stdout.getvalue()
    return error


def test_what_onnxruntime_prints_is_kept_from_stdout(gpu: ProcessPoolExecutor, folder: str) -> None:
    error = gpu.submit(check_stdout, folder).result(timeout=300)
    assert "of another version (Failed to load libcublasLt.so.13: no such file); run" in error
