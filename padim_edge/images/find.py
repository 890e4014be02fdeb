"""Finding: the image files that a file, a folder or a pattern stands for."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from padim_edge.errors import PadimEdgeError

#: Files in a folder that are taken for images, in any case.
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@contextlib.contextmanager
def reading_folders() -> Iterator[None]:
    """Turn the system's refusals to look into a folder into one line; also a decorator."""
    try:
        yield
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read {error.filename}: {error.strerror}; make it readable"
        ) from error


@reading_folders()
def find_images(source: str | Path) -> list[Path]:
    """The image files that a file, a folder or a pattern stands for.

    Args:
        source: a file, of any name; a folder, searched with all folders below it; or a pattern
            with ``*``, ``?``, ``[...]`` and ``**`` (any depth). In folders and patterns only
            names with one of ``SUFFIXES`` count, and hidden files and folders do not.

    Returns:
        The paths, sorted, at least one.

    Raises:
        PadimEdgeError: there is no such file or folder, a folder cannot be read, or no image is
            found.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = images_under(path)
    elif re.search(r"[*?[]", str(source)):
        matches = map(Path, glob.glob(str(source), recursive=True))  # noqa: PTH207 - skips hidden
        found = sorted(match for match in matches if _is_image(match) and match.is_file())
    else:
        raise PadimEdgeError(f"no such file or folder: {source}; give one, or a pattern like *.png")
    if not found:
        raise PadimEdgeError(
            f"no image found in {source}; names that end in {' '.join(sorted(SUFFIXES))} count, "
            "hidden ones do not"
        )
    return found


@reading_folders()
def images_under(folder: Path) -> list[Path]:
    """The images in a folder and all folders below it, as :func:`find_images`, or an empty list.

    Raises:
        PadimEdgeError: a folder cannot be read.
    """
    found: list[Path] = []
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # links may lead back up
            folders.clear()
            continue
        visited.add(real)
        # In place, for os.walk to follow. Sorted: which of two links to a folder comes first.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += (Path(root, name) for name in files if _is_image(Path(name)))
    return sorted(path for path in found if path.is_file())


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
