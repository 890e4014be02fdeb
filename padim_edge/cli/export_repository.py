"""`padim-edge export-repository`: a detector for the server of somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import ModelFile


@command("export-repository", "padim-edge export-repository bottle.onnx models/ --for triton")
def export_repository(
    model: ModelFile,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Model repository: new, empty, or made by this command before."
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--for", help="triton, ovms (OpenVINO Model Server) or mlserver.", show_default=False
        ),
    ],
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, help="Images in a batch, at most.")
    ] = 8,
    max_delay: Annotated[
        float,
        typer.Option("--max-delay", min=0, help="Milliseconds that a request waits for others."),
    ] = 0,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Requests that wait, at most; 0 for any (triton).")
    ] = 64,
) -> None:
    """Write a model repository for Triton, OpenVINO Model Server or MLServer."""
    from padim_edge.serve.repository import Batching, export_repository

    batching = Batching(max_batch, max_delay / 1000, queue)
    done = export_repository(model, folder, target, batching)
    typer.echo(f"{done.folder} for {target}: {', '.join(done.models)}")
    for file in done.files:
        typer.echo(f"  {file}")
