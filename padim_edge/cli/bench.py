"""`padim-edge bench`: latency by stage, beside the bare backbone and an earlier run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import Threads, integers, names_of
from padim_edge.cli.output import (
    json_bytes,
    progress_bars,
    say,
    say_if_float32,
    say_skipped,
    table,
)
from padim_edge.errors import PadimEdgeError, UsageError

if TYPE_CHECKING:
    from padim_edge.measure.against import Earlier
    from padim_edge.measure.report import BatchResult, Latency, Report


@command("bench", "padim-edge bench padim.onnx int8.onnx --engine ort,openvino-bf16")
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...", help="Detectors made by 'padim-edge fit', compared in one run."
        ),
    ] = [Path("padim.onnx")],  # noqa: B006  # typer makes a new one
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="auto, or engines to compare in one run, as ort,trt: each model in each. Also "
            "trt/graph: TensorRT without our kernels.",
        ),
    ] = "auto",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes: 1 or 1,8,32.")] = "1",
    calls: Annotated[
        int, typer.Option("--calls", min=10, help="Counted calls at batch 1, fewer at larger ones.")
    ] = 100,
    frame: Annotated[
        list[str],
        typer.Option(
            "--frame",
            help="Camera's frames, width x height (not height x width, as elsewhere): 1920x1080, "
            "or several with commas. May be repeated.",
        ),
    ] = ["1920x1080"],  # noqa: B006  # typer makes a new one
    pixel_format: Annotated[
        str, typer.Option("--pixel-format", help="Of the camera's frames: bgr, nv12, grey8, ...")
    ] = "bgr",
    threads: Threads = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Earlier JSON to compare with; exit code 1 if now worse."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Share that is not yet worse [default: 0.10]."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the results: .png, .svg or .pdf.")
    ] = None,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline", help="Also predict what a frame must cost here and on Jetson modules."
        ),
    ] = False,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            help="With --roofline: print the report of 'doctor --gpu --json' beside the "
            "predictions for its detectors, and measure nothing.",
        ),
    ] = None,
) -> None:
    """Measure latency from a camera's pixels to the decision, by stage, beside the bare backbone.

    On a GPU also bandwidth and power.
    """
    if measured:
        if not roofline or json_file or against or plot:
            raise UsageError(
                "--measured goes with --roofline alone: it prints a report of doctor --gpu beside "
                "the predictions, and measures nothing"
            )
        from padim_edge.measure.measured import beside, load

        typer.echo("\n".join(beside(load(measured))))
        return
    from padim_edge.files import atomic_write, check_distinct
    from padim_edge.measure.against import check
    from padim_edge.measure.against import load as load_earlier
    from padim_edge.measure.bench import check_cameras, check_engines, run_benchmark
    from padim_edge.measure.camera import parse_camera
    from padim_edge.measure.report import announce, check_models
    from padim_edge.runtime.engines import NVIDIA

    engines = names_of(engine) or ()
    batches = integers("--batch", batch) or ()
    sizes = [size for text in frame for size in text.split(",")]
    cameras = [parse_camera(size, pixel_format) for size in sizes]
    check_engines(engines)
    check_cameras(cameras)
    check_models(models)
    for model in models:
        check_distinct(model=model, json=json_file, plot=plot)
    check_distinct(against=against, plot=plot)
    if tolerance is not None and (against is None or not 0 <= tolerance < float("inf")):
        raise UsageError(f"--tolerance {tolerance}: give a share from 0 up, with --against")
    # All that can be wrong with a file is said now, not after minutes of measuring.
    old = load_earlier(against) if against else None
    if old:
        check(old, announce(models, threads), engines, batches)
    if plot:
        from padim_edge.measure.plots import draw, kind_of

        kind = kind_of(plot)
    with contextlib.ExitStack() as pictures:
        plot_stream = pictures.enter_context(atomic_write(plot)) if plot else None
        with contextlib.ExitStack() as files:
            json_stream = files.enter_context(atomic_write(json_file)) if json_file else None
            with progress_bars() as progress:
                report = run_benchmark(
                    models, engines, batches, threads, calls, cameras, progress, roofline
                )
            if json_stream:
                json_stream.write(json_bytes(report.to_json()))
        for skipped, name in dict.fromkeys((one.skipped, one.name) for one in report.engines):
            say_skipped(skipped, name)
        precisions = {model.file: model.precision for model in report.models}
        on_gpu = [one for one in report.engines if one.name in NVIDIA]
        slow = [one.name for one in on_gpu if precisions[one.model] == "float32"]
        say_if_float32((*slow, "none")[0], "float32")
        _print_bench(report)
        worse = _print_changes(old, report, 0.1 if tolerance is None else tolerance) if old else ""
        # Last: whatever goes wrong with a picture, the figures are there.
        if plot_stream:
            draw(report, plot_stream, kind)
    if worse:
        raise PadimEdgeError(worse)


def _print_bench(report: Report) -> None:
    machine = report.machine
    files = ", ".join(model.file for model in report.models)
    typer.echo(f"{files} on {machine.processor}, {machine.cores} cores, {report.date}")
    several = len(report.models) > 1
    if several:
        for model in report.models:
            typer.echo(f"{model.file}: {model}")
    for line in dict.fromkeys(f"{one.name}: {one.description}" for one in report.engines):
        typer.echo(line)
    for one in report.engines:
        if one.name == "ort" and not one.results[0].bare:
            whose = f"{one.model}: " if several else ""
            say(
                f"{whose}no bare backbone, no ratio: a layer without a chosen channel is not in "
                "the file"
            )
    for results in zip(*(one.results for one in report.engines), strict=True):
        typer.echo("")
        rows = zip(report.engines, results, strict=True)
        _print_batch({report.label(one): of for one, of in rows}, several)
    typer.echo("")
    for one in report.engines:
        label = report.label(one)
        if one.device:
            typer.echo(
                f"{label}: device memory {one.device.memory_bytes / 1e6:.0f} MB, copy on the "
                f"device {one.device.copy_bandwidth / 1e9:.1f} GB/s (read + written)"
            )
        typer.echo(
            f"{label}: peak memory {one.peak_memory_bytes / 1e6:.0f} MB, process start to "
            f"first score {one.cold_start_seconds:.2f} s"
        )
    for model in report.models:
        whose = f"{model.file}: " if several else ""
        typer.echo(f"{whose}file {model.file_bytes / 1e6:.1f} MB")
    if report.roofline:
        from padim_edge.measure.roofline import render

        for prediction in report.roofline:
            typer.echo("\n" + "\n".join(render(prediction)))


def _print_batch(results: dict[str, BatchResult], several: bool) -> None:
    """The table of one batch size, rows of a report below each other; whether of several models."""
    first, result = next(iter(results.items()))
    whose = {name: f"{name}: " if len(results) > 1 else "" for name in results}
    latencies: dict[str, Latency] = {}
    for name, result in results.items():
        of = whose[name]
        latencies |= {of + stage: latency for stage, latency in result.stages.items()}
        latencies[f"{of}graph: image to score"] = result.graph
        if result.bare:
            latencies[f"{of if several else ''}bare backbone"] = result.bare
        for one in result.frames:
            of = f"{whose[name]}{one.camera}: "
            latencies[f"{of}prepare"] = one.prepare
            latencies[f"{of}graph"] = one.graph
            latencies[f"{of}rest"] = one.rest
            latencies[f"{of}frame to decision"] = one.whole
    rows = [
        (name, *(f"{x:.2f}" for x in (one.p50, one.p95, one.p99)), f"{one.throughput:.1f}")
        for name, one in latencies.items()
    ]
    table(rows, (f"batch {result.batch}, ms per call", "p50", "p95", "p99", "frames/s"))
    typer.echo(f"{result.calls} calls each")
    for name, result in results.items():
        of = whose[name]
        if result.ratio:
            typer.echo(f"{of}graph / bare backbone = {result.ratio:.3f}")
        for one in result.frames:
            if one.ratio:
                typer.echo(f"{of}{one.camera} to decision / bare backbone = {one.ratio:.3f}")
            if one.on_device:
                there = one.on_device
                typer.echo(
                    f"{of}{one.camera}: upload {there.upload:.2f} ms, prepared by the kernel in "
                    f"{there.prepare:.2f} ms at {there.bandwidth / 1e9:.1f} GB/s"
                )
        if result.to_first:
            typer.echo(f"{of}graph / that of {first} = {result.to_first:.3f}")
        if result.kernel:
            typer.echo(
                f"{of}distance kernel: {result.kernel.bytes / 1e6:.1f} MB of constants at "
                f"{result.kernel.bandwidth / 1e9:.1f} GB/s, {result.kernel.of_copy:.2f} of a copy's"
            )
        if result.power:
            by_rail = ", ".join(f"{rail} {x:.2f}" for rail, x in result.power.rails.items())
            typer.echo(
                f"{of}power: {result.power.watts:.2f} W ({by_rail}), "
                f"{result.power.millijoules_per_frame:.1f} mJ per frame"
            )


def _print_changes(old: Earlier, report: Report, tolerance: float) -> str:
    """The table of `--against`; returns what got worse, in words, or nothing."""
    from padim_edge.measure.against import compare

    comparison = compare(old, report)
    typer.echo("")
    for note in comparison.notes:
        say(note)
    rows = [
        (
            one.figure,
            f"{one.old:.3f}",
            f"{one.new:.3f}",
            f"{one.share:+.1%}",
            "worse" if one.worse(tolerance) else "",
        )
        for one in comparison.changes
    ]
    table(rows, (f"against {old.date}", "old", "new", "change", ""))
    worse = sum(one.worse(tolerance) for one in comparison.changes)
    if not worse:
        return ""
    return f"{worse} of {len(rows)} figures rose by more than {100 * tolerance:.4g} %"
