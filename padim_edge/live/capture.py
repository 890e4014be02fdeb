"""Capturing: the thread of a camera, which opens its source, again when it was lost."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from padim_edge.detect.detector import Prepared
from padim_edge.errors import ImageError, PadimEdgeError, first_line
from padim_edge.live.board import CameraStatus
from padim_edge.live.queues import FrameQueue
from padim_edge.live.source import Captured, Source, SourceError
from padim_edge.live.swap import ModelSlot, Opened

FIRST_PAUSE = 0.5
"""Seconds before a lost source is opened again; doubled after each try in vain."""

LONGEST_PAUSE = 30.0
"""Seconds, at most. Each pause is shortened by up to a half, at random, so that many devices that
lost the same switch do not come back at the same moment."""

REMEMBERED = 1000
"""Frames whose keys are known here: far more than can wait to be judged and recorded."""


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


@dataclass(eq=False)
class Frame:
    """A frame on its way to the judge.

    Attributes:
        status: of its camera.
        model: of its camera.
        captured: the frame, its sequence counted over every reconnect.
        opened: the detector that prepared it and is to judge it; None if it is not prepared.
        prepared: what that made of it, or why it made nothing.
    """

    status: CameraStatus
    model: ModelSlot
    captured: Captured
    opened: Opened | None = None
    prepared: Prepared | ImageError | None = None

    def prepare(self) -> None:
        """Acquire the detector of now, if there is one, and let it prepare the frame.

        Raises:
            Exception: whatever is wrong beside the frame; it is not prepared then.
        """
        opened = self.model.acquire()
        if opened is None:
            return
        picture = self.captured.picture
        try:
            if isinstance(picture, ImageError):
                raise picture
            self.prepared = opened.detector.prepare(picture)
        except ImageError as error:
            self.prepared = error
        except BaseException:
            opened.release()
            raise
        self.opened = opened

    def release(self) -> None:
        """Let go of the detector. Twice is harmless."""
        opened, self.opened, self.prepared = self.opened, None, None
        if opened is not None:
            opened.release()


class Capture:
    """Takes frames from a source and lets them wait for the judge, in a thread of its own.

    Under the policy "all" it prepares them as well, while the engine judges those before. Under
    "latest" that would be work for frames that a newer one displaces.

    Attributes:
        failed: what ended it, beside the end of its source.

    Args:
        number: of the camera in the queue.
        camera: what is watched.
        status: its counts.
        queue: where frames wait.
        say: makes an event: kind, camera, message.
        on_end: called in its thread when it has ended.
    """

    def __init__(
        self,
        number: int,
        camera: Camera,
        status: CameraStatus,
        queue: FrameQueue[Frame],
        say: Callable[[str, str, str], None],
        on_end: Callable[[], None],
    ) -> None:
        self.failed: PadimEdgeError | None = None
        self._number, self._camera, self._status = number, camera, status
        self._queue, self._say, self._on_end = queue, say, on_end
        self._next = self._offset = 0
        self._last = -1
        self._keyed = False
        self._given: deque[tuple[str, ...]] = deque(maxlen=REMEMBERED)
        self._source: Source | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"padim-edge-camera-{camera.name}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """No more frames are wanted; whoever waits for one wakes. Twice is harmless."""
        self._stopping.set()
        with self._lock:
            source = self._source
        if source is not None:
            source.close()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            known = isinstance(error, PadimEdgeError)
            kind = "" if known else f"this should not happen: {type(error).__name__}: "
            self.failed = (
                error
                if isinstance(error, PadimEdgeError)
                else PadimEdgeError(f"{self._camera.name}: {kind}{first_line(error)}")
            )
        finally:
            self._status.is_connected = False
            self._on_end()

    def _watch(self) -> None:
        name, status = self._camera.name, self._status
        tries = 0
        was_lost = False
        while not self._stopping.is_set():
            before = status.captured
            is_live = True
            try:
                source = self._opened()
                is_live = source.is_live
                status.policy = self._camera.policy or ("latest" if is_live else "all")
                for captured in source:
                    if not status.is_connected:
                        self._connected(source, was_lost)
                    self._take(captured)
                    if self._stopping.is_set():
                        break
                if self._stopping.is_set():
                    break
                if not is_live:
                    status.source = "ended"
                    self._say("source", name, f"{source.address} has ended")
                    return
                raise SourceError(f"{source.address} gives no more frames")
            except SourceError as error:
                if self._stopping.is_set():
                    break
                # What is read once, and has begun, would begin anew: a file in a hot folder has a
                # key that says so, a frame of a video has not.
                if not is_live and status.captured > before and not self._keyed:
                    raise
                tries = 1 if status.captured > before else tries + 1
                pause = self._pause(tries)
                status.source, status.is_connected = f"lost: {first_line(error)}", False
                if tries == 1 or not tries & (tries - 1):  # not every 30 seconds for a night
                    self._say(
                        "source",
                        name,
                        f"{first_line(error)}; trying again in {pause:.1f} s, try {tries}",
                    )
                was_lost = True
                self._stopping.wait(pause)
            finally:
                self._close()
        status.source = "stopped"

    def _connected(self, source: Source, again: bool) -> None:
        self._status.is_connected = True
        self._status.source = source.describe()
        self._say(
            "source",
            self._camera.name,
            f"{'is back' if again else 'opened'}: {self._status.source}; "
            f"policy {self._status.policy}",
        )
        # The source counts from 0 again; we go on.
        self._offset, self._last = self._next, -1

    def _take(self, captured: Captured) -> None:
        status = self._status
        if captured.keys:
            if captured.keys in self._given:  # all: one alone may be another picture's
                # The source was lost and opened again while this one waits to be judged.
                self._last = captured.sequence
                self._offset -= 1
                return
            self._given.append(captured.keys)
        status.arrived()
        status.lost += max(captured.sequence - self._last - 1, 0) if self._last >= 0 else 0
        self._last, self._keyed = captured.sequence, bool(captured.keys)
        numbered = dataclasses.replace(captured, sequence=self._offset + captured.sequence)
        self._next = numbered.sequence + 1
        frame = Frame(status, self._camera.model, numbered)
        if status.policy == "all":
            try:
                frame.prepare()
            except Exception:  # the judge will meet it, and has an answer to it
                frame.release()
        for displaced in self._queue.put(self._number, frame, status.policy):
            displaced.release()
            status.drop()

    def _opened(self) -> Source:
        source = self._camera.open()
        with self._lock:
            self._source = source
        if self._stopping.is_set():
            source.close()
        return source

    def _close(self) -> None:
        with self._lock:
            source, self._source = self._source, None
        if source is not None:
            source.close()

    @staticmethod
    def _pause(tries: int) -> float:
        longest = min(FIRST_PAUSE * 2.0 ** min(tries - 1, 16), LONGEST_PAUSE)
        return longest * random.uniform(0.5, 1.0)
