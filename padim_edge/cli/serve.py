"""`padim-edge serve`: detectors over HTTP."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import EngineName, Threads
from padim_edge.cli.output import say


@command("serve", "padim-edge serve bottle.onnx cable.onnx --port 8000")
def serve(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="Detectors made by 'padim-edge fit'; each is called as its file, without suffix.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Address to listen on; 0.0.0.0 for all that reach this machine."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="PADIM_EDGE_TOKEN",
            help="What clients must show, 16 characters or more [default: none on loopback, else "
            "one is made]. Others see a command's options: better in the variable.",
        ),
    ] = None,
    engine: EngineName = "auto",
    threads: Threads = 0,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Images in a run of the engine, at most.")
    ] = 8,
    max_delay: Annotated[
        float,
        typer.Option(
            "--max-delay",
            min=0,
            help="Milliseconds that an image waits for others while the engine rests, at most; "
            "what comes while it runs is batched anyway.",
        ),
    ] = 0,
    queue: Annotated[
        int,
        typer.Option(
            "--queue", min=1, help="Images of a model at once; more are told to come back (429)."
        ),
    ] = 64,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, help="Of a request's body, in MiB.")
    ] = 32,
    max_pixels: Annotated[
        int,
        typer.Option(
            "--max-pixels",
            min=1,
            help="Of an image, in millions; each takes up to 18 MB in "
            "each of up to four threads while it is decoded.",
        ),
    ] = 50,
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples",
            help="A folder with photos for the page to show, judged by a click; the folders in it "
            "are their kinds. Who may open the page may have them.",
        ),
    ] = None,
) -> None:
    """Serve detectors over HTTP: images judged by POST, and the Open Inference Protocol (V2)."""
    from padim_edge.serve.service import Service
    from padim_edge.serve.settings import Settings

    settings = Settings(
        *(engine, threads, max_batch, max_delay / 1000, queue),
        *(max_bytes << 20, max_pixels * 1_000_000),
    )
    signals = _Signals()
    with signals, Service(models, settings, host, port, token, samples) as service:
        signals.is_serving = True
        say(f"serving {', '.join(path.stem for path in models)} on {service.url}")
        for line in service.described():
            say(line)
        if service.made_token:
            say(f"token: {service.token}")
        if not service.run(signals.wanted, say):
            _leave("stopped: what was still at work was left")
    if service.is_working:
        _leave("stopped: what was begun has been answered; what nobody waits for was left")
    say("stopped: what was begun has been answered")


def _leave(last: str) -> NoReturn:
    """End now: the interpreter would wait for all threads, and a picture may take a minute."""
    with contextlib.suppress(OSError):  # nobody reads it
        say(last)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


class _Signals:
    """SIGTERM and SIGINT end a service, SIGHUP loads all again, also if it comes while loading.

    Attributes:
        wanted: what was asked for. Its put is the one of its kind that a handler may call.
        is_serving: all is loaded; before, the end comes at once.
    """

    def __init__(self) -> None:
        self.wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.is_serving = False

    def _end(self, *_: object) -> None:
        if not self.is_serving:
            raise KeyboardInterrupt
        self.wanted.put("end")

    def _reload(self, *_: object) -> None:
        self.wanted.put("reload")

    def __enter__(self) -> None:
        handlers = {"SIGTERM": self._end, "SIGINT": self._end, "SIGHUP": self._reload}
        self._before = {
            name: signal.signal(getattr(signal, name), handler)
            for name, handler in handlers.items()
            if hasattr(signal, name)  # Windows has no SIGHUP
        }

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(getattr(signal, name), handler)
