"""A tiny model with a known answer: what an engine has to get right before it counts as running.

It has what a real one has (uint8 in, normalisation, two layers, whitening of two levels in tree
order, smoothing), takes milliseconds on a CPU, and needs neither torch nor photos to make.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from padim_edge.errors import PadimEdgeError
from padim_edge.files import atomic_write
from padim_edge.images.preprocess import Preprocess
from padim_edge.model import graph
from padim_edge.model.file import Model, read, write
from padim_edge.model.metadata import BackboneInfo, DetectorInfo
from padim_edge.model.names import FEATURES, NORMALISED
from padim_edge.model.smoothing import Smoothing
from padim_edge.runtime.engines import Engine

SIZE = 32
SIGMA = 1.0
TOLERANCE = 1e-2
"""Of the largest value: room for float16 and TF32, none for a wrong index."""

INFO = BackboneInfo(
    backbone="trial",
    layers=("fine", "coarse"),
    layer_channels=(2, 3),
    layer_shapes=((8, 8), (4, 4)),
    channels=(0, 1, 2, 3, 4),
    selection="all",
    image_size=(SIZE, SIZE),
    weights="random",
    weights_sha256="",
    precision="float32",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


def write_model(path: Path) -> Model:
    """Write the model as a file, and read it back as any other model is read."""
    values = _constants()
    nodes = graph.Nodes("trial")
    nodes.add("Cast", ["image"], "image.float32", to=TensorProto.FLOAT)
    nodes.add("Transpose", ["image.float32"], "image.channels_first", perm=[0, 3, 1, 2])
    nodes.add(
        "Sub", ["image.channels_first", nodes.constant("centre", values["centre"])], "shifted"
    )
    nodes.add("Mul", ["shifted", nodes.constant("scale", values["scale"])], NORMALISED)
    source = NORMALISED
    for name, stride in (("fine", 4), ("coarse", 2)):
        kernel = nodes.constant(f"kernel.{name}", values[name])
        source = nodes.add("Conv", [source, kernel], FEATURES + name, strides=[stride, stride])
    image, outputs = graph.image_input(INFO.image_size), graph.feature_outputs(INFO)
    embedding = graph.as_model(
        helper.make_graph(nodes.nodes, "trial", [image], outputs, nodes.constants)
    )
    model = Model(embedding, INFO)
    pyramid = model.pyramid()
    whitening = {key: values[key] for key in ("0.0", "1.0", "1.1")}
    parts = [
        graph.distances(pyramid, [values["mean.0"], values["mean.1"]], whitening),
        graph.smoothing(Smoothing.of(pyramid, INFO.image_size, SIGMA)),
    ]
    detector_info = DetectorInfo(
        preprocess=Preprocess.whole(INFO.image_size),
        covariance="sample",
        eps=0.01,
        sigma=SIGMA,
        constants="float16",
        images=1,
        threshold=1.0,
        false_alarm_rate=0.5,
        calibration="none: this model is for trying engines",
        good_scores=(1.0,),
    )
    with atomic_write(path) as stream:
        write(stream, Model(graph.detector(embedding, INFO, parts), INFO, detector_info))
    return read(path, "padim")


def check(engine: Engine) -> None:
    """Send frames through an engine that was opened with this model.

    Raises:
        PadimEdgeError: what comes back is not what NumPy gives.
    """
    generator = np.random.default_rng(1)
    # Others each time: from the second on, a batch size may go another way, recorded.
    for batch in (1, 1, 1, 3, 3, 3):
        images = generator.integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
        scores, maps = engine.infer(images)
        expected = answer(images)
        largest = expected.max(axis=(1, 2))
        if scores.shape != largest.shape or maps.shape != expected.shape:
            raise PadimEdgeError(
                f"it gives scores {scores.shape} and maps {maps.shape} for {batch} frame(s)"
            )
        error = max(
            float(np.abs(maps - expected).max()), float(np.abs(scores - largest).max())
        ) / float(largest.max())
        if not error <= TOLERANCE:  # nor NaN
            raise PadimEdgeError(
                f"it gives WRONG SCORES: off by {error:.1e} of the largest value in a batch of "
                f"{batch}, at most {TOLERANCE:g} is allowed: do not use this engine here"
            )


def answer(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Score maps [N, H, W] of the model in float64, without an inference library."""
    values = _constants()
    pyramid = Model(proto=None, backbone_info=INFO).pyramid()  # type: ignore[arg-type]  # no graph
    pixels = images.transpose(0, 3, 1, 2).astype(np.float64)
    fine = _convolved((pixels - values["centre"]) * values["scale"], values["fine"])
    coarse = _convolved(fine, values["coarse"])
    count, (parents, positions) = len(images), (level.positions for level in pyramid.levels)
    below = positions // parents
    z0 = pyramid.to_tree(0, coarse - values["mean.0"]).reshape(count, parents, -1)
    z1 = pyramid.to_tree(1, fine - values["mean.1"]).reshape(count, positions, -1)
    y0 = np.einsum("pij,npj->npi", values["0.0"], z0, dtype=np.float64)
    y1 = np.einsum("pij,npj->npi", values["1.0"], z0.repeat(below, axis=1), dtype=np.float64)
    y1 += np.einsum("pij,npj->npi", values["1.1"], z1, dtype=np.float64)
    squared = (y1**2).sum(axis=2) + (y0**2).sum(axis=2).repeat(below, axis=1)
    distance = pyramid.from_tree(np.sqrt(squared).T)
    return Smoothing.of(pyramid, INFO.image_size, SIGMA)(distance)


def _convolved(maps: NDArray[Any], kernel: NDArray[Any]) -> NDArray[np.float64]:
    """Convolution whose windows do not overlap, as all of this model's."""
    count, channels, height, width = maps.shape
    side = kernel.shape[2]
    tiles = maps.reshape(count, channels, height // side, side, width // side, side)
    convolved: NDArray[np.float64] = np.einsum("ncyaxb,dcab->ndyx", tiles, kernel, dtype=np.float64)
    return convolved


def _constants() -> dict[str, NDArray[Any]]:
    """The same arbitrary values each time; only the whitening's form (triangular) matters."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape).astype(np.float32)

    scale = 1 / (255 * np.array(INFO.std, dtype=np.float32))
    values: dict[str, NDArray[Any]] = {
        "centre": 255 * np.array(INFO.mean, dtype=np.float32).reshape(1, 3, 1, 1),
        "scale": scale.reshape(1, 3, 1, 1),
        "fine": normal(2, 3, 4, 4) / 7,
        "coarse": normal(3, 2, 2, 2) / 3,
        "mean.0": normal(1, 3, 4, 4),
        "mean.1": normal(1, 2, 8, 8),
    }
    for key, shape in {"0.0": (16, 3, 3), "1.0": (64, 2, 3), "1.1": (64, 2, 2)}.items():
        rows = normal(*shape).astype(np.float16)
        values[key] = np.tril(rows) if key[0] == key[2] else rows
    return values
