"""`padim-edge fit`: good images become padim.onnx."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import (
    AbnormalDirs,
    BitDepth,
    Constants,
    Crop,
    FalseAlarmRate,
    Int8Target,
    Interpolation,
    MaskDirs,
    NormalDirs,
    OnRay,
    PreprocessName,
    RayAddress,
    Reduce,
    ReportFile,
    Resize,
    Strict,
    Threads,
    folders_of,
    number,
)
from padim_edge.cli.output import (
    Skipped,
    good_images,
    open_cluster,
    print_threshold,
    progress_bars,
    say,
    say_if_dark,
    say_if_few,
    say_if_float32,
    say_skipped,
)
from padim_edge.errors import PadimEdgeError, UsageError, listed

if TYPE_CHECKING:
    from padim_edge.fit.features import Extract
    from padim_edge.fit.fit import Fitted
    from padim_edge.scale.cluster import Cluster


@command("fit", "padim-edge fit embedding.onnx photos/ --false-alarm-rate 0.05 -o padim.onnx")
def fit(
    embedding: Annotated[Path, typer.Argument(help="Graph made by 'padim-edge export'.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Good images: files, folders, patterns, or data sets with train/good."),
    ],
    normal_dir: NormalDirs = None,
    abnormal_dir: AbnormalDirs = None,
    mask_dir: MaskDirs = None,
    preprocess: PreprocessName = "whole",
    resize: Resize = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    reduce: Reduce = None,
    bit_depth: BitDepth = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="reference: chosen channels, as in the paper. whitened, whitened-fine: layers "
            "pooled on a coarse or fine grid, and projected; needs export --dims all.",
        ),
    ] = "reference",
    dims: Annotated[
        int | None,
        typer.Option(
            "--dims",
            help="Directions of a whitened preset [default: 100; whitened-fine: 128]; of "
            "reference, channels to draw from an embedding that has all.",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            help="Positions of a whitened preset, N or HxW [default: a sixteenth of the image; "
            "whitened-fine: an eighth].",
        ),
    ] = None,
    shrinkage: Annotated[
        str | None,
        typer.Option(
            "--shrinkage",
            help="Weight of the covariance of all positions in each position's, between 0 and 1, "
            "of a whitened preset [default: auto, the likeliest].",
        ),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(
            "--roi",
            help="Mask of the photos' aspect ratio: what is black is never judged.",
        ),
    ] = None,
    ignore_border: Annotated[
        int,
        typer.Option(
            "--ignore-border",
            min=0,
            help="Pixels of the graph's input, at each side, that are never judged.",
        ),
    ] = 0,
    covariance: Annotated[
        str,
        typer.Option(
            "--covariance",
            help="sample (np.cov + eps I), or ledoit-wolf (a larger file).",
        ),
    ] = "sample",
    eps: Annotated[
        float | None,
        typer.Option(
            "--eps", help="Added to the diagonal of the sample covariance [default: 0.01]."
        ),
    ] = None,
    sigma: Annotated[
        float, typer.Option("--sigma", help="Of the Gaussian filter, in pixels of the score map.")
    ] = 4.0,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="int8: make the backbone int8 on these photos first, as padim-edge quantize "
            "does [default: what the embedding has].",
        ),
    ] = None,
    target: Int8Target = None,
    constants: Constants = "float16",
    false_alarm_rate: FalseAlarmRate = None,
    frame_input: Annotated[
        bool,
        typer.Option(
            "--frame-input",
            help="Put the resize into the graph, whose input is then the frame of any size: for "
            "callers of ONNX Runtime alone. Not for speed: padim-edge itself goes on resizing.",
        ),
    ] = False,
    save_moments: Annotated[
        Path | None,
        typer.Option("--save-moments", help="Also save the moments (.npz), for --update later."),
    ] = None,
    update: Annotated[
        Path | None,
        typer.Option("--update", help="Go on from saved moments; IMAGES are the new ones."),
    ] = None,
    reject_outliers: Annotated[
        bool,
        typer.Option(
            "--reject-outliers",
            help="Leave out photos that are very unlike the others, and say which; without it "
            "they are named only.",
        ),
    ] = False,
    report: ReportFile = None,
    strict: Strict = False,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="What runs the backbone: auto (the first of these that is installed), ort, "
            "openvino, trt or ort-cuda.",
        ),
    ] = "auto",
    threads: Threads = 0,
    ray: OnRay = False,
    ray_address: RayAddress = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "padim.onnx"
    ),
) -> None:
    """Fit a detector on good images: means, whitening and threshold, in one ONNX file."""
    from padim_edge.detect.report.fitted import fitted
    from padim_edge.detect.report.page import check_place, page
    from padim_edge.files import atomic_write, check_distinct, check_not_read, check_writable
    from padim_edge.fit.fit import fit_detector
    from padim_edge.fit.settings import EPS, Settings
    from padim_edge.images.decode import read_head
    from padim_edge.images.preprocess import Preprocess, parse_size
    from padim_edge.images.roi import load_roi
    from padim_edge.model.file import read
    from padim_edge.runtime.graphs import check_graph_engine

    check_graph_engine(engine)
    check_place(report)
    written = {"output": output, "report": report}
    check_distinct(embedding=embedding, moments=save_moments, roi=roi, **written)
    check_distinct(embedding=embedding, update=update, roi=roi, **written)  # may be saved again
    if precision not in (None, "int8"):
        raise UsageError(f"--precision {precision}: int8, or leave it out; float16 is for export")
    if target and not precision:
        raise UsageError(f"--for {target} is of an int8 backbone: give --precision int8 with it")
    if precision and (update or save_moments):
        raise UsageError(
            "--precision int8 makes another backbone each time, and moments belong to one: "
            "padim-edge quantize once, then fit from its file"
        )
    model = read(embedding, "embedding")
    if covariance == "ledoit-wolf" and eps is not None:
        raise UsageError(f"--eps {eps}: Ledoit-Wolf chooses its own shrinkage; leave --eps out")
    if preset != "reference" and eps is not None:
        raise UsageError(f"--eps {eps}: of a whitened preset, --shrinkage takes its place")
    prepare = Preprocess.choose(
        model.backbone_info.image_size, preprocess, resize, crop, interpolation, reduce, bit_depth
    )
    settings = Settings(
        prepare,
        covariance,
        constants,
        EPS if eps is None else eps,
        sigma,
        false_alarm_rate,
        frame_input,
        preset,
        dims,
        None if grid is None else parse_size(grid),
        number("--shrinkage", shrinkage),
    )
    paths = good_images(images, folders_of(normal_dir, abnormal_dir, mask_dir))
    check_not_read(paths, moments=save_moments, **written)
    readable = next((path for path in paths if read_head(path)), paths[0])
    roi_of_photos = load_roi(roi, ignore_border, prepare, readable)
    settings = dataclasses.replace(settings, roi=roi_of_photos)
    skipped = Skipped(strict)
    with contextlib.ExitStack() as stack:
        page_file = stack.enter_context(atomic_write(report)) if report else None
        cluster = stack.enter_context(open_cluster(ray, ray_address))
        progress = stack.enter_context(progress_bars())
        if precision:
            from padim_edge.fit.chosen import drawn
            from padim_edge.fit.fit import check_settings
            from padim_edge.fit.quantised import quantise_embedding
            from padim_edge.images.batches import refuse

            check_settings(model, settings, moments=False)
            check_writable(output)
            model, settings = drawn(model, settings)
            # Photos that cannot be read are told of by the fit, which reads them all.
            quiet = refuse if strict else lambda *_: None
            made = quantise_embedding(
                model, paths, settings.preprocess, target or "cpu", quiet, progress
            )
            model = made.model
        done = fit_detector(
            model,
            paths,
            output,
            settings,
            update=update,
            save_moments=save_moments,
            reject_outliers=reject_outliers,
            engine=engine,
            threads=threads,
            on_error=skipped,
            progress=progress,
            extract=extract_on(cluster),
        )
        if page_file:
            title = Path(images[0]).resolve().name if len(images) == 1 else f"{len(paths)} photos"
            page_file.write(page(fitted(title, output, done, skipped.lines(), progress)))
    skipped.summary()
    say_fitted(done, default_rate=false_alarm_rate is None)
    say_skipped(done.skipped, done.engine)
    say_if_float32(engine, model.backbone_info.precision)
    if precision:
        typer.echo(f"int8: {made.described()}")
    _print_fit(output, done)


def extract_on(cluster: Cluster | None) -> Extract:
    """What runs photos through the backbone: this process, or a cluster."""
    if cluster is None:
        from padim_edge.fit.features import extract

        return extract
    from padim_edge.scale.features import extract as spread

    return functools.partial(spread, cluster)


def say_fitted(done: Fitted, default_rate: bool) -> None:
    """What should be known of a fit's photos, on stderr.

    Args:
        done: the fit.
        default_rate: whether its false-alarm rate was left to it.
    """
    _say_copies(done)
    _say_outliers(done)
    _say_shapes(done)
    info = done.model.detector_info
    if info and default_rate:
        say_if_few(info)
    say_if_dark(done.brightest)
    if done.new_images < done.wanted:
        say(
            f"warning: {done.new_images} images are too few for the basis of this preset, and the "
            f"threshold is too low: give {done.wanted} or more, or take --preset reference"
        )


def _say_copies(done: Fitted) -> None:
    """Which photos show what others show already."""
    if done.equal:
        pairs = [f"{copy} = {first or 'one of an earlier fit'}" for copy, first in done.equal]
        say(f"warning: {len(pairs)} image(s) equal others pixel by pixel and are left out: "
            f"{listed(pairs)}")  # fmt: skip
    if done.near:
        count = sum(map(len, done.near))
        say(
            f"warning: {count} images are nearly equal (frames of a video, or stored again?), in "
            f"{len(done.near)} group(s): each counts as one in the threshold, which is set as if "
            f"all of it had been left out of the fit; the largest: {listed(done.near[0])}"
        )


def _say_outliers(done: Fitted) -> None:
    """Which photos are perhaps none of good parts."""
    from padim_edge.fit.outliers import LIMIT

    how = f"the logarithm of their leave-one-out score is {LIMIT} deviations above the median"
    for found, what in (
        (done.rejected, f"left out, because they are very unlike the others ({how})"),
        (
            done.outliers,
            f"are very unlike the others ({how}): look at them, and take them away, or "
            "give --reject-outliers, if they are no good parts",
        ),
    ):
        if found:
            say(f"warning: {len(found)} image(s) {what}; the worst first:")
            for one in found:
                say(f"warning:   {one}")


def _say_shapes(done: Fitted) -> None:
    """Which photos are squeezed otherwise than most, or that there is no most."""
    from padim_edge.detect.heads import TOLERANCE, unusual_shapes

    ratios = done.model.detector_info.aspect_ratios if done.model.detector_info else ()
    if ratios and ratios[-1] > ratios[0] * (1 + TOLERANCE) and (odd := unusual_shapes(done.paths)):
        many = len(odd) > len(done.paths) / 2
        shapes = f"shapes from {ratios[0]:.3g} to {ratios[-1]:.3g} (width / height)"
        say(
            f"warning: the photos have {shapes}, so that parts are squeezed or cut in many ways"
            if many
            else f"warning: {len(odd)} image(s) have another shape than most, so that parts are "
            f"squeezed or cut otherwise in them: {listed(odd)}"
        )


def _print_fit(output: Path, done: Fitted) -> None:
    detector_info = done.model.detector_info
    if detector_info is None:
        raise PadimEdgeError("the fit gave no detector")
    typer.echo(f"{output}: {done.size / 1e6:.1f} MB, fitted on {detector_info.images} images")
    print_threshold(detector_info)
    if detector_info.preset != "reference":
        level = done.model.pyramid().levels[0]
        typer.echo(
            f"  preset      {detector_info.preset}: {done.model.backbone_info.selection}, "
            f"{level.height} x {level.width}, shrinkage {detector_info.shrinkage:g}"
        )
    if detector_info.judged < 1:
        typer.echo(f"  judged      {detector_info.judged:.0%} of what the graph sees")
    typer.echo(f"  engine      {done.engine}")
    typer.echo(
        f"  seconds     {done.seconds_features:.1f} features, {done.seconds_statistics:.1f} "
        "statistics and file"
    )
