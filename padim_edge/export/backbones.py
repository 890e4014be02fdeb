"""The truncated backbone: a network of any source up to the layers that are used."""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from padim_edge.errors import MissingDependencyError, PadimEdgeError, UsageError, first_line
from padim_edge.export import sources
from padim_edge.export.sources import Colour, Source, Weights

# Channels to choose where a source has no default.
DIMS = 100


@dataclass(frozen=True)
class Backbone:
    """A truncated network in evaluation mode.

    Attributes:
        name: its source's name for it.
        layers: nodes whose outputs it returns, in the order asked for.
        network: module, float32 [N, 3, H, W] normalised -> tuple of [N, C, h, w].
        image_size: (H, W).
        mean: subtracted from RGB in 0..1.
        std: what the difference is divided by.
        channels: C per layer.
        shapes: (h, w) per layer.
        weights: where they come from, in words.
        weights_sha256: of their file; empty for random ones.
        licence: of default weights, as their source has it; empty where nothing is known.
        dims: number of channels to choose by default.
    """

    name: str
    layers: tuple[str, ...]
    network: nn.Module
    image_size: tuple[int, int]
    mean: Colour
    std: Colour
    channels: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    weights: str
    weights_sha256: str
    licence: str
    dims: int


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
    name: str,
    layers: tuple[str, ...] | None,
    weights: str,
    image_size: tuple[int, int],
    seed: int,
    source: str | None = None,
) -> Backbone:
    """Build a backbone, truncate it behind its last used layer, and load its weights.

    Args:
        name: a network of any of the `sources.SOURCES`.
        layers: nodes to use; None for the default ones of this network.
        weights: "default" (its source's), "random", or a file.
        image_size: (H, W), multiples of 32.
        seed: for random weights.
        source: the one of `sources.SOURCES` whose network of that name it is; None for the first
            that has one.

    Raises:
        UsageError: unknown network or layer, or a layer that is no feature map.
        PadimEdgeError: the weights cannot be had or do not fit.
    """
    check_size(image_size)
    origin = sources.find(name, source)
    tracing = dict(origin.tracing)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # networks announce changes, the tracer its two modes
        torch.manual_seed(seed)
        whole = origin.build(name).eval()
        nodes = get_graph_node_names(whole, tracing)[1][1:]  # the first is the image itself
        candidates = _candidates(whole, nodes)
        default_layers, dims = origin.defaults(name, whole) or (None, DIMS)
        layers = default_layers if layers is None else layers
        if layers is None:
            raise UsageError(
                f"no default layers for '{name}': name them with --layers, among {candidates}"
            )
        ends = _ends(name, layers, nodes, candidates)
        extractor = create_feature_extractor(whole, ends, tracer_kwargs=tracing)
    _forbid_overwriting(extractor)
    known, digest = _load_weights(extractor, whole, origin, name, weights, seed)
    network = _Ordered(extractor, layers).eval().requires_grad_(False)
    shapes = _shapes(network, name, image_size, candidates)
    mean, std = origin.normalisation(name)
    return Backbone(
        name=name,
        layers=layers,
        network=network,
        image_size=image_size,
        mean=mean,
        std=std,
        channels=tuple(channels for channels, _, _ in shapes),
        shapes=tuple((height, width) for _, height, width in shapes),
        weights=known.origin,
        weights_sha256=digest,
        licence=known.licence,
        dims=dims,
    )


def check_size(image_size: tuple[int, int]) -> None:
    """Refuse an (H, W) that `load` would refuse, before any work.

    Raises:
        UsageError: a side is no positive multiple of 32.
    """
    if any(side % 32 or side < 32 for side in image_size):
        raise UsageError(
            f"--image-size {image_size[0]}x{image_size[1]}: height and width must be positive "
            "multiples of 32"
        )


def _ends(name: str, layers: tuple[str, ...], nodes: list[str], candidates: str) -> dict[str, str]:
    """The last node of each layer -> the layer."""
    if len(set(layers)) != len(layers):
        raise UsageError(f"--layers {','.join(layers)}: a layer is named twice")
    ends: dict[str, str] = {}
    for layer in layers:
        own = [node for node in nodes if node == layer or node.startswith(layer + ".")]
        if not own:
            raise UsageError(
                f"{name} has no layer '{layer}'; choose with --layers among {candidates}"
            )
        # By its last node: by name, torchvision takes a wrong one where two layers end there.
        if own[-1] in ends:
            raise UsageError(
                f"--layers {','.join(layers)}: {ends[own[-1]]} and {layer} of {name} have "
                "the same output; name one of them"
            )
        ends[own[-1]] = layer
    return ends


def _forbid_overwriting(extractor: GraphModule) -> None:
    """Keep the output of a layer from being overwritten by an in-place ReLU behind it."""
    modules: Iterable[Any] = extractor.modules()
    for module in modules:
        if hasattr(module, "inplace"):
            module.inplace = False
    for node in extractor.graph.nodes:
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)
    extractor.recompile()


def _candidates(whole: nn.Module, nodes: list[str]) -> str:
    """Modules among a network's nodes, two levels deep at most: enough to choose from."""
    modules = dict(whole.named_modules())
    names = dict.fromkeys(".".join(node.split(".")[:2]) for node in nodes)
    return ", ".join(name for name in names if name in modules)


def _shapes(
    network: _Ordered, name: str, image_size: tuple[int, int], candidates: str
) -> list[tuple[int, int, int]]:
    """(C, h, w) of each output; refuses one that is no feature map."""
    height, width = image_size
    # torch.fx prints the generated code of a network that fails.
    with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
        try:
            outputs = network(torch.zeros(1, 3, height, width))
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"{name} takes no images of {height}x{width} "
                f"({first_line(error)}): choose another --image-size"
            ) from error
        # C and h do not depend on the image's width. In [N, h, w, C], as swin has it, and in
        # attention, the dimensions at their places do. (Some networks take one size only.)
        wider = outputs
        with contextlib.suppress(RuntimeError, AssertionError):
            wider = network(torch.zeros(1, 3, height, width + 32))
    for layer, output, other in zip(network.layers, outputs, wider, strict=True):
        are_maps = isinstance(output, Tensor) and output.ndim == 4
        if not are_maps or output.shape[:3] != other.shape[:3]:
            raise UsageError(
                f"layer '{layer}' of {name} gives no feature maps [N, C, h, w]: "
                f"choose others with --layers, among {candidates}"
            )
    return [(maps.shape[1], maps.shape[2], maps.shape[3]) for maps in outputs]


def _load_weights(
    extractor: nn.Module, whole: nn.Module, source: Source, name: str, weights: str, seed: int
) -> tuple[Weights, str]:
    """Load weights into the truncated network; returns where they come from and their SHA-256."""
    if weights == "random":
        return Weights(f"random (seed {seed})", ""), ""
    if weights == "default":
        path, known = source.fetch(name), source.weights(name)
    else:
        path = Path(weights)
        known = Weights(path.name, "")
    state, digest = read_state(path)
    state = source.renamed(state, whole)
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
    return known, digest


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name from a file of torch weights, and the file's SHA-256. Runs no code in it.

    Raises:
        PadimEdgeError: it cannot be read, is damaged, or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read the weights {path}: {error.strerror or error}; give a file of "
            "weights, or 'default', or 'random'"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if content[8:9] == b"{":  # safetensors: the length of a JSON header, and the header
        return _read_safetensors(path, content), digest
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubts about the pickle's version
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes torch raises whatever it stumbles over
        raise PadimEdgeError(
            f"{path} is not a file of torch weights (a state dict saved by torch.save): "
            f"{first_line(error)}"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise PadimEdgeError(
            f"{path} holds no state dict: save one with torch.save(model.state_dict(), FILE)"
        )
    return state, digest


def _read_safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load as read
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"reading {path}", "safetensors", "timm") from error
    try:
        state: dict[str, Tensor] = read(content)
    except Exception as error:  # SafetensorError, and what torch stumbles over
        raise PadimEdgeError(
            f"{path} is damaged: not a file of safetensors: {first_line(error)}"
        ) from error
    return state
