"""Samples: pictures of the operator's that the page shows, to be judged by a click."""

from __future__ import annotations

import contextlib
import io
import itertools
import mimetypes
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ImageOps

from padim_edge.errors import ImageError, PadimEdgeError, UsageError
from padim_edge.files import file_state
from padim_edge.images.decode import NoSuchImageError, check_head, load_image
from padim_edge.images.find import find_images

MOST = 300
"""Samples that are shown; where there are more images, so many of each folder as of the others."""

SIDE = 144
"""Pixels of a thumbnail: twice what it takes on the page, for screens that have them."""


class Samples:
    """Images below a folder, looked for once. Clients name them by number, never by path.

    Nothing but image files is handed out, and none from elsewhere: a link that leads out of the
    folder is no sample, nor when it takes the place of one later.

    Args:
        folder: searched, with all folders below it.
        max_bytes: of a file.
        max_pixels: of an image.

    Raises:
        UsageError: it is no folder.
        PadimEdgeError: it cannot be read, or holds no image.
    """

    def __init__(self, folder: Path, max_bytes: int, max_pixels: int) -> None:
        if not folder.is_dir():
            raise UsageError(f"--samples {folder}: there is no such folder; name one with photos")
        self._folder, self._root = folder, folder.resolve()
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        found = find_images(folder)
        self._total = len(found)
        self._paths = sorted(itertools.islice(filter(self._is_inside, _in_turn(found)), MOST))
        if not self._paths:
            raise PadimEdgeError(
                f"--samples {folder}: none of its {self._total} images is a file within it; links "
                "that lead out are not shown: name the folder of the files themselves"
            )
        self._thumbnails: dict[Path, tuple[tuple[int, ...], bytes]] = {}

    def __str__(self) -> str:
        return f"{len(self._paths)} of {self._total} images in {self._folder}"

    def listed(self) -> list[dict[str, Any]]:
        """Of each its number, its name, and its kind: the folder that it lies in, or ""."""
        listed = []
        for number, path in enumerate(self._paths):
            kind = path.parent.relative_to(self._folder)
            parts = {"kind": "" if kind == Path() else _text(kind), "name": _text(path.name)}
            listed.append({"number": number, **parts})
        return listed

    def read(self, number: str) -> tuple[bytes, str]:
        """A sample's file, and its media type by its name.

        Args:
            number: as a client wrote it.

        Raises:
            NoSuchImageError: there is none of this number, or not any more.
            ImageError: it is no image, has too many bytes or pixels, or cannot be read.
        """
        path = self._path(number)
        with self._opened(path) as stream:
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            return self._contents(stream), kind

    def thumbnail(self, number: str) -> bytes:
        """The middle of a sample, as a square JPEG of `SIDE` pixels a side. Raises as `read`."""
        path = self._path(number)
        with self._opened(path) as stream:
            state, kept = file_state(os.fstat(stream.fileno())), self._thumbnails.get(path)
            if kept is None or kept[0] != state:
                drawn = io.BytesIO()
                image = ImageOps.fit(load_image(self._contents(stream)), (SIDE, SIDE))
                image.save(drawn, "JPEG", quality=85)
                kept = self._thumbnails[path] = state, drawn.getvalue()
        return kept[1]

    def _path(self, number: str) -> Path:
        for at, path in enumerate(self._paths):
            if str(at) == number:
                return path
        raise NoSuchImageError("there is none of this number; /v1/samples lists them")

    def _is_inside(self, path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(self._root)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        """A sample's file, if it is still one within the folder."""
        try:
            real = path.resolve(strict=True)
            if not real.is_relative_to(self._root):
                raise FileNotFoundError
            with open(real, "rb", opener=_strictly) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise FileNotFoundError
                yield stream
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchImageError("is not there any more") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise ImageError("cannot be read") from error

    def _contents(self, stream: BinaryIO) -> bytes:
        encoded = stream.read(self._max_bytes + 1)
        if len(encoded) > self._max_bytes:
            raise ImageError(f"has more than {self._max_bytes} bytes")
        check_head(encoded, self._max_pixels)
        return encoded


def _strictly(path: str, flags: int) -> int:
    """Neither wait for a pipe, nor follow what has become a link since."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _in_turn(paths: Sequence[Path]) -> Iterator[Path]:
    """One of each folder, then the next of each, until there are none."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    rounds = itertools.zip_longest(*folders.values())
    return (path for one in rounds for path in one if path is not None)


def _text(path: Path | str) -> str:
    """A name for people and JSON, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "replace")
