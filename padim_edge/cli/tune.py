"""`padim-edge tune`: which configuration to deploy, by latency here and separation on photos."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.export import export_extra
from padim_edge.cli.options import (
    AbnormalDirs,
    BitDepth,
    EngineName,
    MaskDirs,
    NormalDirs,
    Strict,
    Threads,
    folders_of,
    integers,
)
from padim_edge.cli.output import (
    Skipped,
    json_bytes,
    progress_bars,
    say,
    say_if_made_for_another,
    say_images,
    say_skipped,
    table,
    visible,
)
from padim_edge.errors import UsageError

if TYPE_CHECKING:
    from padim_edge.images.dataset import Folders, Sample
    from padim_edge.measure.tune import Row, Tuned
    from padim_edge.measure.tune_candidates import Source


@command("tune", "padim-edge tune dataset/ --embedding all.onnx --under 10 -o padim.onnx")
def tune(
    photos: Annotated[
        str,
        typer.Argument(
            help="Data set with train/good, test/ and ground_truth/; or good photos alone, "
            "onto some of which defects are painted."
        ),
    ],
    normal_dir: NormalDirs = None,
    abnormal_dir: AbnormalDirs = None,
    mask_dir: MaskDirs = None,
    synthetic: Annotated[
        bool,
        typer.Option("--synthetic", help="Paint defects, although the data set has a test set."),
    ] = False,
    embedding: Annotated[
        list[Path] | None,
        typer.Option(
            "--embedding",
            help="Made by 'padim-edge export', best with --dims all; may be repeated. Needs no "
            "torch.",
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone", help="Exported on the way, as export does; may be repeated. Needs torch."
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            help="Of every --backbone: layer1,layer2,...; may be repeated [default: its own].",
        ),
    ] = None,
    image_size: Annotated[
        str,
        typer.Option("--image-size", help="Of every --backbone: 160,224 or HxW with commas."),
    ] = "224",
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="Of every --backbone: default, random; of a single one also a file.",
        ),
    ] = "default",
    preset: Annotated[
        str, typer.Option("--preset", help="One or more of fit's, with commas.")
    ] = "reference,whitened,whitened-fine",
    dims: Annotated[
        str | None,
        typer.Option(
            "--dims",
            help="Channels of reference, and directions of a whitened preset: one or more, with "
            "commas [default: 100, or 550 of more than 1000 channels; the preset's].",
        ),
    ] = None,
    constants: Annotated[
        str, typer.Option("--constants", help="One or more of float16, float32, int8.")
    ] = "float16,int8",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="Of the backbone: one or more of float32, float16 (for GPUs), int8 [default: what "
            "a file has; float32 of a --backbone].",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option("--for", help="What will run an int8 backbone: cpu, openvino or tensorrt."),
    ] = "cpu",
    preprocess: Annotated[
        str, typer.Option("--preprocess", help="whole or reference, as of fit.")
    ] = "whole",
    bit_depth: BitDepth = None,
    by: Annotated[
        str,
        typer.Option("--by", help="What to compare by: image-auroc, pixel-auroc or pro."),
    ] = "image-auroc",
    under: Annotated[
        float | None,
        typer.Option(
            "--under", help="Milliseconds from frame to decision (median): names the best below."
        ),
    ] = None,
    frame: Annotated[
        str, typer.Option("--frame", help="The camera's frames, width x height.")
    ] = "1920x1080",
    pixel_format: Annotated[
        str, typer.Option("--pixel-format", help="Of the camera's frames: bgr, nv12, grey8, ...")
    ] = "bgr",
    calls: Annotated[
        int, typer.Option("--calls", min=30, help="Counted calls of each candidate.")
    ] = 60,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Of painted defects.")] = 0,
    engine: EngineName = "auto",
    threads: Threads = 0,
    work: Annotated[
        Path,
        typer.Option("--work", help="Folder for what is made: embeddings, detectors, results."),
    ] = Path("padim-tune"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the folder of --work has.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the front: .png, .svg or .pdf.")
    ] = None,
    strict: Strict = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the best detector, below --under if given."),
    ] = None,
) -> None:
    """Choose a configuration: latency on this machine against separation on your photos.

    Prints the Pareto front: what nothing else beats in both. A candidate is each embedding, or
    backbone at each size, with each preset, dims, constants and precision.
    """
    from padim_edge.cli.fit import say_fitted
    from padim_edge.detect.metrics import require_eval_extra
    from padim_edge.files import atomic_write, check_distinct, check_not_read, check_writable
    from padim_edge.images.preprocess import Preprocess
    from padim_edge.measure.camera import parse_camera
    from padim_edge.measure.tune import Plan, deploy
    from padim_edge.measure.tune import tune as tune_candidates
    from padim_edge.measure.tune_candidates import combine
    from padim_edge.measure.tune_separation import METRICS, gather, keep_examples
    from padim_edge.model.metadata import INT8_TARGETS
    from padim_edge.runtime.engines import check_name

    # All that can be wrong with the request is said now, not after minutes of fitting.
    require_eval_extra("padim-edge tune")
    check_name(engine)
    if target not in INT8_TARGETS:
        raise UsageError(f"--for {target}: choose one of {', '.join(INT8_TARGETS)}")
    metric = by.replace("-", "_")
    if metric not in METRICS:
        names = ", ".join(name.replace("_", "-") for name in METRICS)
        raise UsageError(f"--by {by}: choose one of {names}")
    if under is not None and not 0 < under < float("inf"):
        raise UsageError(f"--under {under:g}: a positive number of milliseconds is needed")
    written = {"output": output, "json": json_file, "plot": plot}
    file = None if weights in ("default", "random") else Path(weights)
    for one in embedding or (None,):
        check_distinct(embedding=one, weights=file, **written)
    if output:
        check_writable(output)
    camera = parse_camera(frame, pixel_format)
    sources = _sources(embedding, backbone, layers, image_size, weights)
    for source in sources:
        Preprocess.choose(source.size, preprocess, bit_depth=bit_depth)
    candidates = combine(
        sources,
        _words(precision),
        _words(preset),
        integers("--dims", dims) or (),
        _words(constants),
        say,
    )
    if plot:
        from padim_edge.measure.plots import draw_front, kind_of

        kind = kind_of(plot)
    good, samples = _photos(photos, folders_of(normal_dir, abnormal_dir, mask_dir), synthetic)
    masks = [mask for sample in samples for mask in sample.masks]
    check_not_read([*good, *(sample.path for sample in samples), *masks], **written)
    if samples and metric != "image_auroc" and not any(one.masks for one in samples):
        raise UsageError(f"--by {by}: the data set has no masks; leave --by out")
    skipped = Skipped(strict)
    with contextlib.ExitStack() as files:
        plot_stream = files.enter_context(atomic_write(plot)) if plot else None
        with contextlib.ExitStack() as inner:
            json_stream = inner.enter_context(atomic_write(json_file)) if json_file else None
            with progress_bars() as progress:
                gathered = gather(good, samples, seed, skipped, progress, bit_depth)
                skipped.summary()
                say(f"separation: {gathered}")
                say(f"{len(candidates)} candidate(s); results and detectors are kept in {work}")
                plan = Plan(
                    gathered,
                    work,
                    preprocess,
                    bit_depth,
                    engine,
                    target,
                    threads,
                    camera,
                    calls,
                    metric,
                )
                tuned = tune_candidates(candidates, plan, resume, say, progress)
                if gathered.held_out:
                    shown = plan.preprocess(tuned.rows[0].candidate.source.size)
                    keep_examples(gathered, shown, work / "painted")
                    say(f"painted photos to look at: {work / 'painted'}")
            _print(tuned)
            if json_stream:
                json_stream.write(json_bytes(tuned.to_json(under)))
        # Last: whatever goes wrong with a picture, the figures are there.
        if plot_stream:
            draw_front(tuned, METRICS[metric], under, plot_stream, kind)
    best = tuned.best(under)
    _conclude(tuned, best, under)
    if output:
        with progress_bars() as progress:
            done = deploy(best, tuned.plan, output, progress)
        say_fitted(done, default_rate=True)
        typer.echo(f"{output}: no. {best.number}, {best.candidate}")


def _words(text: str | None) -> tuple[str, ...]:
    """'float16,int8' as words, each once."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def _sources(
    embedding: list[Path] | None,
    backbone: list[str] | None,
    layers: list[str] | None,
    image_size: str,
    weights: str,
) -> list[Source]:
    """What --embedding and --backbone name."""
    from padim_edge.images.preprocess import parse_size
    from padim_edge.measure.tune_candidates import exports, given

    found = given(embedding or [])
    if not backbone:
        if layers or image_size != "224" or weights != "default":
            raise UsageError("--layers, --image-size and --weights are of a --backbone: give one")
        return found
    with export_extra("--backbone"):
        import padim_edge.export.export  # noqa: F401  # now, not for each
        from padim_edge.export.backbones import check_size
        from padim_edge.export.sources import find

        for name in backbone:
            find(name)
    if weights == "random":
        say("warning: RANDOM weights: for trials; real parts need real weights")
    sizes = [parse_size(size) for size in _words(image_size)]
    for size in sizes:
        check_size(size)
    return found + exports(
        backbone, [_words(one) for one in layers or ()] or [None], sizes, weights
    )


def _photos(source: str, folders: Folders, synthetic: bool) -> tuple[list[Path], list[Sample]]:
    """Good photos, and a test set if there is one and it is wanted; says which they are."""
    from padim_edge.images.dataset import has_test, test_samples, train_images

    good = train_images(source, folders)
    samples = [] if synthetic or not has_test(source, folders) else test_samples(source, folders)
    say_images([*good, *(sample.path for sample in samples)])
    return good, samples


def _print(tuned: Tuned) -> None:
    """The table, the front marked, and what is to be known of it."""
    from padim_edge.measure.tune_separation import METRICS
    from padim_edge.model.file import read

    plan = tuned.plan
    say_skipped(plan.skipped, plan.engine)
    files = [read(row.file, "padim", lazily=True).backbone_info for row in tuned.rows]
    for made_for in dict.fromkeys(info.quantised_for for info in files):
        say_if_made_for_another(plan.engine, made_for)
    typer.echo(f"{tuned.machine.processor}, {tuned.machine.cores} cores, {tuned.date}")
    typer.echo(f"engine {plan.engine}: {plan.described}")
    typer.echo(f"frames: {plan.camera}; separation: {plan.photos}")
    typer.echo("")
    more = [name for name in METRICS if name != plan.by]
    table(
        [_cells(tuned, row, more) for row in tuned.rows],
        ("candidate", "no.", "ms", "p95", "graph", "ratio", "MB", METRICS[plan.by], "at 95 %",
         *(METRICS[name] for name in more), "front"),
    )  # fmt: skip
    typer.echo(
        "ms: median from frame to decision, calls taking turns; graph: of it the graph alone; "
        "ratio: to no. 1"
    )
    typer.echo(
        "front: nothing is faster and separates as well; =N: these photos cannot tell it from the "
        "faster no. N"
    )
    for candidate, reason in tuned.failed:
        say(f"warning: left out: {candidate}: {reason}")


def _cells(tuned: Tuned, row: Row, more: Sequence[str]) -> tuple[str, ...]:
    low, high = row.separation.interval(tuned.plan.by) or (0.0, 0.0)
    others = (row.separation.metrics[name] for name in more)
    mark = "" if not row.on_front else f"={row.tied_with}" if row.tied_with else "*"
    return (
        visible(str(row.candidate)),
        str(row.number),
        f"{row.frame.p50:.2f}",
        f"{row.frame.p95:.2f}",
        f"{row.graph.p50:.2f}",
        f"{row.to_fastest:.2f}",
        f"{row.bytes / 1e6:.1f}",
        f"{tuned.value(row):.4f}",
        f"{low:.4f} to {high:.4f}",
        *("-" if value is None else f"{value:.4f}" for value in others),
        mark,
    )


def _conclude(tuned: Tuned, best: Row, under: float | None) -> None:
    """The answer, and how sure it is."""
    limit = "" if under is None else f" in {under:g} ms or less"
    typer.echo(f"best{limit}: no. {best.number}, {best.candidate}: {best.frame.p50:.2f} ms")
    typer.echo(f"  {visible(str(best.file))}")
    alike = tuned.alike(best, under)
    if alike:
        numbers = ", ".join(str(row.number) for row in alike)
        fastest = alike[0] if alike[0].number < best.number else best
        faster = f"; the fastest of them is no. {fastest.number}" if fastest is not best else ""
        typer.echo(f"  these photos cannot tell it from no. {numbers}{faster}")
