"""Finding: the image files that files, folders and patterns stand for, and what else is there."""

from __future__ import annotations

import codecs
import contextlib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from padim_edge.errors import PadimEdgeError
from padim_edge.images.stored_path import StoredPath, as_path

#: Files in a folder that are taken for images, in any case.
SUFFIXES = frozenset(
    {
        *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)


@dataclass(frozen=True)
class Found:
    """What a source holds.

    Attributes:
        images: files that are taken for images, sorted. A link that leads nowhere is among them:
            a photo was meant, and cannot be read.
        others: what is no image, by kind -> how many; a kind is a suffix such as ".txt", or words.
    """

    images: list[Path]
    others: Counter[str]

    def __str__(self) -> str:
        """What is no image, in words; empty if there is nothing else."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))


@contextlib.contextmanager
def reading_folders() -> Iterator[None]:
    """Turn the system's refusals to look into a folder into one line; also a decorator."""
    try:
        yield
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read {error.filename}: {error.strerror}; make it readable"
        ) from error


def find_images(source: str | Path) -> list[Path]:
    """The image files that a file, a folder or a pattern stands for.

    Args:
        source: a file, of any name; a folder, searched with all folders below it; or a pattern
            with ``*``, ``?``, ``[...]`` and ``**`` (any depth). In folders and patterns only
            names with one of ``SUFFIXES`` count, and hidden files and folders do not. Also by the
            address of an object store (`padim_edge.images.stored_path`).

    Returns:
        The paths, sorted, at least one.

    Raises:
        PadimEdgeError: there is no such file or folder, a folder cannot be read, or no image is
            found.
    """
    return look([source]).images


@reading_folders()
def look(sources: Sequence[str | Path]) -> Found:
    """What several sources hold together, each as :func:`find_images` takes one.

    Returns:
        Images in the order of the sources, each path once, at least one; and everything else.

    Raises:
        PadimEdgeError: as in :func:`find_images`, for any of the sources.
    """
    images: dict[Path, None] = {}
    others: Counter[str] = Counter()
    for source in sources:
        found = _look(source)
        if not found.images:
            beside = f"; there are {found}" if found.others else ""
            raise PadimEdgeError(
                f"no image found in {source}{beside}; names that end in "
                f"{' '.join(sorted(SUFFIXES))} count, hidden ones do not"
            )
        images |= dict.fromkeys(found.images)
        others += found.others
    return Found(list(images), others)


def _look(source: str | Path) -> Found:
    path = as_path(source)
    if path.is_file() or (path.is_symlink() and not path.exists()):
        return Found([path], Counter())
    if path.is_dir():
        return _sorted_out(_below(path))
    if isinstance(path, StoredPath) and re.search(r"[*?[]", str(source)):
        return _sorted_out(path.matches())
    if re.search(r"[*?[]", str(source)):
        matches = map(Path, glob.glob(str(source), recursive=True))  # noqa: PTH207 - skips hidden
        # A pattern with ** matches each folder that it looks into.
        return _sorted_out(
            match for match in matches if "**" not in str(source) or not match.is_dir()
        )
    raise PadimEdgeError(f"no such file or folder: {source}; give one, or a pattern like *.png")


def read_list(text: bytes) -> list[Path]:
    """The paths of a list, one a line, or with NUL between them as ``find -print0`` writes it."""
    separator = b"\0" if b"\0" in text else b"\n"
    lines = text.removeprefix(codecs.BOM_UTF8).split(separator)
    return [as_path(os.fsdecode(line.rstrip(b"\r"))) for line in lines if line.strip()]


@reading_folders()
def images_under(folder: Path) -> list[Path]:
    """The images in a folder and all folders below it, as :func:`find_images`, or an empty list.

    Raises:
        PadimEdgeError: a folder cannot be read.
    """
    return _sorted_out(_below(folder)).images


@reading_folders()
def beside(paths: Iterable[Path]) -> Found:
    """What is no image, in the folders that images lie in."""
    folders = sorted({path.parent for path in paths})
    found = _sorted_out(
        path
        for folder in folders
        for path in (folder.files() if isinstance(folder, StoredPath) else folder.iterdir())
    )
    del found.others["folder"]  # which are searched, or were not meant
    return Found([], found.others)


def places(paths: Iterable[Path]) -> str:
    """Where files lie, in words: "12 of photos/monday, 30 of photos/tuesday"."""
    folders = Counter(str(path.parent) for path in paths)
    named = [f"{count} of {folder}" for folder, count in folders.most_common(4)]
    rest = sum(folders.values()) - sum(count for _, count in folders.most_common(4))
    return ", ".join(named + [f"{rest} of {len(folders) - 4} more folders"] * (rest > 0))


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, and hidden folders, which are not searched."""
    if isinstance(folder, StoredPath):
        yield from dict.fromkeys(_until_hidden(folder, path) for path in folder.below())
        return
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # links may lead back up
            folders.clear()
            continue
        visited.add(real)
        yield from (Path(root, name) for name in folders if name.startswith("."))
        # In place, for os.walk to follow. Sorted: which of two links to a folder comes first.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files)


def _until_hidden(folder: Path, path: Path) -> Path:
    """A path below a folder, or the hidden folder that it lies in."""
    parts = path.relative_to(folder).parts
    depths = (depth for depth, part in enumerate(parts, 1) if part.startswith("."))
    return folder.joinpath(*parts[: next(depths, None)])


def _sorted_out(paths: Iterable[Path]) -> Found:
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in paths:
        kind = _other_kind(path)
        if kind is None:
            images.append(path)
        else:
            others[kind] += 1
    return Found(sorted(images), others)


def _other_kind(path: Path) -> str | None:
    """What a path is if it is no image."""
    if path.name.startswith("."):
        return "hidden"
    stored = isinstance(path, StoredPath)  # and listed as a file, of which it need not be asked
    if not stored and path.is_dir():
        return "folder"
    if path.suffix.lower() not in SUFFIXES:
        return path.suffix.lower() or "without a suffix"
    return None if stored or path.is_file() or not path.exists() else "device or pipe"


def _raise(error: OSError) -> NoReturn:
    raise error
