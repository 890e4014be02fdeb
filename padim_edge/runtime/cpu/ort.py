"""ONNX Runtime on the CPU: the engine that runs everywhere, and graphs for export and fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, first_line
from padim_edge.progress import Progress
from padim_edge.runtime.cpu.engine import Block, Constants, CpuEngine
from padim_edge.runtime.cpu.products import in_ort_form

try:
    import onnxruntime
except ImportError as error:
    raise MissingDependencyError("running a graph on the CPU", "onnxruntime", "cpu") from error


class Graph:
    """An ONNX graph in an ONNX Runtime session on the CPU.

    Args:
        data: the file's bytes.
        threads: threads within an operator; 0 lets ONNX Runtime take every core.
        constants: inputs that are the same in every run; read where they are, never copied.
        progress: not used: nothing takes long.
    """

    def __init__(
        self,
        data: bytes,
        threads: int = 0,
        constants: Constants | None = None,
        progress: Progress | None = None,  # noqa: ARG002  # as for every graph
    ) -> None:
        self._threads = threads
        self._constants = dict(constants or {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its threads otherwise go on spinning after a run, on the cores that would be preparing
        # the next frame: there a resize in two threads takes half as long again. A run that finds
        # them asleep is no slower.
        options.add_session_config_entry("session.force_spinning_stop", "1")
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
            results: list[Any] = self._session.run(names, {**self._constants, **inputs})
        except Exception as error:
            raise PadimEdgeError(
                f"ONNX Runtime cannot run the graph: {first_line(error)}"
            ) from error
        return results

    def describe(self) -> str:
        """Library, version and threads."""
        threads = self._threads or "all"
        return f"ONNX Runtime {onnxruntime.__version__} on the CPU, {threads} threads"

    def close(self) -> None:
        """Free the session. Closing twice is harmless."""
        self._session = None
        self._constants = {}

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OrtEngine(CpuEngine):
    """The whole of padim.onnx in ONNX Runtime on the CPU."""

    name = "ort"

    def _open(self, proto: onnx.ModelProto, blocks: Mapping[str, Block]) -> Graph:
        data, constants = in_ort_form(proto, blocks)
        return Graph(data, self._threads, constants)
