"""Frames in shared memory: a ring that another program on this machine writes.

The layout of ``/dev/shm/NAME``, little-endian, for writers in any language:

    0    8 bytes   "PADIMSHM"
    8    uint32    1, the version of this layout
    12   uint32    slots, 2 at least
    16   uint64    bytes of a frame
    24   uint32    width
    28   uint32    height
    32   24 bytes  pixel format, as `padim_edge.images.formats` names it, padded with NUL
    56   uint64    frames written since the beginning, n
    64             slots, one after another, each
        0    uint64   number of the frame that is being written, from 1
        8    uint64   number of the frame that was written
        16   float64  seconds since 1970 at which it was exposed
        24   40 bytes 0
        64   the frame, without gaps; then up to the next multiple of 64

The writer makes the file under another name and renames it when the head is complete, and holds an
exclusive flock on it as long as it lives, so that its end is noticed however it ends. Frame number
n goes into slot (n - 1) modulo slots: n is stored in the first field, then time and pixels, then n
in the second field, then n at byte 56, in this order and seen so by other processors (release).
The reader looks at the first field again after it has copied a frame: if the writer has come round
meanwhile, it drops the copy. So no torn frame is ever given, and the writer never waits.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_edge.errors import UsageError
from padim_edge.images.formats import PIXEL_FORMATS, check_pixel_format, refusal
from padim_edge.images.frames import Frame
from padim_edge.live import addresses
from padim_edge.live.addresses import Address
from padim_edge.live.source import Captured, SourceError
from padim_edge.live.sources import Wanted, packed

FOLDER = Path("/dev/shm")

MAGIC, VERSION = b"PADIMSHM", 1
HEAD = struct.Struct("<8sIIQII24s")
COUNT = struct.Struct("<Q")
COUNT_AT = 56
FIRST_SLOT = 64
SLOT_HEAD = struct.Struct("<QQd")
SLOT_PIXELS = 64

POLL = 0.001
"""Seconds between two looks for a new frame: half of it is how late one is seen, on average."""

ALIVE = 0.5
"""Seconds without a frame after which the writer's lock is asked whether it lives, and again."""


_LAST_TIME = 2.0**34
"""Seconds since 1970 of the year 2514."""


def _slot_bytes(frame_bytes: int) -> int:
    return SLOT_PIXELS + (frame_bytes + 63) // 64 * 64


class _Fence:
    """Keeps stores and loads before and after it apart, for other processors, too.

    Python has no fence. What is before a lock's release stays before it, what is after the next
    lock's acquisition stays after that, and those two do not change places.
    """

    def __init__(self) -> None:
        self._one, self._other = threading.Lock(), threading.Lock()

    def __call__(self) -> None:
        with self._one:
            pass
        with self._other:
            pass


class SharedMemoryWriter:
    """Writes frames where ``shm:NAME`` reads them; for tests, and for programs in Python.

    Args:
        name: of the file in /dev/shm; replaced if it is there.
        size: (w, h).
        pixel_format: a name of `padim_edge.images.formats.PIXEL_FORMATS`.
        slots: frames that the ring holds. A reader loses what is more behind than that.

    Raises:
        UsageError: there is no such format, or no frame of it has this size.
    """

    def __init__(
        self, name: str, size: tuple[int, int], pixel_format: str = "rgb", slots: int = 4
    ) -> None:
        check_pixel_format(pixel_format)
        try:
            self._shape = packed.shape_of(pixel_format, *size)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._format = pixel_format
        self._path = FOLDER / name
        self._slots = max(2, slots)
        self._count = 0
        self._fence = _Fence()
        frame_bytes = math.prod(self._shape) * np.dtype(PIXEL_FORMATS[pixel_format].dtype).itemsize
        self._stride = _slot_bytes(frame_bytes)
        length = FIRST_SLOT + self._slots * self._stride
        new = self._path.with_name(f".{name}.{os.getpid()}")
        self._descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.truncate(self._descriptor, length)
            self._map = mmap.mmap(self._descriptor, length)
            encoded = pixel_format.encode()
            HEAD.pack_into(self._map, 0, MAGIC, VERSION, self._slots, frame_bytes, *size, encoded)
            new.replace(self._path)
        except BaseException:
            new.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise
        self._bytes = np.frombuffer(self._map, np.uint8)

    def write(self, pixels: NDArray[Any], taken: float | None = None) -> None:
        """Write a frame; the next reader that looks has it.

        Args:
            pixels: an array of this format and size.
            taken: seconds since 1970 at which it was exposed; now if None.

        Raises:
            UsageError: the pixels are something else.
        """
        form = PIXEL_FORMATS[self._format]
        if pixels.shape != self._shape or pixels.dtype != form.dtype:
            raise UsageError(f"{refusal(self._format, pixels)}; here {list(self._shape)}")
        number = self._count + 1
        start = FIRST_SLOT + self._count % self._slots * self._stride
        COUNT.pack_into(self._map, start, number)
        self._fence()
        struct.pack_into("<d", self._map, start + 16, time.time() if taken is None else taken)
        target = self._bytes[start + SLOT_PIXELS :][: pixels.nbytes]
        target.view(form.dtype).reshape(self._shape)[...] = pixels
        self._fence()
        COUNT.pack_into(self._map, start + 8, number)
        self._fence()
        COUNT.pack_into(self._map, COUNT_AT, number)
        self._count = number

    def close(self) -> None:
        """End: readers are told so. Twice is harmless."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            # Closing is not enough: the map has a descriptor of its own, of the same lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1


class SharedMemorySource:
    """The newest frames of a ring, ``shm:NAME``.

    ``size`` and ``format`` are in the ring; given as options, they are checked. A frame that was
    written over before it could be copied is a gap in the sequence.

    Raises:
        SourceError: there is no such ring now, or nobody writes it.
        UsageError: it is no ring, or not of the size or format that was asked for.
    """

    is_live = True

    def __init__(self, address: Address, wanted: Wanted) -> None:
        address.check_options(("size", "format"))
        self.address = str(address)
        name = address.path.strip("/")
        if not name or "/" in name:
            raise address.refused("a name of a file in /dev/shm is needed")
        try:
            descriptor = os.open(FOLDER / name, os.O_RDONLY)
        except OSError as error:
            raise SourceError(f"{self.address} cannot be opened: {error.strerror}") from error
        try:
            self._map = self._mapped(descriptor, address)
            self._descriptor = descriptor
            self._read_head(address, wanted)
            if self._writer_has_gone():
                raise SourceError(f"{self.address}: nobody writes to it any more")
        except BaseException:
            os.close(descriptor)
            raise
        self._fence = _Fence()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._begun = False

    def describe(self) -> str:
        """Size, format and length of the ring."""
        return (
            f"{self.address}: {self._size[0]}x{self._size[1]} {self._format}, {self._slots} slots"
        )

    def __iter__(self) -> Iterator[Captured]:
        """The frames that are written from now on, and the newest before.

        Raises:
            SourceError: the writer has ended.
        """
        with self._lock:
            if self._closed.is_set():
                return
            self._begun = True
        done = max(0, self._written() - 1)
        first = done
        asked = time.monotonic() + ALIVE
        try:
            while not self._closed.is_set():
                written = self._written()
                if written <= done:
                    if time.monotonic() > asked:
                        # Asked before the last look: what it wrote at its end is not lost.
                        gone = self._writer_has_gone()
                        if gone and self._written() <= done:
                            raise SourceError(f"{self.address}: who wrote to it has ended")
                        asked = time.monotonic() + ALIVE
                    self._closed.wait(POLL)
                    continue
                asked = time.monotonic() + ALIVE
                # The slot after the newest is the one being written over.
                done = max(done + 1, written - self._slots + 2)
                taken = self._copy(done)
                if taken is not None:
                    pixels, when = taken
                    # A writer whose clock gives no time that there is would spoil the event.
                    time_is = when if 0 <= when < _LAST_TIME else time.time()
                    yield Captured(Frame(pixels, self._format), done - 1 - first, time_is)
        finally:
            self._release()

    def close(self) -> None:
        """Wake whoever waits. Twice is harmless."""
        with self._lock:
            self._closed.set()
            if not self._begun:
                self._release()

    def _mapped(self, descriptor: int, address: Address) -> mmap.mmap:
        length = os.fstat(descriptor).st_size
        if length < FIRST_SLOT:
            raise address.refused("it is no ring of frames")
        return mmap.mmap(descriptor, length, prot=mmap.PROT_READ)

    def _read_head(self, address: Address, wanted: Wanted) -> None:
        magic, version, self._slots, frame_bytes, width, height, form = HEAD.unpack_from(self._map)
        if magic != MAGIC or version != VERSION:
            raise address.refused(f"it is no ring of frames of version {VERSION}")
        self._size = (width, height)
        given = form.rstrip(b"\0").decode(errors="replace")
        try:
            self._format = packed.pixel_format(wanted.pixel_format or given)
            self._shape = packed.shape_of(self._format, width, height)
        except ValueError as error:
            raise address.refused(str(error)) from error
        self._dtype = np.dtype(PIXEL_FORMATS[self._format].dtype)
        self._stride = _slot_bytes(frame_bytes)
        expected = math.prod(self._shape) * self._dtype.itemsize
        length = FIRST_SLOT + self._slots * self._stride
        if not expected or frame_bytes != expected or self._slots < 2 or len(self._map) < length:
            raise address.refused(
                f"it has frames of {frame_bytes} bytes; {width}x{height} in {self._format} are "
                f"{expected}"
            )
        size = address.option("size", addresses.size, self._size)
        named = address.option("format", packed.pixel_format, given)
        if size != self._size or named != given:
            raise address.refused(f"it has {width}x{height} in {given}")

    def _written(self) -> int:
        count: int = COUNT.unpack_from(self._map, COUNT_AT)[0]
        return count

    def _copy(self, number: int) -> tuple[NDArray[Any], float] | None:
        """A frame and its time; None if it was written over meanwhile."""
        start = FIRST_SLOT + (number - 1) % self._slots * self._stride
        self._fence()
        began, ended, taken = SLOT_HEAD.unpack_from(self._map, start)
        if (began, ended) != (number, number):
            return None
        whole = np.frombuffer(
            self._map, self._dtype, math.prod(self._shape), start + SLOT_PIXELS
        ).copy()
        self._fence()
        if COUNT.unpack_from(self._map, start)[0] != number:
            return None
        return whole.reshape(self._shape), taken

    def _writer_has_gone(self) -> bool:
        """Whether the writer's lock is free."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True

    def _release(self) -> None:
        if self._descriptor >= 0:
            self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1
