"""What viewers of a camera are told, made once for all of them.

A channel looks at the board in steps of its own and makes a part: what is new, as JSON, and the
newest frame, as JPEG. Each viewer is given the part of now when it has taken the last one, so a
slow one gets fewer, and nobody waits for it. The watch's threads never wait for a channel: it takes
copies, and draws and sends in threads of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from padim_edge.detect.detector import Result
from padim_edge.errors import ImageError
from padim_edge.live.board import POINTS, Board, CameraNow, Point, Seen
from padim_edge.live.event import Event
from padim_edge.live.page.draw import LIVE, draw
from padim_edge.live.page.teaching import Lesson, Teaching

log = logging.getLogger(__name__)

PARTS = 10.0
"""A second, to a viewer, at most."""

SENT = 300.0
"""Parts a second to all viewers together, at most: 100 of them get 3 each."""

SHARE = 0.2
"""Of one core's time that drawing takes, as long as it is quick enough for `LONGEST`."""

LONGEST = 4.0
"""Seconds from one part to the beginning of the next, at most: a browser gives up after 8."""

QUIET = 2.0
"""Seconds after which a part comes even if nothing is new: rates fall, sinks catch up."""

GOOD = 1000
"""Scores of good images that are told, at most: of more, the more the higher they are."""

SAID = 30
"""Messages that are told, of the last ones."""


@dataclasses.dataclass
class Cursor:
    """What a viewer has.

    Attributes:
        part: the number of the part that it was last given; 0 for none.
        points: how many verdicts had come by then.
        lists: the number of the lists (anomalies, messages, versions) that it was given.
        picture: the number of the picture that it was given.
        heat: whether it wants the heat map.
    """

    heat: bool
    part: int = 0
    points: int = 0
    lists: int = 0
    picture: int = 0


@dataclasses.dataclass(frozen=True)
class _Looked:
    """What a look at the board has found.

    Attributes:
        points: new ones, oldest first.
        state: what changes with every frame.
        lists: what changes now and then.
        shown: the newest frame.
        pictures: of it, with the heat map and without, as far as they are wanted.
        seconds: of a core that it took.
    """

    points: list[Point]
    state: dict[str, Any]
    lists: dict[str, Any]
    shown: Seen | None
    pictures: dict[bool, bytes | None]
    seconds: float


class Channel:
    """A camera's.

    Args:
        board: what is now.
        camera: its name.
        teacher: who teaches its model; None if nobody does.
        pool: in which pictures are drawn.
        watched: gives, of each channel that is watched, by how many.
    """

    def __init__(
        self,
        board: Board,
        camera: str,
        teacher: Teaching | None,
        pool: ThreadPoolExecutor,
        watched: Callable[[], Sequence[int]],
    ) -> None:
        self._board, self._teacher, self._pool, self._watched = board, teacher, pool, watched
        self._now: CameraNow = board.cameras[camera]
        self._viewers: Counter[bool] = Counter()
        self._running: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._part = 0
        self._version = -1
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._last: Point | None = None
        self._total = 0
        self._lists: dict[str, Any] = {}
        self._list_number = 0
        self._shown: Seen | None = None
        self._pictures: dict[bool, bytes | None] = {}
        self._picture_number = 1  # a viewer has none at first, and that there is none is new
        self._state: dict[str, Any] = {}
        self._made: dict[tuple[int, ...], bytes] = {}

    @property
    def viewers(self) -> int:
        """How many look at it."""
        return sum(self._viewers.values())

    def enter(self, cursor: Cursor) -> None:
        """A viewer came. In the event loop, as everything here."""
        self._viewers[cursor.heat] += 1
        if self._running is None or self._running.done():
            self._pictures = {}  # they may be hours old: parts begin with a new look
            self._running = asyncio.ensure_future(self._run())

    def leave(self, cursor: Cursor) -> None:
        """It went; after the last one nothing is drawn any more."""
        self._viewers[cursor.heat] -= 1
        if not self.viewers and self._running is not None:
            self._running.cancel()
            self._running = None

    async def next(self, cursor: Cursor) -> bytes:
        """The part of now, once it is another than the viewer's last: JSON, line feed, JPEG."""
        while cursor.part == self._part or cursor.heat not in self._pictures:
            await self._news.wait()
        cursor.part = self._part
        known = (cursor.points, cursor.lists, cursor.picture, cursor.heat)
        made = self._made.get(known)
        if made is None:
            made = self._made[known] = self._make(cursor)
        cursor.points, cursor.lists = self._total, self._list_number
        cursor.picture = self._picture_number
        return made

    def _make(self, cursor: Cursor) -> bytes:
        """What one who has this lacks."""
        new = min(self._total - cursor.points, len(self._points))
        picture = b""
        told: dict[str, Any] = dict(self._state)
        told["points"] = [_point(one) for one in list(self._points)[len(self._points) - new :]]
        if cursor.lists != self._list_number:
            told |= self._lists
        if cursor.picture != self._picture_number:
            picture = self._pictures[cursor.heat] or b""
            told["has_picture"] = bool(picture)
        told["bytes"] = len(picture)
        return json.dumps(told, allow_nan=False, separators=(",", ":")).encode() + b"\n" + picture

    async def _run(self) -> None:
        """Make parts as long as there are viewers."""
        loop = asyncio.get_running_loop()
        made = -math.inf
        while True:
            wanted = {heat for heat, count in self._viewers.items() if count}
            version = self._board.version
            late = time.monotonic() - made > QUIET
            if version == self._version and not late and wanted <= self._pictures.keys():
                await asyncio.sleep(1 / PARTS)
                continue
            self._version, made = version, time.monotonic()
            try:
                looked = await loop.run_in_executor(self._pool, self._look, wanted)
            except Exception:
                log.exception("the page cannot show a camera")
                await asyncio.sleep(QUIET)
                continue
            self._show(looked)
            self._part += 1
            self._made.clear()
            news, self._news = self._news, asyncio.Event()
            news.set()
            watched = self._watched()
            pause = max(
                1 / PARTS, sum(watched) / SENT, len(watched) * looked.seconds * (1 / SHARE - 1)
            )
            await asyncio.sleep(min(pause, LONGEST))

    def _show(self, looked: _Looked) -> None:
        """Have this from now on. In the event loop: viewers are given parts of one look."""
        if looked.points:
            self._last = looked.points[-1]
            self._points.extend(looked.points)
            self._total += len(looked.points)
        self._state = looked.state
        if looked.lists != self._lists:
            self._lists, self._list_number = looked.lists, self._list_number + 1
        if looked.shown is not self._shown:
            self._picture_number += 1
        self._shown, self._pictures = looked.shown, looked.pictures

    def _look(self, wanted: set[bool]) -> _Looked:
        """Copy what is new from the board, and draw it; changes nothing here."""
        began = time.thread_time()
        with self._board.reading:
            new: list[Point] = []
            for point in reversed(self._now.points):
                if point is self._last:
                    break
                new.append(point)
            newest = self._now.newest
            anomalies = [(one.seen, one.lacks) for one in self._now.anomalies]
            messages = tuple(self._board.messages)
            camera = self._now.status.name
            drifts = [event for (name, _), event in self._board.drifts.items() if name == camera]
        new.reverse()
        lesson = self._teacher.lesson() if self._teacher else None
        state, lists = self._told(newest, lesson), self._listed(anomalies, messages, drifts, lesson)
        pictures = dict(self._pictures) if newest is self._shown else {}
        for heat in wanted - pictures.keys():
            try:
                model = self._now.status.model
                pictures[heat] = draw(newest, model, LIVE, heat) if newest else None
            except Exception:  # what was decided is told without it
                log.exception("a picture cannot be drawn")
                pictures[heat] = None
        return _Looked(new, state, lists, newest, pictures, time.thread_time() - began)

    def _told(self, newest: Seen | None, lesson: Lesson | None) -> dict[str, Any]:
        """What changes with every frame."""
        told = dict(vars(lesson)) if lesson else None
        if told:
            del told["versions"], told["said"]
        return {
            "cameras": [
                {
                    "name": name,
                    "is_connected": now.status.is_connected,
                    "is_anomalous": _is_anomalous(now.newest),
                }
                for name, now in self._board.cameras.items()
            ],
            "camera": self._now.status.to_json(),
            "sinks": list(self._board.sinks()),
            "newest": _newest(newest),
            "lesson": told,
        }

    def _listed(
        self,
        anomalies: Sequence[tuple[Seen, str]],
        messages: Sequence[Event],
        drifts: Sequence[Event],
        lesson: Lesson | None,
    ) -> dict[str, Any]:
        """What changes now and then, newest first."""
        info = self._now.status.model.detector_info
        good = info.good_scores if info else ()
        said = lesson.said if lesson else {}
        return {
            "anomalies": [
                {**(_newest(one) or {}), "lacks": lacks, "said": said.get(one.event.id)}
                for one, lacks in reversed(anomalies)
            ],
            "messages": [
                {name: event.record.get(name) for name in ("time", "camera", "kind", "message")}
                for event in list(reversed(messages))[:SAID]
            ],
            "drifts": [event.record["message"] for event in drifts],
            "good": _ranked(good, GOOD),
            "good_count": len(good),
            "versions": [dataclasses.asdict(one) for one in lesson.versions] if lesson else [],
        }


@functools.lru_cache(16)
def _ranked(good: Sequence[float], most: int) -> tuple[tuple[int, float], ...]:
    """Scores of good images, ascending, each with its rank from the lowest on, which is 1.

    A rank is what a false-alarm rate stands for, so a score must never be told without it. The
    lowest and the highest are always told.
    """
    above = np.arange(len(good), 0, -1)
    if len(good) > most:  # by how many score as high: few of those matter to a threshold
        above = np.unique(np.geomspace(1, len(good), most).astype(int))[::-1]
    ranks = (len(good) + 1 - above).tolist()
    return tuple((rank, float(f"{good[rank - 1]:.7g}")) for rank in ranks)


def _point(point: Point) -> tuple[float, float | None, int]:
    score = float(f"{point.score:.5g}")
    return round(point.time, 3), score if math.isfinite(score) else None, int(point.is_anomalous)


def _is_anomalous(newest: Seen | None) -> bool:
    return newest is not None and isinstance(newest.outcome, Result) and newest.outcome.is_anomalous


def _newest(seen: Seen | None) -> dict[str, Any] | None:
    """A frame in words and numbers."""
    if seen is None:
        return None
    told: dict[str, Any] = {
        "id": seen.event.id,
        "time": seen.captured.time,
        "name": seen.captured.name,
        "sequence": seen.captured.sequence,
        "latency_ms": round(1e3 * seen.latency, 2),
    }
    outcome = seen.outcome
    if isinstance(outcome, ImageError):
        told["error"] = str(outcome)
    elif isinstance(outcome, Result):
        told |= {
            "score": outcome.score if math.isfinite(outcome.score) else None,
            "threshold": outcome.threshold,
            "is_anomalous": outcome.is_anomalous,
            "percentile": outcome.percentile,
        }
    return told
