"""Frames that wait for the judge: bounded, by camera, and taken fairly."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from padim_edge.errors import UsageError

POLICIES = ("latest", "all")
"""latest: a new frame takes the place of the one that waits. all: it waits for room."""

WAITING = 4
"""Frames of a camera that wait under the policy "all", at most."""

T = TypeVar("T")


def check_policy(name: str | None) -> None:
    """Refuse what is no policy; None is left to the source.

    Raises:
        UsageError: there is none of this name.
    """
    if name is not None and name not in POLICIES:
        raise UsageError(f"no policy {name!r}; allowed are {' and '.join(POLICIES)}")


class FrameQueue(Generic[T]):
    """What waits, by camera. Many threads put, one takes.

    Args:
        cameras: how many there are; each is a number from 0.
    """

    def __init__(self, cameras: int) -> None:
        self._waiting: list[deque[T]] = [deque() for _ in range(cameras)]
        self._changed = threading.Condition()
        self._turn = 0
        self._closed = self._abandoned = False

    def put(self, camera: int, item: T, policy: str) -> list[T]:
        """Let a frame wait.

        Returns:
            What nobody will take any more: of "latest" the frame that waited before; the frame
            itself once the queue is abandoned.
        """
        with self._changed:
            waiting = self._waiting[camera]
            if policy == "all":
                self._changed.wait_for(lambda: len(waiting) < WAITING or self._abandoned)
            if self._abandoned:
                return [item]
            displaced = list(waiting) if policy == "latest" else []
            if displaced:
                waiting.clear()
            waiting.append(item)
            self._changed.notify_all()
            return displaced

    def take(
        self, most: int, fits: Callable[[T, T], bool], timeout: float | None = None
    ) -> list[T] | None:
        """Take frames that can be judged together, by turns: no camera waits for another's second.

        Args:
            most: frames to take; those that are there are taken, more are not waited for.
            fits: whether a frame can be judged with the first one.
            timeout: seconds to wait for the first.

        Returns:
            In the order of their cameras' turns; none after the timeout; None once the queue is
            closed and empty.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: any(self._waiting) or self._closed or self._abandoned, timeout
            )
            if self._abandoned or (self._closed and not any(self._waiting)):
                return None
            taken: list[T] = []
            count = len(self._waiting)
            more = True
            while more and len(taken) < most:
                more = False
                for camera in [(self._turn + step) % count for step in range(count)]:
                    waiting = self._waiting[camera]
                    if not waiting or len(taken) == most:
                        continue
                    if taken and not fits(taken[0], waiting[0]):
                        continue
                    taken.append(waiting.popleft())
                    more = True
                    last = camera
            if taken:
                self._turn = (last + 1) % count
                self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Nothing is put any more: `take` returns None when what waits was taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drop(self, camera: int) -> list[T]:
        """What waits of a camera, and is taken by nobody."""
        with self._changed:
            dropped = list(self._waiting[camera])
            self._waiting[camera].clear()
            self._changed.notify_all()
            return dropped

    def abandon(self) -> list[T]:
        """Nothing is taken any more, and whoever waits for room goes on; what waited."""
        with self._changed:
            self._abandoned = True
            waited = [item for waiting in self._waiting for item in waiting]
            for waiting in self._waiting:
                waiting.clear()
            self._changed.notify_all()
            return waited
