"""The proof's lines on the device: that it works, what it is, how fast it copies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from padim_edge.measure.doctor_device import device, is_jetson
from padim_edge.measure.doctor_nvidia import driver, pycuda, tensorrt
from padim_edge.measure.finding import Finding, ask
from padim_edge.measure.proof_line import Line, Sizes, line, rounded
from padim_edge.runtime.engines import GPU_ALONE, load
from padim_edge.system import ROOT


def open_gpu() -> Any:
    """The device without an engine (`padim_edge.runtime.nvidia.alone.Gpu`), to be closed."""
    return load(GPU_ALONE)()


def gpu(_sizes: Sizes, _folder: Path) -> Iterator[Line]:
    """The device opens, memory is copied, the kernels compile."""
    with open_gpu() as opened:
        free, rate = opened.free_memory(), opened.copy_bandwidth()
        shared = ", shared with the host" if opened.integrated else ""
        yield line(
            "GPU",
            rate > 0,
            f"{opened.name}: {free / 2**30:.1f} GiB free{shared}, copies {rate / 1e9:.1f} GB/s "
            "(read + written)",
            device=opened.name,
            integrated=opened.integrated,
            free_bytes=free,
            copy_bytes_per_second=rounded(rate),
        )
        start = time.perf_counter()
        sizes = opened.compile()
        seconds = time.perf_counter() - start
        made = ", ".join(f"{name} {size / 1e3:.0f} kB" for name, size in sizes.items())
        yield line("compiler", True, f"{made} in {seconds:.1f} s", seconds=rounded(seconds))


def machine(_sizes: Sizes, _folder: Path) -> Iterator[Line]:
    """Board, memory, power mode, clocks, driver, TensorRT, as doctor finds them."""
    found = [*device(ROOT), driver(ROOT), tensorrt(is_jetson(ROOT)), pycuda()]
    runtime = ask("onnxruntime")
    found.append(Finding("python", "ONNX Runtime", runtime["status"], runtime["detail"]))
    yield from map(_line, found)


def _line(one: Finding) -> Line:
    """What is missing here fails where it is needed, and not twice."""
    status = {"ok": "pass", "broken": "fail"}.get(one.status, "absent")
    return Line(one.name, status, one.detail)
