"""The real pycuda, or cuda-bindings, over a driver of ours: a GPU as far as host code can see.

pycuda is built once from its source distribution into the test cache (some two minutes), against
the headers of NVIDIA's wheel. Under it lies `native/fake_cuda.cpp` in place of the driver, which
runs the kernels by `cuda_shim` on the CPU. So what is checked by calling it is the package's own
interface, and what is checked by the results is the order of all that was asked of the device.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wheels import NATIVE, cache, unpacked

PYCUDA = "pycuda==2026.1"
BINDINGS = ("cuda-bindings==12.9.10", "cuda-pathfinder==1.9.1")
HEADERS = "nvidia-cuda-runtime==13.0.96"
SHIM = Path(__file__).parent / "cuda_shim" / "run.cpp"
FLOAT32, FLOAT16 = 1e-5, 1e-3  # of the largest value, by the type of the backbone's maps
OWNED = ("device", "host", "streams", "modules", "events", "graphs", "queued", "contexts")


# --- building -------------------------------------------------------------------------------------


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if not found:
        pytest.skip("no C++ compiler (g++ or clang++) on PATH")
    return found


def build(source: Path, library: Path, *options: str) -> None:
    command = [compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    command += [*options, f"-Wl,-soname,{library.name}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)


def pycuda() -> Path:
    """The folder from which pycuda can be imported; skips if it cannot be built."""
    compiler()
    folder, reason = _pycuda()
    if reason:
        pytest.skip(reason)
    return folder


def package(name: str) -> tuple[Path, ...]:
    """The folders from which a package that calls the driver can be imported."""
    if name == "pycuda":
        return (pycuda(),)
    compiler()
    return tuple(unpacked(wheel) for wheel in BINDINGS)


@functools.cache
def _pycuda() -> tuple[Path, str]:
    folder = cache() / f"{PYCUDA.replace('==', '-')}-{sys.implementation.cache_tag}"
    if folder.is_dir():
        return folder, ""
    headers = next(unpacked(HEADERS).rglob("cuda.h")).parent
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        place = Path(name)
        reason = _pip("download", "--no-binary=pycuda", "--dest", name, PYCUDA)
        if reason:
            return folder, reason
        with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
            archive.extractall(place)
        build(NATIVE / "fake_cuda.cpp", place / "libcuda.so.1")
        (place / "libcuda.so").symlink_to("libcuda.so.1")
        source = next(path for path in place.glob("pycuda-*") if path.is_dir())
        (source / "siteconf.py").write_text(
            f"CUDA_INC_DIR = {[str(headers), str(NATIVE)]}\n"
            f"CUDADRV_LIB_DIR = {[name]}\n"
            "CUDA_ENABLE_CURAND = False\n"
            'CXXFLAGS = ["-O0"]\n'
        )
        reason = _pip("wheel", "--wheel-dir", name, str(source))
        if reason:
            return folder, reason
        with zipfile.ZipFile(next(place.glob("*.whl"))) as archive:
            archive.extractall(place / "content")
        try:
            (place / "content").rename(folder)
        except OSError:  # another process was faster, and its content is the same
            assert folder.is_dir()
    return folder, ""


def _pip(command: str, *arguments: str) -> str:
    """Run pip; the reason if it fails."""
    line = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--retries=1"]
    done = subprocess.run([*line, *arguments], capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    said = [text for text in done.stderr.splitlines() if "error" in text.lower()] or ["no reason"]
    return f"pip cannot {command} {PYCUDA}: {said[0].strip()}"


def assemble(folder: Path) -> Path:
    """Build the driver and the kernels into a folder."""
    from padim_edge.runtime import nvidia

    build(NATIVE / "fake_cuda.cpp", folder / "libcuda.so.1", "-Wall", "-Wextra", "-Werror")
    build(SHIM, folder / "kernels.so", f"-I{Path(nvidia.__file__).parent}",
          "-Wno-unknown-pragmas", "-fvisibility=default")  # fmt: skip
    return folder


# --- in a process of its own ----------------------------------------------------------------------


class Gpu:
    """The driver's other side."""

    def __init__(self, folder: Path) -> None:
        # Known by its soname from here on: pycuda, and whoever loads libcuda.so.1, gets this one.
        self.driver = ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self.kernels = ctypes.CDLL(str(folder / "kernels.so"))
        self.driver.fake_set_runner(self.kernels.run)
        self.driver.fake_count.restype = ctypes.c_longlong
        self.driver.fake_set.argtypes = [ctypes.c_char_p, ctypes.c_longlong]
        self.drain = self.driver.fake_drain
        self.work: list[Any] = []  # of other libraries; a recording may call it again
        self.forget = self.driver.fake_forget

    def set(self, name: str, value: int) -> None:
        """Change the device: devices, integrated, shared, memory, cuda."""
        self.driver.fake_set(name.encode(), value)

    def enqueue(self, stream: int, work: Callable[[], None]) -> int:
        """Put work of another library into a stream; CUDA's code, 0 if all is well."""

        def run() -> int:
            try:
                work()
            except (KeyboardInterrupt, SystemExit):  # of a signal, which came while this ran
                work()
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
            except BaseException:
                traceback.print_exc()
                return 719
            return 0

        self.work.append(ctypes.CFUNCTYPE(ctypes.c_int)(run))
        return int(self.driver.fake_enqueue(ctypes.c_void_p(stream), self.work[-1]))

    def fail(self, call: str, code: int) -> None:
        """Let the next call of this name fail."""
        self.driver.fake_fail(call.encode(), code)

    def count(self, name: str) -> int:
        """Things alive (`OWNED`), or how often a call was made."""
        return int(self.driver.fake_count(name.encode()))

    def owned(self) -> dict[str, int]:
        """What is alive, without what is not."""
        counts = {name: self.count(name) for name in OWNED}
        return {name: count for name, count in counts.items() if count}


@functools.cache
def enter(folder: str) -> Gpu:
    """Put this process on the GPU of a folder made by `assemble`."""
    os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
    gpu = Gpu(Path(folder))
    from padim_edge.runtime.nvidia import preparer, scorer

    # No compiler here: the fake driver takes anything that looks like machine code.
    preparer.kernels = scorer.kernels = lambda *_: b"\x7fELF"
    return gpu


def model(folder: str) -> Any:
    """A tiny model whose answer is known without an engine."""
    from padim_edge.model.file import read
    from padim_edge.runtime import trial

    path = Path(folder) / "padim.onnx"
    return read(path, "padim") if path.exists() else trial.write_model(path)


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def images(model: Any, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *model.backbone_info.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def compare(engine: Any, model: Any, counts: tuple[int, ...], tolerance: float) -> None:
    """Scores and maps beside those of engine `ort`."""
    from padim_edge.runtime.cpu.ort import OrtEngine

    reference = OrtEngine(model)
    for count in counts:
        batch = images(model, count, seed=count)
        scores, maps = engine.infer(batch)
        wanted, wanted_maps = reference.infer(batch)
        assert scores.shape == wanted.shape
        assert maps.shape == wanted_maps.shape
        assert scores.dtype == maps.dtype == np.float32
        assert np.abs(maps - wanted_maps).max() <= tolerance * wanted_maps.max()
        assert np.abs(scores - wanted).max() <= tolerance * wanted.max()
        np.testing.assert_allclose(scores, maps.max(axis=(1, 2)), rtol=1e-6)
    reference.close()


def cpu_engine(gpu: Gpu, half: bool = False) -> Any:
    """Engine `ort-cuda` with ONNX Runtime's CPU provider in place of the CUDA one.

    Device memory is host memory here, so the same I/O binding works on the same addresses.

    Args:
        gpu: where.
        half: let the backbone give float16 maps.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    from padim_edge.runtime.nvidia.ort_cuda import OrtCudaEngine

    class CpuEngine(OrtCudaEngine):
        _memory = "cpu"

        def _start(self, graph: bytes) -> Any:
            proto = onnx.load_model_from_string(graph)
            for output in list(proto.graph.output) if half else []:
                name = output.name
                for node in proto.graph.node:
                    node.input[:] = [f"{x}.full" if x == name else x for x in node.input]
                    node.output[:] = [f"{x}.full" if x == name else x for x in node.output]
                cast = helper.make_node("Cast", [f"{name}.full"], [name], to=TensorProto.FLOAT16)
                proto.graph.node.append(cast)
                output.type.tensor_type.elem_type = TensorProto.FLOAT16
            return onnxruntime.InferenceSession(
                proto.SerializeToString(), providers=["CPUExecutionProvider"]
            )

        def _run(self, count: int) -> None:
            gpu.drain()  # it is not in the stream, but has to come after what is
            super()._run(count)

    return CpuEngine
