"""The doctor's findings on NVIDIA's software: driver, CUDA toolkit, TensorRT, pycuda."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from padim_edge.measure.doctor_device import is_jetson
from padim_edge.measure.finding import TOOL_SECONDS, Finding, ask
from padim_edge.processes import run_child
from padim_edge.system import read_text


def driver(root: Path) -> Finding:
    """The driver, by its own answer, and whether there is a GPU that misses one."""
    name = "driver and GPU"
    answer = ask("driver")
    release = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", read_text(root / "proc/driver/nvidia/version"))
    if answer["status"] == "ok":
        detail = f"{release[1]}, {answer['detail']}" if release else answer["detail"]
        return Finding("nvidia", name, "ok", detail)
    if not is_jetson(root) and not _has_gpu(root):
        return Finding("nvidia", name, "absent", "no NVIDIA GPU on the PCI bus")
    if (root / ".dockerenv").exists():
        fix = "docker run --runtime nvidia"
    elif is_jetson(root):
        fix = "sudo apt install --reinstall nvidia-l4t-cuda"
    else:
        fix = "sudo ubuntu-drivers install"
    return Finding("nvidia", name, answer["status"], answer["detail"], fix)


def _has_gpu(root: Path) -> bool:
    return any(
        read_text(folder / "vendor").strip() == "0x10de"
        and read_text(folder / "class").startswith("0x03")
        for folder in (root / "sys/bus/pci/devices").glob("*")
    )


def toolkit(root: Path, jetson: bool) -> Finding:
    """Nvcc, by compiling a kernel: it also needs a host compiler that suits it."""
    name = "CUDA toolkit"
    beside = root / "usr/local/cuda/bin/nvcc"
    nvcc = shutil.which("nvcc") or (str(beside) if beside.exists() else None)
    if nvcc is None:
        answer = ask("kernel_compiler")
        if answer["status"] == "ok":
            detail = f"no nvcc, and none is needed: {answer['detail']} compiles the kernels"
            return Finding("nvidia", name, "absent", detail)
        fix = f"sudo apt install {'nvidia-jetpack' if jetson else 'nvidia-cuda-toolkit'}"
        return Finding("nvidia", name, "missing", "no nvcc", fix)
    version = run_child([nvcc, "--version"], TOOL_SECONDS)
    known = re.search(r"release \S+ V(\S+)", version.stdout)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text("__global__ void trial(float *x) { x[threadIdx.x] *= 2; }\n")
        done = run_child([nvcc, "-cubin", "-o", f"{source}bin", str(source)], TOOL_SECONDS)
    if done.code != 0:
        return Finding(
            "nvidia", name, "broken", f"{nvcc} {done.trouble}", "sudo apt install build-essential"
        )
    off_path = not shutil.which("nvcc")
    return Finding(
        "nvidia",
        name,
        "ok",
        f"{known[1] if known else nvcc}, compiles" + (", but is not on PATH" if off_path else ""),
        f"export PATH={beside.parent}:$PATH" if off_path else "",
    )


def tensorrt(jetson: bool) -> Finding:
    """TensorRT, by making a builder: that needs a usable GPU too."""
    answer = ask("tensorrt")
    fix = answer["fix"]
    if answer["status"] == "missing" and jetson:
        fix = "sudo apt install python3-libnvinfer"
    return Finding("nvidia", "TensorRT", answer["status"], answer["detail"], fix)


def pycuda() -> Finding:
    """pycuda, or cuda-bindings in its place, by the devices that it reaches."""
    answer = ask("pycuda")
    return Finding(
        "nvidia", "pycuda or cuda-bindings", answer["status"], answer["detail"], answer["fix"]
    )
