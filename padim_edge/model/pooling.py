"""The whitened head's part of the graph: layers averaged onto one grid, then projected.

Per layer, at whatever resolution has fewer positions, since averaging, resizing and projecting are
linear and commute (the weights of an average, and of a bilinear value, sum to 1, so that the
offset may come at any place):

    a layer as fine as the grid or finer     average -> project
    a coarser one                            project -> average -> bilinear up to the grid

    features.whitened = sum over layers of these                    [N, d, h, w]
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from padim_edge.errors import UsageError
from padim_edge.model.file import Model
from padim_edge.model.graph import Nodes, subgraph
from padim_edge.model.metadata import BackboneInfo
from padim_edge.model.names import FEATURES
from padim_edge.model.pyramid import Layer

STRIDES = (16, 8)
"""Of the layers that are pooled: pixels of the image by pixel of the map."""

POOLED = "pooled"
WHITENED = "whitened"

Size = tuple[int, int]
Step = Callable[[Nodes, str, str], str]
"""Adds nodes that follow a tensor, under a name, and returns what they make."""


def pooled_layers(info: BackboneInfo) -> list[Layer]:
    """The layers of strides 8 and 16, in their order.

    Raises:
        UsageError: there is none of such a stride, or one lacks channels.
    """
    height, width = info.image_size
    every = [
        (Layer(name, len(chosen), *shape), total)
        for name, chosen, total, shape in zip(
            info.layers, info.selected(), info.layer_channels, info.layer_shapes, strict=True
        )
    ]
    found: list[Layer] = []
    lacking = []
    for stride in STRIDES:
        own = [
            (layer, total)
            for layer, total in every
            if (layer.height * stride, layer.width * stride) == (height, width)
        ]
        if not own:
            lacking.append(f"no layer of {height // stride} x {width // stride}")
        lacking += [
            f"{layer.channels} of {total} channels of {layer.name}"
            for layer, total in own
            if layer.channels < total
        ]
        found += [layer for layer, _ in own]
    if lacking:
        raise UsageError(
            f"a whitened preset needs layers of 1/8 and 1/16 of the image's size with all their "
            f"channels; this embedding has {', '.join(lacking)}: make one with padim-edge export "
            "--dims all, or choose --preset reference"
        )
    return sorted(found, key=lambda layer: info.layers.index(layer.name))


def check_head(info: BackboneInfo, head: Layer) -> None:
    """Refuse a head that the backbone's layers cannot make.

    Args:
        info: of the embedding.
        head: what is to be made of it.

    Raises:
        UsageError: layers lack channels, the grid is no multiple, or fraction, of a layer's sides,
            or more directions are wanted than there are channels.
    """
    layers = pooled_layers(info)
    grid = (head.height, head.width)
    for layer in layers:
        if not _ratio((layer.height, layer.width), grid):
            raise UsageError(
                f"--grid {grid[0]}x{grid[1]}: {layer.name} has {layer.height} x {layer.width}; "
                "choose that, or both sides multiplied or divided by one whole number"
            )
    channels = sum(layer.channels for layer in layers)
    if head.channels > channels:
        raise UsageError(
            f"--dims {head.channels}: {', '.join(layer.name for layer in layers)} have {channels} "
            "channels, choose 1 to that"
        )


def with_pooled(embedding: Model, head: Layer) -> Model:
    """An embedding, not to be written, whose only layer holds all pooled channels.

    Args:
        embedding: with whole layers of strides 8 and 16.
        head: what will be made of it; see `check_head`.

    Returns:
        Of ``features.pooled``, [N, C, h, w], layer after layer.

    Raises:
        UsageError: it lacks channels.
    """
    layers = pooled_layers(embedding.backbone_info)
    nodes = Nodes("pooling")
    maps = [_onto_grid(nodes, layer, head) for layer in layers]
    nodes.add("Concat", maps, FEATURES + POOLED, axis=1)
    channels = sum(layer.channels for layer in layers)
    return _with_head(embedding, nodes, Layer(POOLED, channels, head.height, head.width), "all")


def with_projection(
    embedding: Model, head: Layer, directions: NDArray[np.float64], offset: NDArray[np.float64]
) -> Model:
    """An embedding, not to be written, whose only layer is directions^T pooled + offset.

    Args:
        embedding: as for `with_pooled`.
        head: what is made of it.
        directions: [C, d].
        offset: [d].

    Returns:
        Of ``features.whitened``, [N, d, h, w].
    """
    layers = pooled_layers(embedding.backbone_info)
    nodes = Nodes("projection")
    starts = np.cumsum([0, *(layer.channels for layer in layers)])
    maps = []
    for layer, (start, stop) in zip(layers, itertools.pairwise(starts), strict=True):
        kernel = directions[start:stop].T[:, :, None, None].astype(np.float32)
        weights = [nodes.constant(f"projection.{layer.name}", kernel)]
        if not start:
            weights.append(nodes.constant("projection.offset", offset.astype(np.float32)))

        def project(nodes: Nodes, tensor: str, name: str, weights: list[str] = weights) -> str:
            return nodes.add("Conv", [tensor, *weights], f"{name}.projected")

        maps.append(_onto_grid(nodes, layer, head, project))
    total, *others = maps
    for index, other in enumerate(others, 1):
        last = index == len(others)
        total = nodes.add("Add", [total, other], FEATURES + WHITENED if last else f"sum.{index}")
    names = ", ".join(layer.name for layer in layers)
    return _with_head(embedding, nodes, head, f"{head.channels} principal directions of {names}")


def _with_head(embedding: Model, head: Nodes, made: Layer, selection: str) -> Model:
    """The backbone as far as the pooled layers, then a head that makes one map of them.

    To whoever scores, that map is the only layer; what the backbone itself gives is remembered.
    """
    info = embedding.backbone_info
    layers = pooled_layers(info)
    sources = [FEATURES + layer.name for layer in layers]
    proto = subgraph(embedding.proto, ["image"], sources)
    proto.graph.node.extend(head.nodes)
    proto.graph.initializer.extend(head.constants)
    shape: list[str | int | None] = ["N", made.channels, made.height, made.width]
    output = helper.make_tensor_value_info(FEATURES + made.name, TensorProto.FLOAT, shape)
    proto.graph.output.append(output)
    own = dataclasses.replace(
        info,
        layers=(made.name,),
        layer_channels=(made.channels,),
        layer_shapes=((made.height, made.width),),
        channels=tuple(range(made.channels)),
        selection=selection,
        source_layers=tuple(layer.name for layer in layers),
        source_channels=tuple(layer.channels for layer in layers),
        source_shapes=tuple((layer.height, layer.width) for layer in layers),
    )
    return dataclasses.replace(embedding, proto=proto, backbone_info=own)


def _onto_grid(nodes: Nodes, layer: Layer, grid: Layer, project: Step | None = None) -> str:
    """Maps of a layer averaged over neighbourhoods, at the positions of the grid.

    An average is over some three grid positions a side: 3 x 3 pixels of a layer as fine as the
    grid or coarser, 4 x 4 in steps of 2 of one twice as fine. At the border it is over what lies
    inside.
    """
    tensor = FEATURES + layer.name
    steps = max(layer.height // grid.height, 1)  # pixels by grid position
    side = 2 * steps + steps % 2
    pad = (side - steps) // 2
    finer = layer.height >= grid.height
    if project and not finer:
        tensor = project(nodes, tensor, layer.name)
    tensor = nodes.add(
        "AveragePool",
        [tensor],
        f"{layer.name}.averaged",
        kernel_shape=[side, side],
        strides=[steps, steps],
        pads=[pad] * 4,
        count_include_pad=0,
    )
    if project and finer:
        tensor = project(nodes, tensor, layer.name)
    return tensor if finer else _bilinear(nodes, tensor, layer, grid.height // layer.height)


def _bilinear(nodes: Nodes, tensor: str, layer: Layer, times: int) -> str:
    """Resized up to the grid (align_corners=False)."""
    scales = nodes.constant(f"{layer.name}.scales", np.array([1, 1, times, times], np.float32))
    attributes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return nodes.add("Resize", [tensor, "", scales], f"{layer.name}.resized", **attributes)


def _ratio(shape: Size, grid: Size) -> int:
    """The whole number by which both sides of the larger exceed the smaller; 0 if none does."""
    small, large = sorted((shape, grid))
    times = large[0] // small[0] if small[0] else 0
    return times if (small[0] * times, small[1] * times) == large else 0
