"""`padim-edge run`: images are judged."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import EngineName, ModelFile, Strict, Threads
from padim_edge.cli.output import Skipped, open_detector, say
from padim_edge.errors import PadimEdgeError


@command("run", "padim-edge run padim.onnx photos/new/ --save-maps maps/ --jsonl scores.jsonl")
def run(
    model: ModelFile,
    source: Annotated[str, typer.Argument(help="An image, a folder, or a pattern in quotes.")],
    engine: EngineName = "auto",
    save_maps: Annotated[
        Path | None,
        typer.Option("--save-maps", help="Write each image with heat map and contour here."),
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option("--jsonl", help="Write one JSON object per image; - for stdout, no table."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the engine.")] = 8,
    strict: Strict = False,
    threads: Threads = 0,
) -> None:
    """Judge images: score, threshold, decision, and percentile among good images."""
    from padim_edge.detect.judging import judge
    from padim_edge.detect.overlay_folder import OverlayFolder
    from padim_edge.errors import ImageError
    from padim_edge.files import atomic_write
    from padim_edge.images.find import find_images
    from padim_edge.images.frames import files

    paths = find_images(source)
    on_stdout = jsonl is not None and str(jsonl) == "-"
    skipped = Skipped(strict)
    anomalous = 0
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(atomic_write(jsonl)) if jsonl and not on_stdout else None
        detector = stack.enter_context(open_detector(model, engine, threads))
        overlays = OverlayFolder(detector, save_maps, paths, Path(source)) if save_maps else None
        if not on_stdout:
            typer.echo(f"{'score':>10}  {'threshold':>10}  {'percentile':>10}  decision   image")
        for path, verdict in zip(paths, judge(detector, files(paths), batch), strict=True):
            if isinstance(verdict.outcome, ImageError):
                skipped(path, verdict.outcome)
            else:
                anomalous += verdict.outcome.is_anomalous
            if overlays:
                overlays.save(verdict)
            record = verdict.to_json()
            if lines:
                lines.write((json.dumps(record) + "\n").encode())
            if on_stdout:
                typer.echo(json.dumps(record))
            elif "error" not in record:
                typer.echo(_row(record))
    skipped.summary()
    good = len(paths) - len(skipped.errors) - anomalous
    say(f"{good} ok, {anomalous} anomalous, {len(skipped.errors)} unreadable")
    if len(skipped.errors) == len(paths):
        raise PadimEdgeError(f"none of the {len(paths)} image(s) could be read")


def _row(record: dict[str, Any]) -> str:
    """A line of the table; a score that is no number is none in JSON."""
    score = "nan" if record["score"] is None else f"{record['score']:.3f}"
    decision = "ANOMALY" if record["is_anomalous"] else "ok"
    return (
        f"{score:>10}  {record['threshold']:10.3f}  {record['percentile']:10.1f}  {decision:<9}  "
        f"{record['path']}"
    )
