"""Engines `openvino` and `openvino-bf16`: the whole of padim.onnx in OpenVINO on the CPU.

Left to itself, OpenVINO computes in bfloat16 wherever the processor can, and says nothing: scores
are then off by up to 1 per cent, and maps in places by 3 per cent of the threshold. So the
precision is always given, and looked up afterwards: float32, or bfloat16 for who asks for it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, ProcessorError, first_line
from padim_edge.model.stored import Stored, put_back
from padim_edge.progress import Progress
from padim_edge.runtime.cpu.engine import Block, Constant, Constants, CpuEngine, add_inputs

# Importing OpenVINO sends a message to its makers and leaves a folder in the user's home. It goes
# without where its telemetry cannot be imported.
_SILENCED = sys.modules.setdefault("openvino_telemetry", None) is None  # type: ignore[arg-type]
try:
    import openvino
except ImportError as error:
    raise MissingDependencyError("running a graph in OpenVINO", "openvino", "openvino") from error
finally:
    if _SILENCED:
        del sys.modules["openvino_telemetry"]

VERSION = openvino.get_version().split("-")[0]

CORE = openvino.Core()
"""The one of this process, for good. Each that is used gives its thread a stack for signal handlers
and takes it away at its end; of two that end in the order in which they began, the second puts back
the stack of the first, which is gone, and the next signal ends the process."""


class Graph:
    """An ONNX graph compiled by OpenVINO for the CPU.

    Args:
        data: the graph's bytes.
        threads: threads within an operator; 0 lets OpenVINO take every core.
        constants: inputs that are the same in every run.
        precision: "f32" or "bf16".
        progress: not used: nothing takes long.

    Raises:
        ProcessorError: the processor lacks the precision.
        PadimEdgeError: OpenVINO refuses the graph.
    """

    def __init__(
        self,
        data: bytes,
        threads: int = 0,
        constants: Constants | None = None,
        precision: str = "f32",
        progress: Progress | None = None,  # noqa: ARG002  # as for every graph
    ) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        self._one_at_a_time = threading.Lock()
        self._precision, self._threads = precision, threads
        try:
            able = CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if precision == "bf16" and "BF16" not in able:
                name = CORE.get_property("CPU", "FULL_DEVICE_NAME")
                raise ProcessorError(f"{name} cannot compute in bfloat16: choose engine openvino")
            model = CORE.read_model(data)
            _bind(model, constants or {})
            compiled = CORE.compile_model(model, "CPU", settings)
            self._request: Any = compiled.create_infer_request()
            taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        except RuntimeError as error:
            raise PadimEdgeError(f"OpenVINO cannot load the graph: {_reason(error)}") from error
        if taken != precision:
            raise PadimEdgeError(f"OpenVINO {VERSION} computes in {taken}, not in {precision}")

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[Any]:
        """Run the graph for some outputs, or all; the returned arrays belong to the caller."""
        if not all(values.size for values in inputs.values()):  # after which it refuses all others
            raise PadimEdgeError("OpenVINO cannot run the graph: the batch is empty")
        try:
            with self._one_at_a_time:
                results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
            return [results[name] for name in outputs or range(len(results))]
        except Exception as error:  # RuntimeError, KeyError, AttributeError once closed, ...
            raise PadimEdgeError(f"OpenVINO cannot run the graph: {_reason(error)}") from error

    def describe(self) -> str:
        """Library, version, precision and threads."""
        threads = self._threads or "all"
        kind = {"f32": "float32", "bf16": "bfloat16"}[self._precision]
        return f"OpenVINO {VERSION} on the CPU, {kind}, {threads} threads"

    def close(self) -> None:
        """Free the graph. Closing twice is harmless."""
        self._request = None

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bind(model: Any, constants: Constants) -> None:
    """Turn inputs into constants, which OpenVINO reads where they are."""
    for parameter in model.get_parameters():
        found = constants.get(parameter.output(0).any_name)
        if found is not None:
            # It refuses what cannot be written to, and never writes.
            shared = np.require(found.values(), requirements="W")
            constant = openvino.op.Constant(shared, shared_memory=True)
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _reason(error: Exception) -> str:
    """What OpenVINO says, without the place in its own source that it says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (x for x in lines if not x.startswith(("Exception from", "Check "))), first_line(error)
    )


class OpenVinoEngine(CpuEngine):
    """padim.onnx in OpenVINO on the CPU, in float32."""

    name = "openvino"
    _precision = "f32"

    def _open(
        self, proto: onnx.ModelProto, blocks: Mapping[str, Block], stored: Mapping[str, Stored]
    ) -> Graph:
        constants = {
            name: Constant(np.dtype(np.float32), block.shape, block.widened)
            for name, block in blocks.items()
        }
        add_inputs(proto, constants)
        put_back(proto, stored)
        return Graph(proto.SerializeToString(), self._threads, constants, self._precision)


class OpenVinoBf16Engine(OpenVinoEngine):
    """padim.onnx in OpenVINO on the CPU, in bfloat16: faster, and not exact.

    Raises:
        ProcessorError: the processor has no bfloat16, which OpenVINO would replace by float32.
    """

    name = "openvino-bf16"
    _precision = "bf16"
