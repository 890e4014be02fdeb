"""Operations and bytes of one call, node by node, from the graph's shapes alone.

Counted: 2 operations per multiplication of Conv, MatMul and Gemm. Elementwise nodes are fused into
their neighbours by every runtime: no operations and no bytes but their constants and their second
operand. Q/DQ nodes are fused, too, and cost nothing: what is dequantised has the bytes that it is
kept in, and so has a map that is read in int8 alone; a product of two such is one in int8. Reshapes
are free; other nodes (pooling, transposes) read and write maps. A batch reads weights and constants
once per call (our distance kernel does so for up to 8 frames).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from padim_edge.errors import ModelError, UsageError
from padim_edge.measure.devices import Device
from padim_edge.model.file import Model
from padim_edge.model.pyramid import Pyramid

PRODUCTS = ("Conv", "MatMul", "Gemm")
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
ELEMENTWISE = (
    "Add", "Cast", "Clip", "Div", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Mul", "Relu",
    "Sigmoid", "Sqrt", "Sub", "Where",
)  # fmt: skip
BYTES = {"float32": 4, "float16": 2, "int8": 1}
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
STORED: dict[int, int] = {TensorProto.UINT8: 1, TensorProto.INT8: 1, TensorProto.INT32: 4}
"""Bytes of what DequantizeLinear reads; biases are int32."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
SMALL = 64
"""Elements up to which an initializer may hold shapes or scales that shape inference needs."""


@dataclass(frozen=True)
class Storage:
    """How a runtime keeps what the file holds.

    Attributes:
        backbone: "float32" or "float16": its weights, maps and arithmetic; "int8": of what the
            file quantises, the rest is float32.
        constants: "float32", "float16" or "int8": of the whitening. Arithmetic is float32.
        kernels: distances and smoothing are our CUDA kernels, which read packed triangles; else
            they are the graph's own nodes, with the zeros above the diagonal.
    """

    backbone: str
    constants: str
    kernels: bool = True

    @property
    def floats(self) -> str:
        """What the backbone's maps leave it in, and what is not quantised in it."""
        return "float32" if self.backbone == "int8" else self.backbone


CPU = Storage("float32", "float32", kernels=False)
"""On the CPU, whatever a float file holds: `runtime.cpu` widens it once, calls read float32."""

CPU_INT8 = Storage("int8", "float32", kernels=False)
"""The same with an int8 backbone."""

GPU = (Storage("float32", "float32"), Storage("float16", "float16"), Storage("float16", "int8"))
"""What export and fit can make for a GPU."""

GPU_INT8 = (Storage("int8", "float16"), Storage("int8", "int8"))
"""The same of an int8 embedding."""


@dataclass(frozen=True)
class Work:
    """What one node does in one call.

    Attributes:
        name: of the node.
        stage: one of `padim_edge.runtime.engines.STAGES`.
        operator: of ONNX; "Input" and "Output" for what always crosses memory.
        operations: 2 x multiplications.
        arithmetic: "float32", "float16" or "int8".
        constants: bytes of weights and constants.
        read: bytes of maps.
        written: bytes of maps.
    """

    name: str
    stage: str
    operator: str
    operations: int
    arithmetic: str
    constants: int
    read: int
    written: int

    def seconds(self, machine: Device, through_memory: bool) -> tuple[float, float]:
        """(arithmetic, memory): what each alone takes.

        Raises:
            UsageError: no rate of the machine for this arithmetic is known.
        """
        rate: float | None = getattr(machine, self.arithmetic)
        if rate is None:
            raise UsageError(f"no {self.arithmetic} rate of {machine.name} is known")
        maps = self.read + self.written
        crossing = maps if through_memory or self.operator in ("Input", "Output") else 0
        return self.operations / rate, (self.constants + crossing) / machine.bandwidth


def count(model: Model, batch: int = 1, storage: Storage = CPU) -> list[Work]:
    """Count operations and bytes of one call, node by node in the order of the graph.

    Args:
        model: a detector.
        batch: frames of the call.
        storage: how weights and constants are kept; of the file's own types, only which layers
            are quantised plays a part, and only for an int8 backbone.

    Raises:
        UsageError: an embedding.onnx, a float backbone to be counted as int8, or no frames.
        ModelError: the shapes of the graph cannot be inferred.
    """
    if model.detector_info is None:
        raise UsageError("the roofline is for a detector (padim.onnx, made by padim-edge fit)")
    if storage.backbone == "int8" != model.backbone_info.precision:
        raise UsageError(
            f"a backbone in {model.backbone_info.precision} cannot be counted as int8, for which "
            "layers would be quantised is not in it: padim-edge quantize, or fit --precision int8"
        )
    if batch < 1:
        raise UsageError(f"a batch of {batch} frames: a number of at least 1 is needed")
    height, width = model.backbone_info.image_size
    image, result = batch * height * width * 3, 4 * batch * (height * width + 1)
    nodes = _nodes(model, batch, storage)
    if storage.kernels:
        nodes = (work for work in nodes if work.stage == "backbone")
    return [
        Work("image", "backbone", "Input", 0, "float32", 0, image, 0),
        *nodes,
        *(_kernels(model, batch, storage) if storage.kernels else ()),
        Work("score_map", "smoothing", "Output", 0, "float32", 0, 0, result),
    ]


def _nodes(model: Model, batch: int, storage: Storage) -> Iterator[Work]:
    """Every node that costs something."""
    shapes = _shapes(model, batch)
    stages = _stages(model)
    constant = {tensor.name for tensor in model.proto.graph.initializer}
    dequantised, narrow = _quantised(model, shapes) if storage.backbone == "int8" else ({}, set())
    for node in model.proto.graph.node:
        sources = [name for name in node.input if name]
        if constant.issuperset(sources):  # folded when the graph is loaded
            constant.update(node.output)
            continue
        if node.op_type in QUANTISERS:
            continue
        stage = stages.get(node.output[0], "smoothing")
        precision = storage.floats if stage == "backbone" else "float32"

        def size(name: str, precision: str = precision) -> int:
            shape, kind = shapes[name]
            wide = BYTES[precision] if kind in FLOATS else 1
            return math.prod(shape) * (1 if name in narrow else dequantised.get(name, wide))

        maps = [size(name) for name in sources if name not in constant]
        read, written, operations = sum(maps), sum(map(size, node.output)), 0
        if node.op_type in PRODUCTS:
            operations = 2 * _multiplications(node, shapes)
            if dequantised.keys() >= set(node.input[:2]):
                precision = "int8"
        elif node.op_type in VIEWS:
            read = written = 0
        elif node.op_type in ELEMENTWISE:
            read, written = read - max(maps), 0
        weights = [name for name in sources if name in constant and shapes[name][1] in FLOATS]
        constants = sum(map(size, weights))
        if operations or constants or read or written:
            yield Work(
                node.name, stage, node.op_type, operations, precision, constants, read, written
            )


def _quantised(model: Model, shapes: Shapes) -> tuple[dict[str, int], set[str]]:
    """Of an int8 graph: bytes an element by dequantised tensor, and the maps read in int8 alone.

    A map is read in int8 alone if all its readers quantise it, at once or behind elementwise nodes,
    which are fused: a runtime writes it in int8.
    """
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    dequantised: dict[str, int] = {}
    narrow: set[str] = set()
    for node in reversed(model.proto.graph.node):  # readers stand behind what they read
        name = node.output[0]
        if node.op_type == "DequantizeLinear":
            dequantised[name] = STORED[shapes[node.input[0]][1]]
        elif readers[name] and all(
            reader.op_type == "QuantizeLinear"
            or (reader.op_type in ELEMENTWISE and reader.output[0] in narrow)
            for reader in readers[name]
        ):
            narrow.add(name)
        for source in node.input:
            readers[source].append(node)
    return dequantised, narrow


Shapes = dict[str, tuple[tuple[int, ...], int]]
"""Shape and ONNX type by tensor."""


def _multiplications(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiplications of a product; a grouped convolution's kernel is [M, C / groups, ...]."""
    first, second = (shapes[name][0] for name in node.input[:2])
    output = shapes[node.output[0]][0]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * first[0 if transposed else -1]


def _shapes(model: Model, batch: int) -> Shapes:
    """Shape and ONNX type of every tensor, with a batch of so many frames."""
    graph = model.proto.graph
    slim = onnx.ModelProto(ir_version=model.proto.ir_version)
    slim.opset_import.extend(model.proto.opset_import)
    slim.graph.name = graph.name
    slim.graph.node.extend(graph.node)
    # Inference copies what it is given: of large constants it gets the shapes alone.
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            slim.graph.initializer.append(tensor)
        else:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            slim.graph.input.append(info)
    slim.graph.input.extend(graph.input)
    slim.graph.input[-1].type.tensor_type.shape.dim[0].dim_value = batch
    # Without shapes, which would hold the symbol for the batch.
    slim.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    try:
        found = onnx.shape_inference.infer_shapes(slim, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the shapes of the graph cannot be inferred ({error})") from error
    shapes: Shapes = {t.name: (tuple(t.dims), t.data_type) for t in graph.initializer}
    for value in (*found.input, *found.value_info, *found.output):
        kind = value.type.tensor_type
        if any(not dim.HasField("dim_value") for dim in kind.shape.dim):
            raise ModelError(f"the shape of '{value.name}' cannot be inferred")
        shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type
    return shapes


def _stages(model: Model) -> dict[str, str]:
    """Stage by tensor, up to the distance map; what is behind it is smoothing."""
    makers = {name: node for node in model.proto.graph.node for name in node.output}
    stages: dict[str, str] = {}
    ends = (("backbone", model.feature_names()), ("distances", ["distance_map"]))
    for stage, names in ends:
        left = list(names)
        while left:
            name = left.pop()
            if name in makers and name not in stages:
                stages[name] = stage
                left.extend(makers[name].input)
    return stages


def _kernels(model: Model, batch: int, storage: Storage) -> Iterator[Work]:
    """Our CUDA kernels: each level's distances, and the smoothing without its zeros."""
    pyramid = model.pyramid()
    columns = 0
    for index, level in enumerate(pyramid.levels):
        triangle = level.channels * (level.channels + 1) // 2
        products = level.positions * (level.channels * columns + triangle)
        constants = 4 * level.positions * level.channels  # the means
        constants += whitening_bytes(pyramid, index, storage.constants)
        # A finer level reads the maps of the coarser ones again: from a cache, they are small.
        maps = sum(layer.channels * layer.height * layer.width for layer in level.layers)
        yield Work(
            f"level {index}",
            "distances",
            "MatMul",
            2 * batch * products,
            "float32",
            constants,
            BYTES[storage.floats] * batch * maps,
            4 * batch * level.positions,
        )
        columns += level.channels
    rows, across = model.constant("smoothing.rows"), model.constant("smoothing.columns")
    taps = [int(np.count_nonzero(matrix)) for matrix in (rows, across)]
    operations = 2 * batch * (taps[0] * pyramid.width + taps[1] * len(rows))
    squared = 4 * batch * sum(level.positions for level in pyramid.levels)
    yield Work("smooth", "smoothing", "MatMul", operations, "float32", 4 * sum(taps), squared, 0)


def whitening_bytes(pyramid: Pyramid, index: int, constants: str) -> int:
    """Bytes that the distance kernel reads of a level's whitening, laid out by `nvidia.whitening`.

    Lines of 128 bytes: 8 rows, of up to 8 siblings, by a chunk of 16 bytes of columns; nothing
    beyond the chunk that holds the diagonal; for int8 a line of scales more.
    """
    level = pyramid.levels[index]
    chunk = 16 // BYTES[constants]
    ratio = pyramid.ratios(index)[-1] if index else 1
    siblings = math.gcd(8, ratio * ratio)
    rows = 8 // siblings
    coarser = [each.channels for each in pyramid.levels[:index]]
    if constants == "int8":
        coarse = 1 + sum(-(-channels // chunk) for channels in coarser)
    else:
        coarse = -(-sum(coarser) // chunk)
    own = sum(
        coarse + -(-min(first + rows, level.channels) // chunk)
        for first in range(0, level.channels, rows)
    )
    return 128 * level.positions // siblings * own
