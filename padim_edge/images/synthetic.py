"""A small data set of woven cloth with known defects, for the demo and for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import PadimEdgeError, UsageError

Field = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Lengths are in 1/256 of the picture's side, so that `size` changes the resolution only.
_UNITS = 256
_PITCH = 13.0  # from thread to thread

_WARP = np.array([0.80, 0.75, 0.66])  # threads that run down, undyed
_WEFT = np.array([0.42, 0.52, 0.64])  # threads that run across, blue
_GROUND = np.array([0.10, 0.09, 0.09])  # what is behind the cloth
_FRAYED = np.array([0.93, 0.92, 0.90])  # torn fibres
_COFFEE = np.array([0.72, 0.60, 0.46])  # what a stain leaves of the light

_MARKER = "padim-edge-synthetic.json"


def make_dataset(
    folder: Path,
    seed: int = 0,
    train: int = 60,
    good: int = 20,
    per_defect: int = 10,
    size: int = 256,
) -> None:
    """Write a data set of synthetic cloth, laid out like MVTec AD.

    Position, angle, stretch, tone of the threads, lighting and noise differ from picture to
    picture. The defects are ``scratch``, ``stain`` and ``missing_thread``::

        train/good/000.png
        test/good/000.png
        test/scratch/000.png
        ground_truth/scratch/000_mask.png    (0, and 255 where defective)

    A picture depends only on the seed, its size and its place in this layout: equal arguments
    give equal bytes (with equal versions of NumPy and Pillow), and with greater counts the
    first pictures stay as they are.

    Args:
        folder: made if missing. A data set that this function wrote there earlier is replaced.
        seed: at least 0.
        train: number of good pictures to fit.
        good: number of good pictures to test.
        per_defect: number of pictures of each defect.
        size: side of the pictures in pixels, at least 64.

    Raises:
        UsageError: a number is out of range, or the folder holds something else.
        PadimEdgeError: the folder cannot be written.
    """
    if min(seed, train, good, per_defect) < 0 or size < 64:
        raise UsageError(
            f"seed {seed}, train {train}, good {good}, per_defect {per_defect}, size {size}: "
            "size must be at least 64, the others at least 0"
        )
    counts = {"train": train, "good": good, "per_defect": per_defect}
    try:
        _claim(folder, counts)
        for group, kind, index, files in _pictures(folder, **counts):
            # One generator per picture, so that none depends on those before it.
            rng = np.random.default_rng([seed, group, index])
            pixels, mask = _KINDS[kind](rng, _Cloth(rng, size))
            images = _photographed(rng, pixels), mask.astype(np.uint8) * 255
            for file, image in zip(files, images, strict=False):  # good ones have no mask file
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
    except OSError as error:
        raise PadimEdgeError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; choose a "
            "folder that is writable and has room"
        ) from error


def _pictures(
    folder: Path, train: int, good: int, per_defect: int
) -> Iterator[tuple[int, str, int, list[Path]]]:
    """Number of the group, kind, index, and files (picture, then mask) of every picture."""
    groups = [("train", "good", train)]
    groups += [("test", kind, good if kind == "good" else per_defect) for kind in _KINDS]
    for group, (split, kind, count) in enumerate(groups):
        for index in range(count):
            files = [folder / split / kind / f"{index:03d}.png"]
            if kind != "good":
                files.append(folder / "ground_truth" / kind / f"{index:03d}_mask.png")
            yield group, kind, index, files


def _claim(folder: Path, counts: dict[str, int]) -> None:
    """Empty a folder that this module filled, by the counts it left there; refuse any other."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _MARKER
    try:
        if marker.exists():
            for *_, files in _pictures(folder, **json.loads(marker.read_text("utf-8"))):
                for file in files:
                    file.unlink(missing_ok=True)
        elif any(folder.iterdir()):
            raise ValueError
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{folder} is not empty and not a data set that padim-edge made: name a new folder"
        ) from error
    marker.write_text(json.dumps(counts), "utf-8")


class _Cloth:
    """A piece of plain weave in front of the camera.

    Attributes:
        x: float64 [1, size], pixel centres in units of length; y: float64 [size, 1] likewise.
        u: float64 [size, size], place in the cloth across the warp, in threads; v likewise
            across the weft. Thread i of the warp lies at i <= u < i + 1.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.x = (np.arange(size) + 0.5)[None] * (_UNITS / size)
        self.y = self.x.T
        angle = np.deg2rad(rng.normal(0, 0.7))
        cos, sin = np.cos(angle), np.sin(angle)
        # Two threads are a period, so the place is anywhere; from 2 on, no place is negative.
        place_u, place_v = rng.uniform(2, 4, 2)
        across = cos * self.x + sin * self.y + _smooth(rng, size, cells=3, sigma=1.5)
        down = cos * self.y - sin * self.x + _smooth(rng, size, cells=3, sigma=1.5)
        self.u = across / _PITCH + place_u
        self.v = down / _PITCH + place_v
        self._tones = rng.normal(1, 0.03, (2, 32))  # some 20 threads are in view

    def picture(self, missing: Mask | None = None) -> Field:
        """The cloth under even light, float64 [size, size, 3] from 0 to 1.

        Args:
            missing: bool [size, size], where the weft is not there.
        """
        i, j = np.floor(self.u).astype(np.intp), np.floor(self.v).astype(np.intp)
        warp, warp_there = _thread(self.u - i, self.v, i)
        weft, weft_there = _thread(self.v - j, self.u, j + 1)
        if missing is not None:
            weft_there = weft_there * ~missing
        # Share of the warp in a pixel where both are: a soft edge instead of a jagged one.
        in_front = np.clip(0.5 + 4 * (warp - weft), 0, 1)
        front = (warp_there * (1 - weft_there * (1 - in_front)))[..., None]
        warp_colour = (_brightness(warp) * self._tones[0][i])[..., None] * _WARP
        weft_colour = (_brightness(weft) * self._tones[1][j])[..., None] * _WEFT
        behind = _GROUND + weft_there[..., None] * (weft_colour - _GROUND)
        pixels: Field = front * warp_colour + (1 - front) * behind
        return pixels


def _thread(across: Field, along: Field, number: NDArray[np.intp]) -> tuple[Field, Field]:
    """Height of a thread's surface (-1 to 2) and whether it is there at all (0 to 1).

    Args:
        across: place within the thread, 0 to 1.
        along: place along the thread, in crossing threads.
        number: of the thread; even ones are in front where odd ones are behind.
    """
    offset = (across - 0.5) / 0.47  # neighbours do not quite touch
    wave = np.where(number % 2, -1.0, 1.0) * np.sin(np.pi * along)
    return wave + np.sqrt(np.clip(1 - offset**2, 0, 1)), np.clip(6 - 6 * np.abs(offset), 0, 1)


def _brightness(height: Field) -> Field:
    """The deeper a surface lies, the less light arrives."""
    return 0.36 + 0.32 * height


def _smooth(rng: np.random.Generator, size: int, cells: int, sigma: float) -> Field:
    """A random field that varies over ``1 / cells`` of the picture: float64 [size, size]."""
    coarse = Image.fromarray(rng.normal(0, sigma, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)


def _good(_: np.random.Generator, cloth: _Cloth) -> tuple[Field, Mask]:
    return cloth.picture(), np.zeros(cloth.u.shape, np.bool_)


def _scratch(rng: np.random.Generator, cloth: _Cloth) -> tuple[Field, Mask]:
    """A slightly bent, pointed line of frayed fibres with its shadow beside it."""
    x, y = rng.uniform(70, 186, 2)
    angle, half_length = rng.uniform(0, np.pi), rng.uniform(35, 65)
    bend, half_width = half_length * rng.uniform(-0.12, 0.12), rng.uniform(1.4, 2.2)
    cos, sin = np.cos(angle), np.sin(angle)
    along = (cos * (cloth.x - x) + sin * (cloth.y - y)) / half_length
    across = cos * (cloth.y - y) - sin * (cloth.x - x) - bend * along**2
    edge = half_width * np.sqrt(np.clip(1 - along**2, 0, 1)) + 0.5 * (np.abs(along) < 1)
    line = np.clip(edge - np.abs(across), 0, 1)
    shadow = np.clip(edge - np.abs(across - half_width), 0, 1)
    pixels = cloth.picture() * (1 - 0.35 * shadow[..., None])
    frayed = (line * rng.uniform(0.55, 1, line.shape))[..., None]
    return pixels + frayed * (_FRAYED - pixels), np.maximum(line, shadow) > 0.5


def _stain(rng: np.random.Generator, cloth: _Cloth) -> tuple[Field, Mask]:
    """A round blot of something brown, darker where its edge has dried."""
    x, y = rng.uniform(50, 206, 2)
    dx, dy = cloth.x - x, cloth.y - y
    waves = np.arange(2, 6)[:, None, None]
    phases = waves * np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi, waves.shape)
    wobble = (rng.normal(0, 0.22, waves.shape) / waves * np.cos(phases)).sum(0)
    distance = np.hypot(dx, dy) / (rng.uniform(13, 26) * np.maximum(1 + wobble, 0.4))
    depth = 0.75 * np.clip((1.08 - distance) / 0.16, 0, 1)
    depth += 0.35 * np.exp(-(((distance - 0.93) / 0.1) ** 2))
    return cloth.picture() * (1 - depth[..., None] * (1 - _COFFEE)), distance < 1


def _missing_thread(rng: np.random.Generator, cloth: _Cloth) -> tuple[Field, Mask]:
    """A piece of one weft thread is gone."""
    row, column = (rng.uniform(0.25, 0.75, 2) * len(cloth.u)).astype(int)
    thread = np.floor(cloth.v) == np.floor(cloth.v[row, column])
    missing = thread & (np.abs(cloth.u - cloth.u[row, column]) < rng.uniform(2.5, 5))
    return cloth.picture(missing), missing


def _photographed(rng: np.random.Generator, pixels: Field) -> NDArray[np.uint8]:
    """Uneven light and the noise of the sensor: uint8 [size, size, 3]."""
    light = rng.normal(1, 0.03) + _smooth(rng, len(pixels), cells=2, sigma=0.03)
    seen = pixels * light[..., None] + rng.normal(0, 0.012, pixels.shape)
    return np.rint(255 * np.clip(seen, 0, 1)).astype(np.uint8)


# Draws a kind: picture float64 [size, size, 3] and mask of the defect, bool [size, size].
# The place in this table is part of each picture's seed: add new kinds at the end.
_KINDS: dict[str, Callable[[np.random.Generator, _Cloth], tuple[Field, Mask]]] = {
    "good": _good,
    "scratch": _scratch,
    "stain": _stain,
    "missing_thread": _missing_thread,
}
