"""torchvision's classification networks, trained on ImageNet."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from padim_edge.errors import PadimEdgeError, first_line
from padim_edge.export.sources import Colour, Source, Weights

# ImageNet statistics of RGB in 0..1: what torchvision's weights expect, but for three networks.
# Two of those convert the input themselves (transform_input), only when built with weights.
MEAN: Colour = (0.485, 0.456, 0.406)
STD: Colour = (0.229, 0.224, 0.225)
HALF: Colour = (0.5, 0.5, 0.5)
NORMALISED_BY_HALF = {"googlenet", "inception_v3", "efficientnet_v2_l"}

RESNET_LAYERS = ("layer1", "layer2", "layer3")
# Layers at 1/4, 1/8 and 1/16 of the image, and the number of channels to choose: the paper's for
# ResNet-18 and WideResNet-50-2, and by kinship for the others.
DEFAULTS: dict[str, tuple[tuple[str, ...], int]] = {
    "resnet18": (RESNET_LAYERS, 100),
    "resnet34": (RESNET_LAYERS, 100),
    "resnet50": (RESNET_LAYERS, 550),
    "wide_resnet50_2": (RESNET_LAYERS, 550),
    "mobilenet_v3_large": (("features.3", "features.6", "features.12"), 100),
}

# Of weights for which torchvision names none.
LICENCE = (
    "none of their own: torchvision is BSD-3-Clause and leaves the terms of ImageNet to the user"
)


class Torchvision(Source):
    """See `Source`."""

    def names(self) -> Sequence[str]:
        """Its classification networks."""
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def build(self, name: str) -> nn.Module:
        """As torchvision initialises it."""
        network: nn.Module = torchvision.models.get_model(name, weights=None)
        return network

    def defaults(self, name: str, network: nn.Module) -> tuple[tuple[str, ...], int] | None:  # noqa: ARG002
        """From the table above."""
        return DEFAULTS.get(name)

    def normalisation(self, name: str) -> tuple[Colour, Colour]:
        """ImageNet's statistics or halves."""
        return (HALF, HALF) if name in NORMALISED_BY_HALF else (MEAN, STD)

    def weights(self, name: str) -> Weights:
        """With terms of their own (SWAG's forbid commerce) where torchvision names such."""
        chosen = _weights(name)
        return Weights(f"torchvision {chosen}", chosen.meta.get("license", LICENCE))

    def fetch(self, name: str) -> Path:
        """From the cache that torchvision keeps, or into it."""
        return download(_weights(name).url, name)

    def renamed(self, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:  # noqa: ARG002
        """Its files for densenet have the names of 2017: norm.1 for norm1."""
        old = re.compile(r"(denselayer\d+\.\w+)\.([12]\.)")
        return {old.sub(r"\1\2", key): value for key, value in state.items()}


def download(url: str, name: str, kept: str = "") -> Path:
    """A file of weights from the cache that torch keeps, or into it.

    Not by torch's own loader: that one would run code from a tampered file.

    Args:
        url: of the file; a hash in its name is compared.
        name: of the network, for an error.
        kept: the file's name in the cache, where that in the address is everybody's.

    Raises:
        PadimEdgeError: it cannot be had.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / (kept or Path(urlparse(url).path).name)
    if not file.exists():
        digest = torch.hub.HASH_REGEX.search(file.name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                url, str(file), digest and digest[1], progress=sys.stderr.isatty()
            )
        except (OSError, HTTPException, RuntimeError) as error:
            raise PadimEdgeError(
                f"cannot download the default weights of {name} ({url}): "
                f"{first_line(error)}; fetch that file on a machine with a network and "
                "give it with --weights FILE"
            ) from error
    return file


def _weights(name: str) -> Any:
    """Torchvision's record of the default weights.

    V1 where there is one: the weights behind the published PaDiM figures. V2 scores higher on
    ImageNet and lower here.
    """
    members = torchvision.models.get_model_weights(name)
    return getattr(members, "IMAGENET1K_V1", None) or members.DEFAULT
