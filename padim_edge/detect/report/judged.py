"""The report of photos of which nothing is known: what a detector says, the highest score first."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from array import array
from collections.abc import Sequence
from pathlib import Path

from padim_edge.detect.detector import Detector, Result
from padim_edge.detect.judging import Verdict
from padim_edge.detect.overlay import Scale
from padim_edge.detect.report.common import DETECTED, about_pictures, facts, shortened
from padim_edge.detect.report.contents import (
    NAMED,
    PICTURES,
    Group,
    Image,
    Kind,
    Layers,
    Report,
    Role,
    Shown,
)
from padim_edge.detect.report.pictures import layers
from padim_edge.errors import ImageError
from padim_edge.images.stored_path import as_path


class JudgedReport:
    """Takes verdicts as they come; holds pictures of those with the highest scores alone.

    Args:
        detector: whose verdicts they are.
        model: its file.
        paths: the files that will be judged.
    """

    def __init__(self, detector: Detector, model: Path, paths: Sequence[Path]) -> None:
        self._detector = detector
        self._model = model
        self._names = dict(zip(paths, shortened(paths), strict=True))
        self._scale = Scale.of(detector.detector_info.good_scores, detector.threshold)
        self._scores = array("d")
        self._unreadable: list[tuple[str, str]] = []
        self._unread = self._judged = 0
        self._order = itertools.count(0, -1)  # of equal scores the first is kept
        # Heaps, the lowest score first.
        self._shown: list[tuple[float, int, Image, Layers]] = []
        self._named: list[tuple[float, int, Image]] = []

    def __call__(self, verdict: Verdict) -> None:
        """Take one, of a file. One that has gone since it was judged is named, and not shown."""
        path, result = as_path(verdict.name), verdict.outcome
        if not isinstance(result, Result):
            self._unread += 1
            if len(self._unreadable) < NAMED:
                self._unreadable.append((self._names[path], str(result)))
            return
        self._judged += 1
        finite = math.isfinite(result.score)
        image = Image(self._names[path], 0, result.score if finite else None)
        rank = result.score if finite else math.inf
        if finite:
            self._scores.append(result.score)
        entry = (rank, next(self._order), image)
        if len(self._shown) < PICTURES or entry[:2] > self._shown[0][:2]:
            preprocess = self._detector.detector_info.preprocess
            mask = result.mask if finite else None
            with contextlib.suppress(ImageError):
                made = layers(path, preprocess, self._scale, result.score_map, mask)
                heapq.heappush(self._shown, (*entry, made))
                if len(self._shown) <= PICTURES:
                    return
                entry = heapq.heappop(self._shown)[:3]
        heapq.heappush(self._named, entry)
        if len(self._named) > NAMED:
            heapq.heappop(self._named)

    def report(self, title: str) -> Report:
        """What was taken so far, as a report."""
        detector = self._detector
        info = detector.detector_info
        more = self._unread - len(self._unreadable)
        shown = sorted(self._shown, key=lambda entry: entry[:2], reverse=True)
        named = sorted(self._named, key=lambda entry: entry[:2], reverse=True)
        return Report(
            Kind.RUN,
            title,
            facts(self._model, detector.backbone_info, info, detector.engine.describe()),
            detector.threshold,
            info.threshold,
            (self._scale.low, self._scale.top),
            (Group("photos", Role.UNKNOWN, tuple(sorted(self._scores))),),
            tuple(Shown(i.name, i.group, i.score, made) for _, _, i, made in shown),
            tuple(image for _, _, image in named),
            max(0, self._judged - len(shown) - len(named)),
            (*self._unreadable, *[(f"and {more} more", "")] * (more > 0)),
            reference=Group("good photos that set the threshold", Role.GOOD, info.good_scores),
            notes=(
                "Below the axis of the histogram, to compare with: the good photos that set the "
                "threshold, none of which the detector had seen when it scored them.",
                about_pictures("the highest score first"),
                DETECTED,
            ),
        )
