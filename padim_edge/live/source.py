"""What a source of live frames is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.frames import Frame


class SourceError(PadimEdgeError):
    """A source cannot be opened, or gives no more frames; another try may succeed."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A frame as it came from a source.

    Attributes:
        picture: the pixels in the camera's own format, which nobody writes to any more; the path
            of an image file, decoded when it is prepared; or why there is nothing to judge.
        sequence: the source's own count, from 0; a gap is of frames that were lost before they
            came to us.
        time: seconds since 1970 at which it was exposed, where the camera says so, else at which
            it arrived.
        name: the path of a file, in words the moment in a video; "" if the number says it all.
        keys: what is to be judged once only (a file of a hot folder) may be known again by any of
            them, even after a restart, and is by all; none where that makes no sense.
    """

    picture: Frame | Path | ImageError
    sequence: int
    time: float
    name: str = ""
    keys: tuple[str, ...] = ()


@runtime_checkable
class Source(Protocol):
    """Where frames come from; made by `padim_edge.live.sources.open_source`.

    Attributes:
        address: as it was given, without a password.
        is_live: frames come in their own time, and one that is not taken is gone: the newest is
            wanted, and when they end it is a fault.
    """

    address: str
    is_live: bool

    def describe(self) -> str:
        """What was opened: size, format, rate, in words."""

    def __iter__(self) -> Iterator[Captured]:
        """The frames, once. Ends when there are no more, or after `close`.

        Raises:
            SourceError: a live source was lost.
        """

    def close(self) -> None:
        """Let go of it, from any thread; whoever waits for a frame wakes. Twice is harmless."""
