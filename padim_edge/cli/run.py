"""`padim-edge run`: images are judged."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from padim_edge.cli.command import ANOMALIES, command
from padim_edge.cli.options import (
    EngineName,
    ModelFile,
    OnRay,
    RayAddress,
    ReportFile,
    Strict,
    Threads,
    Threshold,
)
from padim_edge.cli.output import Skipped, open_cluster, open_detector, say, visible
from padim_edge.errors import PadimEdgeError, UsageError

if TYPE_CHECKING:
    from padim_edge.detect.detector import Detector
    from padim_edge.detect.judging import Verdict
    from padim_edge.detect.line_file import LineFile
    from padim_edge.detect.overlay_folder import OverlayFolder
    from padim_edge.images.decode import Head
    from padim_edge.images.find import Found


@command("run", "padim-edge run padim.onnx photos/new/ --save-maps maps/ --jsonl scores.jsonl")
def run(
    model: ModelFile,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE...", help="Images, folders, or patterns in quotes."),
    ] = None,
    files_from: Annotated[
        Path | None,
        typer.Option(
            "--files-from", help="A list of images, one a line or NUL between; - for stdin."
        ),
    ] = None,
    engine: EngineName = "auto",
    save_maps: Annotated[
        Path | None,
        typer.Option("--save-maps", help="Write each image with heat map and contour here."),
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl",
            help="Write one JSON object per image, as they come, to FILE.part, which becomes FILE "
            "when it is complete; - for stdout, no table.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the FILE.part of a run that was stopped."),
    ] = False,
    report: ReportFile = None,
    fail_on_anomaly: Annotated[
        bool,
        typer.Option(
            "--fail-on-anomaly",
            help="Exit code 3 if an image is anomalous, else 1 if one could not be judged.",
        ),
    ] = False,
    threshold: Threshold = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the engine.")] = 8,
    strict: Strict = False,
    threads: Threads = 0,
    ray: OnRay = False,
    ray_address: RayAddress = None,
) -> None:
    """Judge images: score, threshold, decision, and percentile among good images."""
    from padim_edge.detect.heads import Heads
    from padim_edge.detect.overlay_folder import OverlayFolder
    from padim_edge.detect.report.judged import JudgedReport
    from padim_edge.detect.report.page import check_place, page
    from padim_edge.errors import ImageError
    from padim_edge.files import atomic_write, check_distinct, check_not_read

    found = _found(sources or [], files_from)
    on_stdout = jsonl is not None and str(jsonl) == "-"
    check_place(report)
    listed_in = None if str(files_from) == "-" else files_from
    written = {"jsonl": None if on_stdout else jsonl, "report": report}
    check_distinct(model=model, images=listed_in, **written)
    check_not_read(found.images, **written)
    if resume and (jsonl is None or on_stdout):
        raise UsageError("--resume goes on with a file: name it with --jsonl")
    if resume and report:
        raise UsageError("--report shows all images of one run: leave --resume out, or --report")
    skipped = Skipped(strict)
    tally = _Tally()
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(_line_file(jsonl, resume)) if jsonl and not on_stdout else None
        page_file = stack.enter_context(atomic_write(report)) if report else None
        detector = stack.enter_context(open_detector(model, engine, threads, threshold))
        if lines:
            _check_same(detector, lines)
        paths = _left(found.images, lines)
        spread = paths and (ray or ray_address is not None)
        cluster = stack.enter_context(open_cluster(ray, ray_address)) if spread else None
        heads = Heads(detector.detector_info, say)
        overlays = (
            OverlayFolder(detector, save_maps, found.images, sources or []) if save_maps else None
        )
        collected = JudgedReport(detector, model, paths) if page_file else None
        for record in lines.records.values() if lines else ():
            tally.add(record)
        if not on_stdout:
            typer.echo(f"{'score':>10}  {'threshold':>10}  {'percentile':>10}  decision   image")
        if cluster:
            from padim_edge.scale.judging import judge_on

            maps = bool(save_maps or report)
            judged = judge_on(cluster, model, paths, batch, engine, threads, threshold, maps)
        else:
            judged = _judged(detector, paths, batch)
        for path, (verdict, head) in zip(paths, judged, strict=True):
            if isinstance(verdict.outcome, ImageError):
                skipped(path, verdict.outcome)
            heads.take(path, head)
            record = verdict.to_json()
            if overlays:
                _save_overlay(overlays, verdict, strict)
            if collected:
                collected(verdict)
            if lines:
                lines.write(record)
            tally.add(record)
            if on_stdout:
                typer.echo(json.dumps(record))
            elif "error" not in record:
                typer.echo(_row(record))
        if page_file and collected:
            page_file.write(page(collected.report(_title(sources or [], paths))))
    skipped.summary()
    heads.summary()
    if found.others:
        say(f"not judged, for they are no images: {found}")
    say(f"{tally.ok} ok, {tally.anomalous} anomalous, {tally.unreadable} unreadable")
    tally.conclude(fail_on_anomaly)


def _judged(
    detector: Detector, paths: Sequence[Path], batch: int
) -> Iterator[tuple[Verdict, Head | None]]:
    """Verdicts of files, and what their heads say."""
    from padim_edge.detect.judging import judge
    from padim_edge.images.decode import read_head
    from padim_edge.images.frames import files

    for path, verdict in zip(paths, judge(detector, files(paths), batch), strict=True):
        yield verdict, read_head(path)


def _save_overlay(overlays: OverlayFolder, verdict: Verdict, strict: bool) -> None:
    """Draw a verdict; if its file has gone since it was judged, say so and go on."""
    from padim_edge.errors import ImageError

    try:
        overlays.save(verdict)
    except ImageError as error:
        if strict:
            raise
        say(f"warning: judged, but there is no overlay: {error}")


def _found(sources: Sequence[str], files_from: Path | None) -> Found:
    """The images of all sources and of the list."""
    from padim_edge.images.find import Found, look, read_list

    if not sources and files_from is None:
        raise UsageError("no images were given: name files, folders or patterns, or --files-from")
    found = look(sources)
    if files_from is None:
        return found
    try:
        text = sys.stdin.buffer.read() if str(files_from) == "-" else files_from.read_bytes()
    except OSError as error:
        raise PadimEdgeError(
            f"cannot read the list {files_from}: {error.strerror}; give a readable file, or -"
        ) from error
    images = list(dict.fromkeys([*found.images, *read_list(text)]))
    if not images:
        raise PadimEdgeError(f"the list {files_from} names no image: one a line is needed")
    return Found(images, found.others)


@contextlib.contextmanager
def _line_file(path: Path, resume: bool) -> Iterator[LineFile]:
    """A file of lines; if the run is stopped, it is said where they are."""
    from padim_edge.detect.line_file import LineFile

    lines = LineFile(path, resume)
    if lines.records or lines.unread:
        again = f"; {lines.unread} could not be read, and are tried again" * (lines.unread > 0)
        say(f"going on: {len(lines.records)} images were judged before{again}")
    try:
        with lines:
            yield lines
    except BaseException:
        if count := lines.lines():
            say(f"not complete: {count} lines are in {lines.part}; go on with --resume")
        raise


def _check_same(detector: Detector, lines: LineFile) -> None:
    """Refuse to go on with lines of another detector: its threshold differs, or its scores.

    Raises:
        UsageError: they do.
    """
    from padim_edge.images.stored_path import as_path

    judged = lines.records.values()
    for record in judged:
        if record["threshold"] != detector.threshold:
            raise UsageError(
                f"{lines.part} was written by a detector with threshold {record['threshold']}, "
                f"this one has {detector.threshold}: go on with that one, or remove the file"
            )
    again = next((one for one in reversed(judged) if one["score"] is not None), None)
    if again is None or not as_path(again["path"]).exists():
        return
    score = detector(again["path"]).score
    # Engines differ by up to 1.3 % of a score.
    if not math.isclose(score, again["score"], rel_tol=0.02):
        raise UsageError(
            f"{lines.part} was written by another detector: of {again['path']} it says "
            f"{again['score']:.3f}, this one {score:.3f}; go on with that one, or remove the file"
        )


def _left(paths: Sequence[Path], lines: LineFile | None) -> list[Path]:
    """The images that an earlier run has not judged."""
    records = lines.records if lines else {}
    others = len(records.keys() - set(map(str, paths)))
    if others:
        say(f"warning: {others} of the lines of the earlier run are of images not given now")
    return [path for path in paths if str(path) not in records]


def _title(sources: Sequence[str], paths: Sequence[Path]) -> str:
    """What was judged, in a word or two."""
    return Path(sources[0]).resolve().name if len(sources) == 1 else f"{len(paths)} photos"


class _Tally:
    """Counts what became of images."""

    def __init__(self) -> None:
        self.ok = self.anomalous = self.unreadable = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count one line."""
        self.unreadable += "error" in record
        self.anomalous += record.get("is_anomalous", False)
        self.ok += not record.get("is_anomalous", True)

    def conclude(self, fail_on_anomaly: bool) -> None:
        """Leave with the exit code that it deserves."""
        if fail_on_anomaly and self.anomalous:
            raise typer.Exit(ANOMALIES)
        if not self.ok and not self.anomalous:
            raise PadimEdgeError(f"none of the {self.unreadable} image(s) could be read")
        if fail_on_anomaly and self.unreadable:
            raise PadimEdgeError(
                f"{self.unreadable} image(s) could not be judged, and so are not known to be good"
            )


def _row(record: dict[str, Any]) -> str:
    """A line of the table; a score that is no number is none in JSON."""
    score = "nan" if record["score"] is None else f"{record['score']:.3f}"
    decision = "ANOMALY" if record["is_anomalous"] else "ok"
    return (
        f"{score:>10}  {record['threshold']:10.3f}  {record['percentile']:10.1f}  {decision:<9}  "
        f"{visible(record['path'])}"
    )
