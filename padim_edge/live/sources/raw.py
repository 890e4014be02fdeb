"""Bare frames, one after another: on standard input, from a named pipe or a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.frames import Frame
from padim_edge.live import addresses
from padim_edge.live.addresses import Address
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import Wanted, packed
from padim_edge.live.sources.pipe import Pipe, PipeClosedError


class RawSource:
    """The frames of ``raw:-?size=1920x1080&format=nv12`` (standard input), or of a path.

    Rows follow one another without gaps, frames too; values of two bytes have their low one first.
    With ``live=yes`` frames come in their own time, and an end is a fault.

    Raises:
        UsageError: there is no size, or the format has no frames of it.
        PadimEdgeError: it cannot be opened.
    """

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(("size", "format", "live"))
        if "size" not in address.options:
            raise address.refused("size=WIDTHxHEIGHT is needed: bare frames do not say it")
        self.address = str(address)
        width, height = address.option("size", addresses.size, (0, 0))
        self._format = wanted.pixel_format or address.option("format", packed.pixel_format, "rgb")
        self._size = (width, height)
        self.is_live = address.option("live", addresses.one_of("yes", "no"), "no") == "yes"
        try:
            packed.shape_of(self._format, width, height)
        except ValueError as error:
            raise address.refused(str(error)) from error
        try:
            if address.path == "-":
                self._pipe = Pipe(sys.stdin.fileno(), ours=False)
            else:
                # Or opening a named pipe would wait for whoever writes, and nobody could end it.
                self._pipe = Pipe(os.open(address.path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as error:
            raise PadimEdgeError(
                f"{self.address} cannot be opened: {error.strerror}; give a file that can be read, "
                "or - for standard input"
            ) from error
        self._begun = False

    def describe(self) -> str:
        """Size and format."""
        return f"{self.address}: {self._size[0]}x{self._size[1]} {self._format}"

    def __iter__(self) -> Iterator[Captured]:
        """Each frame; of one that is cut off an ImageError.

        Raises:
            SourceError: a live one has ended, or cannot be read.
        """
        self._begun = True
        sequence = 0
        try:
            while True:
                pixels = packed.new_array(self._format, *self._size)
                count = self._pipe.read_into(pixels)
                if count < pixels.nbytes:
                    break
                yield Captured(Frame(pixels, self._format), sequence, time.time())
                sequence += 1
        except PipeClosedError:
            return
        except OSError as error:
            raise SourceError(f"{self.address} cannot be read: {error.strerror}") from error
        finally:
            self._pipe.release()
        if count:
            cut = f"{self.address} ended within a frame: {count} of {pixels.nbytes} bytes"
            yield Captured(ImageError(cut), sequence, time.time())
        if self.is_live:
            raise SourceError(f"{self.address} has ended: the other side sends no more")

    def close(self) -> None:
        """Wake whoever reads, and give no more."""
        self._pipe.close()
        if not self._begun:
            self._pipe.release()
