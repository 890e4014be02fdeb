"""`padim-edge capture`: photos from a camera, for fit."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.output import say
from padim_edge.errors import PadimEdgeError


@command("capture", "padim-edge capture rtsp://10.0.0.7/line photos/good --every 2 --count 100")
def capture(
    source: Annotated[
        str,
        typer.Argument(
            help="Where frames come from, as for watch: a folder, a video, /dev/video0, or an "
            "address: rtsp://..., genicam:..., gst:..., see docs/live.md."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Where photos go; made if it is not there.")],
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Photos [default: until Ctrl-C or the end]")
    ] = None,
    every: Annotated[
        float,
        typer.Option("--every", min=0.0, help="Seconds between photos of a live source, at least."),
    ] = 0.0,
    nth: Annotated[int, typer.Option("--nth", min=1, help="Of each so many frames the first.")] = 1,
    different: Annotated[
        bool,
        typer.Option(
            "--different",
            help="Leave out frames that are nearly equal to one of the last 256 photos: they would "
            "count as one.",
        ),
    ] = False,
    pixel_format: Annotated[
        str | None,
        typer.Option("--pixel-format", help="What the pixels are, where the source is wrong."),
    ] = None,
) -> None:
    """Take photos of good parts: PNG, without loss, named by time and number."""
    from padim_edge.live.photos import Counts, take_photos
    from padim_edge.live.sources import open_source

    counts = Counts()
    opened = open_source(source, pixel_format=pixel_format)
    try:
        photos = take_photos(
            opened,
            folder,
            counts,
            every=every,
            nth=nth,
            different=different,
            warn=lambda error: say(f"warning: left out: {error}"),
        )
        say(opened.describe())
        # Ctrl-C is how one stops a camera.
        with contextlib.suppress(KeyboardInterrupt):
            for path in photos:
                typer.echo(path)
                if counts.photos == count:
                    break
    finally:
        opened.close()
        if counts.photos:
            alike = f", {counts.alike} nearly equal frames left out" * different
            unreadable = f", {counts.unreadable} could not be read" * bool(counts.unreadable)
            say(f"{counts.photos} photos in {folder}{alike}{unreadable}")
    if not counts.photos:
        raise PadimEdgeError(f"{opened.address} gave no photo")
