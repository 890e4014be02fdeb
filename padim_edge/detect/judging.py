"""Judging many images: in batches, bad ones counted, overlays on request; and evaluating them."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from padim_edge.detect.detector import Detector, Result
from padim_edge.detect.overlay import overlay
from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.files import atomic_write
from padim_edge.images.batches import read_batches
from padim_edge.images.decode import load_image

OnError = Callable[[Path, ImageError], None]


@dataclass(frozen=True)
class Verdict:
    """What became of one image: a result, or the reason why there is none."""

    path: Path
    outcome: Result | ImageError

    def to_json(self) -> dict[str, Any]:
        """One line of --jsonl."""
        if isinstance(self.outcome, ImageError):
            return {"path": str(self.path), "error": str(self.outcome)}
        result = self.outcome
        return {
            "path": str(self.path),
            # JSON has no NaN.
            "score": result.score if math.isfinite(result.score) else None,
            "threshold": result.threshold,
            "is_anomalous": result.is_anomalous,
            "percentile": result.percentile,
        }


def judge(
    detector: Detector,
    paths: Sequence[Path],
    batch: int,
    on_error: OnError,
    save_maps: Path | None = None,
    root: Path | None = None,
) -> Iterator[Verdict]:
    """Judge images in order.

    Args:
        detector: an open detector.
        paths: the images.
        batch: images per run of the engine.
        on_error: called for each image that cannot be read; may raise to stop.
        save_maps: folder for overlays, made if missing.
        root: folder whose structure the overlays keep.

    Yields:
        A verdict per image; unreadable ones among them.
    """
    targets = _targets(paths, save_maps, root) if save_maps else {}
    place = {path: index for index, path in enumerate(paths)}
    failed: list[Verdict] = []

    def note(path: Path, error: ImageError) -> None:
        on_error(path, error)
        failed.append(Verdict(path, error))

    for names, images in read_batches(paths, detector.detector_info.preprocess, batch, note):
        judged = [Verdict(*pair) for pair in zip(names, detector.judge(images), strict=True)]
        ready = sorted(judged + failed, key=lambda verdict: place[verdict.path])
        failed.clear()
        for verdict in ready:
            if verdict.path in targets and isinstance(verdict.outcome, Result):
                _save_overlay(detector, verdict.path, verdict.outcome, targets[verdict.path])
            yield verdict
    yield from failed


def _targets(paths: Sequence[Path], folder: Path, root: Path | None) -> dict[Path, Path]:
    """Where each overlay goes: the images' own folders, a .png each, no two the same.

    Raises:
        UsageError: overlays would lie among the images, or replace them.
    """
    base = root if root is not None and root.is_dir() else None
    if base and folder.resolve().is_relative_to(base.resolve()):
        raise UsageError(
            f"--save-maps {folder} lies inside {base}: the next run would take the overlays for "
            "images; choose a folder outside of it"
        )
    if any(path.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise UsageError(
            f"--save-maps {folder} holds images to be judged, which overlays might replace: "
            "choose another folder"
        )
    if base is None:  # a pattern: below the folder that all have in common
        base = Path(os.path.commonpath([path.parent for path in paths]))
    relative = {path: path.relative_to(base) for path in paths}
    plain = {path: name.with_suffix(".png") for path, name in relative.items()}
    suffixed = {path: Path(f"{name}.png") for path, name in relative.items()}
    count = Counter([*plain.values(), *suffixed.values()])
    return {
        # a.jpg and a.bmp side by side keep their suffix: a.jpg.png and a.bmp.png.
        path: folder / (plain[path] if count[plain[path]] == 1 else suffixed[path])
        for path in paths
    }


def _save_overlay(detector: Detector, path: Path, result: Result, target: Path) -> None:
    frame = np.asarray(load_image(path))
    usual = statistics.median(detector.detector_info.good_scores)
    picture = overlay(
        frame,
        result.score_map,
        detector.region(frame.shape[1], frame.shape[0]),
        result.threshold,
        result.score,
        # Below the threshold even where nearly all good images score alike.
        low=min(usual, 0.9 * result.threshold),
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PadimEdgeError(
            f"cannot make the folder {target.parent}: {error.strerror or error}; choose another "
            "one with --save-maps"
        ) from error
    with atomic_write(target) as stream:
        picture.save(stream, format="PNG")
