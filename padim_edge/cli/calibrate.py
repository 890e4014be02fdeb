"""`padim-edge calibrate`: another threshold, without another fit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import EngineName, ModelFile, Strict, Threads
from padim_edge.cli.output import (
    Skipped,
    good_images,
    interval,
    open_detector,
    progress_bars,
    say,
    say_images,
    table,
    write_json,
)
from padim_edge.errors import PadimEdgeError, UsageError, listed

if TYPE_CHECKING:
    from padim_edge.detect.calibration import Calibrated, Photos


@command("calibrate", "padim-edge calibrate padim.onnx --false-alarm-rate 0.02 --good photos/more/")
def calibrate(
    model: ModelFile,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Share of good parts that may raise an alarm [default: the file's].",
        ),
    ] = None,
    good: Annotated[
        list[str] | None,
        typer.Option("--good", help="More good images, that are not in the fit; may be repeated."),
    ] = None,
    bad: Annotated[
        list[str] | None,
        typer.Option(
            "--bad",
            help="Defective images, to see how many each rate finds; they set nothing. May be "
            "repeated.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the table as JSON.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Draw recall by false-alarm rate: .png, .svg or .pdf; needs --bad."
        ),
    ] = None,
    engine: EngineName = "auto",
    strict: Strict = False,
    threads: Threads = 0,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write over MODEL instead of --output.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write [default: padim-calibrated.onnx]."),
    ] = None,
) -> None:
    """Set a detector's thresholds anew: another false-alarm rate, or more good images."""
    from padim_edge.detect.calibration import (
        NO_PHOTOS,
        recalibrate,
        recall_curve,
        score_photos,
    )
    from padim_edge.files import atomic_write, check_distinct, check_not_read
    from padim_edge.fit.settings import check_rate
    from padim_edge.images.dataset import Folders
    from padim_edge.images.find import find_images
    from padim_edge.model.file import read, write

    check_rate(false_alarm_rate)
    writes = false_alarm_rate is not None or bool(good)
    if in_place and output:
        raise UsageError(f"--in-place and --output {output}: choose one")
    if not writes and not bad:
        raise UsageError(
            "there is nothing to calibrate by: give --false-alarm-rate, --good or --bad"
        )
    if not writes and (in_place or output):
        raise UsageError("--bad sets nothing, so there is nothing to write: leave --output out")
    if plot and not bad:
        raise UsageError(f"--plot {plot} draws how many defective images are found: give --bad")
    target = model if in_place else output or Path("padim-calibrated.onnx")
    check_distinct(
        **{"--json": json_file, "--plot": plot},
        **({"model": model} if in_place else {"model": model, "--output": target}),
    )
    kind = None
    if plot:
        from padim_edge.measure.plots import draw_recall, kind_of

        kind = kind_of(plot)
    found = read(model, "padim")
    good_paths = good_images(good, Folders()) if good else []
    bad_paths = [path for one in bad or () for path in find_images(one)]
    if bad_paths:
        say_images(bad_paths)
    written = {"--json": json_file, "--plot": plot, "--output": target if writes else None}
    check_not_read([*good_paths, *bad_paths], **written)
    skipped = Skipped(strict)
    more = defective = NO_PHOTOS
    with contextlib.ExitStack() as files:
        stream = files.enter_context(atomic_write(target)) if writes else None
        picture = files.enter_context(atomic_write(plot)) if plot else None
        if good_paths or bad_paths:
            with open_detector(model, engine, threads) as detector, progress_bars() as progress:
                more = score_photos(detector, good_paths, skipped, progress, "good")
                defective = score_photos(detector, bad_paths, skipped, progress, "defective", more)
        skipped.summary()
        info = found.detector_info
        _say_left_out(more, defective, info is not None and len(info.digests) >= info.images)
        if bad and not len(defective.scores):
            raise PadimEdgeError("no defective image could be judged: give others, or no --bad")
        done = recalibrate(found, false_alarm_rate, more, defective)
        if stream:
            write(stream, done.model)
        if picture and kind:
            draw_recall(
                recall_curve(done.info, defective), done.info.false_alarm_rate, picture, kind
            )
    _print(done, more, target if writes else None)
    if json_file:
        write_json(json_file, done.to_json())


def _say_left_out(good: Photos, bad: Photos, known: bool) -> None:
    if good.known:
        say(
            f"warning: {len(good.known)} of the good images are known to the detector, or there "
            f"twice, and are left out: {listed(good.known)}"
        )
    if good.near:
        say(f"warning: {good.near} good images are nearly equal to others, and count once")
    if bad.known:
        say(
            f"warning: {len(bad.known)} of the defective images are among the good ones, or there "
            f"twice, and are left out: {listed(bad.known)}"
        )
    if len(good.scores) and not known:
        say(
            "warning: this file does not know all of its images: see that none of --good was in "
            "the fit, or the threshold becomes too low"
        )


def _print(done: Calibrated, more: Photos, target: Path | None) -> None:
    info = done.info
    if target:
        typer.echo(
            f"{target}: threshold {info.threshold:.3f} for a false-alarm rate of "
            f"{info.false_alarm_rate:.3g}"
        )
    else:
        typer.echo(f"nothing was written: the threshold stays {info.threshold:.3f}")
    typer.echo(f"  scores      {len(info.good_scores)}: {info.calibration}")
    if len(more.scores):
        typer.echo(
            f"  before      {done.exceeded} of the {len(more.scores)} new good images exceeded the "
            "old threshold"
        )
    typer.echo("")
    header: Sequence[str] = ("false-alarm rate", "true rate, at 95 %", "threshold")
    recalls = done.rows[0].recall is not None
    rows = []
    for row in done.rows:
        cells = [f"{row.false_alarm_rate:.3g}", interval(row.true_rate), f"{row.threshold:.3f}"]
        if row.recall is not None and row.true_recall is not None:
            cells += [f"{row.recall:.3f}", interval(row.true_recall)]
        if row.false_alarm_rate == info.false_alarm_rate:
            cells[0] += " *"
        rows.append(tuple(cells))
    table(rows, (*header, "found", "of all such, at 95 %") if recalls else tuple(header))
