"""`padim-edge doctor`: what this machine can run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.output import progress_bars, say, write_json
from padim_edge.errors import PadimEdgeError

if TYPE_CHECKING:
    from padim_edge.measure.proof_line import Line


@command("doctor", "padim-edge doctor --json doctor.json")
def doctor(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all findings as JSON.")
    ] = None,
    gpu: Annotated[
        bool,
        typer.Option(
            "--gpu",
            help="Prove the engines of an NVIDIA GPU instead: kernels, scores, speed, endurance. "
            "It builds 108 plans, which may take hours; exit code 1 if anything fails or cannot be "
            "run.",
        ),
    ] = False,
) -> None:
    """Try out what this machine can run, and name the command that fixes what is missing."""
    if gpu:
        _prove(json_file)
        return
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


def _prove(json_file: Path | None) -> None:
    """The proof, its lines as they come."""
    from padim_edge.files import atomic_write
    from padim_edge.measure.proof import prove

    area = ""

    def tell(one: Line) -> None:
        nonlocal area
        if one.area != area:
            typer.echo(f"\n{one.area}" if area else one.area)
            area = one.area
        typer.echo(f"  {one.status:<8} {one.name}: {one.detail}")

    def begin(name: str, number: int, total: int) -> None:
        say(f"[{number}/{total}] {name}")

    with contextlib.ExitStack() as files:
        stream = files.enter_context(atomic_write(json_file)) if json_file else None
        proof = prove(tell=tell, begin=begin)
        if stream:
            stream.write(proof.to_text().encode())
    counts = ", ".join(f"{count} {status}" for status, count in proof.counts.items() if count)
    typer.echo(f"\n{proof.device}, {proof.seconds:.0f} s: {counts}")
    if proof.interrupted:
        raise KeyboardInterrupt
    if not proof.holds:
        raise PadimEdgeError("the proof fails: see the lines that say fail or not run")
