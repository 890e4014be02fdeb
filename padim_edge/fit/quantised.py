"""Quantised: an embedding in int8, calibrated on good photos, and held against the float one.

Before the fit, not after it: means and covariances are then taken of what will be judged with, and
absorb most of what the rounding does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.images.batches import OnError, read_batches, refuse
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.file import Model
from padim_edge.progress import Progress, silent
from padim_edge.runtime.graphs import open_graph

PHOTOS = 100
"""That are calibrated on, at most: evenly spread over those given."""

BATCH = 8
TOLERANCE = 0.3
"""Of the features, root mean square relative to the float ones; more than that is a fault."""


@dataclass(frozen=True)
class Quantised:
    """An embedding in int8.

    Attributes:
        model: not yet written.
        photos: that it was calibrated on.
        difference: of its maps from the float ones, per layer: root mean square, relative.
        brightest: value of the prepared photos, 0 to 255.
    """

    model: Model
    photos: int
    difference: dict[str, float]
    brightest: int

    def described(self) -> str:
        """What it is for, what it changes, and how much of it is in int8, in words."""
        target = self.model.backbone_info.quantised_for
        changes = ", ".join(f"{name} {change:.1%}" for name, change in self.difference.items())
        nodes = self.model.proto.graph.node
        dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
        weights = [node.input[1] in dequantised for node in nodes if node.op_type == "Conv"]
        return (
            f"for {target}, calibrated on {self.photos} images, changes {changes} (RMS); "
            f"{sum(weights)} of {len(weights)} convolutions are in int8"
        )


def quantise_embedding(
    embedding: Model,
    images: Sequence[Path],
    preprocess: Preprocess,
    target: str,
    on_error: OnError = refuse,
    progress: Progress = silent,
) -> Quantised:
    """Quantise an embedding on photos.

    Args:
        embedding: in float32.
        images: good photos.
        preprocess: from a photo to the backbone's input.
        target: of `padim_edge.runtime.quantise.TARGETS`.
        on_error: told of each photo that cannot be used, which is then left out.
        progress: called as work goes on.

    Raises:
        UsageError: no such target, or the embedding is not in float32.
        PadimEdgeError: no photo can be used, ONNX Runtime cannot quantise the graph, or the
            features are more than `TOLERANCE` off.
    """
    from padim_edge.runtime.quantise import check_target, quantise  # here: not all have it

    check_target(target)
    info = embedding.backbone_info
    if info.precision != "float32":
        raise UsageError(
            f"{embedding.path or 'the embedding'} is in {info.precision}; int8 is made of a "
            "float32 one: export it with --precision float32"
        )
    count = min(len(images), PHOTOS)
    chosen = [images[place * len(images) // count] for place in range(count)]
    first: list[NDArray[np.uint8]] = []
    used = brightest = 0
    reasons: list[ImageError] = []

    def note(path: Path, error: ImageError) -> None:
        reasons.append(error)
        on_error(path, error)

    def batches() -> Iterator[NDArray[np.uint8]]:
        nonlocal used, brightest
        for _, batch in read_batches(chosen, preprocess, BATCH, note):
            first.extend([] if first else [batch])
            used += len(batch)
            brightest = max(brightest, int(batch.max()))
            progress("calibration", used, len(chosen))
            yield batch
        if not used:
            why = f" ({reasons[-1]})" if reasons else ""
            raise PadimEdgeError(f"no photo to calibrate on{why}: give photos of good parts")

    proto = quantise(embedding.proto, batches(), target)
    model = Model(
        proto,
        dataclasses.replace(info, precision="int8", quantised_for=target),
        extra=embedding.extra,
        path=embedding.path,  # what must not be written over
    )
    difference = _difference(embedding, model, first[0])
    worst = max(difference, key=lambda name: difference[name])
    if not difference[worst] <= TOLERANCE:
        raise PadimEdgeError(
            f"int8 changes {worst} by {difference[worst]:.0%} (root mean square); at most "
            f"{TOLERANCE:.0%} is allowed: stay with float32, or report which backbone this is"
        )
    return Quantised(model, used, difference, brightest)


def _difference(whole: Model, rounded: Model, images: NDArray[np.uint8]) -> dict[str, float]:
    """Per layer, root mean square of the difference over that of the whole one's maps."""
    names = whole.feature_names()
    found = []
    for model in (whole, rounded):
        with open_graph(model.proto.SerializeToString(), "ort") as graph:
            found.append(graph.run({"image": images}, names))
    squares = [
        (name, float(np.square(theirs).mean()), float(np.square(ours - theirs).mean()))
        for name, theirs, ours in zip(names, *found, strict=True)
    ]
    return {name: math.sqrt(error / max(own, 1e-30)) for name, own, error in squares}
