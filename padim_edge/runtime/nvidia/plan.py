"""A plan on the device: what tensors it has, and running it on a stream.

Device memory and streams are raw addresses and handles, so whose they are (pycuda's, torch's) is
no concern of this file. A CUDA context must be current in the calling thread, and everything
must be closed before that context goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from padim_edge.errors import PadimEdgeError
from padim_edge.progress import Progress
from padim_edge.runtime.nvidia.builder import build_plan
from padim_edge.runtime.nvidia.plan_cache import BuildSettings, PlanCache, PlanError, PlanKey
from padim_edge.runtime.nvidia.tensorrt import LIBRARY, create, last_errors, log, trt

_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


def open_plan(
    graph: bytes,
    gpu: str,
    settings: BuildSettings,
    cache: PlanCache,
    progress: Progress | None = None,
) -> Plan:
    """The plan of a graph, from the cache or built now.

    Args:
        graph: an ONNX file's bytes, from `graphs.backbone_graph` or `graphs.whole_graph`.
        gpu: name, compute capability and number of multiprocessors of the current device.
        settings: how it is built.
        cache: where it is kept.
        progress: called while it is built.

    Raises:
        PadimEdgeError: TensorRT cannot build it, or cannot run here.
    """
    key = PlanKey.of(graph, settings, gpu, LIBRARY)
    data = cache.load(key)
    if data is not None:
        try:
            return Plan(data)
        except PlanError:
            pass  # sound, and for this library and device, but refused all the same
    timings = cache.timings(gpu, LIBRARY)
    return Plan(cache.build(key, lambda: build_plan(graph, settings, timings, progress), data))


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan.

    Attributes:
        name: as in the graph.
        dtype: of its elements.
        shape: its sides, row-major in memory; the first is the batch, and -1 where it is free.
        is_input: whether the caller fills it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_input: bool

    def of(self, batch: int) -> tuple[int, ...]:
        """Its sides for a batch."""
        return (batch, *self.shape[1:])

    def nbytes(self, batch: int) -> int:
        """Its size in memory for a batch."""
        return math.prod(self.of(batch)) * self.dtype.itemsize


class Plan:
    """A plan loaded into the current device.

    Args:
        data: what `builder.build_plan` made.

    Attributes:
        tensors: inputs and outputs by name.
        batch: the smallest, the usual and the largest batch.

    Raises:
        PlanError: TensorRT does not take it.
        PadimEdgeError: TensorRT does not start here.
    """

    def __init__(self, data: bytes) -> None:
        log().take()  # what went wrong earlier is not about this plan
        self._executions: list[Execution] = []
        self._runtime = create(trt.Runtime)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise PlanError(f"TensorRT cannot load the plan: {last_errors()}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._tensor(name) for name in names}
        image = next(tensor.name for tensor in self.tensors.values() if tensor.is_input)
        least, usual, most = self._engine.get_tensor_profile_shape(image, 0)
        self.batch = (int(least[0]), int(usual[0]), int(most[0]))

    def _tensor(self, name: str) -> Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise PlanError(f"tensor '{name}' of the plan is {kind}, which NumPy does not have")
        return Tensor(
            name,
            np.dtype(_DTYPES[kind]),
            tuple(self._engine.get_tensor_shape(name)),
            self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        )

    @property
    def scratch_bytes(self) -> int:
        """Bytes on the device that an execution computes in, enough for the largest batch."""
        return int(self._engine.device_memory_size_v2)

    def execution(self, scratch: int) -> Execution:
        """A new execution.

        Args:
            scratch: address of `scratch_bytes` on the device, which stay the caller's; executions
                that do not run at the same time may have them in common.

        Raises:
            PadimEdgeError: the device has no memory left for it.
        """
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(managed)
        if context is None:
            raise PadimEdgeError(
                f"TensorRT cannot make an execution of the plan for batches of {self.batch[0]} to "
                f"{self.batch[2]} frames: {last_errors()}"
            )
        context.set_device_memory(scratch, self.scratch_bytes)
        execution = Execution(self, context)
        self._executions.append(execution)
        return execution

    def drop(self, execution: Execution) -> None:
        """Close an execution and forget it."""
        self._executions.remove(execution)
        execution.close()

    def close(self) -> None:
        """Free executions, engine and runtime, in this order. Closing twice is harmless."""
        for execution in self._executions:
            execution.close()
        self._executions = []
        self._engine = None
        self._runtime = None

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Execution:
    """A plan that is bound to memory, run again and again. Made by `Plan.execution`."""

    def __init__(self, plan: Plan, context: Any) -> None:
        self._tensors = plan.tensors
        self._batch = plan.batch
        self._context = context

    def bind(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Fix the batch and where each tensor is; it holds until the next call.

        Args:
            batch: number of frames.
            addresses: of every tensor on the device, each with `Tensor.nbytes` bytes behind it,
                which stay the caller's.

        Raises:
            PadimEdgeError: the plan was not built for this batch, or TensorRT refuses.
            ValueError: a tensor has no address.
        """
        least, _, most = self._batch
        if not least <= batch <= most:
            raise PadimEdgeError(f"a batch of {batch} frames: the plan takes {least} to {most}")
        missing = self._tensors.keys() - addresses.keys()
        if missing:
            raise ValueError(f"no address for {', '.join(sorted(missing))}")
        for name, tensor in self._tensors.items():
            if tensor.is_input:
                self._check(self._context.set_input_shape(name, tensor.of(batch)), name)
            self._check(self._context.set_tensor_address(name, int(addresses[name])), name)
        for name, tensor in self._tensors.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if shape != tensor.of(batch):  # or it would write past the caller's memory
                raise PadimEdgeError(
                    f"tensor '{name}' has shape {shape} for a batch of {batch}, where "
                    f"{tensor.of(batch)} is expected"
                )

    def enqueue(self, stream: int) -> None:
        """Start a run on a stream and return at once.

        Args:
            stream: a stream's handle; not the default one, on which TensorRT would wait for
                the whole device.

        Raises:
            PadimEdgeError: it cannot be started.
        """
        if not self._context.execute_async_v3(stream):
            raise PadimEdgeError(f"TensorRT cannot run the plan: {last_errors()}")

    def _check(self, done: bool, name: str) -> None:
        if not done:
            raise PadimEdgeError(f"TensorRT refuses tensor '{name}': {last_errors()}")

    def close(self) -> None:
        """Free what TensorRT has for it. Closing twice is harmless."""
        self._context = None

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
