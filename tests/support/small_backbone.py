"""A backbone made of a few random convolutions, for machines without torch: a Jetson has none."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from onnx import TensorProto, helper

from padim_edge.model import graph
from padim_edge.model.file import Model
from padim_edge.model.metadata import BackboneInfo
from padim_edge.model.names import FEATURES, NORMALISED

SIZE = 64
INFO = BackboneInfo(
    backbone="small",
    layers=("layer1", "layer2", "layer3"),
    layer_channels=(16, 24, 32),
    layer_shapes=((16, 16), (8, 8), (4, 4)),
    channels=(*range(0, 16, 4), *range(16, 40, 4), *range(40, 72, 3)),
    selection="every fourth, of the last layer every third",
    image_size=(SIZE, SIZE),
    weights="random",
    weights_sha256="",
    precision="float32",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


WHOLE = dataclasses.replace(INFO, channels=tuple(range(72)), selection="all")


def embedding(info: BackboneInfo = INFO) -> Model:
    """What a device's part of embedding.onnx computes: uint8 images in, selected maps out.

    Three layers as in a ResNet, each with a skip connection, from pixels a quarter, an eighth and
    a sixteenth of the image's size. The weights are the same each time.
    """
    rng = np.random.default_rng(0)
    nodes = graph.Nodes("small")

    def convolution(source: str, name: str, inputs: int, outputs: int, side: int, stride: int):
        spread = np.sqrt(2 / (inputs * side * side))
        values = (rng.standard_normal((outputs, inputs, side, side)) * spread).astype(np.float32)
        kernel = nodes.constant(f"{name}.kernel", values)
        pads = [side // 2] * 4
        return nodes.add("Conv", [source, kernel], name, strides=[stride, stride], pads=pads)

    centre = 255 * np.array(INFO.mean, np.float32).reshape(1, 3, 1, 1)
    scale = 1 / (255 * np.array(INFO.std, np.float32).reshape(1, 3, 1, 1))
    nodes.add("Cast", ["image"], "image.float32", to=TensorProto.FLOAT)
    nodes.add("Transpose", ["image.float32"], "image.channels_first", perm=[0, 3, 1, 2])
    nodes.add("Sub", ["image.channels_first", nodes.constant("centre", centre)], "shifted")
    nodes.add("Mul", ["shifted", nodes.constant("scale", scale)], NORMALISED)
    source = nodes.add("Relu", [convolution(NORMALISED, "stem", 3, 16, 7, 2)], "stem.relu")
    chosen = info.selected()
    widths = itertools.pairwise((16, *info.layer_channels))
    for name, (inputs, width), kept in zip(info.layers, widths, chosen, strict=True):
        skip = convolution(source, f"{name}.skip", inputs, width, 1, 2)
        first = convolution(source, f"{name}.first", inputs, width, 3, 2)
        relu = nodes.add("Relu", [first], f"{name}.relu")
        second = convolution(relu, f"{name}.second", width, width, 3, 1)
        source = nodes.add("Relu", [nodes.add("Add", [second, skip], f"{name}.sum")], name)
        indices = nodes.constant(f"{name}.kept", np.array(kept, np.int64))
        nodes.add("Gather", [source, indices], FEATURES + name, axis=1)
    image, outputs = graph.image_input(info.image_size), graph.feature_outputs(info)
    proto = graph.as_model(
        helper.make_graph(nodes.nodes, "small", [image], outputs, nodes.constants)
    )
    return Model(proto, info)
