"""Painted defects: good photos with a defect that is known to the pixel, where no real one is.

Three kinds, each in three sizes. They are a means to compare configurations by, and no model of
what goes wrong with a part: see docs/tune.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SIZES = (0.04, 0.08, 0.16)
"""Of a defect, as a share of the photo's shorter side: of a patch and a stain the diameter (that of
a disc of a patch's area), of a scratch half the length."""

SEEN = 6.0
"""Grey levels of 255 by which a defect changes its pixels in the mean, at least: white painted on
white is no defect. If `TRIES` places change less, the one that changes most is taken."""

TRIES = 20

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_Field = NDArray[np.float64]
_Box = tuple[slice, slice]


def paint(photo: Pixels, kind: str, size: float, seed: tuple[int, ...]) -> tuple[Pixels, Mask]:
    """Paint one defect onto a photo, at its own resolution.

    Args:
        photo: uint8 [h, w, 3] RGB; it is not changed.
        kind: of `KINDS`.
        size: as a share of the shorter side, see `SIZES`.
        seed: of everything that is drawn at random.

    Returns:
        The painted photo, uint8 [h, w, 3], and what of it is defective, bool [h, w]; the caller's
        own. At least one pixel is.
    """
    rng = np.random.default_rng(seed)
    best: tuple[float, _Box, Pixels, Mask] | None = None
    for _ in range(TRIES):
        box, pixels, mask = KINDS[kind](rng, photo, max(2.0, size * min(photo.shape[:2])))
        new = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
        mask &= (new != photo[box]).any(axis=2)
        change = (
            float(np.abs(new - photo[box].astype(np.float64))[mask].mean()) if mask.any() else 0
        )
        if best is None or change > best[0]:
            best = change, box, new, mask
        if change >= SEEN:
            break
    assert best is not None
    _, box, new, mask = best
    if not mask.any():  # a single grey without any other to paste: nothing shows but another
        mask[mask.shape[0] // 2, mask.shape[1] // 2] = True
        new = np.where(mask[..., None], 255 - photo[box], photo[box]).astype(np.uint8)
    painted, where = photo.copy(), np.zeros(photo.shape[:2], np.bool_)
    painted[box] = np.where(mask[..., None], new, photo[box])
    where[box] = mask
    return painted, where


def _patch(rng: np.random.Generator, photo: Pixels, size: float) -> tuple[_Box, _Field, Mask]:
    """A piece of the photo itself, from elsewhere and a little lighter or darker.

    CutPaste (Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection", CVPR 2021).
    """
    area, aspect = np.pi / 4 * size**2, np.exp(rng.uniform(-1, 1))
    sides = [round(float(np.sqrt(area * ratio))) for ratio in (aspect, 1 / aspect)]
    height, width = (
        min(max(side, 1), all_) for side, all_ in zip(sides, photo.shape, strict=False)
    )
    source, target = (
        tuple(
            slice(start, start + side)
            for side, all_ in ((height, photo.shape[0]), (width, photo.shape[1]))
            for start in (int(rng.integers(all_ - side + 1)),)
        )
        for _ in range(2)
    )
    pixels = photo[source[0], source[1]].astype(np.float64) * rng.uniform(0.9, 1.1)
    return (target[0], target[1]), pixels, np.ones((height, width), np.bool_)


def _scratch(rng: np.random.Generator, photo: Pixels, size: float) -> tuple[_Box, _Field, Mask]:
    """A slightly bent line with pointed ends, lighter or darker than what it is on."""
    box, x, y = _window(rng, photo, size)
    angle, bend = rng.uniform(0, np.pi), size * rng.uniform(-0.15, 0.15)
    cos, sin = np.cos(angle), np.sin(angle)
    along = (cos * x + sin * y) / size
    across = cos * y - sin * x - bend * along**2
    half_width = max(0.7, 0.06 * size) * np.sqrt(np.clip(1 - along**2, 0, 1))
    line = np.clip(half_width - np.abs(across) + 0.5, 0, 1) * (np.abs(along) < 1)
    change = rng.choice((-1, 1)) * rng.uniform(30, 70)
    return box, photo[box] + (change * line)[..., None], line > 0.5


def _stain(rng: np.random.Generator, photo: Pixels, size: float) -> tuple[_Box, _Field, Mask]:
    """A round blot with an uneven, soft edge that takes light away, of some colours more."""
    box, x, y = _window(rng, photo, 0.75 * size)
    waves = np.arange(2, 6)[:, None, None]
    phases = waves * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi, waves.shape)
    wobble = (rng.normal(0, 0.2, waves.shape) / waves * np.cos(phases)).sum(0)
    distance = np.hypot(x, y) / (size / 2 * np.clip(1 + wobble, 0.6, 1.4))
    depth = np.clip((1.15 - distance) / 0.3, 0, 1)[..., None]
    left = rng.uniform(0.6, 0.9, 3)
    if (photo[box] == photo[box][..., :1]).all():  # on a grey photo a colour would give it away
        left[:] = left[0]
    return box, photo[box] * (1 - depth * (1 - left)), depth[..., 0] > 0.5


def _window(rng: np.random.Generator, photo: Pixels, half: float) -> tuple[_Box, _Field, _Field]:
    """Pixels around a place drawn at random, and their x and y from it."""
    height, width = photo.shape[:2]
    top, left = (rng.uniform(0.1, 0.9) * (side - 1) for side in (height, width))
    ends = [
        slice(max(0, int(middle - half)), min(side, int(middle + half) + 2))
        for middle, side in ((top, height), (left, width))
    ]
    y, x = np.mgrid[ends[0], ends[1]].astype(np.float64)
    return (ends[0], ends[1]), x - left, y - top


KINDS: dict[str, Callable[[np.random.Generator, Pixels, float], tuple[_Box, _Field, Mask]]] = {
    "patch": _patch,
    "scratch": _scratch,
    "stain": _stain,
}
