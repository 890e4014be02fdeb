"""Slots: a name each, and the detector that answers to it now; another may take its place."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from padim_edge.detect.detector import Detector, Prepared, Result
from padim_edge.errors import PadimEdgeError, UsageError, first_line
from padim_edge.files import FollowedFile
from padim_edge.serve.batching import Batcher
from padim_edge.serve.metrics import Metrics
from padim_edge.serve.settings import Settings

CLOSE_SECONDS = 10.0
"""For which the end waits for an engine that runs."""


@dataclass(eq=False)
class Loaded:
    """A detector with the thread that runs it.

    Attributes:
        detector: open as long as somebody holds a lease.
        batches: runs it.
        users: leases.
    """

    detector: Detector
    batches: Batcher[Prepared, Result]
    users: int = 0


class Slot:
    """A name that is served, and the file behind it.

    Attributes:
        name: the file's, without its suffix.
        path: the file.
        loaded: what answers now; None before the first is there.
        taken: images that are being decoded, wait, or are judged. The event loop's alone.
    """

    def __init__(self, path: Path, settings: Settings, metrics: Metrics) -> None:
        self.name, self.path = path.stem, path
        self.loaded: Loaded | None = None
        self.taken = 0
        self._settings, self._metrics = settings, metrics
        self._free = threading.Condition()
        self._closed = False
        self._file = FollowedFile(path)
        metrics.queue.labels(self.name).set_function(lambda: self.taken)

    @contextlib.contextmanager
    def lease(self) -> Iterator[Loaded | None]:
        """What answers now, which stays open until the block ends; None while it is loading."""
        with self._free:
            loaded = self.loaded
            if loaded is not None:
                loaded.users += 1
        try:
            yield loaded
        finally:
            if loaded is not None:
                with self._free:
                    loaded.users -= 1
                    self._free.notify_all()

    def load(self) -> None:
        """Open the file, and let it answer from now on; the one before ends when it is done.

        Raises:
            PadimEdgeError: it is no detector, or the engine does not run here; all is as before.
        """
        self._file.take()
        detector = Detector(self.path, self._settings.engine, self._settings.threads)
        batches = Batcher(
            detector.judge_prepared,
            self._settings.max_batch,
            self._settings.max_delay,
            self._metrics.batch.labels(self.name).observe,
        )
        self._change(Loaded(detector, batches))

    def reload(self, force: bool) -> str | None:
        """Load the file again if it is another one now.

        Args:
            force: do so if it is the same, and if it may be half written.

        Returns:
            What happened, in a line; None if nothing.
        """
        if not self._file.is_new() and not force:
            return None
        try:
            self.load()
        except Exception as error:  # a file that nobody checked must not end the service
            self._metrics.reloads.labels(self.name, "failed").inc()
            return f"{self.name}: the old detector goes on, for the new one does not: " + (
                first_line(error)
            )
        self._metrics.reloads.labels(self.name, "done").inc()
        return f"{self.name}: {self.path} was loaded again"

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Let go of what is loaded, once nobody uses it. Closing twice is harmless.

        An engine that does not come back is waited for some seconds, and left as it is.
        """
        self._closed = True
        self._change(None, seconds)

    def _change(self, loaded: Loaded | None, seconds: float | None = None) -> None:
        with self._free:
            if self._closed and loaded is not None:  # while it was loaded
                before: Loaded | None = loaded
            else:
                before, self.loaded = self.loaded, loaded
            if before is None or not self._free.wait_for(lambda: before.users == 0, seconds):
                return
        if before.batches.close(seconds):
            before.detector.close()


def slots_of(paths: Sequence[Path], settings: Settings, metrics: Metrics) -> dict[str, Slot]:
    """A slot for each file, by name.

    Raises:
        UsageError: there is none, two have one name, or are one, or a name makes no address.
    """
    slots: dict[str, Slot] = {}
    for path in paths:
        name = path.stem
        if name in slots:
            if os.path.realpath(path) == os.path.realpath(slots[name].path):
                raise UsageError(f"{path} is one file given twice: name it once")
            raise UsageError(
                f"{slots[name].path} and {path} would both be called {name}: rename one of them"
            )
        if not name.isprintable() or set(name) & set("/\\?#%"):
            raise UsageError(f"{path}: {name!r} makes no address; rename it, to letters and digits")
        slots[name] = Slot(path, settings, metrics)
    if not slots:
        raise UsageError("no model was given: name one or more files made by padim-edge fit")
    return slots


def load_all(slots: Sequence[Slot]) -> None:
    """Load each for the first time.

    Raises:
        PadimEdgeError: one cannot be; it is named.
    """
    for slot in slots:
        try:
            slot.load()
        except PadimEdgeError as error:
            if str(slot.path) in str(error):
                raise
            raise type(error)(f"{slot.path}: {error}") from error
