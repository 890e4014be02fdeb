"""The embedding by torchvision alone, for tests of the export.

Hooks on the whole network, torchvision's normalisation, nearest repetition, concatenation and then
the choice of channels. Nothing of `padim_edge.export` takes part in it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torchvision.transforms.functional import normalize

RESNET = ("layer1", "layer2", "layer3")
State = dict[str, torch.Tensor]


def network(name: str) -> torch.nn.Module:
    """A network as torchvision builds it to take weights."""
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    if name in ("googlenet", "inception_v3"):
        options["transform_input"] = True  # torchvision sets it wherever there are weights
    return torchvision.models.get_model(name, weights=None, **options).eval()


def random_state(name: str, seed: int = 0) -> State:
    """Random weights whose batch norms do something, unlike those of a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network(name)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.3, 0.7)
                torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.state_dict()


def feature_maps(
    name: str,
    state: State,
    layers: Sequence[str],
    images: NDArray[np.uint8],
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> list[torch.Tensor]:
    """Outputs of layers for uint8 [N, H, W, 3], caught by hooks on the whole network."""
    model = network(name)
    absent = set(model.state_dict()) - set(state)
    assert all(k.startswith(("layer4", "fc")) or k.endswith("tracked") for k in absent)
    model.load_state_dict(state, strict=False)
    caught: dict[str, torch.Tensor] = {}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: caught.update({layer: output.clone()})
        )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div(255)
    with torch.no_grad():
        model(normalize(pixels, list(mean), list(std)))
    return [caught[layer] for layer in layers]


def embedding_of(maps: Sequence[torch.Tensor], chosen: Sequence[int]) -> NDArray[np.float32]:
    """Repeat to the finest of the layers that are used, concatenate, choose."""
    ends = np.cumsum([m.shape[1] for m in maps])
    used = {int(np.searchsorted(ends, c, side="right")) for c in chosen}
    height, width = max(tuple(maps[i].shape[2:]) for i in used)
    repeated = []
    for m in maps:
        cropped = m[:, :, :height, :width]  # of an unused finer layer only its places count
        ratio = height // cropped.shape[2]
        repeated.append(cropped.repeat_interleave(ratio, dim=2).repeat_interleave(ratio, dim=3))
    return torch.cat(repeated, dim=1).index_select(1, torch.tensor(list(chosen))).numpy()


def reference_draw(total: int, count: int) -> list[int]:
    """The choice of the reference implementation, by the global generator."""
    state = random.getstate()
    try:
        random.seed(1024)
        return random.sample(range(total), count)
    finally:
        random.setstate(state)
