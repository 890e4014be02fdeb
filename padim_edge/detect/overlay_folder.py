"""A folder of overlays: each judged file as a picture with heat map and contour."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from padim_edge.detect.detector import Detector, Result
from padim_edge.detect.judging import Verdict
from padim_edge.detect.overlay import Scale, overlay
from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write
from padim_edge.images.decode import load_image
from padim_edge.images.stored_path import StoredPath, as_path

LONGEST_NAME = 255
"""Bytes of a file's name, at most: what Linux's file systems take."""


class OverlayFolder:
    """Where the overlays of some files go, the files' own folders kept, no two the same.

    Args:
        detector: whose results are drawn.
        folder: made when the first is saved.
        paths: the files that will be judged.
        sources: where the files were looked for. The structure of a folder that is the only one
            is kept, otherwise that of what all files have in common.

    Raises:
        UsageError: overlays would lie among the images, or replace them.
    """

    def __init__(
        self, detector: Detector, folder: Path, paths: Sequence[Path], sources: Sequence[str] = ()
    ) -> None:
        self._detector = detector
        self._targets = _targets(paths, folder, [as_path(source) for source in sources])

    def save(self, verdict: Verdict) -> None:
        """Draw a verdict, if there is a result in it.

        Raises:
            PadimEdgeError: the overlay cannot be written.
        """
        if not isinstance(verdict.outcome, Result) or not isinstance(verdict.name, Path):
            return
        target = self._targets[verdict.name]
        picture = drawn(self._detector, verdict.name, verdict.outcome)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PadimEdgeError(
                f"cannot make the folder {target.parent}: {error.strerror or error}; choose "
                "another one with --save-maps"
            ) from error
        with atomic_write(target) as stream:
            picture.save(stream, format="PNG")


def drawn(
    detector: Detector, file: Path | bytes, result: Result, caption: bool = True
) -> Image.Image:
    """A result over its file, with the detector's own scale.

    Args:
        detector: whose result it is.
        file: the image's path or bytes.
        result: a score that is a number.
        caption: whether a bar below it says the verdict.

    Raises:
        ImageError: the file cannot be read.
    """
    frame = np.asarray(load_image(file, detector.detector_info.preprocess.bit_depth))
    return overlay(
        frame,
        result.score_map,
        detector.seen(frame.shape[1], frame.shape[0]),
        result.threshold,
        result.score,
        Scale.of(detector.detector_info.good_scores, result.threshold).low,
        result.mask,
        caption,
    )


def _targets(paths: Sequence[Path], folder: Path, sources: Sequence[Path]) -> dict[Path, Path]:
    """Where each overlay goes: the images' own folders, a .png each, no two the same.

    Raises:
        UsageError: overlays would lie among the images, or replace them.
    """
    for source in sources:
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UsageError(
                f"--save-maps {folder} lies inside {source}: the next run would take the overlays "
                "for images; choose a folder outside of it"
            )
    if any(path.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise UsageError(
            f"--save-maps {folder} holds images to be judged, which overlays might replace: "
            "choose another folder"
        )
    if (
        len(sources) == 1
        and sources[0].is_dir()
        and all(path.is_relative_to(sources[0]) for path in paths)
    ):
        relative = {path: path.relative_to(sources[0]) for path in paths}
    else:  # below the folder that all have in common
        whole = {path: _absolute(path) for path in paths}
        base = Path(os.path.commonpath([path.parent for path in whole.values()]))
        relative = {path: one.relative_to(base) for path, one in whole.items()}
    plain = {path: name.with_suffix(".png") for path, name in relative.items()}
    suffixed = {path: Path(f"{name}.png") for path, name in relative.items()}
    count = Counter([*plain.values(), *suffixed.values()])
    return {
        # a.jpg and a.bmp side by side keep their suffix: a.jpg.png and a.bmp.png.
        path: folder / _fitting(plain[path] if count[plain[path]] == 1 else suffixed[path])
        for path in paths
    }


def _absolute(path: Path) -> Path:
    """A path from the root, links kept; of an address, its parts."""
    if isinstance(path, StoredPath):
        return Path("/", *path.parts)
    return Path(os.path.abspath(path))  # noqa: PTH100 - keeps links


def _fitting(path: Path) -> Path:
    """The same path, its name cut where no system takes one that long, and still no other's."""
    name = os.fsencode(path.name)
    if len(name) <= LONGEST_NAME:
        return path
    digest = hashlib.sha256(name).hexdigest()[:8]
    return path.with_name(f"{name[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}.png")
