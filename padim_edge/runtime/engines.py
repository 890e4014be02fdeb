"""The table of engines: what they are called, where they live, how one is opened.

An engine takes a model and turns batches of images into scores and score maps. Each lives in a
file of its own, is chosen by name from `ENGINES`, and is imported when it is chosen.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError
from padim_edge.images.frames import Frame
from padim_edge.model.file import Model
from padim_edge.progress import Progress

ENGINES = {
    "trt": "padim_edge.runtime.nvidia.trt:TrtEngine",
    "trt/graph": "padim_edge.runtime.nvidia.trt:TrtGraphEngine",
    "ort-cuda": "padim_edge.runtime.nvidia.ort_cuda:OrtCudaEngine",
    "ort": "padim_edge.runtime.cpu.ort:OrtEngine",
    "openvino": "padim_edge.runtime.cpu.openvino:OpenVinoEngine",
    "openvino-bf16": "padim_edge.runtime.cpu.openvino:OpenVinoBf16Engine",
}
"""Name -> "module:Class", in the order in which `auto` tries them."""

BY_NAME_ONLY = ("trt/graph", "openvino-bf16")
"""Engines that `auto` never takes: TensorRT without our kernels, which is there to be compared
with; and bfloat16, whose scores are not those that the threshold was made with."""

NVIDIA = ("trt", "trt/graph", "ort-cuda")
"""Engines that need an NVIDIA GPU."""

GPU_ALONE = "padim_edge.runtime.nvidia.alone:Gpu"
"""Their device and their kernels without an engine, for who judges them alone."""

STAGES = ("backbone", "distances", "smoothing")
"""Of the engines on the CPU, whose names the others use where they do the same."""


@dataclass(frozen=True)
class PlanFigures:
    """What an engine knows of a plan of TensorRT's.

    Attributes:
        batch: smallest batch that it takes, the one that it is tuned for, and the largest.
        scratch_bytes: device memory in which it computes, sized for the largest.
    """

    batch: tuple[int, int, int]
    scratch_bytes: int


@dataclass(frozen=True)
class DeviceFigures:
    """What an engine on a GPU knows of it, for a benchmark.

    Attributes:
        device: its name and architecture.
        memory_bytes: device memory gone since the engine was opened (so what other processes
            took meanwhile is in it; CUDA's own context is not). Where the GPU shares the host's
            memory, as on Jetson: of MemAvailable, so what the host's side took is in it, too.
        constants_bytes: of whitening that the distance kernel reads in a pass, which serves up to
            8 frames; 0 without kernels.
        copy_bandwidth: of a copy within the device's memory, bytes read plus written per second.
        plans: of TensorRT, those that were needed so far.
    """

    device: str
    memory_bytes: int
    constants_bytes: int
    copy_bandwidth: float
    plans: tuple[PlanFigures, ...] = ()


class Engine(Protocol):
    """One way to run a model; `close` frees what it holds."""

    name: str

    def __init__(
        self, model: Model, threads: int = 0, progress: Progress | None = None
    ) -> None: ...

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch.

        Args:
            images: uint8 [N, H, W, 3] RGB, prepared by the model's preprocessing, N >= 1.

        Returns:
            Scores [N] and score maps [N, H, W], both the caller's.
        """
        ...

    def stages(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run one batch stage by stage; seconds of each, in order."""
        ...

    def figures(self) -> DeviceFigures | None:
        """Figures of the device as it is now; None on the CPU."""
        ...

    def describe(self) -> str:
        """What runs where, in one line."""
        ...

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        ...


@runtime_checkable
class FrameEngine(Protocol):
    """What an engine has beside, that prepares frames itself: on a GPU, or in its graph.

    All others are given what the model's `Preprocess` makes of a frame on the CPU.
    """

    def takes(self, frame: Frame) -> bool:
        """Whether it prepares frames of this pixel format, size and strides itself.

        Bit for bit as the model's preprocessing does; if not, that is done on the CPU.
        """
        ...

    def infer_frames(
        self, frames: Sequence[Frame]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch of frames as they are, each of any size; returns what `infer` does."""
        ...

    def frame_stages(self, frames: Sequence[Frame]) -> dict[str, float]:
        """As `Engine.stages`, of frames as they are; "upload" and "prepare" are among them."""
        ...


def open_engine(
    name: str,
    model: Model,
    threads: int = 0,
    *,
    progress: Progress | None = None,
    skipped: Callable[[str, PadimEdgeError], None] | None = None,
) -> Engine:
    """Open an engine by name; "auto" takes the first through which a frame really goes.

    Those of `BY_NAME_ONLY` are not tried.

    Args:
        name: of `ENGINES`, or "auto".
        model: a detector.
        threads: of engines on the CPU; 0 for all cores.
        progress: called while a plan is built (TensorRT).
        skipped: told by "auto" of each engine that does not run here, with the reason.
            Without an NVIDIA driver those that need one are not tried, and nothing is said.

    Raises:
        UsageError: no engine has this name.
        PadimEdgeError: the engine does not run here, or with "auto" none does.
    """
    check_name(name)
    if name == "auto":
        return _first_that_runs(model, threads, progress, skipped)
    try:
        engine: Engine = load(ENGINES[name])(model, threads, progress)
    except MissingDependencyError as error:
        if name in NVIDIA and not has_driver():
            error.args = (f"{error}  (nor is there an NVIDIA driver on this machine)",)
        raise
    return engine


def check_name(name: str) -> None:
    """Refuse a name that `open_engine` would refuse, before any work.

    Raises:
        UsageError: no engine has this name.
    """
    if name not in ("auto", *ENGINES):
        raise UsageError(f"unknown engine '{name}': choose auto, {', '.join(ENGINES)}")


def has_driver() -> bool:
    """Whether an NVIDIA driver can be loaded here; a GPU that works is not proved by it."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def load(place: str) -> Any:
    """What a "module:Class" of a table names; imports it."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _first_that_runs(
    model: Model,
    threads: int,
    progress: Progress | None,
    skipped: Callable[[str, PadimEdgeError], None] | None,
) -> Engine:
    """A provider that is listed proves nothing: an engine counts once a frame went through."""
    frame = np.zeros((1, *model.backbone_info.image_size, 3), dtype=np.uint8)
    reasons = []
    names = [name for name in ENGINES if name not in BY_NAME_ONLY]
    if not has_driver():
        names = [name for name in names if name not in NVIDIA]
    for name in names:
        engine = None
        try:
            engine = open_engine(name, model, threads, progress=progress)
            engine.infer(frame)
        except Exception as error:  # whatever a library that does not suit this machine raises
            if engine is not None:
                # After a fault of the device, closing fails too; the next engine may run.
                with contextlib.suppress(PadimEdgeError):
                    engine.close()
            if not isinstance(error, PadimEdgeError):
                error = PadimEdgeError(f"{type(error).__name__}: {error}")
            if skipped is not None and name != names[-1]:
                skipped(name, error)
            reasons.append(f"{name}: {error}")
        else:
            return engine
    raise PadimEdgeError("no engine runs here: " + "; ".join(reasons))
