"""`padim-edge demo`: the whole way from photos to a bench, as commands to copy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import app, command


@command("demo", "padim-edge demo --folder demo")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Folder to work in.")] = Path("demo"),
) -> None:
    """Show the whole way on synthetic images: export, fit, run, eval, bench (needs torch)."""
    from padim_edge.images.synthetic import make_dataset

    make_dataset(folder / "photos")
    typer.echo(f"synthetic cloth with known defects: {folder / 'photos'}")
    for arguments in steps(folder):
        typer.echo(f"\n$ padim-edge {shlex.join(arguments)}")
        code = app(arguments, standalone_mode=False)
        if code:
            raise typer.Exit(code)
    typer.echo(f"\nLook at {folder / 'maps'}: every test image with its heat map and contour.")


def steps(folder: Path) -> list[list[str]]:
    """The arguments of `padim-edge` for each step, in order, after the images were made.

    Weights are random, because the demo must run without a network. Random weights still see
    textures, which is enough for synthetic cloth; use real ones for real parts.
    """
    photos, embedding, model = (
        str(folder / name) for name in ("photos", "embedding.onnx", "padim.onnx")
    )
    test = str(folder / "photos" / "test")
    return [
        # Random layers lose more the deeper they are, so more channels come from the first.
        ["export", "--weights", "random", "--dims", "30,40,30", "-o", embedding],
        # 60 photos cannot promise the default rate of 1 %; they can promise 5 %.
        ["fit", embedding, photos, "--false-alarm-rate", "0.05", "-o", model],
        ["inspect", model],
        ["run", model, test, "--save-maps", str(folder / "maps")],
        ["eval", model, photos],
        ["bench", model, "--engine", "ort", "--calls", "50"],
    ]
