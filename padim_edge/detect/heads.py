"""Heads: what image files say of themselves that their scores do not show."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from padim_edge.images.decode import Head, read_head
from padim_edge.model.metadata import DetectorInfo

TOLERANCE = 0.02
"""Share by which an aspect ratio may differ from those of the fit: rounding to whole pixels."""


def unusual_shapes(paths: Sequence[Path]) -> list[str]:
    """Which files have another shape than the median one, in words; none if all are alike."""
    heads = [(path, head) for path in paths if (head := read_head(path))]
    ratios = [width / height for _, (width, height, _) in heads]
    usual = statistics.median_low(ratios) if ratios else 0.0
    return [
        f"{path} ({head[0]} x {head[1]})"
        for (path, head), ratio in zip(heads, ratios, strict=True)
        if abs(ratio - usual) > TOLERANCE * usual
    ]


class Heads:
    """Looks at files as they are judged, and says what a user should know.

    Args:
        info: of the detector.
        say: takes a sentence.
    """

    def __init__(self, info: DetectorInfo, say: Callable[[str], None]) -> None:
        self._ratios = info.aspect_ratios
        self._say = say
        self._unusual = 0
        self._files = self._further = 0

    def __call__(self, path: Path) -> None:
        """Look at a file; the first of another shape than the fit's is told of at once."""
        self.take(path, read_head(path))

    def take(self, path: Path, head: Head | None) -> None:
        """The same of a file that was looked at elsewhere."""
        if head is None:  # whoever reads it says why
            return
        width, height, pictures = head
        if pictures > 1:
            self._files += 1
            self._further += pictures - 1
        if not self._ratios:  # a file from before they were kept
            return
        low, high = self._ratios[0] * (1 - TOLERANCE), self._ratios[-1] * (1 + TOLERANCE)
        if not low <= width / height <= high:
            self._unusual += 1
            if self._unusual == 1:
                fitted = " to ".join(f"{ratio:.3g}" for ratio in sorted(set(self._ratios)))
                self._say(
                    f"warning: {path} is {width} x {height}, width / height "
                    f"{width / height:.3g}, and the photos of the fit have {fitted}: the part is "
                    "squeezed or cut otherwise, and its score means little; this is said once"
                )

    def summary(self) -> None:
        """Say how many there were."""
        if self._unusual > 1:
            self._say(f"warning: {self._unusual} images have another shape than those of the fit")
        if self._files:
            self._say(
                f"warning: {self._files} file(s) hold {self._further} further picture(s), of which "
                "none was looked at: the first of each counts"
            )
