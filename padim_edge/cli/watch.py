"""`padim-edge watch`: cameras are judged until told to stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import EngineName, Threads, Threshold
from padim_edge.cli.output import progress_bars, say, say_if_float32, say_skipped
from padim_edge.errors import PadimEdgeError, UsageError, first_line

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector
    from padim_edge.live.delivery import Deliveries
    from padim_edge.live.event import Event
    from padim_edge.live.recorder import Recorder
    from padim_edge.live.sink import AnySink
    from padim_edge.live.source import Source
    from padim_edge.live.spool import Spool
    from padim_edge.live.swap import ModelSlot
    from padim_edge.live.teach import Teacher
    from padim_edge.live.watch import Camera, Watch

_STATE = "padim-edge-state"


@command(
    "watch", "padim-edge watch padim.onnx rtsp://10.0.0.7/line --to jsonl:events.jsonl", "--also"
)
def watch(
    model: Annotated[
        Path,
        typer.Argument(help="Detector made by 'padim-edge fit'; or an embedding, with --page."),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]SOURCE",
            help="Where frames come from: a folder, a video, /dev/video0, or an address: "
            "rtsp://..., hot:inbox/, genicam:..., gst:..., raw:-?..., see docs/live.md.",
        ),
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="Where events go: jsonl:FILE, sqlite:FILE, mqtt://..., https://..., folder:..., "
            "see docs/live.md; may be repeated. Without it: one JSON object a line, on stdout.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also", metavar="MODEL [NAME=]SOURCE", help="Another camera; may be repeated."
        ),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(
            "--page",
            metavar="HOST:PORT",
            help="Show all of it in a browser; 127.0.0.1:8080 for this machine alone.",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="PADIM_EDGE_TOKEN",
            help="What a browser must show, 16 characters or more [default: none on loopback, else "
            "one is made]. Others see a command's options: better in the variable.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="latest: the newest frame is judged, those that it overtook are counted; all: "
            "none is lost, the source waits [default: latest for cameras, all for files].",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="Folder for events that are not delivered yet, and for what was judged "
            f"[default: systemd's StateDirectory, else {_STATE}, if --to or hot: needs it].",
        ),
    ] = None,
    engine: EngineName = "auto",
    threshold: Threshold = None,
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, help="Frames of a model that are judged at once, at most."),
    ] = 1,
    pixel_format: Annotated[
        str | None,
        typer.Option("--pixel-format", help="Of the frames, where the source does not say."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="End after so many frames.")
    ] = None,
    stats: Annotated[
        float,
        typer.Option(
            "--stats", min=0, metavar="SECONDS", help="Counts and latency on stderr, so often."
        ),
    ] = 0,
    drain: Annotated[
        float,
        typer.Option(
            "--drain",
            min=0,
            metavar="SECONDS",
            help="At the end, wait so long for sinks; what is left is delivered at the next start.",
        ),
    ] = 10,
    threads: Threads = 0,
) -> None:
    """Judge cameras until told to stop; tell files, databases, brokers and PLCs.

    SIGTERM or Ctrl-C: what waits is judged (policy all) or dropped (latest), all is written down,
    exit code 0; a second one does not wait. SIGHUP, or a new model file under the same name:
    the model is swapped without losing a frame. Exit code 1 if an engine fails again and again.
    """
    from padim_edge.live.queues import check_policy
    from padim_edge.live.recorder import Recorder
    from padim_edge.live.systemd import Notifier
    from padim_edge.live.watch import Watch
    from padim_edge.runtime.engines import check_name

    check_policy(policy)
    check_name(engine)
    cameras = [(model, *_named(source)), *(_camera(one) for one in also or ())]
    asked = [address for address in to or () if address.lower().startswith("prometheus:")]
    sinks = _sinks([address for address in to or () if address not in asked])
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        paths = [one for one, _, _ in cameras]
        taught = _embeddings(paths, page)
        if taught and threshold is not None:
            raise UsageError(
                f"--threshold would hold for every detector that is taught of {min(taught)}, whose "
                "scores nobody knows yet: leave it out, each fit sets its own"
            )
        # Of a hot folder it is remembered what was judged, whoever is told of it.
        keeps = sinks or state or any(one.lower().startswith("hot:") for _, _, one in cameras)
        folder = _state_folder(state) if keeps or taught else None
        spool = _spool(stack, sinks, folder) if folder and keeps else None
        slots = _models(stack, paths, taught, engine, threads, threshold)
        opened = _cameras(cameras, slots, policy, spool, pixel_format)
        wants_pictures = bool(page) or any(sink.wants_pictures for sink in sinks)
        recorder = Recorder(spool, None if sinks else _line, wants_pictures)
        recorder.told.append(_say_event)
        notifier = Notifier()
        stack.callback(notifier.close)
        watching = Watch(
            opened,
            recorder,
            batch=batch,
            count=count,
            notifier=notifier,
            stats=stats,
            tell=say,
        )
        deliveries = _deliveries(spool, sinks, watching)
        teachers = (
            _teachers(stack, paths, taught, opened, watching, folder, engine, threads)
            if folder
            else {}
        )
        _follow_drift(opened, watching)
        if page:
            _show(stack, page, token, watching, recorder, deliveries, teachers)
        for address in asked:
            _answer(stack, address, watching, recorder, deliveries)
        if deliveries:
            deliveries.start()
        signals.watching = watching
        try:
            watching.run()
        finally:
            if deliveries:
                _drain(deliveries, drain, signals)


def _camera(pair: str) -> tuple[Path, str, str]:
    """Model, name and address of --also."""
    model, source = pair.split("\0")
    return (Path(model), *_named(source))


def _named(address: str) -> tuple[str, str]:
    """NAME=ADDRESS taken apart; "" for an address without a name."""
    match = re.match(r"([A-Za-z0-9_.-]+)=(?=.)", address)
    return (match[1], address[match.end() :]) if match else ("", address)


def _embeddings(paths: Sequence[Path], page: str | None) -> set[Path]:
    """Those of the files that are no detectors yet, and are taught on the page."""
    from padim_edge.model.file import read

    taught = {path for path in paths if read(path, None, lazily=True).detector_info is None}
    if taught and not page:
        raise UsageError(
            f"{min(taught)} is an embedding, which judges nothing yet: make a detector of it with  "
            "padim-edge fit , or teach one on the page, with --page 127.0.0.1:8080"
        )
    return taught


def _models(
    stack: contextlib.ExitStack,
    paths: Sequence[Path],
    taught: Collection[Path],
    engine: str,
    threads: int,
    threshold: float | None,
) -> list[ModelSlot]:
    """A slot for each path; the same one for the same file. Says what each takes."""
    from padim_edge.detect.detector import Detector
    from padim_edge.live.swap import ModelSlot
    from padim_edge.system import resident_memory

    def opener(path: Path) -> Detector:
        return Detector(path, engine, threads, threshold=threshold)

    slots: dict[Path, ModelSlot] = {}
    for path in dict.fromkeys(paths):
        place = path.resolve()
        if place in slots:
            continue
        if path in taught:
            slots[place] = ModelSlot(opener)
            stack.callback(slots[place].close)
            continue
        before = resident_memory()
        with progress_bars() as progress:
            slot = ModelSlot(
                lambda one: Detector(one, engine, threads, progress, threshold=threshold), path
            )
        slot.opener = opener
        stack.callback(slot.close)
        slots[place] = slot
        with slot.using() as detector:
            if detector:
                _say_model(path, detector, resident_memory() - before)
    return [slots[path.resolve()] for path in paths]


def _say_model(path: Path, detector: Detector, memory: int) -> None:
    """What runs a model, why not something better, and what it takes."""
    engine = detector.engine
    say_skipped(detector.skipped, engine.name)
    say_if_float32(engine.name, detector.backbone_info.precision)
    figures = engine.figures()
    takes = f"{memory / 1e6:.0f} MB of memory"
    if figures:
        takes += f", {figures.memory_bytes / 1e6:.0f} MB of the GPU's"
    say(f"{path}: {engine.name}, {engine.describe()}; {takes}")


def _teachers(
    stack: contextlib.ExitStack,
    paths: Sequence[Path],
    taught: Collection[Path],
    cameras: Sequence[Camera],
    watching: Watch,
    folder: Path,
    engine: str,
    threads: int,
) -> dict[str, Teacher]:
    """Who teaches each camera whose model is an embedding, by its name; one for each embedding."""
    if not taught:
        return {}
    from padim_edge.live.teach import Teacher
    from padim_edge.runtime.graphs import GRAPHS

    teachers: dict[ModelSlot, Teacher] = {}
    by_camera: dict[str, Teacher] = {}
    for path, camera in zip(paths, cameras, strict=True):
        if path not in taught:
            continue
        if camera.model not in teachers:
            mine = [one.name for one in cameras if one.model is camera.model]
            teacher = Teacher(
                folder / f"taught-{path.stem}",
                path,
                camera.model,
                cameras=mine,
                say=watching.say,
                # Not every engine that runs detectors runs a bare backbone.
                engine=engine if engine in GRAPHS else "auto",
                threads=threads,
            )
            stack.callback(teacher.close)
            teachers[camera.model] = teacher
            watching.observers.append(teacher)
            now = f"{camera.model.path} judges" if camera.model.path else "nothing judges yet"
            say(f"{path}: {now}; taught on the page, kept in {teacher.versions.folder}")
        by_camera[camera.name] = teachers[camera.model]
    return by_camera


def _follow_drift(cameras: Sequence[Camera], watching: Watch) -> None:
    """Have it said when frames are no longer like the photos of their detector's fit."""
    from padim_edge.live.drift import DriftWatch

    for slot in dict.fromkeys(camera.model for camera in cameras):
        mine = [camera.name for camera in cameras if camera.model is slot]
        watching.observers.append(DriftWatch(slot, watching.say, mine))


def _cameras(
    cameras: Sequence[tuple[Path, str, str]],
    slots: Sequence[ModelSlot],
    policy: str | None,
    spool: Spool | None,
    pixel_format: str | None,
) -> list[Camera]:
    from padim_edge.live.source import SourceError
    from padim_edge.live.sources import display, never, open_source
    from padim_edge.live.watch import Camera

    def judged(key: str) -> bool:
        assert spool is not None
        try:
            return spool.judged(key)
        except PadimEdgeError as error:  # as if the folder could not be read: it is opened again
            raise SourceError(first_line(error)) from error

    def opening(address: str) -> Callable[[], Source]:
        seen = judged if spool else never
        return lambda: open_source(address, seen=seen, pixel_format=pixel_format)

    alone = len(cameras) == 1
    return [
        Camera(
            name or ("camera" if alone else f"camera{number}"),
            opening(address),
            display(address),
            slot,
            policy,
        )
        for number, ((_, name, address), slot) in enumerate(
            zip(cameras, slots, strict=True), start=1
        )
    ]


def _sinks(addresses: Sequence[str]) -> list[AnySink]:
    if not addresses:
        return []
    from padim_edge.live.sinks import make_sink

    return [make_sink(address) for address in addresses]


def _spool(stack: contextlib.ExitStack, sinks: Sequence[AnySink], folder: Path) -> Spool:
    """What sinks deliver from, and where it is remembered what was judged."""
    from padim_edge.live.delivery import spooled
    from padim_edge.live.spool import Spool

    spool = Spool(
        folder / "spool.db",
        sinks=spooled(sinks),
        pictures=any(sink.wants_pictures for sink in sinks),
    )
    stack.callback(spool.close)
    return spool


def _state_folder(state: Path | None) -> Path:
    """Where everything is kept; made if it is not there."""
    folder = state or Path(os.environ.get("STATE_DIRECTORY", "").split(":")[0] or _STATE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PadimEdgeError(
            f"cannot make the folder {folder}: {error.strerror or error}; name one that can be "
            "written with --state"
        ) from error
    if state is None:
        say(f"state: {folder}")
    return folder


def _deliveries(
    spool: Spool | None, sinks: Sequence[AnySink], watching: Watch
) -> Deliveries | None:
    if spool is None or not sinks:
        return None
    from padim_edge.live.delivery import Deliveries

    cameras = list(watching.statuses)
    return Deliveries(spool, sinks, cameras, lambda message: watching.say("watch", "", message))


def _answer(
    stack: contextlib.ExitStack,
    address: str,
    watching: Watch,
    recorder: Recorder,
    deliveries: Deliveries | None,
) -> None:
    """Metrics for who asks."""
    from padim_edge.live.metrics import Metrics

    statuses = list(watching.statuses.values())
    metrics = Metrics(statuses, deliveries.statuses if deliveries else tuple)
    watching.observers.append(metrics)
    recorder.told.append(metrics.said)
    stack.callback(metrics.listen(address).close)


def _show(
    stack: contextlib.ExitStack,
    address: str,
    token: str | None,
    watching: Watch,
    recorder: Recorder,
    deliveries: Deliveries | None,
    teachers: Mapping[str, Teacher],
) -> None:
    """Serve the page; says where."""
    from padim_edge.live.board import Board
    from padim_edge.live.page.app import page
    from padim_edge.web.server import Server, parse_listen

    board = Board(
        list(watching.statuses.values()), deliveries.statuses if deliveries else lambda: ()
    )
    recorder.observers.append(board)
    recorder.told.append(board.said)
    server = stack.enter_context(Server(page(board, teachers), *parse_listen(address), token))
    say(f"page: {server.url}")
    if server.made_token:
        say(f"token: {server.token}")


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say_event(event: Event) -> None:
    """An event that is no verdict, for people."""
    camera = event.record["camera"]
    say(f"{camera}: {event.record['message']}" if camera else event.record["message"])


class _Signals:
    """SIGTERM and SIGINT end a watch, or what is done before it begins; SIGHUP reloads.

    Attributes:
        watching: what is ended.
        stops: how often it was asked for.
    """

    def __init__(self) -> None:
        self.watching: Watch | None = None
        self.stops = 0

    def _stop(self, *_: object) -> None:
        self.stops += 1
        if self.watching is None:
            raise KeyboardInterrupt
        self.watching.stop()

    def _reload(self, *_: object) -> None:
        if self.watching is not None:
            self.watching.reload()

    def __enter__(self) -> _Signals:
        handlers = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self._reload,
        }
        self._before = {number: signal.signal(number, one) for number, one in handlers.items()}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self.watching is None:
            say("stopped before the first frame")
            return True
        return False


def _drain(deliveries: Deliveries, seconds: float, signals: _Signals) -> None:
    """Let sinks take what waits for them, for a while; a second signal ends it."""
    left: list[str] = []
    closing = threading.Thread(target=lambda: left.extend(deliveries.close(seconds)), daemon=True)
    closing.start()
    while closing.is_alive() and signals.stops < 2:
        closing.join(0.1)
    for line in left:
        say(f"at the end: {line}; delivered at the next start")
