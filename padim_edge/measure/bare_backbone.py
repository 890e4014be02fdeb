"""The yardstick of a benchmark: the truncated backbone, rebuilt from a detector's file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from padim_edge.errors import PadimEdgeError
from padim_edge.model.file import Model
from padim_edge.model.names import FEATURES, NORMALISED


def has_bare_backbone(model: Model) -> bool:
    """Whether the file holds all layers: one without a chosen channel was left out by export."""
    made = {name for node in model.proto.graph.node for name in node.output}
    return {FEATURES + layer.name for layer in model.backbone_info.backbone_layers()} <= made


def bare_backbone(model: Model) -> onnx.ModelProto:
    """The truncated backbone with all its channels, as it was before any selection.

    Export drops what nobody chose: it keeps only chosen rows of the last convolutions and picks
    channels by Gather. Here the rows are put back (as zeros: time does not depend on values) and
    the Gathers taken out, so that a device without torch can measure the yardstick.

    Returns:
        A graph from ``normalised`` to one output per layer, in the order of the layers.

    Raises:
        PadimEdgeError: the file does not hold it; see `has_bare_backbone`.
    """
    layers = model.backbone_info.backbone_layers()
    names = [FEATURES + layer.name for layer in layers]
    if not has_bare_backbone(model):
        raise PadimEdgeError("a layer has no chosen channel, so its bare form is not in the file")
    proto = model.part([NORMALISED], names)
    graph = proto.graph
    channels = [layer.channels for layer in layers]
    gathers = _undo_selection(graph, dict(zip(names, channels, strict=True)))
    kept = []
    for node in graph.node:
        if node.output[0] not in gathers:
            sources = [gathers.get(source, source) for source in node.input]
            node.input[:] = sources
            kept.append(node)
    outputs = [
        helper.make_tensor_value_info(
            gathers.get(name, name),
            onnx.TensorProto.FLOAT,
            ["N", layer.channels, layer.height, layer.width],
        )
        for name, layer in zip(names, layers, strict=True)
    ]
    used = {source for node in kept for source in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    bare = helper.make_graph(kept, "bare", list(graph.input), outputs, constants)
    return helper.make_model(
        bare, opset_imports=list(proto.opset_import), ir_version=proto.ir_version
    )


def _undo_selection(graph: onnx.GraphProto, layers: Mapping[str, int]) -> dict[str, str]:
    """Give the last convolutions their rows back, in place.

    Args:
        graph: of the backbone, with the selection.
        layers: the outputs, with the channels of each before the selection.

    Returns:
        Of each Gather that selects, its output and its input.
    """
    makers = {node.output[0]: node for node in graph.node}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    gathers: dict[str, str] = {}

    def constants(name: str) -> set[str]:
        """The initialisers that a weight is made of, through nodes that quantise it and back."""
        if name in weights or name not in makers:
            return {name} & weights.keys()
        return {one for source in makers[name].input for one in constants(source)}

    def restore(name: str, channels: int) -> None:
        """Undo a selection that moved up from this tensor, along the way it took."""
        node = makers.get(name)
        if node is None:
            return
        if node.op_type == "Gather":
            gathers[name] = node.input[0]
        elif node.op_type == "Conv":
            for key in node.input[1:]:
                # Of a quantised weight: the values, their scales and zero points, one a row or one.
                own = {name: numpy_helper.to_array(weights[name]) for name in constants(key)}
                count = max((len(rows) for rows in own.values() if rows.ndim), default=channels)
                for name, rows in own.items():
                    if rows.ndim and len(rows) == count:
                        edges = [(0, channels - count)] + [(0, 0)] * (rows.ndim - 1)
                        whole = np.pad(rows, edges)
                        weights[name].CopyFrom(numpy_helper.from_array(whole, name))
        else:
            for source in node.input:
                restore(source, channels)

    for name, channels in layers.items():
        restore(name, channels)
    return gathers
