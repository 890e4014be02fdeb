"""Masks: which of them belongs to which image, by name, and what they mark."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import ImageError
from padim_edge.images.decode import is_lossy, load_frame, read_head

_WORD = r"(?:masks?|gt|ground[_-]?truth|labels?|seg)"
_AFTER = re.compile(rf"(?P<stem>.+?)[_. -]{_WORD}(?:[_. -]?\d+)?", re.IGNORECASE)
_BEFORE = re.compile(rf"{_WORD}[_. -](?P<stem>.+)", re.IGNORECASE)


def image_of(stem: str) -> str | None:
    """The image that the name of a mask speaks of: "000" of "000_mask", "000_GT_2", "mask-000".

    Returns:
        Its name without suffix; None if the name is not that of a mask.
    """
    match = _AFTER.fullmatch(stem) or _BEFORE.fullmatch(stem)
    return match["stem"] if match else None


def masks_by_image(
    folder: Path, masks: Sequence[Path], images: Iterable[Path]
) -> dict[Path, tuple[Path, ...]]:
    """Find the masks of images by name.

    That of ``near/000.jpg`` is ``near/000_mask.png`` or another name that :func:`image_of`
    understands, several if there are; or all that lie in a folder ``near/000`` (MVTec LOCO); or
    ``near/000.png``.

    Args:
        folder: of the masks.
        masks: files below it.
        images: paths of the images, within a folder of the same structure.

    Returns:
        Image as it was given -> its masks, sorted; images without any are left out.
    """
    spoken, inside, same = (defaultdict[Path, list[Path]](list) for _ in range(3))
    for path in sorted(masks):
        within = path.relative_to(folder)
        same[within.with_suffix("")].append(path)
        inside[within.parent].append(path)
        stem = image_of(path.stem)
        if stem is not None:
            spoken[within.with_name(stem)].append(path)
    found = {}
    for image in images:
        name = image.with_suffix("")
        # 000_mask.png is unmistakable, 000.png might be a copy of the image.
        chosen = spoken.get(name) or inside.get(name) or same.get(name)
        if chosen:
            found[image] = tuple(chosen)
    return found


def load_mask(path: Path) -> NDArray[np.bool_]:
    """What a mask marks.

    A pixel is marked where its value is not 0, whatever its colour, bits and white. In files that
    were compressed with loss, which have no exact values, where one is above half of white.

    Args:
        path: an image file as `padim_edge.images.decode.load_frame` reads it.

    Returns:
        bool [h, w].

    Raises:
        ImageError: it cannot be read.
    """
    values = np.asarray(load_frame(path).pixels)
    marked: NDArray[np.bool_] = values > (np.iinfo(values.dtype).max // 2 if is_lossy(path) else 0)
    return marked if marked.ndim == 2 else np.asarray(marked.any(axis=2))


def load_masks(paths: Sequence[Path], image: Path) -> NDArray[np.bool_]:
    """What the masks of one image mark together.

    Args:
        paths: at least one.
        image: the file that they belong to. They may be larger or smaller, but of the same shape.

    Returns:
        bool [h, w].

    Raises:
        ImageError: one cannot be read, has another aspect ratio than the image, or another size
            than the others.
    """
    together: NDArray[np.bool_] | None = None
    head = read_head(image)
    for path in paths:
        marked = load_mask(path)
        height, width = marked.shape
        # Resizing rounds to whole pixels.
        if head and abs(width * head[1] - height * head[0]) > max(head[0], head[1]):
            raise ImageError(
                f"{path}: {width} x {height} pixels, and its image {head[0]} x {head[1]}: a mask "
                "needs the aspect ratio of its image, or its marks lie elsewhere"
            )
        if together is not None and marked.shape != together.shape:
            raise ImageError(
                f"{path}: {width} x {height} pixels, where {paths[0].name} has "
                f"{together.shape[1]} x {together.shape[0]}; the masks of an image must be of one "
                "size"
            )
        together = marked if together is None else together | marked
    if together is None:
        raise ValueError("no mask was given")
    return together
