"""`padim-edge doctor --gpu` over the driver made for tests, in every process that it starts.

`stage` makes a folder whose `sitecustomize.py` brings the fake driver into any Python that has the
folder on PYTHONPATH: nothing of the product knows of it. The kernels are the real ones, run on the
CPU; pycuda and TensorRT's Python bindings are real; plans run in ONNX Runtime, as does `ort-cuda`.
A fault can be planted by the environment's PADIM_EDGE_FAULT, of `FAULTS`; PADIM_EDGE_PRESETS names
the presets of which detectors are made.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

SUPPORT = Path(__file__).parent
FAULT = "PADIM_EDGE_FAULT"
PRESETS = "PADIM_EDGE_PRESETS"
WATCHED = "padim_edge.runtime.nvidia"
MEMORY = 2**28

SITE = """
import sys
sys.path += {paths!r}
import rehearsal
rehearsal.prepare({folder!r})
"""

ABSENT = ("torch", "torchvision", "onnxscript", "sklearn", "scipy", "pytest")
"""What a device does not have."""

# As much as shows that every line can be filled: it all runs on two cores of a CPU.
SIZES = """
import dataclasses
from padim_edge.measure import proof, proof_line
proof.Sizes = proof_line.Sizes
small = proof_line.Sizes(networks=("tiny",), image=32, kernel_batches=(1, 9), compared=(1, 3),
                         camera=(80, 64), repeats=2, batches=(1, 3), calls=3, cycles=4,
                         frames=10, drift=1e9)
proof.ENGINES = {engines!r}
proof.CHECKS = tuple(x for x in proof.CHECKS if not {only!r} or x.place.split(":")[1] in {only!r})
real, alone = proof.prove, proof._in_a_child
proof.prove = lambda **options: real(small, checks=proof.CHECKS, **options)

# A network that is not the first has each type once; see proof_line.
later = dataclasses.replace(small, networks=("", "tiny"))

def in_a_child(check, sizes, folder, case):
    few = check.area == "parity" or (check.area == "speed" and case[0] != "trt")
    return alone(check, later if few and not {every!r} else sizes, folder, case)

proof._in_a_child = in_a_child
"""


def stage(folder: Path, driver: str) -> dict[str, str]:
    """Environment variables under which every Python is on the fake GPU.

    Args:
        folder: for what is made.
        driver: a folder made by `fake_gpu.assemble`.
    """
    import fake_gpu
    from tensorrt_stubs import assemble

    import padim_edge

    bindings = assemble("11.4.0.106", folder / "tensorrt")
    checkout = Path(padim_edge.__file__).parents[1]
    paths = [str(path) for path in (SUPPORT, checkout, fake_gpu.pycuda(), bindings)]
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE.format(paths=paths, folder=driver))
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


# --- in every process -----------------------------------------------------------------------------


def prepare(folder: str) -> None:
    """Load the driver; the rest comes when the room of the GPU is entered."""
    sys.modules |= dict.fromkeys(ABSENT)  # type: ignore[arg-type]  # None: it cannot be imported
    from padim_edge.measure import proof_line

    proof_line.PRESETS = tuple(os.environ[PRESETS].split())  # type: ignore[assignment]
    ctypes.CDLL(f"{folder}/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    sys.meta_path.insert(0, _Entrance(folder))


class _Entrance(PathFinder):
    """Calls `enter` once `padim_edge.runtime.nvidia` is imported, before its files are."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, name: str, *_: Any) -> Any:  # type: ignore[override]
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def then_enter(module: Any) -> None:
            run(module)
            enter(self.folder)

        spec.loader.exec_module = then_enter  # type: ignore[method-assign]
        return spec


def enter(folder: str) -> None:
    sys.modules["pytest"] = ModuleType("pytest")  # by which the support only skips
    import fake_gpu
    import fake_tensorrt
    import tensorrt_stubs

    sys.modules |= dict.fromkeys(ABSENT)  # type: ignore[arg-type]
    cache = os.environ.get("XDG_CACHE_HOME")
    gpu = fake_gpu.enter(folder)
    gpu.set("memory", MEMORY)

    class TensorRT(fake_tensorrt.FakeTensorRT):
        """One whose plans are the graphs themselves, so that a kept one can be loaded."""

        graph = b""
        world: Any = None

        def parse(self, model: bytes) -> bool:
            self.graph = model
            return super().parse(model)

        def load(self, serialized_engine: bytes) -> Any:
            super().parse(serialized_engine)
            return tensorrt_stubs.Thing(self.world, self.world.real.ICudaEngine)

        def answers(self) -> dict[str, Any]:
            return super().answers() | {
                "Builder.build_serialized_network": lambda **_: self.graph,
                "Runtime.deserialize_cuda_engine": self.load,
            }

    fake = TensorRT(gpu)
    fake.world = fake_tensorrt.install(folder, "rehearsal", fake.answers())
    if cache is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = cache
    from padim_edge.runtime.nvidia import alone, ort_cuda

    alone.kernels = lambda *_: b"\x7fELF"
    ort_cuda.OrtCudaEngine = fake_gpu.cpu_engine(gpu)
    from padim_edge.measure import bench

    bench.BLOCK, bench.STARTS, bench.REST_SECONDS = 2, 1, 0.0
    FAULTS[os.environ.get(FAULT, "")]()


# --- planted faults -------------------------------------------------------------------------------


def a_wrong_constant() -> None:
    """One byte of the whitening that the kernel reads."""
    from padim_edge.runtime.nvidia import scorer

    real = scorer.pack

    def pack(model: Any) -> Any:
        whitening, smoothing = real(model)
        whitening.lines[0, 1] ^= 0x40
        return whitening, smoothing

    scorer.pack = pack


def a_wrong_tap() -> None:
    """One coefficient of the resizing kernel."""
    from padim_edge.runtime.nvidia import preparer

    real = preparer.pack_preparation

    def pack(*arguments: Any, **options: Any) -> Any:
        packed = real(*arguments, **options)
        packed.tables[1] += 1 << 18
        return packed

    preparer.pack_preparation = pack


def a_leak() -> None:
    """An engine that keeps some memory when it is closed."""
    from padim_edge.runtime.nvidia.engine import GpuEngine

    real, kept = GpuEngine.close, []

    def close(self: Any) -> None:
        if self._steps:
            with self._device.current():
                kept.append(self._device._memory.pop(self._device.allocate(5 << 20)))
        real(self)

    GpuEngine.close = close  # type: ignore[method-assign]


def an_engine_that_does_not_open() -> None:
    from padim_edge.errors import PadimEdgeError
    from padim_edge.runtime.nvidia.trt import TrtEngine

    def load(*_: Any) -> None:
        raise PadimEdgeError("TensorRT refuses the graph: planted")

    TrtEngine._load = load  # type: ignore[method-assign,assignment]


def a_second_process_that_fails() -> None:
    from padim_edge.errors import PadimEdgeError
    from padim_edge.runtime.nvidia.engine import GpuEngine

    if any("scored" in text for text in sys.orig_argv):

        def refuse(*_: Any) -> None:
            raise PadimEdgeError("the GPU fails: planted")

        GpuEngine.infer = refuse  # type: ignore[method-assign,assignment]


def a_process_that_ignores_sigterm() -> None:
    from padim_edge.measure import proof_endurance

    proof_endurance.STOP_SECONDS = 0.2
    signal.signal = lambda *_: None  # type: ignore[assignment]
    if any("endless" in text for text in sys.orig_argv):
        ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # SIG_IGN


def wrong_scores() -> None:
    """The GPU's second of several frames gets the first one's map."""
    from padim_edge.runtime.nvidia.engine import GpuEngine

    real = GpuEngine.infer

    def infer(self: Any, images: Any) -> Any:
        scores, maps = real(self, images)
        maps[1:2] = maps[:1]
        return scores, maps

    GpuEngine.infer = infer  # type: ignore[method-assign]


def a_recording_that_does_nothing() -> None:
    """Results are those of the run before it."""
    from padim_edge.runtime.nvidia.recording import Recording

    Recording.enqueue = lambda _: None  # type: ignore[method-assign,assignment]


def frames_that_get_slower() -> None:
    import itertools

    from padim_edge.measure import proof_endurance

    slower = itertools.count(1)
    proof_endurance._seconds = lambda _: 100.0 ** next(slower)


def a_crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


FAULTS: dict[str, Callable[[], None]] = {"": lambda: None} | {
    one.__name__: one
    for one in (
        a_wrong_constant,
        a_wrong_tap,
        a_leak,
        an_engine_that_does_not_open,
        a_second_process_that_fails,
        a_process_that_ignores_sigterm,
        wrong_scores,
        a_recording_that_does_nothing,
        frames_that_get_slower,
        a_crash,
    )
}
