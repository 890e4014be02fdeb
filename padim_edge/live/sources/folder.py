"""Image files that are there now: each once, in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from padim_edge.images.find import find_images
from padim_edge.live.addresses import Address
from padim_edge.live.source import Captured
from padim_edge.live.sources import Wanted, no_pixel_format


class FileSource:
    """Image files, decoded by whoever prepares them.

    Args:
        address: as given.
        paths: the files; each is read when its frame is prepared.
    """

    is_live = False

    def __init__(self, address: Address, paths: Sequence[Path]) -> None:
        self.address = str(address)
        self._paths = paths
        self._closed = threading.Event()

    def describe(self) -> str:
        """How many images there are."""
        return f"{len(self._paths)} image{'s' * (len(self._paths) != 1)} of {self.address}"

    def __iter__(self) -> Iterator[Captured]:
        """Each file once; one that cannot be read is told of by whoever decodes it."""
        for sequence, path in enumerate(self._paths):
            if self._closed.is_set():
                return
            yield Captured(path, sequence, time.time(), str(path))

    def close(self) -> None:
        """Give no more."""
        self._closed.set()


class FolderSource(FileSource):
    """The images of a folder and all folders below it, of a pattern, or one image.

    Raises:
        PadimEdgeError: there are none.
        UsageError: options or a pixel format were given.
    """

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(())
        no_pixel_format(address, wanted)
        super().__init__(address, find_images(address.path))
