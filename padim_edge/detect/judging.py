"""Judging a stream: frames of any source in, a verdict for each as it comes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim_edge.detect.detector import Detector, Result
from padim_edge.errors import ImageError
from padim_edge.images.batches import prepared
from padim_edge.images.frames import Shot


@dataclass(frozen=True)
class Verdict:
    """What became of one frame: a result, or the reason why there is none.

    Attributes:
        name: the shot's: the path of a file, or what a camera calls its frame.
        outcome: the result, or why the frame could not be judged.
    """

    name: Path | str
    outcome: Result | ImageError

    def to_json(self) -> dict[str, Any]:
        """One line of --jsonl."""
        name = {"path" if isinstance(self.name, Path) else "name": str(self.name)}
        if isinstance(self.outcome, ImageError):
            return {**name, "error": str(self.outcome)}
        result = self.outcome
        finite = math.isfinite(result.score)
        return {
            **name,
            # JSON has neither NaN nor infinity.
            "score": result.score if finite else None,
            "threshold": result.threshold,
            "is_anomalous": result.is_anomalous,
            "percentile": result.percentile,
            "regions": [region.to_json() for region in result.regions if finite],
        }


def judge(
    detector: Detector, shots: Iterable[Shot], batch: int = 1, ahead: int | None = None
) -> Iterator[Verdict]:
    """Judge the frames of a source, in order, in bounded memory.

    Args:
        detector: an open detector.
        shots: the source, of any length; `padim_edge.images.frames.files` makes one of paths.
        batch: frames per run of the engine.
        ahead: frames that are taken before they are needed: None for files, 0 for a camera (see
            `padim_edge.images.batches.prepared`).

    Yields:
        A verdict for each shot, as soon as its batch is judged.
    """
    for taken in prepared(shots, detector.prepare, batch, ahead):
        good = [made for _, made in taken if not isinstance(made, ImageError)]
        results = iter(detector.judge_prepared(good) if good else ())
        for shot, made in taken:
            outcome = made if isinstance(made, ImageError) else next(results)
            yield Verdict(shot.name, outcome)
