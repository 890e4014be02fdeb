"""A TensorRT for which all goes well, and one that says what is wrong, over `tensorrt_stubs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from padim_edge.runtime.nvidia.plan_cache import BuildSettings

SETTINGS = BuildSettings(batch=(1, 4, 32), workspace=2**28)
STREAM = 0x7F00
SCRATCH = 0x4000
ADDRESSES = {"image": 0x1000, "features.layer3": 0x2000, "features.layer1": 0x3000}
SHAPES = {"image": (-1, 64, 96, 3), "features.layer3": (-1, 66, 4, 6),
          "features.layer1": (-1, 6, 16, 24)}  # fmt: skip
DTYPES = {"image": "UINT8", "features.layer3": "HALF", "features.layer1": "FLOAT"}


# --- the script: a TensorRT for which all goes well ---------------------------------------------


def answers(others: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a working TensorRT answers, and what the test has it answer instead."""
    from tensorrt_bindings import DataType, TensorIOMode

    names = list(SHAPES)
    batch: list[int] = []

    def set_input_shape(name: str, shape: tuple[int, ...]) -> bool:
        batch[:] = shape[:1]
        return True

    script = {
        "ITensor.name": "image",
        "ITensor.shape": SHAPES["image"],
        "INetworkDefinition.num_inputs": 1,
        "Builder.build_serialized_network": b"a plan",
        "ITimingCache.serialize": b"timings",
        "ICudaEngine.num_io_tensors": len(names),
        "ICudaEngine.get_tensor_name": lambda index: names[index],
        "ICudaEngine.get_tensor_shape": lambda name: SHAPES[name],
        "ICudaEngine.get_tensor_dtype": lambda name: DataType.__members__[DTYPES[name]],
        "ICudaEngine.get_tensor_mode": lambda name: (
            TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT
        ),
        "ICudaEngine.get_tensor_profile_shape": [
            (size, *SHAPES["image"][1:]) for size in SETTINGS.batch
        ],
        "ICudaEngine.device_memory_size_v2": 3 * 2**20,
        "IExecutionContext.set_input_shape": set_input_shape,
        "IExecutionContext.get_tensor_shape": lambda name: (*batch, *SHAPES[name][1:]),
    }
    return script | (others or {})


def says(message: str, answer: Any) -> Callable[..., Any]:
    """An answer before which the library writes an error into its log."""

    def say(**_: Any) -> Any:
        from tensorrt_bindings import ILogger

        from padim_edge.runtime.nvidia.tensorrt import log

        log().log(ILogger.Severity.VERBOSE, "nobody reads this")
        log().log(ILogger.Severity.ERROR, message)
        return answer

    return say
