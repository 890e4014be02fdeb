"""`padim-edge quantize`: an embedding in int8, calibrated on photos of good parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import (
    BitDepth,
    Crop,
    Interpolation,
    NormalDirs,
    PreprocessName,
    Reduce,
    Resize,
    Strict,
    folders_of,
)
from padim_edge.cli.output import Skipped, good_images, progress_bars, say_if_dark


@command("quantize", "padim-edge quantize embedding.onnx photos/good/ -o embedding-int8.onnx")
def quantize(
    embedding: Annotated[Path, typer.Argument(help="Made by 'padim-edge export', in float32.")],
    images: Annotated[
        list[str], typer.Argument(help="Good images to calibrate on: those of the fit.")
    ],
    normal_dir: NormalDirs = None,
    target: Annotated[
        str,
        typer.Option(
            "--for", help="What will run the graph: cpu (ONNX Runtime), openvino or tensorrt."
        ),
    ] = "cpu",
    preprocess: PreprocessName = "whole",
    resize: Resize = None,
    crop: Crop = None,
    interpolation: Interpolation = None,
    reduce: Reduce = None,
    bit_depth: BitDepth = None,
    strict: Strict = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "embedding-int8.onnx"
    ),
) -> None:
    """Make the backbone int8: a quarter of the size, and faster where the processor has int8.

    Then fit on the new file, and prepare the photos in the same way: means and covariances absorb
    most of what the rounding does.
    """
    from padim_edge.files import atomic_write, check_distinct, check_not_read
    from padim_edge.fit.quantised import quantise_embedding
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import read, write

    check_distinct(embedding=embedding, output=output)
    model = read(embedding, "embedding")
    prepare = Preprocess.choose(
        model.backbone_info.image_size, preprocess, resize, crop, interpolation, reduce, bit_depth
    )
    paths = good_images(images, folders_of(normal_dir))
    check_not_read(paths, output=output)
    skipped = Skipped(strict)
    with progress_bars() as progress, atomic_write(output) as stream:
        done = quantise_embedding(model, paths, prepare, target, skipped, progress)
        size = write(stream, done.model)
    skipped.summary()
    say_if_dark(done.brightest)
    typer.echo(f"{output}: {size / 1e6:.1f} MB")
    typer.echo(f"  int8        {done.described()}")
