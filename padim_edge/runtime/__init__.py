"""Runtime: what runs graphs. The only place that imports an inference library.

An engine takes a model and turns batches of images into scores and score maps. Each lives in a
file of its own, is chosen by name from `ENGINES`, and is imported when it is chosen.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.model import Model

if TYPE_CHECKING:
    from padim_edge.runtime.ort import Graph

ENGINES = {"ort": "padim_edge.runtime.ort:OrtEngine"}
"""Name -> "module:Class", the fastest first: the order in which `auto` tries them."""

STAGES = ("backbone", "distances", "smoothing")


class Engine(Protocol):
    """One way to run a model. Engines are context managers: closing frees what they hold."""

    name: str

    def __init__(self, model: Model, threads: int = 0) -> None: ...

    def infer(
        self, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch.

        Args:
            images: uint8 [N, H, W, 3] RGB, prepared by the model's preprocessing, N >= 1.

        Returns:
            Scores [N] and score maps [N, H, W], both the caller's.
        """
        ...

    def stages(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run one batch stage by stage; seconds of each of `STAGES`."""
        ...

    def describe(self) -> str:
        """What runs where, in one line."""
        ...

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        ...


def open_engine(name: str, model: Model, threads: int = 0) -> Engine:
    """Open an engine by name; "auto" takes the first through which a frame really goes.

    Raises:
        UsageError: no engine has this name.
        PadimEdgeError: the engine does not run here, or with "auto" none does.
    """
    if name == "auto":
        return _first_that_runs(model, threads)
    if name not in ENGINES:
        raise UsageError(f"unknown engine '{name}': choose auto, {', '.join(ENGINES)}")
    engine: Engine = _load(ENGINES[name])(model, threads)
    return engine


def open_graph(data: bytes, threads: int = 0) -> Graph:
    """Open an ONNX graph on the CPU, for export and fit.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    graph: Graph = _load("padim_edge.runtime.ort:Graph")(data, threads)
    return graph


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _first_that_runs(model: Model, threads: int) -> Engine:
    """A provider that is listed proves nothing: an engine counts once a frame went through."""
    frame = np.zeros((1, *model.embedding.image_size, 3), dtype=np.uint8)
    reasons = []
    for name in ENGINES:
        try:
            engine = open_engine(name, model, threads)
            engine.infer(frame)
        except PadimEdgeError as error:
            reasons.append(f"{name}: {error}")
        else:
            return engine
    raise PadimEdgeError("no engine runs here: " + "; ".join(reasons))
