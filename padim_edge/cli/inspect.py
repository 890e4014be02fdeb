"""`padim-edge inspect`: what is in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from padim_edge.cli.command import command
from padim_edge.cli.output import table, write_json


@command("inspect", "padim-edge inspect padim.onnx")
def inspect(
    model: Annotated[Path, typer.Argument(help="A file made by padim-edge fit or export.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything as JSON.")
    ] = None,
) -> None:
    """Show what is in a file, and what takes how much room."""
    from padim_edge.files import check_distinct
    from padim_edge.model.inspect import describe

    check_distinct(model=model, json=json_file)
    description = describe(model)
    if json_file:
        write_json(json_file, description)
    for name, value in description["fields"].items():
        if name == "appearance":
            for statistic, spread in value.items():
                typer.echo(f"{statistic:<18}{_short(spread)}")
        elif value not in ("", [], None):  # what this file does not have
            typer.echo(f"{name:<18}{_short(value)}")
    typer.echo("")
    rows = [(part, f"{size / 1e6:.3f}") for part, size in description["bytes"].items()]
    table(rows, ("part", "MB"))


def _short(value: Any) -> str:
    """A value in one line; long lists by their ends."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values: {value[0]}, {value[1]}, ... {value[-1]}"
    return str(value)
