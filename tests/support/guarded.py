"""Memory whose ends are watched: what reads or writes beyond ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np


class Guarded:
    """Copies of arrays that end, or begin, exactly at a page that must not be touched."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.kept = []

    def __call__(self, array):
        page = mmap.PAGESIZE
        size = max(array.nbytes, 1)
        pages = -(-size // page)
        region = mmap.mmap(-1, (pages + 2) * page)
        self.kept.append(region)
        base = np.frombuffer(region, np.uint8).ctypes.data
        for guard in (0, pages + 1):
            result = self.libc.mprotect(
                ctypes.c_void_p(base + guard * page), ctypes.c_size_t(page), 0
            )
            assert result == 0
        start = (pages + 1) * page - array.nbytes if self.at_end else page
        copy = np.frombuffer(region, array.dtype, array.size, start)
        copy[...] = array
        return copy
