"""The page of a watch: what it serves, and what may be asked of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from padim_edge.errors import MissingDependencyError, UsageError
from padim_edge.live.album import KEPT_SIDE, NONE
from padim_edge.live.board import Board
from padim_edge.live.page.channel import Channel, Cursor
from padim_edge.live.page.draw import Drawn, draw
from padim_edge.live.page.teaching import Teaching
from padim_edge.web.answers import HANDLERS, answer, refusal

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError("the page", "starlette", "live") from error

FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
"""All that is served of a disk, by its name here."""

GONE = "this anomaly is not kept any more: the last ones of a camera are"

SIDES = {"small": 320, "large": KEPT_SIDE}
"""Pixels on the long side of an anomaly's picture."""


def page(board: Board, teachers: Mapping[str, Teaching] | None = None) -> Starlette:
    """The page over a board.

    Args:
        board: what is now.
        teachers: by the name of a camera; those that are not named are not taught.

    Returns:
        An application for `padim_edge.web.server.Server`, which has to look who asks: anybody who
        reaches it may look, and teach.
    """
    return Page(board, teachers or {}).app


class _Parts(Response):
    """A channel's parts, until the viewer goes."""

    media_type = "application/octet-stream"

    def __init__(self, channel: Channel, cursor: Cursor) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._channel, self._cursor = channel, cursor

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send. A viewer that takes nothing holds up nobody but itself (`Limits.stall_seconds`)."""

        async def sending() -> None:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            while True:
                part = await self._channel.next(self._cursor)
                await send({"type": "http.response.body", "body": part, "more_body": True})

        async def going() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        self._channel.enter(self._cursor)
        tasks = [asyncio.ensure_future(sending()), asyncio.ensure_future(going())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._channel.leave(self._cursor)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()):
                raise error  # a mistake of ours, which the server around this writes down


class Page:
    """What answers. The methods that need no waiting run in the event loop."""

    def __init__(self, board: Board, teachers: Mapping[str, Teaching]) -> None:
        self._board, self._teachers = board, teachers
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="page")
        self._channels: dict[str, Channel] = {}
        self._drawn = Drawn()
        self._taught: set[int] = set()  # teachers that a request waits for, by id
        files = resources.files(__package__)
        texts = {
            path: (files.joinpath(name).read_bytes(), kind) for path, (name, kind) in FILES.items()
        }

        async def file(request: Request) -> Response:
            contents, kind = texts[request.url.path]
            return Response(contents, media_type=kind, headers={"cache-control": "no-cache"})

        self.app = Starlette(
            routes=[
                *(Route(path, file) for path in FILES),
                Route("/api/state", self._state),
                Route("/api/live", self._live),
                Route("/api/picture", self._picture),
                Route("/api/teach", self._teach, methods=["POST"]),
            ],
            exception_handlers=HANDLERS,
        )

    async def _state(self, _: Request) -> Response:
        """Once, for programs: counts, sources, latencies, sinks."""
        return answer(self._board.snapshot())

    async def _live(self, request: Request) -> Response:
        """Parts, one after another, as long as the viewer stays: see `Channel.next`."""
        camera = self._camera(request.query_params.get("camera"))
        channel = self._channels.get(camera)
        if channel is None:
            teacher = self._teachers.get(camera)
            channel = Channel(self._board, camera, teacher, self._pool, self._watched)
            self._channels[camera] = channel
        if request.method == "HEAD":
            return Response(media_type=_Parts.media_type)
        return _Parts(channel, Cursor(heat=request.query_params.get("heat", "1") != "0"))

    def _watched(self) -> list[int]:
        """How many look at each camera that is looked at."""
        return [one.viewers for one in self._channels.values() if one.viewers]

    async def _picture(self, request: Request) -> Response:
        """A recent anomaly, as JPEG."""
        query = request.query_params
        camera, event = self._camera(query.get("camera")), query.get("event", "")
        size, heat = query.get("size", "small"), query.get("heat", "1") != "0"
        if size not in SIDES:
            raise UsageError(f"size={size[:40]}: there are {' and '.join(SIDES)}")
        now = self._board.cameras[camera]
        with self._board.reading:
            found = next((one for one in now.anomalies if one.seen.event.id == event), None)
            source, why = (found.picture or found.source, found.why) if found else (None, GONE)
        if found is None or source is None:
            return refusal(404, why)
        seen, whole = found.seen, source

        def make() -> bytes | None:
            return draw(seen, now.status.model, SIDES[size], heat, whole)

        picture = await run_in_threadpool(self._drawn.get, (camera, event, size, heat), make)
        if picture is None:
            return refusal(404, NONE)
        kept = {"cache-control": "private, max-age=3600"}
        return Response(picture, media_type="image/jpeg", headers=kept)

    async def _teach(self, request: Request) -> Response:
        """Do something with the model: ``{"camera", "do"}`` and what it is done with."""
        try:
            asked: Any = await request.json()
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict) or not all(isinstance(one, str) for one in asked.values()):
            raise UsageError('a JSON object of texts is needed: {"camera": ..., "do": ...}')
        camera = self._camera(asked.get("camera"))
        teacher = self._teachers.get(camera)
        if teacher is None:
            raise UsageError(
                "this camera's model is not taught here: start padim-edge watch with an embedding"
            )
        event, version, part = (asked.get(name, "") for name in ("event", "version", "part"))
        doing: dict[str, Callable[[], object]] = {
            "take": lambda: teacher.take(True),
            "stop": lambda: teacher.take(False),
            "fit": teacher.fit,
            "good": lambda: teacher.was_good(event),
            "bad": lambda: teacher.was_bad(event),
            "leave out": lambda: teacher.leave_out(part),
            "take back": lambda: teacher.take_back(event),
            "recall": lambda: [dataclasses.asdict(row) for row in teacher.recall()],
            "undo": lambda: teacher.undo(_step(asked.get("step"))),
            "roll back": lambda: teacher.roll_back(version),
        }
        wanted = doing.get(asked.get("do", ""))
        if wanted is None:
            raise UsageError(f"this can be done: {', '.join(doing)}")
        if asked["do"] in ("take", "stop"):
            await run_in_threadpool(wanted)  # which waits for nothing
            return answer({"done": asked["do"]})
        if id(teacher) in self._taught:
            # Requests that wait for each other would take all threads, and the page with them.
            return refusal(409, "this model is being taught already: ask again when that is done")
        self._taught.add(id(teacher))
        try:
            said = await run_in_threadpool(wanted)
        finally:
            self._taught.discard(id(teacher))
        return answer({"done": asked["do"]} | ({} if said is None else {"rows": said}))

    def _camera(self, name: str | None) -> str:
        """The camera of a request; the first one if none is named.

        Raises:
            UsageError: there is none of this name.
        """
        if name is None:
            return next(iter(self._board.cameras))
        if name not in self._board.cameras:
            raise UsageError("there is no camera of this name")
        return name


def _step(text: str | None) -> int | None:
    """The step that a lesson was of; none is named by None.

    Raises:
        UsageError: it is no number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"step {text[:40]}: give that of the lesson, or none")
    return int(text)
