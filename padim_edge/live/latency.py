"""Latencies of any number of frames, in a few kilobytes."""

from __future__ import annotations

import math
import threading

import numpy as np

RESOLUTION = 0.01
"""A quantile is at most this share too high, and never too low."""

SHORTEST = 1e-4
"""Seconds; what took less counts as this."""

LONGEST = 1e4
"""Seconds; what took more counts as this."""

_STEP = math.log1p(RESOLUTION)
_BINS = math.ceil(math.log(LONGEST / SHORTEST) / _STEP) + 1


class Latencies:
    """A histogram whose bins grow by a hundredth each; in any thread.

    Attributes:
        count: of latencies that were added.
        longest: of them, seconds, exactly.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bins = np.zeros(_BINS, np.int64)
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one. A clock that was set back makes it 0."""
        seconds = max(seconds, 0.0)
        place = math.ceil(math.log(max(seconds, SHORTEST) / SHORTEST) / _STEP - 1e-9)
        with self._lock:
            self._bins[min(place, _BINS - 1)] += 1
            self.count += 1
            self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float | None:
        """The latency, seconds, that this share of frames does not exceed; None if there are none.

        The upper edge of its bin, so 0 to 1 % too high; never more than the longest.
        """
        with self._lock:
            if not self.count:
                return None
            rank = max(math.ceil(share * self.count), 1)
            place = int(np.searchsorted(np.cumsum(self._bins), rank))
            return min(SHORTEST * math.exp(place * _STEP), self.longest)

    def take(self, other: Latencies) -> None:
        """Become what ``other`` counted, which begins anew."""
        with self._lock, other._lock:
            self._bins, other._bins = other._bins, np.zeros(_BINS, np.int64)
            self.count, other.count = other.count, 0
            self.longest, other.longest = other.longest, 0.0
