"""The truncated backbone: a torchvision classification network up to the layers that are used."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from padim_edge.errors import PadimEdgeError, UsageError

# ImageNet statistics of RGB in 0..1: what all torchvision classification weights expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

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


@dataclass(frozen=True)
class Backbone:
    """A truncated network in evaluation mode.

    Attributes:
        name: torchvision's name.
        layers: nodes whose outputs it returns, in the order asked for.
        network: module, float32 [N, 3, H, W] normalised -> tuple of [N, C, h, w].
        image_size: (H, W).
        channels: C per layer.
        shapes: (h, w) per layer.
        weights: where they come from, in words.
        weights_sha256: of their file; empty for random ones.
    """

    name: str
    layers: tuple[str, ...]
    network: nn.Module
    image_size: tuple[int, int]
    channels: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    weights: str
    weights_sha256: str


class _Ordered(nn.Module):
    """Outputs of a feature extractor as a tuple in the order of the layers."""

    def __init__(self, extractor: nn.Module, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.extractor = extractor
        self.layers = layers

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.extractor(image)
        return tuple(maps[layer] for layer in self.layers)


def load(
    name: str, layers: tuple[str, ...] | None, weights: str, image_size: tuple[int, int], seed: int
) -> Backbone:
    """Build a backbone, truncate it behind its last used layer, and load its weights.

    Args:
        name: a classification network of torchvision.
        layers: nodes to use; None for the default ones of this network.
        weights: "default" (torchvision's ImageNet weights), "random", or a file.
        image_size: (H, W), multiples of 32.
        seed: for random weights.

    Raises:
        UsageError: unknown network or layer, or a layer that is no feature map.
        PadimEdgeError: the weights cannot be had or do not fit.
    """
    if any(side % 32 or side < 32 for side in image_size):
        raise UsageError(
            f"--image-size {image_size[0]}x{image_size[1]}: height and width must be positive "
            "multiples of 32"
        )
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UsageError(f"unknown backbone '{name}'; torchvision has {', '.join(names)}")
    if layers is None:
        if name not in DEFAULTS:
            raise UsageError(
                f"no default layers for '{name}': name them with --layers "
                f"(defaults exist for {', '.join(DEFAULTS)})"
            )
        layers = DEFAULTS[name][0]
    if len(set(layers)) != len(layers):
        raise UsageError(f"--layers {','.join(layers)}: a layer is named twice")

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet and inception announce a change of their init
        torch.manual_seed(seed)
        whole = torchvision.models.get_model(name, weights=None).eval()
        known = get_graph_node_names(whole)[1]
        extractor = _truncate(whole, name, layers, known)
    origin, digest = _load_weights(extractor, name, weights, seed)
    network = _Ordered(extractor, layers).eval().requires_grad_(False)
    with torch.inference_mode():
        maps = network(torch.zeros(1, 3, *image_size))
    for layer, output in zip(layers, maps, strict=True):
        if output.ndim != 4 or min(output.shape[2:]) < 1:
            raise UsageError(
                f"layer '{layer}' of {name} gives shape {tuple(output.shape)}, not feature maps "
                f"[N, C, h, w]: choose others with --layers, among {_candidates(known)}"
            )
    return Backbone(
        name,
        layers,
        network,
        image_size,
        tuple(int(m.shape[1]) for m in maps),
        tuple((int(m.shape[2]), int(m.shape[3])) for m in maps),
        origin,
        digest,
    )


def _truncate(
    whole: nn.Module, name: str, layers: tuple[str, ...], known: list[str]
) -> nn.Module:
    for layer in layers:
        if not any(node == layer or node.startswith(layer + ".") for node in known):
            raise UsageError(
                f"{name} has no layer '{layer}'; choose with --layers among {_candidates(known)}"
            )
    extractor: nn.Module = create_feature_extractor(whole, {layer: layer for layer in layers})
    return extractor


def _candidates(nodes: list[str]) -> str:
    """The modules that a node list names, two levels deep at most: enough to choose from."""
    modules = [".".join(node.split(".")[:2]) if "." in node else node for node in nodes]
    return ", ".join(dict.fromkeys(modules))


def _load_weights(extractor: nn.Module, name: str, weights: str, seed: int) -> tuple[str, str]:
    """Load weights into the truncated network; returns their origin and SHA-256."""
    if weights == "random":
        return f"random (seed {seed})", ""
    if weights == "default":
        path, origin = _download(name)
    else:
        path = Path(weights)
        origin = path.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read the weights {path}: {error.strerror or error}; give a file of "
            f"torchvision weights for {name}, or 'default', or 'random'"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise PadimEdgeError(
            f"{path} is not a file of torch weights (a state dict saved by torch.save): "
            f"{str(error).splitlines()[0]}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise PadimEdgeError(
            f"{path} holds no state dict of {name}: save one with torch.save(model.state_dict())"
        )
    # Keys of layers behind the cut, such as fc, are not asked for and may be there or not.
    needed = {k for k in extractor.state_dict() if not k.endswith("num_batches_tracked")}
    missing = sorted(needed - state.keys())
    if missing:
        raise PadimEdgeError(
            f"{path} lacks {len(missing)} of the {len(needed)} tensors that {name} needs here: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    own = extractor.state_dict()
    misfits = [k for k in sorted(needed) if state[k].shape != own[k].shape]
    if misfits:
        key = misfits[0]
        raise PadimEdgeError(
            f"{path} does not fit {name}: '{key}' has shape {tuple(state[key].shape)}, "
            f"{tuple(own[key].shape)} is needed"
        )
    extractor.load_state_dict({k: state[k] for k in needed}, strict=False)
    return origin, hashlib.sha256(content).hexdigest()


def _download(name: str) -> tuple[Path, str]:
    """The ImageNet weights of torchvision, from its cache or the network."""
    members = torchvision.models.get_model_weights(name)
    # V1 where there is one: the weights behind the published PaDiM figures. V2 scores higher on
    # ImageNet and lower here.
    weights = getattr(members, "IMAGENET1K_V1", None) or members.DEFAULT
    try:
        weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise PadimEdgeError(
            f"cannot download the default weights of {name} ({weights.url}): {reason}; fetch that "
            "file on a machine with a network and give it with --weights FILE"
        ) from error
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    return file, f"torchvision {weights}"
