"""The watch: frames of cameras are captured, judged and recorded, each in threads of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from padim_edge.live.board import CameraStatus, Seen
from padim_edge.live.recorder import Recorder
from padim_edge.live.source import Source
from padim_edge.live.swap import ModelSlot

Observer = Callable[[Seen], None]
"""Told of each frame, in the recorder's thread, once its event is recorded."""


@dataclass(frozen=True)
class Camera:
    """What is watched.

    Attributes:
        name: what events call it.
        open: opens its source, again when it was lost.
        address: of the source, without a password.
        model: holds its detector; cameras of one model share a slot.
        policy: "latest", the newest frame is judged and others are dropped and counted; "all", no
            frame is, the source waits; None for "latest" of live sources and "all" of others.
    """

    name: str
    open: Callable[[], Source]
    address: str
    model: ModelSlot
    policy: str | None = None


class Watch:
    """Captures, judges and records until it is stopped, or the last source has ended.

    Attributes:
        observers: told of each frame, in the recorder's thread.
        statuses: of the cameras, by name.

    Args:
        cameras: at least one, of different names.
        recorder: what is told of every event.
        batch: frames of cameras of one model that are judged in one run, at most.
        count: frames of all cameras after which it ends by itself; None for no end.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
        recorder: Recorder,
        *,
        batch: int = 1,
        count: int | None = None,
    ) -> None:
        self.observers: list[Observer] = []
        self.statuses: dict[str, CameraStatus] = {}

    def run(self) -> None:
        """Watch until `stop`, or until all sources have ended; all is recorded when it returns.

        Raises:
            PadimEdgeError: a source that is no live one cannot be read, or an engine fails again
                and again.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End `run`, in any thread or signal handler; returns at once. Twice is harmless."""
        raise NotImplementedError

    def reload(self) -> None:
        """Open the followed files of all models again, in any thread or signal handler."""
        raise NotImplementedError

    def say(self, kind: str, camera: str | None, message: str, **fields: Any) -> None:
        """Make an event, in any thread.

        Args:
            kind: "source", "model", "drift" or "watch".
            camera: its name; None for all of them.
            message: for people.
            fields: what else is in the record.
        """
        raise NotImplementedError
