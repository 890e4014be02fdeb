#!/usr/bin/env python3
"""Draw what a detector says of some photos, a row each: photo, score map, decision.

    picture.py padim.onnx a.png b.png -o picture.png

Needs padim-edge alone. The picture at the top of the README was made by it; docs/figures.md says
from what.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from padim_edge import Detector, PadimEdgeError
from padim_edge.detect.overlay import overlay
from padim_edge.images.decode import load_image


def main() -> int:
    """Judge, draw, write. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Photo, score map and decision, a row each.")
    parser.add_argument("model", type=Path, help="made by padim-edge fit")
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png")
    parser.add_argument("--side", type=int, default=256, help="width of each part, in pixels")
    options = parser.parse_args()
    for given in (options.model, *options.photos):
        if options.output.exists() and given.exists() and options.output.samefile(given):
            parser.error(f"-o {options.output} would write over {given}: name another file")
    try:
        with Detector(options.model) as detector:
            rows = [row(detector, photo, options.side) for photo in options.photos]
    except PadimEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    picture = Image.new("RGB", (rows[0].width, sum(one.height for one in rows)))
    top = 0
    for one in rows:
        picture.paste(one, (0, top))
        top += one.height
    # In true colour photographs make PNG files several times as large.
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(options.output, optimize=True)
    return 0


def row(detector: Detector, path: Path, side: int) -> Image.Image:
    """The photo, its score map on black, and the overlay with its verdict, side by side."""
    result = detector(path)
    photo = load_image(path)
    photo = photo.resize((side, round(side * photo.height / photo.width)), Image.Resampling.LANCZOS)
    frame = np.asarray(photo)
    seen = detector.seen(*photo.size)

    def drawn(background: np.ndarray, low: float) -> Image.Image:
        numbers = result.threshold, result.score, low
        return overlay(background, result.score_map, seen, *numbers, result.mask)

    usual = float(np.median(detector.detector_info.good_scores))
    decision = drawn(frame, min(usual, 0.9 * result.threshold))
    heat = drawn(np.zeros_like(frame), 0).crop((0, 0, *photo.size))  # without its bar
    strip = Image.new("RGB", (3 * side, decision.height), (24, 24, 27))
    for column, part in enumerate((photo, heat, decision)):
        strip.paste(part, (column * side, 0))
    return strip


if __name__ == "__main__":
    sys.exit(main())
