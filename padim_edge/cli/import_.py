"""`padim-edge import`: another program's fit becomes a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import BitDepth, EngineName, NormalDirs, Strict, Threads, folders_of
from padim_edge.cli.output import (
    Skipped,
    good_images,
    interval,
    progress_bars,
    say,
)
from padim_edge.errors import listed


@command("import", "padim-edge import model.ckpt embedding.onnx photos/good/ -o padim.onnx")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Of anomalib's PaDiM a checkpoint, of AnomaVision a .pt or .pth file, of the "
            "reference implementation the pickle [mean, cov]."
        ),
    ],
    embedding: Annotated[
        Path,
        typer.Argument(
            help="Made by 'padim-edge export' with that fit's backbone, weights, layers, image "
            "size and channels (--channels)."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(help="Good images that were not in that fit: they set the threshold."),
    ],
    normal_dir: NormalDirs = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess",
            help="As that fit prepared images. whole: the entire image, resized. reference: "
            "shorter side 256, centre crop 224 [default: whole; reference for the reference "
            "implementation].",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option("--resize", help="Instead of a preset: shorter side N, or HxW."),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option("--interpolation", help="bilinear, bicubic, lanczos or box, antialiased."),
    ] = None,
    reduce: Annotated[
        bool,
        typer.Option(
            "--reduce/--no-reduce",
            help="Average whole blocks of pixels before; other programs do not.",
        ),
    ] = False,
    bit_depth: BitDepth = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            help="Of the Gaussian filter, in pixels of the score map [default: 4; 0 for "
            "AnomaVision].",
        ),
    ] = None,
    constants: Annotated[
        str, typer.Option("--constants", help="Storage: float16, float32 or int8.")
    ] = "float16",
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Share of good parts that may raise an alarm "
            "[default: 0.01, or the lowest rate that the images allow].",
        ),
    ] = None,
    engine: EngineName = "auto",
    strict: Strict = False,
    threads: Threads = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "padim.onnx"
    ),
) -> None:
    """Make a detector of what another program has fitted; nothing in its file is executed."""
    from padim_edge.detect.importing import import_detector
    from padim_edge.files import check_distinct
    from padim_edge.fit.imported import read_foreign
    from padim_edge.fit.settings import DEFAULT_FALSE_ALARM_RATE, Settings
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import read
    from padim_edge.model.threshold import rate_interval

    check_distinct(source=source, embedding=embedding, output=output)
    foreign = read_foreign(source)
    size = read(embedding, "embedding").backbone_info.image_size
    settings = Settings(
        Preprocess.choose(
            size,
            preprocess or foreign.preprocess,
            resize,
            None,
            interpolation,
            reduce,
            bit_depth,
        ),
        constants=constants,
        eps=0.0,
        sigma=foreign.sigma if sigma is None else sigma,
        false_alarm_rate=false_alarm_rate,
    )
    paths = good_images(images, folders_of(normal_dir))
    skipped = Skipped(strict)
    with progress_bars() as progress:
        done = import_detector(
            foreign,
            embedding,
            paths,
            output,
            settings,
            engine=engine,
            threads=threads,
            on_error=skipped,
            progress=progress,
        )
    skipped.summary()
    if done.known:
        say(f"warning: {len(done.known)} images are there twice, and count once: "
            f"{listed(done.known)}")  # fmt: skip
    if done.near:
        say(f"warning: {done.near} images are nearly equal to others, and count once")
    info = done.model.detector_info
    assert info is not None  # it is a detector
    if false_alarm_rate is None and info.false_alarm_rate > DEFAULT_FALSE_ALARM_RATE:
        say(
            f"warning: {len(info.good_scores)} images are too few for a false-alarm rate of "
            f"{DEFAULT_FALSE_ALARM_RATE}: the threshold is set for {info.false_alarm_rate:.3g}"
        )
    form = "dense: its coarse layers are not repeated" if done.dense else "coarse to fine"
    typer.echo(f"{output}: {done.size / 1e6:.1f} MB, of {done.program}, {form}")
    typer.echo(
        f"  threshold   {info.threshold:.3f} for a false-alarm rate of "
        f"{info.false_alarm_rate:.3g} ({info.calibration})"
    )
    rate = rate_interval(len(info.good_scores), info.false_alarm_rate)
    typer.echo(f"  true rate   {interval(rate)}, at 95 %")
    prepared = "shorter side first, then cropped" if info.preprocess.crop else "whole"
    typer.echo(f"  prepared    {prepared}, {info.preprocess.interpolation}; sigma {info.sigma:g}")
