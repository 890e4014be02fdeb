"""Tracing the backbone and assembling embedding.onnx."""

from __future__ import annotations

import logging
import warnings
from collections import Counter

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from padim_edge.export.backbone import MEAN, STD, Backbone
from padim_edge.graph import Nodes, repeat_up
from padim_edge.model import FEATURES, IR_VERSION, NORMALISED, OPSET, Embedding, Model

# Operators that treat every channel alike, so a selection may pass through them.
CHANNELWISE = {"Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "Gelu"}


def assemble(backbone: Backbone, chosen: tuple[int, ...], selection: str) -> Model:
    """embedding.onnx in memory: uint8 image in, selected maps and their concatenation out."""
    info = Embedding(
        backbone=backbone.name,
        layers=backbone.layers,
        layer_channels=backbone.channels,
        layer_shapes=backbone.shapes,
        channels=chosen,
        selection=selection,
        image_size=backbone.image_size,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        mean=MEAN,
        std=STD,
    )
    traced = _trace(backbone)
    head = _normalise(traced)
    layers = {layer.name: layer for layer in info.pyramid_layers()}
    selected = [
        (name, output.name, indices)
        for name, output, indices in zip(
            info.layers, traced.output, info.selected(), strict=True
        )
        if indices
    ]
    _Selector(traced).select(
        [(output, np.array(indices), FEATURES + name) for name, output, indices in selected]
    )
    finest = max(layers.values(), key=lambda layer: layer.height)
    tail = Nodes("embedding")
    parts = [
        repeat_up(tail, FEATURES + name, finest.height // layers[name].height)
        for name, _, _ in selected
    ]
    _in_order(tail, parts, info)

    height, width = info.image_size
    outputs = [
        helper.make_tensor_value_info(
            FEATURES + layer.name,
            TensorProto.FLOAT,
            ["N", layer.channels, layer.height, layer.width],
        )
        for layer in layers.values()
    ]
    embedding = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["N", len(chosen), finest.height, finest.width]
    )
    graph = helper.make_graph(
        [*head.nodes, *traced.node, *tail.nodes],
        "embedding",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, 3])],
        [embedding, *outputs],
        [*head.constants, *traced.initializer, *tail.constants],
    )
    _drop_unused(graph)
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return Model(proto, info)


def _trace(backbone: Backbone) -> onnx.GraphProto:
    """The backbone as an ONNX graph, dynamic in the batch, every name under 'backbone/'."""
    example = torch.zeros(2, 3, *backbone.image_size)
    batch = torch.export.Dim("N", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            backbone.network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    traced = compose.add_prefix(program.model_proto, "backbone/")
    foreign = {entry.domain for entry in traced.opset_import} - {""}
    if foreign or traced.functions:
        raise RuntimeError(f"torch.onnx.export used operators outside of ONNX: {sorted(foreign)}")
    for node in traced.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]  # stack traces of the exporting machine
    return traced.graph


def _normalise(traced: onnx.GraphProto) -> Nodes:
    """uint8 [N, H, W, 3] to what the backbone expects, (image/255 - mean) / std in [N, 3, H, W].

    The subtraction comes first, as 255 mean, so that the division can go into the weights of the
    first convolution: zero stays zero, which its padding relies on.
    """
    nodes = Nodes("normalise")
    pixels = nodes.add("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
    planes = nodes.add("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
    mean = np.array(MEAN, dtype=np.float64) * 255
    scale = 1 / (np.array(STD, dtype=np.float64) * 255)
    shape = (1, 3, 1, 1)
    offset = nodes.constant("normalise.mean", mean.reshape(shape).astype(np.float32))
    users = [node for node in traced.node if traced.input[0].name in node.input]
    for user in users:
        user.input[:] = [NORMALISED if i == traced.input[0].name else i for i in user.input]
    weights = {tensor.name: tensor for tensor in traced.initializer}
    if [user.op_type for user in users] == ["Conv"] and _group(users[0]) == 1:
        nodes.add("Sub", [planes, offset], NORMALISED)
        tensor = weights[users[0].input[1]]
        scaled = numpy_helper.to_array(tensor) * scale.reshape(shape)
        tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))
    else:
        centred = nodes.add("Sub", [planes, offset], "centred")
        factor = nodes.constant("normalise.scale", scale.reshape(shape).astype(np.float32))
        nodes.add("Mul", [centred, factor], NORMALISED)
    return nodes


def _group(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


class _Selector:
    """Selects channels of tensors as early as nothing else needs the others.

    A selection moves up through channel-wise operators and additions into the rows of the
    convolution that makes the channels, as long as it is the only reader; otherwise it stays a
    Gather. The outcome is exact: the remaining channels are computed as before.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.readers = Counter(name for node in graph.node for name in node.input)

    def select(self, wanted: list[tuple[str, np.ndarray, str]]) -> None:
        """Make each (tensor, channels) available under a name of its own."""
        self.readers.update(tensor for tensor, _, _ in wanted)
        for tensor, channels, name in wanted:
            made = self._select(tensor, channels)
            self._rename(made, name)
        nodes = _sorted(list(self.graph.node))
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _select(self, tensor: str, channels: np.ndarray) -> str:
        node = self.makers.get(tensor)
        if node is not None and self.readers[tensor] == 1:
            if node.op_type == "Conv" and _group(node) == 1:
                for place in range(1, len(node.input)):
                    node.input[place] = self._rows(node.input[place], channels)
                return tensor
            if node.op_type in CHANNELWISE:
                node.input[0] = self._select(node.input[0], channels)
                return tensor
            if node.op_type == "Add" and all(name in self.makers for name in node.input):
                for place in range(2):
                    node.input[place] = self._select(node.input[place], channels)
                return tensor
        name = f"{tensor}.selected"
        index = numpy_helper.from_array(channels.astype(np.int64), f"{name}.channels")
        self.graph.initializer.append(index)
        gather = helper.make_node(
            "Gather", [tensor, index.name], [name], name=f"{name}/Gather", axis=1
        )
        self.graph.node.append(gather)
        self.makers[name] = self.graph.node[-1]  # append copies
        return name

    def _rows(self, name: str, channels: np.ndarray) -> str:
        """A weight or bias reduced to the output channels that are used, as a new constant."""
        rows = np.ascontiguousarray(numpy_helper.to_array(self.weights[name])[channels])
        tensor = numpy_helper.from_array(rows, f"{name}.selected")
        self.graph.initializer.append(tensor)
        return str(tensor.name)

    def _rename(self, old: str, new: str) -> None:
        self.makers[old].output[0] = new


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes in an order in which every tensor is made before it is used."""
    waiting_for = {name for node in nodes for name in node.output}
    ordered: list[onnx.NodeProto] = []
    waiting = nodes
    while waiting:
        ready = [node for node in waiting if waiting_for.isdisjoint(node.input)]
        waiting = [node for node in waiting if not waiting_for.isdisjoint(node.input)]
        waiting_for.difference_update(name for node in ready for name in node.output)
        ordered += ready
    return ordered


def _in_order(tail: Nodes, parts: list[str], info: Embedding) -> None:
    """Concatenate the maps and bring channels from layer order into the order of choice."""
    starts = np.cumsum([0, *info.layer_channels])
    layer = np.searchsorted(starts, np.array(info.channels), side="right")
    # Channel k of the embedding stands at place[k] when channels are grouped by layer.
    grouped = np.argsort(layer, kind="stable")
    place = np.argsort(grouped)
    merged = tail.add("Concat", parts, "maps", axis=1)
    tail.add("Gather", [merged, tail.constant("embedding.order", place)], "embedding", axis=1)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that nothing reads any more (the unselected rows)."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
