"""The report of a fit: which of its photos are least like the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from padim_edge.detect.overlay import Scale
from padim_edge.detect.report.common import about_pictures, facts, shortened
from padim_edge.detect.report.contents import (
    NAMED,
    PICTURES,
    Group,
    Image,
    Kind,
    Report,
    Role,
    Shown,
)
from padim_edge.detect.report.pictures import layers
from padim_edge.errors import ImageError, ModelError, listed
from padim_edge.fit.fit import Fitted
from padim_edge.fit.moments import Array
from padim_edge.fit.outliers import LIMIT
from padim_edge.progress import Progress, silent


def fitted(
    title: str,
    output: Path,
    done: Fitted,
    unreadable: list[tuple[str, str]],
    progress: Progress = silent,
) -> Report:
    """The report of a fit: its new photos, each as if it had been left out.

    Args:
        title: what was fitted on.
        output: the detector's file.
        done: what the fit made.
        unreadable: (name, why) of files that were left out.
        progress: called as pictures are made.

    Raises:
        ImageError: a photo cannot be read any more.
    """
    info = done.model.detector_info
    if info is None:
        raise ModelError(f"{output} is no detector")
    scale = Scale.of(info.good_scores, _usual_limit(done.scores, info.threshold))
    remarks = {one.path: "unlike the others" for one in done.outliers}
    # Those that were left out are of a group of their own, and have no map.
    photos = [
        *((float(score), path, 0, place)
          for place, (path, score) in enumerate(zip(done.paths, done.scores, strict=True))),
        *((one.score, one.path, 1, None) for one in done.rejected),
    ]  # fmt: skip
    photos.sort(key=lambda photo: -photo[0])
    names = shortened([path for _, path, _, _ in photos])
    images = [
        Image(name, group, score) for name, (score, _, group, _) in zip(names, photos, strict=True)
    ]
    shown, named = [], []
    for image, (_, path, group, place) in zip(images[:PICTURES], photos, strict=False):
        score_map = None if place is None else done.maps(place).astype(np.float32)
        try:
            made = layers(path, info.preprocess, scale, score_map, None)
        except ImageError:  # gone since the fit read it
            named.append(image)
            continue
        remark = "left out" if group else remarks.get(path, "")
        shown.append(Shown(image.name, group, image.score, made, remark))
        progress("pictures", len(shown), min(len(images), PICTURES))
    groups = [Group("photos of the fit", Role.UNKNOWN, tuple(np.sort(done.scores).tolist()))]
    if done.rejected:
        scores = tuple(sorted(one.score for one in done.rejected))
        groups.append(Group("left out", Role.UNKNOWN, scores))
    return Report(
        Kind.FIT,
        title,
        facts(output, done.model.backbone_info, info, done.engine),
        info.threshold,
        info.threshold,
        (scale.low, scale.top),
        tuple(groups),
        tuple(shown),
        (*named, *images[PICTURES : PICTURES + NAMED]),
        max(0, len(images) - PICTURES - NAMED),
        tuple(unreadable),
        notes=(
            *_notes(done, info.calibration),
            about_pictures(
                "the highest score first",
                f"{scale.top:.4g}, 1.5 times the threshold or, if that is less, 1.5 times what "
                "lies five standard deviations beyond the median (by the median deviation): photos "
                "that do not belong move the threshold, and should be seen all the same",
            ),
        ),
    )


def _usual_limit(scores: Array, threshold: float) -> float:
    """What no usual photo exceeds, even where some of the photos are not usual."""
    median = float(np.median(scores))
    deviation = 1.4826 * float(np.median(np.abs(scores - median)))
    return min(threshold, median + 5 * deviation) if deviation else threshold


def _notes(done: Fitted, calibration: str) -> list[str]:
    notes = [f"The threshold rests on {calibration}. Heat maps are those of the photos left out."]
    if done.outliers:
        notes.append(
            f"{len(done.outliers)} photos are very unlike the others, as fit says: the logarithm "
            f"of their score lies more than {LIMIT:g} deviations above the median."
        )
    if done.rejected:
        notes.append(
            f"{len(done.rejected)} photos were left out for the same reason, and have no heat map."
        )
    if done.near:
        notes.append(
            f"{sum(map(len, done.near))} photos are nearly equal to others, in {len(done.near)} "
            "group(s); all of a group are left out together, and the first alone counts in the "
            f"threshold. The largest: {listed(done.near[0])}."
        )
    if done.equal:
        copies = [copy for copy, _ in done.equal]
        notes.append(
            f"{len(copies)} photos equal others pixel by pixel and are not among these: "
            f"{listed(copies)}."
        )
    return notes
