"""The export command: build, choose, trace, validate, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.export import backbones, channels
from padim_edge.export.trace import assemble
from padim_edge.files import atomic_write
from padim_edge.model.file import Model, write
from padim_edge.runtime.graphs import check_installed, open_graph

# Largest difference between graph and network, relative to the largest value of the embedding.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


@dataclass(frozen=True)
class Exported:
    """A written embedding.onnx: its model, its size in bytes, and how far it is from torch."""

    model: Model
    size: int
    difference: float


def export_backbone(
    output: str | Path,
    backbone: str = "resnet18",
    layers: tuple[str, ...] | None = None,
    dims: channels.Dims = None,
    channels_file: Path | None = None,
    image_size: tuple[int, int] = (224, 224),
    weights: str = "default",
    seed: int = 1024,
    precision: str = "float32",
    source: str | None = None,
) -> Exported:
    """Export a backbone with its channel selection to ``output``.

    Args:
        output: the file to write.
        backbone: a network of `sources.SOURCES`.
        layers: its nodes to use; None for the defaults.
        dims: channels to choose, in all (one number), per layer, or "all"; None for the default.
        channels_file: an explicit list of channels instead.
        image_size: (H, W), multiples of 32.
        weights: "default", "random" or a file.
        seed: of the choice of channels and of random weights.
        precision: of the backbone, one of `TOLERANCES`; int8 is made of a float32 one, on photos.
        source: the one of `sources.SOURCES` to take it from; None for the first that has it.

    Raises:
        PadimEdgeError: bad arguments, weights that cannot be had, or a graph that differs from
            the network; nothing is written then.
    """
    if precision not in TOLERANCES:
        raise UsageError(
            f"--precision {precision}: choose {' or '.join(TOLERANCES)}; int8 is made of float32 "
            "on photos of good parts: padim-edge quantize"
        )
    with atomic_write(output) as stream:
        model, difference = traced(
            backbone, layers, dims, channels_file, image_size, weights, seed, precision, source
        )
        size = write(stream, model)
    return Exported(model, size, difference)


def traced(
    backbone: str,
    layers: tuple[str, ...] | None,
    dims: channels.Dims,
    channels_file: Path | None,
    image_size: tuple[int, int],
    weights: str,
    seed: int,
    precision: str,
    source: str | None,
) -> tuple[Model, float]:
    """What `export_backbone` writes, and how far it is from torch; see there."""
    check_installed()  # what `validate` needs, now, not after the trace
    network = backbones.load(backbone, layers, weights, image_size, seed, source)
    chosen, selection = channels.choose(network.channels, dims, channels_file, seed, network.dims)
    model = assemble(network, chosen, selection, precision)
    return model, validate(model, network, seed)


def validate(model: Model, network: backbones.Backbone, seed: int) -> float:
    """Compare the graph in ONNX Runtime with the network in torch on random images.

    Batches of 1 and 3, so that a batch dimension that is dynamic in name only is found.

    Returns:
        The largest difference, relative to the largest value of the embedding.

    Raises:
        PadimEdgeError: it exceeds what `TOLERANCES` allows.
    """
    generator = np.random.default_rng(seed)
    tolerance = TOLERANCES[model.backbone_info.precision]
    pyramid = model.pyramid()
    worst = 0.0
    with open_graph(model.proto.SerializeToString()) as graph:
        for batch in (1, 3):
            shape = (batch, *network.image_size, 3)
            image = generator.integers(0, 256, shape, dtype=np.uint8)
            ours = graph.run({"image": image}, ["embedding"])[0]
            size = (pyramid.height, pyramid.width)
            theirs = embed(network, model.backbone_info.channels, size, image).numpy()
            if not np.isfinite(theirs).all():
                raise PadimEdgeError(
                    f"{network.name} gives NaN or infinity with the weights "
                    f"'{network.weights}': check them"
                )
            scale = max(float(np.abs(theirs).max()), np.finfo(np.float32).tiny)
            difference = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
            worst = float(np.maximum(worst, difference / scale))  # NaN stays NaN
    if not worst <= tolerance:
        raise PadimEdgeError(
            f"the exported graph differs from torch by {worst:.1e} of the largest value "
            f"({tolerance:.0e} is allowed), so nothing was written; please report this with "
            "the versions of torch and onnxruntime"
        )
    return worst


@torch.inference_mode()
def embed(
    network: backbones.Backbone,
    chosen: tuple[int, ...],
    size: tuple[int, int],
    image: NDArray[np.uint8],
) -> Tensor:
    """The embedding by torch alone, the way PaDiM defines it: repeat, concatenate, then select.

    Args:
        network: the truncated backbone.
        chosen: channels of the concatenation.
        size: (h, w) of the finest layer that any of them is from.
        image: uint8 [N, H, W, 3].

    Returns:
        float32 [N, d, h, w].
    """
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(network.mean).view(1, 3, 1, 1)
    std = torch.tensor(network.std).view(1, 3, 1, 1)
    maps = network.network((pixels - mean) / std)
    repeated = [functional.interpolate(m, size=size, mode="nearest") for m in maps]
    return torch.cat(repeated, dim=1)[:, list(chosen)]
