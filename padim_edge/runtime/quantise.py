"""A backbone in int8, as Q/DQ nodes in its graph, by ONNX Runtime's static quantiser.

Weights get a scale per channel, activations one per tensor, from the least and the greatest value
that real photos give (MinMax). Which activations are quantised, and how, is what a runtime is fast
with; so a graph is made for one.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError, first_line
from padim_edge.model.graph import group

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
        seven_bits: whether weights are from -64 to 64 and not from -127 to 127, those of depthwise
            convolutions excepted.
        float_stem: which stems stay in float: those with a "depthwise" convolution, "every" one, or
            none.
    """

    operators: tuple[str, ...]
    activations: QuantType
    options: dict[str, Any] = field(default_factory=dict)
    inputs_alone: bool = False
    seven_bits: bool = False
    float_stem: Literal["", "depthwise", "every"] = ""


# Unsigned activations: with signed ones, ONNX Runtime on x86-64 is slower than in float32. With
# activation functions among the operators, a convolution's range begins at zero where what reads it
# does. And x86 without VNNI adds two products in 16 bits: 2 x 255 x 64 fits, 2 x 255 x 127 does
# not, and the maps would be wrong by half of themselves, on that processor alone. Depthwise
# convolutions are no matrix products, and are added in 32 bits everywhere.
# A stem with a depthwise one makes most of what rounding does to such a network.
UNSIGNED = Target(
    ("Conv", "Relu", "Clip", "Add", "MaxPool"),
    QuantType.QUInt8,
    seven_bits=True,
    float_stem="depthwise",
)

TARGETS = {
    # In ONNX Runtime a convolution of three channels is no faster in int8, and it rounds the most.
    "cpu": dataclasses.replace(UNSIGNED, float_stem="every"),
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
"""Name of --for -> what is made for it."""


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
    in_float = _clips_beyond_zero(plain.graph)
    if wanted.float_stem:
        in_float += _leave_stem_in_float(plain.graph, wanted.float_stem)
    eight_bits = {
        name: [{"axis": 0, "reduce_range": False}] for name in _depthwise_weights(plain.graph)
    }
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
                nodes_to_exclude=in_float,
                per_channel=True,
                reduce_range=wanted.seven_bits,
                activation_type=wanted.activations,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=wanted.options | {"TensorQuantOverrides": eight_bits},
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


def _leave_stem_in_float(graph: onnx.GraphProto, which: Literal["depthwise", "every"]) -> list[str]:
    """Names of what stays in float; the graph may be rewritten.

    A stem is the first convolution, and a max pool or a depthwise convolution that follows. Where
    convolution, ReLU and max pool follow each other, they become convolution, max pool and
    max(x, 0), which gives the same. ONNX Runtime would take a ReLU into the quantisation behind it
    and then move that in front of the pool, where it is a slow one.
    """
    conv = next((node for node in graph.node if node.op_type == "Conv"), None)
    if conv is None:
        return []
    relu = _only_reader(graph, conv, "Relu")
    after = _only_reader(graph, relu or _only_reader(graph, conv, "Clip") or conv, "Conv")
    if after and after.input[1] in _depthwise_weights(graph):
        return [conv.name, after.name]
    if which == "depthwise":
        return []
    pool = relu and _only_reader(graph, relu, "MaxPool")
    if not (relu and pool):
        return [conv.name]
    pooled, signed, zero = pool.output[0], f"{pool.output[0]}.signed", f"{pool.output[0]}.zero"
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), zero))
    relu.CopyFrom(pool)  # its place in the order of nodes
    relu.input[:], relu.output[:] = conv.output, [signed]
    pool.CopyFrom(helper.make_node("Max", [signed, zero], [pooled], name=f"{pool.name}.rectified"))
    return [conv.name, relu.name]


def _clips_beyond_zero(graph: onnx.GraphProto) -> list[str]:
    """Names of the Clip nodes that a range with zero in it, as all are, does not replace."""
    constants = {
        tensor.name: float(numpy_helper.to_array(tensor).item())
        for tensor in graph.initializer
        if math.prod(tensor.dims) == 1
    }

    def holds_zero(node: onnx.NodeProto) -> bool:
        low, high = (
            constants.get(name, np.nan) if name else 0.0 for name in [*node.input[1:], "", ""][:2]
        )
        return low <= 0 <= high

    return [node.name for node in graph.node if node.op_type == "Clip" and not holds_zero(node)]


def _depthwise_weights(graph: onnx.GraphProto) -> set[str]:
    """Weights of convolutions that make one channel of one."""
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    return {
        node.input[1]
        for node in graph.node
        if node.op_type == "Conv" and [group(node), 1] == list(shapes.get(node.input[1], ()))[:2]
    }


def _only_reader(graph: onnx.GraphProto, maker: onnx.NodeProto, kind: str) -> onnx.NodeProto | None:
    """The node that alone reads another one's output, if it is of this kind."""
    (name,) = maker.output
    if any(output.name == name for output in graph.output):
        return None
    readers = [node for node in graph.node if name in node.input]
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None


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
