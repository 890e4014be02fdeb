"""`padim-edge doctor`: what this machine can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.output import progress_bars, write_json
from padim_edge.errors import PadimEdgeError


@command("doctor", "padim-edge doctor --json doctor.json")
def doctor(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all findings as JSON.")
    ] = None,
) -> None:
    """Try out what this machine can run, and name the command that fixes what is missing."""
    from padim_edge.measure.doctor import examine

    with progress_bars() as progress:
        diagnosis = examine(progress=progress)
    if json_file:
        write_json(json_file, diagnosis.to_json())
    area = ""
    for finding in diagnosis.findings:
        if finding.area != area:
            typer.echo(f"\n{finding.area}" if area else finding.area)
            area = finding.area
        status = "-" if finding.status == "absent" else finding.status
        typer.echo(f"  {status:<8} {finding.name:<20} {finding.detail}")
        if finding.fix:
            typer.echo(f"  {'':<8} {'':<20} fix:  {finding.fix}")
    typer.echo("")
    if not diagnosis.engines:
        raise PadimEdgeError("no engine runs here: see what is missing above")
    taken = diagnosis.automatic or "none of them"
    typer.echo(f"engines that run: {', '.join(diagnosis.engines)}; auto takes {taken}")
