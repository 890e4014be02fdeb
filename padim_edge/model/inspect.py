"""What is in a file of ours: its metadata, and how many bytes each part takes."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from padim_edge.images.appearance import Appearance
from padim_edge.model.file import read
from padim_edge.model.threshold import rate_interval

PARTS = {
    "projection.": "projection",
    "mean.": "means",
    "whitening.": "whitening",
    "smoothing.": "smoothing",
}


def describe(path: Path) -> dict[str, Any]:
    """Fields and sizes of an embedding.onnx or padim.onnx, as plain JSON values.

    Returns:
        "fields": metadata by name; "bytes": size by part, the file's total last.
    """
    model = read(path, kind=None)
    fields: dict[str, Any] = {"file": str(path), "sha256": model.sha256}
    fields["checksum"] = "matches" if model.checksum else "none (written before there were any)"
    fields |= dataclasses.asdict(model.backbone_info)
    if model.detector_info:
        detector_info = dataclasses.asdict(model.detector_info)
        scores = detector_info.pop("good_scores")
        # As many as images, and said by those of the images.
        del detector_info["good_pixel_scores"]
        detector_info["preprocess"] = model.detector_info.preprocess.to_json()
        fields |= detector_info
        fields["true_rate"] = rate_interval(len(scores), model.detector_info.false_alarm_rate)
        fields["frame_input"] = model.frame_input
        fields["good_scores"] = _range(scores)
        appearance = Appearance.from_field(detector_info.pop("appearance"))
        del fields["appearance"]
        if appearance:
            fields["appearance"] = {
                name: _range(values) for name, values in appearance.values.items()
            }
    fields["levels"] = [
        f"{level.name}: {level.channels} x {level.height} x {level.width}"
        for level in model.pyramid().levels
    ]
    sizes: Counter[str] = Counter()
    for tensor in model.proto.graph.initializer:
        part = next(
            (p for prefix, p in PARTS.items() if tensor.name.startswith(prefix)), "backbone"
        )
        sizes[part] += tensor.ByteSize()
    sizes["graph and metadata"] = model.size - sum(sizes.values())
    return {
        "fields": _plain(fields),
        "bytes": {**dict(sizes), "file": model.size},
    }


def _range(ordered: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(ordered),
        "min": ordered[0],
        "median": statistics.median(ordered),
        "max": ordered[-1],
    }


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
