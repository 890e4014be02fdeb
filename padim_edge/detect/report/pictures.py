"""Pictures for a page: small, few bytes, one colour scale for all heat maps."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.detect.overlay import (
    ALARM,
    DIMMED,
    OPACITY,
    Scale,
    colour_table,
    outline,
    scores_at,
)
from padim_edge.detect.report.contents import Layers
from padim_edge.images.decode import load_image
from padim_edge.images.preprocess import Preprocess

SIDE = 320
"""Pixels on the long side of a photo."""

QUALITY = 82
"""Of its JPEG."""

_TRUTH = (0, 158, 170)
_TINT = 90  # of 255: what is marked shines through
_OUTSIDE = 255  # the colour of what the map does not cover; the others are the scale's


def layers(
    path: Path,
    preprocess: Preprocess,
    scale: Scale,
    score_map: NDArray[np.float32] | None,
    mask: NDArray[np.bool_] | None,
    truth: NDArray[np.bool_] | None = None,
) -> Layers:
    """Pictures of one image.

    Args:
        path: its file.
        preprocess: how the detector prepared it.
        scale: the colour scale.
        score_map: float32 [H, W]; None, or not finite, for none.
        mask: bool [H, W], what of the map is anomalous.
        truth: bool [h, w], what is defective, of the whole image at any size.

    Raises:
        ImageError: the file cannot be read.
    """
    photo = load_image(path, preprocess.bit_depth)
    left, top, right, bottom = preprocess.seen(*photo.size)
    full = photo.size
    photo.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    across, down = photo.width / full[0], photo.height / full[1]
    seen = (left * across, top * down, right * across, bottom * down)
    heat = found = marked = None
    if score_map is not None and np.isfinite(score_map).all():
        heat = _heat(*scores_at(photo.size, score_map, seen), scale)
        if mask is not None:
            share, covered = scores_at(photo.size, mask.astype(np.float32), seen)
            found = _marks(covered & (share > 0.5), ALARM)
    if truth is not None:
        resized = Image.fromarray(truth).resize(photo.size, Image.Resampling.NEAREST)
        marked = _marks(np.asarray(resized, bool), _TRUTH)
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return Layers(*photo.size, _uri("jpeg", stream), heat, found, marked)


def _heat(scores: NDArray[np.float32], covered: NDArray[np.bool_], scale: Scale) -> str:
    """The map in its colours, opacity growing with it, as `padim_edge.detect.overlay` draws it."""
    steps = np.arange(256)
    colours = colour_table()[np.rint(steps * 255 / (_OUTSIDE - 1)).clip(0, 255).astype(int)]
    alpha = 255 * OPACITY * steps / (_OUTSIDE - 1)
    colours[_OUTSIDE], alpha[_OUTSIDE] = 0, 255 * (1 - DIMMED)
    places = np.rint(scale.positions(scores) * (_OUTSIDE - 1)).astype(np.uint8)
    # A smooth map needs no more than every other pixel; the browser interpolates the colours.
    small = np.where(covered, places, _OUTSIDE).astype(np.uint8)[::2, ::2]
    return _palette(small, np.rint(colours), alpha)


def _marks(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> str:
    """A mask as a tint, with a light line just inside of its border and a dark one outside."""
    inner, outer = outline(mask, 1)
    places = np.zeros(mask.shape, np.uint8)
    places[mask] = 1
    places[inner] = 2
    places[outer] = 3
    colours = np.array([(0, 0, 0), colour, (255, 255, 255), (0, 0, 0)])
    return _palette(places, colours, np.array([0, _TINT, 255, 179]))


def _palette(places: NDArray[np.uint8], colours: NDArray[Any], alpha: NDArray[Any]) -> str:
    """A PNG of one byte a pixel, and a table of colours and opacities from 0 to 255."""
    picture = Image.fromarray(places)
    picture.putpalette(colours.astype(np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(
        stream, "PNG", transparency=np.rint(alpha).astype(np.uint8).tobytes(), optimize=True
    )
    return _uri("png", stream)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
