"""Engine `trt`: the backbone in TensorRT, distances and smoothing in our CUDA kernels.

With scoring="graph" TensorRT runs the whole padim.onnx: the baseline that the kernels must beat.

No part of this file has run on TensorRT yet: it was tested on a machine without a GPU, through
the real Python bindings over stub libraries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from padim_edge.model.file import Model
from padim_edge.progress import Progress
from padim_edge.runtime.engines import check_choice
from padim_edge.runtime.nvidia.engine import MOST, GpuEngine, Step
from padim_edge.runtime.nvidia.plan import Execution, Plan, open_plan
from padim_edge.runtime.nvidia.plan_cache import (
    BuildSettings,
    PlanCache,
    backbone_graph,
    whole_graph,
)
from padim_edge.runtime.nvidia.tensorrt import LIBRARY


class TrtEngine(GpuEngine):
    """TensorRT and our kernels.

    Args:
        model: a detector.
        threads: not used: nothing is computed on the CPU.
        scoring: "kernels", or "graph" for all in TensorRT.
        progress: called while a plan is built, which takes minutes on a small device and is
            done once.

    Raises:
        UsageError: there is no such scoring.
        PadimEdgeError: TensorRT or CUDA does not start here, or refuses the model.
    """

    name = "trt"

    def __init__(
        self,
        model: Model,
        threads: int = 0,  # noqa: ARG002  # as for every engine
        scoring: str = "kernels",
        progress: Progress | None = None,
    ) -> None:
        check_choice(self.name, scoring)
        self._scoring = scoring
        self._progress = progress
        self._plan: Plan | None = None
        self._execution: Execution | None = None
        self._addresses: dict[str, int] = {}
        self._bound = 0
        super().__init__(model)

    def _open(self, model: Model) -> list[tuple[str, Step]]:
        kernels = self._scoring == "kernels"
        graph = backbone_graph(model) if kernels else whole_graph(model)
        # Jetsons of one kind share name and architecture; power modes change the rest.
        gpu = ", ".join(
            (
                self._device.name,
                self._device.architecture,
                f"{self._device.processors} processors",
                f"{self._device.total_memory} bytes",
            )
        )
        settings = BuildSettings(batch=(1, 1, MOST))
        plan = self._plan = open_plan(graph, gpu, settings, PlanCache(), self._progress)
        self._execution = plan.execution()
        outputs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: (tensor.shape[1:], tensor.dtype)
            for name, tensor in plan.tensors.items()
            if not tensor.is_input
        }
        if kernels:
            addresses, stages = self._score(model, outputs)
            kind = next(iter(outputs.values()))[1]
            self._description = f"{LIBRARY} and CUDA kernels, {kind} maps,"
        else:
            addresses = {"score": self._scores.address, "score_map": self._maps.address}
            stages = []
            self._description = f"{LIBRARY} for the whole graph"
        self._addresses = {"image": self._images.address, **addresses}
        return [("backbone" if kernels else "graph", self._run), *stages]

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
