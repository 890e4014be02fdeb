"""Detectors of real sizes with random numbers, made where there is neither torch nor a photo.

Backbones have the convolutions of ResNet-18 and WideResNet-50-2 up to layer3, their batch
normalisation folded in; what comes behind is chosen, pooled, projected, halved or quantised by the
same code as in export and fit. Only the Gaussians are made up: an engine's time does not depend on
numbers, and its errors show with any.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from padim_edge.errors import PadimEdgeError
from padim_edge.export.channels import choose
from padim_edge.export.half import halve
from padim_edge.export.select import select_channels
from padim_edge.files import atomic_write
from padim_edge.fit.chosen import SEED
from padim_edge.fit.settings import HEADS, SIGMA
from padim_edge.fit.whitening import Gaussians
from padim_edge.images.preprocess import Preprocess
from padim_edge.measure.proof_line import Spec
from padim_edge.model import graph
from padim_edge.model.file import Model, read, write
from padim_edge.model.metadata import BackboneInfo, DetectorInfo
from padim_edge.model.names import FEATURES, NORMALISED
from padim_edge.model.pooling import WHITENED, pooled_layers, with_projection
from padim_edge.model.pyramid import Layer, Pyramid
from padim_edge.model.smoothing import Smoothing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYERS = ("layer1", "layer2", "layer3")
POOL = 1_000_003
"""Random numbers that constants are cut from, again and again. A prime, so that no two positions,
rows or channels begin at the same one: a kernel that reads its neighbour's gets other numbers."""
BLOCKS = 7
"""Of one colour, along a side of an image."""


@dataclass(frozen=True)
class Network:
    """A residual network.

    Attributes:
        stem: channels of the first convolution.
        channels: of layer1, layer2 and layer3.
        blocks: of each layer.
        inner: channels between a bottleneck's 1 x 1 convolutions, by layer; none: basic blocks of
            two 3 x 3 convolutions.
        dims: channels that are chosen.
    """

    stem: int
    channels: tuple[int, int, int]
    blocks: tuple[int, int, int]
    inner: tuple[int, ...]
    dims: int


NETWORKS = {
    "resnet18": Network(64, (64, 128, 256), (2, 2, 2), (), 100),
    "wide_resnet50_2": Network(64, (256, 512, 1024), (3, 4, 6), (128, 256, 512), 550),
    # Of no use but to rehearse with.
    "tiny": Network(8, (8, 12, 16), (1, 1, 1), (), 20),
}


def make(spec: Spec, side: int) -> Model:
    """A detector; the same numbers each time.

    Args:
        spec: which.
        side: of its square input, in pixels.

    Raises:
        MissingDependencyError: an int8 backbone needs onnxruntime.
    """
    backbone = embedding(spec, side)
    if spec.preset != "reference":
        backbone = _projected(backbone, spec.preset)
    info = backbone.backbone_info
    made = gaussians(Pyramid.coarse_to_fine(info.pyramid_layers()), spec.constants)
    parts = [
        graph.distances(made.pyramid, made.means, made.whitening),
        graph.smoothing(Smoothing.of(made.pyramid, info.image_size, SIGMA)),
    ]
    detector_info = DetectorInfo(
        preprocess=Preprocess.whole(info.image_size),
        covariance="sample",
        eps=0.0,
        sigma=SIGMA,
        constants=spec.constants,
        images=1,
        threshold=1.0,
        false_alarm_rate=0.5,
        calibration="none: its numbers are random",
        good_scores=(1.0,),
        preset=spec.preset,
    )
    return Model(graph.detector(backbone.proto, info, parts), info, detector_info)


def write_detector(spec: Spec, side: int, path: Path) -> Model:
    """Make a detector, write it, and read it back as any other."""
    with atomic_write(path) as stream:
        write(stream, make(spec, side))
    return read(path, "padim")


# --- the backbone -------------------------------------------------------------------------------


def embedding(spec: Spec, side: int) -> Model:
    """What export would make of the network; with all channels for a whitened preset."""
    network = NETWORKS[spec.network]
    nodes, maps = _convolutions(network)
    shapes = tuple((side // stride, side // stride) for stride in (4, 8, 16))
    chosen, selection = tuple(range(sum(network.channels))), "all"
    if spec.preset == "reference":
        chosen, selection = choose(network.channels, (network.dims,), None, SEED, network.dims)
    info = BackboneInfo(
        backbone=spec.network,
        layers=LAYERS,
        layer_channels=network.channels,
        layer_shapes=shapes,
        channels=chosen,
        selection=selection,
        image_size=(side, side),
        weights="random",
        weights_sha256="",
        precision="float32",
        mean=MEAN,
        std=STD,
    )
    names = [FEATURES + name for name in LAYERS]
    traced = helper.make_graph(nodes.nodes, "backbone", [], [], nodes.constants)
    wanted = [
        (made, np.array(own, np.int64) if spec.preset == "reference" else None, name)
        for made, own, name in zip(maps, info.selected(), names, strict=True)
    ]
    select_channels(traced, wanted)
    if spec.backbone == "float16":
        halve(traced, names)
        info = dataclasses.replace(info, precision="float16")
    head = _normalised()
    proto = graph.as_model(
        helper.make_graph(
            [*head.nodes, *traced.node],
            "embedding",
            [graph.image_input(info.image_size)],
            graph.feature_outputs(info),
            [*head.constants, *traced.initializer],
        )
    )
    # Without what was not chosen.
    model = Model(graph.subgraph(proto, ["image"], names), info)
    return _in_int8(model) if spec.backbone == "int8" else model


def _normalised() -> graph.Nodes:
    """From ``image`` to ``normalised``, as export has it."""
    nodes = graph.Nodes("normalise")
    shape = (1, 3, 1, 1)
    offset = nodes.constant("normalise.mean", 255 * np.array(MEAN, np.float32).reshape(shape))
    factor = nodes.constant("normalise.scale", 1 / (255 * np.array(STD, np.float32).reshape(shape)))
    pixels = nodes.add("Cast", ["image"], "pixels", to=TensorProto.FLOAT)
    planes = nodes.add("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
    centred = nodes.add("Sub", [planes, offset], "centred")
    nodes.add("Mul", [centred, factor], NORMALISED)
    return nodes


def _convolutions(network: Network) -> tuple[graph.Nodes, list[str]]:
    """Nodes from ``normalised`` on, and the tensors that are the layers."""
    nodes = graph.Nodes("backbone")
    rng = np.random.default_rng(0)

    def convolved(
        source: str, name: str, sides: tuple[int, int], kernel: int, stride: int, gain: float = 1.0
    ) -> str:
        inputs, outputs = sides
        spread = gain * (2 / (inputs * kernel * kernel)) ** 0.5
        shape = (outputs, inputs, kernel, kernel)
        weights = (spread * rng.standard_normal(shape)).astype(np.float32)
        bias = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
        constants = [
            nodes.constant(f"{name}.weight", weights),
            nodes.constant(f"{name}.bias", bias),
        ]
        return nodes.add(
            "Conv",
            [source, *constants],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )

    def relu(tensor: str) -> str:
        return nodes.add("Relu", [tensor], f"{tensor}.relu")

    def block(source: str, name: str, ends: tuple[int, int], inner: int, stride: int) -> str:
        inputs, outputs = ends
        skip = source
        if inputs != outputs or stride > 1:
            skip = convolved(source, f"{name}.skip", ends, 1, stride)
        if inner:
            first = relu(convolved(source, f"{name}.1", (inputs, inner), 1, 1))
            second = relu(convolved(first, f"{name}.2", (inner, inner), 3, stride))
            # Small, as batch normalisation keeps it: sums must not grow from block to block.
            last = convolved(second, f"{name}.3", (inner, outputs), 1, 1, gain=0.3)
        else:
            first = relu(convolved(source, f"{name}.1", ends, 3, stride))
            last = convolved(first, f"{name}.2", (outputs, outputs), 3, 1, gain=0.3)
        return relu(nodes.add("Add", [last, skip], f"{name}.sum"))

    stem = relu(convolved(NORMALISED, "stem", (3, network.stem), 7, 2))
    source = nodes.add(
        "MaxPool", [stem], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    inputs, maps = network.stem, []
    inner = network.inner or (0, 0, 0)
    layers = zip(LAYERS, network.channels, network.blocks, inner, strict=True)
    for index, (layer, outputs, count, between) in enumerate(layers):
        for number in range(count):
            stride = 2 if index and not number else 1
            source = block(source, f"{layer}.{number}", (inputs, outputs), between, stride)
            inputs = outputs
        maps.append(source)
    return nodes, maps


def _in_int8(model: Model) -> Model:
    """As `padim-edge quantize --for tensorrt` makes it, calibrated on images of blocks."""
    from padim_edge.runtime.quantise import quantise  # here: it needs onnxruntime

    images = _blocks(np.random.default_rng(0), 2, *model.backbone_info.image_size)
    info = dataclasses.replace(model.backbone_info, precision="int8", quantised_for="tensorrt")
    return dataclasses.replace(
        model, proto=quantise(model.proto, [images], "tensorrt"), backbone_info=info
    )


def _projected(backbone: Model, preset: str) -> Model:
    """With the head of a whitened preset, its directions random ones."""
    stride, dims = HEADS[preset]
    channels = sum(layer.channels for layer in pooled_layers(backbone.backbone_info))
    height, width = (side // stride for side in backbone.backbone_info.image_size)
    head = Layer(WHITENED, min(dims, channels), height, width)
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((channels, head.channels)) / channels**0.5
    return with_projection(backbone, head, directions, rng.standard_normal(head.channels))


# --- the Gaussians ------------------------------------------------------------------------------


def gaussians(pyramid: Pyramid, constants: str) -> Gaussians:
    """Random means and whitening of a pyramid, stored as fit stores them.

    Args:
        pyramid: the levels.
        constants: how whitening is stored; "none": zeros in int8, for who counts and does not run.
    """
    if constants == "none":
        return _nothing(pyramid)
    rng = np.random.default_rng(2)
    pool = rng.standard_normal(POOL, dtype=np.float32)
    cut = itertools.count(0, 7919)

    def random(*shape: int) -> NDArray[np.float32]:
        return np.resize(np.roll(pool, next(cut)), shape)

    means, stored = [], {}
    for index, level in enumerate(pyramid.levels):
        means.append(random(1, level.channels, level.height, level.width))
        columns = sum(each.channels for each in pyramid.levels[: index + 1])
        for other, coarse in enumerate(pyramid.levels[: index + 1]):
            rows = random(level.positions, level.channels, coarse.channels)
            rows /= columns**0.5
            if other == index:
                rows *= np.tri(level.channels, dtype=np.float32)
            for suffix, values in graph.store(rows, constants).items():  # type: ignore[arg-type]
                stored[f"{index}.{other}{suffix}"] = values
    return Gaussians(pyramid, means, stored)


def _nothing(pyramid: Pyramid) -> Gaussians:
    means = [np.zeros((1, x.channels, x.height, x.width), np.float32) for x in pyramid.levels]
    stored: dict[str, NDArray[Any]] = {}
    for index, level in enumerate(pyramid.levels):
        for other, coarse in enumerate(pyramid.levels[: index + 1]):
            shape = (level.positions, level.channels)
            stored[f"{index}.{other}"] = np.zeros((*shape, coarse.channels), np.int8)
            stored[f"{index}.{other}.scale"] = np.zeros((*shape, 1), np.float32)
    return Gaussians(pyramid, means, stored)


def random_maps(model: Model, count: int, half: bool = False) -> dict[str, NDArray[Any]]:
    """Feature maps [N, d, h, w] of so many frames, by their names in the graph."""
    rng = np.random.default_rng(3)
    kind = np.float16 if half else np.float32
    return {
        FEATURES + layer.name: rng.standard_normal(
            (count, layer.channels, layer.height, layer.width), dtype=np.float32
        ).astype(kind)
        for layer in model.backbone_info.pyramid_layers()
    }


def random_images(model: Model, count: int) -> NDArray[np.uint8]:
    """Prepared images, the first the darkest: uint8 [N, H, W, 3].

    Coarse blocks, because backbones average noise: all images of it get about the same scores, and
    one would pass for another.
    """
    return _blocks(np.random.default_rng(4), count, *model.backbone_info.image_size)


def _blocks(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.uint8]:
    coarse = rng.integers(0, 256, (count, BLOCKS, BLOCKS, 3))
    coarse = coarse * np.arange(1, count + 1).reshape(-1, 1, 1, 1) // count
    rows, columns = (np.arange(side) * BLOCKS // side for side in (height, width))
    return coarse.astype(np.uint8)[:, rows][:, :, columns]


# --- the judge ----------------------------------------------------------------------------------


def judge(model: Model, maps: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Score maps [N, H, W] of feature maps in float64, by none of the code that is judged.

    In raster order, from the constants as the file has them: with z the centred channels of a level
    and of all coarser ones at a place, |W z|^2, summed over the levels above that place.
    """
    pyramid = model.pyramid()
    info = model.detector_info
    if info is None:
        raise PadimEdgeError("a judge needs a detector")
    finest = pyramid.levels[-1]
    count = len(next(iter(maps.values())))
    total = np.zeros((count, finest.height, finest.width))
    orders = _tree_orders(pyramid)
    centred = [
        np.concatenate(
            [maps[FEATURES + layer.name].astype(np.float64) for layer in level.layers], 1
        )
        - model.constant(f"mean.{index}")
        for index, level in enumerate(pyramid.levels)
    ]
    for index, level in enumerate(pyramid.levels):
        squared = np.empty((count, level.height, level.width))
        blocks = [_rows(model, index, other, info.constants) for other in range(index + 1)]
        for start in range(0, level.positions, 128):
            part = slice(start, start + 128)
            y, x = (axis[part] for axis in orders[index])
            product = 0.0
            for (values, scales), z, coarse in zip(blocks, centred, pyramid.levels, strict=False):
                times = level.height // coarse.height
                there = z[:, :, y // times, x // times].transpose(2, 1, 0)  # [positions, d, N]
                rows = values[part].astype(np.float64)
                if scales is not None:
                    rows *= scales[part]
                product = product + rows @ there
            squared[:, y, x] = np.square(product).sum(axis=1).T
        times = finest.height // level.height
        total += squared.repeat(times, axis=1).repeat(times, axis=2)
    rows = model.constant("smoothing.rows").astype(np.float64)
    columns = model.constant("smoothing.columns").astype(np.float64)
    scored: NDArray[np.float64] = rows @ np.sqrt(total) @ columns
    return scored


def _rows(
    model: Model, index: int, other: int, constants: str
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """A block of the whitening, [P, d, d_other] in tree order, and the scales of its rows."""
    name = f"whitening.{index}.{other}"
    scales = model.constant(f"{name}.scale") if constants == "int8" else None
    return model.constant(name), scales


def _tree_orders(pyramid: Pyramid) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per level (y, x) of its positions in tree order: children of a position follow each other."""
    first = pyramid.levels[0]
    y, x = (axis.ravel() for axis in np.indices((first.height, first.width)))
    orders = [(y, x)]
    for coarse, fine in itertools.pairwise(pyramid.levels):
        r = fine.height // coarse.height
        i, j = (axis.ravel() for axis in np.indices((r, r)))
        y, x = ((r * axis[:, None] + step).ravel() for axis, step in ((y, i), (x, j)))
        orders.append((y, x))
    return orders


def worst(found: Sequence[NDArray[Any]], wanted: NDArray[Any], unit: float = 0.0) -> float:
    """Largest error of scores [N] and score maps [N, H, W]; NaN for NaN.

    Args:
        found: the scores and the maps.
        wanted: the maps.
        unit: what it is a share of; the largest wanted value if 0.
    """
    scores, maps = found
    largest = wanted.max(axis=(1, 2))
    errors = [np.abs(maps - wanted).max(), np.abs(scores - largest).max()]
    return float(np.max(errors) / (unit or largest.max()))
