"""The application: what is asked for where, and who gets a place."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from typing import Any, TypeVar

from padim_edge.detect.detector import Prepared, Result
from padim_edge.detect.overlay_folder import drawn
from padim_edge.errors import ImageError, MissingDependencyError, PadimEdgeError
from padim_edge.images.batches import WORKERS
from padim_edge.images.decode import (
    NoSuchImageError,
    NotAnImageError,
    TooManyPixelsError,
    check_head,
)
from padim_edge.serve import v2
from padim_edge.serve.metrics import GONE, Metrics
from padim_edge.serve.openapi import document
from padim_edge.serve.samples import Samples
from padim_edge.serve.settings import Settings
from padim_edge.serve.slots import Loaded, Slot
from padim_edge.system import available_cores
from padim_edge.web.answers import HANDLERS, answer, refusal

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError("serving", "starlette", "serve") from error

T = TypeVar("T")

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
"""Which need no token: a supervisor asks here, and learns nothing but yes or no."""

RETRY = {"retry-after": "1"}
"""Seconds after which a place may be free."""

ANSWER_SECONDS = 30.0
"""For which a client may take its answer, which is in memory until then."""

_PIECE = 64 << 10  # bytes of an answer that are handed on at a time

_PAGE = {
    "/": ("index.html", "text/html"),
    "/serve.css": ("serve.css", "text/css"),
    "/serve.js": ("serve.js", "text/javascript"),
}


class RefusedError(PadimEdgeError):
    """A request that gets an answer other than 400 or 422."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class _GoneError(Exception):
    """The client does not wait for an answer."""


class App:
    """What is served, as an application of ASGI.

    Attributes:
        asgi: to be given to a server.
        draining: whether new work is refused.

    Args:
        slots: what is served, by name.
        settings: limits.
        metrics: told of every request that gets here; those that the server refuses before (token,
            host, origin, limits of connections and time) do not.
        samples: that the page shows.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        settings: Settings,
        metrics: Metrics,
        samples: Samples | None = None,
    ) -> None:
        self.draining = False
        self._slots, self._settings, self._metrics = slots, settings, metrics
        self._samples = samples
        self._held = 0  # bytes of bodies and answers; the event loop's alone, as `Slot.taken`
        # Pictures are decoded and drawn, and JSON read and written, away from the event loop.
        threads = min(WORKERS, available_cores())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="padim-edge-serve")
        self._free = asyncio.Semaphore(threads)
        self._working: set[Future[Any]] = set()
        handlers = {
            **HANDLERS,
            RefusedError: _refused,
            _GoneError: _gone,
            ClientDisconnect: _gone,
        }
        self.asgi = metrics.counted(Starlette(routes=self._routes(), exception_handlers=handlers))

    def _routes(self) -> list[Route]:
        model = "/v2/models/{name}"
        version = model + "/versions/{version}"
        return [
            *(Route(path, _file, name=path) for path in _PAGE),
            Route("/openapi.json", self._openapi),
            Route("/metrics", self._prometheus),
            Route("/v1/models", self._models),
            Route("/v1/models/{name}/judge", self._judge, methods=["POST"]),
            Route("/v1/samples", self._samples_listed),
            Route("/v1/samples/{number}", self._sample),
            Route("/v1/samples/{number}/thumbnail", self._thumbnail),
            Route("/v2", self._server),
            Route("/v2/", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            *(Route(path, self._metadata) for path in (model, version)),
            *(Route(f"{path}/ready", self._model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", self._infer, methods=["POST"]) for path in (model, version)),
        ]

    def is_ready(self) -> bool:
        """Whether every model answers."""
        return not self.draining and all(slot.loaded for slot in self._slots.values())

    def close(self) -> None:
        """Let the threads end with what they do now; see `is_working`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_working(self) -> bool:
        """Whether a thread is at work, be it for a client who is gone."""
        return bool(self._working)

    # --- judging -------------------------------------------------------------------------------

    async def _judge(self, request: Request) -> Response:
        slot = self._slot(request)
        heat_map = request.query_params.get("heat_map")
        if heat_map not in (None, "png", "jpeg"):
            raise RefusedError(400, f"heat_map={heat_map[:40]}: there are png and jpeg")
        alone = "image/png" in request.headers.get("accept", "")
        with self._body(request, slot, self._settings.max_bytes) as body:
            encoded = await body()
            if not encoded:
                raise RefusedError(400, "the body is empty: send the image file itself")
            with self._place(slot), self._lease(slot) as loaded:
                return await _unless_gone(
                    request, self._judged(slot, loaded, encoded, heat_map, alone)
                )

    async def _judged(
        self, slot: Slot, loaded: Loaded, encoded: bytes, heat_map: str | None, alone: bool
    ) -> Response:
        begun = time.perf_counter()
        prepared = await self._in_pool(self._prepare, loaded, encoded)
        (result,) = await _run(loaded, [prepared])
        took = {"server-timing": f"judge;dur={1000 * (time.perf_counter() - begun):.1f}"}
        self._count(slot, [result])
        # Noise has thousands of regions; they are found where they are first asked for.
        kind = "png" if alone else heat_map
        response = await self._in_pool(
            _answered, slot.name, loaded, encoded, result, kind, alone, took
        )
        return self._kept(response)

    def _prepare(self, loaded: Loaded, encoded: bytes) -> Prepared:
        try:
            check_head(encoded, self._settings.max_pixels)
            return loaded.detector.prepare(encoded)
        except TooManyPixelsError as error:
            raise RefusedError(413, f"the image {error}") from error
        except NotAnImageError as error:
            raise RefusedError(
                415, f"the body is {error}; send the file itself, no form"
            ) from error
        except ImageError as error:
            raise RefusedError(422, f"the image {error}") from error

    async def _infer(self, request: Request) -> Response:
        slot = self._slot(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "compressed bodies are not read: send it as it is")
        with self._lease(slot) as loaded:
            size = loaded.detector.backbone_info.image_size
        settings = self._settings
        longest = min(settings.max_bytes, v2.longest_body(size, settings.max_batch))
        with self._body(request, slot, longest) as body:
            encoded, length = await body(), request.headers.get(v2.LENGTH)
            with self._place(slot) as more, self._lease(slot) as loaded:

                async def inferred() -> Response:
                    size = loaded.detector.backbone_info.image_size
                    wanted = await self._in_pool(
                        v2.parse, encoded, length, size, settings.max_batch
                    )
                    more(len(wanted.images) - 1)
                    items = [Prepared(image, size) for image in wanted.images]
                    results = await _run(loaded, items)
                    self._count(slot, results)
                    # It counts as the longest that it may be while it is written.
                    longest = v2.longest_answer(slot.name, wanted, results)
                    self._hold(longest)
                    try:
                        text, headers = await self._in_pool(v2.answer, slot.name, wanted, results)
                    finally:
                        self._hold(-longest)
                    return self._kept(Response(text, headers=headers))

                return await _unless_gone(request, inferred())

    def _count(self, slot: Slot, results: list[Result]) -> None:
        for result in results:
            self._metrics.judged.labels(slot.name, _decision(result)).inc()

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        # The pool's own queue would hold a body whose client went away until its turn comes.
        await self._free.acquire()
        future = self._pool.submit(function, *arguments)
        self._working.add(future)
        loop = asyncio.get_running_loop()

        def done(_: object) -> None:
            self._working.discard(future)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._free.release)

        future.add_done_callback(done)
        return await asyncio.wrap_future(future)

    # --- who gets a place ----------------------------------------------------------------------

    def _slot(self, request: Request) -> Slot:
        """What a path names."""
        name = request.path_params["name"]
        slot = self._slots.get(name)
        if slot is None:
            known = ", ".join(self._slots)
            raise RefusedError(404, f"there is no model {name[:80]!r}: {known} may be asked")
        if request.path_params.get("version", v2.VERSION) != v2.VERSION:
            raise RefusedError(404, f"a model has version {v2.VERSION} and no other")
        request.scope["padim_edge_model"] = slot.name
        return slot

    @contextlib.contextmanager
    def _lease(self, slot: Slot) -> Iterator[Loaded]:
        with slot.lease() as loaded:
            if loaded is None:
                raise RefusedError(503, f"{slot.name} is being loaded: come back", RETRY)
            yield loaded

    def _check_room(self, slot: Slot, count: int) -> None:
        if slot.taken + count > self._settings.queue:
            raise RefusedError(
                429, f"{slot.taken} images of {slot.name} wait already: come back", RETRY
            )

    @contextlib.contextmanager
    def _place(self, slot: Slot) -> Iterator[Callable[[int], None]]:
        """A place in a queue, and how to take more of them; all are given back at the end."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            self._check_room(slot, count)
            slot.taken += count
            taken += count

        try:
            take(1)
            yield take
        finally:
            slot.taken -= taken

    @contextlib.contextmanager
    def _body(
        self, request: Request, slot: Slot, longest: int
    ) -> Iterator[Callable[[], Coroutine[Any, Any, bytes]]]:
        """What reads a body; its bytes count until the block ends.

        A place in the queue is taken when all of it is there: who sends slowly keeps none. But who
        would get none now need not send it.
        """
        if self.draining:
            raise RefusedError(503, "this server is going away", {**RETRY, "connection": "close"})
        self._check_room(slot, 1)
        if int(request.headers.get("content-length", 0)) > longest:
            raise RefusedError(413, f"a body of at most {longest} bytes is taken here")
        held = 0

        async def read() -> bytes:
            nonlocal held
            pieces = []
            async for piece in request.stream():
                if held + len(piece) > longest:
                    raise RefusedError(413, f"a body of at most {longest} bytes is taken here")
                self._hold(len(piece))
                held += len(piece)
                pieces.append(piece)
            return b"".join(pieces)

        try:
            yield read
        finally:
            self._hold(-held)

    def _kept(self, response: Response) -> Response:
        """An answer whose bytes count until it is taken, for which its client has its time."""
        size = len(response.body)
        if size <= _PIECE:  # which the server's buffer takes
            return response
        self._hold(size)
        return _Kept(response, lambda: self._hold(-size))

    def _hold(self, count: int) -> None:
        """Count bytes that are in memory for clients from now on, or no more."""
        most = self._settings.bodies_bytes
        if count > most:
            raise RefusedError(413, f"the answer has {count} bytes, and {most} may be in memory")
        if count > 0 and self._held + count > most:
            raise RefusedError(429, "too many large bodies or answers at once: come back", RETRY)
        self._held += count
        self._metrics.bodies.set(self._held)

    # --- what there is -------------------------------------------------------------------------

    async def _server(self, _: Request) -> Response:
        return answer(v2.SERVER)

    async def _live(self, _: Request) -> Response:
        return answer({"live": True})

    async def _ready(self, _: Request) -> Response:
        # The protocol wants 4xx for no.
        ready = self.is_ready()
        return answer({"ready": ready}, 200 if ready else 400)

    async def _model_ready(self, request: Request) -> Response:
        slot = self._slot(request)
        ready = slot.loaded is not None and not self.draining
        return answer({"name": slot.name, "ready": ready}, 200 if ready else 400)

    async def _metadata(self, request: Request) -> Response:
        slot = self._slot(request)
        with self._lease(slot) as loaded:
            return answer(v2.metadata(slot.name, loaded.detector))

    async def _index(self, _: Request) -> Response:
        """Triton's extension: the models, and whether each answers."""
        return answer(
            [
                {
                    "name": slot.name,
                    "version": v2.VERSION,
                    "state": "READY" if slot.loaded else "LOADING",
                    "reason": "",
                }
                for slot in self._slots.values()
            ]
        )

    async def _models(self, _: Request) -> Response:
        return answer({"models": [_described(slot) for slot in self._slots.values()]})

    async def _samples_listed(self, _: Request) -> Response:
        return answer({"samples": self._samples.listed() if self._samples else []})

    async def _sample(self, request: Request) -> Response:
        contents, kind = await self._of_sample(request, Samples.read)
        return self._kept(Response(contents, media_type=kind))

    async def _thumbnail(self, request: Request) -> Response:
        picture = await self._of_sample(request, Samples.thumbnail)
        return self._kept(Response(picture, media_type="image/jpeg"))

    async def _of_sample(self, request: Request, get: Callable[[Samples, str], T]) -> T:
        if self._samples is None:
            raise RefusedError(404, "there are no samples here")
        try:
            return await self._in_pool(get, self._samples, request.path_params["number"])
        except NoSuchImageError as error:
            raise RefusedError(404, f"sample: {error}") from error
        except ImageError as error:
            raise RefusedError(422, f"sample: {error}") from error

    async def _openapi(self, _: Request) -> Response:
        return answer(document(self._settings))

    async def _prometheus(self, _: Request) -> Response:
        return self._metrics.answer()


class _Kept(Response):
    """An answer that is handed on in pieces, as its client takes them.

    Args:
        response: what is answered.
        done: called when it is taken, or its client is gone or had its time.
    """

    def __init__(self, response: Response, done: Callable[[], None]) -> None:
        self._response, self._done = response, done
        self.status_code, self.background = response.status_code, None

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        try:
            # Not to its end: the server then closes the connection.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._send(send), ANSWER_SECONDS)
        finally:
            self._done()

    async def _send(self, send: Send) -> None:
        response, body = self._response, self._response.body
        start = {"status": response.status_code, "headers": response.raw_headers}
        await send({"type": "http.response.start", **start})
        for begin in range(0, len(body), _PIECE):
            end = begin + _PIECE
            piece = bytes(body[begin:end])
            await send({"type": "http.response.body", "body": piece, "more_body": end < len(body)})


def judgement(name: str, result: Result) -> dict[str, Any]:
    """What is said of one image; a score that is no number is null, and an anomaly."""
    finite = math.isfinite(result.score)
    height, width = result.size
    return {
        "model": name,
        "decision": _decision(result),
        "score": result.score if finite else None,
        "threshold": result.threshold,
        "percentile": result.percentile,
        "regions": [region.to_json() for region in result.regions if finite],
        "size": {"width": width, "height": height},
    }


def _answered(
    name: str,
    loaded: Loaded,
    encoded: bytes,
    result: Result,
    kind: str | None,
    alone: bool,
    headers: Mapping[str, str],
) -> Response:
    """The answer to `judge`: with a picture of some kind, or that alone."""
    finite = math.isfinite(result.score)
    if alone and not finite:
        raise RefusedError(500, "the score is no number, so there is nothing to draw")
    picture = _picture(loaded, encoded, result, kind) if kind and finite else None
    if alone:
        return Response(picture, headers=headers, media_type="image/png")
    value = judgement(name, result)
    if kind:
        value["heat_map"] = None if picture is None else base64.b64encode(picture).decode()
    return answer(value, headers=headers)


def _decision(result: Result) -> str:
    return "anomaly" if result.is_anomalous else "ok"


def _described(slot: Slot) -> dict[str, Any]:
    """A model, as `GET /v1/models` has it."""
    with slot.lease() as loaded:
        if loaded is None:
            return {"name": slot.name, "ready": False}
        detector = loaded.detector
        info = detector.detector_info
        height, width = detector.backbone_info.image_size
        return {
            "name": slot.name,
            "ready": True,
            "threshold": detector.threshold,
            "false_alarm_rate": info.false_alarm_rate,
            "good_images": len(info.good_scores),
            "input": {"width": width, "height": height},
            "backbone": detector.backbone_info.backbone,
            "engine": detector.engine.describe(),
        }


def _picture(loaded: Loaded, encoded: bytes, result: Result, kind: str) -> bytes:
    """A result over its image: as PNG with the verdict below it, as JPEG without."""
    stream = io.BytesIO()
    picture = drawn(loaded.detector, encoded, result, caption=kind == "png")
    # Level 1 takes half the time of the default, and a tenth more bytes.
    picture.save(
        stream, format=kind, **({"compress_level": 1} if kind == "png" else {"quality": 90})
    )
    return stream.getvalue()


async def _run(loaded: Loaded, items: list[Prepared]) -> list[Result]:
    """Have a batch judged; that it cannot be is no fault of the client."""
    try:
        return await asyncio.wrap_future(loaded.batches.submit(items))
    except PadimEdgeError as error:
        raise RefusedError(500, str(error)) from error


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The outcome of some work, which ends when the client goes away: others get its place."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _GoneError
        return await task
    finally:
        for one in (task, left):
            one.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _file(request: Request) -> Response:
    """A file of the page."""
    name, kind = _PAGE[request.url.path]
    text = resources.files(__package__).joinpath(name).read_text("utf-8")
    return Response(text, media_type=kind)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error.status, str(error), error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=GONE)  # which nobody reads but who counts
