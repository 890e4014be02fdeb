"""ONNX Runtime on the CPU: the engine that runs everywhere, and graphs for export and fit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, first_line
from padim_edge.graph import cut
from padim_edge.model import Model, read
from padim_edge.runtime import STAGES, DeviceFigures

try:
    import onnxruntime
except ImportError as error:
    raise MissingDependencyError("running a graph on the CPU", "onnxruntime", "cpu") from error

REST_SECONDS = 0.02


class Graph:
    """An ONNX graph in an ONNX Runtime session on the CPU.

    Args:
        data: the file's bytes.
        threads: threads within an operator; 0 lets ONNX Runtime take every core.
    """

    def __init__(self, data: bytes, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base but Exception
            raise PadimEdgeError(
                f"ONNX Runtime cannot load the graph: {first_line(error)}"
            ) from error

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[Any]:
        """Run the graph for some outputs, or all; the returned arrays belong to the caller."""
        names = None if outputs is None else list(outputs)
        try:
            results: list[Any] = self._session.run(names, dict(inputs))
        except Exception as error:
            raise PadimEdgeError(
                f"ONNX Runtime cannot run the graph: {first_line(error)}"
            ) from error
        return results

    def close(self) -> None:
        """Free the session. Closing twice is harmless."""
        self._session = None

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OrtEngine:
    """The whole of padim.onnx in ONNX Runtime on the CPU."""

    name = "ort"

    def __init__(self, model: Model, threads: int = 0) -> None:
        self._threads = threads
        self._graph = Graph(model.data, threads)
        # Not the model itself: its constants would be in memory twice.
        self._path, self._sha256 = model.path, model.sha256
        self._parts: list[tuple[str, Graph, list[str]]] = []

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score a batch; see `padim_edge.runtime.Engine`."""
        scores, maps = self._graph.run({"image": images}, ["score", "score_map"])
        return scores, maps

    def stages(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Run the graph in three pieces, cut at its fixed names, and time each.

        The pieces are opened on first use; their sum exceeds the whole by what ONNX Runtime
        saves across the cuts.
        """
        if not self._parts:
            self._parts = self._cut()
        tensors: dict[str, Any] = {"image": images}
        inputs = ["image"]
        seconds = {}
        for stage, graph, outputs in self._parts:
            feed = {name: tensors[name] for name in inputs}
            # The piece before goes on spinning for a while, and this one starts cold.
            time.sleep(REST_SECONDS)
            graph.run(feed, outputs)
            start = time.perf_counter()
            results = graph.run(feed, outputs)
            seconds[stage] = time.perf_counter() - start
            tensors.update(zip(outputs, results, strict=True))
            inputs = outputs
        return seconds

    def _cut(self) -> list[tuple[str, Graph, list[str]]]:
        if self._path is None:
            raise PadimEdgeError("stages can be timed only for a model that was read from a file")
        model = read(self._path, "padim")
        if model.sha256 != self._sha256:
            raise PadimEdgeError(f"{self._path} was replaced while it was in use: open it again")
        names = [["image"], model.feature_names(), ["distance_map"], ["score", "score_map"]]
        parts = []
        for stage, (inputs, outputs) in zip(STAGES, itertools.pairwise(names), strict=True):
            data = cut(model.proto, inputs, outputs).SerializeToString()
            parts.append((stage, Graph(data, self._threads), outputs))
        return parts

    def figures(self) -> DeviceFigures | None:
        """None: there is no device beside the host."""
        return None

    def describe(self) -> str:
        """Library, version and threads."""
        threads = self._threads or "all"
        return f"ONNX Runtime {onnxruntime.__version__} on the CPU, {threads} threads"

    def close(self) -> None:
        """Free all sessions. Closing twice is harmless."""
        self._graph.close()
        for _, graph, _ in self._parts:
            graph.close()
        self._parts = []
