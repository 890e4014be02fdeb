"""The caller's thread and a few more, for work on one frame that can be cut up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """Threads that share the work on one frame.

    Args:
        count: of threads, the caller's among them; at least 1.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, "padim-edge-bands") if count > 1 else None

    def run(self, function: Callable[[T], None], items: Sequence[T]) -> None:
        """Call a function on each item; returns when all are done.

        The first in the caller's thread: waking another takes long, beside a frame's milliseconds.
        """
        if self._pool is None:
            for item in items:
                function(item)
            return
        first, *rest = items
        futures = [self._pool.submit(function, item) for item in rest]
        try:
            function(first)
        finally:
            wait(futures)
        for future in futures:
            future.result()

    def close(self) -> None:
        """End the threads. Closing twice is harmless."""
        if self._pool is not None:
            self._pool.shutdown()


ALONE = Threads()
"""The caller's thread alone."""
