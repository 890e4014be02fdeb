"""When a frame was taken, of time stamps whose zero nobody tells us."""

from __future__ import annotations

import math

SPAN = 30.0
"""Seconds after which what is known of the shortest delay begins to be forgotten: the camera's
clock and ours drift apart."""

JUMP = 60.0
"""Seconds that a frame may come late; beyond, its stamps have begun anew."""


class Clock:
    """Puts a source's own time stamps on our clock.

    The frame that came soonest after its stamp, in the last half to whole minute, is taken to have
    come at once; so a frame that had to wait in a buffer is known to be old. What even the
    soonest one took, in the camera and on the wire, cannot be known and is left out.
    """

    def __init__(self) -> None:
        self._begin(-math.inf)

    def _begin(self, now: float) -> None:
        self._delay = self._before = math.inf
        self._since = now
        self._last = -math.inf

    def __call__(self, stamp: float | None, now: float) -> float:
        """Seconds since 1970 for a stamp in seconds, of a frame that is here ``now``."""
        if stamp is None:
            return now
        delay = now - stamp
        if stamp < self._last or delay - min(self._delay, self._before) > JUMP:
            self._begin(now)
        if now - self._since > SPAN:
            self._before, self._delay, self._since = self._delay, math.inf, now
        self._last = stamp
        self._delay = min(self._delay, delay)
        return stamp + min(self._delay, self._before)
