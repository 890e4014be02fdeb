"""Engines `trt`, TensorRT for the backbone and our CUDA kernels, and `trt/graph`, TensorRT alone.

The second is the baseline that the kernels must beat, and runs what is too large for them.

No part of this file has run on TensorRT yet: it was tested on a machine without a GPU, through
the real Python bindings over stub libraries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Before what needs pycuda: where both are missing, it is TensorRT's extra that brings both.
from padim_edge.runtime.nvidia.tensorrt import LIBRARY

# isort: split
from padim_edge.model.file import Model
from padim_edge.progress import Progress
from padim_edge.runtime.nvidia.device import Device
from padim_edge.runtime.nvidia.engine import MOST, GpuEngine, Step
from padim_edge.runtime.nvidia.graphs import backbone_graph, whole_graph
from padim_edge.runtime.nvidia.plan import Execution, Plan, open_plan
from padim_edge.runtime.nvidia.plan_cache import BuildSettings, PlanCache


def load_plan(graph: bytes, device: Device, progress: Progress | None) -> Plan:
    """The plan of an ONNX graph for up to `MOST` frames, from the cache or built now.

    Args:
        graph: its bytes.
        device: the current one.
        progress: called while it is built.
    """
    # Jetsons of one kind share name and architecture, and power modes switch processors off. Not
    # the memory: on a Jetson its size differs from boot to boot.
    gpu = f"{device.name}, {device.architecture}, {device.processors} processors"
    return open_plan(graph, gpu, BuildSettings(batch=(1, 1, MOST)), PlanCache(), progress)


class TrtEngine(GpuEngine):
    """TensorRT for the backbone, and our kernels.

    Args:
        model: a detector.
        threads: not used: nothing is computed on the CPU.
        progress: called while a plan is built, which takes minutes on a small device and is
            done once.

    Raises:
        PadimEdgeError: TensorRT or CUDA does not start here, or refuses the model.
    """

    name = "trt"

    def __init__(
        self,
        model: Model,
        threads: int = 0,  # noqa: ARG002  # as for every engine
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        self._plan: Plan | None = None
        self._execution: Execution | None = None
        self._addresses: dict[str, int] = {}
        self._bound = 0
        super().__init__(model)

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        plan = self._load(backbone_graph(model))
        outputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: (tensor.shape[1:], tensor.dtype)
            for name, tensor in plan.tensors.items()
            if not tensor.is_input
        }
        addresses, stages = self._score(model, outputs)
        self._addresses = {"image": self._images.address, **addresses}
        kind = next(iter(outputs.values()))[1]
        self._description = f"{LIBRARY} and CUDA kernels, {kind} maps,"
        return [("backbone", self._run), *stages]

    def _load(self, graph: bytes) -> Plan:
        """The plan of an ONNX graph, ready to run."""
        plan = self._plan = load_plan(graph, self._device, self._progress)
        self._execution = plan.execution()
        return plan

    def _run(self, count: int) -> None:
        if self._execution is None:
            raise RuntimeError("the plan is closed")
        if count != self._bound:
            self._bound = 0  # for good, should binding fail halfway
            self._execution.bind(count, self._addresses)
            self._bound = count
        self._execution.enqueue(self._device.stream)

    def _release(self) -> None:
        if self._plan is not None:
            self._plan.close()
        self._plan = self._execution = None


class TrtGraphEngine(TrtEngine):
    """TensorRT for the whole graph, distances and smoothing included."""

    name = "trt/graph"

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        self._load(whole_graph(model))
        self._addresses = {
            "image": self._images.address,
            "score": self._scores.address,
            "score_map": self._maps.address,
        }
        self._description = f"{LIBRARY} for the whole graph"
        return [("graph", self._run)]
