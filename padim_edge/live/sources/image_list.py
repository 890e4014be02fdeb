"""Image files named by a list."""

from __future__ import annotations

import sys
from pathlib import Path

from padim_edge.errors import PadimEdgeError
from padim_edge.images.find import read_list
from padim_edge.live.addresses import Address
from padim_edge.live.sources import Wanted, no_pixel_format
from padim_edge.live.sources.folder import FileSource


class ListSource(FileSource):
    """The images of ``list:FILE``, or of ``list:-`` on stdin: paths, one a line or NUL between.

    Raises:
        PadimEdgeError: the list cannot be read, or names nothing.
        UsageError: options or a pixel format were given.
    """

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(())
        no_pixel_format(address, wanted)
        try:
            text = (
                sys.stdin.buffer.read() if address.path == "-" else Path(address.path).read_bytes()
            )
        except OSError as error:
            raise PadimEdgeError(
                f"cannot read the list {address.path}: {error.strerror}; give a readable file, or -"
            ) from error
        paths = read_list(text)
        if not paths:
            raise PadimEdgeError(f"the list {address.path} names no image: one a line is needed")
        super().__init__(address, paths)
