"""Engine `ort-cuda` from image to score, against engine `ort`, on a machine without a GPU.

Real are pycuda, our host code and the kernels (compiled for the CPU). Not real are the driver
(`native/fake_cuda.cpp`) and what computes the backbone, which is ONNX Runtime on the CPU.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
from fake_gpu import FLOAT16, FLOAT32, compare, cpu_engine, enter


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
@pytest.mark.parametrize("constants", ["float32", "float16", "int8", "dense"])
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
