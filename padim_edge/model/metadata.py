"""Metadata: what a graph cannot say for itself, as JSON beside it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import onnx

from padim_edge import __version__
from padim_edge.errors import ModelError, UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.pyramid import Layer, Pyramid

FORMAT = 1


PREFIX = "padim_edge."


COMMANDS = {"embedding": "export", "padim": "fit"}
"""Kind of file -> the command that makes it."""

PRECISIONS = ("float32", "float16")
"""Of a backbone."""

CONSTANTS = ("float32", "float16", "int8")
"""How the whitening is stored."""

COVARIANCES = ("sample", "ledoit-wolf")
"""Estimators of the covariance."""


@dataclass(frozen=True)
class BackboneInfo:
    """What embedding.onnx computes.

    Attributes:
        backbone: torchvision's name of the network.
        layers: names of its nodes, in the order of the concatenation.
        layer_channels: channels of each layer before selection.
        layer_shapes: (h, w) of each layer.
        channels: chosen indices into the concatenation, in the order of ``embedding``.
        selection: how they were chosen, in words.
        image_size: (H, W) of the input.
        weights: where they come from.
        weights_sha256: of the weights' file; of nothing (empty) for random weights.
        precision: of the backbone, "float32" or "float16"; everything around it is float32.
        mean: subtracted from RGB in 0..1.
        std: what the difference is divided by.
    """

    backbone: str
    layers: tuple[str, ...]
    layer_channels: tuple[int, ...]
    layer_shapes: tuple[tuple[int, int], ...]
    channels: tuple[int, ...]
    selection: str
    image_size: tuple[int, int]
    weights: str
    weights_sha256: str
    precision: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def selected(self) -> tuple[tuple[int, ...], ...]:
        """Chosen channels of each layer, counted within the layer, in the order of choice."""
        starts = np.cumsum([0, *self.layer_channels])
        return tuple(
            tuple(int(c - low) for c in self.channels if low <= c < high)
            for low, high in itertools.pairwise(starts)
        )

    def pyramid_layers(self) -> list[Layer]:
        """The layers from which something was chosen, with their selected channels."""
        return [
            Layer(name, len(chosen), *shape)
            for name, chosen, shape in zip(
                self.layers, self.selected(), self.layer_shapes, strict=True
            )
            if chosen
        ]


@dataclass(frozen=True)
class DetectorInfo:
    """What padim.onnx adds: how images are prepared, how the fit was made, when to raise an alarm.

    Attributes:
        preprocess: from any image to the graph's input.
        covariance: "sample" or "ledoit-wolf".
        eps: added to the diagonal of the sample covariance; 0 for Ledoit-Wolf.
        sigma: of the Gaussian filter, in pixels of the score map.
        constants: "float16", "float32" or "int8": how the whitening is stored.
        images: number of good images in the fit.
        threshold: a frame whose score exceeds it is anomalous.
        false_alarm_rate: the rate the threshold was set for.
        calibration: how the held-out scores of good images were made.
        good_scores: those scores, sorted; percentiles are taken among them.
    """

    preprocess: Preprocess
    covariance: str
    eps: float
    sigma: float
    constants: str
    images: int
    threshold: float
    false_alarm_rate: float
    calibration: str
    good_scores: tuple[float, ...]


def _fields(proto: onnx.ModelProto, kind: str | None) -> dict[str, Any]:
    """Our metadata, after checking that this file is ours, of this format and of this kind."""
    texts = {
        entry.key[len(PREFIX) :]: entry.value
        for entry in proto.metadata_props
        if entry.key.startswith(PREFIX)
    }
    try:
        fields = {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"its metadata is damaged ({error}); write the file again") from error
    if "format" not in fields:
        raise ModelError(
            "this ONNX file was not made by padim-edge: make one with padim-edge export and fit"
        )
    if fields["format"] != FORMAT:
        raise ModelError(
            f"its format is version {fields['format']}, padim-edge {__version__} reads version "
            f"{FORMAT}: install the padim-edge it was made with "
            f"({fields.get('tool_version', 'unknown')}), or make it again"
        )
    found = fields.get("kind")
    if found not in COMMANDS:
        raise ModelError("its metadata lacks 'kind': make the file again")
    if kind is not None and found != kind:
        known = {"padim": "a detector", "embedding": "an embedding"}
        raise ModelError(
            f"this is {known[found]} (made by padim-edge {COMMANDS[found]}); {known[kind]} "
            f"(made by padim-edge {COMMANDS[kind]}) is needed here"
        )
    return fields


def _check_fields(embedding: BackboneInfo, detector_info: DetectorInfo | None) -> None:
    """Refuse metadata whose parts do not fit together, before anything is computed from it."""
    count = len(embedding.layers)
    sides = [side for shape in embedding.layer_shapes for side in shape]
    total = sum(embedding.layer_channels)
    channels = embedding.channels
    for fits, name in (
        (count == len(embedding.layer_channels) == len(embedding.layer_shapes), "layers"),
        (all(side > 0 for side in [*sides, *embedding.image_size]), "layer_shapes"),
        (channels and len(set(channels)) == len(channels), "channels"),
        (all(0 <= channel < total for channel in channels), "channels"),
        (embedding.precision in PRECISIONS, "precision"),
        (not detector_info or detector_info.covariance in COVARIANCES, "covariance"),
        (
            not detector_info or detector_info.constants in CONSTANTS,
            "constants",
        ),
        (not detector_info or detector_info.preprocess.size == embedding.image_size, "preprocess"),
        (not detector_info or detector_info.good_scores, "good_scores"),
    ):
        if not fits:
            raise ModelError(f"its metadata has a wrong '{name}': make the file again")
    try:
        Pyramid.coarse_to_fine(embedding.pyramid_layers())
    except UsageError as error:
        raise ModelError(f"its metadata has a wrong 'layer_shapes': {error}") from error


T = TypeVar("T")


def _build(cls: type[T], fields: Mapping[str, Any]) -> T:
    """A dataclass from JSON values, each checked against its annotation."""
    values = {}
    for name, hint in get_type_hints(cls).items():
        if name not in fields:
            raise ModelError(f"its metadata lacks '{name}': make the file again")
        try:
            values[name] = _typed(fields[name], hint)
        except (TypeError, ValueError, OverflowError, UsageError) as error:
            raise ModelError(f"its metadata has a wrong '{name}' ({error})") from error
    return cls(**values)


def _typed(value: Any, hint: Any) -> Any:
    """A JSON value as the annotated type: str, int, float, Preprocess or tuples of them."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list):
            raise TypeError("a list is expected")
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{len(kinds)} values are expected")
        return tuple(_typed(item, kind) for item, kind in zip(value, kinds, strict=True))
    if hint is Preprocess:
        return Preprocess.from_json(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"{hint.__name__} is expected")
    if hint is float and not math.isfinite(value):
        raise ValueError("a finite number is expected")
    return value
