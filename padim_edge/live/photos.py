"""Photos for a fit, out of a source's frames, written without loss."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.files import atomic_write
from padim_edge.fit.copies import GRID, STILL, group_near, small
from padim_edge.images.decode import load_frame
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess
from padim_edge.live.source import Captured, Source

COMPARED = 256
"""Photos, the newest, that a frame is compared with."""

_THUMBNAIL = Preprocess.whole((4 * GRID, 4 * GRID))


@dataclass
class Counts:
    """What became of frames.

    Attributes:
        photos: written.
        alike: left out, for they are nearly equal to photos that were written.
        unreadable: that could not be read.
    """

    photos: int = 0
    alike: int = 0
    unreadable: int = 0


def take_photos(
    source: Source,
    folder: Path,
    counts: Counts,
    *,
    every: float = 0.0,
    nth: int = 1,
    different: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """Write frames of a source into a folder as they come, each whole or not at all.

    Args:
        source: is closed when this is.
        folder: made if it is not there.
        counts: added to.
        every: seconds between the arrivals of photos of a live source, at least.
        nth: of each so many frames the first.
        different: leave out what `padim_edge.fit.copies` takes for the same part as one before.
        warn: told of frames that cannot be read.

    Yields:
        The file of each photo: PNG (grey of more than 8 bits as grey of 16, scaled so that white
        stays white); an image file is copied as it is.

    Raises:
        UsageError: ``every`` of a source that is not live.
        SourceError: the source was lost.
        PadimEdgeError: the folder cannot be written.
    """
    if every and not source.is_live:
        raise UsageError(
            f"{source.address} comes as fast as it is read, so seconds between photos mean "
            "nothing: take each nth frame, --nth"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PadimEdgeError(f"cannot make the folder {folder}: {error.strerror}") from error
    return _photos(source, folder, counts, every, nth, different, warn)


def _photos(
    source: Source,
    folder: Path,
    counts: Counts,
    every: float,
    nth: int,
    different: bool,
    warn: Callable[[str], None],
) -> Iterator[Path]:
    taken: deque[NDArray[np.float32]] = deque(maxlen=COMPARED)
    due = -math.inf
    try:
        for place, captured in enumerate(source):
            # Not the frame's own time: a camera's clock is set now and then, and between then and
            # now there would be no photo, or one of every frame.
            now = time.monotonic()
            if place % nth or now < due:
                continue
            try:
                if isinstance(captured.picture, ImageError):
                    raise captured.picture
                if different or isinstance(captured.picture, Path):
                    # A file that cannot be decoded is no photo, either.
                    point = small(_THUMBNAIL(captured.picture))
                    if different and _is_near(point, taken):
                        counts.alike += 1
                        continue
                    taken.append(point)
                path = _write(captured, folder, counts.photos)
            except ImageError as error:
                counts.unreadable += 1
                warn(str(error))
                continue
            counts.photos += 1
            due = now + every
            yield path
    finally:
        source.close()


def _is_near(point: NDArray[np.float32], taken: deque[NDArray[np.float32]]) -> bool:
    groups = group_near(np.stack([*taken, point]), STILL)
    return bool((groups[:-1] == groups[-1]).any())


def _write(captured: Captured, folder: Path, number: int) -> Path:
    """Write a frame; the name says when it was taken (UTC), and that it was the so manieth."""
    picture = captured.picture
    assert not isinstance(picture, ImageError)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(captured.time))
    name = f"{moment}.{int(captured.time % 1 * 1000):03d}Z-{number:06d}"
    if isinstance(picture, Path):
        path = folder / f"{name}{picture.suffix.lower()}"
        try:
            with picture.open("rb") as file, atomic_write(path) as stream:
                shutil.copyfileobj(file, stream)
        except FileNotFoundError as error:
            raise ImageError(f"{picture}: it has gone") from error
        return path
    path = folder / f"{name}.png"
    with atomic_write(path) as stream:
        # Fast rather than small: a camera does not wait.
        to_image(picture).save(stream, "PNG", compress_level=1)
    return path


def to_image(picture: Frame | Path | bytes, bit_depth: int | None = None) -> Image.Image:
    """A frame in full as an image that PNG keeps without loss.

    Args:
        picture: a file, its bytes, or pixels of any format in the memory of the host. YUV and
            mosaics become RGB as they do for the detector.
        bit_depth: of grey values of 16 bits in a file; None for those that it says it has.

    Returns:
        In mode RGB, L, or I;16, in which white is 65535.

    Raises:
        ImageError: the file cannot be decoded.
        UsageError: the pixels are in the memory of a GPU.
    """
    frame = picture if isinstance(picture, Frame) else load_frame(picture, bit_depth=bit_depth)
    if not frame.pixel_format.startswith("grey"):
        return Image.fromarray(Preprocess.whole(frame.size)(frame))
    grey = frame.in_host_memory().reshape(frame.size)
    white = frame.format.white
    if white == 255:
        return Image.fromarray(np.ascontiguousarray(grey))
    scaled = (grey.astype(np.uint32) * 65535 + white // 2) // white
    return Image.fromarray(scaled.clip(0, 65535).astype(np.uint16))
