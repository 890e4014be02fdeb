"""`padim-edge eval`: a detector is measured on images with known defects."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from padim_edge.cli.command import command
from padim_edge.cli.options import (
    AbnormalDirs,
    EngineName,
    MaskDirs,
    ModelFile,
    NormalDirs,
    ReportFile,
    Strict,
    Threads,
    Threshold,
    folders_of,
)
from padim_edge.cli.output import (
    Skipped,
    open_detector,
    progress_bars,
    say,
    say_images,
    table,
    write_json,
)
from padim_edge.errors import listed


@command("eval", "padim-edge eval padim.onnx mvtec/bottle --json bottle.json")
def evaluate(
    model: ModelFile,
    dataset: Annotated[Path, typer.Argument(help="Data set with test/ and ground_truth/.")],
    normal_dir: NormalDirs = None,
    abnormal_dir: AbnormalDirs = None,
    mask_dir: MaskDirs = None,
    engine: EngineName = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON.")
    ] = None,
    report: ReportFile = None,
    threshold: Threshold = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per run of the engine.")] = 8,
    strict: Strict = False,
    threads: Threads = 0,
) -> None:
    """Measure a detector on images with known defects: AUROC, PRO, F1, false alarms."""
    from padim_edge.detect.evaluation import judge_samples
    from padim_edge.detect.heads import Heads
    from padim_edge.detect.report.evaluated import evaluated
    from padim_edge.detect.report.page import check_place, page
    from padim_edge.files import atomic_write, check_distinct
    from padim_edge.images.dataset import stray_masks, test_samples

    check_place(report)
    check_distinct(model=model, json=json_file, report=report)
    folders = folders_of(normal_dir, abnormal_dir, mask_dir)
    samples = test_samples(dataset, folders)
    say_images([sample.path for sample in samples])
    if strays := stray_masks(dataset, samples, folders):
        say(f"warning: {len(strays)} mask(s) belong to no image: {listed(strays)}")
    skipped = Skipped(strict)
    with contextlib.ExitStack() as stack:
        page_file = stack.enter_context(atomic_write(report)) if report else None
        detector = stack.enter_context(open_detector(model, engine, threads, threshold))
        progress = stack.enter_context(progress_bars())
        judged = judge_samples(
            detector, samples, batch, skipped, progress, lambda text: say(f"warning: {text}")
        )
        metrics = judged.metrics()
        if page_file:
            name, unread = dataset.resolve().name, skipped.lines()
            shown = evaluated(name, model, detector, judged, metrics, unread, progress)
            page_file.write(page(shown))
        info = detector.detector_info
    if info.judged < 1:
        say(f"{info.judged:.0%} of what the graph sees is judged: for the pixels, all else is good")
    heads = Heads(info, say)
    for sample in samples:
        heads(sample.path)
    skipped.summary()
    heads.summary()

    def number(value: float | None) -> str:
        return "no masks" if value is None else f"{value:.4f}"

    table(
        [
            ("image AUROC", number(metrics.image_auroc)),
            ("pixel AUROC", number(metrics.pixel_auroc)),
            ("PRO (to 0.3)", number(metrics.pro)),
            ("best F1", number(metrics.best_f1)),
            (f"F1 at {metrics.threshold:.3f}", number(metrics.f1)),
            ("precision", number(metrics.precision)),
            ("recall", number(metrics.recall)),
            ("false-alarm rate", number(metrics.false_alarm_rate)),
        ],
        (f"{metrics.good} good, {metrics.defective} defective", ""),
    )
    if metrics.images_without_mask:
        say(f"{metrics.images_without_mask} defective image(s) have no mask: left out of pixels")
    if json_file:
        write_json(json_file, metrics.to_json())
