"""A bare graph in TensorRT: arrays of the host in and out, for a fit on the device.

Not executed on a GPU yet, as all that runs plans.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import PadimEdgeError
from padim_edge.progress import Progress
from padim_edge.runtime.nvidia.device import Device
from padim_edge.runtime.nvidia.engine import MOST
from padim_edge.runtime.nvidia.plan import Plan
from padim_edge.runtime.nvidia.tensorrt import LIBRARY
from padim_edge.runtime.nvidia.trt import load_plan


class TrtGraph:
    """An ONNX graph as a plan on the GPU.

    Args:
        data: the graph's bytes; the batch is the first, free dimension of each input and output.
        threads: not used: nothing is computed on the CPU.
        progress: called while the plan is built.

    Raises:
        PadimEdgeError: TensorRT or CUDA does not start here, or refuses the graph.
    """

    def __init__(
        self,
        data: bytes,
        threads: int = 0,  # noqa: ARG002  # as for every graph
        progress: Progress | None = None,
    ) -> None:
        self._plan: Plan | None = None
        self._device = Device()
        try:
            with self._device.current():
                # One plan, tuned for the batches of a fit: its last batch may be a small one.
                plan = load_plan(data, self._device, (1, MOST, MOST), progress)
                self._plan = plan
                self._execution = plan.execution(self._device.allocate(plan.scratch_bytes))
                self._staging = {
                    name: self._device.staging((MOST, *tensor.shape[1:]), tensor.dtype)
                    for name, tensor in plan.tensors.items()
                }
        except BaseException:
            with contextlib.suppress(PadimEdgeError):  # after a fault: the first error tells more
                self.close()
            raise

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[Any]:
        """Run it for some outputs, or all; the returned arrays belong to the caller."""
        if self._plan is None:
            raise PadimEdgeError("the graph is closed")
        tensors = self._plan.tensors
        names = outputs or [name for name, tensor in tensors.items() if not tensor.is_input]
        total = len(next(iter(inputs.values())))
        results = [np.empty((total, *tensors[n].shape[1:]), tensors[n].dtype) for n in names]
        with self._device.current():
            for first in range(0, total, MOST):
                part = slice(first, min(first + MOST, total))
                self._batch({name: values[part] for name, values in inputs.items()}, names)
                for result, name in zip(results, names, strict=True):
                    result[part] = self._staging[name].host[: part.stop - part.start]
        return results

    def _batch(self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]) -> None:
        """Run as many frames as fit; what is wanted lies in host memory afterwards."""
        count = len(next(iter(inputs.values())))
        for name, values in inputs.items():
            self._staging[name].host[:count] = values
            self._device.to_device(self._staging[name], count)
        self._execution.bind(count, {name: s.address for name, s in self._staging.items()})
        self._execution.enqueue(self._device.stream)
        for name in names:
            self._device.to_host(self._staging[name], count)
        self._device.synchronize()

    def describe(self) -> str:
        """Library, version and device."""
        return f"{LIBRARY} on {self._device.name} ({self._device.architecture})"

    def close(self) -> None:
        """Free plan and memory. Closing twice is harmless."""
        try:
            with self._device.current():
                if self._plan is not None:
                    self._plan.close()
        finally:
            self._plan = None
            self._device.close()

    def __enter__(self) -> TrtGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
