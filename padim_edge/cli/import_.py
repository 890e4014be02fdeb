"""`padim-edge import`: another program's fit becomes a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import (
    BitDepth,
    Constants,
    EngineName,
    FalseAlarmRate,
    NormalDirs,
    Resize,
    Strict,
    Threads,
    folders_of,
)
from padim_edge.cli.output import (
    Skipped,
    good_images,
    print_threshold,
    progress_bars,
    say,
    say_if_few,
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
    resize: Resize = None,
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
    constants: Constants = "float16",
    false_alarm_rate: FalseAlarmRate = None,
    engine: EngineName = "auto",
    strict: Strict = False,
    threads: Threads = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "padim.onnx"
    ),
) -> None:
    """Make a detector of what another program has fitted; nothing in its file is executed."""
    from padim_edge.detect.importing import FAR, import_detector
    from padim_edge.files import check_distinct, check_not_read
    from padim_edge.fit.imported import read_foreign
    from padim_edge.fit.settings import Settings
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import read
    from padim_edge.runtime.engines import check_name

    check_name(engine)
    check_distinct(source=source, embedding=embedding, output=output)
    foreign = read_foreign(source)
    backbone = read(embedding, "embedding")
    settings = Settings(
        Preprocess.choose(
            backbone.backbone_info.image_size,
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
    check_not_read(paths, output=output)
    skipped = Skipped(strict)
    with progress_bars() as progress:
        done = import_detector(
            foreign,
            backbone,
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
    if done.distance > FAR:
        say(
            f"warning: the squared distance of these photos is typically {done.distance:.3g} times "
            "the number of channels, and that of good ones about once: this embedding is hardly "
            f"that of the fit (said from {FAR:g} times on). Check backbone, weights, layers and "
            "channels of the export, how images are prepared, and whether the photos are of that "
            "part"
        )
    info = done.model.detector_info
    assert info is not None  # it is a detector
    if false_alarm_rate is None:
        say_if_few(info)
    form = "dense: its coarse layers are not repeated" if done.dense else "coarse to fine"
    typer.echo(f"{output}: {done.size / 1e6:.1f} MB, of {done.program}, {form}")
    print_threshold(info)
    prepared = "shorter side first, then cropped" if info.preprocess.crop else "whole"
    typer.echo(f"  prepared    {prepared}, {info.preprocess.interpolation}; sigma {info.sigma:g}")
