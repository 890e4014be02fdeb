"""A TensorRT that computes, for the fake GPU: real Python bindings, plans in ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorrt_stubs
from fake_gpu import Gpu


@dataclass
class Binding:
    """What a context was told of a batch."""

    batch: int = 0
    addresses: dict[str, int] = field(default_factory=dict)
    scratch: int = 0


class FakeTensorRT:
    """Answers of a TensorRT whose plans run in ONNX Runtime, at the addresses they were given."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.session: Any = None
        self.bindings: MutableMapping[Any, Binding] = weakref.WeakKeyDictionary()  # of each context
        self.streams: set[int] = set()
        self.contexts: set[int] = set()

    def answers(self) -> dict[str, Any]:
        from tensorrt_bindings import DataType, TensorIOMode

        kinds = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(float16)": "HALF"}

        def tensors() -> dict[str, Any]:
            both = (*self.session.get_inputs(), *self.session.get_outputs())
            return {tensor.name: tensor for tensor in both}

        def sides(name: str) -> tuple[int, ...]:
            return tuple(tensors()[name].shape[1:])

        def is_input(name: str) -> bool:
            return name == "image"

        return {
            "OnnxParser.parse": self.parse,
            "INetworkDefinition.num_inputs": 1,
            "ITensor.name": "image",
            "ITensor.shape": (-1, 64, 64, 3),
            "Builder.build_serialized_network": lambda **_: b"a plan",
            "ITimingCache.serialize": b"timings",
            "ICudaEngine.num_io_tensors": lambda: len(tensors()),
            "ICudaEngine.get_tensor_name": lambda index: list(tensors())[index],
            "ICudaEngine.get_tensor_shape": lambda name: (-1, *sides(name)),
            "ICudaEngine.get_tensor_dtype": lambda name: DataType.__members__[
                kinds[tensors()[name].type]
            ],
            "ICudaEngine.get_tensor_mode": lambda name: (
                TensorIOMode.INPUT if is_input(name) else TensorIOMode.OUTPUT
            ),
            "ICudaEngine.get_tensor_profile_shape": [(n, 64, 64, 3) for n in (1, 1, 32)],
            "ICudaEngine.device_memory_size_v2": 2**20,
            "IExecutionContext.set_input_shape": self.set_input_shape,
            "IExecutionContext.get_tensor_shape": lambda name: (self.bound.batch, *sides(name)),
            "IExecutionContext.set_tensor_address": self.set_tensor_address,
            "IExecutionContext.set_device_memory": self.set_device_memory,
            "IExecutionContext.execute_async_v3": self.execute,
        }

    def parse(self, model: bytes) -> bool:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.contexts.add(self.gpu.count("contexts"))
        return True

    @property
    def bound(self) -> Binding:
        """What the context whose method is being called was told."""
        return self.bindings.setdefault(sys.modules["tensorrt"].subject, Binding())

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        at(memory, (size,), np.uint8)[...] = 0  # it is there
        self.bound.scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.bound.batch = shape[0]
        return name == "image"

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.bound.addresses[name] = memory
        return True

    def execute(self, stream_handle: int) -> bool:
        self.streams.add(stream_handle)
        self.contexts.add(self.gpu.count("contexts"))
        bound, session = self.bound, self.session
        assert bound.scratch, "nowhere to compute"
        shape = (bound.batch, *session.get_inputs()[0].shape[1:])
        addresses = dict(bound.addresses)

        def work() -> None:
            image = at(addresses["image"], shape, np.uint8)
            names = [output.name for output in session.get_outputs()]
            for name, values in zip(names, session.run(names, {"image": image}), strict=True):
                at(addresses[name], values.shape, values.dtype)[...] = values

        return not self.gpu.enqueue(stream_handle, work)


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    count = int(np.prod(shape))
    buffer = (ctypes.c_byte * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


def install(folder: str, plans: str, answers: dict[str, Any]) -> tensorrt_stubs.World:
    """Make these answers `import tensorrt`, with an empty plan cache of a name."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/{plans.replace('/', '-')}-{os.getpid()}"
    world = tensorrt_stubs.enter(answers)
    for name in ("trt", "trt_graph"):
        sys.modules.pop(f"padim_edge.runtime.nvidia.{name}", None)
    return world
