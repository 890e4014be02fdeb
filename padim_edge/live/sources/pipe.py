"""Reading from a pipe, a file or a terminal, from which another thread can call one away."""

from __future__ import annotations

import os
import select
import threading
from typing import Any


class PipeClosedError(Exception):
    """Somebody called `Pipe.close`."""


class Pipe:
    """Reads from a descriptor until somebody closes it.

    Args:
        descriptor: is closed with this if it is ``ours``.
    """

    def __init__(self, descriptor: int, ours: bool = True) -> None:
        self._descriptor = descriptor
        self._ours = ours
        self._woken, self._waker = os.pipe()
        self._lock = threading.Lock()
        self._reading = self._closed = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def read_into(self, buffer: Any) -> int:
        """Fill a buffer; returns how many bytes there were before the end of the data.

        Raises:
            PipeClosedError: it was closed.
            OSError: it cannot be read.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            if not self.wait(None):
                continue
            try:
                count = os.readv(self._descriptor, [view[done:]])
            except BlockingIOError:
                continue
            if not count:
                break
            done += count
        return done

    def wait(self, seconds: float | None) -> bool:
        """Wait until there is something to read, or the end; whether there is.

        Raises:
            PipeClosedError: it was closed.
        """
        ready = self._poll.poll(None if seconds is None else seconds * 1000)
        if self._closed:
            raise PipeClosedError
        return any(descriptor == self._descriptor for descriptor, _ in ready)

    def close(self) -> None:
        """Wake whoever reads; they `release` it then. Twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.write(self._waker, b"x")

    def release(self) -> None:
        """Give the descriptors back, when nobody reads any more. Twice is harmless."""
        with self._lock:
            self._closed = True
            if self._woken >= 0:
                for descriptor in (self._woken, self._waker, *[self._descriptor] * self._ours):
                    os.close(descriptor)
                self._woken = -1
