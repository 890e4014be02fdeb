"""A backbone in int8, as Q/DQ nodes in its graph, by ONNX Runtime's static quantiser.

Weights get a scale per channel, activations one per tensor, from the least and the greatest value
that real photos give (MinMax). Which activations are quantised, and how, is what a runtime is fast
with; so a graph is made for one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError, first_line

try:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
except ModuleNotFoundError as error:
    raise MissingDependencyError("int8", str(error.name), "cpu") from error


@dataclass(frozen=True)
class Target:
    """What a runtime wants of a quantised graph.

    Attributes:
        operators: whose inputs and outputs are quantised.
        activations: their type.
        options: of ONNX Runtime's quantiser beside.
        inputs_alone: whether only inputs of convolutions are, and of a sum of two branches the
            one that was not convolved.
        seven_bits: whether weights are from -64 to 64 and not from -127 to 127.
    """

    operators: tuple[str, ...]
    activations: QuantType
    options: dict[str, Any] = field(default_factory=dict)
    inputs_alone: bool = False
    seven_bits: bool = False


# Unsigned activations: with signed ones, ONNX Runtime on x86-64 is slower than in float32. And x86
# without VNNI adds two products in 16 bits: 2 x 255 x 64 fits, 2 x 255 x 127 does not, and the maps
# would be wrong by half of themselves, on that processor alone.
UNSIGNED = Target(("Conv", "Add", "MaxPool"), QuantType.QUInt8, seven_bits=True)

TARGETS = {
    "cpu": UNSIGNED,
    "openvino": UNSIGNED,
    # NVIDIA's rules for explicit quantisation: symmetric, no int32 biases (its parser refuses
    # them), and Q/DQ on the inputs of layers with weights.
    "tensorrt": Target(
        ("Conv",),
        QuantType.QInt8,
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
        inputs_alone=True,
    ),
}
"""Name of --for -> what is made for it; ONNX Runtime and OpenVINO are fast with the same."""


class _Photos(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Batches of prepared photos, as the quantiser asks for them."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._singles = (image[None] for batch in batches for image in batch)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._singles, None)
        return None if image is None else {"image": image}

    def __iter__(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        return iter(self.get_next, None)


def check_target(name: str) -> None:
    """Refuse a target that `quantise` would refuse, before any work.

    Raises:
        UsageError: it is none of `TARGETS`.
    """
    if name not in TARGETS:
        raise UsageError(f"--for {name}: choose one of {', '.join(TARGETS)}")


def quantise(
    proto: onnx.ModelProto, batches: Iterable[NDArray[np.uint8]], target: str
) -> onnx.ModelProto:
    """Quantise a backbone to int8.

    Args:
        proto: a graph from ``image``, uint8 [N, H, W, 3], in float32; it is not changed.
        batches: prepared photos, uint8 [n, H, W, 3]: those of the good parts themselves.
        target: of `TARGETS`.

    Returns:
        The graph with the same inputs and outputs, Q/DQ nodes in it, and no metadata.

    Raises:
        UsageError: no such target.
        PadimEdgeError: ONNX Runtime cannot quantise the graph, or no photo was given.
    """
    check_target(target)
    wanted = TARGETS[target]
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    del plain.metadata_props[:]
    # The quantiser otherwise warns that the graph was not prepared for it; it has nothing to fuse.
    plain.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="padim-edge-") as folder:
        made = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                plain,
                made,
                _Photos(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(wanted.operators),
                per_channel=True,
                reduce_range=wanted.seven_bits,
                activation_type=wanted.activations,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=dict(wanted.options),
            )
            quantised = onnx.load(made)
        except PadimEdgeError:
            raise
        except Exception as error:  # the quantiser's errors share no base but Exception
            raise PadimEdgeError(
                f"ONNX Runtime cannot quantise the graph: {first_line(error)}"
            ) from error
    del quantised.metadata_props[:]
    if wanted.inputs_alone:
        _quantise_identity_branches(quantised.graph)
    return quantised


def _quantise_identity_branches(graph: onnx.GraphProto) -> None:
    """Let each Add read the quantised form of the branch that is not a convolution's.

    That tensor is the input of a convolution too, so it has been quantised already; with it, the
    runtime fuses the sum into the convolution of the other branch.
    """
    makers = {node.output[0]: node for node in graph.node}
    readers = {
        makers[node.input[0]].input[0]: node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in makers
    }
    for node in graph.node:
        if node.op_type == "Add":
            for place, name in enumerate(node.input):
                maker = makers.get(name)
                if maker is not None and maker.op_type != "Conv" and name in readers:
                    node.input[place] = readers[name]
