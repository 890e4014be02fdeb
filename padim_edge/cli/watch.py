"""`padim-edge watch`: cameras are judged until told to stop."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import EngineName, Threads, Threshold
from padim_edge.cli.output import progress_bars, say, say_if_float32, say_skipped

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector
    from padim_edge.live.assembly import Wish
    from padim_edge.live.watch import Watch


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
            "[default: systemd's StateDirectory, else padim-edge-state; if --to or hot: needs it].",
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
    exit code 0; a second one waits for nothing but a fit that is at work. SIGHUP, or a new model
    file under the same name: the model is swapped without losing a frame. Exit code 1 if an engine
    fails again and again.
    """
    from padim_edge.live.assembly import Assembly, Plan, Voice

    plan = Plan(
        [_wish(model, source), *(_also(pair) for pair in also or ())],
        to=to or (),
        page=page,
        token=token,
        policy=policy,
        state=state,
        engine=engine,
        threads=threads,
        threshold=threshold,
        batch=batch,
        pixel_format=pixel_format,
        count=count,
        stats=stats,
        drain=drain,
    )
    assembly = Assembly(plan, Voice(say, _line, _say_model, progress_bars))
    with _Signals() as signals, assembly:
        signals.watching = assembly.watch
        assembly.run(lambda: signals.stops > 1)


def _also(pair: str) -> Wish:
    """Model and source of --also."""
    model, source = pair.split("\0")
    return _wish(Path(model), source)


def _wish(model: Path, source: str) -> Wish:
    """A model with [NAME=]SOURCE."""
    from padim_edge.live.assembly import Wish

    match = re.match(r"([A-Za-z0-9_.-]+)=(?=.)", source)
    return Wish(model, source[match.end() :], match[1]) if match else Wish(model, source)


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


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


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
