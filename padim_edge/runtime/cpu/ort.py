"""ONNX Runtime on the CPU: the engine that runs everywhere, and graphs for export and fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, first_line
from padim_edge.model.stored import MAPS, Stored, put_back, refer
from padim_edge.progress import Progress
from padim_edge.runtime.cpu.engine import Block, Constants, CpuEngine
from padim_edge.runtime.cpu.products import in_ort_form

try:
    import onnxruntime
except ImportError as error:
    raise MissingDependencyError("running a graph on the CPU", "onnxruntime", "cpu") from error


FILE_FOLDER = "session.model_external_initializers_file_folder_path"
READS_FILES = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 22) and MAPS.exists()
"""Whether it does (1.20.1 does not, 1.22.1 does), and Linux can say what it keeps a view of."""


class Graph:
    """An ONNX graph in an ONNX Runtime session on the CPU.

    Args:
        data: the graph's bytes.
        threads: threads within an operator; 0 lets ONNX Runtime take every core.
        constants: inputs that are the same in every run; read where they are, never copied.
        folder: where the graph's external data are.
        progress: not used: nothing takes long.
    """

    def __init__(
        self,
        data: bytes,
        threads: int = 0,
        constants: Constants | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,  # noqa: ARG002  # as for every graph
    ) -> None:
        self._threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its threads otherwise go on spinning after a run, on the cores that would be preparing
        # the next frame: there a resize in two threads takes half as long again. A run that finds
        # them asleep is no slower.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if folder:
            options.add_session_config_entry(FILE_FOLDER, str(folder))
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base but Exception
            raise PadimEdgeError(
                f"ONNX Runtime cannot load the graph: {first_line(error)}"
            ) from error
        self._constants: dict[str, NDArray[Any]] = {}
        self.bind(constants or {})

    def bind(self, constants: Constants) -> None:
        """Give inputs the values that they have in every run from now on."""
        self._constants = {name: one.values() for name, one in constants.items()}

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

    def _open(
        self, proto: onnx.ModelProto, blocks: Mapping[str, Block], stored: Mapping[str, Stored]
    ) -> Graph:
        constants = in_ort_form(proto, blocks)
        graph = self._from_file(proto, stored)
        if graph is None:
            put_back(proto, stored)
            graph = Graph(proto.SerializeToString(), self._threads)
        # Only now: what it took to open the graph is free again.
        graph.bind(constants)
        return graph

    def _from_file(self, proto: onnx.ModelProto, stored: Mapping[str, Stored]) -> Graph | None:
        """Let ONNX Runtime take the backbone's weights from the file into its own form.

        Handed over as bytes, they are in memory three times for a while, and leave gaps: 98 MB of
        weights cost 190 MB more. Only those of convolutions: others are read where they are.

        Returns:
            None if it cannot, or kept a view of the file, where later changes would show.
        """
        weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
        in_file = {name: one for name, one in stored.items() if name in weights}
        if not in_file or not READS_FILES:
            return None
        source = next(iter(in_file.values())).source
        if not source.is_in_place():
            return None
        there = onnx.ModelProto()
        there.CopyFrom(proto)
        folder = refer(there, in_file)
        put_back(there, stored)
        try:
            graph = Graph(there.SerializeToString(), self._threads, folder=folder)
        except PadimEdgeError:  # it maps the file, which not every network's file system allows
            return None
        if source.is_in_place() and not source.is_mapped():
            return graph
        graph.close()
        return None
