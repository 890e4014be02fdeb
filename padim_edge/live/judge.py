"""Judging: one thread for all cameras, a run of an engine at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from padim_edge.detect.detector import Prepared, Result
from padim_edge.errors import ImageError, PadimEdgeError, first_line
from padim_edge.live.capture import Frame
from padim_edge.live.queues import FrameQueue
from padim_edge.live.recorder import Judged, Recorder

PAUSES = (0.1, 1.0)
"""Seconds before an engine that failed is given the same frames again; after the last it is over,
and the service manager starts anew, which helps against a GPU that hangs."""

IDLE = 0.5
"""Seconds after which a judge without frames says that it is alive."""


class Judge:
    """Takes frames by turns, judges them, and hands them to the recorder.

    One thread: an engine on the CPU uses all cores for one run, and one GPU is one, too.

    Attributes:
        failed: what ended it before its time.

    Args:
        queue: where frames wait.
        recorder: what is told of them.
        batch: frames of one model that are judged in one run, at most.
        count: frames after which it ends; None for no end.
        say: makes an event: kind, camera, message.
        alive: called again and again as long as it makes progress.
        on_end: called in its thread when it ends by itself: by count, or failed.
    """

    def __init__(
        self,
        queue: FrameQueue[Frame],
        recorder: Recorder,
        batch: int,
        count: int | None,
        say: Callable[[str, str, str], None],
        alive: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.failed: PadimEdgeError | None = None
        self._queue, self._recorder, self._batch, self._left = queue, recorder, batch, count
        self._say, self._alive, self._on_end = say, alive, on_end
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="padim-edge-judge", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Do not try again what fails."""
        self._giving_up.set()

    def _run(self) -> None:
        try:
            self._judge_all()
        except Exception as error:
            self.failed = (
                error
                if isinstance(error, PadimEdgeError)
                else PadimEdgeError(
                    f"this should not happen: {type(error).__name__}: {first_line(error)}"
                )
            )
        for frame in self._queue.abandon():
            frame.release()
            # Of "all", none is dropped without a word; those after the last wanted one are not
            # wanted, and the end says how many came.
            frame.status.drop()
        self._on_end()

    def _judge_all(self) -> None:
        while self._left is None or self._left > 0:
            self._alive()
            most = self._batch if self._left is None else min(self._batch, self._left)
            frames = self._queue.take(most, _fits, IDLE)
            if frames is None:
                return
            if not frames:
                continue
            if self._left is not None:
                self._left -= len(frames)
            try:
                for judged in self._judged(frames):
                    if not self._hand_on(*judged):
                        return  # the recorder has ended, and has said why
            finally:
                for frame in frames:
                    frame.release()

    def _hand_on(self, frame: Frame, outcome: Result | ImageError | None, moment: float) -> bool:
        captured = frame.captured
        model: Path | None = frame.opened.path if frame.opened else None
        return self._recorder.put(
            Judged(
                frame.status,
                captured,
                outcome,
                max(moment - captured.time, 0.0),
                model.name if model else None,
            )
        )

    def _judged(
        self, frames: Sequence[Frame]
    ) -> list[tuple[Frame, Result | ImageError | None, float]]:
        """What becomes of frames of one slot, and when that was decided.

        Raises:
            PadimEdgeError: the engine fails again and again.
        """
        for pause in (*PAUSES, None):
            try:
                return self._once(frames)
            except Exception as error:  # whatever an engine raises
                name = frames[0].status.name
                if pause is None or self._giving_up.is_set():
                    raise PadimEdgeError(
                        f"{name}: the engine fails again and again: {first_line(error)}"
                    ) from error
                self._say(
                    "watch",
                    name,
                    f"the engine failed, the same frames once more: {first_line(error)}",
                )
                for frame in frames:
                    frame.release()
                self._giving_up.wait(pause)
        raise AssertionError("the last pause is None")

    def _once(
        self, frames: Sequence[Frame]
    ) -> list[tuple[Frame, Result | ImageError | None, float]]:
        for frame in frames:
            if frame.opened is None:
                frame.prepare()
        outcomes: dict[Frame, Result | ImageError | None] = {}
        # Around a swap, frames of one slot may have been prepared by two detectors.
        for opened in dict.fromkeys(frame.opened for frame in frames):
            group = [frame for frame in frames if frame.opened is opened]
            made = [frame for frame in group if isinstance(frame.prepared, Prepared)]
            for frame in group:
                outcomes[frame] = frame.prepared if isinstance(frame.prepared, ImageError) else None
            if made and opened is not None:
                prepared = [
                    frame.prepared for frame in made if isinstance(frame.prepared, Prepared)
                ]
                outcomes |= zip(made, opened.detector.judge_prepared(prepared), strict=True)
        moment = time.time()
        return [(frame, outcomes[frame], moment) for frame in frames]


def _fits(first: Frame, other: Frame) -> bool:
    return first.model is other.model
