"""Contenders that are given a camera's frames, and prepare them as they ship."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class FromFrames:
    """From uint8 [h, w, 3] BGR, as OpenCV's cameras give it, to score and map, in one call."""

    def decide(self, frame: NDArray[np.uint8]) -> tuple[Any, Any]:
        """Score and map of one frame."""
        raise NotImplementedError

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Nothing: all of it is timed together."""
        return images

    def infer(self, prepared: NDArray[np.uint8]) -> tuple[Any, Any]:
        """See `worker.Contender`."""
        scores, maps = zip(*(self.decide(frame) for frame in prepared), strict=True)
        return scores, maps

    def stages(self, prepared: NDArray[np.uint8]) -> dict[str, float]:
        """None."""
        del prepared
        return {}
