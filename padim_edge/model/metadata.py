"""Metadata: what a graph cannot say for itself, in ``metadata_props`` under ``padim_edge.<field>``.

Each value is JSON; nothing is pickled, nothing is evaluated. The file grows like this: a new field
gets a default that is true of the files made before it, and a reader keeps fields that it does not
know when it writes the file again. So a field may only be added if whoever does not know it still
judges rightly; anything else needs a new `FORMAT`, which older readers refuse.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from padim_edge import __version__
from padim_edge.errors import ModelError, UsageError
from padim_edge.images.preprocess import Preprocess
from padim_edge.model.pyramid import Layer, Pyramid

FORMAT = 1
"""Of all files but those whose scores a reader of it might get wrong: see `ROI_FORMAT`."""

ROI_FORMAT = 2
"""Of detectors with a region of interest, which kernels of before know nothing of."""

PREFIX = "padim_edge."
COMMANDS = {"embedding": "export", "padim": "fit"}
"""Kind of file -> the command that makes it."""

PRECISIONS = ("float32", "float16", "int8")
"""Of a backbone."""

INT8_TARGETS = ("cpu", "openvino", "tensorrt")
"""What an int8 backbone can be made for."""

CONSTANTS = ("float32", "float16", "int8")
"""How the whitening is stored."""

ESTIMATORS = ("sample", "ledoit-wolf")
"""Of the covariance, in a fit."""

DENSE = ("ledoit-wolf", "dense")
"""Covariances whose whitening has one level, with all channels: "dense" are imported ones."""

DIGITS = 16
"""Hexadecimal digits of an image's digest: enough to tell any two of a fit's images apart."""

PRESETS = ("reference", "whitened", "whitened-fine")
"""What the Gaussians are of: chosen channels, as in the paper, or pooled and projected layers."""


@dataclass(frozen=True)
class BackboneInfo:
    """What embedding.onnx computes.

    Attributes:
        backbone: its source's name of the network.
        layers: names of its nodes, in the order of the concatenation.
        layer_channels: channels of each layer before selection.
        layer_shapes: (h, w) of each layer.
        channels: chosen indices into the concatenation, in the order of ``embedding``.
        selection: how they were chosen, in words.
        image_size: (H, W) of the input.
        weights: where they come from.
        weights_sha256: of the weights' file; of nothing (empty) for random weights.
        precision: of the backbone, one of `PRECISIONS`; everything around it is float32.
        mean: subtracted from RGB in 0..1.
        std: what the difference is divided by.
        quantised_for: of an int8 backbone, which runtimes its graph is made for.
        source_layers: of a whitened detector, the backbone's layers that its only layer is made
            of; whole. Empty where ``layers`` are the backbone's own.
        source_channels: channels of each.
        source_shapes: (h, w) of each.
        licence: of the weights, as their source states it; empty where nothing is known.
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
    quantised_for: str = ""
    source_layers: tuple[str, ...] = ()
    source_channels: tuple[int, ...] = ()
    source_shapes: tuple[tuple[int, int], ...] = ()
    licence: str = ""

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

    def backbone_layers(self) -> list[Layer]:
        """The layers as the backbone gives them, before any selection."""
        if self.source_layers:
            parts = (self.source_layers, self.source_channels, self.source_shapes)
        else:
            parts = (self.layers, self.layer_channels, self.layer_shapes)
        return [Layer(name, count, *shape) for name, count, shape in zip(*parts, strict=True)]


@dataclass(frozen=True)
class DetectorInfo:
    """What padim.onnx adds: how images are prepared, how the fit was made, when to raise an alarm.

    Attributes:
        preprocess: from any image to the graph's input.
        covariance: one of `ESTIMATORS`, or "dense": imported from another program.
        eps: added to the diagonal of the sample covariance; 0 for Ledoit-Wolf.
        sigma: of the Gaussian filter, in pixels of the score map.
        constants: "float16", "float32" or "int8": how the whitening is stored.
        images: number of good images in the fit; 0 if unknown, of one that was imported.
        threshold: a frame whose score exceeds it is anomalous.
        false_alarm_rate: the rate the threshold was set for.
        calibration: how the held-out scores of good images were made.
        good_scores: those scores, sorted; percentiles are taken among them.
        aspect_ratios: the smallest and the largest width / height of the images; none in files from
            before they were kept.
        preset: what the Gaussians are of.
        shrinkage: of a whitened preset, alpha, from which eps = alpha / (1 - alpha); else 0.
        pixel_threshold: pixels of an anomalous frame whose score exceeds it belong to what is seen
            in it; 0 in files from before there was one.
        good_pixel_scores: of the images of ``good_scores``, sorted; none if unknown (see
            `padim_edge.model.threshold.pixel_score`).
        judged: share of the score map that is (`padim_edge.images.roi`); elsewhere it is 0, and the
            graph has a constant that says where.
        digests: of the prepared pixels of all images that the fit or the threshold rests on: the
            first `DIGITS` hexadecimal digits of their SHA-256; none if unknown.
        appearance: how the images of the fit look as a whole, name -> numbers
            (`padim_edge.images.appearance`); none if unknown. Nothing is judged by it.
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
    aspect_ratios: tuple[float, ...] = ()
    preset: str = "reference"
    shrinkage: float = 0.0
    pixel_threshold: float = 0.0
    good_pixel_scores: tuple[float, ...] = ()
    digests: tuple[str, ...] = ()
    judged: float = 1.0
    appearance: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class Metadata:
    """All that a file says of itself.

    Attributes:
        backbone_info: what both kinds know.
        detector_info: None for embedding.onnx.
        extra: ``metadata_props`` that this version does not know, key -> text: kept as they are.
        checksum: of the constants (`padim_edge.model.checksum`); empty in files from before it.
    """

    backbone_info: BackboneInfo
    detector_info: DetectorInfo | None
    extra: Mapping[str, str]
    checksum: str = ""

    @property
    def kind(self) -> str:
        """Which of the two files it is."""
        return "padim" if self.detector_info else "embedding"

    def to_props(self) -> dict[str, str]:
        """Key -> text, as `of` reads them."""
        info = self.detector_info
        fields = {
            "format": ROI_FORMAT if info and info.judged < 1 else FORMAT,
            "kind": self.kind,
            "tool_version": __version__,
            # With the kind: a version that does not know this field hands an embedding's on to the
            # detector that it makes of it.
            **({"checksum": f"{self.kind}:{self.checksum}"} if self.checksum else {}),
            **_written(self.backbone_info),
        }
        if self.detector_info:
            fields |= _written(self.detector_info)
            # Last one that no file may lack: a file that was cut within the metadata is noticed.
            del fields["preprocess"]
            fields["preprocess"] = self.detector_info.preprocess.to_json()
        return {PREFIX + name: json.dumps(value) for name, value in fields.items()} | dict(
            self.extra
        )

    @classmethod
    def of(cls, props: Mapping[str, str], kind: str | None) -> Metadata:
        """Read and check the metadata of a file.

        Args:
            props: key -> text.
            kind: "embedding" or "padim": what is expected; None takes either.

        Raises:
            ModelError: not ours, another format, the other kind, a field that is missing or
                wrong, or fields that contradict each other.
        """
        header = _parsed(props, _HEADER)
        is_padim = _kind(header, kind) == "padim"
        names = _names(BackboneInfo) + (_names(DetectorInfo) if is_padim else ())
        fields = _parsed(props, names)
        backbone_info = _build(BackboneInfo, fields)
        detector_info = _build(DetectorInfo, fields) if is_padim else None
        _check_fields(backbone_info, detector_info)
        known = {PREFIX + name for name in _HEADER + names}
        extra = {key: text for key, text in props.items() if key not in known}
        made, _, checksum = str(header.get("checksum", "")).partition(":")
        return cls(backbone_info, detector_info, extra, checksum if made == header["kind"] else "")


_HEADER = ("format", "kind", "tool_version", "checksum")


def _written(info: BackboneInfo | DetectorInfo) -> dict[str, Any]:
    """Fields by name, without those that say what a file without them says."""
    defaults = {field.name: field.default for field in dataclasses.fields(info)}
    return {
        name: value
        for name, value in dataclasses.asdict(info).items()
        if defaults[name] is dataclasses.MISSING or value != defaults[name]
    }


def _names(cls: type[BackboneInfo | DetectorInfo]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _parsed(props: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Any]:
    """Values of the fields that are there."""
    try:
        return {name: json.loads(props[PREFIX + name]) for name in names if PREFIX + name in props}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"its metadata is damaged ({error}); write the file again") from error


def _kind(fields: Mapping[str, Any], wanted: str | None) -> str:
    """Which of the two files it is, after checking that it is ours and of this format."""
    if "format" not in fields:
        raise ModelError(
            "this ONNX file was not made by padim-edge: make one with padim-edge export and fit"
        )
    if fields["format"] not in (FORMAT, ROI_FORMAT):
        raise ModelError(
            f"its format is version {fields['format']}, padim-edge {__version__} reads versions "
            f"{FORMAT} and {ROI_FORMAT}: install the padim-edge it was made with "
            f"({fields.get('tool_version', 'unknown')}), or make it again"
        )
    found = fields.get("kind")
    if found not in COMMANDS:
        raise ModelError("its metadata lacks 'kind': make the file again")
    if wanted is not None and found != wanted:
        known = {"padim": "a detector", "embedding": "an embedding"}
        raise ModelError(
            f"this is {known[found]} (made by padim-edge {COMMANDS[found]}); {known[wanted]} "
            f"(made by padim-edge {COMMANDS[wanted]}) is needed here"
        )
    return str(found)


def _check_fields(info: BackboneInfo, detector_info: DetectorInfo | None) -> None:
    """Refuse metadata whose parts do not fit together, before anything is computed from it."""
    count = len(info.layers)
    sides = [side for shape in info.layer_shapes for side in shape]
    total = sum(info.layer_channels)
    channels = info.channels
    for fits, name in (
        (count == len(info.layer_channels) == len(info.layer_shapes), "layers"),
        (all(side > 0 for side in [*sides, *info.image_size]), "layer_shapes"),
        (channels and len(set(channels)) == len(channels), "channels"),
        (all(0 <= channel < total for channel in channels), "channels"),
        (info.precision in PRECISIONS, "precision"),
        (
            len(info.source_layers) == len(info.source_channels) == len(info.source_shapes),
            "source_layers",
        ),
        (not detector_info or detector_info.preset in PRESETS, "preset"),
        (not detector_info or detector_info.covariance in (*ESTIMATORS, *DENSE), "covariance"),
        (not detector_info or detector_info.constants in CONSTANTS, "constants"),
        (not detector_info or detector_info.preprocess.size == info.image_size, "preprocess"),
        (not detector_info or _is_sorted(detector_info.good_scores), "good_scores"),
        (not detector_info or detector_info.threshold > 0, "threshold"),
        (not detector_info or detector_info.pixel_threshold >= 0, "pixel_threshold"),
        (not detector_info or 0 < detector_info.judged <= 1, "judged"),
        (not detector_info or _are_pixel_scores(detector_info), "good_pixel_scores"),
    ):
        if not fits:
            raise ModelError(f"its metadata has a wrong '{name}': make the file again")
    try:
        Pyramid.coarse_to_fine(info.pyramid_layers())
    except UsageError as error:
        raise ModelError(f"its metadata has a wrong 'layer_shapes': {error}") from error


def _are_pixel_scores(info: DetectorInfo) -> bool:
    scores = info.good_pixel_scores
    return not scores or (len(scores) == len(info.good_scores) and _is_sorted(scores))


def _is_sorted(scores: tuple[float, ...]) -> bool:
    return bool(scores) and all(low <= high for low, high in itertools.pairwise(scores))


T = TypeVar("T", BackboneInfo, DetectorInfo)


def _build(cls: type[T], fields: Mapping[str, Any]) -> T:
    """A dataclass from JSON values, each checked against its annotation.

    A field that has a default may be missing.
    """
    values = {}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = field.name
        if name not in fields:
            if field.default is not dataclasses.MISSING:
                continue
            raise ModelError(f"its metadata lacks '{name}': make the file again")
        try:
            values[name] = _typed(fields[name], hints[name])
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
