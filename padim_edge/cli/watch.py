"""`padim-edge watch`: cameras are judged until told to stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import EngineName, ModelFile, Threads, Threshold
from padim_edge.cli.output import progress_bars, say, say_if_float32, say_skipped
from padim_edge.errors import PadimEdgeError, UsageError

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector
    from padim_edge.live.delivery import Delivery
    from padim_edge.live.event import Event
    from padim_edge.live.source import Source
    from padim_edge.live.spool import Spool
    from padim_edge.live.swap import ModelSlot
    from padim_edge.live.watch import Camera, Watch

_STATE = "padim-edge-state"


@command(
    "watch", "padim-edge watch padim.onnx rtsp://10.0.0.7/line --to jsonl:events.jsonl", "--also"
)
def watch(
    model: ModelFile,
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
            f"[default: systemd's StateDirectory, else {_STATE}, if --to needs it].",
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
    with contextlib.ExitStack() as stack:
        deliveries, spool = _outputs(stack, to or [], state)
        slots = _models(stack, [one for one, _, _ in cameras], engine, threads, threshold)
        opened = _cameras(cameras, slots, policy, spool, pixel_format)
        recorder = Recorder(
            spool, None if to else _line, any(one.sink.wants_pictures for one in deliveries)
        )
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
        for delivery in deliveries:
            delivery.start()
        with _signals(watching) as stops:
            try:
                watching.run()
            finally:
                _drain(deliveries, drain, stops)


def _camera(pair: str) -> tuple[Path, str, str]:
    """Model, name and address of --also."""
    model, source = pair.split("\0")
    return (Path(model), *_named(source))


def _named(address: str) -> tuple[str, str]:
    """NAME=ADDRESS taken apart; "" for an address without a name."""
    match = re.match(r"([A-Za-z0-9_.-]+)=(?=.)", address)
    return (match[1], address[match.end() :]) if match else ("", address)


def _models(
    stack: contextlib.ExitStack,
    paths: Sequence[Path],
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
        _refuse_embedding(path)
        before = resident_memory()
        with progress_bars() as progress:
            slot = ModelSlot(
                lambda one: Detector(one, engine, threads, progress, threshold=threshold), path
            )
        slot.opener = opener
        stack.callback(slot.close)
        slots[place] = slot
        with slot.using() as detector:
            assert detector is not None
            say_skipped(detector.skipped, detector.engine.name)
            say_if_float32(detector.engine.name, detector.backbone_info.precision)
            figures = detector.engine.figures()
            memory = f"{(resident_memory() - before) / 1e6:.0f} MB of memory"
            if figures:
                memory += f", {figures.memory_bytes / 1e6:.0f} MB of the GPU's"
            say(f"{path}: {detector.engine.name}, {detector.engine.describe()}; {memory}")
    return [slots[path.resolve()] for path in paths]


def _refuse_embedding(path: Path) -> None:
    """Refuse an embedding.onnx, which is no detector yet."""
    from padim_edge.model.file import read

    if read(path, None, lazily=True).detector_info is None:
        raise UsageError(
            f"{path} is an embedding, which judges nothing yet: make a detector of it with  "
            "padim-edge fit"
        )


def _cameras(
    cameras: Sequence[tuple[Path, str, str]],
    slots: Sequence[ModelSlot],
    policy: str | None,
    spool: Spool | None,
    pixel_format: str | None,
) -> list[Camera]:
    from padim_edge.live.sources import display, never, open_source
    from padim_edge.live.watch import Camera

    def opening(address: str) -> Callable[[], Source]:
        seen = spool.judged if spool else never
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


def _outputs(
    stack: contextlib.ExitStack, to: Sequence[str], state: Path | None
) -> tuple[list[Delivery], Spool | None]:
    """A delivery for each sink, and what they deliver from."""
    if not to and state is None:
        return [], None
    from padim_edge.live.delivery import Delivery
    from padim_edge.live.sinks import make_sink
    from padim_edge.live.spool import Spool

    sinks = [make_sink(address) for address in to]
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
    spool = Spool(folder / "spool.db", sinks=[sink.address for sink in sinks])
    stack.callback(spool.close)
    return [Delivery(spool, sink) for sink in sinks], spool


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say_event(event: Event) -> None:
    """An event that is no verdict, for people."""
    camera = event.record["camera"]
    say(f"{camera}: {event.record['message']}" if camera else event.record["message"])


@contextlib.contextmanager
def _signals(watching: Watch) -> Iterator[list[int]]:
    """SIGTERM and SIGINT stop, SIGHUP reloads; yields the signals to stop that came."""
    stops: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stops.append(number)
        watching.stop()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop}
    handlers[signal.SIGHUP] = lambda *_: watching.reload()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drain(deliveries: Sequence[Delivery], seconds: float, stops: Sequence[int]) -> None:
    """Let sinks take what waits for them, for a while; a second signal ends it."""
    deadline = time.monotonic() + seconds
    for delivery in deliveries:
        delivery.close(max(deadline - time.monotonic(), 0.0) if len(stops) < 2 else 0.0)
