"""Whether grey photos of 16 bits are judged as Python judges them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from padim_edge import Detector


def check_wide_grey(
    said: Callable[[Path, Path], str],
    model: Path,
    twelve_bit_model: Path,
    image: Image.Image,
    photo: Path,
) -> None:
    """Compare a program's line with Python's result, of all 16 bits and of a camera's 12.

    Args:
        said: by a program, of a model and a photo.
        model: of 8 bits.
        twelve_bit_model: fitted with --bit-depth 12.
        image: to be written in grey.
        photo: where to.
    """
    # The graph takes 8 bits: what Python averages in 16 is rounded before.
    grey = np.asarray(image.convert("L"), np.uint16)
    for file, pixels in ((model, grey * 256 + 77), (twelve_bit_model, grey * 16 + 5)):
        Image.fromarray(pixels).save(photo)
        line = json.loads(said(file, photo))
        with Detector(file, engine="ort") as detector:
            assert math.isclose(line["score"], detector(photo).score, rel_tol=2e-2)
    Image.fromarray(grey * 16 + 1000).save(photo)
    assert "12 bits hold up to 4095" in said(twelve_bit_model, photo)
