"""The detector of one or more cameras, which another may take the place of between two frames."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from padim_edge.detect.detector import Detector
from padim_edge.errors import PadimEdgeError, first_line
from padim_edge.files import FollowedFile
from padim_edge.model.metadata import DetectorInfo

Opener = Callable[[Path], Detector]
"""Opens a file as the watch was told to: engine, threads, threshold."""

Listener = Callable[[str, Path], None]
"""Told in words what became of a file that was to be swapped in."""


class Opened:
    """An open detector, and how many frames are under way in it.

    Attributes:
        detector: the open one; never closed by who uses it.
        path: the file that it was read from, which may be another by now.
    """

    def __init__(self, detector: Detector, path: Path) -> None:
        self.detector = detector
        self.path = path
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def _take(self) -> None:
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """A frame is done; the last one closes a detector that was replaced."""
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self.detector.close()

    def retire(self) -> None:
        """No more frames come; it is closed when the last one under way is done."""
        with self._lock:
            if self._retired:
                return
            self._retired = True
            last = not self._users
        if last:
            self.detector.close()


class ModelSlot:
    """Holds the detector that judges now, or none while one is still to be taught.

    Every frame is prepared and judged by one detector, whatever is swapped meanwhile: it is
    acquired for the frame, and released after it.

    Attributes:
        opener: opens a file.
        listeners: told, in the thread that swaps, what became of each file.

    Args:
        opener: opens a file.
        path: opened at once, and followed; None to begin without a detector.

    Raises:
        PadimEdgeError: the file does not open.
    """

    def __init__(self, opener: Opener, path: Path | None = None) -> None:
        self.opener = opener
        self._lock = threading.Lock()
        self._swapping = threading.Lock()
        self._current: Opened | None = None
        self._closed = False
        self.listeners: list[Listener] = []
        self._file: FollowedFile | None = None
        if path is not None:
            self._file = FollowedFile(path)
            self._file.take()
            self._current = self._open(path)

    @property
    def followed(self) -> Path | None:
        """The file whose replacement is swapped in by `poll`; None if none is."""
        return self._file.path if self._file else None

    @property
    def path(self) -> Path | None:
        """The file of the detector that judges now."""
        current = self._current
        return current.path if current else None

    @property
    def detector_info(self) -> DetectorInfo | None:
        """Preprocessing, threshold and good scores of the detector that judges now."""
        current = self._current
        return current.detector.detector_info if current else None

    @property
    def threshold(self) -> float | None:
        """That of the detector that judges now, which may be another than its file's."""
        current = self._current
        return current.detector.threshold if current else None

    @property
    def threshold_file(self) -> Path | None:
        """The file whose threshold is that of now, and when it is replaced, that of then.

        None where a threshold was given instead, or no file is followed.
        """
        current = self._current
        return None if current and current.detector.is_given else self.followed

    @property
    def bit_depth(self) -> int | None:
        """Of grey values of 16 bits in files, as the detector that judges now was fitted."""
        info = self.detector_info
        return info.preprocess.bit_depth if info else None

    def acquire(self) -> Opened | None:
        """The detector for a frame, open until `Opened.release`; None if there is none."""
        with self._lock:
            current = self._current
            if current is not None:
                current._take()
        return current

    @contextlib.contextmanager
    def using(self) -> Iterator[Detector | None]:
        """The detector, open within the block; None if there is none."""
        opened = self.acquire()
        try:
            yield opened.detector if opened else None
        finally:
            if opened:
                opened.release()

    def swap(self, path: str | Path) -> None:
        """Open a file beside the detector that judges now, and put it in its place.

        In any thread; judging goes on meanwhile, and no frame is lost or judged twice. The old one
        is closed when its last frame is done.

        Raises:
            PadimEdgeError: the file does not open; the old one judges on. Listeners are told.
        """
        path = Path(path)
        with self._swapping:
            try:
                new = self._open(path)
            except PadimEdgeError as error:
                rest = "the old one judges on" if self._current else "there is none"
                self._say(f"{path} is not taken, {rest}: {first_line(error)}", path)
                raise
            with self._lock:
                if self._closed:
                    new.retire()
                    return
                old, self._current = self._current, new
            if old is not None:
                old.retire()
        detector = new.detector
        engine = detector.engine.name
        if detector.skipped:  # of auto: as at the start, why it is no better one
            engine += f" (not on this machine: {'; '.join(detector.skipped)})"
        self._say(
            f"{path} judges from now on, with threshold {detector.threshold:.3f}, engine {engine}",
            path,
        )

    def empty(self) -> None:
        """Have no detector again, between two frames; the old one is closed after its last."""
        with self._swapping, self._lock:
            old, self._current = self._current, None
        if old is not None:
            old.retire()
            self._say(f"{old.path} judges no more, there is none", old.path)

    def poll(self, now: bool = False) -> None:
        """Swap in the followed file if it is another than when it was last opened.

        A change is waited out: the file is opened when two calls in a row see the same. What
        does not open is said, and tried again when it changes.

        Args:
            now: whether it has changed or not.
        """
        # A file that is gone for a moment, or for good, is no reason to stop judging.
        if self._file is None or not (self._file.is_new() or now):
            return
        self._file.take()
        with contextlib.suppress(PadimEdgeError):  # listeners were told
            self.swap(self._file.path)

    def close(self) -> None:
        """Close the detector when its last frame is done. Twice is harmless."""
        with self._lock:
            self._closed = True
            current, self._current = self._current, None
        if current is not None:
            current.retire()

    def _open(self, path: Path) -> Opened:
        """Open a detector, and send a frame through it: the first is a slow one."""
        try:
            detector = self.opener(path)
        except PadimEdgeError:
            raise
        except Exception as error:  # whatever an engine raises
            raise PadimEdgeError(f"cannot open {path}: {first_line(error)}") from error
        try:
            detector.judge(np.zeros((1, *detector.backbone_info.image_size, 3), np.uint8))
        except Exception as error:  # whatever an engine raises
            detector.close()
            raise PadimEdgeError(f"{path} does not judge: {first_line(error)}") from error
        return Opened(detector, path)

    def _say(self, message: str, path: Path) -> None:
        for listener in self.listeners:
            listener(message, path)
