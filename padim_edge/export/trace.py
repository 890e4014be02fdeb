"""Tracing the backbone and assembling embedding.onnx."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from padim_edge.errors import PadimEdgeError
from padim_edge.export.backbones import Backbone
from padim_edge.export.half import halve
from padim_edge.export.select import select_channels
from padim_edge.model.file import Model
from padim_edge.model.graph import (
    Nodes,
    as_model,
    embedding,
    embedding_outputs,
    group,
    image_input,
)
from padim_edge.model.metadata import BackboneInfo
from padim_edge.model.names import FEATURES, NORMALISED, OPSET
from padim_edge.model.pyramid import Pyramid


def assemble(
    backbone: Backbone, chosen: tuple[int, ...], selection: str, precision: str = "float32"
) -> Model:
    """embedding.onnx in memory: uint8 image in, selected maps and their concatenation out.

    Args:
        backbone: the truncated network.
        chosen: channels of the concatenation.
        selection: how they were chosen, in words.
        precision: "float32", or "float16" for the backbone alone: input, normalisation and
            outputs stay float32. Runtimes that take precision from the graph (TensorRT's
            strong typing) need it written there.
    """
    info = _info(backbone, chosen, selection, precision)
    Pyramid.coarse_to_fine(info.pyramid_layers())  # refuses what cannot be combined
    traced = _trace(backbone)
    head = _normalise(traced, backbone, fold=precision == "float32")
    select_channels(
        traced,
        [
            (
                output.name,
                None if indices == tuple(range(total)) else np.array(indices, dtype=np.int64),
                FEATURES + name,
            )
            for name, output, indices, total in zip(
                info.layers, traced.output, info.selected(), info.layer_channels, strict=True
            )
            if indices
        ],
    )
    if precision == "float16":
        halve(traced, [FEATURES + layer.name for layer in info.pyramid_layers()])
    tail = embedding(info)
    return Model(_joined(head, traced, tail, info), info)


def _info(
    backbone: Backbone, chosen: tuple[int, ...], selection: str, precision: str
) -> BackboneInfo:
    return BackboneInfo(
        backbone=backbone.name,
        layers=backbone.layers,
        layer_channels=backbone.channels,
        layer_shapes=backbone.shapes,
        channels=chosen,
        selection=selection,
        image_size=backbone.image_size,
        weights=backbone.weights,
        weights_sha256=backbone.weights_sha256,
        precision=precision,
        mean=backbone.mean,
        std=backbone.std,
        licence=backbone.licence,
    )


def _trace(backbone: Backbone) -> onnx.GraphProto:
    """The backbone as an ONNX graph, dynamic in the batch, every name under 'backbone/'."""
    example = torch.zeros(2, 3, *backbone.image_size)
    batch = torch.export.Dim("N", min=1)
    with _quiet():
        try:
            program = torch.onnx.export(
                backbone.network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise PadimEdgeError(
                f"torch cannot export {backbone.name} up to {', '.join(backbone.layers)} to ONNX "
                f"opset {OPSET}: choose other --layers or another --backbone (--debug says why)"
            ) from error
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from talking about itself: deprecations, versions, guards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _normalise(traced: onnx.GraphProto, backbone: Backbone, fold: bool) -> Nodes:
    """uint8 [N, H, W, 3] to what the backbone expects, (image/255 - mean) / std in [N, 3, H, W].

    The subtraction comes first, as 255 mean, so that the division can be folded into the weights
    of the first convolution: zero stays zero, which its padding relies on. (Weights in float16
    would become subnormal and lose digits.)
    """
    nodes = Nodes("normalise")
    pixels = nodes.add("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
    planes = nodes.add("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
    mean = np.array(backbone.mean, dtype=np.float64) * 255
    scale = 1 / (np.array(backbone.std, dtype=np.float64) * 255)
    shape = (1, 3, 1, 1)
    offset = nodes.constant("normalise.mean", mean.reshape(shape).astype(np.float32))
    users = [node for node in traced.node if traced.input[0].name in node.input]
    for user in users:
        user.input[:] = [NORMALISED if i == traced.input[0].name else i for i in user.input]
    weights = {tensor.name: tensor for tensor in traced.initializer}
    if (
        fold
        and [user.op_type for user in users] == ["Conv"]
        and group(users[0]) == 1
        and users[0].input[1] in weights  # not computed, as standardised ones are
    ):
        nodes.add("Sub", [planes, offset], NORMALISED)
        tensor = weights[users[0].input[1]]
        scaled = numpy_helper.to_array(tensor) * scale.reshape(shape)
        tensor.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), tensor.name))
    else:
        centred = nodes.add("Sub", [planes, offset], "centred")
        factor = nodes.constant("normalise.scale", scale.reshape(shape).astype(np.float32))
        nodes.add("Mul", [centred, factor], NORMALISED)
    return nodes


def _joined(
    head: Nodes, traced: onnx.GraphProto, tail: Nodes, info: BackboneInfo
) -> onnx.ModelProto:
    """The parts as one graph, ``image`` in, ``embedding`` and ``features.<layer>`` out."""
    graph = helper.make_graph(
        [*head.nodes, *traced.node, *tail.nodes],
        "embedding",
        [image_input(info.image_size)],
        embedding_outputs(info),
        [*head.constants, *traced.initializer, *tail.constants],
    )
    _drop_unused(graph)
    return as_model(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that nothing reads any more (the unselected rows)."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
