"""A picture for people: the frame, where it is anomalous, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from padim_edge.detect.regions import Box
from padim_edge.errors import UsageError

#: Pixels on the long side; larger frames are scaled down for the picture.
MAX_SIDE = 1600

#: Where the colour scale ends the frame shines through by a quarter.
OPACITY = 0.75

#: Brightness outside of what the map covers.
DIMMED = 0.35

_TOP = 1.5  # the colour scale ends at this multiple of the threshold

ALARM = (228, 52, 44)
_GOOD = (32, 148, 84)
_BAR = (24, 24, 27)
_TEXT = (244, 244, 245)

# "Inferno" (Smith and van der Walt, matplotlib), perceptually uniform, as the polynomial of
# degree 6 that Matt Zucker fitted to it (shadertoy.com/view/WlfXRN, CC0): one row per power of
# the position in [0, 1], columns red, green, blue.
_INFERNO = np.array(
    [
        [0.000219, 0.001651, -0.019481],
        [0.106513, 0.563956, 3.932712],
        [11.602493, -3.972854, -15.942394],
        [-41.703996, 17.436399, 44.354145],
        [77.162936, -33.402359, -81.807309],
        [-71.319428, 32.626064, 73.209520],
        [25.131126, -12.242669, -23.070325],
    ]
)


@dataclass(frozen=True)
class Scale:
    """A colour scale that is the same for every frame.

    Attributes:
        low: scores up to here leave the frame as it is; from 0 to less than the threshold.
        threshold: the score that an anomalous image exceeds.
    """

    low: float
    threshold: float

    @classmethod
    def of(cls, good_scores: Sequence[float], threshold: float) -> Scale:
        """That of a detector, which begins at a score usual for its good images."""
        # Below the threshold even where nearly all good images score alike.
        return cls(min(statistics.median(good_scores), 0.9 * threshold), threshold)

    @property
    def top(self) -> float:
        """Scores from here on have the last colour."""
        return _TOP * self.threshold

    def positions(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Where scores lie on the scale: 0 to 1, of the same shape and type."""
        return ((scores - self.low) / (self.top - self.low)).clip(0, 1)


def overlay(
    frame: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    seen: Box,
    threshold: float,
    score: float,
    low: float,
    mask: NDArray[np.bool_] | None = None,
    caption: bool = True,
) -> Image.Image:
    """Draw a score map over its frame, on a colour scale that is the same for every frame.

    Scores up to ``low`` leave the frame as it is; from there colour and opacity grow up to 1.5
    times the threshold. A line surrounds the mask, what lies outside of
    ``seen`` is darkened, and a bar below the frame states score, threshold and verdict.

    Args:
        frame: uint8 [h, w, 3], RGB. Not modified.
        score_map: float32 [H, W], at any resolution.
        seen: (left, top, right, bottom) of the part of the frame that the map covers, in
            pixels of the frame; (0, 0, w, h) is all of it.
        threshold: the score that an anomalous image exceeds.
        score: the image score.
        low: a score usual for good parts, from 0 to less than ``threshold``.
        mask: bool [H, W], what of the map belongs to a region; None for all above the threshold.
        caption: whether there is a bar.

    Returns:
        An RGB picture: the frame at its own size, but at most 1600 pixels on the long side,
        and the bar below it.

    Raises:
        UsageError: wrong shapes or types, nothing seen, NaN or infinite scores, or ``low``
            not in [0, threshold).
    """
    _check(frame, score_map, seen, threshold, score, low)
    picture, seen = _at_most_max_side(Image.fromarray(frame), seen)
    scores, covered = scores_at(picture.size, score_map, seen)

    position = np.where(covered, Scale(low, threshold).positions(scores), 0)
    colours = colour_table()[np.rint(position * 255).astype(np.uint8)]
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + (OPACITY * position)[..., None] * (colours - pixels)
    pixels[~covered] *= DIMMED

    # A light line just inside, a dark one just outside: one of the two is seen on any frame.
    marked = scores > threshold
    if mask is not None:
        marked = scores_at(picture.size, mask.astype(np.float32), seen)[0] > 0.5
    inner, outer = outline(covered & marked, max(1, round(max(picture.size) / 800)))
    pixels[outer] *= 0.3
    pixels[inner] = 255
    drawn = np.rint(pixels).astype(np.uint8)
    return _with_caption(drawn, score, threshold) if caption else Image.fromarray(drawn)


def _at_most_max_side(picture: Image.Image, seen: Box) -> tuple[Image.Image, Box]:
    """Scale a large frame down, and what the map covers of it."""
    shrink = MAX_SIDE / max(picture.size)
    if shrink >= 1:
        return picture, seen
    width, height = (max(1, round(side * shrink)) for side in picture.size)
    across, down = width / picture.width, height / picture.height
    left, top, right, bottom = seen
    scaled = left * across, top * down, right * across, bottom * down
    return picture.resize((width, height), Image.Resampling.BOX), scaled


def scores_at(
    size: tuple[int, int], score_map: NDArray[np.float32], seen: Box
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Interpolate a map at the centre of every pixel of a picture.

    Args:
        size: (w, h) of the picture.
        score_map: float32 [H, W], at any resolution.
        seen: as of `overlay`, in pixels of the picture.

    Returns:
        Scores, float32 [h, w], and which pixels the map covers, bool [h, w].
    """
    width, height = size
    left, top, right, bottom = seen
    rows, columns = score_map.shape
    across, down = columns / (right - left), rows / (bottom - top)
    scores = Image.fromarray(np.asarray(score_map, np.float32)).transform(
        size,
        Image.Transform.AFFINE,
        (across, 0, -left * across, 0, down, -top * down),
        Image.Resampling.BILINEAR,
    )
    x = np.arange(width) + 0.5
    y = np.arange(height)[:, None] + 0.5
    covered: NDArray[np.bool_] = (left < x) & (x < right) & (top < y) & (y < bottom)
    return np.asarray(scores), covered


def outline(mask: NDArray[np.bool_], thickness: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Lines along the border of a mask, inside and outside of it; closed at the frame's edge."""
    grown = np.pad(mask, thickness)
    rest = ~grown
    for _ in range(thickness):
        grown, rest = _dilated(grown), _dilated(rest)
    middle = np.s_[thickness:-thickness, thickness:-thickness]
    return rest[middle] & mask, grown[middle] & ~mask


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask and its four neighbours."""
    result: NDArray[np.bool_] = mask.copy()
    result[1:] |= mask[:-1]
    result[:-1] |= mask[1:]
    result[:, 1:] |= mask[:, :-1]
    result[:, :-1] |= mask[:, 1:]
    return result


def colour_table() -> NDArray[np.float32]:
    """The colour scale: float32 [256, 3], RGB from 0 to 255."""
    powers = np.linspace(0, 1, 256)[:, None] ** np.arange(len(_INFERNO))
    table: NDArray[np.float32] = (255 * (powers @ _INFERNO).clip(0, 1)).astype(np.float32)
    return table


def _with_caption(pixels: NDArray[np.uint8], score: float, threshold: float) -> Image.Image:
    """Add the bar below the frame, where it cannot hide a defect."""
    height, width = pixels.shape[:2]
    bar = max(20, round(0.04 * max(width, height)))
    result = Image.new("RGB", (width, height + bar), _BAR)
    result.paste(Image.fromarray(pixels), (0, 0))

    verdict, colour = ("ANOMALY", ALARM) if score > threshold else ("OK", _GOOD)
    numbers = f"score {score:.4g}   threshold {threshold:.4g}"
    gap = 0.4 * bar
    size = 0.55 * bar
    font = _font(size)
    needed = font.getbbox(verdict)[2] + font.getbbox(numbers)[2] + 4 * gap
    if needed > width:
        gap, font = gap * width / needed, _font(max(1, size * width / needed))
    badge = font.getbbox(verdict)[2] + 2 * gap
    draw = ImageDraw.Draw(result)
    draw.rectangle((0, height, round(badge) - 1, height + bar), fill=colour)
    _, cap_top, _, cap_bottom = font.getbbox("A")
    y = height + (bar - cap_top - cap_bottom) / 2
    draw.text((gap, y), verdict, fill=_TEXT, font=font)
    draw.text((badge + gap, y), numbers, fill=_TEXT, font=font)
    return result


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, at ``size`` pixels where that is possible."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or built without FreeType
        return ImageFont.load_default()


def _check(
    frame: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    seen: Box,
    threshold: float,
    score: float,
    low: float,
) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise UsageError(f"frame must be uint8 [h, w, 3], RGB; got {frame.dtype} {frame.shape}")
    if score_map.ndim != 2 or not score_map.size:
        raise UsageError(f"score map must be float32 [H, W]; got shape {score_map.shape}")
    if not (np.isfinite(score_map).all() and np.isfinite([score, threshold, low]).all()):
        raise UsageError("NaN or infinite values in score, threshold, low or the score map")
    left, top, right, bottom = seen
    if not (left < right and top < bottom):
        raise UsageError(f"seen must be (left, top, right, bottom) and not empty; got {seen}")
    if not 0 <= low < threshold:
        raise UsageError(
            f"low must be from 0 to less than the threshold {threshold:g}; got {low:g}"
        )
