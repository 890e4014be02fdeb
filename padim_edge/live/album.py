"""The last anomalies of cameras with their pictures, which are made aside at a bounded rate."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim_edge.detect.detector import Result
from padim_edge.errors import ImageError, PadimEdgeError
from padim_edge.images.frames import Frame
from padim_edge.live.pictures import is_within, to_jpeg

if TYPE_CHECKING:
    from padim_edge.live.board import Seen

log = logging.getLogger(__name__)

ANOMALIES = 30
"""Anomalous frames of a camera that are kept, with their maps."""

HELD = 32 * 2**20
"""Bytes of a camera's frames that are held until their picture is made; one, however large."""

KEPT_SIDE = 1600
"""Pixels on the long side of a picture."""

SHARE = 0.2
"""Of one core's time that making pictures takes: two a second of 1920 x 1080, on our machine."""

FOLLOWS = "picture follows"
NOT_KEPT = "picture not kept: anomalies come faster than pictures are made"
NO_FILE = "picture not kept: the file was gone"
NONE = "there is no picture of this frame"
"""What an anomaly lacks."""


@dataclass(eq=False)
class Anomaly:
    """An anomalous frame. Exactly one of ``picture``, ``source`` and ``why`` is there.

    Attributes:
        seen: without the frame's own pixels, and its event's picture.
        picture: JPEG, of `KEPT_SIDE` pixels on the long side at most.
        source: what it is still to be made of: the frame, or the bytes of an image file.
        why: why there is none, and will be none.
        bit_depth: of grey values of 16 bits in that file.
    """

    seen: Seen
    picture: bytes | None = None
    source: Frame | bytes | None = None
    why: str = ""
    bit_depth: int | None = None

    @property
    def lacks(self) -> str:
        """Why there is no picture now, in words; "" if there is one."""
        return FOLLOWS if self.source is not None else self.why

    @property
    def held(self) -> int:
        """Bytes that wait for the picture."""
        if isinstance(self.source, Frame):
            return int(self.source.layout.nbytes)
        return len(self.source or b"")

    @property
    def severity(self) -> float:
        """Its score; a score that is no number is worse than all others."""
        outcome = self.seen.outcome
        score = outcome.score if isinstance(outcome, Result) else math.nan
        return math.inf if math.isnan(score) else score


def kept(seen: Seen, bit_depth: int | None = None) -> Anomaly:
    """What is kept of an anomalous frame; reads its file, which may be another one later.

    Args:
        seen: the frame.
        bit_depth: of grey values of 16 bits in its file, as its detector was fitted.
    """
    picture, made = seen.captured.picture, seen.event.picture
    if isinstance(picture, Frame):
        # There are megabytes of them, and the JPEG takes their place.
        gone = ImageError("the pixels of this frame were let go of")
        captured = dataclasses.replace(seen.captured, picture=gone)
        seen = dataclasses.replace(seen, captured=captured)
    if made is not None:  # in full, for a sink
        seen = dataclasses.replace(seen, event=dataclasses.replace(seen.event, picture=None))
        is_small = is_within(made, KEPT_SIDE)
        return Anomaly(seen, picture=made) if is_small else Anomaly(seen, source=made)
    if isinstance(picture, Path):
        try:
            return Anomaly(seen, source=picture.read_bytes(), bit_depth=bit_depth)
        except (OSError, PadimEdgeError):  # who judges a hot folder's files may have moved it
            return Anomaly(seen, why=NO_FILE)
    if isinstance(picture, Frame):
        return Anomaly(seen, source=picture)
    return Anomaly(seen, why=NONE)


class Album:
    """The last anomalies of a camera, oldest first; used under the lock of `Pictures`."""

    def __init__(self) -> None:
        self._anomalies: deque[Anomaly] = deque(maxlen=ANOMALIES)

    def __iter__(self) -> Iterator[Anomaly]:
        return iter(self._anomalies)

    def add(self, anomaly: Anomaly) -> None:
        """Keep it. Where too much waits for its picture, the least severe gets none."""
        self._anomalies.append(anomaly)
        waiting = self._waiting()
        while len(waiting) > 1 and sum(one.held for one in waiting) > HELD:
            least = waiting.pop(0)
            least.source, least.why = None, NOT_KEPT

    def next(self) -> Anomaly | None:
        """The most severe that waits for its picture, the newest of such; None if none waits."""
        waiting = self._waiting()
        return waiting[-1] if waiting else None

    def _waiting(self) -> list[Anomaly]:
        waiting = (one for one in self._anomalies if one.source is not None)
        return sorted(waiting, key=lambda one: one.severity)


class Pictures:
    """Makes the pictures of albums, one at a time and by turns, while any waits for one.

    In a thread of its own, whose share of a core is bounded: whoever judges does not wait for it.

    Args:
        albums: one for each camera.
        lock: under which they are used.
        made: called under it when a picture was made, or cannot be.
    """

    def __init__(
        self,
        albums: Sequence[Album],
        lock: contextlib.AbstractContextManager[Any],
        made: Callable[[], None],
    ) -> None:
        self._albums = deque(albums)
        self._lock, self._made = lock, made
        self._is_running = False

    def begin(self) -> None:
        """Make what waits, unless that is being done. Under the lock."""
        if not self._is_running:
            threading.Thread(target=self._run, name="padim-edge-pictures", daemon=True).start()
            self._is_running = True

    def _run(self) -> None:
        while True:
            with self._lock:
                anomaly = self._next()
                if anomaly is None:
                    self._is_running = False
                    return
                source = anomaly.source
            began = time.thread_time()
            picture = None
            try:
                if source is not None:
                    picture = to_jpeg(source, anomaly.bit_depth, KEPT_SIDE)
            except Exception:  # whatever a decoder raises: the others get theirs
                log.exception("a picture cannot be made")
            took = time.thread_time() - began
            with self._lock:
                anomaly.picture, anomaly.source = picture, None
                anomaly.why = "" if picture else NONE
                self._made()
            time.sleep(took * (1 / SHARE - 1))

    def _next(self) -> Anomaly | None:
        for _ in range(len(self._albums)):
            self._albums.rotate(-1)
            if (anomaly := self._albums[-1].next()) is not None:
                return anomaly
        return None
