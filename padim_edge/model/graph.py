"""The scoring part of padim.onnx: from selected maps to score map and score, as ONNX nodes.

Per level, coarse to fine, the centred maps are brought into tree order (`model.pyramid`):
SpaceToDepth moves the positions of a cell into channels, two transposes bring the batch last.
The transposes are (1, 0) and (1, 0, 2), the two that ONNX Runtime does by blocks and by rows;
the direct (2, 1, 0) is several times slower at batch 32. From there on repeating, grouping and
adding levels are reshapes, and one product reads each constant once for the whole batch:

    y_i = sum over j <= i of whitening.i.j (x_j - mean.j)        [P_i, d_i, N]
    m_i = |y_i|^2 + m_(i-1) of the parent position               [P_i, N]
    score_map = A sqrt(m) A^T, 0 where nothing is judged         [N, H, W]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.utils
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from padim_edge.errors import PadimEdgeError
from padim_edge.model.metadata import BackboneInfo
from padim_edge.model.names import FEATURES, IR_VERSION, NORMALISED, OPSET, ROI
from padim_edge.model.pyramid import Level, Pyramid
from padim_edge.model.smoothing import Smoothing


@dataclass
class Nodes:
    """Nodes and constants being collected; every node is named after its output."""

    stage: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        name = f"{self.stage}/{output}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def reshape(self, tensor: str, shape: list[int], output: str) -> str:
        """Reshape to constant sizes, one of which may be -1."""
        name = self.constant(f"{output}.shape", np.array(shape, dtype=np.int64))
        return self.add("Reshape", [tensor, name], output)


def quantise(rows: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows [P, d, k] as int8 with one scale per row, [P, d, 1]: rows = int8 x scale."""
    largest = np.abs(rows).max(axis=2, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(rows / scale).clip(-127, 127).astype(np.int8), scale


def check_rows(rows: NDArray[np.float64], constants: str) -> None:
    """Refuse rows [P, d, d] of a diagonal block that would be stored as hardly more than zeros.

    Raises:
        PadimEdgeError: the largest value of a row is below float16's normal numbers.
    """
    least = np.finfo(np.float16).smallest_normal
    if constants == "float16" and (np.abs(rows).max(axis=2) < least).any():
        raise PadimEdgeError(
            "the whitening does not fit into float16: the features vary too much; give "
            "--constants float32"
        )


def store(rows: NDArray[np.float64], constants: str) -> dict[str, NDArray[Any]]:
    """Whitening rows as they are stored: {"": values} and, for int8, {".scale": scales}.

    Raises:
        PadimEdgeError: a value is too large for float16.
    """
    if constants == "int8":
        values, scale = quantise(rows)
        return {"": values, ".scale": scale}
    with np.errstate(over="ignore"):
        values = rows.astype(constants)
    if not np.isfinite(values).all():
        raise PadimEdgeError(
            f"the whitening does not fit into {constants}: the features vary too little; give "
            "--constants float32 or a larger --eps (of a whitened preset, --shrinkage)"
        )
    return {"": values}


def distances(
    pyramid: Pyramid, means: list[NDArray[np.float32]], whitening: dict[str, NDArray[Any]]
) -> Nodes:
    """Nodes from ``features.<layer>`` to ``distance_map``.

    Args:
        pyramid: the levels, coarse to fine.
        means: per level [1, d, h, w].
        whitening: constants by name without "whitening.": "i.j" and, for int8, "i.j.scale";
            emptied on the way, because they can be large.
    """
    nodes = Nodes("distances")
    centred = []
    total = ""
    for index, level in enumerate(pyramid.levels):
        mean = nodes.constant(f"mean.{index}", means[index])
        maps = nodes.add("Sub", [_level_maps(nodes, index, level), mean], f"centred.{index}")
        centred.append(_to_tree(nodes, pyramid, index, maps))

        rows = ""
        for other, z in enumerate(centred):
            part = _product(nodes, pyramid, whitening, (index, other), z)
            rows = nodes.add("Add", [rows, part], f"sum.{index}.{other}") if rows else part
        axes = nodes.constant(f"squares.{index}.axes", np.array([1], dtype=np.int64))
        squares = nodes.add("ReduceSumSquare", [rows, axes], f"squares.{index}", keepdims=0)
        if total:
            parents = pyramid.levels[index - 1].positions
            children = nodes.reshape(squares, [parents, level.positions // parents, -1],
                                     f"squares.{index}.grouped")  # fmt: skip
            parent = nodes.reshape(total, [parents, 1, -1], f"total.{index - 1}.column")
            squares = nodes.add("Add", [children, parent], f"total.{index}")
        total = squares

    # A sum of squares: never negative, so nothing needs to be clamped before the root.
    nodes.add("Sqrt", [_from_tree(nodes, pyramid, total)], "distance_map")
    return nodes


def _level_maps(nodes: Nodes, index: int, level: Level) -> str:
    """All selected maps of a level as one tensor; coarser ones among them are repeated."""
    maps = [
        repeat_up(nodes, FEATURES + layer.name, level.height // layer.height)
        for layer in level.layers
    ]
    return nodes.add("Concat", maps, f"level.{index}", axis=1) if len(maps) > 1 else maps[0]


def repeat_up(nodes: Nodes, tensor: str, ratio: int) -> str:
    """Repeat each pixel ratio x ratio times (nearest neighbour with an integer factor)."""
    if ratio == 1:
        return tensor
    scales = np.array([1, 1, ratio, ratio], dtype=np.float32)
    return nodes.add(
        "Resize",
        [tensor, "", nodes.constant(f"{tensor}.ratio", scales)],
        f"{tensor}.repeated",
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )


def _to_tree(nodes: Nodes, pyramid: Pyramid, index: int, maps: str) -> str:
    """[N, d, h, w] -> [P, d, N], positions in tree order."""
    level = pyramid.levels[index]
    for step, ratio in reversed(list(enumerate(pyramid.ratios(index)))):
        maps = nodes.add("SpaceToDepth", [maps], f"tree.{index}.{step}", blocksize=ratio)
    channels = level.channels * pyramid.positions_per_cell(index)
    name = f"tree.{index}"
    flat = nodes.reshape(maps, [-1, channels * pyramid.cells], f"{name}.flat")
    turned = nodes.add("Transpose", [flat], f"{name}.batch_last", perm=[1, 0])
    split = nodes.reshape(turned, [channels, pyramid.cells, -1], f"{name}.split")
    cells = nodes.add("Transpose", [split], f"{name}.cells_first", perm=[1, 0, 2])
    return nodes.reshape(cells, [level.positions, level.channels, -1], name)


def _product(
    nodes: Nodes,
    pyramid: Pyramid,
    whitening: dict[str, NDArray[Any]],
    block: tuple[int, int],
    z: str,
) -> str:
    """whitening.i.j z_j as [P_i, d_i, N]; all rows below one position of level j at once."""
    index, other = block
    level, coarse = pyramid.levels[index], pyramid.levels[other]
    key = f"{index}.{other}"
    values = whitening.pop(key)
    rows = nodes.constant(f"whitening.{key}", values)
    if values.dtype != np.float32:
        rows = nodes.add("Cast", [rows], f"whitening.{key}.float32", to=TensorProto.FLOAT)
    if values.dtype == np.int8:
        scale = nodes.constant(f"whitening.{key}.scale", whitening.pop(f"{key}.scale"))
        rows = nodes.add("Mul", [rows, scale], f"whitening.{key}.scaled")
    if other < index:
        per_parent = level.positions // coarse.positions * level.channels
        shape = [coarse.positions, per_parent, coarse.channels]
        rows = nodes.reshape(rows, shape, f"whitening.{key}.grouped")
    product = nodes.add("MatMul", [rows, z], f"product.{key}")
    if other == index:
        return product
    return nodes.reshape(product, [level.positions, level.channels, -1], f"product.{key}.rows")


def _from_tree(nodes: Nodes, pyramid: Pyramid, values: str) -> str:
    """[P in tree order, N] (in any grouping) -> [N, h, w]."""
    finest = len(pyramid.levels) - 1
    per_cell = pyramid.positions_per_cell(finest)
    coarsest = pyramid.levels[0]
    flat = nodes.reshape(values, [pyramid.cells * per_cell, -1], "total.flat")
    frames = nodes.add("Transpose", [flat], "total.batch_first", perm=[1, 0])
    cells = nodes.reshape(frames, [-1, pyramid.cells, per_cell], "total.cells")
    depth = nodes.add("Transpose", [cells], "total.depth", perm=[0, 2, 1])
    maps = nodes.reshape(depth, [-1, per_cell, coarsest.height, coarsest.width], "total.maps")
    for step, ratio in enumerate(pyramid.ratios(finest)):
        maps = nodes.add("DepthToSpace", [maps], f"total.map.{step}", blocksize=ratio)
    return nodes.reshape(maps, [-1, pyramid.height, pyramid.width], "total.raster")


def smoothing(matrices: Smoothing) -> Nodes:
    """Nodes from ``distance_map`` to ``score_map`` and ``score``."""
    nodes = Nodes("smoothing")
    rows = nodes.constant("smoothing.rows", matrices.rows.astype(np.float32))
    columns = nodes.constant("smoothing.columns", matrices.columns.T.astype(np.float32))
    tall = nodes.add("MatMul", [rows, "distance_map"], "tall_map")
    if matrices.judged is None:
        nodes.add("MatMul", [tall, columns], "score_map")
    else:
        whole = nodes.add("MatMul", [tall, columns], "whole_map")
        nothing = nodes.constant("roi.nothing", np.float32(0))
        nodes.add("Where", [nodes.constant(ROI, matrices.judged), whole, nothing], "score_map")
    axes = nodes.constant("score.axes", np.array([1, 2], dtype=np.int64))
    nodes.add("ReduceMax", ["score_map", axes], "score", keepdims=0)
    return nodes


def subgraph(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The part of a graph between named tensors, with the constants it needs."""
    part: onnx.ModelProto = onnx.utils.Extractor(proto).extract_model(inputs, outputs)
    return part


def image_input(image_size: tuple[int, int]) -> onnx.ValueInfoProto:
    """``image``, the input of both files."""
    return helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *image_size, 3])


def feature_outputs(info: BackboneInfo) -> list[onnx.ValueInfoProto]:
    """The selected maps, in the order of the layers."""
    return [
        helper.make_tensor_value_info(
            FEATURES + layer.name,
            TensorProto.FLOAT,
            ["N", layer.channels, layer.height, layer.width],
        )
        for layer in info.pyramid_layers()
    ]


def embedding(info: BackboneInfo) -> Nodes:
    """From ``features.<layer>`` to ``embedding``: repeat, concatenate, bring into order.

    The concatenation has the channels layer by layer, the embedding in the order of choice.
    """
    tail = Nodes("embedding")
    layers = info.pyramid_layers()
    height = Pyramid.coarse_to_fine(layers).height
    parts = [repeat_up(tail, FEATURES + layer.name, height // layer.height) for layer in layers]
    starts = np.cumsum([0, *info.layer_channels])
    owners = np.searchsorted(starts, np.array(info.channels), side="right")
    # Channel k of the embedding stands at place[k] when channels are grouped by layer.
    grouped = np.argsort(owners, kind="stable")
    place = np.argsort(grouped)
    merged = tail.add("Concat", parts, "maps", axis=1)
    tail.add("Gather", [merged, tail.constant("embedding.order", place)], "embedding", axis=1)
    return tail


def embedding_outputs(info: BackboneInfo) -> list[onnx.ValueInfoProto]:
    """``embedding`` and `feature_outputs`: what embedding.onnx gives."""
    finest = Pyramid.coarse_to_fine(info.pyramid_layers()).levels[-1]
    shape: list[str | int] = ["N", len(info.channels), finest.height, finest.width]
    return [
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, shape),
        *feature_outputs(info),
    ]


def group(node: onnx.NodeProto) -> int:
    """Number of groups of a convolution."""
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def as_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A graph of ours as a file has it."""
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def detector(
    embedding_proto: onnx.ModelProto, info: BackboneInfo, parts: list[Nodes]
) -> onnx.ModelProto:
    """The whole padim.onnx: the backbone of embedding.onnx, then the scoring parts (emptied)."""
    layers = info.pyramid_layers()
    features = [FEATURES + layer.name for layer in layers]
    features += [FEATURES + name for name in info.source_layers]
    finest = max(layers, key=lambda layer: layer.height)
    base = subgraph(embedding_proto, ["image"], features).graph
    height, width = info.image_size
    graph = helper.make_graph(
        list(base.node),
        "padim",
        [image_input(info.image_size)],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("score_map", TensorProto.FLOAT, ["N", height, width]),
        ],
        list(base.initializer),
        # What can be cut at must be declared.
        value_info=[
            *base.output,
            helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, ["N", 3, height, width]),
            helper.make_tensor_value_info(
                "distance_map", TensorProto.FLOAT, ["N", finest.height, finest.width]
            ),
        ],
    )
    proto = as_model(graph)
    for part in parts:
        proto.graph.node.extend(part.nodes)
        # protobuf copies what it is given: let go of each constant at once, they can be large.
        while part.constants:
            proto.graph.initializer.append(part.constants.pop())
    return proto
