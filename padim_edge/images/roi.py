"""The region of interest: which part of what the graph sees is judged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import UsageError
from padim_edge.images.masks import load_masks
from padim_edge.images.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Roi:
    """What is judged.

    Attributes:
        mask: bool [H, W] of the graph's size, true where it is; somewhere, and not everywhere.

    Raises:
        UsageError: nothing is judged.
    """

    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not self.mask.any():
            raise UsageError(
                "the region of interest is empty: what is to be judged must be white in --roi, and "
                "--ignore-border leave something"
            )

    @property
    def share(self) -> float:
        """Of the graph's pixels."""
        return float(self.mask.mean())

    @property
    def sha256(self) -> str:
        """Of the mask, in hexadecimal."""
        return hashlib.sha256(np.packbits(self.mask).tobytes()).hexdigest()


def load_roi(mask: Path | None, border: int, preprocess: Preprocess, photo: Path) -> Roi | None:
    """The region that two options describe.

    Args:
        mask: an image file of the photos' aspect ratio; judged is where it is not black (see
            `padim_edge.images.masks.load_mask`).
        border: pixels of the graph's input that are not judged, at each of the four sides.
        preprocess: which brings the mask to the graph's pixels, as a photo.
        photo: one of those that the mask is for.

    Returns:
        None where everything is judged.

    Raises:
        UsageError: nothing is.
        ImageError: the mask cannot be read, or has another aspect ratio.
    """
    judged = np.ones(preprocess.size, bool)
    if mask is not None:
        judged = preprocess.mask(Image.fromarray(load_masks([mask], photo)))
    if border:
        inner = np.zeros_like(judged)
        inner[border:-border, border:-border] = True
        judged &= inner
    return None if judged.all() else Roi(judged)
