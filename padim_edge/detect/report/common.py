"""What every report says of a detector, and of its pictures."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from padim_edge import __version__
from padim_edge.detect.report.contents import PICTURES
from padim_edge.detect.report.pictures import QUALITY, SIDE
from padim_edge.model.metadata import BackboneInfo, DetectorInfo

Facts = tuple[tuple[str, str], ...]


def facts(model: Path, backbone: BackboneInfo, info: DetectorInfo, engine: str) -> Facts:
    """What was used."""
    height, width = backbone.image_size
    size = f"{width} x {height}"
    fit = f"fitted on {info.images} photos" if info.images else "imported"
    return (
        ("Detector", model.name),
        ("Backbone", f"{backbone.backbone}, {backbone.precision}, {size}"),
        ("Preset", f"{info.preset}, {fit}"),
        ("File's threshold", f"{info.threshold:.4g} for a false-alarm rate of "
         f"{info.false_alarm_rate:.3g}"),
        ("Engine", engine),
        ("Made", f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, padim-edge "
         f"{__version__}"),
    )  # fmt: skip


DETECTED = (
    "Detected are the regions of anomalous images as padim-edge run gives them; the slider does "
    "not move them."
)


def about_pictures(order: str, end: str = "1.5 times the threshold") -> str:
    """What is shown, of what size, and where the colours end."""
    return (
        f"At most {PICTURES} images are shown, {order}; the rest is named. Photos are scaled to at "
        f"most {SIDE} pixels a side, as JPEG of quality {QUALITY}. All heat maps have one colour "
        "scale: it begins at a score usual for good photos of the fit, where the photo stays as it "
        f"is, and ends at {end}."
    )


def shortened(paths: Sequence[Path]) -> list[str]:
    """Names of files without the folders that all of them lie in."""
    if not paths:
        return []
    parents = [path.parent.parts for path in paths]
    common = 0
    while all(len(own) > common and own[common] == parents[0][common] for own in parents):
        common += 1
    # The last folder that all have in common says what they are.
    start = max(common - 1, 0) if any(len(own) == common for own in parents) else common
    return [Path(*path.parts[start:]).as_posix() for path in paths]
