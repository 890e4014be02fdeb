"""Sources, by their addresses: one file each, imported when it is asked for.

`open_source` is the door; `SOURCES` is the table of what there is, for help and documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from padim_edge.errors import MissingDependencyError, UsageError
from padim_edge.images.find import SUFFIXES
from padim_edge.images.formats import check_pixel_format
from padim_edge.live.addresses import Address, parse
from padim_edge.live.source import Source
from padim_edge.runtime.engines import load

__all__ = ["SOURCES", "Wanted", "open_source"]


class Kind(NamedTuple):
    """A kind of source: where its class is, and what to tell about it."""

    place: str
    example: str
    what: str


_HERE = "padim_edge.live.sources"

SOURCES: dict[str, Kind] = {
    "": Kind("", "photos/", "a path: a folder, a pattern, an image, a video, or /dev/video0"),
    "folder": Kind(f"{_HERE}.folder:FolderSource", "folder:photos/", "images, once, in order"),
    "hot": Kind(f"{_HERE}.hot_folder:HotFolderSource", "hot:inbox/", "files as they arrive"),
    "list": Kind(f"{_HERE}.image_list:ListSource", "list:images.txt", "paths, one a line; - stdin"),
    "video": Kind(f"{_HERE}.video:VideoSource", "video:line.mp4", "a video file"),
    "rtsp": Kind(f"{_HERE}.stream:StreamSource", "rtsp://camera/1", "a network camera"),
    "rtsps": Kind(f"{_HERE}.stream:StreamSource", "rtsps://camera/1", "the same, over TLS"),
    "http": Kind(f"{_HERE}.stream:StreamSource", "http://camera/mjpg", "video or MJPEG"),
    "https": Kind(f"{_HERE}.stream:StreamSource", "https://camera/mjpg", "the same, over TLS"),
    "v4l2": Kind(
        f"{_HERE}.v4l2:V4l2Source", "v4l2:/dev/video0?size=1920x1080&fps=30", "a camera of Linux"
    ),
    "genicam": Kind(
        f"{_HERE}.genicam:GenicamSource", "genicam:Basler-21234567", "GigE or USB3 Vision"
    ),
    "aravis": Kind(f"{_HERE}.genicam:GenicamSource", "aravis:Basler-21234567", "the same"),
    "gst": Kind(
        f"{_HERE}.gstreamer:GstreamerSource",
        "gst:nvarguscamerasrc ! nvvidconv ! video/x-raw,format=NV12",
        "a pipeline of GStreamer",
    ),
    "raw": Kind(
        f"{_HERE}.raw:RawSource", "raw:-?size=1920x1080&format=nv12", "bare frames on stdin"
    ),
    "shm": Kind(
        f"{_HERE}.shared_memory:SharedMemorySource", "shm:camera1", "frames in shared memory"
    ),
}
"""Scheme -> kind, in the order in which they are told of."""

_EXTRAS = {"av": "live"}


def never(_key: str) -> bool:
    """Nothing was judged before."""
    return False


@dataclass(frozen=True)
class Wanted:
    """What the user of a source wants of it.

    Attributes:
        seen: whether a key was judged before, for `HotFolderSource`.
        pixel_format: what the pixels are, where the source does not say or is wrong.
    """

    seen: Callable[[str], bool] = never
    pixel_format: str | None = None


def open_source(
    address: str, *, seen: Callable[[str], bool] = never, pixel_format: str | None = None
) -> Source:
    """Open what an address stands for.

    Args:
        address: a scheme of `SOURCES` with what it makes of the rest, or a path.
        seen: told the key of a file that has arrived, whether it was judged before.
        pixel_format: a name of `padim_edge.images.formats.PIXEL_FORMATS`: how the pixels are to be
            read, where the source does not say, or says it wrongly (BT.601 in place of BT.709).

    Raises:
        UsageError: the address or the pixel format makes no sense.
        MissingDependencyError: its package is not installed.
        SourceError: it is not there now; another try may succeed.
        PadimEdgeError: there is no such file.
    """
    parsed = parse(address, "source", SOURCES)
    if pixel_format is not None:
        check_pixel_format(pixel_format)
    try:
        kind = load(SOURCES[parsed.scheme or _scheme_of(parsed.path)].place)
    except ModuleNotFoundError as error:
        if error.name in _EXTRAS:
            raise MissingDependencyError(
                f"the source {parsed}", error.name, _EXTRAS[error.name]
            ) from error
        raise
    source: Source = kind(parsed, Wanted(seen, pixel_format))
    return source


def _scheme_of(path: str) -> str:
    """What a path without a scheme is."""
    if re.fullmatch(r"/dev/(video\d+|v4l/.+)", path):
        return "v4l2"
    if not Path(path).is_file() or Path(path).suffix.lower() in SUFFIXES:
        return "folder"
    return "video"


def no_pixel_format(address: Address, wanted: Wanted) -> None:
    """Refuse a pixel format for image files, which say themselves what they are.

    Raises:
        UsageError: one was given.
    """
    if wanted.pixel_format:
        raise UsageError(f"{address} holds image files: a pixel format is for cameras and videos")
