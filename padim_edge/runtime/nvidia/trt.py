"""Engines `trt`, TensorRT for the backbone and our CUDA kernels, and `trt/graph`, TensorRT alone.

The second is the baseline that the kernels must beat, and runs what is too large for them.

No part of this file has run on TensorRT yet: it was tested on a machine without a GPU, through
the real Python bindings over stub libraries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

# Before what needs pycuda: where both are missing, it is TensorRT's extra that brings both.
from padim_edge.runtime.nvidia.tensorrt import LIBRARY

# isort: split
from padim_edge.errors import PadimEdgeError
from padim_edge.model.file import Model
from padim_edge.progress import Progress
from padim_edge.runtime.engines import DeviceFigures, PlanFigures
from padim_edge.runtime.nvidia.device import Device
from padim_edge.runtime.nvidia.engine import MOST, GpuEngine, Step
from padim_edge.runtime.nvidia.graphs import backbone_graph, whole_graph
from padim_edge.runtime.nvidia.plan import Execution, Plan, open_plan
from padim_edge.runtime.nvidia.plan_cache import BuildSettings, PlanCache

LIVE = (1, 1, 4)
"""Batches of the plan that every engine has: smallest, the one it is tuned for, largest."""

MANY = (LIVE[2] + 1, MOST, MOST)
"""Those of a second plan, which is built when first there are so many frames. A camera never needs
it, nor memory in which 32 frames can be computed."""


def load_plan(
    graph: bytes, device: Device, batch: tuple[int, int, int], progress: Progress | None
) -> Plan:
    """The plan of an ONNX graph, from the cache or built now.

    Args:
        graph: its bytes.
        device: the current one.
        batch: the smallest, the usual and the largest.
        progress: called while it is built.
    """
    # Jetsons of one kind share name and architecture, and power modes switch processors off. Not
    # the memory: on a Jetson its size differs from boot to boot.
    gpu = f"{device.name}, {device.architecture}, {device.processors} processors"
    return open_plan(graph, gpu, BuildSettings(batch=batch), PlanCache(), progress)


class _Use:
    """A plan on the device with the memory that it computes in.

    It is bound to each batch size once, by an execution of its own: to change one from which a CUDA
    graph was recorded is not allowed.

    Args:
        plan: the plan, which is closed with this.
        device: the current one, which frees the memory.
        addresses: of the plan's inputs and outputs.
    """

    def __init__(self, plan: Plan, device: Device, addresses: Mapping[str, int]) -> None:
        self.plan = plan
        self._addresses = addresses
        self._scratch = device.allocate(plan.scratch_bytes)
        self._executions: dict[int, Execution] = {}

    def execution(self, count: int) -> Execution:
        """That for a batch of ``count`` frames."""
        if count not in self._executions:
            execution = self.plan.execution(self._scratch)
            try:
                execution.bind(count, self._addresses)
            except BaseException:
                self.plan.drop(execution)
                raise
            self._executions[count] = execution
        return self._executions[count]

    def forget(self, count: int) -> None:
        """Free that for a batch size, if there is one; it must not be running."""
        if count in self._executions:
            self.plan.drop(self._executions.pop(count))


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
    _can_record = True

    def __init__(
        self,
        model: Model,
        threads: int = 0,  # noqa: ARG002  # as for every engine
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        self._plans: dict[tuple[int, int, int], Plan] = {}
        self._uses: dict[tuple[int, int, int], _Use] = {}
        self._many_refused = ""  # why there is no plan for many frames
        self._graph: Callable[[], bytes] | None = None
        self._addresses: dict[str, int] = {}
        super().__init__(model)

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        self._graph = functools.partial(backbone_graph, model)
        plan = self._load(LIVE)
        outputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: (tensor.shape[1:], tensor.dtype)
            for name, tensor in plan.tensors.items()
            if not tensor.is_input
        }
        addresses, stages = self._score(model, outputs)
        self._addresses = {"image": self._images.address, **addresses}
        self._use(LIVE)
        kind = next(iter(outputs.values()))[1]
        self._description = f"{LIBRARY} and CUDA kernels, {kind} maps,"
        return [("backbone", self._run), *stages]

    def _load(self, batch: tuple[int, int, int]) -> Plan:
        """The plan for a range of batches."""
        if self._graph is None:
            raise RuntimeError("the engine is closed")
        if batch not in self._plans:
            self._plans[batch] = load_plan(self._graph(), self._device, batch, self._progress)
        return self._plans[batch]

    def _use(self, batch: tuple[int, int, int]) -> _Use:
        """That plan, with memory."""
        if batch not in self._uses:
            self._uses[batch] = _Use(self._load(batch), self._device, self._addresses)
        return self._uses[batch]

    def _most(self, total: int) -> int:
        if total > LIVE[2] and MANY not in self._uses and not self._many_refused:
            try:
                with self._device.current():  # so that CUDA's errors are ours
                    self._use(MANY)
            except PadimEdgeError as error:  # after minutes: it is not tried again
                self._many_refused = str(error)
        return LIVE[2] if self._many_refused else super()._most(total)

    def describe(self) -> str:
        """As `GpuEngine.describe`, and why large batches go in parts."""
        parts = f", at most {LIVE[2]} frames at once ({self._many_refused})"
        return super().describe() + (parts if self._many_refused else "")

    def _run(self, count: int) -> None:
        use = self._use(LIVE if count <= LIVE[2] else MANY)
        use.execution(count).enqueue(self._device.stream)

    def _forget(self, count: int) -> None:
        try:
            super()._forget(count)
        finally:
            for use in self._uses.values():
                use.forget(count)

    def figures(self) -> DeviceFigures:
        """As `GpuEngine.figures`, with the plans."""
        plans = tuple(
            PlanFigures(batch, plan.scratch_bytes)
            for batch, plan in list(self._plans.items())  # a copy: another thread may add one
        )
        return replace(super().figures(), plans=plans)

    def _release(self) -> None:
        self._uses = {}
        self._graph = None
        while self._plans:
            self._plans.popitem()[1].close()


class TrtGraphEngine(TrtEngine):
    """TensorRT for the whole graph, distances and smoothing included."""

    name = "trt/graph"

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        self._graph = functools.partial(whole_graph, model)
        self._addresses = {
            "image": self._images.address,
            "score": self._scores.address,
            "score_map": self._maps.address,
        }
        self._use(LIVE)
        self._description = f"{LIBRARY} for the whole graph"
        return [("graph", self._run)]
